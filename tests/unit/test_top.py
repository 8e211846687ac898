# SPDX-License-Identifier: BSD-3-Clause
"""Does `lazymem top` show who wants to be seen, and nobody else?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import lazymem as lm
from lazymem import cli, top
from tests.conftest import ROOT, wait_until

CHUNK_BYTES = 4096
CHILD = """
import os, sys, lazymem as lm
store = lm.open(sys.argv[1], "r+")
x = store["x"]
x[:4096].sum()
x[4096 * 4] = 1
{}
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the files of these tests apart from those of real processes."""
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    found = tmp_path / "run/lazymem"
    monkeypatch.setattr(top, "folders", lambda: [found])
    return found


@pytest.fixture
def store(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, 20 * CHUNK_BYTES, "u1")
    lm.save(tmp_path / "s.lzm", x=noise, chunk_bytes=CHUNK_BYTES)
    return tmp_path / "s.lzm"


@contextmanager
def running(store: Path, more: str = "", **env: str) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(more), store],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LAZYMEM_TOP": "1", **env},
    )
    assert child.stdout is not None
    with child:
        try:
            assert child.stdout.readline() == "ready\n"
            yield child
        finally:
            assert child.stdin is not None
            child.stdin.close()


def run(*args: object) -> Result:
    return CliRunner().invoke(cli.cli, ["top", *map(str, args)])


def seen(pid: int) -> dict[str, Any]:
    """Return what the first store of a process shows; nothing, before it does."""
    stores = (s["stores"] for s in top.samples() if s["pid"] == pid)
    return next((rows[0] for rows in stores if rows), {})


@pytest.mark.needs_uffd
def test_a_process_shows_its_counters_until_it_ends(folder: Path, store: Path) -> None:
    with running(store) as child:
        file = folder / f"{child.pid}.json"
        wait_until(lambda: seen(child.pid).get("bytes_dirty"))
        assert folder.stat().st_mode & 0o777 == 0o700
        assert file.stat().st_mode & 0o777 == 0o600
        (sample,) = json.loads(run("--json").stdout)
        (row,) = sample["stores"]
        assert sample["pid"] == child.pid
        assert sample["command"].startswith(sys.executable)
        assert (row["path"], row["mode"], row["arrays"]) == (str(store), "r+", 1)
        assert row["bytes_resident"] >= row["bytes_filled"] > 0
        assert row["bytes_dirty"] == CHUNK_BYTES
        assert row["faults"] >= 2
        assert row["failures"] == 0
        for result in (run(), run("--once")):
            header, line = result.stdout.splitlines()
            assert header.split()[:2] == ["pid", "stores"]
            assert line.split()[:3] == [str(child.pid), "1", "1"]
        assert str(store) in run(child.pid).stdout
    wait_until(lambda: not file.exists())
    assert os.listdir(folder) == []


@pytest.mark.needs_uffd
def test_rates_are_of_the_last_moment(
    folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top, "INTERVAL_S", 0.01)
    monkeypatch.setenv("LAZYMEM_TOP", "1")
    monkeypatch.setattr(top, "_publisher", None)

    def row() -> dict[str, Any]:
        return seen(os.getpid())

    with lm.open(store) as opened:
        x = opened["x"]
        wait_until(lambda: row().get("arrays") == 1)
        assert row()["faults_per_s"] == 0
        x.sum()
        wait_until(lambda: row()["bytes_filled"] == x.nbytes)
        assert row()["bytes_resident"] == x.nbytes
        wait_until(lambda: row()["bytes_filled_per_s"] == 0)
    wait_until(lambda: row() == {})
    assert top._publisher is not None
    top._publisher.close()
    assert os.listdir(folder) == []


@pytest.mark.needs_uffd
def test_a_forked_child_shows_itself(folder: Path, store: Path) -> None:
    fork = """
import time, warnings
warnings.simplefilter("ignore")  # of forks beside threads
child = os.fork()
if child == 0:
    x[4096 * 8 : 4096 * 9].sum()
    time.sleep(100)
import atexit, signal
atexit.register(os.kill, child, signal.SIGKILL)
"""
    with running(store, fork) as parent:
        wait_until(lambda: len(list(folder.glob("*.json"))) == 2)
        one, two = top.samples()
        assert parent.pid in (one["pid"], two["pid"])
        modes = {sample["pid"]: sample["stores"][0]["mode"] for sample in (one, two)}
        assert modes.pop(parent.pid) == "r+"
        assert list(modes.values()) == ["c"]


@pytest.mark.needs_uffd
def test_who_was_killed_or_lent_its_number_is_not_shown(
    folder: Path, store: Path
) -> None:
    with running(store) as child:
        file = folder / f"{child.pid}.json"
        wait_until(file.exists)
        sample = json.loads(file.read_text())
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert file.exists()
    assert top.samples() == []
    assert not file.exists()
    other = {**sample, "pid": os.getpid()}  # runs, but began at another time
    (folder / f"{os.getpid()}.json").write_text(json.dumps(other))
    for text in ("", "[]", '{"pid": "x"}', "{}"):
        (folder / "1.json").write_text(text)
        assert top.samples() == []
    assert os.listdir(folder) == ["1.json"]


def test_a_process_that_does_not_ask_for_it_writes_nothing(
    folder: Path, store: Path, run_python: Any
) -> None:
    script = """
import sys, threading, lazymem as lm
lm.open(sys.argv[1])["x"][0]
print("lazymem.top" in sys.modules, threading.active_count())
"""
    for value in ("", "0"):
        done = run_python(script, store, LAZYMEM_TOP=value)
        assert done.stdout == "False 1\n", done.stderr
    assert not folder.exists()


def test_a_folder_of_others_is_neither_written_nor_believed(
    folder: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    folder.symlink_to(tmp_path / "open")
    monkeypatch.setattr(top, "_publisher", None)
    monkeypatch.setenv("LAZYMEM_TOP", "1")
    with pytest.warns(lm.LazyMemWarning, match="lazymem top' will not see this"):
        lm.open(store).close()
    assert os.listdir(tmp_path / "open") == []
    (tmp_path / "open" / "1.json").write_text("{}")
    assert top.samples() == []
    assert os.listdir(tmp_path / "open") == ["1.json"]


def test_nobody_to_show_says_how_to_be_shown(folder: Path) -> None:
    result = run()
    assert result.exit_code == 0
    assert "start it with LAZYMEM_TOP=1" in result.output
    result = run(os.getpid())
    assert result.exit_code == 1
    assert f"process {os.getpid()} shows no counters: start it" in result.output
    assert json.loads(run("--json").stdout) == []
