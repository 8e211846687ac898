# SPDX-License-Identifier: BSD-3-Clause
"""Is every state that a power failure may leave one that the scenario allows?"""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.disk import Disk
from tests.crash.recorder import Op
from tests.crash.scenarios import NAME, Scenario
from tests.crash.state import State, go_on, read_state

IS_FULL = "LAZYMEM_CRASH_DEPTH" in os.environ
DEPTH = int(os.environ.get("LAZYMEM_CRASH_DEPTH", "6"))
"""Images tried after each operation; all, where that are fewer."""
SEED = int(os.environ.get("LAZYMEM_CRASH_SEED") or "20263")


@dataclass
class Findings:
    """What was tried."""

    points: int = 0
    """Crash points: an image of the disk after an operation, each once."""
    images: int = 0
    """Different images among them; each was opened."""
    bad: list[str] = field(default_factory=list)
    """Crash points where the store can't be read, or holds what it must not."""

    def check(self, what: str) -> None:
        """Fail if there are bad crash points."""
        if self.bad:
            raise AssertionError("\n".join([f"{what}: {self}", *self.bad[:10]]))

    def __str__(self) -> str:
        return f"{self.points} crash points, {self.images} images, {len(self.bad)} bad"


class Explorer:
    """Tries what a disk may hold after each operation of a run."""

    def __init__(self, scratch: Path) -> None:
        self._path = scratch / NAME
        self._known: dict[bytes, State | Exception | None] = {}

    def explore(
        self, scenario: Scenario, disk: Disk, ops: list[Op], depth: int = DEPTH
    ) -> Findings:
        """Replay a log on the disk as it was before."""
        findings, rng, steps_done = Findings(), random.Random(SEED), 0
        opened = set()
        for number, op in enumerate(ops, 1):
            disk.do(op)
            if op.kind == "c":
                continue
            if op.kind == "m":
                steps_done = op.offset
            legal = scenario.states[steps_done : steps_done + 2]
            for image in disk.images(NAME, rng, depth):
                findings.points += 1
                digest = _digest(image)
                opened.add(digest)
                if digest not in self._known:
                    self._known[digest] = self._try(image)
                found = self._known[digest]
                if found not in legal:
                    where = f"after operation {number}, {op}, {steps_done} steps done"
                    findings.bad.append(f"{where}: {found!r} (seed {SEED})")
        findings.images = len(opened)
        return findings

    def _try(self, image: bytes | None) -> State | Exception | None:
        self._path.unlink(missing_ok=True)
        if image is not None:
            self._path.write_bytes(image)
        try:
            found = read_state(self._path)
            go_on(self._path, found)
        except Exception as exc:
            return exc
        return found


def _digest(image: bytes | None) -> bytes:
    return b"" if image is None else hashlib.blake2b(image, digest_size=16).digest()
