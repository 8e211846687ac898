# SPDX-License-Identifier: BSD-3-Clause
"""Packages that not everybody has: an extra brings each."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Let the error of an import say which extra helps.

    Raises
    ------
    ImportError
        If a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as exc:
        package = (exc.name or extra).partition(".")[0]
        raise ImportError(
            f"{package} is missing: pip install 'lazymem[{extra}]'", name=exc.name
        ) from exc
