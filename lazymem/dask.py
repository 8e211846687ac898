# SPDX-License-Identifier: BSD-3-Clause
"""Arrays for dask: who computes a block reads it.

A graph holds references.  A block is read through an opening of the store that lasts as
long as the reading: all of its memory is given back, and what dask holds is what dask
counts.  Nothing that is computed from a block needs the file any more.
"""

from __future__ import annotations

import pickle
import sys
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np

from lazymem import reference
from lazymem.array import LazyArray, find_part
from lazymem.extras import needs

if TYPE_CHECKING:
    import dask.array

    from lazymem.reference import Origin, Part

_PIECE_BYTES = 8 << 20
"""Copied before what they were copied from is given back."""
_DENSE = 2
"""A part spread over no more than so many times its bytes is filled on all cores."""


class Blocks:
    """An array by reference; indexing reads a part of it to memory of its own.

    Parameters
    ----------
    origin, part
        Where its bytes are.
    """

    def __init__(self, origin: Origin, part: Part) -> None:
        # What is read is given back, which nobody can do for others.
        self._origin, self._part = origin._replace(is_shared=False), part
        self.shape, self.dtype, self.ndim = part.shape, part.dtype, len(part.shape)

    def __getitem__(self, index: Any) -> Any:
        with reference.open_at(self._origin) as store:
            read = store[self._part.name]._part(self._part, store)[index]
            return _copy(read) if isinstance(read, LazyArray) else read

    def __dask_tokenize__(self) -> Any:
        return self._origin.token(self._part)


def _copy(array: LazyArray) -> np.ndarray[Any, Any]:
    """Copy an array, evicting it on the way: it takes its memory once, not twice."""
    span = sum(
        abs(s) * (n - 1) for n, s in zip(array.shape, array.strides, strict=True)
    )
    if span <= _DENSE * array.nbytes:
        array.load()
    copy = np.empty_like(array, subok=False)
    if array.ndim == 0:
        np.copyto(copy, array)
        return copy
    slowest = int(np.argmax(np.abs(array.strides)))
    source, target = array.swapaxes(0, slowest), copy.swapaxes(0, slowest)
    step = max(1, _PIECE_BYTES * len(source) // max(1, array.nbytes))
    for i in range(0, len(source), step):
        np.copyto(target[i : i + step], source[i : i + step])
        source[i : i + step].evict()
    return copy


def from_lazy(array: LazyArray, chunks: Any) -> dask.array.Array:
    """Do what :meth:`LazyArray.to_dask` says."""
    with needs("dask"):
        import dask.array
    part = find_part(array)
    if part is None:
        raise ValueError(
            f"array {array.object_name!r}: no file has its bytes, which dask's workers "
            "are to read: save them, by flush() or snapshot(), or give dask "
            "np.asarray(a)"
        )
    if chunks is None:
        slowest = int(np.argmax(np.abs(array.strides))) if array.ndim else 0
        chunks = tuple("auto" if i == slowest else -1 for i in range(array.ndim))
    return dask.array.from_array(Blocks(*part), chunks=chunks, inline_array=True)


# ---- what dask asks of arrays --------------------------------------------------------


def register() -> None:
    """Teach dask about arrays, and dask's processes, if this is one.

    For dask they are ordinary arrays otherwise: it reads all of one to name it, to
    tell its size, and to send it.
    """
    from dask.sizeof import sizeof
    from dask.tokenize import normalize_token

    normalize_token.register(LazyArray, _token)
    sizeof.register(LazyArray, sys.getsizeof)
    if "distributed" in sys.modules:
        from distributed.protocol import dask_serialize

        dask_serialize.register(LazyArray, _serialize)


def _token(array: LazyArray) -> Any:
    found = find_part(array)
    return found[0].token(found[1]) if found else uuid.uuid4().hex


def _serialize(array: LazyArray, context: Any = None) -> Any:
    """Send a pickle, which dask's way to receive an ndarray is ready for, too."""
    frames: list[Any] = [None]
    frames[0] = pickle.dumps(array, protocol=5, buffer_callback=frames.append)
    return {"pickle": True}, frames
