# SPDX-License-Identifier: BSD-3-Clause
"""Working sets: which chunks a program had in memory, recorded and filled ahead.

A record is a small file beside the store, which nothing but speed depends on::

    {"format": "lazymem warm 1", "store_id": "32 hexadecimal digits",
     "objects": {"temp": {"nbytes": 48000000, "chunk_bytes": 131072,
                          "runs": [[0, 12], [40, 1]]}}}

A run is the first chunk and how many; runs ascend, and do not touch.
"""

from __future__ import annotations

import json
import os
import warnings
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from lazymem import _engine, files
from lazymem.errors import LazyMemWarning
from lazymem.gather import chunks_of_runs
from lazymem.stats import WarmStats

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TypeAlias

    import numpy.typing as npt

    from lazymem.manifest import ObjectInfo

    Runs: TypeAlias = npt.NDArray[np.int64]
    """Shape ``(n, 2)``: first chunk, count."""

_FORMAT = "lazymem warm 1"
_SAMPLE_EVERY = 16
"""Of so many chunks of a set one is left to demand, to see whether it is used."""
_MEMORY_SHARE = 2
"""A set takes no more than this part of the memory available."""
_BLOCK = 1 << 20
"""Chunks that are looked at together."""


def record_path(path: str | os.PathLike[str], name: str) -> str:
    """Return where the record of that name is.

    Raises
    ------
    TypeError, ValueError
        If it is no name of a record.
    """
    if not isinstance(name, str):
        raise TypeError(f"a working set's name must be a str, not {name!r}")
    if not name or "/" in name or "\0" in name:
        raise ValueError(
            f"a working set's name becomes part of a file's, so it must not be {name!r}"
        )
    return f"{os.fsdecode(path)}.{name}.warm"


# ---- recording -----------------------------------------------------------------------


def record(file: str, store_id: str, regions: Iterable[_engine.RegionHandle]) -> int:
    """Write down what is in memory; return how many chunks that is.

    Raises
    ------
    OSError
        If the file can't be written; one that was there before stays.
    """
    objects: dict[str, Any] = {}
    count = 0
    for region in regions:
        obj, runs = region.object, _resident_runs(region)
        if len(runs) and not region.released:
            count += int(runs[:, 1].sum())
            objects[obj.name] = {
                "nbytes": obj.nbytes,
                "chunk_bytes": obj.chunk_bytes,
                "runs": runs.tolist(),
            }
    content = {"format": _FORMAT, "store_id": store_id, "objects": objects}
    _write(file, json.dumps(content, separators=(",", ":")))
    return count


def _resident_runs(region: _engine.RegionHandle) -> Runs:
    """Return which chunks of the object are in memory."""
    edges = [np.empty(0, np.int64)]
    for first in range(0, region.chunks, _BLOCK):
        count = min(_BLOCK, region.chunks - first)
        if region.count_resident(first, count):
            mask = np.frombuffer(region.resident_mask(first, count), np.int8)
            edges.append(np.flatnonzero(np.diff(mask, prepend=0, append=0)) + first)
    found = np.concatenate(edges)
    found, times = np.unique(found, return_counts=True)
    found = found[times == 1]  # where a run goes on in the next block it has no edge
    ratio = region.chunk_bytes // region.object.chunk_bytes
    found = np.minimum(
        found * ratio, -(-region.object.nbytes // region.object.chunk_bytes)
    )
    return np.stack([found[::2], found[1::2] - found[::2]], axis=1)


def _write(file: str, text: str) -> None:
    temporary = files.temporary_name(file)
    try:
        with open(temporary, "x", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, file)
    except OSError as exc:
        with suppress(OSError):
            os.unlink(temporary)
        exc.filename = file  # and not the temporary one, which nobody has heard of
        raise


# ---- reading a record ----------------------------------------------------------------


class _Misfit(Exception):
    """Why a record, or the part of an object, is of no use."""


def _load(file: str, store_id: str) -> dict[str, Any]:
    """Return the objects of a record; their parts are checked one by one."""
    try:
        with open(file, encoding="utf-8") as text:
            content = json.load(text)
        if content["format"] != _FORMAT:
            raise _Misfit(f"its format is {content['format']!r}")
        if content["store_id"] != store_id:
            raise _Misfit("it was recorded with another store")
        return dict(content["objects"])
    except FileNotFoundError:
        return {}  # the first time
    except OSError as exc:
        raise _Misfit(exc.strerror or str(exc)) from None
    except (ValueError, TypeError, LookupError, RecursionError):
        raise _Misfit("it is damaged") from None


def _runs(entry: Any, info: ObjectInfo) -> Runs:
    """Return the part of an object, checked."""
    try:
        found = int(entry["nbytes"]), int(entry["chunk_bytes"])
        runs = np.array(entry["runs"]).reshape(-1, 2)
    except (ValueError, TypeError, LookupError, OverflowError):
        raise _Misfit("it is damaged") from None
    if found != (info.nbytes, info.chunk_bytes):
        raise _Misfit(
            f"it is of {found[0]} bytes in chunks of {found[1]}, and the array has "
            f"{info.nbytes} in chunks of {info.chunk_bytes}"
        )
    # In an order in which no sum can wrap.
    if runs.dtype.kind != "i" or runs.min() < 0 or runs.max() > info.chunks:
        raise _Misfit("it is damaged")
    ends = np.concatenate([[-1], runs.sum(axis=1)])
    if (
        runs[:, 1].min() < 1
        or (runs[:, 0] <= ends[:-1]).any()
        or ends[-1] > info.chunks
    ):
        raise _Misfit("it is damaged")
    return runs.astype(np.int64)


# ---- filling -------------------------------------------------------------------------


class WorkingSet:
    """A record, filled into the memory of each array when that is first opened.

    Parameters
    ----------
    file : str
        The record; without one there is nothing to do.
    store_id : str
        Of the store that is being opened.
    """

    def __init__(self, file: str, store_id: str) -> None:
        self._file = file
        self._samples: list[
            tuple[weakref.ref[_engine.RegionHandle], int, npt.NDArray[np.int64]]
        ] = []
        self._bytes_left = 0
        try:
            self._objects = _load(file, store_id)
        except _Misfit as exc:
            self._objects = {}
            warnings.warn(
                f"{file}: the working set is ignored: {exc}; record() it again",
                LazyMemWarning,
                stacklevel=4,
            )
        if self._objects:
            self._bytes_left = _engine.memory_available() // _MEMORY_SHARE

    def start(self, region: _engine.RegionHandle, info: ObjectInfo) -> None:
        """Start to fill the part of an array, once and in the background."""
        entry = self._objects.pop(info.name, None)
        if entry is None or info.index is None:  # or all of it is zero
            return
        try:
            share = region.memory_available() // _MEMORY_SHARE
            left = min(self._bytes_left, share)
            chunks = _chunks(_runs(entry, info), region, left)
        except _Misfit as exc:
            warnings.warn(
                f"{self._file}: the working set of {info.name!r} is ignored: {exc}; "
                "record() it again",
                LazyMemWarning,
                stacklevel=3,
            )
            return
        self._bytes_left -= len(chunks) * region.chunk_bytes
        sampled = sample(len(chunks))
        samples = chunks[sampled]
        self._samples.append((weakref.ref(region), len(chunks), samples))
        ahead = np.delete(chunks, sampled)
        with suppress(OSError):  # without memory, or threads, there is demand
            job = region.prefetch_chunks(ahead, is_urgent=False)
            if job is not None:
                job.detach()

    def stats(self) -> WarmStats:
        """Return what has become of the set."""
        live = [(region(), count, samples) for region, count, samples in self._samples]
        found = [
            (count, len(samples), _count_resident(region, samples))
            for region, count, samples in live
            if region is not None and not region.released
        ]
        return WarmStats(*map(sum, zip(*found)) if found else (0, 0, 0))


def sample(count: int) -> npt.NDArray[np.int64]:
    """Return which of `count` chunks are left to demand, one in each 16.

    Not at constant distances: their faults would look like a run to readahead.
    """
    places = np.random.default_rng(0).integers(
        _SAMPLE_EVERY, size=count // _SAMPLE_EVERY + 1
    )
    chosen = places + np.arange(len(places)) * _SAMPLE_EVERY
    return chosen[chosen < count]


def _chunks(
    runs: Runs, region: _engine.RegionHandle, bytes_max: int
) -> npt.NDArray[np.int64]:
    """Return the chunks of the region that runs of the object's are in."""
    ratio = region.chunk_bytes // region.object.chunk_bytes
    firsts, ends = runs[:, 0] // ratio, -(-runs.sum(axis=1) // ratio)
    firsts[1:] = np.maximum(firsts[1:], ends[:-1])
    return chunks_of_runs(firsts, ends - firsts, bytes_max // region.chunk_bytes)


def _count_resident(region: _engine.RegionHandle, chunks: npt.NDArray[np.int64]) -> int:
    """Return how many of some chunks, which ascend, are in memory."""
    return sum(
        int(np.frombuffer(region.resident_mask(first, count), np.int8)[where].sum())
        for first, count, where in _blocks(chunks, region.chunks)
    )


def _blocks(
    chunks: npt.NDArray[np.int64], end: int
) -> Iterator[tuple[int, int, npt.NDArray[np.int64]]]:
    """Divide chunks by the block of the region that they are in."""
    borders = np.flatnonzero(np.diff(chunks // _BLOCK)) + 1
    for part in np.split(chunks, borders):
        if len(part):
            first, last = int(part[0]), int(part[-1])
            yield first, last + 1 - first, part - first
