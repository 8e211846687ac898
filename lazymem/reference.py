# SPDX-License-Identifier: BSD-3-Clause
"""Arrays by reference: a pickle says where the bytes are, and not what they are.

A file never changes what a commit has written, so an array that equals a commit is told
by the file, the commit's record in it, a name, and which part of the array it is.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from lazymem import _engine
from lazymem.errors import FormatError, SnapshotNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from lazymem.array import LazyArray
    from lazymem.store import Store

_stores: weakref.WeakValueDictionary[Origin, Store] = weakref.WeakValueDictionary()
"""Those that arrays have been unpickled from: they share memory."""


class Origin(NamedTuple):
    """A state of a store file."""

    path: str
    """Absolute."""
    store_id: bytes
    offset: int
    """Of its commit record."""
    time_ns: int
    """Of its commit: two copies of a file may go on, each in its own way."""
    is_shared: bool = False
    """Whether its memory is to be shared with other processes."""

    @classmethod
    def of(cls, path: str, commit: Any, *, is_shared: bool = False) -> Origin:
        """Return the origin of what a ``struct lm_commit`` tells about."""
        store_id, offset = bytes(commit.store_id), int(commit.offset)
        return cls(path, store_id, offset, int(commit.time_ns), is_shared)

    def token(self, part: Part) -> tuple[Any, ...]:
        """Return what tells a part from all others, as dask tells them."""
        return (*self, *part[:-1], repr(part.dtype))  # dask tells no fields apart


class Part(NamedTuple):
    """A part of an array of a store."""

    name: str
    offset: int
    """Of its first element, in bytes."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]


def reduce(origin: Origin, part: Part) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return what pickle is to store."""
    return load, (*origin, *part)


def load(
    path: str,
    store_id: bytes,
    offset: int,
    time_ns: int,
    is_shared: bool,
    *part: Any,
) -> LazyArray:
    """Return an array that was pickled.

    Raises
    ------
    FileNotFoundError, PermissionError, OSError
        If the file can't be opened.
    SnapshotNotFoundError
        If there is another store by now, or the state is gone or damaged.
    """
    origin = Origin(path, store_id, offset, time_ns, is_shared)
    store = _stores.get(origin)
    if store is None or store.closed:
        store = _stores[origin] = open_at(origin)
    return store[part[0]]._part(Part(*part), store)


def open_at(origin: Origin) -> Store:
    """Open a file at the state that was pickled.

    Raises
    ------
    FileNotFoundError, PermissionError, OSError
        If the file can't be opened.
    SnapshotNotFoundError
        If there is another store by now, or the state is gone or damaged.
    """
    from lazymem.store import Store

    _engine.start_pager()
    handle = _engine.StoreHandle(origin.path)
    if bytes(handle.commit.store_id) != origin.store_id:
        raise _gone(origin, "another store is there by now")
    is_last = handle.commit.offset == origin.offset
    store = Store.__new__(Store)
    try:
        at = None if is_last else origin
        store._open(handle, "r", at, "raise", None, None, shared=origin.is_shared)
    except FormatError as exc:
        raise _gone(origin, f"its state can't be read: {exc}") from exc
    if store._handle.commit.time_ns != origin.time_ns:
        raise _gone(origin, "its state is another one in this copy of the file")
    return store


def _gone(origin: Origin, reason: str) -> SnapshotNotFoundError:
    error = SnapshotNotFoundError(
        f"{origin.path}: an array that was pickled can't be found: {reason}"
    )
    error.path = origin.path
    return error
