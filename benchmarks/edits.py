# SPDX-License-Identifier: BSD-3-Clause
"""How each peer keeps an array of rows on the disk, and changes some rows of it.

A peer that can change a file in place opens it, writes the rows, and makes them durable
by an fsync of that file.  One that can't has the array in memory already and writes all
of it to a new file, durable likewise.  Folders of many files are left to the system, as
their libraries leave them: what they took is without the disk.  All that compress do so
in chunks of two rows, with zstd at level 3 and the byte shuffle where they have it;
joblib takes LZ4, its quickest.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import numpy as np

import lazymem as lm

Array = np.ndarray[Any, Any]
Rows = Any
"""A slice, or an ascending array of row numbers."""

_CHUNK_ROWS = 2
_LEVEL = 3


@dataclass(frozen=True)
class Peer:
    """A library, and how it does the job."""

    packages: tuple[str, ...]
    """What it imports; the first one may be missing."""
    create: Callable[[Path, Array], None]
    edit: Callable[[Path, Any, Rows, Array], None]
    """Write a block to some rows."""
    read: Callable[[Path, Rows], Array]
    keeps_history: bool = False
    load: Callable[[Path], Any] = lambda path: None
    """What the program has in memory before the edit."""
    least: int = 0
    """Major version of the first package that is needed."""

    def is_here(self) -> bool:
        """Return whether it is installed."""
        if not harness.have(self.packages[0]):
            return False
        version = importlib.metadata.version(self.packages[0])
        return int(version.partition(".")[0]) >= self.least

    def import_all(self) -> None:
        """Import what it needs, which is not what is to be measured."""
        os.environ["ICECHUNK_LOG"] = "error"  # it warns on stdout, where results go
        for package in self.packages:
            importlib.import_module(package)


def disk_bytes(path: Path) -> int:
    """Return what a file, or a folder with all in it, takes on the disk."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(512 * file.stat().st_blocks for file in files if file.is_file())


def written_bytes() -> int:
    """Return what this process has given to the disk so far."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("write_bytes:"):
            return int(line.split()[1])
    raise KeyError("write_bytes")


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a new file and let it take the place of the old one."""
    fresh = path.with_name(f"new-{path.name}")
    write(fresh)
    _sync(fresh)
    fresh.replace(path)


# ---- one chunked file, changed in place ----------------------------------------------


def _lazymem_edit(path: Path, _: Any, rows: Rows, block: Array) -> None:
    with lm.open(path, "r+") as store:
        store["x"][rows] = block
        store.snapshot()


def _lazymem_read(path: Path, rows: Rows) -> Array:
    with lm.open(path) as store:
        return np.array(store["x"][rows])


def _hdf5_create(path: Path, array: Array) -> None:
    import h5py
    import hdf5plugin

    with h5py.File(path, "w") as file:
        file.create_dataset(
            "x",
            data=array,
            chunks=(_CHUNK_ROWS, array.shape[1]),
            compression=hdf5plugin.Blosc(
                cname="zstd", clevel=_LEVEL, shuffle=hdf5plugin.Blosc.SHUFFLE
            ),
        )


def _hdf5_edit(path: Path, _: Any, rows: Rows, block: Array) -> None:
    import h5py
    import hdf5plugin  # noqa: F401, registers the codec

    with h5py.File(path, "r+") as file:
        _set_rows(file["x"], rows, block)
    _sync(path)


def _hdf5_read(path: Path, rows: Rows) -> Array:
    import h5py
    import hdf5plugin  # noqa: F401, registers the codec

    with h5py.File(path) as file:
        return np.array(file["x"][rows])


def _blosc2_create(path: Path, array: Array) -> None:
    import blosc2

    cparams = blosc2.CParams(codec=blosc2.Codec.ZSTD, clevel=_LEVEL)
    chunks = (_CHUNK_ROWS, array.shape[1])
    blosc2.asarray(array, urlpath=str(path), mode="w", chunks=chunks, cparams=cparams)


def _blosc2_edit(path: Path, _: Any, rows: Rows, block: Array) -> None:
    import blosc2

    _set_rows(blosc2.open(str(path), mode="a"), rows, block)
    _sync(path)


def _blosc2_read(path: Path, rows: Rows) -> Array:
    import blosc2

    return np.array(blosc2.open(str(path), mode="r")[rows])


def _set_rows(dataset: Any, rows: Rows, block: Array) -> None:
    """Write row by row where that is quicker than the library's own way."""
    if isinstance(rows, slice):
        dataset[rows] = block
        return
    for i, row in zip(rows.tolist(), block):
        dataset[i] = row


# ---- a file for each chunk -----------------------------------------------------------


def _zarr_create_in(store: Any, array: Array) -> None:
    import zarr

    made = zarr.create_array(
        store,
        name="x",
        shape=array.shape,
        chunks=(_CHUNK_ROWS, array.shape[1]),
        dtype=array.dtype,
        compressors=zarr.codecs.BloscCodec(
            cname="zstd", clevel=_LEVEL, shuffle="shuffle", typesize=4
        ),
    )
    made[:] = array


def _zarr_edit_in(store: Any, rows: Rows, block: Array) -> None:
    import zarr

    array = zarr.open_array(store, path="x", mode="r+")
    if isinstance(rows, slice):
        array[rows] = block
    else:
        array.oindex[rows] = block


def _zarr_read_in(store: Any, rows: Rows) -> Array:
    import zarr

    array = zarr.open_array(store, path="x", mode="r")
    return np.array(array[rows] if isinstance(rows, slice) else array.oindex[rows])


def _icechunk(path: Path) -> Any:
    import icechunk

    return icechunk.local_filesystem_storage(str(path))


def _icechunk_create(path: Path, array: Array) -> None:
    import icechunk

    session = icechunk.Repository.create(_icechunk(path)).writable_session("main")
    _zarr_create_in(session.store, array)
    session.commit("all")


def _icechunk_edit(path: Path, _: Any, rows: Rows, block: Array) -> None:
    import icechunk

    session = icechunk.Repository.open(_icechunk(path)).writable_session("main")
    _zarr_edit_in(session.store, rows, block)
    session.commit("some rows")


def _icechunk_read(path: Path, rows: Rows) -> Array:
    import icechunk

    session = icechunk.Repository.open(_icechunk(path)).readonly_session("main")
    return _zarr_read_in(session.store, rows)


# ---- raw, and whole ------------------------------------------------------------------


def _memmap_edit(path: Path, _: Any, rows: Rows, block: Array) -> None:
    array = np.load(path, mmap_mode="r+")
    array[rows] = block
    array.flush()


def _mapped_rows(path: Path, rows: Rows) -> Array:
    return np.array(np.load(path, mmap_mode="r")[rows])


def _npy_create(path: Path, array: Array) -> None:
    with path.open("wb") as file:
        np.save(file, array)


def _npy_edit(path: Path, array: Array, rows: Rows, block: Array) -> None:
    array[rows] = block
    _replace(path, lambda fresh: _npy_create(fresh, array))


def _joblib_dump(path: Path, array: Array) -> None:
    import joblib

    joblib.dump(array, path, compress=("lz4", 1))


def _joblib_load(path: Path) -> Array:
    import joblib

    return joblib.load(path)


def _joblib_edit(path: Path, array: Array, rows: Rows, block: Array) -> None:
    array[rows] = block
    _replace(path, lambda fresh: _joblib_dump(fresh, array))


PEERS = {
    "lazymem, snapshot": Peer(
        ("lazymem",),
        lambda path, array: lm.save(path, x=array),
        _lazymem_edit,
        _lazymem_read,
        keeps_history=True,
    ),
    "icechunk, commit": Peer(
        ("icechunk", "zarr"),
        _icechunk_create,
        _icechunk_edit,
        _icechunk_read,
        keeps_history=True,
        least=1,
    ),
    "zarr 3": Peer(
        ("zarr",),
        _zarr_create_in,
        lambda path, _, rows, block: _zarr_edit_in(path, rows, block),
        _zarr_read_in,
        least=3,
    ),
    "h5py, blosc": Peer(("hdf5plugin", "h5py"), _hdf5_create, _hdf5_edit, _hdf5_read),
    "blosc2": Peer(("blosc2",), _blosc2_create, _blosc2_edit, _blosc2_read),
    "np.save of all": Peer(
        ("numpy",), _npy_create, _npy_edit, _mapped_rows, load=np.load
    ),
    "joblib.dump of all, lz4": Peer(
        ("joblib",),
        _joblib_dump,
        _joblib_edit,
        lambda path, rows: _joblib_load(path)[rows],
        load=_joblib_load,
    ),
    "np.memmap, raw": Peer(("numpy",), _npy_create, _memmap_edit, _mapped_rows),
}
