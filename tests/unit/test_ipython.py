# SPDX-License-Identifier: BSD-3-Clause
"""Do the magics of ``%load_ext lazymem`` do in a shell what they say?"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazymem as lm
from lazymem import session
from lazymem.linetrace import LineTrace
from tests.conftest import smooth

pytestmark = pytest.mark.needs_uffd
Run = Callable[[str], str]


@pytest.fixture
def new_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function that starts a kernel: one that runs cells, and says more."""
    shells = pytest.importorskip("IPython.core.interactiveshell")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    begun: list[Any] = []

    def end() -> None:
        while begun:
            shell = begun.pop()
            shell.magics_manager.registry["LazyMemMagics"].close(discard=True)
            shell.history_manager.end_session()
            shells.InteractiveShell.clear_instance()

    def new() -> Any:
        end()
        shell = shells.InteractiveShell.instance(colors="nocolor")
        begun.append(shell)
        shell.run_cell("%load_ext lazymem")
        shell.user_ns.update(np=np, big=smooth((20_000, 32), "f8"))
        return shell

    yield new
    end()


@pytest.fixture
def cell(capsys: pytest.CaptureFixture[str]) -> Callable[[Any, str], str]:
    """Return a function that runs a cell and returns what it prints."""

    def run(shell: Any, text: str) -> str:
        capsys.readouterr()
        shell.run_cell(text)
        shown = capsys.readouterr()
        return shown.out + shown.err

    return run


def test_a_bad_cell_is_undone_and_a_kernel_restarted(new_shell: Any, cell: Any) -> None:
    shell = new_shell()
    cell(shell, "x = big; head = x[:5]; note = {'k': [1]}; _hidden = 1\ndef f(): pass")
    said = cell(shell, "%lazymem checkpoint raw")
    assert said.startswith("<memory>: big, x, head, note; ")
    assert isinstance(shell.user_ns["x"], lm.LazyArray)
    cell(shell, "x[7] = x[-1] = 0; note['k'].append(2); note = [note]")
    assert "2 chunks of memory given up" in cell(shell, "%lazymem rollback raw")
    x = smooth((20_000, 32), "f8")
    np.testing.assert_array_equal(shell.user_ns["x"], x)
    assert shell.user_ns["note"] == {"k": [1]}
    cell(shell, "head[1] = -1\n%lazymem save work.lzm")
    assert "0.0 MiB appended" in cell(shell, "%lazymem save work.lzm")
    cell(shell, "%lazymem checkpoint kept")

    shell = new_shell()
    assert cell(shell, "%lazymem restore work.lzm").startswith("restored big, x, head")
    x[1] = -1
    np.testing.assert_array_equal(shell.user_ns["x"], x)
    assert shell.user_ns["x"] is shell.user_ns["big"]
    assert "f" not in shell.user_ns
    cell(shell, "x[:] = 0")
    assert "would mix" in cell(shell, "%lazymem restore work.lzm")
    cell(shell, "%lazymem rollback kept")
    np.testing.assert_array_equal(shell.user_ns["head"], x[:5])


def test_what_can_not_be_saved_is_listed(new_shell: Any, cell: Any) -> None:
    shell = new_shell()
    said = cell(shell, "s = {1}; n = 1\n%lazymem save work.lzm s n")
    assert "work.lzm: n; " in said
    assert "not saved: s: a set has no form here but a pickle" in said
    cell(shell, "%lazymem save work.lzm s n --pickle")
    shell = new_shell()
    with pytest.warns(lm.LazyMemWarning, match="s: it is a pickle"):
        assert "restored n from" in cell(shell, "%lazymem restore work.lzm")
    cell(shell, "%lazymem restore work.lzm s --trust-pickle")
    assert shell.user_ns["s"] == {1}


def test_a_file_of_another_session_is_not_replaced_by_accident(
    new_shell: Any, cell: Any
) -> None:
    shell = new_shell()
    cell(shell, "mine = 1\n%lazymem save work.lzm")
    shell = new_shell()
    cell(shell, "other = 2\n%lazymem save work.lzm other")
    for command in ("save work.lzm", "checkpoint a", "save work.lzm"):
        assert "holds mine, which are" in cell(shell, f"%lazymem {command}")
    assert set(session.names_in(lm.open("work.lzm"))) == {"mine", "other", "big"}
    cell(shell, "%lazymem save work.lzm --replace")
    assert set(session.names_in(lm.open("work.lzm"))) == {"other", "big"}
    cell(shell, "del other\n%lazymem save work.lzm")  # it was ours
    assert session.names_in(lm.open("work.lzm")) == ("big",)


def test_a_file_is_opened_once_and_closed_with_the_extension(
    new_shell: Any, cell: Any
) -> None:
    shell = new_shell()
    cell(shell, "n = 1\n%lazymem save work.lzm")
    inode = os.stat("work.lzm").st_ino
    cell(shell, "n = 2\n%lazymem save ./work.lzm")
    assert os.stat("work.lzm").st_ino == inode
    with pytest.raises(lm.LockError):
        lm.open("work.lzm", "r+")
    cell(shell, "%unload_ext lazymem")
    with lm.open("work.lzm", "r+") as store:
        assert session.restore(store)["n"] == 2


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", "required: command"),
        ("forget it", "invalid choice: 'forget'"),
        ("rollback a", "no checkpoint 'a'; there is none"),
        ("restore none.lzm", "none.lzm"),
        ("save work.lzm nobody", "no variable 'nobody'"),
        ("trace", "is for a cell"),
        ("save", "required: file"),
    ],
)
def test_bad_usage_is_one_line(line: str, told: str, new_shell: Any, cell: Any) -> None:
    said = cell(new_shell(), f"%lazymem {line}")
    assert said.startswith("UsageError: ")
    assert told in said
    assert said.count("\n") == 1


def test_status_shows_facts_and_touches_nothing(new_shell: Any, cell: Any) -> None:
    shell = new_shell()
    assert "no store is open" in cell(shell, "%lazymem status")
    cell(shell, "%lazymem checkpoint raw")
    assert "big: 0 of" in cell(shell, "%lazymem status")
    cell(shell, "big[0] = 1")
    said = cell(shell, "%lazymem status")
    assert "checkpoints: raw" in said
    assert "unsaved" in said
    assert "1 written" in said


def test_a_taken_name_is_told(new_shell: Any, cell: Any) -> None:
    shell = new_shell()
    cell(shell, "%lazymem checkpoint a")
    assert "'a' exists" in cell(shell, "%lazymem checkpoint a")


# ---- trace ---------------------------------------------------------------------------


def test_a_trace_tells_which_line_filled_what(new_shell: Any, cell: Any) -> None:
    shell = new_shell()
    cell(shell, "%lazymem save work.lzm --adopt")
    said = cell(
        shell,
        "%%lazymem trace\n"
        "def first(a):\n"
        "    return a[0, 0]\n"
        "big.advise('random')\n"
        "for i in range(3):\n"
        "    first(big)\n"
        "big[-1] = 5\n"
        "first(big)",
    )
    rows = [row.split() for row in said.splitlines()]
    assert said.splitlines()[0].endswith("]: np.float64(0.0)")
    assert " ".join(rows[1]) == "line hits s faults write faults chunks MiB MiB read"
    hits_and_fills = {row[0]: (row[1], row[5]) for row in rows[2:]}
    assert hits_and_fills == {
        "1": ("1", "0"),
        "2": ("4", "1"),
        "3": ("1", "0"),
        "4": ("4", "0"),
        "5": ("3", "0"),
        "6": ("1", "1"),
        "7": ("1", "0"),
    }


def test_a_failing_cell_has_its_trace_and_its_error(new_shell: Any, cell: Any) -> None:
    shell = new_shell()
    said = cell(shell, "%%lazymem trace\nn = 1\n1 / 0\nn = 2")
    assert "ZeroDivisionError" in said
    assert shell.user_ns["n"] == 1


def test_a_trace_ends_where_it_began_and_counts_calls_with_the_caller(
    tmp_path: Path,
) -> None:
    lm.save(tmp_path / "x.lzm", x=np.arange(100_000), chunk_bytes=4096)
    before = sys.gettrace()
    with lm.open(tmp_path / "x.lzm") as store:
        x = np.asarray(store["x"])
        store["x"].advise("random")
        here: dict[str, Any] = {"x": x, "touch": lambda i: x[i]}
        code = compile("touch(0)\ntouch(600)\n[touch(i) for i in (0, 1)]", "me", "exec")
        with LineTrace(lambda frame: frame.f_code is code) as trace:
            exec(code, here)
    assert sys.gettrace() is before
    assert [trace.costs[line].fills for line in (1, 2, 3)] == [1, 1, 0]
    assert trace.costs[1].bytes_filled == 4096
    assert trace.costs[1].stored_bytes_read > 0
