# SPDX-License-Identifier: BSD-3-Clause
"""Does a process that is killed leave the old state or the new one, whole?"""

from __future__ import annotations

import signal

import pytest

from tests.crash.conftest import Bench
from tests.crash.scenarios import SCENARIOS
from tests.crash.state import go_on, read_state


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_before_any_operation(bench: Bench, name: str) -> None:
    states = SCENARIOS[name].states
    for fault in bench.faults(name, "kill", "*"):
        path, _, result = bench.run(name, fault)
        assert result.status == -signal.SIGKILL
        steps_done = max([0, *(op.offset for op in result.ops if op.kind == "m")])
        found = read_state(path)
        assert found in states[steps_done : steps_done + 2], fault
        go_on(path, found)
