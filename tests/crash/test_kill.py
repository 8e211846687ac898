# SPDX-License-Identifier: BSD-3-Clause
"""Does a process that is killed leave the old state or the new one, whole?"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.crash.conftest import Bench
from tests.crash.scenarios import CASES, NAME, SCENARIOS
from tests.crash.state import go_on, read_state


@pytest.mark.parametrize("name", CASES)
def test_killed_before_any_operation(bench: Bench, name: str) -> None:
    states = SCENARIOS[name].states
    for fault in bench.faults(name, "kill", "*"):
        path, _, result = bench.run(name, fault)
        assert result.status == -signal.SIGKILL
        steps_done = max([0, *(op.offset for op in result.ops if op.kind == "m")])
        found = read_state(path)
        assert found in states[steps_done : steps_done + 2], fault
        go_on(path, found)


@pytest.mark.parametrize("point", ["write", "sync"])
def test_killed_by_the_switch_for_programs(
    tmp_path: Path, run_python: Callable[..., Any], point: str
) -> None:
    script = """
import sys, lazymem as lm
from lazymem.testing import KILL, failing
with failing(sys.argv[2], KILL, skip=1):
    lm.save(sys.argv[1], a=list(range(1000)))
"""
    done = run_python(script, tmp_path / NAME, point)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert read_state(tmp_path / NAME) is None
