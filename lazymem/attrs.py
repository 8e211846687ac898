# SPDX-License-Identifier: BSD-3-Clause
"""Attributes of a store and of its objects: small JSON, checked when it is set."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, TypeAlias

from lazymem.manifest import check_attrs

DIMS = "_dims"
"""The attribute of an object that names its dimensions, one by one."""
Change: TypeAlias = Callable[[dict[str, Any]], None]
"""Changes the attributes in place."""


class Attrs(MutableMapping[str, Any]):
    """Attributes, as they are now.

    Made by a store.  What is assigned is checked, and becomes durable with the next
    snapshot or flush.  What is read is a copy: to change a list, assign it again.

    Parameters
    ----------
    of : str
        Whose they are, for errors.
    read : callable
        Returns them.
    change : callable
        Is given a function that changes them, and lets it, unless they are read-only.

    Examples
    --------
    >>> import lazymem as lm
    >>> with lm.Store() as store:
    ...     store.attrs["station"] = {"name": "Zugspitze", "height": 2962}
    ...     store.attrs
    {'station': {'name': 'Zugspitze', 'height': 2962}}
    """

    def __init__(
        self,
        of: str,
        read: Callable[[], Mapping[str, Any]],
        change: Callable[[Change], None],
    ) -> None:
        self._of, self._read, self._change = of, read, change

    def __getitem__(self, key: str) -> Any:
        return copy.deepcopy(self._read()[key])

    def __setitem__(self, key: str, value: Any) -> None:
        checked = check_attrs({key: value}, self._of)
        self._change(lambda attrs: attrs.update(checked))

    def __delitem__(self, key: str) -> None:
        self._change(lambda attrs: attrs.__delitem__(key))

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __repr__(self) -> str:
        return repr(dict(self._read()))
