# SPDX-License-Identifier: BSD-3-Clause
"""The working state of a writable store, and how it becomes a state of the file.

`_content` is the manifest as it would be committed now.  It is compared with two
states: `_committed` is what the file has, `_saved` is that or the snapshot last
restored.  Chunks that the engine calls dirty differ from both.

Operations that append to the file, or change what there is, take turns (`_turn`).  The
arrays' lock, held for moments only, guards the content.  Entries of the content and
attributes are replaced and never changed in place, so that copies of it are shallow.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from lazymem import _engine, files, history, manifest
from lazymem.array import LazyArray, closed_error
from lazymem.attrs import Attrs, Change
from lazymem.encoding import Encoding, default_layout, unseen_layout
from lazymem.errors import (
    ClosedError,
    LazyMemError,
    LockError,
    UnsavedChangesError,
    UnsupportedKernelError,
)
from lazymem.history import FlushInfo, RestoreInfo, SnapshotInfo
from lazymem.progress import Meter, Progress, meter
from lazymem.reference import Origin
from lazymem.writer import ObjectWriter, describe, empty_source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from lazymem.arrays import OpenArrays
    from lazymem.history import History, SnapshotRef
    from lazymem.manifest import ObjectInfo
    from lazymem.reclaim import Moved, Recode
    from lazymem.sources import Source

_LISTED = 10
_THREAD = "lazymem-snapshot"


class _State(NamedTuple):
    """What a store holds, but for what arrays have been written since."""

    objects: dict[str, Any]
    attrs: dict[str, Any]
    parent: int | None
    """Number of the snapshot from which it goes on."""


class _Frozen(NamedTuple):
    """A state on its way to the file."""

    state: _State
    chunks: _engine.SnapshotHandle | None
    names: list[str]
    """Whose chunks these are."""
    chunk_bytes: int
    """Bytes of these chunks."""
    start: float


class _Turn:
    """A lock that its holder can't wait for, and may hand to another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None

    def take(self, path: str) -> None:
        if self._holder == threading.get_ident():
            raise RuntimeError(
                f"{path}: called in the midst of another operation on the store, by a "
                "signal handler or progress function; neither may change it"
            )
        self._lock.acquire()
        self._holder = threading.get_ident()

    def hand_to(self, thread: int | None) -> None:
        self._holder = thread

    def give(self) -> None:
        self._holder = None
        self._lock.release()


class Workspace:
    """What may be done to a store that is open for writing.

    Parameters
    ----------
    handle : StoreHandle
        The file, opened for writing.
    content : dict
        Its manifest, which is changed from now on.
    arrays : OpenArrays
        The arrays that the store has given out.
    """

    def __init__(
        self, handle: _engine.StoreHandle, content: dict[str, Any], arrays: OpenArrays
    ) -> None:
        self.path = handle.path
        self.commit = handle.commit
        self.history: History = history.read(self.path, content, handle.commit)
        self.history.log()  # what can't be carried on is not begun
        self.handle, self._content, self._arrays = handle, content, arrays
        self._parent = history.parent_of(self.path, content, handle.commit)
        self._committed = self._saved = self._state()
        self._chunks_put = self._bytes_put = 0
        self._writer = _engine.WriterHandle(self.path, handle)
        self._turn = _Turn()
        self._in_background = False
        self._closed = False
        self._pid = os.getpid()

    # ---- references ------------------------------------------------------------------

    def origin_of(self, name: str) -> Origin | None:
        """Return the commit that an array's memory equals; None: no commit."""
        is_idle = not (self._closed or self.is_inherited or self._in_background)
        region = self._arrays.tracked().get(name) if is_idle else None
        now = self._content["objects"].get(name)
        last = self._committed.objects.get(name)
        if region is None or now is None or last is None or region.dirty():
            return None
        if {**now, "attrs": None} != {**last, "attrs": None}:
            return None
        return Origin.of(self.path, self.commit)

    # ---- turns -----------------------------------------------------------------------

    @property
    def is_inherited(self) -> bool:
        """Whether another process opened the store, of which this one is a fork."""
        return self._pid != os.getpid()

    def check(self, what: str) -> None:
        """Raise unless this process may write.

        Raises
        ------
        ClosedError, LockError
            If the store is closed; or its writer is the process that forked this one.
        """
        if self.is_inherited:
            error = LockError(
                f"{self.path}: {what}: process {self._pid} writes to the store, of "
                "which this one is a fork; what is written here stays here"
            )
            error.path, error.pid = self.path, self._pid
            raise error
        if self._closed:
            raise closed_error(self.path, what)

    @contextmanager
    def _my_turn(self, what: str) -> Iterator[None]:
        self._take_turn(what)
        try:
            yield
        finally:
            self._turn.give()

    def _take_turn(self, what: str) -> None:
        self.check(what)
        self._turn.take(self.path)
        if self._closed:
            self._turn.give()
            raise closed_error(self.path, what)

    # ---- objects ---------------------------------------------------------------------

    def create(
        self,
        name: str,
        shape: int | tuple[int, ...],
        dtype: Any,
        order: str,
        attrs: Any,
        how: Encoding,
    ) -> None:
        """Add an object of zeros."""
        source = empty_source(name, shape, dtype, order)
        info = describe(name, source, unseen_layout(how, source.dtype), attrs)
        if info.nbytes and not _engine.has_pager():
            raise UnsupportedKernelError(
                f"{self.path}: create({name!r}): without userfaultfd nothing tells "
                "what is written to an array; assign whole arrays to the store, or "
                "see 'lazymem doctor'"
            )
        with self._my_turn(f"create({name!r})"), self._arrays.lock:
            if name in self._content["objects"]:
                raise ValueError(
                    f"{self.path}: object {name!r} exists; delete it first, or assign "
                    "an array to it"
                )
            self._content["objects"][name] = info.to_json()

    def put(
        self,
        name: str,
        value: Any,
        attrs: Any = None,
        progress: Progress = None,
        **encoding: Any,
    ) -> None:
        """Store a whole array under a name, whatever was there."""
        from lazymem import inputs  # not for those who only read

        what = f"store[{name!r}] = ..."
        self.check(what)
        with ExitStack() as stack:
            source = inputs.from_value(value, name, stack)
            attrs = source.attrs if attrs is None else attrs
            stack.enter_context(self._my_turn(what))
            how = self._encoding_for(name, encoding)
            info = describe(name, source, default_layout(how, source.dtype), attrs)
            m = stack.enter_context(meter(progress, source.nbytes, f"put {name}"))
            if isinstance(value, LazyArray):  # what can't be read is not to be stored
                info = value._checked(lambda: self._write(source, info, how, m))
            else:
                info = self._write(source, info, how, m)
            with self._arrays.lock:
                self._arrays.release(name, "another array was assigned to its name")
                # In its old place, as in a dict.
                self._content["objects"][name] = info.to_json()
            self._chunks_put += info.chunks
            self._bytes_put += info.stored_bytes

    def _encoding_for(self, name: str, asked: dict[str, Any]) -> Encoding:
        """Return how to store what takes the place of an object, perhaps."""
        entry = self._content["objects"].get(name)
        if entry is not None and asked.get("codec") is None:
            old = manifest.object_info(self.path, name, entry)
            asked = {**asked, "codec": old.codec}
            if asked.get("level") is None:
                asked["level"] = old.level
        return Encoding(**{key: x for key, x in asked.items() if x is not None})

    def _write(
        self, source: Source, info: ObjectInfo, how: Encoding, m: Meter
    ) -> ObjectInfo:
        obj = ObjectWriter(self._writer, info, how, source)
        try:
            obj._write_all(source, m)
            return obj._finish()
        except BaseException:
            obj._discard()
            raise

    def delete(self, name: str, not_found: Any) -> None:
        """Remove an object; `not_found` makes the error where there is none."""
        with self._my_turn(f"del store[{name!r}]"), self._arrays.lock:
            if name not in self._content["objects"]:
                raise not_found(name)
            self._arrays.release(name, "the object was deleted")
            del self._content["objects"][name]

    # ---- attributes ------------------------------------------------------------------

    def attrs(self) -> Attrs:
        """Return the store's attributes."""

        def change(update: Change) -> None:
            self.check("attrs")
            with self._arrays.lock:
                changed = dict(self._content["attrs"])
                update(changed)
                self._content["attrs"] = changed

        return Attrs("the store", lambda: self._content["attrs"], change)

    def attrs_of(self, name: str) -> Attrs:
        """Return the attributes of an object's array, as long as it is that."""
        # The array has them, and must not keep alive what keeps the array.
        reference = weakref.ref(self)

        def workspace() -> Workspace:
            found = reference()
            array = found._arrays.get(name) if found else None
            if found is None or array is None or array.attrs is not attrs:
                raise ClosedError(
                    f"object {name!r}: its array has left the store, and has no "
                    "attributes any more"
                )
            return found

        def read() -> Any:
            return workspace()._content["objects"][name]["attrs"]

        def change(update: Change) -> None:
            found = workspace()
            found.check("attrs")
            with found._arrays.lock:
                changed = dict(read())
                update(changed)
                objects = found._content["objects"]
                objects[name] = {**objects[name], "attrs": changed}

        attrs = Attrs(f"object {name!r}", read, change)
        return attrs

    # ---- what is not saved -----------------------------------------------------------

    def unsaved(self) -> list[str]:
        """Return what would be lost by closing now, in words."""
        if self.is_inherited or self._closed:
            return []
        with self._arrays.lock:
            regions = self._arrays.tracked()
            now, saved = self._state(), self._saved
        dirty = ((name, region.dirty()) for name, region in regions.items())
        told = [
            f"{count} chunk{'s' if count > 1 else ''} of {name!r}"
            for name, count in dirty
            if count
        ]
        for name in dict.fromkeys([*now.objects, *saved.objects]):
            if name not in saved.objects:
                told.append(f"{name!r}, which is new")
            elif name not in now.objects:
                told.append(f"that {name!r} was deleted")
            elif now.objects[name] != saved.objects[name]:
                is_put = now.objects[name]["index"] != saved.objects[name]["index"]
                what = "the new" if is_put else "attributes of"
                told.append(f"{what} {name!r}")
        if now.attrs != saved.attrs:
            told.append("attributes of the store")
        if self._in_background and not told:
            told.append("a snapshot that is being written")
        return told

    def _check_saved(self, what: str, hint: str) -> None:
        told = self.unsaved()
        if told:
            error = UnsavedChangesError(
                f"{self.path}: {what} would lose {listing(told)}; take a snapshot "
                f"first, or {hint}"
            )
            error.path = self.path
            raise error

    def _state(self) -> _State:
        objects, attrs = self._content["objects"], self._content["attrs"]
        return _State(dict(objects), attrs, self._parent)

    # ---- commits ---------------------------------------------------------------------

    def snapshot(
        self, name: str | None, message: str, progress: Progress
    ) -> SnapshotInfo:
        """Make the working state durable, and keep it."""
        with self._my_turn("snapshot()"):
            return self._finish_snapshot(self._freeze(name), name, message, progress)

    def snapshot_in_background(
        self, name: str | None, message: str, progress: Progress
    ) -> Future[SnapshotInfo]:
        """Freeze the working state now; make it durable in another thread."""
        from concurrent.futures import Future  # not for those who wait

        future: Future[SnapshotInfo] = Future()
        future.set_running_or_notify_cancel()  # from here on nobody can cancel it

        def finish(frozen: _Frozen) -> None:
            self._turn.hand_to(threading.get_ident())
            info: SnapshotInfo | None = None
            error: BaseException | None = None
            try:
                info = self._finish_snapshot(frozen, name, message, progress)
            except BaseException as exc:
                error = exc
            self._in_background = False
            self._turn.give()
            if info is not None:
                future.set_result(info)
            else:
                future.set_exception(error)

        self._take_turn("snapshot()")
        frozen = None
        try:
            frozen = self._freeze(name)
            self._in_background = True
            self._turn.hand_to(None)
            thread = threading.Thread(target=finish, args=[frozen], name=_THREAD)
            thread.start()
        except BaseException:
            self._in_background = False
            if frozen is not None and frozen.chunks is not None:
                frozen.chunks.close(is_committed=False)
            self._turn.give()
            raise
        return future

    def flush(self, progress: Progress) -> FlushInfo:
        """Make the working state durable without keeping it in the history."""
        with self._my_turn("flush()"):
            start = time.perf_counter()
            if self._state() == self._committed and not self._is_dirty():
                return self._flush_info(0, 0, 0.0, start)
            frozen = self._freeze(None)
            about = {"snapshot": None, "parent": frozen.state.parent}
            chunks, stored_bytes = self._append(frozen, progress, lambda *_: about)
            pause = frozen.chunks.pause_seconds if frozen.chunks else 0.0
            return self._flush_info(chunks, stored_bytes, pause, frozen.start)

    def _flush_info(
        self, chunks: int, stored_bytes: int, pause: float, start: float
    ) -> FlushInfo:
        return FlushInfo(
            sequence=int(self.commit.sequence),
            time=history.time_of(int(self.commit.time_ns)),
            chunks=chunks,
            bytes_written=stored_bytes,
            pause_seconds=pause,
            seconds=time.perf_counter() - start,
        )

    def _is_dirty(self) -> bool:
        with self._arrays.lock:
            regions = self._arrays.tracked()
        return any(region.dirty() for region in regions.values())

    def _freeze(self, name: str | None) -> _Frozen:
        """Fix what belongs to the commit; from here on threads write to the next."""
        start = time.perf_counter()
        if name is not None and self.history.has_name(name):
            raise ValueError(f"{self.path}: a snapshot named {name!r} exists")
        with self._arrays.lock:
            state = self._state()
            # All that could be written to, or what is written meanwhile to one array
            # but not to another would make a state that never was.
            regions = self._arrays.tracked()
            parts = [
                (region, self._encoding(state, array))
                for array, region in regions.items()
            ]
            chunk_bytes = sum(r.dirty() * r.chunk_bytes for r in regions.values())
            chunks = _engine.SnapshotHandle(self._writer, parts) if parts else None
        return _Frozen(state, chunks, list(regions), chunk_bytes, start)

    def _encoding(self, state: _State, name: str) -> Any:
        info = manifest.object_info(self.path, name, state.objects[name])
        return _engine.encoding(
            info.nbytes,
            info.chunk_bytes,
            info.shuffle,
            info.codec,
            info.level,
            info.is_split,
        )

    def _finish_snapshot(
        self, frozen: _Frozen, name: str | None, message: str, progress: Progress
    ) -> SnapshotInfo:
        def describe_it(chunks: int, stored_bytes: int) -> dict[str, Any]:
            told = {"name": name, "message": message, "parent": frozen.state.parent}
            return {"snapshot": {**told, "chunks": chunks, "bytes": stored_bytes}}

        self._append(frozen, progress, describe_it)
        pause = frozen.chunks.pause_seconds if frozen.chunks else 0.0
        seconds = time.perf_counter() - frozen.start
        info = self.history.log()[-1]
        return replace(info, pause_seconds=pause, seconds=seconds)

    def _append(
        self, frozen: _Frozen, progress: Progress, describe_it: Any
    ) -> tuple[int, int]:
        """Append a frozen state and commit it; return its chunks and stored bytes."""
        chunks, stored_bytes = self._chunks_put, self._bytes_put
        written: dict[str, _engine.Written] = {}
        try:
            if frozen.chunks is not None:
                label = f"snapshot {os.path.basename(self.path)}"
                with meter(progress, frozen.chunk_bytes, label) as m:
                    parts = frozen.chunks.write(m.part(frozen.chunk_bytes))
                written = dict(zip(frozen.names, parts, strict=True))
            chunks += sum(part.chunks for part in written.values())
            stored_bytes += sum(part.stored_bytes for part in written.values())
            state = frozen.state._replace(objects=dict(frozen.state.objects))
            _note_written(state.objects, written)
            self._commit(state, self.history, describe_it(chunks, stored_bytes))
        except BaseException:
            if frozen.chunks is not None:
                frozen.chunks.close(is_committed=False)
            raise
        if frozen.chunks is not None:
            frozen.chunks.close(is_committed=True)
        with self._arrays.lock:
            _note_written(self._content["objects"], written)
            self._saved = self._committed
            self._parent = self._saved.parent
        self._chunks_put = self._bytes_put = 0
        return chunks, stored_bytes

    def _commit(self, state: _State, kept: History, about: dict[str, Any]) -> None:
        """Commit a state, all of whose bytes are in the file."""
        entries = kept.entries
        data = manifest.encode(state.objects, state.attrs, **about, history=entries)
        self.commit = self._writer.commit(data)
        content = {"objects": state.objects, "history": entries, **about}
        self.history = history.read(self.path, content, self.commit)
        parent = history.parent_of(self.path, content, self.commit)
        self._committed = state._replace(parent=parent)

    def delete_snapshot(self, ref: SnapshotRef) -> None:
        """Forget a snapshot; what the file holds otherwise stays."""
        with self._my_turn("delete_snapshot()"):
            gone = self.history.find(ref)
            kept = self.history.without(gone)

            def heir(parent: int | None) -> int | None:
                return gone.parent if parent == gone.sequence else parent

            committed = self._committed
            committed = committed._replace(parent=heir(committed.parent))
            about = {"snapshot": None, "parent": committed.parent}
            self._commit(committed, kept, about)
            with self._arrays.lock:
                self._parent = heir(self._parent)
                self._saved = self._saved._replace(parent=heir(self._saved.parent))

    # ---- space -----------------------------------------------------------------------

    def prune(self) -> int:
        """Give back what no snapshot needs; return how many bytes that was."""
        from lazymem import reclaim

        with self._my_turn("prune()"):
            offsets = [info.offset for info in self.history.log()]
            return reclaim.punch(
                self._writer,
                self.handle,
                [*offsets, int(self.commit.offset)],
                self._content["objects"],
            )

    def compact(self, recode: Recode | None, progress: Progress) -> None:
        """Copy all that is kept to a new file, which takes this one's place."""
        with self._my_turn("compact()"):
            self._check_saved("compact()", "flush()")
            temporary = files.temporary_name(self.path)
            handle = None
            try:
                changed = self._copy_to(temporary, recode, progress)
                handle = _engine.StoreHandle(
                    self.path, file=temporary, is_writable=True
                )
                files.take_place(temporary, self.path)
            except BaseException:
                if handle is None or os.path.lexists(temporary):
                    with suppress(FileNotFoundError):
                        os.unlink(temporary)
                else:  # it has the name by now: the old file is nobody's
                    self._move_to(handle, changed)
                raise
            self._move_to(handle, changed)

    def _copy_to(
        self, temporary: str, recode: Recode | None, progress: Progress
    ) -> Moved:
        from lazymem import reclaim

        target = _engine.WriterHandle(self.path, temporary)
        # Of each snapshot only what differs from the one before is read.
        with meter(progress, 0, f"compact {os.path.basename(self.path)}") as m:
            try:
                return reclaim.copy_states(
                    self.handle,
                    target,
                    self.history,
                    self.commit,
                    self._committed.parent,
                    self._content["objects"],
                    recode,
                    m,
                )
            finally:
                target.close()

    def _move_to(self, handle: _engine.StoreHandle, changed: Moved) -> None:
        """Go on with a copy of the file."""
        content = manifest.decode(handle.manifest(), self.path)

        def moved(objects: dict[str, Any]) -> dict[str, Any]:
            entries = {}
            for name, entry in objects.items():
                info = manifest.object_info(self.path, name, entry)
                entries[name] = {**entry, **changed.get((name, info.index), {})}
            return entries

        with self._arrays.lock:
            objects = moved(self._content["objects"])
            for name, array in self._arrays.kept().items():
                region = array._bound().region
                info = manifest.object_info(self.path, name, objects[name])
                try:
                    if region is not None:
                        region.object.rebase(handle, info.index)
                except OSError:
                    self._arrays.release(name, "compact() had no memory to go on")
            self._content["objects"] = objects
            self._writer.close()
            self.handle, self.commit = handle, handle.commit
            self._writer = _engine.WriterHandle(self.path, handle)
            self.history = history.read(self.path, content, handle.commit)
            self._committed = self._committed._replace(objects=content["objects"])
            self._saved = self._saved._replace(objects=moved(self._saved.objects))

    # ---- going back ------------------------------------------------------------------

    def restore(self, ref: SnapshotRef, *, discard: bool) -> RestoreInfo:
        """Show another state, in the arrays that are held where that is possible."""
        start = time.perf_counter()
        with self._my_turn("restore()"):
            target = self.history.find(ref)
            if not discard:
                self._check_saved("restore()", "pass discard=True")
            earlier = self.handle.at(target.offset)
            content = manifest.decode(earlier.manifest(), self.path)
            dropped, closed, errors = 0, [], []
            with self._arrays.lock:
                for name, array in self._arrays.kept().items():
                    try:
                        dropped += self._restore_array(array, content["objects"])
                    except (LazyMemError, OSError, MemoryError) as exc:
                        if not isinstance(exc, ClosedError):
                            errors.append(exc)
                        self._arrays.release(name, f"restore() gave it up: {exc}")
                        closed.append(name)
                self._content["objects"] = content["objects"]
                self._content["attrs"] = content["attrs"]
                self._parent = target.sequence
                self._saved = self._state()
        if errors:
            raise errors[0]
        return RestoreInfo(
            snapshot=target,
            chunks_dropped=dropped,
            arrays_closed=tuple(closed),
            seconds=time.perf_counter() - start,
        )

    def _restore_array(self, array: LazyArray, objects: dict[str, Any]) -> int:
        """Let an array show its object as in `objects`; return the chunks dropped.

        Raises
        ------
        ClosedError
            If that is another object, to whose form the memory does not fit.
        """
        old = array._bound().info
        if old.name not in objects:
            raise ClosedError("there is no such object in the snapshot")
        region = array._bound().region
        is_as_saved = self._content["objects"].get(old.name) == objects[old.name]
        if is_as_saved and not (region and region.dirty()):
            return 0
        new = manifest.object_info(self.path, old.name, objects[old.name])
        if _form(old) != _form(new):
            raise ClosedError("the object has another form in the snapshot")
        if region is not None:
            return region.restore(self.handle, new.index)
        if new.nbytes and new.index != old.index:
            raise ClosedError("without userfaultfd it does not change in place")
        return 0

    # ---- life ------------------------------------------------------------------------

    def close(self) -> list[str]:
        """End all writing, and return what is lost, in words.

        A snapshot that is being written is waited for.
        """
        if self.is_inherited:
            return []
        self._turn.take(self.path)
        try:
            lost = self.unsaved()
            self._closed = True
            return lost
        finally:
            self._turn.give()

    def unlock(self) -> None:
        """Let others write to the file."""
        if not self.is_inherited:
            self._writer.close()


def listing(told: list[str]) -> str:
    """Return some of what would be lost as one text."""
    more = len(told) - _LISTED
    return ", ".join(told[:_LISTED]) + (f", and {more} more" if more > 0 else "")


def _form(info: ObjectInfo) -> tuple[Any, ...]:
    """Return what two objects must share for one memory to serve both."""
    return info.shape, info.dtype, info.order, info.chunk_bytes, info.shuffle


def _note_written(objects: dict[str, Any], written: dict[str, _engine.Written]) -> None:
    """Enter the new roots of objects whose chunks were written."""
    for name, part in written.items():
        index = manifest.index_to_json(part.root)
        entry = objects[name]
        if index != entry["index"]:
            before = max(0, entry["stored_bytes"] - part.replaced_bytes)
            stored_bytes = before + part.stored_bytes
            objects[name] = {**entry, "index": index, "stored_bytes": stored_bytes}
