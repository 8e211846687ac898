# SPDX-License-Identifier: BSD-3-Clause
"""Arrays that are stored in blocks of their own, and read and written by slices.

A store's bytes are in order, a chunk of another format holds a piece of many rows.  So
whole rows of chunks are read where they fit into some blocks of memory; where they
don't, a chunk is decoded as often as its rows are read.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lazymem import sources
from lazymem.sources import Bytes, as_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    import lazymem as lm

Index = tuple[slice, ...]

_SLAB_BYTES = 4 * sources.BLOCK_BYTES
"""Most that is read at once for the sake of whole chunks."""
CHUNK_BYTES = 1 << 20
"""Of the chunks that are written."""


def sliced_blocks(
    read: Callable[[Index], Any],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    chunks: tuple[int, ...] | None,
) -> Iterator[Bytes]:
    """Read an array by slices, its bytes in order C.

    Parameters
    ----------
    read : callable
        Returns the part at some slices, one for each axis.
    shape : tuple of int
        Of the array.
    dtype : dtype
        Of the array.
    chunks : tuple of int, optional
        Shape of the chunks in which it is stored.
    """
    depth, rows = _tile(shape, dtype.itemsize, sources.BLOCK_BYTES)
    if shape and chunks is not None:
        row_bytes = math.prod(shape[depth + 1 :]) * dtype.itemsize
        whole = min(chunks[depth], shape[depth])
        if rows >= whole:
            rows -= rows % whole
        elif whole * row_bytes <= _SLAB_BYTES:
            rows = whole
    for index in _tiles(shape, depth, rows):
        yield as_bytes(np.ascontiguousarray(read(index), dtype))


def slabs(
    store: lm.Store, info: lm.ObjectInfo
) -> Iterator[tuple[Index, npt.NDArray[Any]]]:
    """Decode an object piece by piece, each with its place in the array.

    Each piece is a chunk of the shape that `chunk_shape` returns.
    """
    shape = _stored_shape(info)
    depth, rows = _tile(shape, info.dtype.itemsize, CHUNK_BYTES)
    blocks, rest = store.blocks(info.name), memoryview(b"")
    for index in _tiles(shape, depth, rows):
        slab = np.empty([part.stop - part.start for part in index], info.dtype)
        want = as_bytes(slab).data
        while want:
            rest = rest or next(blocks)
            count = min(len(want), len(rest))
            want[:count] = rest[:count]
            want, rest = want[count:], rest[count:]
        yield (index, slab) if info.order == "C" else (index[::-1], slab.T)


def chunk_shape(info: lm.ObjectInfo) -> tuple[int, ...]:
    """Return the shape of chunks of CHUNK_BYTES whose bytes are a run of the object."""
    shape = _stored_shape(info)
    if not shape:
        return ()
    depth, rows = _tile(shape, info.dtype.itemsize, CHUNK_BYTES)
    chunk = (*(1 for _ in shape[:depth]), rows, *shape[depth + 1 :])
    return chunk if info.order == "C" else chunk[::-1]


def _stored_shape(info: lm.ObjectInfo) -> tuple[int, ...]:
    return info.shape if info.order == "C" else info.shape[::-1]


def _tile(shape: tuple[int, ...], itemsize: int, nbytes: int) -> tuple[int, int]:
    """Return an axis, and how many rows along it take at most so many bytes."""
    row_bytes = math.prod(shape) * itemsize
    for depth, extent in enumerate(shape):
        row_bytes //= extent
        if row_bytes <= nbytes or depth == len(shape) - 1:
            return depth, max(1, min(extent, nbytes // row_bytes))
    return 0, 1


def _tiles(shape: tuple[int, ...], depth: int, rows: int) -> Iterator[Index]:
    """Cut an array, which is not empty, into runs of rows along an axis."""
    if not shape:
        yield ()
        return
    tail = [slice(0, extent) for extent in shape[depth + 1 :]]
    for outer in np.ndindex(*shape[:depth]):
        head = [slice(i, i + 1) for i in outer]
        for start in range(0, shape[depth], rows):
            stop = min(start + rows, shape[depth])
            yield (*head, slice(start, stop), *tail)
