# SPDX-License-Identifier: BSD-3-Clause
"""Datasets of xarray: ``xarray.open_dataset(path, engine="lazymem")``, and `save`.

A variable is an object of the store, as it is in memory: dates, booleans and strings
need no encoding.  Its dimensions are the attribute ``_dims`` of the object, a list of
names; the attribute ``_coords`` of the store lists the variables that are coordinates.
All other attributes are the user's.  An object without ``_dims`` has the dimensions
``<name>_0``, ``<name>_1``, ...
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from lazymem.array import LazyArray, find_part
from lazymem.attrs import DIMS
from lazymem.dask import Blocks
from lazymem.extras import needs
from lazymem.store import Store, open
from lazymem.writer import Writer

with needs("xarray"):
    import xarray
    from xarray.backends import BackendArray, BackendEntrypoint
    from xarray.core import indexing

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

    from lazymem.history import SnapshotRef

_COORDS = "_coords"
_BLOCK_BYTES = 64 << 20
"""Of a block that is written, and of dask's where they are left to us."""


class LazymemBackend(BackendEntrypoint):  # type: ignore[misc]
    """What ``engine="lazymem"`` is."""

    description = "Open lazymem stores (.lzm), lazily and without a copy"
    open_dataset_parameters = ("filename_or_obj", "drop_variables", "at")

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Return whether a path looks like a store's."""
        if not isinstance(filename_or_obj, (str, os.PathLike)):
            return False
        return os.fspath(filename_or_obj).endswith(".lzm")

    def open_dataset(
        self,
        filename_or_obj: str | os.PathLike[str],
        *,
        drop_variables: str | Iterable[str] | None = None,
        at: SnapshotRef | None = None,
    ) -> xarray.Dataset:
        """Open a store as a dataset.

        Parameters
        ----------
        filename_or_obj : str or path-like
            The file.
        drop_variables : str or iterable of str, optional
            Objects to leave out.
        at : str, int or SnapshotInfo, optional
            A snapshot, instead of the last state.

        Returns
        -------
        xarray.Dataset
            Whose variables are the store's memory.  Closing it closes the store.

        Raises
        ------
        FormatError, OSError
            As :func:`lazymem.open` does.
        ValueError
            If dimensions do not fit.

        Notes
        -----
        Reads the coordinates that xarray makes indexes of, and touches nothing else.
        """
        if isinstance(drop_variables, str):
            drop_variables = [drop_variables]
        dropped = set(drop_variables or ())
        store = open(filename_or_obj, at=at)
        try:
            names = [name for name in store if name not in dropped]
            attrs = dict(store.attrs)
            coords = set(attrs.pop(_COORDS, ())).intersection(names)
            variables = {name: _variable(store[name], name) for name in names}
            dataset = xarray.Dataset(variables, attrs=attrs).set_coords(coords)
        except BaseException:
            store.close()
            raise
        dataset.set_close(_Close(store))
        return dataset


class _Close:
    """Closes a store, which stays where it is when the dataset is pickled."""

    def __init__(self, store: Store | None = None) -> None:
        self._store = store

    def __call__(self) -> None:
        if self._store is not None:
            self._store.close()

    def __reduce__(self) -> Any:
        return _Close, ()


def _variable(array: LazyArray, name: str) -> xarray.Variable:
    attrs = dict(array.attrs)
    dims = attrs.pop(DIMS, [f"{name}_{i}" for i in range(array.ndim)])
    data = indexing.LazilyIndexedArray(_Data(array))
    encoding = {}
    if array.nbytes > _BLOCK_BYTES:  # else one block will do
        axis = int(np.argmax(np.abs(array.strides)))
        rows = max(1, _BLOCK_BYTES * array.shape[axis] // array.nbytes)
        encoding["preferred_chunks"] = {dims[axis]: rows}
    return xarray.Variable(dims, data, attrs, encoding)


class _Data(BackendArray):  # type: ignore[misc]
    """An object as xarray indexes it.

    Here a part of it is a view; where it has been pickled to, each part is read to
    memory of its own, so that dask's workers need it for the blocks they hold.
    """

    def __init__(self, array: LazyArray | Blocks | np.ndarray[Any, Any]) -> None:
        self._array, self.shape, self.dtype = array, array.shape, array.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.BASIC, self._read
        )

    def _read(self, index: tuple[Any, ...]) -> Any:
        return self._array[(*index, ...)]

    def __reduce__(self) -> Any:
        array = self._array
        if isinstance(array, LazyArray):
            part = find_part(array)
            array = Blocks(*part) if part else np.asarray(array)
        return _Data, (array,)


# ---- saving --------------------------------------------------------------------------


def save(dataset: xarray.Dataset, path: str | os.PathLike[str], **encoding: Any) -> int:
    """Save a dataset to a store file.

    Parameters
    ----------
    dataset : xarray.Dataset
        All of it, as it is in memory; its variables' ``encoding`` is not used.
    path : str or path-like
        The file; replaced if it exists, all at once when the new one is complete.
    **encoding
        ``codec``, ``level``, ``chunk_bytes``, ``shuffle``, as for :func:`lazymem.save`.

    Returns
    -------
    int
        Length of the file in bytes.

    Raises
    ------
    TypeError
        If a variable holds Python objects other than strings, or if attributes can't be
        written as JSON.
    ValueError
        If an attribute or a string can't be kept as it is.
    OSError
        If the file can't be written; what was there before stays.

    Notes
    -----
    Variables that are not in memory are read block by block: those of dask by rows of
    blocks, others in 64 MiB.

    Examples
    --------
    >>> import numpy as np, xarray, lazymem.xarray
    >>> t = xarray.DataArray(np.eye(3), dims=("y", "x"), attrs={"unit": "K"})
    >>> _ = lazymem.xarray.save(t.to_dataset(name="t"), "t.lzm")
    >>> with xarray.open_dataset("t.lzm") as dataset:
    ...     print(dataset["t"].dims, dataset["t"].attrs, float(dataset["t"].sum()))
    ('y', 'x') {'unit': 'K'} 3.0
    """
    attrs = _attrs(dataset.attrs, "the dataset", _COORDS, list(dataset.coords))
    with Writer(path, attrs=attrs, **encoding) as writer:
        for name, variable in dataset.variables.items():
            _write(writer, name, variable)
    return writer.file_bytes


def _write(writer: Writer, name: Any, variable: xarray.Variable) -> None:
    attrs = _attrs(variable.attrs, f"variable {name!r}", DIMS, list(variable.dims))
    dtype = variable.dtype
    if not isinstance(dtype, np.dtype) or dtype.kind in ("O", "T"):
        variable = variable.copy(data=_strings(np.asarray(variable.values), name))
    obj = writer.create(name, variable.shape, variable.dtype, attrs=attrs)
    if variable.ndim == 0:
        obj.write(variable.values)
        return
    start = 0
    for rows in _rows(variable):
        obj.write(variable[start : start + rows].values)
        start += rows


def _rows(variable: xarray.Variable) -> Iterable[int]:
    if variable.chunks:
        return tuple(variable.chunks[0])
    length = variable.shape[0]
    rows = max(1, _BLOCK_BYTES * length // max(1, variable.nbytes))
    return (min(rows, length - i) for i in range(0, length, rows))


def _strings(objects: np.ndarray[Any, Any], name: Any) -> np.ndarray[Any, Any]:
    """Return strings as numpy stores them, each as long as the longest."""
    if not all(isinstance(x, str) for x in objects.flat):
        raise TypeError(
            f"variable {name!r}: it holds Python objects that are no strings, which "
            "can't be stored: convert it, or leave it out by drop_vars()"
        )
    strings = objects.astype(object).astype(str)
    if any(a != b for a, b in zip(strings.flat, objects.flat, strict=True)):
        raise ValueError(f"variable {name!r}: strings that end in NUL can't be stored")
    return strings


def _attrs(
    attrs: Mapping[Hashable, Any], of: str, key: str, names: list[Hashable]
) -> dict[Any, Any]:
    if key in attrs:
        raise ValueError(f"{of}: the attribute {key!r} is lazymem's: rename it")
    plain = {
        k: v.tolist() if isinstance(v, (np.ndarray, np.generic)) else v
        for k, v in attrs.items()
    }
    return {**plain, key: names}
