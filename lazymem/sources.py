# SPDX-License-Identifier: BSD-3-Clause
"""What is stored as one object: an array in memory, or a part of a file.

A :class:`Source` gives an array's bytes in blocks, so that packing needs memory for a
block and not for the array.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy.typing as npt

Bytes: TypeAlias = "npt.NDArray[np.uint8]"

BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Source:
    """An array to be stored."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: str
    blocks: Callable[[], Iterator[Bytes]]
    """Makes an iterator over the array's bytes, in its order."""
    peek: Callable[[int, int], Bytes] | None = None
    """Returns bytes ``(offset, nbytes)``, for a look at the data; None: can't."""
    attrs: Mapping[str, Any] = field(default_factory=dict)
    """JSON attributes that come with it."""

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def check_dtype(dtype: np.dtype[Any], name: str) -> None:
    """Refuse what can't be stored as bytes.

    Raises
    ------
    TypeError
        If the dtype holds references to Python objects or to other memory.
    """
    if dtype.hasobject or dtype.char == "T":
        raise TypeError(
            f"object {name!r}: dtype {dtype} holds references to Python objects, which "
            "a store can't keep; convert it, for example with astype('U')"
        )


def from_array(array: npt.NDArray[Any]) -> Source:
    """Take an array in memory, or a memory map."""
    if isinstance(array, np.ma.MaskedArray) and array.mask is not np.ma.nomask:
        raise TypeError(
            "masked arrays have two parts: save a.filled() or a.data and a.mask"
        )
    mapped = _memmap_of(array)
    array = array.view(np.ndarray)
    order = "C"
    if array.flags.f_contiguous and not array.flags.c_contiguous:
        array, order = array.T, "F"
    shape = array.shape if order == "C" else array.shape[::-1]
    if not array.flags.c_contiguous:
        return Source(shape, array.dtype, order, lambda: _gathered_blocks(array))
    flat = as_bytes(array)
    blocks: Callable[[], Iterator[Bytes]]
    if mapped is not None:
        blocks = partial(_mapped_blocks, flat, mapped)
    else:
        blocks = partial(iter, (flat,))
    return Source(shape, array.dtype, order, blocks, lambda at, n: flat[at : at + n])


def as_bytes(array: npt.NDArray[Any]) -> Bytes:
    """Return the bytes of a C-contiguous array, without a copy."""
    if array.nbytes == 0:
        return np.empty(0, np.uint8)
    return array.reshape(-1).view(np.uint8)


def _gathered_blocks(array: npt.NDArray[Any]) -> Iterator[Bytes]:
    """Copy a strided array together, block by block along its first axes."""
    if array.nbytes <= BLOCK_BYTES or array.ndim == 0:
        yield as_bytes(np.ascontiguousarray(array))
        return
    item_bytes = array.nbytes // len(array)
    if item_bytes > BLOCK_BYTES:
        for item in array:
            yield from _gathered_blocks(item)
        return
    step = max(1, BLOCK_BYTES // item_bytes)
    for i in range(0, len(array), step):
        yield as_bytes(np.ascontiguousarray(array[i : i + step]))


def _memmap_of(array: Any) -> np.memmap[Any, Any] | None:
    """Find the memory map that an array looks at, if its pages may be dropped."""
    while array is not None:
        if isinstance(array, np.memmap):
            # Pages of a private map ("c") may hold changes that no file has.
            return array if array.mode in ("r", "r+", "w+") else None
        array = getattr(array, "base", None)
    return None


def _mapped_blocks(flat: Bytes, mapped: np.memmap[Any, Any]) -> Iterator[Bytes]:
    """Give the pages of a mapped file back as soon as they are packed."""
    pages = cast("mmap.mmap", mapped._mmap)  # type: ignore[attr-defined]
    start = np.frombuffer(pages, np.uint8).ctypes.data
    first = flat.ctypes.data - start
    for at in range(0, flat.nbytes, BLOCK_BYTES):
        block = flat[at : at + BLOCK_BYTES]
        yield block
        low = -(-(first + at) // mmap.PAGESIZE) * mmap.PAGESIZE
        high = (first + at + block.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if high > low:
            pages.madvise(mmap.MADV_DONTNEED, low, high - low)
