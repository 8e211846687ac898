# SPDX-License-Identifier: BSD-3-Clause
"""What the crash tests share."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.disk import Disk
from tests.crash.explore import DEPTH, SEED, Explorer, Findings
from tests.crash.recorder import Fault, Recorder, Result
from tests.crash.scenarios import BROKEN, NAME, SCENARIOS


class Bench:
    """Runs scenarios, and counts what is found."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._recorder = Recorder(folder)
        self._number = itertools.count()
        self._explorer = Explorer(folder)
        self.points = self.bad = 0

    def run(self, name: str, fault: Fault | None = None) -> tuple[Path, Disk, Result]:
        """Run a scenario; return the store file, the disk before, and the result.

        The log must account for all that is in the folder.
        """
        before = self._folder / f"before {name}"
        if not before.exists():
            before.mkdir()
            {**SCENARIOS, **BROKEN}[name].setup(before / NAME)
        folder = self._folder / str(next(self._number))
        shutil.copytree(before, folder)
        disk, replay = Disk(folder), Disk(folder)
        result = self._recorder.run(name, folder, fault)
        for op in result.ops:
            replay.do(op)
        found = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert replay.contents() == found
        return folder / NAME, disk, result

    def explore(self, name: str, disk: Disk, result: Result, depth: int) -> Findings:
        """Try the power failures of a run."""
        scenario = {**SCENARIOS, **BROKEN}[name]
        findings = self._explorer.explore(scenario, disk, result.ops, depth)
        if name in SCENARIOS:
            self.points += findings.points
            self.bad += len(findings.bad)
        return findings

    def close(self) -> None:
        """End the recorded process."""
        self._recorder.close()
        print(
            f"\n{self.points} crash points, {self.bad} bad opens "
            f"(depth {DEPTH}, seed {SEED})"
        )


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("crash"))
    yield bench
    bench.close()
