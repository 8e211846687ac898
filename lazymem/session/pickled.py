# SPDX-License-Identifier: BSD-3-Clause
"""What has no other form, pickled, for those who ask for it.

A pickle runs what code it pleases when it is loaded, so whoever loads it must say that
he trusts it.
"""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np

from lazymem.array import LazyArray
from lazymem.session.document import UnsupportedValueError

if TYPE_CHECKING:
    from lazymem.session.document import Dumper, Loader, Node


class _Pickler(pickle.Pickler):
    """Pickles lazy arrays by value: a reference would lead into the past."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, LazyArray):
            return obj._checked(lambda: np.asarray(obj).__reduce_ex__(4))
        return NotImplemented


def dump(value: Any, out: Dumper, where: str) -> Node:
    """Pickle a value."""
    file = io.BytesIO()
    try:
        _Pickler(file, 4).dump(value)
    except Exception as exc:  # whatever the value's own code raises
        raise UnsupportedValueError(f"it can't be pickled: {exc}") from exc
    data = np.frombuffer(file.getbuffer(), np.uint8)
    return {"kind": "pickle", "data": out.array(data, where, is_copy=True)}


def load(node: Node, back: Loader) -> Any:
    """Load it.

    Raises
    ------
    UnsupportedValueError
        If the caller does not trust it.
    """
    if not back.trust_pickle:
        raise UnsupportedValueError(
            "it is a pickle, which may run any code; pass trust_pickle=True "
            "(--trust-pickle) if you trust who wrote the file"
        )
    return pickle.loads(back.array(node["data"]).tobytes())
