# SPDX-License-Identifier: BSD-3-Clause
"""What differs between two states of a store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lazymem import _engine, manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from lazymem.manifest import ObjectInfo

_BLOCK_BYTES = 4 << 20
"""Read of each state at once."""
_COMPARED_BYTES = 1 << 20
"""Compared at once: what differs takes some words a byte."""


@dataclass(frozen=True)
class ObjectDiff:
    """How an object differs."""

    is_reshaped: bool
    """Whether shape, dtype or order differ; then nothing else is compared."""
    attrs: bool
    """Whether its attributes differ."""
    chunks: int
    """Chunks of the later state in which bytes differ."""
    axis: int | None
    """The slowest axis, along which `ranges` counts: the first for order C, the last
    for order F; None where there is none."""
    ranges: tuple[tuple[int, int], ...]
    """Runs ``(start, stop)`` of indices along that axis for which something differs."""


@dataclass(frozen=True)
class Diff:
    """How two states of a store differ."""

    a: int
    """Number of the earlier commit."""
    b: int
    """Number of the later one."""
    added: tuple[str, ...]
    """Objects that only the later one has."""
    removed: tuple[str, ...]
    """Objects that only the earlier one has."""
    changed: dict[str, ObjectDiff]
    """Objects that both have, and that differ."""
    attrs: bool
    """Whether the attributes of the store differ."""

    def __bool__(self) -> bool:
        """Return whether anything differs."""
        return bool(self.added or self.removed or self.changed or self.attrs)


def compare(a: _engine.StoreHandle, b: _engine.StoreHandle) -> Diff:
    """Compare two states of one file, by their bytes.

    Raises
    ------
    FormatError, FillError
        If something that may differ can't be read.
    """
    path = a.path
    old, new = (manifest.decode(handle.manifest(), path) for handle in (a, b))
    changed = {}
    for name, entry in new["objects"].items():
        if name not in old["objects"] or old["objects"][name] == entry:
            continue
        infos = [
            manifest.object_info(path, name, content["objects"][name])
            for content in (old, new)
        ]
        found = _compare_objects(a, infos[0], b, infos[1])
        if found is not None:
            changed[name] = found
    return Diff(
        a=int(a.commit.sequence),
        b=int(b.commit.sequence),
        added=tuple(name for name in new["objects"] if name not in old["objects"]),
        removed=tuple(name for name in old["objects"] if name not in new["objects"]),
        changed=changed,
        attrs=old["attrs"] != new["attrs"],
    )


def _compare_objects(
    a_store: _engine.StoreHandle,
    a: ObjectInfo,
    b_store: _engine.StoreHandle,
    b: ObjectInfo,
) -> ObjectDiff | None:
    has_other_attrs = dict(a.attrs) != dict(b.attrs)
    axis = None
    if b.shape:
        axis = 0 if b.order == "C" else len(b.shape) - 1
    if (a.shape, a.dtype, a.order) != (b.shape, b.dtype, b.order):
        return ObjectDiff(True, has_other_attrs, 0, axis, ())
    chunks, rows = _Runs(), _Runs()
    if a.index != b.index:
        row_bytes = b.nbytes // (1 if axis is None else b.shape[axis])
        old, new = manifest.open_object(a_store, a), manifest.open_object(b_store, b)
        for at in _differing_bytes(old, new, a, b):
            chunks.add(at // b.chunk_bytes)
            rows.add(at // row_bytes)
    if not chunks.runs and not has_other_attrs:
        return None
    count = sum(stop - start for start, stop in chunks.runs)
    ranges = tuple((start, stop) for start, stop in rows.runs)
    return ObjectDiff(False, has_other_attrs, count, axis, ranges)


class _Runs:
    """Runs of numbers, which come in ascending order, perhaps repeated."""

    def __init__(self) -> None:
        self.runs: list[list[int]] = []

    def add(self, numbers: npt.NDArray[np.int64]) -> None:
        steps = np.flatnonzero(np.diff(numbers) > 1)
        starts = numbers[np.append(0, steps + 1)].tolist()
        stops = (numbers[np.append(steps, len(numbers) - 1)] + 1).tolist()
        for start, stop in zip(starts, stops, strict=True):
            if self.runs and start <= self.runs[-1][1]:
                self.runs[-1][1] = stop
            else:
                self.runs.append([start, stop])


def _differing_bytes(
    a: _engine.ObjectHandle, b: _engine.ObjectHandle, old: ObjectInfo, new: ObjectInfo
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the offsets of bytes that differ, in ascending order, never none."""
    block_bytes = max(_BLOCK_BYTES, old.chunk_bytes, new.chunk_bytes)
    blocks = np.empty((2, min(block_bytes, new.nbytes)), np.uint8)
    for first, end in _candidates(a, b, old, new):
        for offset in range(first, end, block_bytes):
            x, y = blocks[:, : min(block_bytes, end - offset)]
            a.read(offset, x.data).wait()
            b.read(offset, y.data).wait()
            for at in range(0, len(x), _COMPARED_BYTES):
                part = slice(at, at + _COMPARED_BYTES)
                found = np.flatnonzero(x[part] != y[part])
                if len(found):
                    yield found + (offset + at)


def _candidates(
    a: _engine.ObjectHandle, b: _engine.ObjectHandle, old: ObjectInfo, new: ObjectInfo
) -> Iterator[tuple[int, int]]:
    """Yield the ranges of bytes that are not stored once for both."""
    if (old.chunk_bytes, old.shuffle) != (new.chunk_bytes, new.shuffle):
        yield 0, new.nbytes
        return
    size = new.chunk_bytes
    run = a.diff(b, 0)
    while run is not None:
        first, end = run[0], run[0] + run[1]
        yield first * size, min(end * size, new.nbytes)
        run = a.diff(b, end)
