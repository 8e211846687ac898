# SPDX-License-Identifier: BSD-3-Clause
"""How each peer keeps an array of two dimensions in a file, and is asked about it.

Each does it in the way that its own documentation recommends.  Those that compress use
lz4, or zstd at level 3, behind a byte shuffle where they have one; chunks are bands of
rows of 1 MiB.  To add a peer, write a class, which says
what it does unlike an ndarray, and enter it in ``PEERS``.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import images
import numpy as np
from harness import MIB

import lazymem as lm

Array = np.ndarray[Any, Any]

_CHUNK_BYTES = MIB
_BLOCK_BYTES = MIB // 16
"""What blosc2 can unpack alone, in its chunks."""
_BAND_BYTES = 32 * MIB
"""What is added up at a time where nothing adds up the whole."""
_LEVEL = 3


def total_of(block: Array) -> float:
    """Add up an ndarray, in the quickest way for its type."""
    if block.dtype == bool:
        return float(np.count_nonzero(block))
    return float(block.sum())


def _chunk_shape(
    shape: tuple[int, ...], itemsize: int, nbytes: int = _CHUNK_BYTES
) -> tuple[int, int]:
    rows = max(1, nbytes // (shape[1] * itemsize))
    return min(rows, shape[0]), shape[1]


def _bands(shape: tuple[int, ...], itemsize: int) -> Iterator[slice]:
    """Return slices of rows that are some chunks each."""
    chunk_rows = _chunk_shape(shape, itemsize)[0]
    step = chunk_rows * max(1, _BAND_BYTES // (chunk_rows * shape[1] * itemsize))
    return (slice(i, min(i + step, shape[0])) for i in range(0, shape[0], step))


def _blosc_codec(itemsize: int) -> dict[str, Any]:
    shuffle = "shuffle" if itemsize > 1 else "bitshuffle"
    return {"cname": "zstd", "clevel": _LEVEL, "typesize": itemsize, "shuffle": shuffle}


def _files(path: Path) -> list[Path]:
    return [f for f in path.rglob("*") if f.is_file()] if path.is_dir() else [path]


class Peer:
    """A library, and how it does what is asked; the defaults are those of an ndarray.

    Attributes
    ----------
    how : str
        Its settings, in words.
    """

    packages: tuple[str, ...] = ("numpy",)
    """What it imports."""
    asked: tuple[str, ...] = ()
    """The questions it is asked; empty: all."""
    file_of = ""
    """The peer whose file it reads; empty: its own."""

    def __init__(self, how: str, **options: Any) -> None:
        self.how = how
        self.options = options

    def missing(self) -> str:
        """Return why it can't be used here; empty if it can, as far as is known."""
        absent = [name for name in self.packages if not harness.have(name)]
        return f"{' and '.join(absent)}: not installed" if absent else ""

    def load_packages(self) -> None:
        """Import what it needs, which is not what is to be measured."""
        for package in self.packages:
            importlib.import_module(package)

    def write(self, path: Path, array: Array) -> None:
        """Make the file, or the folder."""
        raise NotImplementedError

    def sync(self, path: Path) -> None:
        """Have it on the disk."""
        for file in _files(path):
            harness.sync(file)

    def disk_bytes(self, path: Path) -> int:
        """Return what it takes on the disk."""
        return sum(512 * file.stat().st_blocks for file in _files(path))

    @contextlib.contextmanager
    def attached(self, path: Path) -> Iterator[Path]:
        """Give the path to open, which is there until the end of the block."""
        yield path

    def drop(self, path: Path) -> None:
        """Make the next read of it come from the disk."""
        for file in _files(path):
            harness.drop_from_page_cache(file)

    def open(self, path: Path) -> Any:
        """Return what the questions are asked of."""
        raise NotImplementedError

    def element(self, a: Any, i: int, j: int) -> Any:
        """Return one element."""
        return a[i, j]

    def row(self, a: Any, i: int) -> Array:
        """Return one row."""
        return a[i]

    def column(self, a: Any, j: int) -> Array:
        """Return one column."""
        return a[:, j]

    def gather(self, a: Any, rows: Array, columns: Array) -> Array:
        """Return many elements, asked for at once, in any order."""
        return a[rows, columns]

    def total(self, a: Any) -> float:
        """Add up all."""
        return total_of(a)


# ---- raw, or packed as one -----------------------------------------------------------


class Memmap(Peer):
    def write(self, path: Path, array: Array) -> None:
        with path.open("wb") as file:
            np.save(file, array)

    def open(self, path: Path) -> Any:
        return np.load(path, mmap_mode="r")


class MemmapRandom(Memmap):
    file_of = "memmap"
    asked = ("elements", "gather", "rows")

    def open(self, path: Path) -> Any:
        array = super().open(path)
        array._mmap.madvise(mmap.MADV_RANDOM)
        return array


class Ndarray(Memmap):
    file_of = "memmap"

    def open(self, path: Path) -> Any:
        return np.load(path)


class FileSystem(Memmap):
    def __init__(self, how: str, kind: images.Kind) -> None:
        super().__init__(how)
        self.kind = kind

    def missing(self) -> str:
        return self.kind.missing()

    def write(self, path: Path, array: Array) -> None:
        self.kind.make(path, array)

    @contextlib.contextmanager
    def attached(self, path: Path) -> Iterator[Path]:
        file = self.kind.mount(path)
        try:
            yield file
        finally:
            images.unmount(path)

    def drop(self, path: Path) -> None:
        """Mount it anew, so that all that the system has of it goes."""
        images.unmount(path)
        super().drop(path)
        self.kind.mount(path)


class _Member:
    """The array of an npz file, unpacked when it is first asked for anything."""

    def __init__(self, path: Path) -> None:
        self._npz = np.load(path)

    @functools.cached_property
    def array(self) -> Array:
        return self._npz["x"]

    def __getitem__(self, index: Any) -> Any:
        return self.array[index]


class Npz(Peer):
    def write(self, path: Path, array: Array) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, x=array)

    def open(self, path: Path) -> Any:
        return _Member(path)

    def total(self, a: Any) -> float:
        return total_of(a.array)


class Safetensors(Peer):
    """What is opened is the file and a tensor of it, which takes slices only."""

    packages = ("safetensors",)
    asked = ("elements", "rows", "column", "sum", "pair")

    def write(self, path: Path, array: Array) -> None:
        from safetensors.numpy import save_file

        save_file({"x": array}, path)

    def open(self, path: Path) -> Any:
        from safetensors import safe_open

        file = safe_open(path, framework="numpy")
        return file, file.get_slice("x")

    def element(self, a: Any, i: int, j: int) -> Any:
        return a[1][i : i + 1, j : j + 1][0, 0]

    def row(self, a: Any, i: int) -> Array:
        return a[1][i : i + 1]

    def column(self, a: Any, j: int) -> Array:
        return a[1][:, j : j + 1]

    def total(self, a: Any) -> float:
        return total_of(a[0].get_tensor("x"))


# ---- in chunks, compressed -----------------------------------------------------------


class Zarr(Peer):
    packages = ("zarr",)

    def write(self, path: Path, array: Array) -> None:
        import zarr

        itemsize = array.dtype.itemsize
        made = zarr.create_array(
            path,
            shape=array.shape,
            dtype=array.dtype,
            chunks=_chunk_shape(array.shape, itemsize),
            compressors=zarr.codecs.BloscCodec(**_blosc_codec(itemsize)),
        )
        made[:] = array

    def open(self, path: Path) -> Any:
        import zarr

        return zarr.open_array(path, mode="r")

    def gather(self, a: Any, rows: Array, columns: Array) -> Array:
        return a.vindex[rows, columns]

    def total(self, a: Any) -> float:
        return sum(total_of(a[band]) for band in _bands(a.shape, a.dtype.itemsize))


class TensorStore(Peer):
    packages = ("tensorstore",)

    def _spec(self, path: Path) -> dict[str, Any]:
        return {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}

    def write(self, path: Path, array: Array) -> None:
        import tensorstore

        itemsize = array.dtype.itemsize
        grid = {"chunk_shape": _chunk_shape(array.shape, itemsize)}
        metadata = {
            "shape": array.shape,
            "data_type": array.dtype.name,
            "codecs": [{"name": "blosc", "configuration": _blosc_codec(itemsize)}],
            "chunk_grid": {"name": "regular", "configuration": grid},
        }
        spec = {**self._spec(path), "metadata": metadata}
        made = tensorstore.open(spec, create=True).result()
        for band in _bands(array.shape, itemsize):
            made[band].write(array[band]).result()

    def open(self, path: Path) -> Any:
        import tensorstore

        return tensorstore.open(self._spec(path), read=True).result()

    def element(self, a: Any, i: int, j: int) -> Any:
        return a[i, j].read().result()

    def row(self, a: Any, i: int) -> Array:
        return a[i].read().result()

    def column(self, a: Any, j: int) -> Array:
        return a[:, j].read().result()

    def gather(self, a: Any, rows: Array, columns: Array) -> Array:
        return a.vindex[rows, columns].read().result()

    def total(self, a: Any) -> float:
        """Add up each band while the next one is read."""
        total, reads = 0.0, []
        for band in _bands(a.shape, a.dtype.numpy_dtype.itemsize):
            reads.append(a[band].read())
            if len(reads) > 1:
                total += total_of(reads.pop(0).result())
        return total + sum(total_of(read.result()) for read in reads)


class Hdf5(Peer):
    packages = ("h5py", "hdf5plugin")

    def write(self, path: Path, array: Array) -> None:
        import h5py
        import hdf5plugin

        blosc2 = hdf5plugin.Blosc2
        codec = blosc2(cname="zstd", clevel=_LEVEL, filters=blosc2.SHUFFLE)
        chunks = _chunk_shape(array.shape, array.dtype.itemsize)
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=array, chunks=chunks, compression=codec)

    def open(self, path: Path) -> Any:
        import h5py

        return h5py.File(path)["x"]

    def gather(self, a: Any, rows: Array, columns: Array) -> Array:
        """Select points, which only its low-level API can, chunk after chunk."""
        import h5py

        points = np.stack([rows, columns], 1)[np.argsort(rows)]
        space, out = a.id.get_space(), np.empty(len(rows), a.dtype)
        space.select_elements(points.astype(np.uint64))
        a.id.read(h5py.h5s.create_simple(out.shape), space, out)
        return out

    def total(self, a: Any) -> float:
        bands = list(_bands(a.shape, a.dtype.itemsize))
        buffer = np.empty((bands[0].stop, a.shape[1]), a.dtype)
        total = 0.0
        for band in bands:
            block = buffer[: band.stop - band.start]
            a.read_direct(block, np.s_[band])
            total += total_of(block)
        return total


class Blosc2(Peer):
    packages = ("blosc2",)

    def write(self, path: Path, array: Array) -> None:
        import blosc2

        cparams = blosc2.CParams(
            codec=getattr(blosc2.Codec, self.options["codec"]),
            clevel=self.options["clevel"],
            typesize=array.dtype.itemsize,
            nthreads=len(os.sched_getaffinity(0)),
        )
        itemsize = array.dtype.itemsize
        blosc2.asarray(
            array,
            urlpath=str(path),
            mode="w",
            cparams=cparams,
            chunks=_chunk_shape(array.shape, itemsize),
            blocks=_chunk_shape(array.shape, itemsize, _BLOCK_BYTES),
        )

    def open(self, path: Path) -> Any:
        import blosc2

        return blosc2.open(str(path), mode="r", mmap_mode="r")

    def total(self, a: Any) -> float:
        return float(a.sum())


class LazyMem(Peer):
    packages = ("lazymem",)

    def write(self, path: Path, array: Array) -> None:
        lm.save(path, x=array, codec=self.options["codec"])

    def open(self, path: Path) -> Any:
        return lm.open(path)["x"]


class LazyMemShared(LazyMem):
    file_of = "lazymem_zstd"
    asked = ("pair",)

    def open(self, path: Path) -> Any:
        return lm.open(path, shared=True)["x"]


class LazyMemEvicting(LazyMem):
    file_of = "lazymem_zstd"
    asked = ("sum",)

    def total(self, a: Any) -> float:
        total = 0.0
        for band in _bands(a.shape, a.dtype.itemsize):
            total += total_of(a[band])
            a.evict(np.s_[band])
        return total


PEERS: dict[str, Peer] = {
    "ndarray": Ndarray("np.load before anything is asked: memory, not a file"),
    "memmap": Memmap("np.memmap, raw"),
    "memmap_random": MemmapRandom("np.memmap, raw, MADV_RANDOM"),
    "npz": Npz("np.load of a compressed npz; the array is kept"),
    "safetensors": Safetensors("safetensors, raw"),
    "erofs_lz4": FileSystem("np.memmap, EROFS, lz4, 64 KiB", images.EROFS_LZ4),
    "erofs_zstd": FileSystem("np.memmap, EROFS, zstd 3, 256 KiB", images.EROFS_ZSTD),
    "squashfs_zstd": FileSystem(
        "np.memmap, squashfs, zstd 3, 128 KiB", images.SQUASHFS
    ),
    "btrfs_zstd": FileSystem("np.memmap, btrfs, zstd 3", images.BTRFS),
    "zarr": Zarr("zarr 3, blosc zstd 3, 1 MiB"),
    "tensorstore": TensorStore("tensorstore, zarr 3, blosc zstd 3, 1 MiB"),
    "h5py": Hdf5("h5py, blosc2 zstd 3, 1 MiB"),
    "blosc2_lz4": Blosc2("blosc2, lz4, 1 MiB, blocks of 64 KiB", codec="LZ4", clevel=9),
    "blosc2_zstd": Blosc2(
        "blosc2, zstd 3, 1 MiB, blocks of 64 KiB", codec="ZSTD", clevel=2
    ),
    "lazymem_lz4": LazyMem("lazymem, lz4", codec="lz4"),
    "lazymem_zstd": LazyMem("lazymem, zstd 3", codec="zstd"),
    "lazymem_shared": LazyMemShared("lazymem, zstd 3, shared=True"),
    "lazymem_evicting": LazyMemEvicting(
        "lazymem, zstd 3, giving back what was added up"
    ),
}
