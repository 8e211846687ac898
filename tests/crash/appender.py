# SPDX-License-Identifier: BSD-3-Clause
"""Whole objects appended to a store file, and nothing said of its torn tail."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy.typing as npt

import lazymem as lm


class Appender:
    """A store file that is open for writing."""

    def __init__(self, path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", lm.LazyMemWarning)
            self._store = lm.open(path, "r+")

    def put(self, name: str, array: npt.NDArray[Any], chunk_bytes: int) -> None:
        """Append an object, or another one of the same name."""
        self._store.put(name, array, chunk_bytes=chunk_bytes)

    def delete(self, name: str) -> None:
        """Leave an object out of what is committed next."""
        if name in self._store:
            del self._store[name]

    def commit(self) -> None:
        """Make what was done count."""
        self._store.flush()

    def close(self) -> None:
        """Close the file."""
        self._store.close(discard=True)
