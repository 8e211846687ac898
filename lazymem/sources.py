# SPDX-License-Identifier: BSD-3-Clause
"""Where the data of a save comes from: arrays, ``.npy`` and ``.npz`` files.

A :class:`Source` gives an array's bytes in blocks, so that packing needs memory for a
block and not for the array.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

if TYPE_CHECKING:
    import io
    from contextlib import ExitStack

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


# ---- arrays --------------------------------------------------------------------------


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


# ---- files ---------------------------------------------------------------------------


def from_npy(file: IO[bytes], path: str, *, can_peek: bool) -> Source:
    """Take an open ``.npy`` file, read from where it stands.

    Raises
    ------
    ValueError
        If it is no ``.npy`` file, or ends before its data do.
    """
    try:
        shape, is_fortran, dtype = _npy_header(file)
    except ValueError as exc:
        raise ValueError(f"{path}: {exc}") from None
    nbytes = math.prod(shape) * dtype.itemsize
    peek = None
    if can_peek:
        start = file.tell()

        def peek(at: int, count: int) -> Bytes:
            here = file.tell()
            file.seek(start + at)
            data = np.frombuffer(file.read(count), np.uint8)
            file.seek(here)
            return data

    order = "F" if is_fortran and len(shape) > 1 else "C"
    return Source(shape, dtype, order, lambda: _file_blocks(file, nbytes, path), peek)


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version in readers:
        return readers[version](file)
    if version == (3, 0):  # as 2.0, but in UTF-8, which numpy offers no reader for
        import ast

        length = int.from_bytes(file.read(4), "little")
        header = ast.literal_eval(file.read(length).decode("utf-8"))
        dtype = np.lib.format.descr_to_dtype(header["descr"])
        return header["shape"], header["fortran_order"], dtype
    raise ValueError(f"npy format version {version} is not known")


def _file_blocks(file: IO[bytes], nbytes: int, path: str) -> Iterator[Bytes]:
    buffer = np.empty(min(nbytes, BLOCK_BYTES), np.uint8)
    done = 0
    while done < nbytes:
        want = buffer.data[: min(BLOCK_BYTES, nbytes - done)]
        got = 0
        while got < len(want):
            count = cast("io.BufferedIOBase", file).readinto(want[got:])
            if not count:
                raise ValueError(
                    f"{path}: the file ends after {done + got} of {nbytes} bytes "
                    "of data"
                )
            got += count
        yield buffer[:got]
        done += got


def _open_path(path: str, stack: ExitStack) -> dict[str, Source]:
    stem = os.path.splitext(os.path.basename(path))[0]
    import zipfile  # not for those who only read

    if zipfile.is_zipfile(path):
        archive = stack.enter_context(zipfile.ZipFile(path))
        sources = {}
        for member in archive.namelist():
            if member.endswith(".npy"):
                file = stack.enter_context(archive.open(member))
                sources[member[:-4]] = from_npy(
                    file, f"{path}: {member}", can_peek=False
                )
        return sources
    file = stack.enter_context(open(path, "rb"))
    return {stem: from_npy(file, path, can_peek=True)}


# ---- what a user may give ------------------------------------------------------------


def collect(
    arrays: Any, named: Mapping[str, Any], stack: ExitStack
) -> dict[str, Source]:
    """Return the sources of what was given to `save`, by name.

    Parameters
    ----------
    arrays : mapping, array, path, or sequence of paths
        As `lazymem.save` documents it.
    named : mapping
        The keyword arguments.
    stack : contextlib.ExitStack
        Keeps the files open.
    """
    found: dict[str, Source] = {}

    def add(name: str, source: Source) -> None:
        if not name:
            raise ValueError("an object's name must not be empty")
        if name in found:
            raise ValueError(f"two objects are named {name!r}")
        check_dtype(source.dtype, name)
        found[name] = source

    def add_paths(path: Any) -> None:
        for name, source in _open_path(os.fspath(path), stack).items():
            add(name, source)

    if arrays is None:
        pass
    elif isinstance(arrays, Mapping):
        named = {**arrays, **named}
    elif isinstance(arrays, (str, os.PathLike)):
        add_paths(arrays)
    elif isinstance(arrays, (list, tuple)) and all(
        isinstance(item, (str, os.PathLike)) for item in arrays
    ):
        for item in arrays:
            add_paths(item)
    else:
        add("arr_0", from_value(arrays, "arr_0", stack))
    for name, value in named.items():
        if not isinstance(name, str):
            raise TypeError(f"an object's name must be a str, not {name!r}")
        add(name, from_value(value, name, stack))
    return found


def from_value(value: Any, name: str, stack: ExitStack) -> Source:
    """Take what was given as one array: array_like, or the path of a ``.npy`` file."""
    if isinstance(value, (str, os.PathLike)):
        sources = _open_path(os.fspath(value), stack)
        if len(sources) != 1:
            raise ValueError(
                f"object {name!r}: {value} holds {len(sources)} arrays, not one"
            )
        return next(iter(sources.values()))
    array = value if isinstance(value, np.ndarray) else np.asarray(value)
    check_dtype(array.dtype, name)
    return from_array(array)
