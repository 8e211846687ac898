# SPDX-License-Identifier: BSD-3-Clause
"""Space that nothing needs any more: holes in the file, and a copy without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lazymem import _engine, manifest
from lazymem.encoding import Encoding

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lazymem.history import History
    from lazymem.manifest import ObjectInfo
    from lazymem.progress import Meter

    Root = tuple[int, int, int, int] | None
    Recode = tuple[str | None, int | None]
    """Codec and level for all objects; None for the object's own codec, its default."""
    Moved = dict[tuple[str, Root], dict[str, Any]]
    """Changed fields of a manifest's entries, by name and old root of the object."""


def _objects(path: str, entries: Mapping[str, Any]) -> Iterable[ObjectInfo]:
    return (manifest.object_info(path, name, x) for name, x in entries.items())


# ---- holes ---------------------------------------------------------------------------


def punch(
    writer: _engine.WriterHandle,
    store: _engine.StoreHandle,
    offsets: Iterable[int],
    working: Mapping[str, Any],
) -> int:
    """Give back the bytes that no state uses; return how many.

    Parameters
    ----------
    writer, store : WriterHandle, StoreHandle
        The file.
    offsets : iterable of int
        Commit records of the states that are kept.
    working : dict
        The manifest's entries of the objects that arrays go on from, whether a state
        that is kept lists them or not.
    """
    prune = _engine.PruneHandle(writer, store)
    kept: dict[tuple[Any, ...], _engine.ObjectHandle] = {}

    def keep(state: _engine.StoreHandle, entries: Mapping[str, Any]) -> None:
        for info in _objects(store.path, entries):
            if info.nbytes:
                form = (info.name, info.nbytes, info.chunk_bytes)
                obj = manifest.open_object(state, info)
                prune.keep(obj, kept.get(form))
                kept[form] = obj

    try:
        for offset in sorted({*offsets, *prune.readers()}):
            state = prune.open(offset)
            content = manifest.decode(state.manifest(), store.path)
            keep(state, content["objects"])
        keep(store, working)
    except BaseException:
        prune.end(is_complete=False)
        raise
    return prune.end(is_complete=True)


# ---- a copy --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Copied:
    obj: _engine.ObjectHandle
    root: Root
    stored_bytes: int


class Copier:
    """Copies the states of a store to a new file, oldest first.

    Parameters
    ----------
    store : StoreHandle
        The store.
    target : WriterHandle
        The new file.
    recode : tuple, optional
        Codec and level of the copy; default: payloads are copied as they are.
    """

    def __init__(
        self,
        store: _engine.StoreHandle,
        target: _engine.WriterHandle,
        recode: Recode | None,
        m: Meter,
    ) -> None:
        self._store, self._target, self._recode = store, target, recode
        self._meter = m
        self._last: dict[tuple[Any, ...], _Copied] = {}
        self._history: list[dict[str, Any]] = []
        self.moved: Moved = {}

    def copy_snapshot(self, entry: dict[str, Any]) -> None:
        """Copy a state of the history."""
        about = {key: entry[key] for key in _ABOUT}
        state = self._store.at(entry["offset"])
        commit = self._copy(state, entry["time_ns"], {"snapshot": about})
        self._history.append({**entry, "offset": int(commit.offset)})

    def copy_working(self, entries: Mapping[str, Any]) -> None:
        """Copy what arrays go on from, which no state that is kept may list."""
        for info in _objects(self._store.path, entries):
            if (info.name, info.index) not in self.moved:
                self._copy_object(self._store, info, entries[info.name])

    def copy_last(self, commit: Any, parent: int | None) -> None:
        """Copy a state that is in no history."""
        state = self._store.at(int(commit.offset))
        about = {"snapshot": None, "parent": parent}
        self._copy(state, int(commit.time_ns), about)

    def _copy(
        self, state: _engine.StoreHandle, time_ns: int, about: dict[str, Any]
    ) -> Any:
        content = manifest.decode(state.manifest(), state.path)
        objects = {
            info.name: self._copy_object(state, info, content["objects"][info.name])
            for info in _objects(state.path, content["objects"])
        }
        self._target.resume(int(state.commit.sequence), time_ns)
        return self._target.commit(
            manifest.encode(
                objects, content["attrs"], **about, history=list(self._history)
            )
        )

    def _copy_object(
        self, state: _engine.StoreHandle, info: ObjectInfo, entry: dict[str, Any]
    ) -> dict[str, Any]:
        if info.nbytes == 0:
            return entry
        enc = None
        if self._recode is not None:
            codec, level = self._recode
            codec = codec or info.codec
            how = Encoding(codec, None if codec == "none" else level)
            entry = {**entry, "codec": how.codec, "level": how.resolved_level}
            enc = _engine.encoding(
                info.nbytes,
                info.chunk_bytes,
                info.shuffle,
                how.codec,
                how.resolved_level,
                info.is_split,
            )
        form = (info.name, info.nbytes, info.chunk_bytes, info.shuffle)
        last = self._last.get(form)
        obj = manifest.open_object(state, info)
        tick = self._meter.part(info.nbytes)
        written = self._target.copy(
            obj, last.obj if last else None, last.root if last else None, enc, tick
        )
        stored_bytes = written.stored_bytes + (last.stored_bytes if last else 0)
        self._last[form] = _Copied(obj, written.root, stored_bytes)
        if enc is not None:
            entry = {**entry, "stored_bytes": stored_bytes}
        entry = {**entry, "index": manifest.index_to_json(written.root)}
        self.moved[info.name, info.index] = {key: entry[key] for key in _MOVED}
        return entry


_ABOUT = ("name", "message", "parent", "chunks", "bytes")
_MOVED = ("index", "codec", "level", "stored_bytes")


def copy_states(
    store: _engine.StoreHandle,
    target: _engine.WriterHandle,
    history: History,
    commit: Any,
    parent: int | None,
    working: Mapping[str, Any],
    recode: Recode | None,
    m: Meter,
) -> Moved:
    """Copy all that a store keeps; return what has changed of its objects."""
    copier = Copier(store, target, recode, m)
    last = [entry for entry in history.entries if entry["sequence"] == commit.sequence]
    for entry in history.entries:
        if entry not in last:
            copier.copy_snapshot(entry)
    copier.copy_working(working)  # before the last commit: nothing behind it is read
    for entry in last:
        copier.copy_snapshot(entry)
    if not last:
        copier.copy_last(commit, parent)
    return copier.moved
