# SPDX-License-Identifier: BSD-3-Clause
"""xarray: data sets and data arrays, as dimensions, attributes and arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from lazymem.session import objects
from lazymem.session.arrays import check_dtype
from lazymem.session.document import UnsupportedValueError

if TYPE_CHECKING:
    from lazymem.session.document import Dumper, Loader, Node


_DATA = "\0"
"""A name that no coordinate has."""


def dump(value: Any, out: Dumper, where: str) -> Node:
    """Take a data set or a data array apart."""
    kind = type(value)
    if kind is xr.DataArray:
        inner = _dump_variables(value.coords, out, where)
        data = _dump_variable(value.variable, out, where)
        name = out.value(value.name, where)
        return {"kind": "xarray.array", "coords": inner, "data": data, "name": name}
    if kind is xr.Dataset:
        return {
            "kind": "xarray.dataset",
            "coords": _dump_variables(value.coords, out, where),
            "data": _dump_variables(value.data_vars, out, where),
            "attrs": out.value(value.attrs, f"{where}/attrs"),
        }
    raise UnsupportedValueError(
        f"an xarray {kind.__name__} has no form here but a pickle"
    )


def load(node: Node, back: Loader) -> Any:
    """Put it together."""
    coords = _load_variables(node["coords"], back)
    if node["kind"] == "xarray.dataset":
        data = _load_variables(node["data"], back)
        return xr.Dataset(data, coords, attrs=back.value(node["attrs"]))
    # A data set takes coordinates as they are; a DataArray would copy them.
    array = xr.Dataset({_DATA: _load_variable(node["data"], back)}, coords)[_DATA]
    array.name = back.value(node["name"])
    return array


def _dump_variables(variables: Any, out: Dumper, where: str) -> list[Any]:
    pairs = []
    for name, array in variables.items():
        index = array.xindexes.get(name) if name in array.coords else None
        if index is not None and len(array.xindexes.get_all_coords(name)) > 1:
            raise UnsupportedValueError(
                f"coordinate {name!r} has an index of several; reset_index() it"
            )
        told = f"{where}/{name}"
        pairs.append([out.value(name, told), _dump_variable(array.variable, out, told)])
    return pairs


def _load_variables(pairs: list[Any], back: Loader) -> dict[Any, Any]:
    return {back.value(name): _load_variable(x, back) for name, x in pairs}


def _dump_variable(variable: Any, out: Dumper, where: str) -> Node:
    data = variable.data
    if not isinstance(data, np.ndarray):
        raise UnsupportedValueError(
            f"its data are a {type(data).__name__}; load() or compute() it first"
        )
    told = {
        "dims": [out.value(dim, where) for dim in variable.dims],
        "attrs": out.value(variable.attrs, f"{where}/attrs"),
    }
    if data.dtype.kind == "O":
        flat = objects.dump(data.reshape(-1), out, where)
        return {**told, "objects": flat, "shape": list(data.shape)}
    check_dtype(data.dtype)
    is_copy = isinstance(variable, xr.IndexVariable)
    return {**told, "values": out.array(data, where, is_copy=is_copy)}


def _load_variable(node: Node, back: Loader) -> tuple[Any, Any, Any]:
    dims = tuple(back.value(dim) for dim in node["dims"])
    if "objects" in node:
        data = objects.load(node["objects"], back).reshape(node["shape"])
    else:
        data = np.asarray(back.array(node["values"]))
    return dims, data, back.value(node["attrs"])
