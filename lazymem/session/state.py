# SPDX-License-Identifier: BSD-3-Clause
"""What may be done with a namespace and a store: save, restore, check and roll back."""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lazymem import _engine
from lazymem.errors import (
    FormatError,
    LazyMemWarning,
    ObjectNotFoundError,
    UnsupportedKernelError,
)
from lazymem.session import memory
from lazymem.session.document import (
    CODE,
    Dumper,
    Loader,
    UnsupportedValueError,
    dicts_in,
    reachable,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from lazymem import RestoreInfo, SnapshotInfo, Store

_KEY = ".session"
"""The object that holds the document: no variable has a dot."""
_FORMAT = 1


@dataclass(frozen=True)
class SaveInfo:
    """What a save has done."""

    saved: tuple[str, ...]
    """Names of the variables."""
    skipped: dict[str, str]
    """Those that can't be saved, and why."""
    adopted: tuple[str, ...]
    """Those that are bound to arrays of the store now."""
    bytes_written: int
    """Compressed bytes that were appended for it."""
    seconds: float
    """How long it took."""


def save(
    namespace: MutableMapping[str, Any],
    store: Store,
    *names: str,
    adopt: bool = False,
    pickle: bool = False,
) -> SaveInfo:
    """Save variables to a store, durably and all or nothing.

    Parameters
    ----------
    namespace : mutable mapping
        The variables, such as ``globals()``.
    store : Store
        Open for writing (``lm.open(path, "r+")``).  It may hold other objects, which
        are left alone.
    *names : str
        What to save; what the store has of others stays.  Default: all but modules,
        functions, classes and names that begin with an underscore; variables that are
        gone by now, or can't be saved, are then gone from the store as well.
    adopt : bool, optional
        Bind the names to the arrays of the store.  What is written to them later costs
        the next save what was written, and nothing else is compared.
    pickle : bool, optional
        Pickle what has no other form.

    Returns
    -------
    SaveInfo
        With what could not be saved, and why.

    Raises
    ------
    KeyError
        If a name is given that there is not.
    ValueError
        If the store is not open for writing.
    OSError
        If the file can't be written; its last state stays.
    ClosedError, LockError
        If the store is closed; or another process is its writer.
    UnsupportedKernelError
        If arrays are to be adopted and writes can't be tracked here.

    Notes
    -----
    Arrays that are the store's cost what was written to them.  Others are compared with
    what is stored, on all cores, and the chunks that differ are appended; that takes
    memory for these and for two blocks.  Two names of one object are two names of it
    when they are restored, and arrays that share memory share it.

    Examples
    --------
    >>> import numpy as np, lazymem as lm
    >>> from lazymem import session
    >>> x = np.arange(1_000_000)
    >>> work = {"x": x, "tail": x[-10:], "note": {"by": "me"}}
    >>> with lm.open("work.lzm", "w") as store:
    ...     session.save(work, store).saved
    ('x', 'tail', 'note')
    >>> with lm.open("work.lzm", "r+") as store:
    ...     back = session.restore(store)
    ...     back["x"][-1] = -1
    ...     print(back["tail"][-1], back["note"])
    ...     _ = store.flush()
    -1 {'by': 'me'}
    """
    start = time.perf_counter()
    staged = _Staged(namespace, store, names, adopt=adopt, may_pickle=pickle)
    info = store.flush()
    staged.finish()
    return staged.info(info.bytes_written, start)


def checkpoint(
    namespace: MutableMapping[str, Any],
    store: Store,
    name: str,
    *,
    pickle: bool = False,
) -> tuple[SaveInfo, SnapshotInfo]:
    """Keep the variables as they are now, to go back to them with :func:`rollback`.

    Parameters
    ----------
    namespace, store, pickle
        As for :func:`save`, which this does with ``adopt=True``.
    name : str
        A name no other snapshot of the store has.

    Returns
    -------
    (SaveInfo, SnapshotInfo)

    Raises
    ------
    ValueError
        If the name is taken, or the store is not open for writing.
    OSError, ClosedError, LockError, UnsupportedKernelError
        As for :func:`save`.
    """
    start = time.perf_counter()
    if any(entry.name == name for entry in store.log()):
        raise ValueError(
            f"{store.path}: a snapshot named {name!r} exists; take another name, or "
            f"store.delete_snapshot({name!r}) first"
        )
    staged = _Staged(namespace, store, (), adopt=True, may_pickle=pickle)
    snapshot = store.snapshot(name)
    staged.finish()
    return staged.info(snapshot.bytes_written, start), snapshot


def rollback(
    namespace: MutableMapping[str, Any],
    store: Store,
    name: str,
    *,
    trust_pickle: bool = False,
) -> RestoreInfo:
    """Have the variables as they were at a checkpoint.

    Parameters
    ----------
    namespace : mutable mapping
        The variables.  Those of the checkpoint are bound anew; those that only a later
        save or checkpoint has are removed; others stay.
    store : Store
        The store of the checkpoint.
    name : str
        The checkpoint.
    trust_pickle : bool, optional
        As for :func:`restore`.

    Returns
    -------
    RestoreInfo

    Raises
    ------
    SnapshotNotFoundError
        If there is no such checkpoint.
    FormatError
        If the snapshot holds no session; the store's arrays have gone back to it.
    OSError, ClosedError, LockError
        As for `Store.restore`.

    Notes
    -----
    Costs what was written since.  Whoever holds an array sees its old state, in place;
    what was written and never saved is gone.  Frames, lists and dicts are made anew.
    """
    before = set(names_in(store))
    info = store.restore(name, discard=True)
    found = restore(store, trust_pickle=trust_pickle)
    for gone in before - set(names_in(store)):
        namespace.pop(gone, None)
    namespace.update(found)
    return info


def restore(store: Store, *names: str, trust_pickle: bool = False) -> dict[str, Any]:
    """Return the variables that a store holds, arrays of which fill on first touch.

    Parameters
    ----------
    store : Store
        Open in any mode; in mode ``"r+"`` what is written to the arrays is saved by the
        next :func:`save`, and in mode ``"r"`` they are read-only.
    *names : str
        Which ones; default: all.
    trust_pickle : bool, optional
        Load pickles, which may run any code.

    Returns
    -------
    dict
        By name.

    Raises
    ------
    FormatError
        If the store holds no session, or one that makes no sense.
    ObjectNotFoundError
        If there is no variable of a name that was given.
    ImportError, UnsupportedValueError
        If a name that was given needs a package that is missing, or is a pickle and not
        trusted.  Without names a LazyMemWarning says which were left out.

    Notes
    -----
    Costs a look at the variables.  No page of an array is touched, but for strings,
    which are made at once, and for the codes of categories: pandas would read whatever
    memory a wrong one leads to, so each is looked at.  Codes of more than 64 MiB are
    read in pieces, whose memory is given back where the store's mode is not ``"c"``.
    """
    document = _read(store)
    for name in names:
        if name not in document["names"]:
            known = ", ".join(map(repr, document["names"])) or "none"
            raise ObjectNotFoundError(
                f"{store.path}: no variable {name!r} was saved; it has {known}"
            )
    loader = _loader(document, store, trust_pickle=trust_pickle)
    found, left_out = {}, []
    for name in names or document["names"]:
        try:
            found[name] = loader.name(name)
        except (ImportError, UnsupportedValueError) as exc:
            if names:
                raise
            left_out.append(f"{name}: {exc}")
    if left_out:
        warnings.warn(
            f"{store.path}: not restored: {'; '.join(left_out)}",
            LazyMemWarning,
            stacklevel=2,
        )
    return found


def names_in(store: Store) -> tuple[str, ...]:
    """Return the names of the variables that a store holds.

    Parameters
    ----------
    store : Store
        Open in any mode.

    Returns
    -------
    tuple of str
        Empty if the store holds no session.

    Raises
    ------
    FormatError
        If it holds one that makes no sense.
    """
    return tuple(_read(store)["names"]) if _KEY in store else ()


class _Staged:
    """Variables in a store, but for the commit."""

    def __init__(
        self,
        namespace: MutableMapping[str, Any],
        store: Store,
        names: tuple[str, ...],
        *,
        adopt: bool,
        may_pickle: bool,
    ) -> None:
        store._writing("session.save()")
        if adopt and not _engine.has_pager():
            raise UnsupportedKernelError(
                f"{store.path}: without userfaultfd nothing tells what is written to "
                "an array; save without adopting, or see 'lazymem doctor'"
            )
        self._namespace, self._store, self._is_adopting = namespace, store, adopt
        self._skipped: dict[str, str] = {}
        self._adopted: tuple[str, ...] = ()
        self._dumper = Dumper(may_pickle=may_pickle)
        for name in names or _worth_saving(namespace):
            if name not in namespace:
                raise KeyError(f"there is no variable {name!r}")
            try:
                self._dumper.add(name, namespace[name])
            except UnsupportedValueError as exc:
                self._skipped[name] = str(exc)
        self._own: dict[str, Any] = {
            "names": dict(self._dumper.names),
            "nodes": self._dumper.nodes,
        }
        others = _without(_read(store), names) if names and _KEY in store else None
        kept = _objects_of(others["nodes"]) if others else set()
        self._written = memory.place(store, self._dumper.leaves, {_KEY, *kept})
        self._stale = self._dumper.stale()
        used = kept | {leaf.ref.get("object") for leaf in self._dumper.leaves} | {_KEY}
        _write_document(store, _joined(self._own, others) if others else self._own)
        for key in [key for key in store if key not in used]:
            if memory.is_disposable(store, key):
                del store[key]

    def finish(self) -> None:
        """Bind the names to the store's arrays, if that was asked for."""
        if not self._is_adopting:
            for key in self._written:
                self._store[key].evict()
            return
        made = {
            node: value
            for node, value in enumerate(self._dumper.objects)
            if node not in self._stale
        }
        loader = _loader(self._own, self._store, made, is_own=True)
        self._adopted = tuple(
            name
            for name in self._own["names"]
            if self._stale.intersection(reachable(self._own, name))
        )
        self._namespace.update({name: loader.name(name) for name in self._adopted})

    def info(self, bytes_written: int, start: float) -> SaveInfo:
        """Return what was done."""
        return SaveInfo(
            saved=tuple(self._own["names"]),
            skipped=self._skipped,
            adopted=self._adopted,
            bytes_written=bytes_written,
            seconds=time.perf_counter() - start,
        )


def _worth_saving(namespace: Mapping[str, Any]) -> list[str]:
    return [
        name
        for name, value in namespace.items()
        if not name.startswith("_") and not isinstance(value, CODE)
    ]


def _loader(
    document: dict[str, Any],
    store: Store,
    made: Mapping[int, Any] | None = None,
    **trust: bool,
) -> Loader:
    fetch = partial(memory.fetch, store)
    return Loader(document, store.path, fetch, made, **trust)


# ---- the document --------------------------------------------------------------------


def _read(store: Store) -> dict[str, Any]:
    if _KEY not in store:
        raise FormatError(
            f"{store.path}: it holds no session; session.save() writes one"
        )
    data = b"".join(store.blocks(_KEY))
    try:
        document: dict[str, Any] = json.loads(data)
        if document["format"] != _FORMAT:
            raise ValueError(f"format {document['format']!r}")
        if not isinstance(document["names"], dict) or "nodes" not in document:
            raise ValueError("it has no names, or no nodes")
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise FormatError(
            f"{store.path}, object {_KEY!r}: it is no session that this version of "
            f"lazymem reads: {exc}"
        ) from None
    return document


def _write_document(store: Store, document: dict[str, Any]) -> None:
    text = json.dumps({"format": _FORMAT, **document}, allow_nan=False)
    data = text.encode()
    if _KEY in store and b"".join(store.blocks(_KEY)) == data:
        return
    store.put(_KEY, np.frombuffer(data, np.uint8), attrs=memory.OWNED)


def _without(document: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Return a document's other variables, with the nodes that they need."""
    kept = {name: x for name, x in document["names"].items() if name not in names}
    nodes = {i for name in kept for i in reachable(document, name)}
    return {"names": kept, "nodes": {i: document["nodes"][i] for i in nodes}}


def _joined(own: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Return a document of both, in which the nodes of the others have new numbers."""
    first = len(own["nodes"])
    number = {old: first + i for i, old in enumerate(others["nodes"])}

    def moved(dumped: Any) -> Any:
        if isinstance(dumped, list):
            return [moved(part) for part in dumped]
        if isinstance(dumped, dict):
            if set(dumped) == {"node"}:
                return {"node": number[dumped["node"]]}
            return {key: moved(part) for key, part in dumped.items()}
        return dumped

    return {
        "names": {**moved(others["names"]), **own["names"]},
        "nodes": [*own["nodes"], *moved(list(others["nodes"].values()))],
    }


def _objects_of(nodes: dict[int, Any]) -> set[str]:
    """Return the objects of the store that nodes refer to."""
    found = (part.get("object") for part in dicts_in(nodes))
    return {key for key in found if isinstance(key, str)}
