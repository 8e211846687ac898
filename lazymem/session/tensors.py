# SPDX-License-Identifier: BSD-3-Clause
"""torch: tensors of the CPU, over the arrays that share their memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lazymem.session.document import UnsupportedValueError

if TYPE_CHECKING:
    from lazymem.session.document import Dumper, Loader, Node

_AS = {"torch.bfloat16": "int16"}
"""Types that numpy has not, and others of their width."""


def dump(value: Any, out: Dumper, where: str) -> Node:
    """Take a tensor apart."""
    import torch

    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        raise UnsupportedValueError(
            f"a torch {type(value).__name__} has no form here but a pickle; its "
            "dict(x.state_dict()) has one"
        )
    if value.grad_fn is not None:
        raise UnsupportedValueError("it is a step of a computation; detach() it")
    dtype = str(value.dtype)
    try:
        plain = value.detach()
        array = (
            plain.view(getattr(torch, _AS[dtype])).numpy()
            if dtype in _AS
            else plain.numpy()
        )
    except (TypeError, RuntimeError) as exc:
        raise UnsupportedValueError(str(exc)) from None
    return {
        "kind": "torch.tensor",
        "array": out.array(array, where),
        "dtype": dtype,
        "requires_grad": value.requires_grad,
        "is_parameter": type(value) is torch.nn.Parameter,
    }


def load(node: Node, back: Loader) -> Any:
    """Put it together."""
    import torch

    array = np.asarray(back.array(node["array"]))
    if not array.flags.writeable:
        raise UnsupportedValueError(
            "torch knows no read-only memory; open the store in mode 'c' or 'r+'"
        )
    tensor = torch.from_numpy(array)
    if node["dtype"] in _AS:
        tensor = tensor.view(getattr(torch, node["dtype"].partition(".")[2]))
    if node["is_parameter"]:
        return torch.nn.Parameter(tensor, requires_grad=node["requires_grad"])
    return tensor.requires_grad_(node["requires_grad"])
