# SPDX-License-Identifier: BSD-3-Clause
"""HDF5 files, and with them netCDF 4 and MATLAB 7.3, by h5py."""

from __future__ import annotations

import io
import json
import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lazymem.attrs import DIMS
from lazymem.formats.chunked import chunk_shape, slabs, sliced_blocks
from lazymem.formats.contents import (
    Contents,
    by_group,
    damaged,
    library,
    naming,
    with_dims,
)
from lazymem.sources import Source

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import ExitStack

    import lazymem as lm
    from lazymem.progress import Meter

_DIMENSION_SCALES = {"DIMENSION_LIST", "REFERENCE_LIST", "DIMENSION_LABELS"}
"""Attributes in which HDF5 keeps the names of dimensions, as references."""
_OF_SCALE = {*_DIMENSION_SCALES, "CLASS", "NAME"}


def open_file(path: str, stack: ExitStack) -> Contents:
    """Open an HDF5 file; its datasets are named by their paths in it."""
    h5py = library("h5py", "hdf5")
    with suppress(ImportError):
        import hdf5plugin  # noqa: F401 - more compression filters, if it is there
    contents = Contents(path)
    with naming(path):
        file = stack.enter_context(h5py.File(path, "r"))
        contents.attrs = contents.json_attrs(file.attrs)
        for name, obj in _walk(h5py, file, contents, {_address(h5py, file)}):
            if isinstance(obj, h5py.Group):
                contents.add_group(name, obj.attrs)
            elif isinstance(obj, h5py.Dataset):
                with naming(path, name):
                    _add(h5py, contents, name, obj)
    return contents


def _walk(
    h5py: Any, group: Any, contents: Contents, seen: set[Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Visit what hangs in a group, once, and follow no link to other files."""
    for key in group:
        name, link = prefix + key, group.get(key, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            contents.left_out[name] = f"a link to another file, {link.filename}"
        elif isinstance(link, h5py.SoftLink):
            contents.left_out[name] = f"a link to {link.path}"
        else:
            with naming(contents.path, name):
                obj = group[key]
                address = _address(h5py, obj)
            if address in seen:
                contents.left_out[name] = "another name of something in the file"
                continue
            seen.add(address)
            yield name, obj
            if isinstance(obj, h5py.Group):
                yield from _walk(h5py, obj, contents, seen, f"{name}/")


def _address(h5py: Any, obj: Any) -> Any:
    return h5py.h5o.get_info(obj.id).addr


def _add(h5py: Any, contents: Contents, name: str, dataset: Any) -> None:
    dtype = _bare(dataset.dtype)
    if dtype.hasobject:
        is_text = h5py.check_string_dtype(dataset.dtype)
        contents.left_out[name] = "texts of any length" if is_text else str(dtype)
    elif dataset.shape is None:
        contents.left_out[name] = "it has no data space"
    elif dataset.external:
        contents.left_out[name] = "its data are in another file"
    else:
        for source in dataset.virtual_sources() if dataset.is_virtual else ():
            _check_virtual(contents.path, name, source.file_name)
        hidden = _OF_SCALE if dataset.is_scale else _DIMENSION_SCALES
        raw = {k: v for k, v in dataset.attrs.items() if k not in hidden}
        attrs = contents.json_attrs(raw, name)
        enum = h5py.check_enum_dtype(dataset.dtype)
        if enum:
            attrs = {"enum": {key: int(value) for key, value in enum.items()}, **attrs}
        shape, chunks = dataset.shape, dataset.chunks
        read = partial(sliced_blocks, dataset.__getitem__, shape, dtype, chunks)
        attrs = with_dims(attrs, _dims(dataset))
        contents.add(name, Source(shape, dtype, "C", read, attrs=attrs))


def _check_virtual(path: str, name: str, source: str) -> None:
    """HDF5 would fill in for a file that is not there."""
    if source != "." and not os.path.exists(
        os.path.join(os.path.dirname(path), source)
    ):
        raise damaged(path, name, f"its data are in {source}, which is not there")


def _dims(dataset: Any) -> list[str | None]:
    if dataset.is_scale and dataset.ndim == 1:  # it lies along the one that it names
        return [dataset.name.rpartition("/")[2]]
    names: list[str | None] = []
    for dim in dataset.dims:
        scales = [scale.name.rpartition("/")[2] for scale in dim.values()]
        names.append(dim.label or (scales[0] if scales else None))
    return names


def _bare(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a dtype without the metadata that h5py puts into it."""
    bare: Any = dtype.str
    if dtype.hasobject:
        bare = dtype
    elif dtype.subdtype:
        bare = (_bare(dtype.base), dtype.shape)
    elif dtype.fields is not None:
        fields = list(dtype.fields.values())
        bare = {
            "names": list(dtype.fields),
            "formats": [_bare(field[0]) for field in fields],
            "offsets": [field[1] for field in fields],
            "itemsize": dtype.itemsize,
        }
    return np.dtype(bare)  # type: ignore[no-any-return]


# ---- writing -------------------------------------------------------------------------


def write(path: str, store: lm.Store, infos: list[lm.ObjectInfo], m: Meter) -> None:
    """Write objects of a store to a new file, compressed by gzip.

    Raises
    ------
    FormatError
        If an object's dtype or name has no place in HDF5.
    """
    h5py = library("h5py", "hdf5")
    with _Sink(path, "w+") as sink:
        with h5py.File(sink, "w") as file:
            _write_all(h5py, file, sink, store, infos, m)
        sink.check()


class _Sink(io.FileIO):
    """A file that keeps its errors to itself: HDF5 may not survive a failed write."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        try:
            while rest and self.error is None:
                rest = rest[super().write(rest) :]
        except OSError as exc:
            self.error = exc
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as exc:
            self.error = self.error or exc
            return size or 0

    def check(self) -> None:
        """Raise the error, if there was one."""
        if self.error is not None:
            raise self.error


def _write_all(
    h5py: Any,
    file: Any,
    sink: _Sink,
    store: lm.Store,
    infos: list[lm.ObjectInfo],
    m: Meter,
) -> None:
    for info in infos:
        with naming(store.path, info.name):
            dataset = _create(h5py, file, info)
        for index, slab in slabs(store, info) if info.nbytes else ():
            dataset[index] = slab.view(dataset.dtype)
            sink.check()
            m.part(slab.nbytes)(1, 1)
    with naming(store.path):
        for group, attrs in by_group(store.attrs, file, h5py.Group):
            _write_attrs(group, attrs)


def _create(h5py: Any, file: Any, info: lm.ObjectInfo) -> Any:
    dtype, options = info.dtype, {}
    if dtype.kind in "mM":
        dtype = h5py.opaque_dtype(dtype)
    if info.shape and info.nbytes:
        options = {
            "chunks": chunk_shape(info),
            "compression": "gzip",
            "compression_opts": 1,
            "shuffle": True,
        }
    dataset = file.create_dataset(info.name, info.shape, dtype, **options)
    attrs = dict(info.attrs)
    for dim, name in zip(dataset.dims, attrs.pop(DIMS, ())):
        dim.label = name
    _write_attrs(dataset, attrs)
    return dataset


def _write_attrs(obj: Any, attrs: Mapping[str, Any]) -> None:
    """Write attributes; what HDF5 has no type for as JSON."""
    for key, value in attrs.items():
        try:
            obj.attrs[key] = json.dumps(value) if value is None else value
        except (TypeError, ValueError):
            obj.attrs[key] = json.dumps(value)
