# SPDX-License-Identifier: BSD-3-Clause
"""Opening a store: a mapping from names to lazy arrays."""

from __future__ import annotations

import errno
import os
import threading
import warnings
import weakref
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from functools import partial
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lazymem import _engine, manifest
from lazymem.array import LazyArray, bind, closed_error
from lazymem.errors import (
    HugePagesError,
    LazyMemError,
    LazyMemWarning,
    ObjectNotFoundError,
    UnsupportedKernelError,
)
from lazymem.progress import Progress, meter
from lazymem.stats import Commit, StoreStats, region_stats

if TYPE_CHECKING:
    from lazymem.manifest import ObjectInfo

Pages = Literal["2M", "1G", "auto"] | None

_LISTED_IN_REPR = 10
_PRUNE_MIN = 64


class Store(Mapping[str, LazyArray]):
    """An open store file: names to arrays.  Made by :func:`lazymem.open`.

    An array, and every view of it, keeps its memory; when the last one is gone the
    memory is given back.  So keep the array (``t = store["t"]``) rather than asking the
    store again and again.  In mode ``"c"`` the store keeps every array it has given
    out, with what was written.

    A store is a context manager.  After :meth:`close` its arrays raise ClosedError when
    touched.
    """

    def __init__(
        self,
        path: str,
        mode: Literal["r", "c"],
        on_error: Literal["raise", "sigbus"] = "raise",
        pages: Pages = None,
    ) -> None:
        _engine.start_pager()  # its threads get ready while the file is looked at
        self._handle = _engine.StoreHandle(path)
        self._path, self._mode = path, mode
        self._on_error, self._pages = on_error, pages
        self._manifest = manifest.decode(self._handle.manifest(), path)
        self._objects: dict[str, Any] = self._manifest["objects"]
        self._lock = threading.Lock()
        self._open: dict[str, weakref.ref[LazyArray]] = {}
        # A plain view of an array can outlive it.
        self._regions: list[weakref.ref[_engine.RegionHandle]] = []
        self._prune_at = _PRUNE_MIN
        self._kept: dict[str, LazyArray] = {}
        self._closed = False
        _stores[id(self)] = weakref.ref(self, partial(_stores.pop, id(self)))
        torn = self._handle.commit.torn_bytes
        if torn:
            warnings.warn(
                f"{path}: {torn} bytes after the last intact commit are ignored: a "
                "later commit was interrupted, or its end was lost",
                LazyMemWarning,
                stacklevel=3,
            )

    # ---- mapping ---------------------------------------------------------------------

    def __getitem__(self, name: str) -> LazyArray:
        with self._lock:
            if self._closed:
                raise closed_error(self._path, f"store[{name!r}]")
            reference = self._open.get(name)
            array = reference() if reference else None
            if array is None:
                array = self._open_array(self.info(name))
                self._open[name] = weakref.ref(array)
                if self._mode == "c":
                    self._kept[name] = array
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._objects)

    def __len__(self) -> int:
        return len(self._objects)

    def __contains__(self, name: object) -> bool:
        return name in self._objects

    # ---- facts -----------------------------------------------------------------------

    @property
    def path(self) -> str:
        """The file."""
        return self._path

    @property
    def mode(self) -> str:
        """``"r"`` or ``"c"``."""
        return self._mode

    @property
    def attrs(self) -> Mapping[str, Any]:
        """The store's attributes."""
        return MappingProxyType(self._manifest["attrs"])

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    @property
    def commit(self) -> Commit:
        """Facts about the state of the file that was opened."""
        raw = self._handle.commit
        return Commit(
            sequence=raw.sequence,
            time=datetime.fromtimestamp(raw.time_ns // 10**9, timezone.utc),
            store_id=bytes(raw.store_id).hex(),
            writer=str(self._manifest.get("writer", "unknown")),
            file_bytes=raw.file_bytes,
            torn_bytes=raw.torn_bytes,
        )

    def info(self, name: str) -> ObjectInfo:
        """Return what the store knows of an object, without touching its data.

        Raises
        ------
        ObjectNotFoundError
            If there is no object of that name.
        """
        try:
            entry = self._objects[name]
        except (KeyError, TypeError):
            raise self._not_found(name) from None
        return manifest.object_info(self._path, name, entry)

    def stats(self) -> StoreStats:
        """Return counters of the arrays that are open, and of the engine."""
        with self._lock:
            regions = self._live_regions()
        arrays = {
            region.object.name: region_stats(region.stats()) for region in regions
        }
        return StoreStats(arrays=arrays, engine=_engine.pager_stats())

    def blocks(
        self, name: str, *, block_bytes: int = 64 << 20, progress: Progress = None
    ) -> Iterator[memoryview]:
        """Decode an object piece by piece, without its array and its memory.

        Parameters
        ----------
        name : str
            The object.
        block_bytes : int, optional
            Bytes of a piece; the last one may be shorter.
        progress : bool or callable, optional
            True for a bar, or a function of (bytes done, bytes in all).

        Yields
        ------
        memoryview
            The object's next bytes, in its order; overwritten by the next piece.

        Raises
        ------
        FormatError, FillError
            If a chunk can't be read.
        """
        self._check_open(f"blocks({name!r})")
        info = self.info(name)
        if info.nbytes == 0:
            return
        obj = self._object(info)
        buffer = memoryview(bytearray(min(block_bytes, info.nbytes)))
        with meter(progress, info.nbytes, f"read {name}") as m:
            for offset in range(0, info.nbytes, len(buffer)):
                block = buffer[: info.nbytes - offset]
                obj.read(offset, block).wait(m.part(len(block)))
                yield block

    def verify(self, *, progress: Progress = None) -> list[Exception]:
        """Check every checksum of every object and decode every chunk.

        Returns
        -------
        list of LazyMemError
            What is damaged, at most 256 for each object; empty if all is well.
        """
        self._check_open("verify")
        damage: list[Exception] = []
        infos = []
        for name in self:
            try:
                infos.append(self.info(name))
            except LazyMemError as exc:
                damage.append(exc)
        total = sum(info.nbytes for info in infos)
        with meter(progress, total, f"verify {os.path.basename(self._path)}") as m:
            for info in infos:
                if info.nbytes:
                    damage += self._verify_object(info, m.part(info.nbytes))
        return damage

    def _verify_object(self, info: ObjectInfo, tick: _engine.Tick) -> list[Exception]:
        try:
            obj = self._object(info)  # errors name it as long as it lives
        except LazyMemError as exc:
            return [exc]
        job = obj.verify()
        try:
            job.wait_quietly(tick)
            return job.errors()
        finally:
            job.close()

    # ---- life ------------------------------------------------------------------------

    def close(self) -> None:
        """Close the store and free the memory of its arrays at once.

        Arrays and views that are still held stay valid objects; touching their memory
        raises ClosedError.  Closing twice is allowed.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            regions = self._live_regions()
            self._kept.clear()
        for region in regions:
            region.release()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        names = ", ".join(map(repr, list(self)[:_LISTED_IN_REPR]))
        more = len(self) - _LISTED_IN_REPR
        tail = f", and {more} more" if more > 0 else ""
        state = "closed" if self._closed else f"mode {self._mode!r}"
        return f"<Store {self._path!r}, {state}: {names}{tail}>"

    # ---- inside ----------------------------------------------------------------------

    def _check_open(self, what: str) -> None:
        if self._closed:
            raise closed_error(self._path, what)

    def _not_found(self, name: object) -> ObjectNotFoundError:
        from difflib import get_close_matches

        names = [key for _, key in zip(range(10_000), self)]
        close = get_close_matches(str(name), names, 3)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else ""
        if not close:
            shown = ", ".join(map(repr, names[:_LISTED_IN_REPR]))
            hint = f"it has {shown}" if names else "it is empty"
        error = ObjectNotFoundError(f"{self._path}: no object {name!r}; {hint}")
        error.path, error.name = self._path, str(name)
        return error

    def _live_regions(self) -> list[_engine.RegionHandle]:
        found = (reference() for reference in self._regions)
        return [region for region in found if region is not None]

    def _prune(self) -> None:
        """Forget arrays that are gone: a store of many is walked through."""
        arrays = self._open.items()
        self._open = {name: found for name, found in arrays if found() is not None}
        self._regions = [found for found in self._regions if found() is not None]
        self._prune_at = max(_PRUNE_MIN, 2 * len(self._regions))

    def _object(self, info: ObjectInfo) -> _engine.ObjectHandle:
        return _engine.ObjectHandle(
            self._handle,
            info.name,
            info.nbytes,
            info.chunk_bytes,
            info.shuffle,
            info.index,
        )

    def _open_array(self, info: ObjectInfo) -> LazyArray:
        if info.nbytes == 0:
            array = bind(info, bytearray(1), None)
        else:
            obj = self._object(info)
            try:
                region = self._open_region(obj)
            except UnsupportedKernelError as exc:
                if _engine.has_pager():
                    raise  # it is what was asked for that this kernel can't do
                _warn_fallback(exc)
                array = bind(info, _load_whole(obj), None)
            else:
                self._regions.append(weakref.ref(region))
                if len(self._regions) >= self._prune_at:
                    self._prune()
                user_mode_only = _warn_user_mode_only()
                memory = region.memory()
                if self._mode == "r":
                    memory = memory.toreadonly()
                return bind(info, memory, region, user_mode_only=user_mode_only)
        array.flags.writeable = self._mode == "c"
        return array

    def _open_region(self, obj: _engine.ObjectHandle) -> _engine.RegionHandle:
        is_writable = self._mode == "c"
        pages = "2M" if self._pages == "auto" else self._pages
        try:
            return _engine.RegionHandle(
                obj, self._on_error, is_writable=is_writable, pages=pages
            )
        except (HugePagesError, UnsupportedKernelError) as exc:
            if self._pages != "auto" or not _engine.has_pager():
                raise
            warnings.warn(f"{exc}; here they are used", LazyMemWarning, stacklevel=5)
            self._pages = None
        return self._open_region(obj)


_stores: dict[int, weakref.ref[Store]] = {}


def _renew_locks() -> None:
    """Let a forked child use its stores, whoever held their locks in the parent."""
    for reference in list(_stores.values()):
        store = reference()
        if store is not None:
            store._lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_locks)


def _load_whole(obj: _engine.ObjectHandle) -> memoryview:
    try:
        memory = np.empty(obj.nbytes, np.uint8)
    except MemoryError as exc:
        raise MemoryError(
            f"{obj.path}, object {obj.name!r}: {exc}; without userfaultfd an array is "
            "loaded whole ('lazymem doctor' tells how to allow it)"
        ) from None
    obj.read(0, memory.data).wait()
    return memory.data


def _warn_fallback(reason: UnsupportedKernelError) -> None:
    info = _engine.uffd_probe()
    number = info.user_errno or info.api_errno
    why = errno.errorcode.get(number, str(number)) if number else str(reason)
    warnings.warn(
        "arrays are loaded whole at first access: userfaultfd is not available "
        f"({why}); 'lazymem doctor' tells how to allow it",
        LazyMemWarning,
        stacklevel=4,
    )


_user_mode_only: bool | None = None


def _warn_user_mode_only() -> bool:
    """Return whether only user-mode faults are served, and say so the first time."""
    global _user_mode_only
    if _user_mode_only is None:
        _user_mode_only = _engine.user_mode_only()
        if _user_mode_only:
            warnings.warn(
                "this process may serve page faults of user code only: system calls on "
                "memory not yet filled (write(), send(), ...) fail with EFAULT; load() "
                "the array first, or see 'lazymem doctor'",
                LazyMemWarning,
                stacklevel=5,
            )
    return _user_mode_only


def open(
    path: str | os.PathLike[str],
    mode: Literal["r", "c"] = "r",
    *,
    on_error: Literal["raise", "sigbus"] = "raise",
    pages: Pages = None,
) -> Store:
    """Open a store file.

    Parameters
    ----------
    path : str or path-like
        The file.
    mode : {"r", "c"}, optional
        ``"r"``: arrays are read-only.  ``"c"``: copy on write, as in `numpy.memmap`:
        arrays are writable in memory, the file never changes.
    on_error : {"raise", "sigbus"}, optional
        What a touch of a chunk that can't be read does: raise an exception in the
        thread, right after the operation; or raise SIGBUS, as `numpy.memmap` does, so
        that not one instruction sees false bytes.  System calls then fail with EFAULT,
        and the page stays dead until the store is opened again.
    pages : {None, "2M", "1G", "auto"}, optional
        Memory from the system's pool of huge pages, reserved for a whole array when
        it is opened, and filled page by page; ``"auto"`` is ``"2M"`` where the pool has
        enough, and else ordinary pages, with a warning.  An array smaller than such a
        page has ordinary pages in any case, and so have all arrays in a forked child.
        Default: ordinary pages.

    Returns
    -------
    Store

    Raises
    ------
    FileNotFoundError, PermissionError, OSError
        If the file can't be opened.
    FormatError
        If it is not a store, is damaged, or is of a later version.
    UnsupportedKernelError
        If an array is asked for and the kernel can't do what `on_error` or `pages` say
        (``"sigbus"`` needs Linux 6.6).
    HugePagesError
        If an array is asked for and the pool has too few pages free for all of it.

    Notes
    -----
    Costs three small reads, whatever the store holds; no array is touched.

    Examples
    --------
    >>> import numpy as np, lazymem as lm
    >>> _ = lm.save("example.lzm", {"x": np.arange(1_000_000)})
    >>> with lm.open("example.lzm") as store:
    ...     print(store["x"][123_456])
    123456
    """
    if mode not in ("r", "c"):
        raise ValueError(f"mode must be 'r' or 'c', not {mode!r}")
    if on_error not in tuple(_engine.ON_ERROR):
        raise ValueError(f"on_error must be 'raise' or 'sigbus', not {on_error!r}")
    if pages not in (*_engine.PAGE_BYTES, "auto"):
        raise ValueError(f"pages must be '2M', '1G', 'auto' or None, not {pages!r}")
    return Store(os.fspath(path), mode, on_error, pages)


def _warm() -> None:
    """Run what a first opening runs: a function's first call is its slowest by far."""
    info = manifest.ObjectInfo(
        "x", (1,), np.dtype("u1"), "C", 4096, "none", 0, 0, None, 0, {}
    )
    objects = manifest.decode(manifest.encode({"x": info}, {}), "")["objects"]
    bind(manifest.object_info("", "x", objects["x"]), bytearray(1), None)[0]


_warm()
