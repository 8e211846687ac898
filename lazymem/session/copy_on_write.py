# SPDX-License-Identifier: BSD-3-Clause
"""pandas objects over the same memory, of which none may see what is written to others.

pandas copies a block before it writes to it while another block refers to its memory,
and knows so from `refs` that they have in common.  Blocks that are made one by one over
memory of a store have nothing in common before they are told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lazymem.array import address_of

if TYPE_CHECKING:
    from collections.abc import Iterable


class Sharing:
    """Blocks of pandas objects, by the memory that they look at.

    Parameters
    ----------
    known : iterable
        Frames and series that there are already.
    """

    def __init__(self, known: Iterable[Any]) -> None:
        self._blocks: dict[int, list[Any]] = {}
        for value in known:
            self.add(value)

    def add(self, value: Any) -> None:
        """Let a frame or series know of those that look at the same memory."""
        for block in value._mgr.blocks:
            memory = _memory(block)
            if not isinstance(memory, np.ndarray):
                continue  # Arrow's own, which nobody writes to
            others = self._blocks.setdefault(_root(memory), [])
            for other in others:
                if other.refs is not block.refs and _overlap(memory, _memory(other)):
                    _join(other.refs, block.refs)
            others.append(block)


def _memory(block: Any) -> Any:
    """Return the array that tells where a block's memory is."""
    values = block.values
    for part in ("_ndarray", "_data"):
        values = getattr(values, part, values)
    return values


def _root(array: Any) -> int:
    """Return where the memory begins that an array is a part of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return address_of(array)


def _join(refs: Any, into: Any) -> None:
    """Let all that have some `refs` in common have others."""
    for reference in list(refs.referenced_blocks):
        found = reference()
        if hasattr(found, "refs"):
            found.refs = into
            into.add_reference(found)
        elif found is not None:  # an index
            found._references = into
            into.add_index_reference(found)


def _overlap(a: Any, b: Any) -> bool:
    return np.may_share_memory(a, b) and np.shares_memory(a, b)
