# SPDX-License-Identifier: BSD-3-Clause
"""Are the README's figures results, and does each test that a table names exist?"""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.conftest import ROOT


def report(*options: str) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "report.py", *options],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.count("\n") > 10
    return done.stdout.strip()


def test_every_figure_of_the_readme_is_a_result_of_a_benchmark() -> None:
    assert report() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_all_tables_are_those_of_the_results() -> None:
    text = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    assert report("--all") == text.strip()


def test_every_test_that_contributing_names_exists() -> None:
    names = re.findall(r"`(test_\w+)`", (ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    files = (ROOT / "tests").rglob("test_*.py")
    code = "\n".join(file.read_text(encoding="utf-8") for file in files)
    assert len(names) > 5
    assert [name for name in names if f"def {name}(" not in code] == []
