# SPDX-License-Identifier: BSD-3-Clause
"""LazyArray: a real ndarray whose memory fills itself."""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import numpy as np

from lazymem import _engine, budget, gather, reference
from lazymem.attrs import Attrs
from lazymem.errors import ClosedError
from lazymem.progress import Progress, meter
from lazymem.reference import Part
from lazymem.stats import Residency

if TYPE_CHECKING:
    from collections.abc import Callable

    import dask.array

    from lazymem.manifest import ObjectInfo
    from lazymem.reference import Origin

try:
    from numpy.lib.array_utils import byte_bounds
except ImportError:  # numpy 1
    from numpy import byte_bounds  # type: ignore[attr-defined,no-redef]


_GATHER_BYTES_MIN = 64 << 20
"""That are filled ahead without a look at what memory there is,"""
_GATHER_SHARE = 4
"""of which more are to take no more than this part."""
_PREFETCH_SHARE = 2
"""Of a memory limit, what is prefetched is to take no more than this part."""


@dataclass(eq=False)
class Binding:
    """What ties an array, and every view of it, to its place in a store."""

    info: ObjectInfo
    region: _engine.RegionHandle | None
    """None: the array was loaded whole, since nothing here can fill it on demand."""
    is_writable: bool
    """Modes ``"c"`` and ``"r+"``: memory may hold what no file has."""
    user_mode_only: bool
    """System calls can't touch absent pages here: what makes them must load first."""
    keeper: Any = None
    """Who is to live as long as the array does."""

    def __post_init__(self) -> None:
        self.is_untouched = self.region is not None
        self.failures = self.region.failures if self.region else _engine.NO_FAILURES
        self.quiet = 0
        """What `failures.begun` was when all of them were over, and had been heard of.
        As long as it is that, no operation has seen false bytes."""
        self.chunk_bytes = (self.region or self.info).chunk_bytes
        """What is filled as one: the object's chunk, or a page of them."""
        self._looks_in_vain = self._looks_to_spare = self._resident_then = 0

    def is_look_spared(self, resident: int) -> bool:
        """Return whether gathers are likely to find all in memory, as those before did.

        A look costs as much as a small gather from memory.  So, as long as no chunk
        comes to memory, they become rare after the first few in vain.
        """
        if resident != self._resident_then:
            self._looks_in_vain = self._looks_to_spare = 0
        elif self._looks_to_spare:
            self._looks_to_spare -= 1
            return True
        return False

    def has_looked(self, resident: int, *, in_vain: bool) -> None:
        """Note what became of a look, before which so many chunks were in memory."""
        self._resident_then = resident
        self._looks_in_vain = min(self._looks_in_vain + 1, 100) if in_vain else 0
        self._looks_to_spare = self._looks_in_vain**2 // 8

    def before(self) -> int:
        """Return what `failures.begun` must still be after an operation."""
        over: int = self.failures.over
        if over != self.failures.begun and self.region:
            over = self.region.settle()
        if over == self.failures.begun:
            self.quiet = over
        return over


class Pin:
    """A part of an array that stays in memory; see :meth:`LazyArray.pin`."""

    def __init__(
        self, region: _engine.RegionHandle | None, part: tuple[int, int]
    ) -> None:
        self._end: Callable[[], Any] = lambda: None
        if region is not None:
            region.pin(*part)
            self._end = weakref.finalize(self, region.unpin, *part)

    def release(self) -> None:
        """Let the part be dropped again, where nothing else pins it."""
        self._end()

    def __enter__(self) -> Pin:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class LazyArray(np.ndarray[Any, Any]):
    """An array of a store: plain memory, filled chunk by chunk when first touched.

    Made by :class:`lazymem.Store`, never directly.  It is an ndarray in every respect;
    results of ufuncs are ordinary ndarrays.  ``np.asarray(a)`` is the same memory
    without this class.  Printing it by ``repr`` shows facts and touches nothing;
    ``str`` and ``print`` show elements, as numpy does.

    A chunk that can't be read raises in the thread that touched it, right after the
    operation; what the operation computed is then not to be used.
    """

    _binding: Binding | None

    def __array_finalize__(self, obj: Any) -> None:
        # A copy has memory of its own, or its base has: no store fills it.
        is_view = isinstance(self.base, LazyArray)
        self._binding = getattr(obj, "_binding", None) if is_view else None

    # ---- what the store knows --------------------------------------------------------

    @property
    def object_name(self) -> str | None:
        """Name in the store; None for an array that has left it.

        Who finds a ``name``, as pandas 2 does, takes the array for a column.
        """
        return self._binding.info.name if self._binding else None

    @property
    def attrs(self) -> Attrs:
        """The object's attributes, which can be changed in mode ``"r+"``."""
        attrs = self._bound().info.attrs
        assert isinstance(attrs, Attrs)
        return attrs

    def residency(self) -> Residency:
        """Return how much of the array is in memory.

        Returns
        -------
        Residency
            Counts, and a mask of shape ``(n_chunks,)``, of the chunks between the first
            and the last byte of the array.

        Notes
        -----
        Touches no page.  Costs one read of a state word per chunk.
        """
        binding = self._bound()
        first, count = self._chunk_range()
        if binding.region is None:
            mask = np.ones(count, np.bool_)
        else:
            mask = np.frombuffer(binding.region.resident_mask(first, count), np.bool_)
        return Residency(
            chunks=count,
            chunks_resident=int(np.count_nonzero(mask)),
            chunk_bytes=binding.chunk_bytes,
            mask=mask,
        )

    # ---- filling ahead ---------------------------------------------------------------

    def prefetch(self, index: Any = ...) -> None:
        """Start to fill a part of the array, in the background, on all cores.

        Parameters
        ----------
        index : basic index, optional
            Integers, slices, ``...``, as in ``a.prefetch(np.s_[10:20])``; default all.

        Raises
        ------
        TypeError
            If the index is none of these.
        ClosedError
            If the store is closed.

        Notes
        -----
        Returns at once.  A chunk that can't be read is left to whoever touches it; so
        is what is more than half of a memory limit.
        """
        job = self._basic_view(index)._fill_job(is_bounded=True)
        if job is not None:
            job.detach()

    def load(self, *, progress: Progress = None) -> LazyArray:
        """Fill the whole array, on all cores, and return it.

        Parameters
        ----------
        progress : bool or callable, optional
            True for a bar, or a function of (bytes done, bytes in all).

        Returns
        -------
        LazyArray
            The array itself.

        Raises
        ------
        FormatError, FillError
            If a chunk can't be read.
        ClosedError
            If the store is closed, or is being closed meanwhile.
        BudgetError
            If it is more than the store's memory limit.

        Notes
        -----
        Of a view, all chunks between its first and its last byte are filled.  While a
        memory limit is taken up by what may not be dropped, what has no room is left
        out, and filled when it is touched.
        """
        binding = self._bound()
        if binding.region is not None:
            nbytes = self._chunk_range()[1] * binding.chunk_bytes
            budget.check_fits(nbytes, binding.region)
        job = self._fill_job()
        if job is not None:
            with meter(progress, nbytes, f"load {binding.info.name}") as m:
                job.wait(m.part(nbytes))
            if binding.region is not None and binding.region.released:
                raise self._closed_error(binding.region)
        return self

    def advise(self, advice: Literal["normal", "random", "sequential"]) -> None:
        """Say how the array is going to be accessed, as :manpage:`madvise(2)` does.

        Parameters
        ----------
        advice : {"normal", "random", "sequential"}
            ``"normal"``: where faults show a run of accesses, forwards, backwards or
            with a constant stride, what follows is filled ahead of the reader, on all
            cores.  ``"random"``: nothing is.  ``"sequential"``: runs go from front to
            back, and are taken for such from their first fault on.

        Raises
        ------
        ValueError
            If the advice is none of these.
        ClosedError
            If the store is closed.

        Notes
        -----
        Of a view, it is about the whole array.  ``store.stats()`` tells how much was
        filled ahead.
        """
        if advice not in _engine.ADVICE:
            raise ValueError(
                f"advice {advice!r} is none of {', '.join(map(repr, _engine.ADVICE))}"
            )
        region = self._bound().region
        if region is None:
            return
        if region.released:
            raise self._closed_error(region)
        region.advise(advice)

    def evict(self, index: Any = ...) -> int:
        """Give the memory of a part of the array back; a later touch fills it again.

        Parameters
        ----------
        index : basic index, optional
            Integers, slices, ``...``, as in ``a.evict(np.s_[10:20])``; default all.

        Returns
        -------
        int
            Bytes given back: those of the chunks that lie between the first and the
            last byte of the part and were in memory.

        Raises
        ------
        ValueError
            If the array is of mode ``"c"``: what was written is nowhere but in memory.

        Notes
        -----
        In mode ``"r+"`` chunks written since the last snapshot or flush stay.
        """
        region, part = self._bound().region, self._basic_view(index)
        if region is None or part.size == 0:
            return 0
        if self._bound().is_writable and not region.is_tracked:
            raise ValueError(
                f"array {self.object_name!r} is of mode 'c', and what was written to "
                "it is nowhere but in memory; close the store to give it up"
            )
        low, high = part._byte_range()
        return region.evict(low, high - low)

    def pin(self, index: Any = ...) -> Pin:
        """Fill a part of the array, and let it stay in memory whatever needs room.

        Parameters
        ----------
        index : basic index, optional
            Integers, slices, ``...``, as in ``a.pin(np.s_[10:20])``; default all.

        Returns
        -------
        Pin
            Ends it: by its ``release()``, as a context manager, or when it is gone.

        Raises
        ------
        BudgetError
            If the store's memory limit has no room for all that is pinned.
        FormatError, FillError, ClosedError
            As :meth:`load` does.

        Notes
        -----
        :meth:`evict` still drops it.
        """
        part = self._basic_view(index)
        region = part._bound().region
        if region is None or part.size == 0:
            return Pin(None, (0, 0))
        low, high = part._byte_range()
        pin = Pin(region, (low, high - low))
        part.load()
        return pin

    def _fill_job(self, *, is_bounded: bool = False) -> _engine.Job | None:
        region = self._bound().region
        if region is None or self.size == 0:
            return None
        if region.released:
            raise self._closed_error(region)
        low, high = self._byte_range()
        if is_bounded and region.limit is not None:
            high = min(high, low + region.limit // _PREFETCH_SHARE)
        return region.prefetch(low, high - low)

    def _gather_job(
        self, find: Callable[..., gather.Chunks | None], *index: Any
    ) -> _engine.Job | None:
        """Start to fill the chunks that an index reads, if some are not in memory.

        Whatever is in the way of it, the reader fills them all the same.
        """
        binding = self._binding
        region = binding.region if binding else None
        if binding is None or region is None:
            return None
        resident = region.resident
        if resident >= region.chunks or binding.is_look_spared(resident):
            return None
        job = self._start_gather(region, find, index)
        binding.has_looked(resident, in_vain=job is None)
        return job

    def _start_gather(
        self,
        region: _engine.RegionHandle,
        find: Callable[..., gather.Chunks | None],
        index: tuple[Any, ...],
    ) -> _engine.Job | None:
        address = self.__array_interface__["data"][0]
        layout = gather.Layout(
            address - region.address,
            self.shape,
            self.strides,
            self.itemsize,
            region.chunk_bytes,
            region.chunks,
        )
        try:
            chunks = find(layout, *index)
            if chunks is None:
                return None
            if region.budget or len(chunks) * region.chunk_bytes > _GATHER_BYTES_MIN:
                nbytes = region.memory_available() // _GATHER_SHARE
                chunks = chunks[: nbytes // region.chunk_bytes]
            return region.prefetch_chunks(chunks, is_urgent=True)
        except (OSError, MemoryError, IndexError):  # as_strided() leads anywhere
            return None

    def _closed_error(self, region: _engine.RegionHandle) -> ClosedError:
        what = f"array {self.object_name!r}"
        return closed_error(region.object.path, what, region.object.gone)

    def _fill_first(self, index: Any) -> None:
        """Fill the chunk of the first element read, if it is one, in this thread.

        It spares two thread switches, at a time when the fault threads are only just
        starting.  What fails here is left to the touch that follows.
        """
        parts = index if isinstance(index, tuple) else (index,)
        region = self._bound().region
        if (
            region is not None
            and len(parts) == self.ndim
            and all(isinstance(part, int) for part in parts)
        ):
            element = super().__getitem__((*parts, ...))  # a view, which reads nothing
            region.fill_here(element.__array_interface__["data"][0])

    def _basic_view(self, index: Any) -> LazyArray:
        parts = index if isinstance(index, tuple) else (index,)
        if not all(
            part is None or part is ... or isinstance(part, (slice, SupportsIndex))
            for part in parts
        ):
            raise TypeError("it takes a basic index: integers, slices, ...")
        if all(not isinstance(part, slice) for part in parts) and ... not in parts:
            parts = (*parts, ...)  # a view and not a scalar, which would be read
        view = super().__getitem__(parts)
        assert isinstance(view, LazyArray)
        return view

    def _byte_range(self) -> tuple[int, int]:
        region = self._bound().region
        assert region is not None
        low, high = byte_bounds(self)
        return low - region.address, high - region.address

    def _chunk_range(self) -> tuple[int, int]:
        """Return the first chunk that the array overlaps and how many."""
        binding = self._bound()
        if self.size == 0:
            return 0, 0
        if binding.region is None:
            return 0, binding.info.chunks
        low, high = self._byte_range()
        first = low // binding.chunk_bytes
        return first, -(-high // binding.chunk_bytes) - first

    def _bound(self) -> Binding:
        if self._binding is None:
            raise ValueError(
                "this array is a copy with memory of its own; it belongs to no store"
            )
        return self._binding

    # ---- operations: results are plain, and errors arrive at once --------------------

    def _checked(self, operation: Callable[[], Any]) -> Any:
        """Run an operation on the array and raise if a fill failed meanwhile."""
        binding = self._binding
        if binding is None:
            return operation()
        before = binding.before()
        result = operation()
        if binding.failures.begun != before:
            self._raise_failure(binding)
        return result

    @staticmethod
    def _raise_failure(binding: Binding) -> None:
        error = _engine.take_failure()
        if error is None and binding.region is not None:
            # Another thread's touch failed: this one may have read the same bytes.
            error = binding.region.last_error()
        if error is not None:
            binding.before()  # whoever catches it may try again
            raise error

    def __getitem__(self, index: Any) -> Any:
        binding = self._binding
        if binding is None:
            return super().__getitem__(index)
        if binding.is_untouched:
            binding.is_untouched = False
            self._fill_first(index)
        # As _checked() and _plain(), without their calls: elements are read in loops.
        kind = type(index)
        if kind is tuple:
            for part in index:
                if type(part) in _ARRAYS:
                    kind = list
        read = LazyArray._gather if kind in _ARRAYS else _getitem
        result = read(self, index)
        if binding.failures.begun != binding.quiet:
            result = self._read_again(read, index)
        if type(result) is LazyArray and result._binding is None:
            return result.view(np.ndarray)
        return result

    def _read_again(self, read: Callable[..., Any], index: Any) -> Any:
        """Read after failures of which it is not known when they began."""
        error = _engine.take_failure()
        if error is not None:
            self._bound().before()
            raise error
        return self._checked(lambda: read(self, index))

    def _gather(self, index: Any) -> Any:
        """Read by index arrays, while what they read is filled on all cores."""
        job = self._gather_job(gather.touched, index)
        try:
            return _getitem(self, index)
        finally:
            if job is not None:
                job.leave()

    def take(
        self, indices: Any, axis: Any = None, out: Any = None, mode: Any = "raise"
    ) -> Any:
        """Return elements by their numbers; see `numpy.ndarray.take`."""
        job = None
        if mode == "raise" and (axis is None or isinstance(axis, int)):
            job = self._gather_job(gather.taken, indices, axis)
        take = super().take
        try:
            return _plain(self._checked(lambda: take(indices, axis, out, mode)))
        finally:
            if job is not None:
                job.leave()

    def __setitem__(self, index: Any, value: Any) -> None:
        self._checked(lambda: super(LazyArray, self).__setitem__(index, value))

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **kwargs: Any
    ) -> Any:
        if out is not None:
            kwargs["out"] = tuple(_as_ndarray(x) for x in out)
        if "where" in kwargs:
            kwargs["where"] = _as_ndarray(kwargs["where"])
        args = [_as_ndarray(x) for x in inputs]
        result = self._checked(lambda: getattr(ufunc, method)(*args, **kwargs))
        if out is None or result is NotImplemented:
            return result
        return out[0] if len(out) == 1 else out

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        call = super().__array_function__
        return _plain(self._checked(lambda: call(func, types, args, kwargs)))

    def copy(self, order: Any = "C") -> Any:
        """Return an ordinary ndarray with the same elements."""
        caller = sys._getframe(1)
        name = caller.f_globals.get("__name__"), caller.f_code.co_name
        if name == ("dask.array.core", "from_array"):
            # It copies what it could slice, lest its graph change with the array.
            from lazymem.dask import Blocks

            if part := find_part(self):
                return Blocks(*part)
        return self._checked(lambda: np.asarray(self).copy(order))

    def astype(self, dtype: Any, *args: Any, **kwargs: Any) -> Any:
        """Return an ordinary ndarray of another type; see `numpy.ndarray.astype`."""
        return self._checked(lambda: np.asarray(self).astype(dtype, *args, **kwargs))

    def item(self, *args: Any) -> Any:
        """Return an element as a Python scalar; see `numpy.ndarray.item`."""
        return self._checked(lambda: super(LazyArray, self).item(*args))

    def tolist(self) -> Any:
        """Return the elements as nested lists; see `numpy.ndarray.tolist`."""
        return self._checked(super().tolist)

    def tobytes(self, order: Any = "C") -> bytes:
        """Return the elements' bytes; see `numpy.ndarray.tobytes`."""
        result: bytes = self._checked(lambda: super(LazyArray, self).tobytes(order))
        return result

    def tofile(self, *args: Any, **kwargs: Any) -> None:
        """Write the elements to a file; see `numpy.ndarray.tofile`."""
        if self._binding is not None and self._binding.user_mode_only:
            self.load()
        self._checked(lambda: super(LazyArray, self).tofile(*args, **kwargs))

    def __reduce__(self) -> Any:
        return self.__reduce_ex__(2)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        found = find_part(self)
        if found is not None:
            return reference.reduce(*found)
        return self._checked(lambda: np.asarray(self).__reduce_ex__(protocol))

    def to_dask(self, chunks: Any = None) -> dask.array.Array:
        """Return a dask array whose blocks are read from the file by those who compute.

        Parameters
        ----------
        chunks : int, tuple or str, optional
            Shape of the blocks, as for `dask.array.from_array`.  Default: whole rows,
            or columns in Fortran order, of dask's ``array.chunk-size`` in all, since
            other blocks are spread over all of the file.

        Returns
        -------
        dask.array.Array
            Of the array's shape and dtype.  Its graph holds references of some hundred
            bytes; each block is read to memory of its own, which goes when dask lets go
            of it.

        Raises
        ------
        ImportError
            If dask is missing.
        ValueError
            If the file does not have the array's bytes: it is a copy, or was written
            to since the last snapshot or flush, or can't be filled on demand here.
        ClosedError
            If the store is closed.

        Notes
        -----
        Touches no page.  A block is of the state that the file has now, whatever
        happens to the store.  ``dask.array.from_array(a)`` is the same.
        """
        from lazymem.dask import from_lazy

        region = self._bound().region
        if region is not None and region.released:
            raise self._closed_error(region)
        return from_lazy(self, chunks)

    def _part(self, part: Part, keeper: Any) -> LazyArray:
        """Return a part of the whole array, which keeps its keeper alive."""
        binding = self._bound()
        memory = self.reshape(-1, order="A").view(np.uint8)
        array: LazyArray = np.ndarray.__new__(
            LazyArray, part.shape, part.dtype, memory.data, part.offset, part.strides
        )
        array._binding, binding.keeper = binding, keeper
        return array

    def _repr_html_(self) -> str | None:
        from lazymem import show

        return show.array(self)

    def __repr__(self) -> str:
        binding = self._binding
        if binding is None:
            return np.ndarray.__repr__(np.asarray(self))
        state = "loaded"
        if binding.region is not None:
            first, count = self._chunk_range()
            resident = binding.region.count_resident(first, count)
            state = f"{resident} of {count} chunks resident"
        kind = "LazyArray" if self.flags.writeable else "LazyArray, read-only"
        return f"<{kind} {binding.info.name!r}: {self.shape} {self.dtype}, {state}>"


def find_part(array: np.ndarray[Any, Any]) -> tuple[Origin, Part] | None:
    """Return where a file has an array's bytes, if it has them.

    Parameters
    ----------
    array : ndarray
        A LazyArray, or an ordinary array over the memory of one.
    """
    region = _region_of(array)
    if region is None or region.released or region.origin is None or array.size == 0:
        return None
    origin: Origin | None = region.origin()
    if origin is None:
        return None
    offset = address_of(array) - region.address
    form = array.shape, array.strides, array.dtype
    return origin, Part(region.object.name, offset, *form)


def _region_of(array: np.ndarray[Any, Any]) -> _engine.RegionHandle | None:
    if isinstance(array, LazyArray):
        return array._binding.region if array._binding else None
    while isinstance(array.base, np.ndarray):
        array = array.base
    return _engine.region_at(address_of(array))


def address_of(array: np.ndarray[Any, Any]) -> int:
    """Return where an array's first element is."""
    address: int = array.__array_interface__["data"][0]
    return address


_getitem = np.ndarray.__getitem__
_ARRAYS = frozenset((np.ndarray, list, LazyArray))
"""What makes an index an advanced one."""


def _reduction(name: str) -> Callable[..., Any]:
    """Make a method that runs on the plain array.

    numpy never lets go of the operands of a ufunc whose override raises.
    """
    method = getattr(np.ndarray, name)

    @wraps(method)
    def reduce(self: LazyArray, *args: Any, **kwargs: Any) -> Any:
        return self._checked(lambda: method(np.asarray(self), *args, **kwargs))

    return reduce


for _name in [
    "all",
    "any",
    "cumprod",
    "cumsum",
    "max",
    "mean",
    "min",
    "prod",
    "std",
    "sum",
    "trace",
    "var",
]:
    setattr(LazyArray, _name, _reduction(_name))


def _as_ndarray(x: Any) -> Any:
    return x.view(np.ndarray) if isinstance(x, LazyArray) else x


def _plain(result: Any) -> Any:
    """Make a LazyArray that belongs to no store an ordinary ndarray."""
    if type(result) is LazyArray and result._binding is None:
        return result.view(np.ndarray)
    return result


def bind(
    info: ObjectInfo,
    memory: Any,
    region: _engine.RegionHandle | None,
    *,
    user_mode_only: bool = False,
) -> LazyArray:
    """Return the array of an object over its memory."""
    # Through frombuffer(), which never lets anybody make read-only memory writable.
    flat = np.frombuffer(memory, np.uint8)
    order: Any = info.order
    array: LazyArray = np.ndarray.__new__(
        LazyArray, info.shape, info.dtype, buffer=flat.data, order=order
    )
    array._binding = Binding(info, region, flat.flags.writeable, user_mode_only)
    if "dask.tokenize" in sys.modules:
        from lazymem.dask import register

        register()
    return array


def closed_error(path: str, what: str, reason: str | None = None) -> ClosedError:
    """Return the error of a store, or of one of its arrays, used after its end."""
    error = ClosedError(
        f"{path}: {what}: {reason or 'the store is closed; open it again'}"
    )
    error.path = path
    return error
