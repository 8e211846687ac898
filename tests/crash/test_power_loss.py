# SPDX-License-Identifier: BSD-3-Clause
"""Does a power failure at any point leave the old state or the new one, whole?"""

from __future__ import annotations

import pytest

from tests.crash.conftest import Bench
from tests.crash.explore import DEPTH
from tests.crash.recorder import Fault
from tests.crash.scenarios import BROKEN, CASES, SCENARIOS
from tests.crash.state import read_state

ENOUGH = 40
"""Images at each point, to find what is clearly wrong."""


@pytest.mark.parametrize("name", CASES)
def test_every_crash_point_has_the_old_state_or_the_new_one(
    bench: Bench, name: str
) -> None:
    path, disk, result = bench.run(name)
    result.check(name)
    assert read_state(path) == SCENARIOS[name].states[-1]
    findings = bench.check(name, "no fault", disk, result, DEPTH)
    print(f"{name}: {findings}")


@pytest.mark.parametrize("name", CASES)
def test_syncs_that_do_nothing_are_found(bench: Bench, name: str) -> None:
    _, disk, result = bench.run(name, Fault("swallow", "s"))
    result.check(name)
    assert bench.explore(name, disk, result, min(DEPTH, ENOUGH)).bad


@pytest.mark.needs_uffd
@pytest.mark.parametrize("name", ["snapshot", "delete a snapshot"])
def test_each_sync_of_a_commit_counts(bench: Bench, name: str) -> None:
    for fault in bench.faults(name, "swallow", "s"):
        _, disk, result = bench.run(name, fault)
        assert bench.explore(name, disk, result, ENOUGH).bad, fault


@pytest.mark.parametrize("name", BROKEN)
def test_careless_programs_are_found(bench: Bench, name: str) -> None:
    path, disk, result = bench.run(name)
    result.check(name)
    assert read_state(path) == BROKEN[name].states[-1]
    assert bench.explore(name, disk, result, ENOUGH).bad
