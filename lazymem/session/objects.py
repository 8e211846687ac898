# SPDX-License-Identifier: BSD-3-Clause
"""Arrays of Python's objects: strings as bytes, all else value by value.

Of strings there is their UTF-8, one after another, and where each ends.  Between them
elements can be missing: None, NaN or pandas.NA, as a code says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lazymem.extras import needs
from lazymem.session.document import UnsupportedValueError

if TYPE_CHECKING:
    from lazymem.session.document import Dumper, Loader, Node

_STR, _NONE, _NAN, _NA, _OTHER = range(5)


def dump(values: Any, out: Dumper, where: str) -> Node:
    """Take a flat array of objects apart.

    Raises
    ------
    UnsupportedValueError
        If one of them has no form.
    """
    codes = bytearray(map(_code, values))
    if _OTHER in codes:
        return {"items": [out.value(value, where) for value in values.tolist()]}
    try:
        encoded = [
            b"" if code else value.encode("utf-8") for code, value in zip(codes, values)
        ]
    except UnicodeEncodeError as exc:
        raise UnsupportedValueError(f"a string has no UTF-8: {exc}") from None
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    parts = {"ends": np.cumsum(lengths), "bytes": _bytes(b"".join(encoded))}
    if any(codes):
        parts["missing"] = _bytes(codes)
    return {
        part: out.array(array, f"{where}/{part}", is_copy=True)
        for part, array in parts.items()
    }


def load(node: Node, back: Loader) -> Any:
    """Return the flat array."""
    if "items" in node:
        items = np.empty(len(node["items"]), object)
        for i, item in enumerate(node["items"]):
            items[i] = back.value(item)
        return items
    ends = back.array(node["ends"]).tolist()
    data = back.array(node["bytes"]).tobytes()
    texts = np.empty(len(ends), object)
    start = 0
    for i, end in enumerate(ends):
        texts[i] = data[start:end].decode("utf-8")
        start = end
    if "missing" in node:
        codes = np.asarray(back.array(node["missing"]))
        for i in np.flatnonzero(codes).tolist():
            texts[i] = _of_code(int(codes[i]))
    return texts


def _bytes(data: bytes | bytearray) -> Any:
    return np.frombuffer(data, np.uint8)


def _code(value: Any) -> int:
    """Return what an element is."""
    if type(value) is str:
        return _STR
    if value is None:
        return _NONE
    if type(value) is float and value != value:
        return _NAN
    return _NA if type(value).__name__ == "NAType" else _OTHER


def _of_code(code: int) -> Any:
    if code == _NA:
        with needs("pandas"):
            import pandas as pd
        return pd.NA
    return None if code == _NONE else float("nan")
