# SPDX-License-Identifier: BSD-3-Clause
"""Switches that make the engine's system calls fail, to test programs with."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from lazymem import _engine

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["HANG", "KILL", "failing"]

HANG = _engine.HANG
"""As the error of :func:`failing`: the call does not return before the end."""

KILL = -1
"""As the error of :func:`failing`: the process dies at that call, as by ``kill -9``."""


@contextmanager
def failing(
    point: Literal["read", "write", "sync", "uffd_copy"],
    error: int,
    *,
    skip: int = 0,
    count: int = -1,
) -> Iterator[None]:
    """Let the engine's calls of one kind fail.

    Parameters
    ----------
    point : {"read", "write", "sync", "uffd_copy"}
        Reads, writes and syncs of store files; installs of pages.
    error : int
        The errno they fail with, or `KILL` or `HANG`.
    skip : int, optional
        Calls that still succeed.
    count : int, optional
        Calls that fail then; negative for all.

    Examples
    --------
    >>> import errno, numpy as np, lazymem as lm
    >>> _ = lm.save("failing.lzm", {"x": np.arange(100_000)})
    >>> x = lm.open("failing.lzm")["x"]
    >>> with failing("read", errno.EIO):
    ...     x.sum()
    Traceback (most recent call last):
    lazymem.errors.FillError: ...
    """
    _engine.inject(point, error, skip, count)
    try:
        yield
    finally:
        _engine.inject(point, 0)
