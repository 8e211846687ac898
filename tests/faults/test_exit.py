# SPDX-License-Identifier: BSD-3-Clause
"""Does a process end, quietly and at once, whatever is under way?"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import lazymem as lm
from tests.conftest import smooth
from tests.faults.test_damage import flip, places

A = smooth((1000, 1000))
CHUNK = 16384
ROUNDS = 5
pytestmark = pytest.mark.needs_uffd

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    lm.save(tmp_path / "s.lzm", a=A, b=A[::-1], chunk_bytes=CHUNK)
    return tmp_path / "s.lzm"


@pytest.fixture
def damaged(path: Path) -> Path:
    flip(path, places(path)["payload"] + 3)
    return path


def ends_quietly(run: Run, script: str, *args: object, stdout: str = "") -> None:
    for _ in range(ROUNDS):
        done = run(script, *args)
        assert (done.returncode, done.stdout, done.stderr) == (0, stdout, "")


BUSY = """
import sys, threading, numpy as np, lazymem as lm
path, how = sys.argv[1:]
busy = threading.Barrier(6)
def fault():
    store = lm.open(path)
    busy.wait()
    while True:
        a = store["a"]
        for row in np.asarray(a):
            row.sum()
        del a, row
def prefetch():
    store = lm.open(path)
    busy.wait()
    while True:
        store["b"].prefetch()
def verify():
    store = lm.open(path)
    busy.wait()
    while True:
        store.verify()
for work in (fault, fault, prefetch, prefetch, verify):
    threading.Thread(target=work, daemon=True).start()
kept = lm.open(path)["a"]
busy.wait()
kept[::100].sum()
kept.prefetch()
if how == "sys.exit":
    sys.exit(0)
"""


@pytest.mark.parametrize("how", ["the end", "sys.exit"])
def test_exit_while_daemons_fault_prefetch_and_verify(
    path: Path, run_python: Run, how: str
) -> None:
    ends_quietly(run_python, BUSY, path, how)


FAILING = """
import sys, threading, numpy as np, lazymem as lm
a = np.asarray(lm.open(sys.argv[1])["a"])
busy = threading.Barrier(3)
def fault():
    busy.wait()
    while True:
        try:
            a.sum()
        except lm.ChecksumError:
            pass
for _ in range(2):
    threading.Thread(target=fault, daemon=True).start()
busy.wait()
"""


def test_exit_while_daemons_meet_damage(damaged: Path, run_python: Run) -> None:
    ends_quietly(run_python, FAILING, damaged)


PENDING = """
import atexit, os, sys, zlib, numpy as np, lazymem as lm
a = np.asarray(lm.open(sys.argv[1])["a"])
def next_call():
    pass
def touch(
    a=a, kind=lm.ChecksumError, write=os.write, crc32=zlib.crc32, next_call=next_call
):
    try:
        crc32(a)
        next_call()
        write(1, b"went on")
    except kind as error:
        write(1, b"heard of %d" % error.chunk_idx)
class Toucher:
    def __del__(self, touch=touch):
        touch()
if sys.argv[2] == "atexit":
    atexit.register(touch)
else:
    last = Toucher()
"""


@pytest.mark.parametrize("when", ["atexit", "teardown"])
def test_damage_met_during_the_end_is_still_an_error(
    damaged: Path, run_python: Run, when: str
) -> None:
    ends_quietly(run_python, PENDING, damaged, when, stdout="heard of 3")


LAST = """
import os, sys, numpy as np, lazymem as lm
a = np.asarray(lm.open(sys.argv[1])["a"])
try:
    a.sum()
except lm.ChecksumError:
    os.write(1, b"heard\\n")
"""


def test_exit_right_after_an_error(damaged: Path, run_python: Run) -> None:
    ends_quietly(run_python, LAST, damaged, stdout="heard\n")


CYCLE = """
import gc, sys, threading, weakref, numpy as np, lazymem as lm
class Owner:
    pass
gone, right, stop = [], [], threading.Event()
def fault(a, expected):
    while not stop.is_set():
        right.append(a.sum(dtype="f8") == expected)
with lm.open(sys.argv[1]) as store:
    expected = np.asarray(store["a"]).sum(dtype="f8")
for mode in "rc" * 10:
    owner = Owner()
    owner.store = lm.open(sys.argv[1], mode)
    owner.me = owner
    plain = np.asarray(owner.store["a"])
    stop.clear()
    thread = threading.Thread(target=fault, args=(plain, expected))
    weakref.finalize(owner.store, gone.append, mode)
    del plain
    thread.start()
    del owner
    gc.collect()
    stop.set()
    thread.join()
    del thread
print(len(gone), all(right), len(right) > 0)
"""


def test_a_store_collected_in_a_cycle_leaves_its_array_to_its_user(
    path: Path, run_python: Run
) -> None:
    """The array outlives its store: another thread reads on, and reads right data."""
    ends_quietly(run_python, CYCLE, path, stdout="20 True True\n")
