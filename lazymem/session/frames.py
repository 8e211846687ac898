# SPDX-License-Identifier: BSD-3-Clause
"""pandas: frames, series and indexes over the arrays that they consist of.

Columns are put together over the store's memory without a copy, but for strings, which
pandas keeps as Python's objects or in memory of Arrow's own.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lazymem.session import objects
from lazymem.session.arrays import check_dtype
from lazymem.session.copy_on_write import Sharing
from lazymem.session.document import UnsupportedValueError

if TYPE_CHECKING:
    from lazymem.session.document import Dumper, Loader, Node

_PIECE_BYTES = 64 << 20
_MASKED = {
    "i": pd.arrays.IntegerArray,
    "u": pd.arrays.IntegerArray,
    "f": pd.arrays.FloatingArray,
    "b": pd.arrays.BooleanArray,
}


def dump(value: Any, out: Dumper, where: str) -> Node:
    """Take a frame, a series or an index apart."""
    if type(value) is pd.DataFrame:
        columns = [value.iloc[:, i] for i in range(value.shape[1])]
        return {
            "kind": "pandas.frame",
            "index": out.value(value.index, f"{where}/index"),
            "columns": out.value(value.columns, f"{where}/columns"),
            "data": [_dump_column(x, out, f"{where}/{x.name}") for x in columns],
            "attrs": out.value(value.attrs, f"{where}/attrs"),
        }
    if type(value) is pd.Series:
        return {
            "kind": "pandas.series",
            "index": out.value(value.index, f"{where}/index"),
            "name": out.value(value.name, f"{where}/name"),
            "data": _dump_array(value.array, out, where),
            "attrs": out.value(value.attrs, f"{where}/attrs"),
        }
    if isinstance(value, pd.Index):
        return {"kind": "pandas.index", **_dump_index(value, out, where)}
    raise UnsupportedValueError(
        f"a pandas {type(value).__name__} has no form here but a pickle"
    )


def load(node: Node, back: Loader) -> Any:
    """Put it together."""
    if node["kind"] == "pandas.index":
        return _load_index(node, back)
    index = back.value(node["index"])
    if node["kind"] == "pandas.series":
        array, name = _load_array(node["data"], back), back.value(node["name"])
        series = pd.Series(array, index=index, name=name, copy=False)
        series.attrs = back.value(node["attrs"])
        return _shared(series, back)
    data = {i: _load_array(column, back) for i, column in enumerate(node["data"])}
    frame = pd.DataFrame(data, index=index, copy=False)
    frame.columns = back.value(node["columns"])
    frame.attrs = back.value(node["attrs"])
    return _shared(frame, back)


def _shared(value: Any, back: Loader) -> Any:
    """Let a frame or series know of others over the same memory."""
    if back.sharing is None:
        known = (x for x in back.known() if isinstance(x, (pd.DataFrame, pd.Series)))
        back.sharing = Sharing(known)
    back.sharing.add(value)
    return value


def _dump_column(column: Any, out: Dumper, where: str) -> Node:
    try:
        return _dump_array(column.array, out, where)
    except UnsupportedValueError as exc:
        raise UnsupportedValueError(f"column {column.name!r}: {exc}") from None


# ---- arrays --------------------------------------------------------------------------


def _dump_array(array: Any, out: Dumper, where: str) -> Node:
    dtype = array.dtype
    if isinstance(dtype, pd.StringDtype):
        missing = pd.NA if dtype.na_value is pd.NA else np.nan
        values = array.to_numpy(object, na_value=missing)
        storage = {"storage": dtype.storage, "has_na": dtype.na_value is pd.NA}
        return {"type": "str", **storage, **objects.dump(values, out, where)}
    if isinstance(array, pd.arrays.NumpyExtensionArray):
        values = array.to_numpy()
        if values.dtype.kind == "O":
            return {"type": "objects", **objects.dump(values, out, where)}
        check_dtype(values.dtype)
        return {"type": "numpy", "values": out.array(values, where)}
    if isinstance(array, pd.Categorical):
        return {
            "type": "category",
            "codes": out.array(array.codes, f"{where}/codes"),
            "categories": out.value(array.categories, f"{where}/categories"),
            "ordered": bool(array.ordered),
        }
    if isinstance(array, tuple(_MASKED.values())):
        return {
            "type": "masked",
            "values": out.array(array._data, where),
            "mask": out.array(array._mask, f"{where}/mask"),
        }
    if isinstance(array, (pd.arrays.DatetimeArray, pd.arrays.TimedeltaArray)):
        zone = getattr(dtype, "tz", None)
        told = None if zone is None else str(zone)
        if zone is not None and pd.DatetimeTZDtype(dtype.unit, told) != dtype:
            raise UnsupportedValueError(f"time zone {zone!r} has no name")
        return {"type": "time", "values": out.array(array._ndarray, where), "tz": told}
    if isinstance(array, pd.arrays.PeriodArray):
        values = out.array(array._ndarray, where)
        return {"type": "period", "values": values, "dtype": str(dtype)}
    raise UnsupportedValueError(f"dtype {dtype} has no form here")


def _load_array(node: Node, back: Loader) -> Any:
    kind = node["type"]
    if kind == "objects":  # an ndarray's would be taken for strings
        return pd.Index(objects.load(node, back), dtype=object, tupleize_cols=False)
    if kind == "str":
        missing = pd.NA if node["has_na"] else np.nan
        dtype = pd.StringDtype(node["storage"], na_value=missing)
        return pd.array(objects.load(node, back), dtype=dtype)
    if kind == "category":
        categories = back.value(node["categories"])
        codes = _load_codes(node["codes"], len(categories), back)
        dtype = pd.CategoricalDtype(categories, node["ordered"])
        return pd.Categorical.from_codes(codes, dtype=dtype, validate=False)
    values = np.asarray(back.array(node["values"]))
    if kind == "masked":
        mask = np.asarray(back.array(node["mask"]))
        return _MASKED[values.dtype.kind](values, mask, copy=False)
    if kind == "period":
        return pd.arrays.PeriodArray(values, dtype=node["dtype"], copy=False)
    if kind == "time" and node["tz"] is not None:
        unit = np.datetime_data(values.dtype)[0]
        dtype = pd.DatetimeTZDtype(unit, node["tz"])
        return pd.DatetimeIndex(values.view("i8"), dtype=dtype, copy=False).array
    return values


def _load_codes(ref: Node, count: int, back: Loader) -> Any:
    """Return codes of categories, none of which leads pandas out of its memory."""
    codes = back.array(ref)
    if codes.ndim != 1 or codes.dtype.kind != "i":
        raise ValueError(f"codes of shape {codes.shape} and dtype {codes.dtype}")
    step = _PIECE_BYTES // codes.itemsize
    for start in range(0, 0 if back.is_own else codes.size, step):
        piece: Any = codes[start : start + step]
        if piece.min() < -1 or piece.max() >= count:
            raise ValueError(f"a code that is of none of {count} categories")
        if codes.size > step:
            with suppress(ValueError):  # mode "c" keeps what may have been written
                piece.evict()
    return np.asarray(codes)


# ---- indexes -------------------------------------------------------------------------


def _dump_index(index: Any, out: Dumper, where: str) -> Node:
    names = out.value(list(index.names), where)
    if isinstance(index, pd.RangeIndex):
        return {"range": [index.start, index.stop, index.step], "names": names}
    if isinstance(index, pd.MultiIndex):
        codes = [
            out.array(np.asarray(x), f"{where}/codes/{i}")
            for i, x in enumerate(index.codes)
        ]
        levels = [
            out.value(x, f"{where}/levels/{i}") for i, x in enumerate(index.levels)
        ]
        return {"levels": levels, "codes": codes, "names": names}
    freq = getattr(index, "freqstr", None)
    data = _dump_array(index.array, out, where)
    return {"data": data, "freq": freq, "names": names}


def _load_index(node: Node, back: Loader) -> Any:
    names = back.value(node["names"])
    if "range" in node:
        return pd.RangeIndex(*node["range"], name=names[0])
    if "levels" in node:
        levels = [back.value(level) for level in node["levels"]]
        codes = [
            _load_codes(ref, len(level), back)
            for ref, level in zip(node["codes"], levels, strict=True)
        ]
        return pd.MultiIndex(
            levels, codes, names=names, verify_integrity=False, copy=False
        )
    array = _load_array(node["data"], back)
    index = pd.Index(array, name=names[0], copy=False)
    if node["freq"] is not None and node["data"]["type"] == "time":
        index.freq = node["freq"]
    return index
