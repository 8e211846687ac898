# SPDX-License-Identifier: BSD-3-Clause
"""Does pruning leave alone what a power failure may bring back?"""

from __future__ import annotations

import pytest

from tests.crash.conftest import Bench
from tests.crash.explore import DEPTH, IS_FULL
from tests.crash.recorder import Result
from tests.crash.scenarios import SCENARIOS
from tests.crash.state import read_state

pytestmark = pytest.mark.needs_uffd


def test_pruned_when_a_commit_was_interrupted(bench: Bench) -> None:
    holes = 0
    for fault in bench.faults("flush", "kill", "*" if IS_FULL else "s"):
        path, disk, killed = bench.run("flush", fault)
        found = read_state(path)
        pruned = bench.run_again("prune", path)
        pruned.check(str(fault))
        assert found == read_state(path)
        assert found in SCENARIOS["flush"].states
        holes += sum(op.kind == "p" for op in pruned.ops)
        ops = killed.ops + [op for op in pruned.ops if op.kind != "m"]
        bench.check("flush", str(fault), disk, Result(0, ops, {}), DEPTH // 20 + 5)
    assert holes > 0
