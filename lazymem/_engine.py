# SPDX-License-Identifier: BSD-3-Clause
"""The engine's handles, and its codes as exceptions.  The only user of the C module.

Every call into the engine drops the GIL.  Handles own their C counterparts: what a
thread can still reach is still open.
"""

from __future__ import annotations

import _thread
import errno as errno_names
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from typing import Any, NamedTuple

from lazymem._lazymem import ffi, lib
from lazymem.errors import (
    BudgetError,
    ChecksumError,
    ClosedError,
    FillError,
    FormatError,
    HugePagesError,
    LazyMemError,
    LockError,
    NotAStoreError,
    UnsupportedKernelError,
)

Tick = Callable[[int, int], None]
"""Called now and then with the steps done and the steps in all."""

CODECS = {"none": lib.LM_CODEC_NONE, "lz4": lib.LM_CODEC_LZ4, "zstd": lib.LM_CODEC_ZSTD}
PAGE_BYTES = {None: 0, "2M": 2 << 20, "1G": 1 << 30}
ON_ERROR = {"raise": lib.LM_ON_ERROR_RAISE, "sigbus": lib.LM_ON_ERROR_SIGBUS}
ADVICE = {
    "normal": lib.LM_ADVICE_NORMAL,
    "random": lib.LM_ADVICE_RANDOM,
    "sequential": lib.LM_ADVICE_SEQUENTIAL,
}
CHUNK_BYTES_MIN = int(lib.LM_CHUNK_BYTES_MIN)
CHUNK_BYTES_MAX = int(lib.LM_CHUNK_BYTES_MAX)
PAGE_PLAIN, PAGE_PATCH = int(lib.LM_PAGE_PLAIN), int(lib.LM_PAGE_PATCH)
_NONE = 2**64 - 1

# cffi makes a function, and lays a type out, when it is first used: here, and not when
# a store is opened.
for _name in dir(lib):
    getattr(lib, _name)
_ERROR = ffi.typeof("struct lm_error *")
_COMMIT = ffi.typeof("struct lm_commit *")
_OBJECT_SPEC = ffi.typeof("struct lm_object_spec *")
_STORE_OUT = ffi.typeof("lm_store **")
_OBJECT_OUT = ffi.typeof("lm_object **")
_REGION_OPTIONS = ffi.typeof("struct lm_region_options *")
_REGION_OUT = ffi.typeof("lm_region **")
_JOB_OUT = ffi.typeof("lm_job **")
_CHARS = ffi.typeof("char[]")
_UINTPTR = ffi.typeof("uintptr_t")
for _type in (_ERROR, _COMMIT, _OBJECT_SPEC, _REGION_OPTIONS):
    ffi.new(_type)
_TICK_MS = 50

# ---- errors --------------------------------------------------------------------------


_FORMAT_HINT = (
    "the file is damaged or was not written by lazymem; restore it from a copy"
)
_HINTS = {
    lib.LM_E_MAGIC: "is it another kind of file? lazymem.save() writes stores",
    lib.LM_E_VERSION: "upgrade lazymem to read it",
    lib.LM_E_FORMAT: _FORMAT_HINT,
    lib.LM_E_CHECKSUM: "restore the file from a copy",
    lib.LM_E_TRUNCATED: "copy or download the file again",
    lib.LM_E_NO_COMMIT: "the file was cut off or never finished; copy it again",
    lib.LM_E_DECODE: _FORMAT_HINT,
    lib.LM_E_CODEC: "pip install --force-reinstall lz4 zstandard",
    lib.LM_E_CLOSED: "keep the store open while its arrays are in use, or copy them",
    lib.LM_E_NO_UFFD: "'lazymem doctor' tells how to allow it",
    lib.LM_E_LOST_MAPPING: "something unmapped or remapped the array's memory",
    lib.LM_E_NO_HUGE_PAGES: "'lazymem doctor' shows the pools, and vm.nr_hugepages is "
    "the size of one; pages='auto' makes do with ordinary pages",
    lib.LM_E_LOCKED: "open it for reading, or wait until the other has closed it",
    -errno_names.EBADF: "the program closed the store's descriptor; spare those that "
    "are not yours, or open stores after closing them",
    -errno_names.EINTR: "a signal ended the wait; a later touch tries again",
    -errno_names.ENOMEM: "free memory, or raise what limits this process (ulimit -v, "
    "a memory cgroup, vm.overcommit_memory); a later touch tries again",
    lib.LM_E_BUDGET: "raise store.limit; or release pins, or save what was written: "
    "neither can be dropped",
    lib.LM_E_DANGLING: "keep a reference to the array while its memory is in use",
}
_CLASSES: dict[int, type[LazyMemError]] = {
    lib.LM_E_CHECKSUM: ChecksumError,
    lib.LM_E_CLOSED: ClosedError,
    lib.LM_E_DANGLING: ClosedError,
    lib.LM_E_CODEC: UnsupportedKernelError,
    lib.LM_E_NO_UFFD: UnsupportedKernelError,
    lib.LM_E_NO_HUGE_PAGES: HugePagesError,
    lib.LM_E_LOST_MAPPING: FillError,
    lib.LM_E_LOCKED: LockError,
    lib.LM_E_MAGIC: NotAStoreError,
    lib.LM_E_VERSION: NotAStoreError,
    lib.LM_E_FORMAT: FormatError,
    lib.LM_E_TRUNCATED: FormatError,
    lib.LM_E_NO_COMMIT: FormatError,
    lib.LM_E_DECODE: FormatError,
    -errno_names.ENOMEM: BudgetError,
    lib.LM_E_BUDGET: BudgetError,
}
_tags: dict[int, weakref.ref[ObjectHandle]] = {}
_next_tag = itertools.count(1)


def strerror(code: int) -> str:
    """Return what an engine code means."""
    return str(ffi.string(lib.lm_strerror(code)).decode())


def _number(what: str, value: int) -> str:
    is_plain = what in ("format version", "index page", "index entry", "file")
    return str(value) if is_plain or value < 2**20 else f"{value:#010x}"


def exception(
    error: Any, path: str | None = None, name: str | None = None
) -> LazyMemError:
    """Return the exception that a ``struct lm_error`` stands for."""
    owner = _owner(error.tag)
    if owner is not None:
        path, name = owner.path, owner.name
    values = {
        field: int(getattr(error, field))
        for field in ("chunk_idx", "offset", "expected", "found")
        if getattr(error, field) != _NONE
    }
    what = ffi.string(error.what).decode()
    place = [str(path)] if path else []
    if name is not None:
        place.append(f"object {name!r}")
    if "chunk_idx" in values:
        place.append(f"chunk {values['chunk_idx']}")
    if "offset" in values:
        place.append(f"offset {values['offset']}")
    text = f"{', '.join(place)}: {what}: {strerror(error.code)}"
    if "expected" in values:
        text += f" (expected {_number(what, values['expected'])}"
        if "found" in values:
            text += f", found {_number(what, values['found'])}"
        text += ")"
    elif "found" in values:
        text += f" (found {_number(what, values['found'])})"
    hint = _HINTS.get(
        error.code, "check the disk or file server; a later touch tries again"
    )
    if error.code == lib.LM_E_CLOSED and owner is not None and owner.gone:
        text, hint = f"{', '.join(place)}: {owner.gone}", f"take store[{name!r}] again"
    text += f"; {hint}"
    exc = _CLASSES.get(error.code, FillError)(text)
    exc.code, exc.path, exc.name = int(error.code), path, name
    for field, value in values.items():
        setattr(exc, field, value)
    if isinstance(exc, OSError) and -4096 < error.code < 0:
        exc.errno, exc.strerror = -error.code, os.strerror(-error.code)
    return exc


def _owner(tag: int) -> ObjectHandle | None:
    reference = _tags.get(tag)
    return reference() if reference else None


def _check(
    code: int, error: Any, path: str | None = None, name: str | None = None
) -> None:
    if code < 0:
        raise exception(error, path, name)


def _os_error(code: int, path: str | None) -> OSError:
    return OSError(-code, os.strerror(-code), path)


# ---- codecs --------------------------------------------------------------------------


def extension_file(package: str, *module: str) -> str | None:
    """Find an extension module's file without importing its package."""
    spec = PathFinder.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for suffix in EXTENSION_SUFFIXES:
            path = os.path.join(folder, *module) + suffix
            if os.path.exists(path):
                return path
    return None


def _load_codecs() -> None:
    lz4 = extension_file("lz4", "block", "_block")
    zstd = extension_file("zstandard", "_cffi")
    error = _new_error()
    for paths in itertools.product((lz4, None), (zstd, None)):
        args = [os.fsencode(path) if path else ffi.NULL for path in paths]
        if lib.lm_codecs_load(*args, error) == 0:
            return
    raise ImportError(str(exception(error)))


# ---- failed fills become exceptions --------------------------------------------------


def _exception_class(address: int) -> type[BaseException]:
    """Return the class of a failed fill's exception, made without arguments.

    Making the instance takes the error from the engine: nobody else is to raise it.
    And it waits for the false bytes to go: whoever catches it may try again.
    """
    error = ffi.cast("struct lm_error *", address)
    tid, owner = int(error.tid), _owner(error.tag)

    def on_raise() -> None:
        lib.lm_failure_take(tid, ffi.NULL)
        region = owner.region() if owner and owner.region else None
        if region:
            region.settle()

    return exception(error).as_raiser(on_raise)


def _find_thread(tid: int) -> int:
    for thread in threading.enumerate():
        if thread.native_id == tid:
            return thread.ident or 0
    return 0


def _attach() -> None:
    lib.lm_python_attach(
        ffi.cast("void *", id(_exception_class)), ffi.cast("void *", id(_find_thread))
    )


HANG = int(lib.LM_INJECT_HANG)


def inject(point: str, error: int, skip: int = 0, count: int = -1) -> None:
    """Let the engine's calls at `point` fail; see :mod:`lazymem.testing`."""
    points = {
        "read": lib.LM_INJECT_READ,
        "write": lib.LM_INJECT_WRITE,
        "sync": lib.LM_INJECT_SYNC,
        "uffd_copy": lib.LM_INJECT_UFFD_COPY,
    }
    lib.lm_inject(points[point], skip, count, error)


# ---- jobs ----------------------------------------------------------------------------


class Job:
    """Work of the engine that is under way."""

    def __init__(
        self, handle: Any, path: str | None = None, *, may_leave: bool = False
    ) -> None:
        self._handle = handle
        self._path = path
        self._may_leave = may_leave

    def wait(self, tick: Tick | None = None) -> None:
        """Wait for the end; Ctrl-C gets through, and the job is then given up."""
        try:
            self.wait_quietly(tick)
            errors = self.errors(1)
        except BaseException:
            self._end(lib.LM_JOB_LEAVE if self._may_leave else lib.LM_JOB_CANCEL)
            raise
        self.close()
        if errors:
            raise errors[0]

    def wait_quietly(self, tick: Tick | None = None) -> None:
        """Wait for the end; the job stays open for :meth:`errors`."""
        while not lib.lm_job_wait(self._handle, _TICK_MS):
            if tick:
                tick(*self.progress())
        if tick:
            tick(*self.progress())

    def progress(self) -> tuple[int, int]:
        """Return the steps done and the steps in all."""
        out = ffi.new("struct lm_progress *")
        lib.lm_job_progress(self._handle, out)
        return out.steps_done, out.steps_total

    def errors(self, most: int = 256) -> list[Exception]:
        """Return the first errors of the job."""
        out = ffi.new("struct lm_error[]", most)
        count = lib.lm_job_errors(self._handle, out, most)
        return [exception(out[i], self._path) for i in range(count)]

    def close(self) -> None:
        """Give the job up unless it has ended.  No thread uses its memory then."""
        self._end(lib.LM_JOB_CANCEL)

    def leave(self) -> None:
        """Give the job up; what has begun ends unwatched."""
        self._end(lib.LM_JOB_LEAVE)

    def detach(self) -> None:
        """Let the job run on unwatched."""
        self._end(lib.LM_JOB_DETACH)

    def _end(self, how: int) -> None:
        if self._handle is not None:
            lib.lm_job_close(self._handle, how)
            self._handle = None


# ---- reading -------------------------------------------------------------------------


_forks = 0
"""That this process has made, or that made it."""


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_parent=_count_fork, after_in_child=_count_fork)


class StoreHandle:
    """An open store file, at its last commit or at an earlier one.

    Parameters
    ----------
    path : str
        What errors call the file.
    file : str, optional
        Where it is, if not there.
    is_writable : bool, optional
        Be the one who may append to it.
    """

    def __init__(
        self, path: str, *, file: str | None = None, is_writable: bool = False
    ) -> None:
        function = lib.lm_store_open_write if is_writable else lib.lm_store_open
        self._open(path, partial(function, os.fsencode(file or path)))

    def at(self, record_offset: int) -> StoreHandle:
        """Open an earlier state of the file, by the offset of its commit record."""
        return self.opened_by(
            partial(lib.lm_store_open_at, self.pointer, record_offset)
        )

    def opened_by(self, function: Callable[..., int]) -> StoreHandle:
        """Open another state of the file by a function of the engine."""
        other = StoreHandle.__new__(StoreHandle)
        other._open(self.path, function)
        return other

    @classmethod
    def before(
        cls, path: str, record_offset: int, *, is_writable: bool = False
    ) -> StoreHandle:
        """Open the newest state whose commit record lies before an offset."""
        found = cls.__new__(cls)
        file = os.fsencode(path)
        found._open(
            path, partial(lib.lm_store_open_before, file, is_writable, record_offset)
        )
        return found

    def _open(self, path: str, function: Callable[..., int]) -> None:
        out, error = ffi.new(_STORE_OUT), _new_error()
        self.commit = ffi.new(_COMMIT)
        self._forks = _forks
        code = function(out, self.commit, error)
        if -4096 < code < 0 and ffi.string(error.what) == b"file":
            raise _os_error(code, path)
        _check(code, error, path)
        self.path = path
        self.pointer = ffi.gc(out[0], lib.lm_store_close)

    def leave(self) -> None:
        """Say that nothing is read from it any more: a writer may take its space."""
        if self._forks == _forks:  # else a child, or the parent, reads it as well
            lib.lm_store_leave(self.pointer)

    def manifest(self) -> bytes:
        """Return the manifest's bytes, checked."""
        buf, error = ffi.new(_CHARS, self.commit.manifest_bytes or 1), _new_error()
        _check(lib.lm_store_manifest(self.pointer, buf, error), error, self.path)
        return bytes(ffi.buffer(buf, self.commit.manifest_bytes))


class ObjectHandle:
    """The chunks of one stored array."""

    def __init__(
        self,
        store: StoreHandle,
        name: str,
        nbytes: int,
        chunk_bytes: int,
        shuffle: int,
        index: tuple[int, int, int, int] | None,
    ) -> None:
        self.path, self.name = store.path, name
        self.nbytes, self.chunk_bytes = nbytes, chunk_bytes
        self.region: weakref.ref[RegionHandle] | None = None
        self.gone: str | None = None
        """Why its memory was given up while its store is open; None: it was not."""
        tag = next(_next_tag)
        fields = (tag, nbytes, chunk_bytes, shuffle, index or (0, 0, 0, 0))
        spec = ffi.new(_OBJECT_SPEC, fields)
        out, error = ffi.new(_OBJECT_OUT), _new_error()
        code = lib.lm_object_open(store.pointer, spec, out, error)
        _check(code, error, store.path, name)
        self.pointer = ffi.gc(out[0], lib.lm_object_close)
        _tags[tag] = weakref.ref(self, partial(_tags.pop, tag))

    def read(self, offset: int, target: memoryview) -> Job:
        """Decode bytes from `offset` on into `target`, which the caller keeps."""
        out = ffi.new(_JOB_OUT)
        to = ffi.from_buffer(target, require_writable=True)
        code = lib.lm_object_read(self.pointer, offset, target.nbytes, to, out)
        if code < 0:
            raise _os_error(code, self.path)
        return Job(out[0], self.path)

    def verify(self) -> Job:
        """Check every chunk."""
        out = ffi.new(_JOB_OUT)
        code = lib.lm_object_verify(self.pointer, out)
        if code < 0:
            raise _os_error(code, self.path)
        return Job(out[0], self.path)

    def rebase(
        self, store: StoreHandle, index: tuple[int, int, int, int] | None
    ) -> None:
        """Read from another index of the same bytes from now on."""
        root = ffi.new("struct lm_root *", index or (0, 0, 0, 0))
        code = lib.lm_object_rebase(self.pointer, store.pointer, root)
        if code < 0:
            raise _os_error(code, self.path)

    def diff(self, other: ObjectHandle, start: int) -> tuple[int, int] | None:
        """Return the next run of chunks, from `start` on, whose entries differ.

        The other has as many bytes and the same chunks.  A run is (first, count).
        """
        first, count = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        error = _new_error()
        code = lib.lm_object_diff(
            self.pointer, other.pointer, start, first, count, error
        )
        _check(code, error, self.path, self.name)
        return (int(first[0]), int(count[0])) if code else None


class BudgetHandle:
    """How much memory some regions may have, all in all; the rest goes to a folder."""

    def __init__(self, limit_bytes: int, folder: str) -> None:
        out = ffi.new("lm_budget **")
        code = lib.lm_budget_open(limit_bytes, os.fsencode(folder), out)
        if code < 0:
            raise _os_error(code, None)
        self.pointer = ffi.gc(out[0], lib.lm_budget_close)

    def set_limit(self, limit_bytes: int) -> None:
        """Change the limit; what is too much is dropped before this returns."""
        lib.lm_budget_set_limit(self.pointer, limit_bytes)

    def stats(self) -> Any:
        """Return a ``struct lm_budget_stats``."""
        out = ffi.new("struct lm_budget_stats *")
        lib.lm_budget_stats(self.pointer, out)
        return out


def make_shared(nbytes: int) -> int:
    """Return the descriptor of a new file in memory, for :class:`SharedHandle`."""
    fd = int(lib.lm_shared_make(nbytes))
    if fd < 0:
        raise _os_error(fd, None)
    return fd


class SharedHandle:
    """Memory that several processes have."""

    def __init__(self, fd: int, states_bytes: int) -> None:
        out = ffi.new("lm_shared **")
        code = lib.lm_shared_open(fd, states_bytes, out)
        if code < 0:
            raise _os_error(code, None)
        self.pointer = ffi.gc(out[0], lib.lm_shared_close)


class SharedPlace(NamedTuple):
    """Where an object is in such memory."""

    keeper: object
    """Lives as long as the object's region, so that other processes find the memory."""
    handle: SharedHandle
    offset: int
    states: int
    """Where the states of its chunks are."""


class Cell(NamedTuple):
    """A part of a picture of which chunks are in memory."""

    chunks: int
    resident: int
    dirty: int


class RegionHandle:
    """An object as memory, which lives as long as the handle or a view of it."""

    def __init__(
        self,
        obj: ObjectHandle,
        on_error: str = "raise",
        *,
        is_writable: bool = False,
        is_tracked: bool = False,
        pages: str | None = None,
        budget: BudgetHandle | None = None,
        shared: SharedPlace | None = None,
    ) -> None:
        out, error = ffi.new(_REGION_OUT), _new_error()
        self.budget, self._shared = budget, shared
        limiter = budget.pointer if budget else ffi.NULL
        mode = (ON_ERROR[on_error], is_writable, is_tracked)
        fields = (*mode, PAGE_BYTES[pages], limiter)
        options = ffi.new(_REGION_OPTIONS, fields)
        if shared:
            options.shared = shared.handle.pointer
            options.shared_offset, options.shared_states = shared[2:]
        code = lib.lm_region_open(obj.pointer, options, out, error)
        _check(code, error, obj.path, obj.name)
        self.object = obj
        obj.region = weakref.ref(self)
        self.pointer = ffi.gc(out[0], lib.lm_region_close)
        self.address = int(ffi.cast(_UINTPTR, lib.lm_region_addr(self.pointer)))
        self.chunk_bytes = int(lib.lm_region_chunk_bytes(self.pointer))
        self.chunks = -(-obj.nbytes // self.chunk_bytes)
        self.failures = lib.lm_region_failures(self.pointer)
        self._resident = lib.lm_region_resident(self.pointer)
        self.released = False
        self.origin: Callable[[], Any] | None = None
        """Says which state of a file the memory equals, if it does."""
        self._tracking_pid = os.getpid() if is_tracked else 0
        self.can_be_limited = is_tracked or not (is_writable or shared)

    @property
    def is_tracked(self) -> bool:
        """Whether a snapshot may hold what is written; a forked child's writes none."""
        return self._tracking_pid == os.getpid()

    @property
    def resident(self) -> int:
        """How many chunks are in memory."""
        return self._resident[0]  # type: ignore[no-any-return]

    @property
    def limit(self) -> int | None:
        """How many bytes its budget may have; None: it has none."""
        return self.budget.stats().limit_bytes if self.budget else None

    def memory_available(self) -> int:
        """Return how many bytes can be had, of the system's and the budget's."""
        limit = self.limit
        return memory_available() if limit is None else min(memory_available(), limit)

    def set_budget(self, budget: BudgetHandle | None) -> None:
        """Count what it has, and will have, for another budget, or for none."""
        pointer = budget.pointer if budget else ffi.NULL
        code = lib.lm_region_set_budget(self.pointer, pointer)
        if code < 0:
            raise _os_error(code, self.object.path)
        self.budget = budget

    def pin(self, offset: int, nbytes: int) -> None:
        """Let no chunk of a byte range be dropped to make room, until unpin()."""
        error = _new_error()
        code = lib.lm_region_pin(self.pointer, offset, nbytes, error)
        _check(code, error, self.object.path, self.object.name)

    def unpin(self, offset: int, nbytes: int) -> None:
        """Undo one :meth:`pin` of the same range."""
        lib.lm_region_unpin(self.pointer, offset, nbytes)

    def dirty(self) -> int:
        """Return how many chunks were written since the last snapshot."""
        return int(lib.lm_region_dirty(self.pointer))

    def restore(
        self, store: StoreHandle, index: tuple[int, int, int, int] | None
    ) -> int:
        """Show another state of the object; return how many chunks were dropped."""
        dropped, error = ffi.new("uint64_t *"), _new_error()
        to = ffi.new("struct lm_root *", index or (0, 0, 0, 0))
        code = lib.lm_region_restore(self.pointer, store.pointer, to, dropped, error)
        _check(code, error, store.path, self.object.name)
        return int(dropped[0])

    def memory(self) -> memoryview:
        """Return the object's bytes; whatever looks at them keeps the handle alive."""
        addr = lib.lm_region_addr(self.pointer)
        _handles[addr] = self
        return memoryview(ffi.buffer(ffi.gc(addr, _handles.pop), self.object.nbytes))

    def settle(self) -> int:
        """Wait until no failed fill has false bytes in memory; return how many had."""
        return lib.lm_region_settle(self.pointer)  # type: ignore[no-any-return]

    def last_error(self) -> Exception | None:
        """Return the last failed fill's exception."""
        error = _new_error()
        if not lib.lm_region_last_error(self.pointer, error):
            return None
        return exception(error)

    def stats(self) -> Any:
        """Return a ``struct lm_region_stats``."""
        out = ffi.new("struct lm_region_stats *")
        lib.lm_region_stats(self.pointer, out)
        return out

    def resident_mask(self, first: int, count: int) -> bytearray:
        """Return a byte for each chunk from `first` on: 1 if it is resident."""
        mask = bytearray(count)
        buf = ffi.from_buffer("uint8_t[]", mask, require_writable=True)
        lib.lm_region_residency(self.pointer, first, count, buf)
        return mask

    def count_resident(self, first: int, count: int) -> int:
        """Return how many chunks from `first` on are resident."""
        return int(lib.lm_region_residency(self.pointer, first, count, ffi.NULL))

    def strip(self, first: int, count: int, cells: int) -> list[Cell]:
        """Return which of `count` chunks are in memory, in cells of a picture."""
        out = ffi.new("struct lm_strip_cell[]", cells)
        lib.lm_region_strip(self.pointer, first, count, out, cells)
        return [Cell(cell.chunks, cell.resident, cell.dirty) for cell in out]

    def prefetch(self, offset: int, nbytes: int) -> Job:
        """Fill the chunks of a byte range."""
        out = ffi.new(_JOB_OUT)
        code = lib.lm_region_prefetch(self.pointer, offset, nbytes, out)
        if code < 0:
            raise _os_error(code, self.object.path)
        return Job(out[0], self.object.path, may_leave=True)

    def advise(self, advice: str) -> None:
        """Say how the object is going to be accessed."""
        lib.lm_region_advise(self.pointer, ADVICE[advice])

    def prefetch_chunks(self, chunks: Any, *, is_urgent: bool) -> Job | None:
        """Fill chunks, given by a contiguous array of 64-bit numbers, in their order.

        Nobody is to wait for the job.  There is none if there is little to do.
        """
        out, numbers = ffi.new(_JOB_OUT), ffi.from_buffer("uint64_t[]", chunks)
        code = lib.lm_region_prefetch_chunks(
            self.pointer, numbers, len(numbers), is_urgent, out
        )
        if code < 0:
            raise _os_error(code, self.object.path)
        return Job(out[0], self.object.path) if out[0] != ffi.NULL else None

    def evict(self, offset: int, nbytes: int) -> int:
        """Drop the chunks that lie in a byte range; return how many bytes they had."""
        return int(lib.lm_region_evict(self.pointer, offset, nbytes))

    def fill_here(self, address: int) -> None:
        """Fill the chunk of one byte in this thread, if that takes no waiting."""
        lib.lm_region_fill_here(self.pointer, address - self.address)

    def release(self) -> None:
        """Free the memory; views stay mapped and raise ClosedError when touched."""
        self.released = True
        lib.lm_region_release(self.pointer)


_handles: dict[Any, RegionHandle] = {}
"""By address, as long as the memory is looked at.

Its end runs no Python: an exception that waits for the thread would be raised there, in
the midst of a deallocation, and be lost.
"""


def region_at(address: int) -> RegionHandle | None:
    """Return the region that begins at an address, as long as it is looked at."""
    return _handles.get(ffi.cast("void *", address))


NO_FAILURES = ffi.new("struct lm_failure_counts *")
"""The counts of an array that no fault fills."""


def take_failure() -> Exception | None:
    """Return the error that waits for this thread, so that nobody else raises it."""
    error = _new_error()
    if not lib.lm_failure_take(threading.get_native_id(), error):
        return None
    lib.lm_python_cancel()
    if error.code == -errno_names.EINTR and error.tid == os.getpid():
        _thread.interrupt_main()  # the handler of SIGINT runs now, and raises as a rule
    return exception(error)


# ---- writing -------------------------------------------------------------------------


def encoding(
    nbytes: int, chunk_bytes: int, shuffle: int, codec: str, level: int, is_split: bool
) -> Any:
    """Return a ``struct lm_encoding``."""
    fields = (nbytes, chunk_bytes, shuffle, CODECS[codec], level, is_split)
    return ffi.new("struct lm_encoding *", fields)


class Written(NamedTuple):
    """What became of the chunks of an object that were given to the engine."""

    root: tuple[int, int, int, int] | None
    """Offset, length, checksum and kind of the root index page; None: all zero."""
    chunks: int
    stored_bytes: int
    replaced_bytes: int
    """Payloads of the state before, of these chunks."""


def _written(raw: Any) -> Written:
    fields = raw.root
    root = int(fields.offset), int(fields.bytes), int(fields.crc), int(fields.kind)
    chunks, stored_bytes = int(raw.chunks_total), int(raw.stored_bytes)
    replaced_bytes = int(raw.replaced_bytes)
    return Written(root if root[0] else None, chunks, stored_bytes, replaced_bytes)


def encoded_bytes(enc: Any, chunk: Any) -> int:
    """Return how many bytes a chunk takes when stored."""
    out = ffi.new("uint64_t *")
    data = ffi.from_buffer(chunk)
    code = lib.lm_encoded_bytes(enc, data, len(data), out)
    if code < 0:
        raise _os_error(code, None)
    return int(out[0])


class WriterHandle:
    """Appends to a store file, a new one or an open one.

    Parameters
    ----------
    path : str
        What errors call the file.
    target : str or StoreHandle
        Where to create it; or the store to append to, opened for writing.
    """

    def __init__(self, path: str, target: str | StoreHandle) -> None:
        out, error = ffi.new("lm_writer **"), _new_error()
        if isinstance(target, StoreHandle):
            code = lib.lm_writer_open(target.pointer, out, error)
        else:
            code = lib.lm_writer_create(os.fsencode(target), out, error)
        if -4096 < code < 0:
            raise _os_error(code, path)
        _check(code, error, path)
        self.path = path
        self.pointer = ffi.gc(out[0], lib.lm_writer_close)

    def begin(self, enc: Any) -> Any:
        """Begin an object; returns its handle for :meth:`write` and :meth:`end`."""
        out, error = ffi.new("lm_writer_object **"), _new_error()
        self.check(lib.lm_writer_begin(self.pointer, enc, out, error), error)
        return out[0]

    def write(
        self, obj: Any, offset: int, block: Any, tick: Tick | None = None
    ) -> None:
        """Append a block of bytes and wait until it is encoded."""
        data, out, error = ffi.from_buffer(block), ffi.new(_JOB_OUT), _new_error()
        code = lib.lm_writer_write(obj, offset, data, len(data), out, error)
        self.check(code, error)
        self.wait(out[0], tick)

    def wait(self, job: Any, tick: Tick | None) -> None:
        """Wait for a job that appends, if there is one."""
        if job != ffi.NULL:
            try:
                Job(job, self.path).wait(tick)
            except FillError as exc:
                raise _as_os_error(exc, self.path) from None

    def end(self, obj: Any) -> Written:
        """Finish an object; returns what became of it."""
        out, error = ffi.new("struct lm_written *"), _new_error()
        self.check(lib.lm_writer_end(obj, out, error), error)
        return _written(out)

    def copy(
        self,
        obj: ObjectHandle,
        before: ObjectHandle | None,
        before_root: tuple[int, int, int, int] | None,
        enc: Any,
        tick: Tick | None,
    ) -> Written:
        """Append an object of another file.

        Only what differs from `before` is copied, of which `before_root` is the copy.
        Without an encoding (None) it is copied as it is stored.
        """
        out, error = ffi.new("lm_copy **"), _new_error()
        code = lib.lm_copy_begin(
            self.pointer,
            obj.pointer,
            before.pointer if before else ffi.NULL,
            ffi.new("struct lm_root *", before_root or (0, 0, 0, 0)),
            enc or ffi.NULL,
            out,
            error,
        )
        self.check(code, error)
        job, written = ffi.new(_JOB_OUT), ffi.new("struct lm_written *")
        try:
            self.check(lib.lm_copy_write(out[0], job), error)
            self.wait(job[0], tick)
        finally:
            code = lib.lm_copy_end(out[0], written, error)
        self.check(code, error)
        return _written(written)

    def resume(self, sequence: int, time_ns: int) -> None:
        """Let the next commit have the number and time of one that it copies."""
        lib.lm_writer_resume(self.pointer, sequence, time_ns)

    def commit(self, manifest: bytes) -> Any:
        """Make all that was appended durable; returns a ``struct lm_commit``."""
        out, error = ffi.new(_COMMIT), _new_error()
        code = lib.lm_writer_commit(self.pointer, manifest, len(manifest), out, error)
        self.check(code, error)
        return out

    def close(self) -> None:
        """Close the file, or let others append to it."""
        if self.pointer is not None:
            ffi.release(self.pointer)
            self.pointer = None

    def check(self, code: int, error: Any) -> None:
        """Raise what a failed call says, with the system's causes as OSError."""
        if -4096 < code < 0:
            raise _as_os_error(exception(error, self.path), self.path)
        _check(code, error, self.path)


class PruneHandle:
    """Finds out which bytes of a store are in use.

    Parameters
    ----------
    writer : WriterHandle
        The store's.
    store : StoreHandle
        The store.
    """

    def __init__(self, writer: WriterHandle, store: StoreHandle) -> None:
        self._pointer = None
        out, error = ffi.new("lm_prune **"), _new_error()
        writer.check(lib.lm_prune_begin(writer.pointer, out, error), error)
        self._writer, self._store, self._pointer = writer, store, out[0]

    def readers(self) -> list[int]:
        """Return the commit records of the states that are open anywhere."""
        found: list[int] = []
        while offset := lib.lm_prune_reader(self._pointer, (found or [-1])[-1] + 1):
            found.append(int(offset))
        return found

    def open(self, record_offset: int) -> StoreHandle:
        """Open a state, which is in use."""
        return self._store.opened_by(
            partial(lib.lm_prune_open, self._pointer, record_offset)
        )

    def keep(self, obj: ObjectHandle, before: ObjectHandle | None) -> None:
        """Note that an object is in use; `before`, of equal form, was noted before."""
        other = before.pointer if before else ffi.NULL
        error = _new_error()
        code = lib.lm_prune_keep(self._pointer, obj.pointer, other, error)
        _check(code, error, obj.path, obj.name)

    def end(self, *, is_complete: bool) -> int:
        """Give back what is not in use; return how many bytes that was."""
        freed, error = ffi.new("uint64_t *"), _new_error()
        pointer, self._pointer = self._pointer, None
        code = lib.lm_prune_end(pointer, is_complete, freed, error)
        self._writer.check(code, error)
        return int(freed[0])

    def __del__(self) -> None:
        if self._pointer is not None:
            self.end(is_complete=False)


class SnapshotHandle:
    """What was written to arrays, frozen, on its way to the file.

    Parameters
    ----------
    writer : WriterHandle
        Of the regions' store.
    parts : sequence of (RegionHandle, struct lm_encoding)
        What to freeze and how to store it.
    """

    def __init__(
        self, writer: WriterHandle, parts: Sequence[tuple[RegionHandle, Any]]
    ) -> None:
        self._writer, self._parts, self._pointer = writer, parts, None
        array = ffi.new("struct lm_snapshot_part[]", len(parts))
        for part, (region, enc) in zip(array, parts):
            part.region, part.encoding = region.pointer, enc[0]
        out, error = ffi.new("lm_snapshot **"), _new_error()
        stats = ffi.new("struct lm_snapshot_stats *")
        code = lib.lm_snapshot_begin(
            writer.pointer, array, len(parts), out, stats, error
        )
        writer.check(code, error)
        self._pointer = out[0]
        self.pause_seconds = stats.pause_ns / 1e9

    def write(self, tick: Tick | None = None) -> list[Written]:
        """Encode and append it; returns what became of each part."""
        out, error = ffi.new(_JOB_OUT), _new_error()
        self._writer.check(lib.lm_snapshot_write(self._pointer, out), error)
        self._writer.wait(out[0], tick)
        written = ffi.new("struct lm_written[]", len(self._parts))
        code = lib.lm_snapshot_end(self._pointer, written, error)
        self._writer.check(code, error)
        return [_written(part) for part in written]

    def close(self, *, is_committed: bool) -> None:
        """End it: without a commit, what was frozen counts as written again."""
        if self._pointer is not None:
            lib.lm_snapshot_close(self._pointer, is_committed)
            self._pointer = None

    def __del__(self) -> None:
        # A signal can raise just when it was begun.
        if self._pointer is not None:
            self.close(is_committed=False)


def _as_os_error(exc: LazyMemError, path: str) -> Exception:
    """Turn a failed write into what writing a plain file would raise."""
    number = getattr(exc, "errno", None)
    return OSError(number, os.strerror(number), path) if number else exc


def sync_folder(path: str) -> None:
    """Make the names in the folder of `path` durable."""
    code = lib.lm_sync_folder(os.fsencode(path))
    if code < 0:
        raise _os_error(code, os.path.dirname(path))


# ---- what the machine allows ---------------------------------------------------------


def uffd_probe() -> Any:
    """Return a ``struct lm_uffd_info``: what this process may do."""
    out = ffi.new("struct lm_uffd_info *")
    lib.lm_uffd_probe(out)
    return out


def start_pager() -> None:
    """Start the fault threads; where that fails, opening a region will say so."""
    lib.lm_pager_start()


def has_pager() -> bool:
    """Return whether faults are served in this process."""
    return bool(lib.lm_pager_mode() != lib.LM_UFFD_NONE)


def user_mode_only() -> bool:
    """Return whether the process's userfaultfd serves user-mode faults only."""
    return bool(lib.lm_pager_mode() == lib.LM_UFFD_USER_ONLY)


def memory_available() -> int:
    """Return the bytes that can be had without anything being swapped out."""
    return int(lib.lm_memory_available())


def uffd_features(bits: int) -> dict[str, bool]:
    """Return the names of userfaultfd's features and whether `bits` has them."""
    names: dict[str, bool] = {}
    while (name := lib.lm_uffd_feature_name(len(names))) != ffi.NULL:
        names[ffi.string(name).decode()] = bool(bits >> len(names) & 1)
    return names


def pager_stats() -> dict[str, int]:
    """Return the process's counters by name."""
    out = ffi.new("struct lm_pager_stats *")
    lib.lm_pager_stats(out)
    return {name: int(getattr(out, name)) for name in dir(out)}


def _new_error() -> Any:
    return ffi.new(_ERROR)


_load_codecs()
_attach()
lib.lm_warm()
