# SPDX-License-Identifier: BSD-3-Clause
"""Is all data right, or an error, when a program closes descriptors that are ours?"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lazymem as lm
from tests.conftest import smooth

A = smooth((500, 1000))
pytestmark = pytest.mark.needs_uffd

BEGIN = """
import os, sys, threading, numpy as np, lazymem as lm
from tests.faults.test_lost_descriptor import A

def uffd():
    # Not the lower number that it has for a moment: lazymem is about to close that.
    for name in os.listdir("/proc/self/fd"):
        try:
            file = os.readlink(f"/proc/self/fd/{name}")
            if int(name) >= 56 and file == "anon_inode:[userfaultfd]":
                return int(name)
        except FileNotFoundError:
            pass

def answers(rows=range(0, 500, 16)):
    # What reading each row through the array gave: right, wrong, or error.
    for row in rows:
        try:
            got = a[row].copy()
        except lm.FillError:
            yield "error"
        else:
            yield "right" if np.array_equal(got, A[row]) else "wrong"

def is_kept():
    # By a thread that has a descriptor table of its own, as soon as it has run.
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/comm") as name:
            if name.read().strip() == "lazymem-keep":
                return len(os.listdir(f"/proc/self/task/{task}/fd")) == 1

store = lm.open(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "r")
a = store["a"]
a.advise("random")
a[:64].sum()
while not is_kept():
    pass
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    lm.save(tmp_path / "s.lzm", a=A, chunk_bytes=65536)
    return tmp_path / "s.lzm"


EXPECTED = "{'right'} {'error'}\nTrue True\n"
CLOSE_ALL = (
    BEGIN
    + """
def closed_and_opened_again():
    os.closerange(3, 4096)
    print(set(answers(range(64))), set(answers(range(100, 500))))
    again = lm.open(sys.argv[1])["a"]
    print(np.array_equal(np.asarray(again), A), np.array_equal(a[:64], A[:64]))
"""
)


def test_all_descriptors_closed_is_an_error_and_a_later_open_is_right(
    path: Path, run_python: Callable[..., Any]
) -> None:
    """What is in memory is right, too; the rest has no file any more."""
    done = run_python(CLOSE_ALL + "closed_and_opened_again()", path)
    assert (done.returncode, done.stdout) == (0, EXPECTED), done.stderr


def test_a_daemon_that_closes_all_descriptors_reads_no_zeros(
    path: Path, run_python: Callable[..., Any]
) -> None:
    script = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        closed_and_opened_again()
        sys.stdout.flush()
    else:
        os.wait()
    os._exit(0)
os.wait()
print(set(answers()))
"""
    done = run_python(CLOSE_ALL + script, path, PYTHONWARNINGS="ignore")
    assert done.stdout == EXPECTED + "{'right'}\n", done.stderr


def test_the_userfaultfd_closed_again_and_again_changes_nothing(
    path: Path, run_python: Callable[..., Any]
) -> None:
    script = """
plain = np.asarray(a)
for _ in range(20):
    os.close(uffd())
    assert np.array_equal(plain, A)
    assert a.evict() > 0
    assert set(answers()) == {"right"}
    a.evict()
    a.load()
    with lm.open(sys.argv[1]) as another:
        os.close(uffd())
        assert np.array_equal(another["a"], A)
"""
    done = run_python(BEGIN + script, path)
    assert done.returncode == 0, done.stderr


def test_the_userfaultfd_closed_amid_reading_threads_changes_nothing(
    path: Path, run_python: Callable[..., Any]
) -> None:
    script = """
found = []

def read():
    for _ in range(20):
        found.extend(answers())
        a.evict()
        found.append("right" if np.array_equal(np.asarray(a), A) else "wrong")

threads = [threading.Thread(target=read) for _ in range(4)]
for thread in threads:
    thread.start()
while any(thread.is_alive() for thread in threads):
    number = uffd()
    if number is not None:
        os.close(number)
print(set(found))
"""
    done = run_python(BEGIN + script, path)
    assert (done.returncode, done.stdout) == (0, "{'right'}\n"), done.stderr


def test_what_was_written_is_kept_when_the_userfaultfd_is_closed(
    path: Path, run_python: Callable[..., Any]
) -> None:
    script = """
wanted = A.copy()
a[3] = wanted[3] = 1
os.close(uffd())
a[3, 5] = wanted[3, 5] = 2  # in memory
a[300] = wanted[300] = 3  # a chunk that is absent
assert np.array_equal(a, wanted)
os.close(uffd())
assert np.array_equal(np.asarray(a), wanted)
"""
    done = run_python(BEGIN + script, path, "c")
    assert done.returncode == 0, done.stderr


def test_a_pipe_that_gets_the_number_keeps_its_data(
    path: Path, run_python: Callable[..., Any]
) -> None:
    """A handler that read from the number would steal them."""
    script = """
number = uffd()
reading, writing = os.pipe()
data = bytes(range(256))
os.write(writing, data)
waiting = [0]
while waiting.count(b"S") < len(waiting):  # until the handlers read
    waiting = [
        open(f"/proc/self/task/{task}/stat", "rb").read().rsplit(b")")[1][1:2]
        for task in os.listdir("/proc/self/task")
        if b"fault" in open(f"/proc/self/task/{task}/comm", "rb").read()
    ]
os.dup2(reading, number)
assert set(answers()) == {"right"}
assert a.evict() > 0
assert set(answers()) == {"right"}
assert os.read(number, 1000) == data
"""
    done = run_python(BEGIN + script, path)
    assert done.returncode == 0, done.stderr


STRANGERS = (
    BEGIN
    + """
import tempfile
folder = tempfile.mkdtemp()
a[3] = 7
store.snapshot("before")
a[5] = 9
os.closerange(3, 4096)
# Every number that the store may have had is a stranger's now.
names = [os.path.join(folder, str(i)) for i in range(100)]
files = [open(name, "w+b") for name in names]
for file in files:
    file.write(b"a stranger's" * 1000)
    file.flush()
def outcome(call):
    try:
        call()
    except OSError as exc:
        return exc.errno
    return "went on"
def put():
    store["b"] = np.ones(100_000)
calls = (lambda: store.snapshot("after"), store.flush, put, store.prune)
print([outcome(call) for call in calls])
store.close(discard=True)
print({len(os.pread(file.fileno(), 20_000, 0)) for file in files})
found = {file.read() for name in names for file in [open(name, "rb")]}
print(found == {b"a stranger's" * 1000})
"""
)


@pytest.mark.filterwarnings("ignore")
def test_nothing_of_a_store_goes_to_a_strangers_file(
    path: Path, run_python: Callable[..., Any]
) -> None:
    """Whose descriptors got the numbers of those that were closed."""
    done = run_python(STRANGERS, path, "r+")
    lines = done.stdout.splitlines()
    assert lines[0] == str([errno.EBADF] * 4), (lines, done.stderr)
    assert lines[1:] == ["{12000}", "True"], done.stderr
    with lm.open(path) as store:
        right = A.copy()
        right[3] = 7
        assert store.verify() == []
        assert [entry.name for entry in store.log()] == [None, "before"]
        assert (store["a"][...] == right).all()
