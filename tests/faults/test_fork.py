# SPDX-License-Identifier: BSD-3-Clause
"""Do children read right data, whatever their parent was doing, and leave it alone?"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazymem as lm
from tests.conftest import ROOT, smooth, wait_until
from tests.faults.test_damage import flip, places

A = smooth((500, 1000))
CHUNK = 65536
BAD_ROW = 50
pytestmark = [
    pytest.mark.needs_uffd,
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    lm.save(tmp_path / "s.lzm", a=A, chunk_bytes=CHUNK)
    return tmp_path / "s.lzm"


def start_child(task: Callable[[], object]) -> int:
    """Fork a child that exits with 0 if the task says something true."""
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            code = 0 if task() else 1
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    return pid


def end_child(pid: int) -> int:
    """Return the exit code of a child, which must not take long."""
    status: list[int] = []

    def has_ended() -> bool:
        ended, code = os.waitpid(pid, os.WNOHANG)
        status.append(os.waitstatus_to_exitcode(code))
        return ended == pid

    try:
        wait_until(has_ended)
    except AssertionError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return status[-1]


def in_child(task: Callable[[], object]) -> int:
    return end_child(start_child(task))


# ---- multiprocessing
# ----------------------------------------------------------------------

METHODS = ["fork", "forkserver", "spawn"]


def crc_of(a: Any, path: Path, answers: Any) -> None:
    with lm.open(path) as store:
        answers.put((zlib.crc32(a), zlib.crc32(np.asarray(store["a"]))))


@pytest.mark.parametrize("resident", [0, 250, 500])
@pytest.mark.parametrize("method", METHODS)
def test_processes_of_each_kind_read_what_they_are_given(
    path: Path, monkeypatch: pytest.MonkeyPatch, method: str, resident: int
) -> None:
    """A forked child has the array itself, others a reference; each opens the store."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    context: Any = multiprocessing.get_context(method)
    with lm.open(path) as store:
        a = store["a"]
        a.advise("random")  # no more is filled than what is touched
        a[:resident].sum()
        answers = context.SimpleQueue()
        child = context.Process(target=crc_of, args=(a, path, answers))
        child.start()
        assert answers.get() == (zlib.crc32(A), zlib.crc32(A))
        child.join(30)
        assert child.exitcode == 0
        if method == "fork":
            assert a.residency().chunks_resident == -(-resident * 4000 // CHUNK)
        np.testing.assert_array_equal(a, A)


def serve_items(a: Any, todo: Any, done: Any) -> None:
    while (idx := todo.get()) is not None:
        done.put((idx, a[idx].copy()))


def test_workers_like_those_of_a_data_loader_send_right_items(path: Path) -> None:
    """Workers have an array that was captured before the fork, for two epochs."""
    context = multiprocessing.get_context("fork")
    order = random.Random(7)
    with lm.open(path) as store:
        a = store["a"]
        todo, done = context.Queue(), context.Queue()
        workers = [
            context.Process(target=serve_items, args=(a, todo, done), daemon=True)
            for _ in range(3)
        ]
        for worker in workers:
            worker.start()
        for _ in range(2):
            epoch = order.sample(range(500), 500)
            for idx in epoch:
                todo.put(idx)
            items = dict(done.get(timeout=30) for _ in epoch)
            assert sorted(items) == list(range(500))
            np.testing.assert_array_equal([items[i] for i in range(500)], A)
        for _ in workers:
            todo.put(None)
        for worker in workers:
            worker.join(30)
            assert worker.exitcode == 0
        assert a.residency().chunks_resident == 0


# ---- os.fork
# ------------------------------------------------------------------------------


def test_fork_while_eight_threads_fault_and_prefetch(path: Path) -> None:
    stop = threading.Event()
    wrong: list[int] = []
    rounds = [0] * 8

    def fault(i: int) -> None:
        while not stop.is_set():
            with lm.open(path) as store:
                a = store["a"]
                if i % 2:
                    a.prefetch()
                if not np.array_equal(np.asarray(a)[i::8], A[i::8]):
                    wrong.append(i)
            rounds[i] += 1

    threads = [threading.Thread(target=fault, args=(i,)) for i in range(8)]
    with lm.open(path) as store:
        a = np.asarray(store["a"])
        for thread in threads:
            thread.start()
        wait_until(lambda: min(rounds) > 0)

        def read() -> bool:
            with lm.open(path) as again:
                again["a"].prefetch()
                return np.array_equal(a, A) and np.array_equal(again["a"], A)

        try:
            codes = [in_child(read) for _ in range(15)]
            before = list(rounds)
            wait_until(lambda: all(r > b for r, b in zip(rounds, before)))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert codes == [0] * 15
    assert wrong == []


def test_children_of_children_read_right_data(path: Path) -> None:
    with lm.open(path) as store:
        a = np.asarray(store["a"])

        def read(depth: int) -> bool:
            part = slice(depth * 100, depth * 100 + 150)  # some of it resident
            right = np.array_equal(a[part], A[part])
            if depth < 3:
                right = right and in_child(lambda: read(depth + 1)) == 0
            return right and np.array_equal(a, A)

        assert read(0)


def test_children_at_the_same_time_read_right_data(path: Path) -> None:
    with lm.open(path) as store:
        a = np.asarray(store["a"])
        pids = [start_child(lambda: np.array_equal(a, A)) for _ in range(6)]
        np.testing.assert_array_equal(a[::-1], A[::-1])
        assert [end_child(pid) for pid in pids] == [0] * 6


def test_a_thread_that_forks_becomes_the_main_thread_of_its_child(path: Path) -> None:
    """The child's errors arrive there."""
    flip(path, places(path)["payload"] + 3)
    with lm.open(path) as store:
        lazy = store["a"]
        a = np.asarray(lazy)
        codes: list[int] = []

        def touch() -> bool:
            for operation in (a.sum, lazy.sum, lambda: a[BAD_ROW, 3]):
                with pytest.raises(lm.ChecksumError) as caught:
                    operation()
                    print(end="")
                assert caught.value.chunk_idx == 3
            return np.array_equal(a[100:], A[100:])

        thread = threading.Thread(target=lambda: codes.append(in_child(touch)))
        thread.start()
        thread.join()
        assert codes == [0]
        assert touch()


def test_a_child_that_ends_by_sys_exit_ends_at_once(path: Path) -> None:
    """Its exit runs all that Python runs, with an array in use and one being filled."""
    script = f"""
import os, sys, lazymem as lm
a = lm.open({str(path)!r})["a"]
a[0, 0]
pid = os.fork()
if pid == 0:
    a[::50].sum()
    a.prefetch()
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), float(a[300, 3]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout == f"7 {float(A[300, 3])}\n", done.stderr
    assert done.stderr == ""


ORPHAN = """
import os, signal, sys, numpy as np, lazymem as lm
from tests.conftest import wait_until
a = np.asarray(lm.open(sys.argv[1])["a"])
a[:100].sum()
parent = os.getpid()
if os.fork() == 0:
    wait_until(lambda: os.getppid() != parent)
    np.save(sys.argv[2], a)
    print("saved")
else:
    os.kill(parent, signal.SIGKILL)
"""


def test_a_child_whose_parent_was_killed_reads_right_data(
    path: Path, tmp_path: Path, run_python: Callable[..., Any]
) -> None:
    """Where another process serves the faults, its death leaves zeros."""
    done = run_python(ORPHAN, path, tmp_path / "got.npy", PYTHONWARNINGS="ignore")
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == "saved\n", done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "got.npy"), A)


@pytest.mark.parametrize("touch_first", [False, True])
def test_exec_after_fork_starts_afresh(path: Path, touch_first: bool) -> None:
    script = f"import lazymem as lm, sys; a = lm.open({str(path)!r})['a']; "
    script += f"sys.exit(int(float(a[300, 3]) != {float(A[300, 3])!r}))"
    with lm.open(path) as store:
        a = np.asarray(store["a"])
        descriptors = len(os.listdir("/proc/self/fd"))

        def read_and_exec() -> None:
            if touch_first:
                assert np.array_equal(a, A)
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            os.execve(sys.executable, [sys.executable, "-c", script], environment)

        assert in_child(read_and_exec) == 0
        assert len(os.listdir("/proc/self/fd")) == descriptors
        np.testing.assert_array_equal(a, A)


def test_programs_started_amid_faults_leave_them_alone(path: Path) -> None:
    """vfork() runs no fork handlers, and shares the memory until exec."""
    stop = threading.Event()
    wrong: list[int] = []

    def fault() -> None:
        while not stop.is_set():
            with lm.open(path) as store:
                if not np.array_equal(store["a"], A):
                    wrong.append(1)

    threads = [threading.Thread(target=fault) for _ in range(2)]
    for thread in threads:
        thread.start()
    codes = [subprocess.run(["/bin/true"], check=False).returncode for _ in range(30)]
    stop.set()
    for thread in threads:
        thread.join()
    assert codes == [0] * 30
    assert wrong == []


# ---- memory that was written
# --------------------------------------------------------------


def test_what_is_written_stays_with_who_wrote_it(path: Path) -> None:
    """A child has what was written before the fork, and from then on a copy."""
    with lm.open(path, "c") as store:
        a = store["a"]
        a[0] = 1
        a[100, 5] = 2
        reading, writing = os.pipe()

        def read_and_write() -> bool:
            right = bool((a[0] == 1).all()) and a[100, 5] == 2
            a[1] = 3
            a[300:302] = 4
            os.read(reading, 1)  # until the parent has written
            expected = A.copy()
            expected[0], expected[100, 5], expected[1], expected[300:302] = 1, 2, 3, 4
            return right and np.array_equal(a, expected)

        pid = start_child(read_and_write)
        a[400] = 5
        a[1, 1] = 6
        os.write(writing, b"x")
        assert end_child(pid) == 0
        expected = A.copy()
        expected[0], expected[100, 5], expected[400], expected[1, 1] = 1, 2, 5, 6
        np.testing.assert_array_equal(a, expected)
        os.close(reading)
        os.close(writing)
    with lm.open(path) as store:
        np.testing.assert_array_equal(store["a"], A)


def test_a_store_closed_in_a_child_stays_open_in_its_parent(path: Path) -> None:
    with lm.open(path) as store:
        a = store["a"]
        a[0, 0]

        def close_and_touch() -> bool:
            store.close()
            with pytest.raises(lm.ClosedError):
                np.asarray(a).sum()
            return True

        assert in_child(close_and_touch) == 0
        np.testing.assert_array_equal(a, A)


def test_a_child_without_a_descriptor_to_spare_reads_right_data(path: Path) -> None:
    """The child needs a userfaultfd of its own, and closes its parent's to have it."""
    script = f"""
import os, resource, sys, numpy as np, lazymem as lm
a = np.asarray(lm.open({str(path)!r})["a"])
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
try:
    while True:
        os.open("/dev/null", os.O_RDONLY)
except OSError:
    pass
pid = os.fork()
if pid == 0:
    os._exit(int(float(a[300, 3]) != {float(A[300, 3])!r}))
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout == "0\n", done.stderr
