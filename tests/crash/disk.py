# SPDX-License-Identifier: BSD-3-Clause
"""What a disk may hold when the power fails, worked out from a log of file operations.

After [ALICE]_ and [CrashMonkey]_, with no file system's promises but those of POSIX:

(D1) What a sync has covered is there: a file's bytes and length by a sync of the file,
     names by a sync of the folder.
(D2) Of the rest any part may be there.  A write falls into sectors of 512 bytes, each
     of which is there or not; and a file's length may have grown or not, whatever its
     sectors did.  A file that has grown shows zeros, or garbage, where no write came.
(D3) A rename is atomic, and like the making and the removal of a name it may be there
     or not, whatever others did.
(D4) What a sync that failed should have covered may be lost for good: the kernel calls
     it clean, and later syncs succeed without it [fsyncgate]_.

References
----------
.. [ALICE] Pillai et al., "All File Systems Are Not Created Equal: On the Complexity of
   Crafting Crash-Consistent Applications", OSDI 2014.
.. [CrashMonkey] Mohan et al., "Finding Crash-Consistency Bugs with Bounded Black-Box
   Crash Testing", OSDI 2018.
.. [fsyncgate] Rebello et al., "Can Applications Recover from fsync Failures?",
   USENIX ATC 2020.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, compress, product
from pathlib import Path
from typing import TypeVar

from tests.crash.recorder import CREATED, FOLDER, TRUNCATED, Op

SECTOR = 512
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_GARBAGE = 0.25
"""Share of the images in which the sectors of a lost write hold garbage."""
_OPEN, _LOST, _SURE = "not synced", "lost to a sync that failed", "durable"


@dataclass(eq=False)
class Part:
    """A part of an operation, that is there as a whole or not."""

    op_idx: int
    fate: str = field(default=_OPEN, init=False)


@dataclass(eq=False)
class Change(Part):
    """A part of a change of a file: one sector, or its length."""

    offset: int = 0
    data: bytes = b""
    grows_to: int = 0
    cuts_to: int | None = None


@dataclass(eq=False)
class Naming(Part):
    """A change of names: one that goes, and one that a file appears under."""

    goes: str | None = None
    appears: str | None = None
    file: File | None = None


_P = TypeVar("_P", bound=Part)


def _sync(parts: list[_P], failed: bool) -> list[_P]:
    """Decide the fate of what is not synced; return those that are first, and sure."""
    for part in parts:
        if part.fate == _OPEN:
            part.fate = _LOST if failed else _SURE
    unsure = [i for i, part in enumerate(parts) if part.fate != _SURE]
    return parts[: unsure[0]] if unsure else parts[:]


class File:
    """A file: bytes that are on the disk, and changes that may be."""

    def __init__(self, base: bytes) -> None:
        self.base = base
        self.nbytes = len(base)
        """Its length as programs see it."""
        self.changes: list[Change] = []

    def change(self, op: Op, op_idx: int) -> None:
        """Do what a log says."""
        end = op.offset + op.bytes
        data = op.data
        if op.kind == "t":
            end = op.bytes
            if end < self.nbytes:
                self.changes.append(Change(op_idx, cuts_to=end))
                self.nbytes = end
        elif op.kind == "p":
            if op.flags not in (0, _KEEP_SIZE | _PUNCH_HOLE):
                raise NotImplementedError(f"fallocate of mode {op.flags}")
            if op.flags:
                end = min(end, self.nbytes)
                data = bytes(max(0, end - op.offset))
        if end > self.nbytes:
            self.changes.append(Change(op_idx, grows_to=end))
            self.nbytes = end
        at = op.offset
        while data:
            count = min(len(data), SECTOR - at % SECTOR)
            self.changes.append(Change(op_idx, at, data[:count]))
            data, at = data[count:], at + count

    def truncate(self, op_idx: int) -> None:
        """Do what opening it with O_TRUNC does."""
        self.changes.append(Change(op_idx, cuts_to=0))
        self.nbytes = 0

    def sync(self, failed: bool) -> None:
        """Make the changes durable."""
        sure = _sync(self.changes, failed)
        self.base = self.image(set(sure), self.changes[: len(sure)])
        del self.changes[: len(sure)]

    def unsure(self) -> list[Change]:
        """Return the changes that may be there or not."""
        return [change for change in self.changes if change.fate != _SURE]

    def image(
        self,
        chosen: set[Change],
        changes: list[Change] | None = None,
        garbage: random.Random | None = None,
    ) -> bytes:
        """Return its bytes when what is sure, and these changes, are there."""
        nbytes, data = len(self.base), bytearray(self.base)
        for change in self.changes if changes is None else changes:
            new, end = change.data, change.offset + len(change.data)
            if change.fate != _SURE and change not in chosen:
                if garbage is None or change.offset < len(self.base):
                    continue
                new = garbage.randbytes(len(new))
            elif change.cuts_to is not None:
                data[change.cuts_to :] = b""
                nbytes = min(nbytes, change.cuts_to)
            else:
                nbytes = max(nbytes, change.grows_to)
            if new:
                data += bytes(max(0, end - len(data)))
                data[change.offset : end] = new
        data += bytes(max(0, nbytes - len(data)))
        return bytes(data[:nbytes])

    def images(self, rng: random.Random, most: int) -> Iterator[bytes]:
        """Yield what it may hold after a power failure, each once."""
        unsure = self.unsure()
        is_few = 2 ** len(unsure) <= most
        choices = _every(unsure) if is_few else _some(unsure, rng, most)
        seen = set()
        for chosen in choices:
            garbage = rng if rng.random() < _GARBAGE else None
            image = self.image(chosen, garbage=garbage)
            if image not in seen:
                seen.add(image)
                yield image


def _every(parts: Sequence[_P]) -> Iterator[set[_P]]:
    """Yield every set of some of them."""
    for bits in product((False, True), repeat=len(parts)):
        yield set(compress(parts, bits))


def _some(
    changes: list[Change], rng: random.Random, most: int
) -> Iterator[set[Change]]:
    """Yield sets of changes: operations as a whole, and sectors at random."""
    lengths = {change for change in changes if not change.data}
    ops = sorted({change.op_idx for change in changes})
    whole = [{c for c in changes if c.op_idx == idx} for idx in ops]
    planned = [set(changes), set()]
    planned += [lengths | set(changes) - op for op in whole]
    planned += [lengths | op for op in whole]
    planned += [set(chain(*whole[:i])) for i in range(1, len(whole))]
    if len(planned) > most // 2:
        planned = planned[:2] + rng.sample(planned[2:], max(0, most // 2 - 2))
    yield from planned
    for _ in range(most - len(planned)):
        share = rng.choice((0.1, 0.5, 0.9))
        units = rng.choice((whole, [{change} for change in changes]))
        chosen = set(chain(*(unit for unit in units if rng.random() < share)))
        yield chosen | lengths if rng.random() < 0.8 else chosen


class Disk:
    """A folder of files on a disk, changed by the operations of a log."""

    def __init__(self, folder: Path) -> None:
        self._names: dict[str, File] = {}
        self._by_inode: dict[int, File] = {}
        for entry in os.scandir(folder):
            file = File(Path(entry.path).read_bytes())
            self._names[entry.name] = self._by_inode[entry.inode()] = file
        self._namings: list[Naming] = []
        self._ops_done = 0

    def do(self, op: Op) -> None:
        """Do what a log says."""
        self._ops_done += 1
        if op.kind == "s" and op.flags & FOLDER:
            for naming in _sync(self._namings, bool(op.error)):
                _name(self._names, naming)
                self._namings.remove(naming)
        elif op.kind == "s":
            self._by_inode[op.inode].sync(bool(op.error))
        elif op.kind in "wtp" and not op.error:
            self._by_inode[op.inode].change(op, self._ops_done)
        elif op.kind == "o" and not op.error:
            self._open(op)
        elif op.kind in "rlu" and not op.error:
            self._rename(op)

    def contents(self) -> dict[str, bytes]:
        """Return what programs see: every change is there."""
        names = self._names_with(self._namings)
        return {name: file.image(set(file.changes)) for name, file in names.items()}

    def images(
        self, name: str, rng: random.Random, most: int
    ) -> Iterator[bytes | None]:
        """Yield what may be there under a name; None: no file.

        All that is possible where that is at most `most` for a file, else some.
        """
        unsure = [naming for naming in self._namings if naming.fate != _SURE]
        found = {}
        for chosen in _every(unsure):
            file = self._names_with(chosen).get(name)
            found[id(file)] = file
        for file in found.values():
            if file is None:
                yield None
            else:
                yield from file.images(rng, most)

    # ---- names -----------------------------------------------------------------------

    def _names_with(self, chosen: set[Naming] | list[Naming]) -> dict[str, File]:
        names = dict(self._names)
        for naming in self._namings:
            if naming.fate == _SURE or naming in chosen:
                _name(names, naming)
        return names

    def _open(self, op: Op) -> None:
        if op.flags & CREATED:
            file = self._by_inode[op.inode] = File(b"")
            name = os.path.basename(op.path)
            self._namings.append(Naming(self._ops_done, appears=name, file=file))
        elif op.flags & TRUNCATED:
            self._by_inode[op.inode].truncate(self._ops_done)

    def _rename(self, op: Op) -> None:
        if op.kind == "r" and (op.flags or not op.to):
            raise NotImplementedError(f"rename with flags {op.flags}")
        name = os.path.basename(op.path)
        file = self._names_with(self._namings)[name]
        naming = Naming(self._ops_done, file=file)
        if op.kind in "ru":
            naming.goes = name
        if op.kind in "rl":
            naming.appears = os.path.basename(op.to)
        self._namings.append(naming)


def _name(names: dict[str, File], naming: Naming) -> None:
    if naming.goes is not None:
        names.pop(naming.goes, None)
    if naming.appears is not None:
        assert naming.file is not None
        names[naming.appears] = naming.file
