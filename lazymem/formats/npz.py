# SPDX-License-Identifier: BSD-3-Clause
"""Archives of ``.npy`` files, ``.npz``."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import numpy as np

from lazymem.formats.contents import Contents, naming
from lazymem.formats.npy import npy_source

if TYPE_CHECKING:
    from contextlib import ExitStack

    import lazymem as lm
    from lazymem.progress import Meter


def open_file(path: str, stack: ExitStack) -> Contents:
    """Open a ``.npz`` file; its arrays have its members' names."""
    contents = Contents(path)
    with naming(path):
        archive = stack.enter_context(zipfile.ZipFile(path))
    for member in archive.namelist():
        name = member.removesuffix(".npy")
        if name == member:
            contents.left_out[member] = "no .npy file"
            continue
        with naming(path, name):
            file = stack.enter_context(archive.open(member))
            source = npy_source(file, can_peek=False)
        contents.add(name, source)
    return contents


def write(path: str, store: lm.Store, infos: list[lm.ObjectInfo], m: Meter) -> None:
    """Write objects of a store to a new archive, uncompressed as numpy.savez does.

    Raises
    ------
    FormatError
        If the names of an object's fields don't fit numpy's format 2.0.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for info in infos:
            header = {
                "descr": np.lib.format.dtype_to_descr(info.dtype),
                "fortran_order": info.order == "F",
                "shape": info.shape,
            }
            with archive.open(f"{info.name}.npy", "w", force_zip64=True) as out:
                with naming(store.path, info.name):
                    np.lib.format.write_array_header_2_0(out, header)
                for block in store.blocks(info.name):
                    out.write(block)
                    m.part(len(block))(1, 1)
