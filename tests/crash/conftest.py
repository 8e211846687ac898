# SPDX-License-Identifier: BSD-3-Clause
"""What the crash tests share."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.disk import Disk
from tests.crash.explore import DEPTH, IS_FULL, SEED, Explorer, Findings
from tests.crash.recorder import EVER, Fault, Op, Recorder, Result
from tests.crash.scenarios import BROKEN, NAME, SCENARIOS

MEMORY = Path("/dev/shm")


class Bench:
    """Runs scenarios, and counts what is found."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._recorder = Recorder(folder)
        self._runs = 0
        self._explorer = Explorer(folder)
        self._ops: dict[str, list[Op]] = {}
        self.points = self.images = self.bad = 0

    def run(self, name: str, fault: Fault | None = None) -> tuple[Path, Disk, Result]:
        """Run a scenario; return the store file, the disk before, and the result.

        The log must account for all that is in the folder.
        """
        before = self._folder / f"before {name}"
        if not before.exists():
            before.mkdir()
            {**SCENARIOS, **BROKEN}[name].setup(before / NAME)
        self._runs += 1
        folder = self._folder / str(self._runs)
        shutil.copytree(before, folder)
        disk, replay = Disk(folder), Disk(folder)
        result = self._recorder.run(name, folder, fault)
        _check_log(replay, result, folder)
        return folder / NAME, disk, result

    def run_again(self, name: str, path: Path) -> Result:
        """Run a scenario on what an earlier run has left."""
        self._runs += 1
        replay = Disk(path.parent)
        result = self._recorder.run(name, path.parent)
        _check_log(replay, result, path.parent)
        return result

    def faults(
        self, name: str, action: str, kinds: str, error: int = 0
    ) -> Iterator[Fault]:
        """Yield a fault at each operation of some kinds, or at some of them."""
        ops = self._known_ops(name)
        count = sum(op.kind in kinds or (kinds == "*" and op.kind != "m") for op in ops)
        numbers = list(range(1, count + 1))
        if not IS_FULL and count > 2 and kinds != "s":
            numbers = [random.Random(SEED).randrange(1, count), count]
        for n in numbers:
            yield Fault(action, kinds, n, EVER if action == "full" else n, error)

    def explore(self, name: str, disk: Disk, result: Result, depth: int) -> Findings:
        """Try the power failures of a run."""
        scenario = {**SCENARIOS, **BROKEN}[name]
        return self._explorer.explore(scenario, disk, result.ops, depth)

    def check(
        self, name: str, what: str, disk: Disk, result: Result, depth: int
    ) -> Findings:
        """Fail if a power failure can leave what it must not."""
        findings = self.explore(name, disk, result, depth)
        self.points += findings.points
        self.images += findings.images
        self.bad += len(findings.bad)
        findings.check(f"{name}, {what}")
        return findings

    def _known_ops(self, name: str) -> list[Op]:
        if name not in self._ops:
            self._ops[name] = self.run(name)[2].ops
        return self._ops[name]

    def close(self) -> None:
        """End the recorded process."""
        self._recorder.close()
        print(
            f"\n{self.points} crash points of {self._runs} runs, {self.images} images, "
            f"{self.bad} bad opens (depth {DEPTH}, seed {SEED})"
        )


def _check_log(replay: Disk, result: Result, folder: Path) -> None:
    for op in result.ops:
        replay.do(op)
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert replay.contents() == found


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("crash")
    if os.access(MEMORY, os.W_OK):  # real syncs would take most of the time
        folder = Path(tempfile.mkdtemp(dir=MEMORY, prefix="lazymem-crash-"))
    bench = Bench(folder)
    yield bench
    bench.close()
    shutil.rmtree(folder)
