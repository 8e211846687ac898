# SPDX-License-Identifier: BSD-3-Clause
"""The snapshots that a store keeps, and what is said of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, TypeAlias

from lazymem import manifest
from lazymem.errors import FormatError, SnapshotNotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_LISTED_IN_ERRORS = 10


@dataclass(frozen=True)
class SnapshotInfo:
    """A state of a store that is kept."""

    sequence: int
    """Its number: 1 for the first commit of the file.  Flushes count as well."""
    name: str | None
    """Its name, if it has one."""
    message: str
    """What was said of it."""
    time: datetime
    """When it was made, in UTC."""
    parent: int | None
    """Number of the snapshot that it was made from; None for the first one."""
    chunks: int
    """Chunks written for it: those that differ from the commit before."""
    bytes_written: int
    """Their compressed bytes."""
    offset: int
    """Where its commit record is in the file, in bytes."""
    pause_seconds: float | None = None
    """How long writing threads may have had to wait; None unless it was just made."""
    seconds: float | None = None
    """How long it took in all; None unless it was just made."""

    def _repr_html_(self) -> str:
        from lazymem import show

        return show.snapshot(self)


@dataclass(frozen=True)
class FlushInfo:
    """What a flush has made durable."""

    sequence: int
    """Number of the commit."""
    time: datetime
    """When it was made, in UTC."""
    chunks: int
    """Chunks written for it: those that differ from the commit before."""
    bytes_written: int
    """Their compressed bytes."""
    pause_seconds: float
    """How long writing threads may have had to wait."""
    seconds: float
    """How long it took in all."""


@dataclass(frozen=True)
class RestoreInfo:
    """What a restore has changed."""

    snapshot: SnapshotInfo
    """The state that the store shows."""
    chunks_dropped: int
    """Chunks in memory that differed, or were written to, and were given up."""
    arrays_closed: tuple[str, ...]
    """Names of arrays that were held and do not exist in this form any more."""
    seconds: float
    """How long it took."""


SnapshotRef: TypeAlias = "str | int | SnapshotInfo"
"""How a snapshot is told: by its name, its number, or what is known of it."""


class History:
    """The snapshots that a store keeps, oldest first.

    Parameters
    ----------
    path : str
        What errors call the file.
    entries : sequence of dict
        As in the manifest's ``"history"``, checked when used.
    """

    def __init__(self, path: str, entries: Sequence[dict[str, Any]]) -> None:
        self.path = path
        self.entries = list(entries)

    def log(self) -> list[SnapshotInfo]:
        """Return the snapshots, oldest first.

        Raises
        ------
        FormatError
            If an entry makes no sense.
        """
        return [self._info(entry) for entry in self.entries]

    def find(self, ref: SnapshotRef) -> SnapshotInfo:
        """Return a snapshot by name, number, or what is known of it.

        Raises
        ------
        SnapshotNotFoundError
            If there is none.
        """
        if isinstance(ref, bool) or not isinstance(ref, (str, int, SnapshotInfo)):
            raise TypeError(
                f"a snapshot is told by name, number or SnapshotInfo, not {ref!r}"
            )
        log = self.log()
        for info in log:
            if isinstance(ref, SnapshotInfo):
                if (info.sequence, info.offset) == (ref.sequence, ref.offset):
                    return info
            elif ref == (info.name if isinstance(ref, str) else info.sequence):
                return info
        raise self._not_found(ref, log)

    def has_name(self, name: str) -> bool:
        """Return whether a snapshot has this name."""
        return any(info.name == name for info in self.log())

    def without(self, gone: SnapshotInfo) -> History:
        """Return the history without a snapshot; its children become its parent's."""
        entries = [
            {**entry, "parent": gone.parent}
            if entry["parent"] == gone.sequence
            else entry
            for entry in self.entries
            if entry["sequence"] != gone.sequence
        ]
        return History(self.path, entries)

    def _info(self, entry: Any) -> SnapshotInfo:
        try:
            return SnapshotInfo(
                sequence=_number(entry["sequence"]),
                name=_optional(str, entry["name"]),
                message=_a(str, entry["message"]),
                time=time_of(_number(entry["time_ns"])),
                parent=_optional(int, entry["parent"]),
                chunks=_number(entry["chunks"]),
                bytes_written=_number(entry["bytes"]),
                offset=_number(entry["offset"]),
            )
        except (KeyError, TypeError, ValueError) as exc:
            reason = f"no {exc}" if isinstance(exc, KeyError) else str(exc)
            error = FormatError(f"{self.path}: bad history in the manifest: {reason}")
            error.path = self.path
            raise error from None

    def _not_found(
        self, ref: SnapshotRef, log: list[SnapshotInfo]
    ) -> SnapshotNotFoundError:
        told = ref
        if isinstance(ref, SnapshotInfo):
            told = ref.sequence if ref.name is None else ref.name
        known = [repr(i.sequence if i.name is None else i.name) for i in log]
        last = ", ".join(known[-_LISTED_IN_ERRORS:])
        more = len(known) - _LISTED_IN_ERRORS
        hint = f"it has {f'{more} more and ' if more > 0 else ''}{last}"
        if not known:
            hint = "it has none"
        error = SnapshotNotFoundError(f"{self.path}: no snapshot {told!r}; {hint}")
        error.path = self.path
        return error


def read(path: str, content: Mapping[str, Any], commit: Any) -> History:
    """Return the history of a store, which its last commit ends if it is a snapshot.

    Parameters
    ----------
    path : str
        What errors call the file.
    content : dict
        The manifest of the last commit.
    commit : struct lm_commit
        Facts about it.
    """
    earlier = content.get("history", [])
    entries = list(earlier) if isinstance(earlier, list) else [earlier]
    last = content["snapshot"] if "snapshot" in content else _saved(path, content)
    if last is not None:
        entries.append(
            {
                "sequence": int(commit.sequence),
                "offset": int(commit.offset),
                "time_ns": int(commit.time_ns),
                **(last if isinstance(last, dict) else {}),
            }
        )
    return History(path, entries)


def parent_of(path: str, content: Mapping[str, Any], commit: Any) -> int | None:
    """Return the number of the snapshot from which the last commit goes on."""
    if "snapshot" not in content or content["snapshot"] is not None:
        return int(commit.sequence)
    try:
        parent: int | None = _optional(int, content.get("parent"))
    except ValueError as exc:
        error = FormatError(f"{path}: bad parent in the manifest: {exc}")
        error.path = path
        raise error from None
    return parent


def time_of(time_ns: int) -> datetime:
    """Return a time of the file as Python has it."""
    return _EPOCH + timedelta(microseconds=time_ns // 1000)


def _saved(path: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is to be said of a file that was written at once."""
    chunks = stored_bytes = 0
    for name, entry in content["objects"].items():
        try:
            info = manifest.object_info(path, name, entry)
        except FormatError:
            continue  # whoever opens that object will hear of it
        chunks += info.chunks
        stored_bytes += info.stored_bytes
    return {
        "name": None,
        "message": "",
        "parent": None,
        "chunks": chunks,
        "bytes": stored_bytes,
    }


def _a(kind: type[Any], value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{value!r} is no {kind.__name__}")
    return value


def _optional(kind: type[Any], value: Any) -> Any:
    return None if value is None else _a(kind, value)


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{value!r} is no number")
    return value
