# SPDX-License-Identifier: BSD-3-Clause
"""Values as a document: JSON that says how they hang together, beside their arrays.

A value is a JSON scalar, or ``{"node": i}``.  A node is an object that others may
share: it is written once, however many names and containers lead to it, and made once.
Its ``"kind"`` begins with the package whose module here knows it (``"pandas.frame"``).
"""

from __future__ import annotations

import math
import types
from bisect import bisect_right
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from lazymem.array import address_of
from lazymem.arrays import open_regions
from lazymem.errors import FormatError, LazyMemError
from lazymem.extras import needs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from lazymem._engine import RegionHandle

Node = dict[str, Any]
Array = np.ndarray[Any, Any]

_MODULES = {
    "builtins": "plain",
    "numpy": "arrays",
    "lazymem": "arrays",
    "pandas": "frames",
    "xarray": "labelled",
    "torch": "tensors",
    "pickle": "pickled",
}
"""Where the values of each package are taken apart and put together."""

CODE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)


class UnsupportedValueError(Exception):
    """A value can't be saved; the message says why."""


@dataclass(eq=False)
class Leaf:
    """An array that a value consists of."""

    array: Array
    where: str
    """What led to it: a variable, or ``variable/part``."""
    is_copy: bool
    """Whether it was made for the store: nobody looks at this memory."""
    region: RegionHandle | None = None
    """The memory of a store of which it is a part."""
    ref: Node = field(default_factory=dict)
    """What the document says of it, entered when it has its place in the store."""
    is_tracked: bool = False
    """Whether its memory is the store's already."""


class Dumper:
    """Takes values apart.

    Parameters
    ----------
    may_pickle : bool
        Whether what has no other form is pickled.
    """

    def __init__(self, *, may_pickle: bool = False) -> None:
        self.names: dict[str, Any] = {}
        self.nodes: list[Node] = []
        self.leaves: list[Leaf] = []
        self.objects: list[Any] = []
        """The object of each node.  They are kept, or their ids would be others'."""
        self._may_pickle = may_pickle
        self._regions = _Regions(open_regions())
        self._known: dict[int, int] = {}
        self._open: list[int] = []
        self._parts: list[tuple[list[int], list[Leaf]]] = []

    def add(self, name: str, value: Any) -> None:
        """Take the value of a variable apart.

        Raises
        ------
        UnsupportedValueError
            If some part of it can't be saved; then all is as before.
        """
        before = len(self.nodes), len(self.leaves)
        try:
            self.names[name] = self.value(value, name)
        except (UnsupportedValueError, RecursionError) as exc:
            self._forget_from(*before)
            if isinstance(exc, RecursionError):
                raise UnsupportedValueError("it is nested too deeply") from None
            raise

    def value(self, value: Any, where: str) -> Any:
        """Return what the document says of a value."""
        kind = type(value)
        if value is None or kind is bool or kind is int or kind is str:
            return _checked(value)
        if kind is float and math.isfinite(value):
            return value
        known = self._known.get(id(value))
        if known is None:
            known = self._add_node(value, where)
        elif known in self._open:
            raise UnsupportedValueError("it contains itself")
        elif self._open:
            self._parts[self._open[-1]][0].append(known)
        return {"node": known}

    def _add_node(self, value: Any, where: str) -> int:
        index = len(self.nodes)
        if self._open:
            self._parts[self._open[-1]][0].append(index)
        self.nodes.append({})
        self.objects.append(value)
        self._parts.append(([], []))
        self._known[id(value)] = index
        self._open.append(index)
        try:
            self.nodes[index] = self._taken_apart(value, where)
        finally:
            self._open.pop()
        return index

    def _taken_apart(self, value: Any, where: str) -> Node:
        package = type(value).__module__.partition(".")[0]
        before = len(self.nodes), len(self.leaves)
        try:
            if package not in _MODULES or isinstance(value, CODE):
                raise UnsupportedValueError(_no_form(value))
            dumped: Node = _module(package).dump(value, self, where)
        except UnsupportedValueError:
            if not self._may_pickle or isinstance(value, CODE):
                raise
            self._forget_from(*before)
            self._parts[-1] = ([], [])
            dumped = _module("pickle").dump(value, self, where)
        return dumped

    def _forget_from(self, nodes: int, leaves: int) -> None:
        """Forget the parts of a value that has no form, or another one."""
        del self.nodes[nodes:], self.objects[nodes:], self._parts[nodes:]
        del self.leaves[leaves:]
        self._known = {key: i for key, i in self._known.items() if i < nodes}

    def array(self, array: Array, where: str, *, is_copy: bool = False) -> Node:
        """Note an array that the value being taken apart consists of.

        Parameters
        ----------
        array : ndarray
            A view of its memory.
        where : str
            What led to it.
        is_copy : bool, optional
            Whether it was made for the store.

        Returns
        -------
        dict
            What the document says of it; :meth:`Loader.array` understands it.
        """
        region = self._regions.at(address_of(array)) if array.nbytes else None
        if region is not None and region.released:
            raise UnsupportedValueError("it is an array of a store that is closed")
        leaf = Leaf(array, where, is_copy, region)
        self.leaves.append(leaf)
        self._parts[self._open[-1]][1].append(leaf)
        return leaf.ref

    def stale(self) -> set[int]:
        """Return the nodes that hold memory which is not the store's."""
        found: dict[int, bool] = {}

        def is_stale(node: int) -> bool:
            if node not in found:
                nodes, leaves = self._parts[node]
                found[node] = any(
                    not (leaf.is_tracked or leaf.is_copy) for leaf in leaves
                ) | any([is_stale(part) for part in nodes])
            return found[node]

        return {node for node in range(len(self.nodes)) if is_stale(node)}


class Loader:
    """Puts values together.

    Parameters
    ----------
    document : dict
        As :class:`Dumper` wrote it, with ``"names"`` and ``"nodes"``.
    path : str
        What errors call the store.
    array : callable
        Returns the array that a reference tells of.
    made : mapping from int, optional
        Objects of nodes that are there already.
    trust_pickle : bool
        Whether pickles may run what code they please.
    is_own : bool
        Whether the values were taken apart here, a moment ago: nothing is distrusted.
    """

    def __init__(
        self,
        document: Mapping[str, Any],
        path: str,
        array: Callable[[Node], Array],
        made: Mapping[int, Any] | None = None,
        *,
        trust_pickle: bool = False,
        is_own: bool = False,
    ) -> None:
        self.array = array
        self.trust_pickle, self.is_own = trust_pickle or is_own, is_own
        self.sharing: Any = None
        """What pandas objects have in common; see :mod:`copy_on_write`."""
        self._document, self._path = document, path
        self._made = dict(made or {})
        self._open: set[int] = set()

    def name(self, name: str) -> Any:
        """Return the value of a variable.

        Raises
        ------
        FormatError
            If the document makes no sense.
        ImportError
            If a package is missing.
        """
        with _sense(f"{self._path}: variable {name!r}"):
            return self.value(self._document["names"][name])

    def known(self) -> list[Any]:
        """Return the objects that there are so far."""
        return list(self._made.values())

    def value(self, dumped: Any) -> Any:
        """Return what :meth:`Dumper.value` was given."""
        if not isinstance(dumped, dict):
            return dumped
        index = dumped["node"]
        if index not in self._made:
            if index in self._open:
                raise ValueError(f"node {index} contains itself")
            self._open.add(index)
            node = self._document["nodes"][index]
            package = node["kind"].partition(".")[0]
            with needs(package):
                self._made[index] = _module(package).load(node, self)
            self._open.discard(index)
        return self._made[index]


class _Regions:
    """Which array of a store an address belongs to."""

    def __init__(self, regions: list[RegionHandle]) -> None:
        self._regions = sorted(regions, key=lambda region: region.address)
        self._starts = [region.address for region in self._regions]

    def at(self, address: int) -> RegionHandle | None:
        """Return the region of an address, if it is one's."""
        i = bisect_right(self._starts, address) - 1
        if i < 0 or address >= self._starts[i] + self._regions[i].object.nbytes:
            return None
        return self._regions[i]


def reachable(document: Mapping[str, Any], name: str) -> Iterator[int]:
    """Yield the nodes of a variable, each once."""
    seen: set[int] = set()
    left = list(_nodes_in(document["names"][name]))
    while left:
        node = left.pop()
        if node not in seen:
            seen.add(node)
            yield node
            left += _nodes_in(document["nodes"][node])


def _nodes_in(dumped: Any) -> Iterator[int]:
    return (part["node"] for part in dicts_in(dumped) if set(part) == {"node"})


def dicts_in(dumped: Any) -> Iterator[Node]:
    """Yield the dicts in a part of a document, itself among them."""
    if isinstance(dumped, dict):
        yield dumped
        dumped = list(dumped.values())
    if isinstance(dumped, list):
        for part in dumped:
            yield from dicts_in(part)


@contextmanager
def _sense(of: str) -> Iterator[None]:
    try:
        yield
    except LazyMemError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as exc:
        raise FormatError(f"{of}: the document makes no sense: {exc!r}") from exc


def _module(package: str) -> Any:
    return import_module(f"lazymem.session.{_MODULES[package]}")


def _no_form(value: Any) -> str:
    kind = type(value)
    if isinstance(value, types.ModuleType):
        return "it is a module: import it again"
    if isinstance(value, CODE):
        return "it is code, whose place is in a cell or a file"
    return f"{kind.__module__}.{kind.__qualname__} has no form here but a pickle"


def _checked(value: Any) -> Any:
    """Return a scalar that JSON gives back as it is."""
    try:
        if isinstance(value, str):
            value.encode("utf-8")
        elif isinstance(value, int) and not isinstance(value, bool):
            str(value)
    except ValueError as exc:
        raise UnsupportedValueError(f"JSON can't hold it: {exc}") from None
    return value
