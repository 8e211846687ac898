# SPDX-License-Identifier: BSD-3-Clause
"""Files of other formats: each is read, and some are written, by its own library.

A format is a module here.  Its ``open_file(path, stack)`` returns :class:`Contents`,
whose sources read the file block by block while `stack` keeps it open.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from lazymem.errors import FormatError
from lazymem.formats.contents import using

if TYPE_CHECKING:
    from contextlib import ExitStack

    from lazymem.formats.contents import Contents

_MAGIC = {
    b"\x93NUMPY": "npy",
    b"PK\3\4": "npz",
    b"PK\5\6": "npz",
    b"\x89HDF\r\n\x1a\n": "hdf5",
    b"PAR1": "arrow",
    b"ARROW1": "arrow",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",
    b"MM\0+": "tiff",
}
_SUFFIXES = {
    ".npy": "npy",
    ".npz": "npz",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".nc": "hdf5",
    ".mat": "hdf5",
    ".zarr": "zarr",
    ".safetensors": "safetensors",
    ".parquet": "arrow",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".tif": "tiff",
    ".tiff": "tiff",
}


def open_file(path: str, stack: ExitStack) -> Contents:
    """Open a file of a known format.

    Parameters
    ----------
    path : str
        The file; of a Zarr store also the folder.
    stack : contextlib.ExitStack
        Keeps it open.

    Raises
    ------
    FormatError
        If the file is damaged, or of no known format.
    ImportError
        If the format's library is not installed.
    """
    os.stat(path)  # the libraries say in many ways that there is none
    found = format_of(path)
    if found is None:
        raise FormatError(
            f"{path}: of no known format: .npy, .npz, HDF5, Zarr, safetensors, "
            "Parquet, Arrow, TIFF; raw binary: lazymem pack --dtype, or numpy.memmap"
        )
    with using(path):
        contents: Contents = import_module(f"{__name__}.{found}").open_file(path, stack)
    return contents


def format_of(path: str) -> str | None:
    """Return the format's module: by the first bytes, else by the name."""
    name = path.rstrip("/").lower()
    if os.path.isdir(path) or name.endswith(".zarr.zip"):
        return "zarr"
    if os.path.isfile(path):
        with open(path, "rb") as file:
            head = file.read(8)
        for magic, found in _MAGIC.items():
            if head.startswith(magic):
                return found
    return of_suffix(name)


def of_suffix(path: str) -> str | None:
    """Return the format's module by the name alone."""
    return _SUFFIXES.get(os.path.splitext(path.lower())[1])
