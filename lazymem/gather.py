# SPDX-License-Identifier: BSD-3-Clause
"""Which chunks an advanced index reads, found out from the index alone.

numpy gathers one element after the other, and so meets one absent chunk after the
other.  Whoever knows them beforehand can have them filled by all cores.

An index reads *spans*: bytes ``[start, start + span)`` in which no chunk is left out.
Dimensions that are sliced widen the span as long as the gaps stay below a chunk; from
one whose gaps are wider on, there are several spans for each index.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TypeAlias

    import numpy.typing as npt

    Chunks: TypeAlias = npt.NDArray[np.int64]
    """Numbers of chunks, ascending, each once."""
    Offsets: TypeAlias = npt.NDArray[np.int64]
    """Bytes from the begin of an object."""

CHUNKS_MAX = 1 << 16
"""That are named for one index: filling them takes seconds."""
_BLOCK = 1 << 15
"""Indices that are looked at together: they stay in the processor's cache."""
_FAR_MAX = 1 << 20
"""Spans for each index; more are not worth the arithmetic."""
_TABLE_MIN = 1 << 12
"""Chunks of which a table costs nothing, however few the indices are."""
_CHUNKS_AN_INDEX = 64
"""With more of them than that, sorting the indices is less work than such a table."""


class Layout(NamedTuple):
    """Where the elements of an array are, in an object of several chunks."""

    offset: int
    """Of the element at ``[0, 0, ...]``, in bytes from the begin of the object."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int
    chunk_bytes: int
    chunks: int
    """Of the object."""


class _Unknown(Exception):
    """An index of a kind not handled here, or one that numpy will refuse."""


class _Indices(NamedTuple):
    """An array of indices into one dimension, or into some that lie side by side."""

    values: npt.NDArray[Any]
    """Integers, or booleans, of which the places of true ones count."""
    length: int
    stride: int


class _Plan:
    """An index, taken to pieces."""

    def __init__(self, base: int) -> None:
        self.base = base
        self.slices: list[tuple[int, int]] = []
        """(Step in bytes, count)."""
        self.indices: list[_Indices] = []
        """They are broadcast against each other."""


def touched(layout: Layout, index: Any, most: int = CHUNKS_MAX) -> Chunks | None:
    """Return the chunks that ``array[index]`` reads, or None.

    Parameters
    ----------
    layout : Layout
        The array's.
    index : object
        As for `numpy.ndarray.__getitem__`.
    most : int, optional
        Chunks to return: the first ones.

    Returns
    -------
    (n,) int64 or None
        None where the index is not an advanced one, is out of bounds, or is of a kind
        that takes more work than it saves.

    Notes
    -----
    Costs some nanoseconds an index, and memory for a few blocks of them.
    """
    try:
        plan = _parse(layout, index)
        if not plan.indices or any(count == 0 for _, count in plan.slices):
            return None
        return _chunks(layout, plan, most)
    except _Unknown:
        return None


def taken(
    layout: Layout, indices: Any, axis: int | None, most: int = CHUNKS_MAX
) -> Chunks | None:
    """Return the chunks that ``array.take(indices, axis)`` reads, or None."""
    array, ndim = np.asarray(indices), len(layout.shape)
    if array.dtype.kind not in "iu":
        return None
    if not _is_contiguous(layout.shape, layout.strides, layout.itemsize):
        return None  # numpy copies all of it first
    if axis is None:
        shape, strides = (math.prod(layout.shape),), (layout.itemsize,)
        return touched(layout._replace(shape=shape, strides=strides), array, most)
    if not -ndim <= axis < ndim:
        return None
    return touched(layout, (*(slice(None),) * (axis % ndim), array), most)


def _is_contiguous(
    shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int
) -> bool:
    """Return whether elements lie side by side, in the order of C."""
    for length, stride in zip(reversed(shape), reversed(strides)):
        if length != 1 and stride != itemsize:
            return False
        itemsize *= length
    return True


# ---- what an index says --------------------------------------------------------------


def _parse(layout: Layout, index: Any) -> _Plan:
    parts = [_part(part) for part in (index if type(index) is tuple else (index,))]
    missing = len(layout.shape) - sum(map(_dims, parts))
    ellipses = sum(part is ... for part in parts)
    if missing < 0 or ellipses > 1:
        raise _Unknown
    if not ellipses:
        parts.append(...)
    plan, dim = _Plan(layout.offset), 0
    for part in parts:
        if part is None:
            continue
        dims = missing if part is ... else _dims(part)
        shape = layout.shape[dim : dim + dims]
        strides = layout.strides[dim : dim + dims]
        dim += dims
        if part is ...:
            plan.slices += zip(strides, shape)
        elif isinstance(part, slice):
            start, stop, step = part.indices(shape[0])
            plan.base += start * strides[0]
            plan.slices.append((step * strides[0], len(range(start, stop, step))))
        elif isinstance(part, int):
            if not -shape[0] <= part < shape[0]:
                raise _Unknown
            plan.base += part % shape[0] * strides[0]
        elif part.dtype.kind == "b":
            plan.indices += _mask(part, shape, strides)
        else:
            plan.indices.append(_Indices(part, shape[0], strides[0]))
    return plan


def _part(part: Any) -> Any:
    """Return a part of an index as None, ..., a slice, an int, or an array."""
    if part is None or part is ... or isinstance(part, slice):
        return part
    if isinstance(part, (np.ndarray, list)):
        array = np.asarray(part)
        is_mask = array.dtype.kind == "b" and array.ndim > 0
        if (array.dtype.kind in "iu" or is_mask) and array.size > 0:
            return array
    elif isinstance(part, SupportsIndex) and not isinstance(part, (bool, np.bool_)):
        return part.__index__()
    raise _Unknown


def _dims(part: Any) -> int:
    if part is None or part is ...:
        return 0
    return part.ndim if isinstance(part, np.ndarray) and part.dtype.kind == "b" else 1


def _mask(
    mask: npt.NDArray[np.bool_], shape: tuple[int, ...], strides: tuple[int, ...]
) -> list[_Indices]:
    if mask.shape != shape:
        raise _Unknown
    if _is_contiguous(shape, strides, strides[-1]):
        return [_Indices(mask.reshape(-1), mask.size, strides[-1])]
    return [_Indices(*each) for each in zip(np.nonzero(mask), shape, strides)]


# ---- spans ---------------------------------------------------------------------------


def _chunks(layout: Layout, plan: _Plan, most: int) -> Chunks:
    base, span, chunk_bytes = plan.base, layout.itemsize, layout.chunk_bytes
    main, others = _joined(plan.indices)
    far = np.zeros(1, np.int64)
    unit = math.gcd(chunk_bytes, *(each.stride for each in main))
    for step, count in sorted(_upward(plan.slices), key=lambda each: abs(each[0])):
        base += min(step, 0) * (count - 1)
        if abs(step) - span < chunk_bytes:
            span += abs(step) * (count - 1)
        else:
            unit = math.gcd(unit, step)
            far = _sums(far, np.arange(count) * abs(step))
    for group in sorted(others, key=lambda group: max(abs(x.stride) for x in group)):
        starts = np.unique(np.concatenate(list(_starts(group, 0))))
        base += int(starts[0])
        starts -= starts[0]
        if len(starts) == 1 or int(np.diff(starts).max()) - span < chunk_bytes:
            span += int(starts[-1])
        else:
            far = _sums(far, starts)
        unit = math.gcd(unit, *(each.stride for each in group))
    unit = math.gcd(unit, base)
    blocks = _starts(main, base) if main else iter([np.array([base])])
    spans = (starts for block in blocks for starts in _each_sum(block, far))
    count = max(each.values.size for each in main) * len(far) if main else len(far)
    shift = chunk_bytes.bit_length() - 1
    firsts, lasts = (_ChunkSet(layout.chunks, count) for _ in range(2))
    for starts in spans:
        if span > unit:  # some may end in another chunk
            lasts.add((starts + (span - 1)) >> shift)
        starts >>= shift
        firsts.add(starts)
    chunks = _widened(firsts.ascending(), ((span - 1) >> shift) + 1, most)
    return np.union1d(chunks, lasts.ascending())[:most] if span > unit else chunks


def _upward(slices: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    return ((step, count) for step, count in slices if step != 0 and count > 1)


def _joined(parts: list[_Indices]) -> tuple[list[_Indices], list[list[_Indices]]]:
    """Divide arrays of indices in those to be added up, and groups to be crossed.

    The first become equally long, and so do those of a group.  Each sum of one group
    meets each of the others, as :func:`numpy.ix_` makes them.
    """
    if len(parts) == 1:
        return [parts[0]._replace(values=parts[0].values.reshape(-1))], []
    arrays = [
        each.values.nonzero()[0] if each.values.dtype.kind == "b" else each.values
        for each in parts
    ]
    parts = [each._replace(values=values) for each, values in zip(parts, arrays)]
    try:
        shape = np.broadcast_shapes(*(array.shape for array in arrays))
    except ValueError:
        raise _Unknown from None
    size, count = sum(array.size for array in arrays), math.prod(shape)
    if count == 0:
        raise _Unknown
    if count <= 2 * size + _BLOCK:
        return [
            each._replace(values=np.broadcast_to(each.values, shape).reshape(-1))
            for each in parts
        ], []
    groups: dict[tuple[int, ...], list[_Indices]] = {}
    for each in parts:  # that are as long along the same axes
        axes = tuple(i for i, n in enumerate(each.values.shape[::-1]) if n != 1)
        flat = each._replace(values=each.values.reshape(-1))
        groups.setdefault(axes, []).append(flat)
    if count != math.prod(group[0].values.size for group in groups.values()):
        raise _Unknown
    return [], list(groups.values())


def _starts(parts: list[_Indices], base: int) -> Iterator[Offsets]:
    """Yield what indices mean in bytes, block by block."""
    for first in range(0, parts[0].values.size, _BLOCK):
        starts = _block(parts[0], first)
        starts += base
        for each in parts[1:]:
            starts += _block(each, first)
        yield starts


def _block(part: _Indices, first: int) -> Offsets:
    values, length, stride = part
    block = values[first : first + _BLOCK]
    if block.dtype.kind == "b":
        return (np.flatnonzero(block) + first) * stride
    block = block.astype(np.int64, copy=False)
    low = block.min()
    if low < -length or block.max() >= length:
        raise _Unknown
    if low < 0:
        block = np.where(block < 0, block + length, block)
    return block * stride


def _sums(a: Offsets, b: Offsets) -> Offsets:
    if len(a) * len(b) > _FAR_MAX:
        raise _Unknown
    return (a[:, None] + b).reshape(-1)


def _each_sum(block: Offsets, far: Offsets) -> Iterator[Offsets]:
    """Yield the sums of each start of a block and each far offset, by blocks."""
    if len(far) == 1:
        yield block  # far[0] is 0
        return
    at_once = max(1, _BLOCK // max(1, len(block)))
    for first in range(0, len(far), at_once):
        yield (block[:, None] + far[first : first + at_once]).reshape(-1)


# ---- chunks --------------------------------------------------------------------------


class _ChunkSet:
    """A set of chunks: a table of all there are, or a list.

    Parameters
    ----------
    chunks : int
        All there are.
    count : int
        How many may be added, some of them again and again.
    """

    def __init__(self, chunks: int, count: int) -> None:
        has_table = chunks <= max(_TABLE_MIN, _CHUNKS_AN_INDEX * count)
        self._table = np.zeros(chunks, np.bool_) if has_table else None
        self._parts: list[Chunks] = []

    def add(self, chunks: npt.NDArray[np.int64]) -> None:
        if self._table is not None:
            self._table[chunks] = True
        else:
            self._parts.append(np.unique(chunks))

    def ascending(self) -> Chunks:
        if self._table is not None:
            return np.flatnonzero(self._table)
        return np.unique(np.concatenate(self._parts))


def _widened(firsts: Chunks, width: int, most: int) -> Chunks:
    """Return the chunks of runs of `width` that begin at `firsts`: the first ones."""
    if width == 1 or len(firsts) == 0:
        return firsts[:most]
    # Of each run what the one before does not have.
    starts = firsts.copy()
    np.maximum(starts[1:], firsts[:-1] + width, out=starts[1:])
    return chunks_of_runs(starts, firsts + width - starts, most)


def chunks_of_runs(
    firsts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], most: int
) -> Chunks:
    """Return the chunks of runs, which ascend and have no chunk in common.

    Parameters
    ----------
    firsts, counts : (n,) int64
        The first chunk of each, and how many there are.
    most : int
        Chunks to return: the first ones.
    """
    counts = np.minimum(counts, most)
    ends = np.cumsum(counts)
    runs = int(np.searchsorted(ends, most)) + 1  # that have as many chunks
    firsts, counts, ends = firsts[:runs], counts[:runs], ends[:runs]
    each = np.repeat(firsts - (ends - counts), counts)
    chunks: Chunks = np.arange(len(each)) + each
    return chunks[:most]
