# SPDX-License-Identifier: BSD-3-Clause
"""numpy's values: arrays, of objects as well, and scalars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lazymem.array import LazyArray
from lazymem.manifest import read_dtype
from lazymem.session import objects
from lazymem.session.document import UnsupportedValueError

if TYPE_CHECKING:
    from lazymem.session.document import Dumper, Loader, Node


def dump(value: Any, out: Dumper, where: str) -> Node:
    """Take a value apart."""
    if isinstance(value, np.generic) and not value.dtype.hasobject:
        descr = np.lib.format.dtype_to_descr(value.dtype)
        return {"kind": "numpy.scalar", "dtype": descr, "hex": value.tobytes().hex()}
    if type(value) not in (np.ndarray, LazyArray, np.memmap):
        raise UnsupportedValueError(
            f"a {type(value).__name__} is more than an array; save its parts"
        )
    if value.dtype.kind == "O":
        shape = list(value.shape)
        return {
            "kind": "numpy.objects",
            "shape": shape,
            **objects.dump(value.reshape(-1), out, where),
        }
    check_dtype(value.dtype)
    ref = out.array(value, where)
    return {
        "kind": "numpy.array",
        "array": ref,
        "writeable": bool(value.flags.writeable),
    }


def load(node: Node, back: Loader) -> Any:
    """Put it together."""
    if node["kind"] == "numpy.scalar":
        data, dtype = bytes.fromhex(node["hex"]), read_dtype(node["dtype"])
        return np.ndarray((), dtype, data)[()] if data else np.zeros((), dtype)[()]
    if node["kind"] == "numpy.objects":
        return objects.load(node, back).reshape(node["shape"])
    array = back.array(node["array"])
    if not node["writeable"] and array.flags.writeable:
        array = array[...]  # not for others who look at this memory
        array.flags.writeable = False
    return array


def check_dtype(dtype: np.dtype[Any]) -> None:
    """Raise UnsupportedValueError unless it is plain bytes."""
    if dtype.hasobject or dtype.char == "T":
        raise UnsupportedValueError(f"dtype {dtype} holds Python objects")
