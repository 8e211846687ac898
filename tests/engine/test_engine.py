# SPDX-License-Identifier: BSD-3-Clause
"""Does the engine do what it says, without Python?

Builds the C programs of this folder, as build.py says, and runs them.
"""

from __future__ import annotations

import subprocess

import pytest

from tests.engine.build import HERE, Engine, environment

SKIPPED = 77
TIMEOUT_S = {"plain": 60, "asan": 240, "tsan": 240}
PROGRAMS = sorted(path.stem for path in HERE.glob("*.c"))


@pytest.mark.parametrize("program", PROGRAMS)
def test_engine(program: str, engine: Engine) -> None:
    done = subprocess.run(
        [engine.program(HERE / f"{program}.c")],
        env=environment(engine.folder),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S[engine.variant],
        check=False,
    )
    if done.returncode == SKIPPED:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
