# SPDX-License-Identifier: BSD-3-Clause
"""Zarr stores of the formats 2 and 3, folders or zip files, by zarr-python 3."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from lazymem.attrs import DIMS
from lazymem.formats.chunked import chunk_shape, slabs, sliced_blocks
from lazymem.formats.contents import (
    Contents,
    by_group,
    library,
    naming,
    with_dims,
)
from lazymem.sources import Source

if TYPE_CHECKING:
    from contextlib import ExitStack

    import lazymem as lm
    from lazymem.progress import Meter

_DIMS_2 = "_ARRAY_DIMENSIONS"
"""Where xarray keeps the names of dimensions in format 2."""


def open_file(path: str, stack: ExitStack) -> Contents:
    """Open a Zarr store; its arrays are named by their paths in it.

    Notes
    -----
    A chunk that is not there is the array's fill value, as Zarr defines it: nobody can
    tell whether it was never written or lost.
    """
    zarr = library("zarr", "zarr")
    contents = Contents(path)
    with naming(path):
        store: Any = path
        if not os.path.isdir(path):
            store = zarr.storage.ZipStore(path, mode="r")
            stack.callback(store.close)
        root = zarr.open(store, mode="r")
        if isinstance(root, zarr.Array):
            name = os.path.basename(path.rstrip("/")).partition(".zarr")[0]
            _add(contents, name, root)
            return contents
        contents.attrs = contents.json_attrs(root.attrs.asdict())
        for name, node in sorted(root.members(max_depth=None)):
            if isinstance(node, zarr.Array):
                _add(contents, name, node)
            else:
                contents.add_group(name, node.attrs.asdict())
    return contents


def _add(contents: Contents, name: str, array: Any) -> None:
    if array.dtype.hasobject or array.dtype.char == "T":
        contents.left_out[name] = "texts of any length, or Python objects"
        return
    attrs = contents.json_attrs(array.attrs.asdict(), name)
    dims = getattr(array.metadata, "dimension_names", None) or attrs.pop(_DIMS_2, None)
    shape, dtype, chunks = array.shape, array.dtype, array.shards or array.chunks
    read = partial(sliced_blocks, array.__getitem__, shape, dtype, chunks)
    attrs = with_dims(attrs, dims)
    contents.add(name, Source(shape, dtype, "C", read, attrs=attrs))


def write(path: str, store: lm.Store, infos: list[lm.ObjectInfo], m: Meter) -> None:
    """Write objects of a store to a new folder, in format 3.

    Raises
    ------
    FormatError
        If an object's dtype or name has no place in Zarr.
    """
    zarr = library("zarr", "zarr")
    root = zarr.open_group(path, mode="w-")
    for info in infos:
        with naming(store.path, info.name):
            own = dict(info.attrs)
            dims = own.pop(DIMS, None)
            array = root.create_array(
                info.name,
                shape=info.shape,
                dtype=info.dtype,
                chunks=chunk_shape(info) if info.nbytes else "auto",
                attributes=own,
                dimension_names=dims,
            )
        for index, slab in slabs(store, info) if info.nbytes else ():
            array[index] = slab
            m.part(slab.nbytes)(1, 1)
    with naming(store.path):
        for group, attrs in by_group(store.attrs, root, zarr.Group):
            group.attrs.update(attrs)
