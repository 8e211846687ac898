# SPDX-License-Identifier: BSD-3-Clause
"""Opening a store: a mapping from names to lazy arrays."""

from __future__ import annotations

import builtins
import os
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from lazymem import _engine, diff, files, history, manifest
from lazymem.array import LazyArray, bind, closed_error
from lazymem.arrays import Mode, OnError, OpenArrays, Pages
from lazymem.attrs import Attrs, Change
from lazymem.budget import new_budget, spill_folder
from lazymem.encoding import Encoding
from lazymem.errors import LazyMemError, LazyMemWarning, LockError, ObjectNotFoundError
from lazymem.progress import Progress, meter
from lazymem.reference import Origin
from lazymem.stats import Commit, StoreStats, budget_stats, region_stats
from lazymem.warm import WorkingSet, record, record_path
from lazymem.workspace import Workspace, listing

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from types import TracebackType

    import numpy.typing as npt
    from matplotlib.axes import Axes

    from lazymem.budget import Limit, Spill
    from lazymem.history import (
        FlushInfo,
        History,
        RestoreInfo,
        SnapshotInfo,
        SnapshotRef,
    )
    from lazymem.live import LiveView
    from lazymem.manifest import ObjectInfo
    from lazymem.shared import SharedMemory

_LISTED_IN_REPR = 10
_MEMORY = "<memory>"


class Store(Mapping[str, LazyArray]):
    """A store: names to arrays.  :func:`lazymem.open` opens one that is a file.

    Made directly it is a new, empty store in memory, compressed as a file would be.

    An array, and every view of it, keeps its memory; when the last one is gone the
    memory is given back.  So keep the array (``t = store["t"]``) rather than asking the
    store again and again.  Where arrays can be written the store keeps every array it
    has given out, with what was written.

    A store is a context manager.  After :meth:`close` its arrays raise ClosedError when
    touched.

    Parameters
    ----------
    pages : {None, "2M", "1G", "auto"}, optional
        Huge pages for its arrays, as for :func:`lazymem.open`.
    spill : str or path-like, optional
        A folder for what snapshots hold, in a file without a name, which goes with the
        store; and for what has no room within `limit`.  Default: memory, or, where
        there is a limit, as for :func:`lazymem.open`.
    limit : int or str, optional
        How much memory its arrays may have, as for :func:`lazymem.open`.

    Examples
    --------
    >>> import lazymem as lm
    >>> with lm.Store() as store:
    ...     x = store.create("x", (1_000_000,), "f8")
    ...     x[:10] = 1
    ...     _ = store.snapshot("ten")
    ...     x[:] = 2
    ...     _ = store.restore("ten", discard=True)
    ...     print(x.sum())
    10.0
    """

    def __init__(
        self,
        *,
        pages: Pages = None,
        spill: Spill = None,
        limit: Limit = None,
    ) -> None:
        _check_pages(pages)
        _engine.start_pager()
        bound = new_budget(limit, spill)
        handle = _open_in_memory(spill_folder(spill) if bound else spill)
        self._open(handle, "r+", None, "raise", pages, None, bound, spill)

    def _open(
        self,
        handle: _engine.StoreHandle,
        mode: Mode,
        at: SnapshotRef | Origin | None,
        on_error: OnError,
        pages: Pages,
        warm: str | None,
        budget: _engine.BudgetHandle | None = None,
        spill: Spill = None,
        *,
        shared: bool = False,
    ) -> None:
        self._path, self._handle = handle.path, handle
        self._workspace: Workspace | None = None
        lazily = mode != "r+"
        self._content = manifest.decode(handle.manifest(), self._path, lazily=lazily)
        self._last_content, self._last_commit = self._content, handle.commit
        if at is not None:
            found = at if isinstance(at, Origin) else self._history().find(at)
            self._handle = handle.at(found.offset)
            data = self._handle.manifest()
            self._content = manifest.decode(data, self._path, lazily=lazily)
        join = None
        if shared:
            state = self._origin(is_shared=True)
            join = partial(_join, state, self._content["objects"])
        self._arrays = OpenArrays(mode, on_error, pages, budget, spill, join)
        self._closed = False
        if mode == "r+":
            self._workspace = Workspace(handle, self._content, self._arrays)
            if self._path != _MEMORY:
                weakref.finalize(self, _warn_of_loss, self._workspace)
        self._working_set: WorkingSet | None = None
        if warm is not None:
            self._working_set = WorkingSet(
                record_path(self._path, warm), self.commit.store_id
            )
        torn = handle.commit.torn_bytes
        if torn and (mode == "r+" or not files.has_writer(self._path)):
            warnings.warn(
                f"{self._path}: {torn} bytes after the last intact commit are ignored: "
                "a later commit was interrupted or discarded, or its end was lost",
                LazyMemWarning,
                stacklevel=3,
            )
        if os.environ.get("LAZYMEM_TOP", "0") not in ("", "0"):
            from lazymem import top  # not for the others

            top.watch(self)

    # ---- mapping ---------------------------------------------------------------------

    # Mapping would compare all arrays, and have no hash.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __getitem__(self, name: str) -> LazyArray:
        with self._arrays.lock:
            if self._closed:
                raise closed_error(self._path, f"store[{name!r}]")
            array = self._arrays.get(name)
            if array is not None:
                return array
            info = self.info(name)
            obj = manifest.open_object(self._handle, info) if info.nbytes else None
            info = replace(info, attrs=self._attrs_of(info))
            array = self._arrays.open(info, obj)
            if array._binding and array._binding.region and self._path != _MEMORY:
                array._binding.region.origin = self._origin_of(name)
        if self._working_set and array._binding and array._binding.region:
            self._working_set.start(array._binding.region, info)
        return array

    def __setitem__(self, name: str, value: npt.ArrayLike | os.PathLike[str]) -> None:
        writing = self._writing(f"store[{name!r}] = ...")
        if isinstance(value, LazyArray) and value is self._arrays.get(name):
            return  # the end of store[name] *= 2, which has written to the array
        writing.put(name, value)

    def __delitem__(self, name: str) -> None:
        self._writing(f"del store[{name!r}]").delete(name, self._not_found)

    def __iter__(self) -> Iterator[str]:
        return iter(self._content["objects"])

    def __len__(self) -> int:
        return len(self._content["objects"])

    def __contains__(self, name: object) -> bool:
        return name in self._content["objects"]

    # ---- facts -----------------------------------------------------------------------

    @property
    def path(self) -> str:
        """The file; ``"<memory>"`` if it has none."""
        return self._path

    @property
    def mode(self) -> str:
        """``"r"``, ``"c"`` or ``"r+"``.

        A forked child of a process that writes has mode ``"c"``.
        """
        return self._arrays.mode

    @property
    def attrs(self) -> Attrs:
        """The store's attributes, which can be changed in mode ``"r+"``."""
        if self._workspace is not None:
            return self._workspace.attrs()
        return Attrs("the store", lambda: self._content["attrs"], self._refuse_change)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    @property
    def commit(self) -> Commit:
        """Facts about the state that was opened, or was last committed since."""
        raw = self._workspace.commit if self._workspace else self._handle.commit
        return Commit(
            sequence=raw.sequence,
            time=datetime.fromtimestamp(raw.time_ns // 10**9, timezone.utc),
            store_id=bytes(raw.store_id).hex(),
            writer=str(self._content.get("writer", "unknown")),
            file_bytes=raw.file_bytes,
            torn_bytes=raw.torn_bytes,
        )

    def info(self, name: str) -> ObjectInfo:
        """Return what the store knows of an object, without touching its data.

        Parameters
        ----------
        name : str
            The object.

        Returns
        -------
        ObjectInfo
            Where the array was written to, its `index` and `stored_bytes` are of the
            last commit.

        Raises
        ------
        ObjectNotFoundError
            If there is no object of that name.
        FormatError
            If its entry in the file makes no sense.
        """
        try:
            entry = self._content["objects"][name]
        except (KeyError, TypeError):
            raise self._not_found(name) from None
        return manifest.object_info(self._path, name, entry)

    def stats(self) -> StoreStats:
        """Return counters of the arrays that are open, and of the engine.

        Returns
        -------
        StoreStats

        Notes
        -----
        Touches no page.
        """
        with self._arrays.lock:
            regions = self._arrays.regions()
        arrays = {
            region.object.name: region_stats(region.stats()) for region in regions
        }
        working_set, bound = self._working_set, self._arrays.budget
        return StoreStats(
            arrays=arrays,
            engine=_engine.pager_stats(),
            warm=working_set.stats() if working_set else None,
            budget=budget_stats(bound.stats()) if bound else None,
        )

    @property
    def limit(self) -> int | None:
        """How many bytes its arrays may have in memory; None: as many as they like.

        It can be changed: to bytes, a text such as ``"4 GiB"``, ``"auto"``, or None.
        What is too much then is dropped at once.  A store without a limit of its own
        has the process's (:func:`set_limit`).
        """
        bound = self._arrays.budget
        return bound.stats().limit_bytes if bound else None

    @limit.setter
    def limit(self, limit: Limit) -> None:
        self._check_open("limit")
        with self._arrays.lock:
            self._arrays.set_limit(limit)

    def record(self, name: str) -> int:
        """Write down which chunks are in memory, for a later ``open(path, warm=name)``.

        Parameters
        ----------
        name : str
            A name for this working set, without slashes.  The record is a small file
            beside the store, ``<path>.<name>.warm``; one of that name is replaced.

        Returns
        -------
        int
            Chunks that are in it.

        Raises
        ------
        ValueError
            If the name can't be part of a file's, or the store has no file.
        OSError
            If the record can't be written, or the store's folder is gone.
        ClosedError
            If the store is closed.

        Notes
        -----
        Touches no page.  What is recorded is what is in memory of the arrays that are
        held, whether it was touched or filled ahead: record a run that was opened
        without ``warm=`` to have no more than what it needs.

        Examples
        --------
        >>> import numpy as np, lazymem as lm
        >>> _ = lm.save("big.lzm", {"x": np.arange(10_000_000)})
        >>> with lm.open("big.lzm", warm="start") as store:  # the first time: nothing
        ...     x = store["x"]
        ...     print(x[::1_000_000].sum(), store.record("start"))
        45000000 10
        """
        self._check_open("record()")
        file = record_path(self._path, name)
        if self._path == _MEMORY:
            raise ValueError("a store in memory has no file, and so no working sets")
        os.stat(self._path)  # a relative path may lead elsewhere by now
        with self._arrays.lock:
            regions = self._arrays.regions()
        return record(file, self.commit.store_id, regions)

    def blocks(
        self, name: str, *, block_bytes: int = 64 << 20, progress: Progress = None
    ) -> Iterator[memoryview]:
        """Decode an object piece by piece, without its array and its memory.

        These are the bytes of the file, without what was written to the array since.

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
        obj = manifest.open_object(self._handle, info)
        buffer = memoryview(bytearray(min(block_bytes, info.nbytes)))
        with meter(progress, info.nbytes, f"read {name}") as m:
            for offset in range(0, info.nbytes, len(buffer)):
                block = buffer[: info.nbytes - offset]
                obj.read(offset, block).wait(m.part(len(block)))
                yield block

    def verify(self, *, progress: Progress = None) -> list[Exception]:
        """Check every checksum of every object and decode every chunk.

        Parameters
        ----------
        progress : bool or callable, optional
            True for a bar, or a function of (bytes done, bytes in all).

        Returns
        -------
        list of LazyMemError
            What is damaged, at most 256 for each object; empty if all is well.

        Raises
        ------
        ClosedError
            If the store is closed.

        Notes
        -----
        Uses all cores, and none of the arrays' memory.
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
            # Errors name the object as long as its handle lives.
            obj = manifest.open_object(self._handle, info)
        except LazyMemError as exc:
            return [exc]
        job = obj.verify()
        try:
            job.wait_quietly(tick)
            return job.errors()
        finally:
            job.close()

    # ---- changing it -----------------------------------------------------------------

    def create(
        self,
        name: str,
        shape: int | tuple[int, ...],
        dtype: npt.DTypeLike,
        *,
        order: Literal["C", "F"] = "C",
        attrs: Mapping[str, Any] | None = None,
        codec: str = "zstd",
        level: int | None = None,
        chunk_bytes: int | None = None,
        shuffle: bool | int | None = None,
    ) -> LazyArray:
        """Add an array of zeros, to be written to.

        Parameters
        ----------
        name : str
            Its key in the store, which must be free.
        shape : int or tuple of int
            Its shape.
        dtype : dtype_like
            Its type; no Python objects.
        order : {"C", "F"}, optional
            Layout.
        attrs : mapping, optional
            JSON attributes.
        codec, level, chunk_bytes, shuffle : optional
            As for :func:`lazymem.save`.  Nothing is known of the data yet: default is
            zstd, in chunks of 128 KiB, and the byte shuffle for numbers.

        Returns
        -------
        LazyArray
            The array.  It takes memory where it is written to.

        Raises
        ------
        ValueError
            If there is such an object, or the store is not open for writing.
        ClosedError, LockError
            If the store is closed; or another process is its writer.
        UnsupportedKernelError
            If writes can't be tracked here.

        Notes
        -----
        Costs nothing, whatever the shape.  The object is durable with the next
        snapshot or flush.
        """
        how = Encoding(codec, level, chunk_bytes, shuffle)
        workspace = self._writing(f"create({name!r})")
        workspace.create(name, shape, dtype, order, attrs, how)
        try:
            return self[name]
        except BaseException:
            with suppress(ObjectNotFoundError):
                del self[name]
            raise

    def put(
        self,
        name: str,
        value: npt.ArrayLike | os.PathLike[str],
        *,
        attrs: Mapping[str, Any] | None = None,
        codec: str | None = None,
        level: int | None = None,
        chunk_bytes: int | None = None,
        shuffle: bool | int | None = None,
        progress: Progress = None,
    ) -> None:
        """Store a whole array, as ``store[name] = value`` does, with options.

        Parameters
        ----------
        name : str
            Its key in the store.  An object of that name is replaced: arrays of it that
            are held raise ClosedError when touched.
        value : array_like or path
            An array, a memory map, or the path of a file that holds one, of a format
            that :func:`lazymem.save` reads.
        attrs : mapping, optional
            JSON attributes; default: those of the array in the file.  Those of an
            object that is replaced are gone.
        codec, level, chunk_bytes, shuffle : optional
            As for :func:`lazymem.save`.  Default for codec and level: those of the
            object that is replaced, if there is one.
        progress : bool or callable, optional
            True for a bar, or a function of (bytes done, bytes in all).

        Raises
        ------
        TypeError
            If the dtype holds Python objects.
        ValueError
            If the store is not open for writing.
        OSError
            If the file can't be written; nothing has changed then.
        FormatError, FillError
            If the value is an array of a store and can't be read.
        ClosedError, LockError
            If the store is closed; or another process is its writer.

        Notes
        -----
        Uses all cores, and memory for a few blocks, however large the array: it goes
        straight into the file.  It is durable with the next snapshot or flush.

        Examples
        --------
        >>> import numpy as np, lazymem as lm
        >>> with lm.Store() as store:
        ...     store["a"] = np.arange(5)
        ...     store.put("b", store["a"][::-1], codec="lz4", attrs={"unit": "K"})
        ...     print(store["b"], store["b"].attrs)
        [4 3 2 1 0] {'unit': 'K'}
        """
        encoding = {
            "codec": codec,
            "level": level,
            "chunk_bytes": chunk_bytes,
            "shuffle": shuffle,
        }
        workspace = self._writing(f"put({name!r})")
        workspace.put(name, value, attrs, progress, **encoding)

    @property
    def unsaved(self) -> bool:
        """Whether closing the store now would lose something.

        Notes
        -----
        Touches no page.  Costs a comparison for each object.
        """
        return self._workspace is not None and bool(self._workspace.unsaved())

    @overload
    def snapshot(
        self,
        name: str | None = ...,
        message: str = ...,
        *,
        wait: Literal[True] = ...,
        progress: Progress = ...,
    ) -> SnapshotInfo: ...

    @overload
    def snapshot(
        self,
        name: str | None = ...,
        message: str = ...,
        *,
        wait: Literal[False],
        progress: Progress = ...,
    ) -> Future[SnapshotInfo]: ...

    def snapshot(
        self,
        name: str | None = None,
        message: str = "",
        *,
        wait: bool = True,
        progress: Progress = None,
    ) -> SnapshotInfo | Future[SnapshotInfo]:
        """Make all changes durable, as a state that can be gone back to.

        Parameters
        ----------
        name : str, optional
            A name no other snapshot has.
        message : str, optional
            What is to be said of it in the :meth:`log`.
        wait : bool, optional
            False: return as soon as the state is fixed.  It is written while the
            program goes on, which may write to the arrays at once.
        progress : bool or callable, optional
            True for a bar, or a function of (bytes done, bytes in all).

        Returns
        -------
        SnapshotInfo
            Or, with ``wait=False``, a `concurrent.futures.Future` of it, which can't be
            cancelled.  :meth:`close` waits for it.

        Raises
        ------
        ValueError
            If the name is taken, or the store is not open for writing.
        OSError
            If the file can't be written; the file's last state stays, and so do all
            changes, for another attempt.
        ClosedError, LockError
            If the store is closed; or another process is its writer.

        Notes
        -----
        Costs what was written: chunks that nobody touched are not looked at, and of
        the others those that differ from the file are appended.  Threads that write
        are held for a moment, in which nothing is copied.

        Examples
        --------
        >>> import numpy as np, lazymem as lm
        >>> _ = lm.save("work.lzm", {"x": np.zeros(1_000_000)})
        >>> with lm.open("work.lzm", "r+") as store:
        ...     store["x"][123_456] = 1
        ...     info = store.snapshot("one", "the first one")
        ...     print(info.chunks, store.unsaved)
        1 False
        """
        workspace = self._writing("snapshot()")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"a snapshot's name must be a str, not {name!r}")
        if name == "":
            raise ValueError("a snapshot's name must not be empty")
        if not isinstance(message, str):
            raise TypeError(f"message must be a str, not {message!r}")
        for text in (name or "", message):
            text.encode("utf-8")  # lone surrogates have no place in a file
        if wait:
            return workspace.snapshot(name, message, progress)
        return workspace.snapshot_in_background(name, message, progress)

    def flush(self, *, progress: Progress = None) -> FlushInfo:
        """Make all changes durable, without a place in the history.

        Parameters
        ----------
        progress : bool or callable, optional
            True for a bar, or a function of (bytes done, bytes in all).

        Returns
        -------
        FlushInfo

        Raises
        ------
        ValueError
            If the store is not open for writing.
        OSError
            If the file can't be written; nothing is lost.
        ClosedError, LockError
            If the store is closed; or another process is its writer.

        Notes
        -----
        Costs what was written, and nothing where nothing was.
        """
        return self._writing("flush()").flush(progress)

    def prune(self) -> int:
        """Give back the space of what no snapshot needs any more.

        Returns
        -------
        int
            Bytes that the file takes less on the disk.  Its length stays.

        Raises
        ------
        ValueError
            If the store is not open for writing.
        FormatError, FillError
            If an index can't be read; nothing has changed then.
        OSError
            If the file system has no holes (``fallocate``), or no locks.
        ClosedError, LockError
            If the store is closed; or another process is its writer.

        Notes
        -----
        What a reader of the file has open stays, whether it is still listed or not.
        Costs a look at the indexes of all snapshots, and reads no data.

        Examples
        --------
        >>> import numpy as np, lazymem as lm
        >>> with lm.Store() as store:
        ...     store["x"] = np.random.default_rng(1).random(1_000_000)
        ...     _ = store.snapshot("first")
        ...     store["x"] = np.zeros(10)
        ...     _ = store.snapshot("second")
        ...     store.delete_snapshot("first")
        ...     print(store.prune() > 4_000_000)
        True
        """
        return self._writing("prune()").prune()

    def compact(
        self,
        *,
        codec: str | None = None,
        level: int | None = None,
        progress: Progress = None,
    ) -> None:
        """Copy the store to a new file without what nobody needs, and go on with that.

        Parameters
        ----------
        codec, level : optional
            Encode all chunks anew, as for :func:`lazymem.save`; without `codec` each
            object keeps its own.  Default: chunks are copied as they are.
        progress : bool or callable, optional
            True for a bar, or a function of (bytes done, bytes in all).

        Raises
        ------
        UnsavedChangesError
            If there are changes that no snapshot and no flush holds.
        ValueError
            If the store is not open for writing, or has no file.
        FormatError, FillError, OSError
            If something can't be read or written; the file stays as it was.
        ClosedError, LockError
            If the store is closed; or another process is its writer.

        Notes
        -----
        The new file appears under the store's name when it is complete and on the disk.
        All snapshots are kept, with their names, numbers and times.  Arrays stay as
        they are; who reads the old file goes on reading it.
        """
        workspace = self._writing("compact()")
        if self._path == _MEMORY:
            raise ValueError("a store in memory has no file; prune() gives memory back")
        if codec is not None:
            Encoding(codec, level)  # what can't be is not begun
        is_recoded = codec is not None or level is not None
        recode = (codec, level) if is_recoded else None
        try:
            workspace.compact(recode, progress)
        finally:
            self._handle = workspace.handle

    def restore(self, snapshot: SnapshotRef, *, discard: bool = False) -> RestoreInfo:
        """Go back to a snapshot, in place: arrays that are held show its state.

        Parameters
        ----------
        snapshot : str, int or SnapshotInfo
            Its name, its number, or what is known of it.
        discard : bool, optional
            Give up what no snapshot and no flush holds.

        Returns
        -------
        RestoreInfo

        Raises
        ------
        SnapshotNotFoundError
            If there is no such snapshot.
        UnsavedChangesError
            If something would be lost, unless `discard` is true.
        ValueError
            If the store is not open for writing.
        FormatError, FillError
            If the snapshot can't be read.  Of one that can, arrays whose index can't
            are closed, and the store has been restored all the same.
        ClosedError, LockError
            If the store is closed; or another process is its writer.

        Notes
        -----
        Costs what differs: chunks in memory that are the same in both states stay.
        Arrays of objects that do not exist in the snapshot, or have another form there,
        raise ClosedError when touched.  The file does not change before the next
        snapshot or flush, whose parent is this one.
        """
        return self._writing("restore()").restore(snapshot, discard=discard)

    def delete_snapshot(self, snapshot: SnapshotRef) -> None:
        """Forget a snapshot; the state of the arrays is not touched.

        Parameters
        ----------
        snapshot : str, int or SnapshotInfo
            Its name, its number, or what is known of it.

        Raises
        ------
        SnapshotNotFoundError
            If there is no such snapshot.
        ValueError
            If the store is not open for writing.
        OSError
            If the file can't be written.
        ClosedError, LockError
            If the store is closed; or another process is its writer.

        Notes
        -----
        Writes a commit, in which changes not yet saved have no part.
        """
        self._writing("delete_snapshot()").delete_snapshot(snapshot)

    # ---- history ---------------------------------------------------------------------

    def log(self) -> list[SnapshotInfo]:
        """Return the snapshots that are kept, oldest first.

        Returns
        -------
        list of SnapshotInfo

        Raises
        ------
        FormatError
            If the file's history makes no sense.
        """
        return self._history().log()

    def diff(self, a: SnapshotRef, b: SnapshotRef | None = None) -> diff.Diff:
        """Compare two states of the store.

        Parameters
        ----------
        a : str, int or SnapshotInfo
            A snapshot.
        b : str, int or SnapshotInfo, optional
            Another one.  Default: the last commit, which knows nothing of changes that
            are not saved.

        Returns
        -------
        Diff
            Which objects were added, removed and changed from `a` to `b`, and where.

        Raises
        ------
        SnapshotNotFoundError
            If there is no such snapshot.
        FormatError, FillError
            If a chunk that may differ can't be read.

        Notes
        -----
        Reads what is stored in two places, and compares its bytes: what is stored once
        for both states is not read.  Takes memory for some megabytes of data.

        Examples
        --------
        >>> import lazymem as lm
        >>> with lm.open("night.lzm", "w") as store:
        ...     x = store.create("x", (1000, 100), "f8")
        ...     _ = store.snapshot("monday")
        ...     x[10:12] = 1
        ...     x[500] = 2
        ...     _ = store.snapshot("tuesday")
        ...     store.diff("monday", "tuesday").changed["x"].ranges
        ((10, 12), (500, 501))
        """
        self._check_open("diff()")
        snapshots = [self._history().find(a)]
        if b is not None:
            snapshots.append(self._history().find(b))
        offsets = [found.offset for found in snapshots]
        if b is None:
            last = self._workspace.commit if self._workspace else self._last_commit
            offsets.append(int(last.offset))
        return diff.compare(*(self._handle.at(offset) for offset in offsets))

    # ---- what notebooks show ---------------------------------------------------------

    def _repr_html_(self) -> str:
        from lazymem import show

        return show.store(self)

    def plot_residency(self, ax: Axes | None = None) -> Axes:
        """Draw which chunks are in memory, a row for each array.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw.  Default: a new figure.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ImportError
            If matplotlib is not installed (``pip install 'lazymem[plot]'``).

        Notes
        -----
        Touches no page.  Shows at most 32 arrays, those whose memory is held first, in
        256 cells each, shaded by the share of their chunks that is in memory.
        """
        from lazymem import plot

        return plot.plot_residency(self, ax)

    def live(self, interval: float = 0.5) -> LiveView:
        """Return a widget that shows, while cells run, which chunks are in memory.

        Parameters
        ----------
        interval : float, optional
            Seconds from one look to the next; more where a look takes long.

        Returns
        -------
        LiveView
            For a notebook, to be the last line of a cell.  Its ``close()`` ends it, and
            so does that of the store, which it does not keep open.

        Raises
        ------
        ImportError
            If anywidget is not installed (``pip install 'lazymem[live]'``).
        ValueError
            If the interval is not a positive number.
        ClosedError
            If the store is closed.

        Notes
        -----
        Touches no page.  A thread looks, with a twentieth of one core at most.
        """
        self._check_open("live()")
        from lazymem import live

        return live.LiveView(self, interval)

    def _history(self) -> History:
        if self._workspace is not None:
            return self._workspace.history
        return history.read(self._path, self._last_content, self._last_commit)

    # ---- life ------------------------------------------------------------------------

    def close(self, *, discard: bool = False) -> None:
        """Close the store and free the memory of its arrays at once.

        What is shared with other processes goes with the last array.

        Arrays and views that are still held stay valid objects; touching their memory
        raises ClosedError.  Closing twice is allowed.

        Parameters
        ----------
        discard : bool, optional
            Say nothing of changes that no snapshot and no flush holds.  They are lost
            in any case; default: a LazyMemWarning says what they are.
        """
        self._close(discard, stacklevel=3)

    def _close(self, discard: bool, stacklevel: int) -> None:
        lost = [] if self._closed or not self._workspace else self._workspace.close()
        with self._arrays.lock:
            self._closed = True
            self._arrays.release_all()
        self._handle.leave()
        if self._workspace is not None:
            self._workspace.unlock()
        if lost and not discard and self._path != _MEMORY:
            _warn(self._path, lost, stacklevel + 1)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close(discard=False, stacklevel=3)

    def __repr__(self) -> str:
        names = ", ".join(map(repr, list(self)[:_LISTED_IN_REPR]))
        more = len(self) - _LISTED_IN_REPR
        tail = f", and {more} more" if more > 0 else ""
        shared = ", shared" if self._arrays.is_shared else ""
        state = "closed" if self._closed else f"mode {self.mode!r}{shared}"
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

    def _origin(self, *, is_shared: bool) -> Origin:
        return Origin.of(self._path, self._handle.commit, is_shared=is_shared)

    def _origin_of(self, name: str) -> Callable[[], Origin | None] | None:
        """Return what says which state of the file an array equals."""
        if self.mode == "r":
            origin = self._origin(is_shared=self._arrays.is_shared)
            return lambda: origin
        if self._workspace is None:
            return None  # nobody sees what is written
        found = weakref.ref(self._workspace)

        def ask() -> Origin | None:
            workspace = found()
            return workspace.origin_of(name) if workspace else None

        return ask

    def _attrs_of(self, info: ObjectInfo) -> Attrs:
        if self._workspace is not None:
            return self._workspace.attrs_of(info.name)
        attrs, of = info.attrs, f"object {info.name!r}"
        return Attrs(of, lambda: attrs, self._refuse_change)

    def _refuse_change(self, _: Change) -> None:
        self._writing("attrs")

    def _writing(self, what: str) -> Workspace:
        if self._workspace is None:
            self._check_open(what)
            raise ValueError(
                f"{self._path}: {what}: the store is open in mode {self.mode!r}; open "
                "it with mode 'r+' to change it"
            )
        self._workspace.check(what)
        return self._workspace


def _warn(path: str, lost: list[str], stacklevel: int) -> None:
    warnings.warn(
        f"{path}: closed without saving {listing(lost)}; snapshot() or flush() saves, "
        "close(discard=True) says nothing",
        LazyMemWarning,
        stacklevel=stacklevel,
    )


def _warn_of_loss(workspace: Workspace) -> None:
    """Speak up for a store that nobody has closed and nobody can reach."""
    lost = workspace.close()
    if lost:
        _warn(workspace.path, lost, stacklevel=3)


# ---- the ways to open one ------------------------------------------------------------


def _open_for_writing(path: str, file: str | None = None) -> _engine.StoreHandle:
    try:
        return _engine.StoreHandle(path, file=file, is_writable=True)
    except LockError:
        raise files.locked(path) from None


def _write_empty(path: str, file: str) -> None:
    writer = _engine.WriterHandle(path, file)
    try:
        writer.commit(manifest.encode({}, {}, snapshot=None))
    finally:
        writer.close()


def _open_new(path: str, *, may_replace: bool) -> _engine.StoreHandle:
    """Make an empty store file, and be its writer before others can see it."""
    path = files.resolve(path)
    if may_replace:
        files.check_unlocked(path)
    elif os.path.lexists(path):
        raise files.file_exists(path)
    temporary = files.temporary_name(path)
    try:
        _write_empty(path, temporary)
        handle = _open_for_writing(path, temporary)
        put = files.replace if may_replace else files.place
        put(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return handle


def _open_in_memory(spill: Spill) -> _engine.StoreHandle:
    import tempfile  # not for those who open files

    with tempfile.TemporaryDirectory(prefix="lazymem-", dir=spill) as folder:
        file = os.path.join(folder, "store")
        _write_empty(_MEMORY, file)
        if spill is not None:
            return _open_for_writing(_MEMORY, file)
        fd = os.memfd_create("lazymem")
        try:
            with builtins.open(file, "rb") as empty:
                os.write(fd, empty.read())
            return _open_for_writing(_MEMORY, f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)


def _check_pages(pages: Any) -> None:
    if pages not in (*_engine.PAGE_BYTES, "auto"):
        raise ValueError(f"pages must be '2M', '1G', 'auto' or None, not {pages!r}")


def open(
    path: str | os.PathLike[str],
    mode: Literal["r", "c", "r+", "w", "x"] = "r",
    *,
    at: SnapshotRef | None = None,
    on_error: OnError = "raise",
    pages: Pages = None,
    warm: str | None = None,
    limit: Limit = None,
    spill: Spill = None,
    shared: bool = False,
) -> Store:
    """Open a store file.

    Parameters
    ----------
    path : str or path-like
        The file.
    mode : {"r", "c", "r+", "w", "x"}, optional
        ``"r"``: arrays are read-only.  ``"c"``: copy on write, as in `numpy.memmap`:
        arrays are writable in memory, the file never changes.  ``"r+"``: the store can
        be changed, and the file holds the changes from the next :meth:`Store.snapshot`
        or :meth:`Store.flush` on.  ``"w"``: likewise, with a new, empty store, which
        takes the place of what is there at once.  ``"x"``: likewise, where there is
        nothing yet.
    at : str, int or SnapshotInfo, optional
        A snapshot, by its name, its number or what is known of it, instead of the last
        state; for the modes ``"r"`` and ``"c"``.
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
    warm : str, optional
        A working set that :meth:`Store.record` has written: its chunks are filled in
        the background, in the file's order, as soon as an array is first asked for,
        as far as they take no more than half of the memory available.  Who touches a
        chunk does not wait for the others.  No such record: nothing happens.  One of
        another store, a damaged one, or the part of an array that has another form by
        now, is ignored, with a LazyMemWarning.  For the modes ``"r"``, ``"c"`` and
        ``"r+"``.
    limit : int or str, optional
        How much memory the store's arrays may have, all in all, in whole chunks: bytes,
        a text such as ``"4 GiB"``, or ``"auto"``: half of what is available to this
        process, a memory cgroup's limit considered.  Beyond it chunks that were not
        used lately are dropped, and filled again when they are touched; those that were
        written since the last snapshot go to a file first.  What is pinned
        (:meth:`LazyArray.pin`) stays: where nothing can be dropped a touch raises
        BudgetError, and OSError if the file for what was written is full.  The
        engine's own buffers, up to 8 MiB and a chunk for each core, come on top.  It
        can be changed (:attr:`Store.limit`).  Default: the process's limit, if
        :func:`set_limit` has set one.
    spill : str or path-like, optional
        The folder for what was written and has no room within `limit`: compressed and
        checksummed, in a file without a name, which only this process can read and
        which goes with it.  Default: ``$TMPDIR``, or ``/var/tmp``.
    shared : bool, optional
        Whether the arrays' memory is shared with all of this user's processes that open
        the same state of the store so, or receive arrays of it: each chunk is decoded
        by the one that touches it first, and in memory once.  For the mode ``"r"``, and
        without a limit, since the memory goes only when the last of them has ended, or
        has closed the store and dropped its arrays; :meth:`LazyArray.evict` lets go of
        it here.  Arrays of less than 1 MiB are not shared; where the system can't do it
        (Linux 5.14 can, unless it does not overcommit memory), none is, and a
        LazyMemWarning says so.

    Returns
    -------
    Store

    Raises
    ------
    FileNotFoundError, PermissionError, OSError
        If the file can't be opened.
    FileExistsError
        If there is a file, and the mode is ``"x"``.
    FormatError
        If it is not a store, is damaged, or is of a later version.
    SnapshotNotFoundError
        If there is no such snapshot.
    LockError
        If it is to be written and is open for writing already, here or elsewhere.
    UnsupportedKernelError
        If an array is asked for and the kernel can't do what `mode`, `on_error` or
        `pages` say (``"sigbus"`` needs Linux 6.6).
    HugePagesError
        If an array is asked for and the pool has too few pages free for all of it.

    Notes
    -----
    Costs three reads, the last one of the list of arrays, some 250 bytes for each and
    parsed as far as it is needed; no array is touched.

    Examples
    --------
    >>> import numpy as np, lazymem as lm
    >>> _ = lm.save("example.lzm", {"x": np.arange(1_000_000)})
    >>> with lm.open("example.lzm") as store:
    ...     print(store["x"][123_456])
    123456
    """
    if mode not in ("r", "c", "r+", "w", "x"):
        raise ValueError(f"mode must be 'r', 'c', 'r+', 'w' or 'x', not {mode!r}")
    if on_error not in tuple(_engine.ON_ERROR):
        raise ValueError(f"on_error must be 'raise' or 'sigbus', not {on_error!r}")
    _check_pages(pages)
    if at is not None and mode not in ("r", "c"):
        raise ValueError(
            f"at={at!r} is for the modes 'r' and 'c'; to go on from a snapshot, open "
            "the store with 'r+' and restore() it"
        )
    if warm is not None:
        if mode not in ("r", "c", "r+"):
            raise ValueError(f"warm={warm!r} is not for the new store of mode {mode!r}")
        record_path(path, warm)
    if shared and (mode != "r" or limit is not None or pages is not None):
        raise ValueError(
            f"shared=True is not for mode={mode!r}, limit={limit!r}, pages={pages!r}: "
            "processes that share memory only read it, in ordinary pages, and none may "
            "drop what another one needs"
        )
    file = os.path.abspath(path)
    _engine.start_pager()  # its threads get ready while the file is looked at
    store = Store.__new__(Store)
    bound = new_budget(limit, spill)  # if it makes sense, before a file is replaced
    if mode == "r" or mode == "c":
        handle = _engine.StoreHandle(file)
    elif mode == "r+":
        handle = _open_for_writing(file)
    else:
        handle = _open_new(file, may_replace=mode == "w")
    changes: Mode = mode if mode == "r" or mode == "c" else "r+"
    store._open(handle, changes, at, on_error, pages, warm, bound, spill, shared=shared)
    return store


def _join(origin: Origin, objects: Mapping[str, Any]) -> SharedMemory:
    from lazymem.shared import SharedMemory  # not for those that share nothing

    state = (origin.store_id, origin.offset, origin.time_ns)
    return SharedMemory(origin.path, state, objects)


def _warm() -> None:
    """Run what a first opening runs: a function's first call is its slowest by far."""
    info = manifest.ObjectInfo(
        "x", (1,), np.dtype("u1"), "C", 4096, "none", 0, 0, None, 0, {}
    )
    objects = manifest.decode(manifest.encode({"x": info.to_json()}, {}), "")["objects"]
    array = bind(manifest.object_info("", "x", objects["x"]), bytearray(1), None)
    array[0]


_warm()
