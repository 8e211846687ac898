# SPDX-License-Identifier: BSD-3-Clause
"""Files of numpy's own format, ``.npy``."""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from lazymem.formats.contents import Contents, naming
from lazymem.formats.flat import file_source

if TYPE_CHECKING:
    from contextlib import ExitStack

    import lazymem as lm
    from lazymem.progress import Meter
    from lazymem.sources import Source


def open_file(path: str, stack: ExitStack) -> Contents:
    """Open a ``.npy`` file; its array is named by the file's stem."""
    contents = Contents(path)
    file = stack.enter_context(open(path, "rb"))
    with naming(path):
        source = npy_source(file, can_peek=True)
    contents.add(os.path.splitext(os.path.basename(path))[0], source)
    return contents


def npy_source(file: IO[bytes], *, can_peek: bool) -> Source:
    """Take an open ``.npy`` file, read from where it stands.

    Raises
    ------
    ValueError
        If it is none.
    """
    shape, is_fortran, dtype = _header(file)
    order = "F" if is_fortran and len(shape) > 1 else "C"
    return file_source(file, shape, dtype, order, can_peek=can_peek)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
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


def write(path: str, store: lm.Store, info: lm.ObjectInfo, m: Meter) -> None:
    """Write an object of a store to a new file."""
    mapped = np.lib.format.open_memmap(
        path,
        mode="w+",
        dtype=info.dtype,
        shape=info.shape,
        fortran_order=info.order == "F",
    )
    start = mapped.offset
    del mapped
    with open(path, "r+b") as out:
        out.seek(start)
        for block in store.blocks(info.name):
            out.write(block)
            m.part(len(block))(1, 1)
