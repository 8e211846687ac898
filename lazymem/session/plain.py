# SPDX-License-Identifier: BSD-3-Clause
"""Python's own values: lists, tuples, dicts, and the floats that JSON has not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lazymem.session.document import UnsupportedValueError

if TYPE_CHECKING:
    from lazymem.session.document import Dumper, Loader, Node


def dump(value: Any, out: Dumper, where: str) -> Node:
    """Take a value apart."""
    kind = type(value)
    if kind is float:
        return {"kind": "builtins.float", "value": repr(value)}
    if kind is list or kind is tuple:
        items = [out.value(item, f"{where}/{i}") for i, item in enumerate(value)]
        return {"kind": f"builtins.{kind.__name__}", "items": items}
    if kind is dict:
        pairs = [
            [out.value(key, where), out.value(item, f"{where}/{key}")]
            for key, item in value.items()
        ]
        return {"kind": "builtins.dict", "items": pairs}
    raise UnsupportedValueError(f"a {kind.__name__} has no form here but a pickle")


def load(node: Node, back: Loader) -> Any:
    """Put it together."""
    if node["kind"] == "builtins.float":
        return float(node["value"])
    if node["kind"] == "builtins.dict":
        return {back.value(key): back.value(item) for key, item in node["items"]}
    items = [back.value(item) for item in node["items"]]
    return tuple(items) if node["kind"] == "builtins.tuple" else items
