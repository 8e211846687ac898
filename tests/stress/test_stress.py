# SPDX-License-Identifier: BSD-3-Clause
"""Does everything hold when everything happens at once, for a few seconds?

``make stress`` runs the same for longer: ``LAZYMEM_STRESS_SECONDS`` for each,
``LAZYMEM_STRESS_SEED`` for what they do.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.engine.build import Engine, environment

HERE = Path(__file__).resolve().parent
SECONDS = os.environ.get("LAZYMEM_STRESS_SECONDS", "3")
SEED = os.environ.get("LAZYMEM_STRESS_SEED", "")
SKIPPED = 77
SLACK_S = 240
"""To begin and to end, under sanitizers; what hangs is ended by the programs."""

pytestmark = pytest.mark.needs_uffd


def run(*command: str | Path, **env: str) -> None:
    """Run a program, which tells its seed first and what it did last."""
    done = subprocess.run(
        [*command, SECONDS, *SEED.split()],
        env={**os.environ, **env},
        timeout=float(SECONDS) + SLACK_S,
        check=False,
    )
    if done.returncode == SKIPPED:
        pytest.skip("see its output")
    assert done.returncode == 0


def test_stress_of_the_engine(engine: Engine) -> None:
    run(engine.program(HERE / "stress.c"), **environment(engine.folder))


@pytest.mark.parametrize("script", ["stress.py", "shared.py"])
def test_stress_from_python(script: str) -> None:
    python = [sys.executable, "-X", "faulthandler"]
    run(*python, HERE / script, PYTHONPATH=str(ROOT))
