# SPDX-License-Identifier: BSD-3-Clause
"""The benchmarks run, and their rivals agree.  Times are nobody's business here."""

from __future__ import annotations

import functools
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESULTS = BENCHMARKS / "results"

CASES = {
    "open": ["lazymem", "1 MB, warm", "1 TiB, warm", "1 TiB, cold"],
    "touched": ["sum of all: np.asarray(a)", "100,000 scalars: memmap"],
    "memory": ["nothing", "1 % of the rows, random", "everything", "4 GB"],
    "size": ["weather, lz4", "timestamps, zstd 3", "noise, zstd 3", "land mask, lz4"],
    "read": [
        "memmap",
        "a page fault, two cores",
        "file, MiB",
        "zstd, decoding, one core",
        "10,000 random elements, cold",
        "10,000 random elements, again",
        "10,000 elements, in one call, cold",
        "200 random rows, cold",
        "one column, cold",
        "sum of all, warm",
        "peak of the sum",
        "two processes",
    ],
    "chunks": ["16 KiB", "128 KiB"],
    "scale": ["1 MB", "16 TiB", "1 array", "1 MiB", "scattered in 16 TiB"],
    "budget": [
        "limit: an eighth",
        "Zipf 1.0",
        "scan and hot set",
        "write, double, read",
    ],
    "session": [
        "first save",
        "save, 1 % changed",
        "undo of a cell that changed 1 %",
        "new kernel: restore",
    ],
    "umap": [
        "umap",
        "lazymem",
        "4 KiB, random touch",
        "64 KiB, scan",
        "4 KiB, scan in a quarter",
    ],
    "writes": [
        "write fault, and unprotecting the chunk",
        "random rows of 64 KiB, all, first pass",
        "snapshot of 1 %",
        "restore, nothing differs",
        "a snapshot of all under way",
        "lazymem, snapshot, scattered",
        "np.save of all, in one piece",
    ],
}
"""Some of the rows that each benchmark must have."""


def run(script: str, *args: Any) -> str:
    """Run a script of the benchmarks and return what it printed."""
    command = [sys.executable, BENCHMARKS / script, *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that runs a benchmark, once: its file, and what it printed."""
    folder = tmp_path_factory.mktemp("results")

    @functools.cache
    def run_once(name: str) -> tuple[Path, str]:
        out = folder / f"{name}.json"
        return out, run(f"bench_{name}.py", "--smoke", "--out", out)

    return run_once


def numbers(value: Any) -> list[float]:
    """Return all numbers of a column."""
    if isinstance(value, dict):
        return list(value.values())
    return [value] if isinstance(value, (int, float)) else []


def test_every_benchmark_is_tested() -> None:
    scripts = {path.stem for path in BENCHMARKS.glob("bench_*.py")}
    assert scripts == {f"bench_{name}" for name in CASES}


@pytest.mark.slow
@pytest.mark.needs_uffd
@pytest.mark.parametrize("name", CASES)
def test_smoke_run_has_all_rows_and_rivals_agree(name: str, smoke: Any) -> None:
    pytest.importorskip("global_land_mask")
    out, table = smoke(name)

    result = json.loads(out.read_text())
    assert result["benchmark"] == name
    assert result["smoke"]
    assert result["question"].endswith("?")
    assert result["kernel"]
    assert result["versions"]["numpy"]
    assert set(CASES[name]) <= {row["case"] for row in result["rows"]}
    for row in result["rows"]:
        first, *others = row["answers"].values()
        assert all(math.isclose(first, x, rel_tol=1e-5) for x in others), row
        assert all(math.isfinite(x) for v in row.values() for x in numbers(v)), row
        assert f"| {row['case']} |" in table


@pytest.mark.slow
@pytest.mark.needs_uffd
def test_new_results_can_be_reported_and_drawn(smoke: Any, tmp_path: Path) -> None:
    pytest.importorskip("global_land_mask")
    pytest.importorskip("matplotlib")
    for path in RESULTS.glob("*.json"):
        shutil.copy(path, tmp_path)
    for name in ("read", "scale"):
        shutil.copy(smoke(name)[0], tmp_path)
    assert "| sum of all, cold, s | 0" in run("report.py", tmp_path)
    run("plot.py", tmp_path)
    for name in ("read", "scale"):
        assert "<svg" in (tmp_path / f"{name}.svg").read_text()


@pytest.mark.slow
@pytest.mark.needs_uffd
def test_a_part_of_a_benchmark_can_be_chosen(tmp_path: Path) -> None:
    out = tmp_path / "read.json"
    some = ("--peers", "memmap,lazymem_lz4", "--ops", "rows", "--sets", "weather")
    run("bench_read.py", "--smoke", *some, "--out", out)
    cases = [row["case"] for row in json.loads(out.read_text())["rows"]]
    rows = ["200 random rows, cold", "200 random rows, again"]
    assert cases == ["memmap", "lazymem_lz4", *rows]


def test_report_prints_the_figures_of_the_results() -> None:
    table = run("report.py")
    assert table.count("\n|") > 5
    for path in RESULTS.glob("*.json"):
        assert not json.loads(path.read_text())["smoke"]
