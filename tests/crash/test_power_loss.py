# SPDX-License-Identifier: BSD-3-Clause
"""Does a power failure at any point leave the old state or the new one, whole?"""

from __future__ import annotations

import pytest

from tests.crash.conftest import Bench
from tests.crash.explore import DEPTH
from tests.crash.recorder import Fault
from tests.crash.scenarios import BROKEN, SCENARIOS
from tests.crash.state import read_state


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_crash_point_has_the_old_state_or_the_new_one(
    bench: Bench, name: str
) -> None:
    path, disk, result = bench.run(name)
    assert result.status == 0, result
    assert result.answer["traceback"] == ""
    assert read_state(path) == SCENARIOS[name].states[-1]
    findings = bench.explore(name, disk, result, DEPTH)
    print(f"{name}: {findings}")
    findings.check(name)


@pytest.mark.parametrize("name", SCENARIOS)
def test_syncs_that_do_nothing_are_found(bench: Bench, name: str) -> None:
    _, disk, result = bench.run(name, Fault("swallow", "s"))
    assert result.answer["traceback"] == ""
    assert bench.explore(name, disk, result, DEPTH).bad


def test_each_sync_of_an_append_counts(bench: Bench) -> None:
    name = "append objects"
    for fault in bench.faults(name, "swallow", "s"):
        _, disk, result = bench.run(name, fault)
        assert bench.explore(name, disk, result, DEPTH).bad, fault


@pytest.mark.parametrize("name", BROKEN)
def test_careless_programs_are_found(bench: Bench, name: str) -> None:
    path, disk, result = bench.run(name)
    assert result.answer["traceback"] == ""
    assert read_state(path) == BROKEN[name].states[-1]
    assert bench.explore(name, disk, result, DEPTH).bad
