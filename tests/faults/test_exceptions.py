# SPDX-License-Identifier: BSD-3-Clause
"""Does an error arrive in the thread that touched damage, whatever others do?"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import hashlib
import os
import queue
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazymem as lm
from lazymem.testing import failing
from tests.conftest import ROOT, smooth
from tests.engine.build import CC
from tests.faults.test_damage import CHUNK, flip, places

A = smooth((500, 1000))
BAD_CHUNK = 3
BAD_ROW = BAD_CHUNK * CHUNK // 4000 + 1
pytestmark = pytest.mark.needs_uffd

Facts = tuple[Any, ...]
SILENCE: Facts = ("silence",)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a store with one damaged chunk."""
    lm.save(tmp_path / "s.lzm", a=A, chunk_bytes=CHUNK)
    flip(tmp_path / "s.lzm", places(tmp_path / "s.lzm")["payload"] + 3)
    return tmp_path / "s.lzm"


@pytest.fixture
def facts(path: Path) -> Facts:
    """Return what the error of the damaged chunk must say."""
    offset = places(path)["payload"]
    return (lm.ChecksumError.__name__, str(path), "a", BAD_CHUNK, offset)


@pytest.fixture
def bad(path: Path) -> Any:
    return lm.open(path)["a"]


@pytest.fixture
def plain(bad: Any) -> Any:
    """Return the memory without the class that checks after each operation."""
    return np.asarray(bad)


def next_call() -> None:
    """Let the interpreter look for exceptions, as it does in each function and loop."""


def verdict(operation: Callable[[], object]) -> Facts:
    """Return what the operation's error says; it must have come by the next call."""
    try:
        operation()
        next_call()
    except lm.LazyMemError as error:
        kind = type(error).__name__
        return (kind, error.path, error.name, error.chunk_idx, error.offset)
    return SILENCE


# ---- the main thread
# ----------------------------------------------------------------------


def element(a: Any) -> Any:
    return a[BAD_ROW, 3]


OPERATIONS: dict[str, Callable[[Any], object]] = {
    "sum": np.sum,
    "crc32": zlib.crc32,  # lets the interpreter's lock go
    "sha256": hashlib.sha256,
    "bytes": lambda a: a.tobytes(),  # holds it
    "copy": lambda a: a[BAD_ROW, 3:7].copy(),
    "element": element,
    "item": lambda a: a.item(BAD_ROW, 3),
    "list": lambda a: a[BAD_ROW].tolist(),
    "compare": lambda a: memoryview(a[BAD_ROW]) == memoryview(A[BAD_ROW]),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_main_thread_hears_by_the_next_call(
    plain: Any, facts: Facts, name: str
) -> None:
    operation = OPERATIONS[name]
    assert [verdict(lambda: operation(plain)) for _ in range(3)] == [facts] * 3


def test_an_error_is_not_lost_in_the_end_of_another_array(
    path: Path, plain: Any, facts: Facts
) -> None:
    """Where the interpreter only prints it, and the program goes on."""

    def touch_and_drop() -> None:
        others = [np.asarray(lm.open(path)["a"]) for _ in range(100)]
        plain[BAD_ROW, 3].item()
        others.clear()

    thread_verdicts: list[Facts] = []
    in_join(lambda: thread_verdicts.append(verdict(touch_and_drop)))
    assert [verdict(touch_and_drop), *thread_verdicts] == [facts] * 2


# ---- other threads, and what the main thread waits in
# --------------------------------------


def in_join(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def in_result(work: Callable[[], None]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()


def in_acquire(work: Callable[[], None]) -> None:
    lock = threading.Lock()
    lock.acquire()
    thread = threading.Thread(target=lambda: (work(), lock.release()))
    thread.start()
    lock.acquire()
    thread.join()


def in_queue(work: Callable[[], None]) -> None:
    done: queue.Queue[int] = queue.Queue()
    thread = threading.Thread(target=lambda: (work(), done.put(1)))
    thread.start()
    done.get()
    thread.join()


def in_input(work: Callable[[], None]) -> None:
    reading, writing = os.pipe()
    thread = threading.Thread(target=lambda: (work(), os.write(writing, b"done\n")))
    stdin, sys.stdin = sys.stdin, os.fdopen(reading)
    try:
        thread.start()
        assert input() == "done"
    finally:
        sys.stdin.close()
        sys.stdin = stdin
        thread.join()
        os.close(writing)


WAITS = {f.__name__: f for f in (in_join, in_result, in_acquire, in_queue, in_input)}


@pytest.mark.parametrize("operation", ["sum", "crc32", "sha256"])
@pytest.mark.parametrize("wait", WAITS)
def test_a_thread_hears_and_the_main_thread_that_waits_does_not(
    plain: Any, facts: Facts, wait: str, operation: str
) -> None:
    found: list[Facts] = []
    for _ in range(3):
        WAITS[wait](lambda: found.append(verdict(lambda: OPERATIONS[operation](plain))))
    assert found == [facts] * 3


@pytest.mark.parametrize(
    "operation", ["sum", "bytes", "copy", "element", "item", "list"]
)
def test_a_thread_hears_of_each_operation_on_a_lazy_array(
    bad: Any, facts: Facts, operation: str
) -> None:
    found: list[Facts] = []
    for _ in range(3):
        in_join(lambda: found.append(verdict(lambda: OPERATIONS[operation](bad))))
    assert found == [facts] * 3


@pytest.mark.parametrize("operation", ["bytes", "copy", "element", "list", "compare"])
def test_an_error_that_is_late_still_arrives_in_its_thread(
    plain: Any, facts: Facts, operation: str
) -> None:
    """Operations that hold the interpreter's lock keep the one who reports waiting."""
    found: list[Facts] = []

    def use_and_go_on() -> None:
        OPERATIONS[operation](plain)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            next_call()

    for _ in range(3):
        in_join(lambda: found.append(verdict(use_and_go_on)))
    assert found == [facts] * 3


HEIR = """
import sys, threading, numpy as np, lazymem as lm
from lazymem import _engine
a, row = lm.open(sys.argv[1])["a"], int(sys.argv[2])
found, listed, may_go_on = [], threading.Event(), threading.Event()
def touch():
    np.asarray(a)[row, 3]
    listed.wait()
    if _engine.take_failure():  # as a LazyArray does
        found.append("first")
def slow_enumerate():  # the engine asks for the first thread, and is kept waiting
    threads = enumerate_threads()
    if threading.get_ident() != threading.main_thread().ident:
        listed.set()
        may_go_on.wait()
    return threads
enumerate_threads, threading.enumerate = threading.enumerate, slow_enumerate
first = threading.Thread(target=touch)
first.start()
first.join()
heir, end = None, threading.Event()
def wait():
    try:
        started.set()
        end.wait()
        found.append("heir")
    except lm.ChecksumError:
        found.append("hit")
while heir is None or heir.ident != first.ident:
    end.set()
    end, started = threading.Event(), threading.Event()
    heir = threading.Thread(target=wait)
    heir.start()
    started.wait()
may_go_on.set()
def touch_too():  # is told after all that was to be told before
    try:
        np.asarray(a).sum()
    except lm.ChecksumError:
        found.append("third")
third = threading.Thread(target=touch_too)
third.start()
third.join()
end.set()
heir.join()
print(*(x for x in found if x != "heir"), found[-1])
"""


def test_a_thread_that_inherits_an_identity_does_not_inherit_errors(
    path: Path, run_python: Callable[..., Any]
) -> None:
    """A thread that has ended leaves its identity to the next one."""
    done = run_python(HEIR, path, BAD_ROW)
    assert done.stdout == "first third heir\n", done.stderr


# ---- threads that never run Python
# --------------------------------------------------------


def product(a: Any) -> Any:
    return a[: BAD_ROW + 1] @ A[0]  # the last rows are in the bad chunk


@pytest.mark.parametrize("name", ["bad", "plain"])
def test_a_product_of_blas_with_damage_is_an_error_of_its_caller(
    request: pytest.FixtureRequest, facts: Facts, name: str
) -> None:
    """BLAS reads the matrix in threads of its own, who can't be told."""
    assert verdict(lambda: product(request.getfixturevalue(name))) == facts


def test_a_product_of_blas_is_an_error_of_the_thread_that_called(
    bad: Any, facts: Facts
) -> None:
    found: list[Facts] = []

    def work() -> None:
        found.append(verdict(lambda: product(bad)))

    # Whose threads BLAS used, nobody knows: the main thread may hear of it, too.
    assert verdict(lambda: in_join(work)) in (SILENCE, facts)
    assert found == [facts]


OPENMP = """
double total(const float *a, long count)
{
    double total = 0;
#pragma omp parallel for schedule(static) num_threads(3) reduction(+ : total)
    for (long i = 0; i < count; i++)
        total += a[i];
    return total;
}
"""


@pytest.fixture
def total(tmp_path: Path) -> Callable[[Any], float]:
    """Return a sum that three threads of OpenMP share, of which one calls."""
    (tmp_path / "total.c").write_text(OPENMP)
    command = [*CC.split(), "-fopenmp", "-O1", "-shared", "-fPIC", "total.c"]
    try:
        subprocess.run([*command, "-o", "total.so"], cwd=tmp_path, check=True)
        function = ctypes.CDLL(str(tmp_path / "total.so")).total
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no OpenMP: {error}")
    function.restype = ctypes.c_double
    function.argtypes = [ctypes.c_void_p, ctypes.c_long]
    return lambda a: float(function(a.ctypes.data, a.size))


def in_a_thread_of_openmp(a: Any) -> Any:
    return a[: BAD_ROW + 1]  # the last third has the bad chunk


def in_the_thread_that_calls(a: Any) -> Any:
    return a[BAD_ROW:]


def test_damage_in_threads_of_openmp_is_an_error_of_the_main_thread(
    plain: Any, facts: Facts, total: Callable[[Any], float]
) -> None:
    """They never run Python, and nobody knows who called them."""
    good = total(plain[: BAD_ROW - 5])
    assert good == pytest.approx(float(A[: BAD_ROW - 5].sum(dtype="f8")))
    for part in (in_a_thread_of_openmp(plain), in_the_thread_that_calls(plain)):
        assert [verdict(lambda part=part: total(part)) for _ in range(3)] == [facts] * 3


def test_damage_met_by_openmp_in_a_thread_is_heard_of(
    plain: Any, facts: Facts, total: Callable[[Any], float]
) -> None:
    """By that thread where it met the damage itself, else by the main thread."""
    found: list[Facts] = []

    def use(part: Any) -> Facts:
        return verdict(
            lambda: in_join(lambda: found.append(verdict(lambda: total(part))))
        )

    assert use(in_the_thread_that_calls(plain)) == SILENCE
    assert use(in_a_thread_of_openmp(plain)) == facts
    assert found == [facts, SILENCE]


# ---- coroutines
# ---------------------------------------------------------------------------


def test_a_coroutine_hears_and_its_neighbours_do_not(plain: Any, facts: Facts) -> None:
    async def neighbour(stop: asyncio.Event) -> int:
        steps = 0
        while not stop.is_set():
            await asyncio.sleep(0)
            steps += 1
        return steps

    async def use() -> Facts:
        return verdict(lambda: plain.sum())

    async def main() -> list[Facts]:
        stop = asyncio.Event()
        others = [asyncio.create_task(neighbour(stop)) for _ in range(3)]
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(2) as pool:
            found = [await loop.run_in_executor(pool, verdict, plain.sum)]
            found += [await use()]
            found += await asyncio.gather(
                loop.run_in_executor(pool, verdict, plain.sum), asyncio.to_thread(int)
            )
        stop.set()
        assert min(await asyncio.gather(*others)) > 0
        return found

    assert asyncio.run(main()) == [facts, facts, facts, 0]


# ---- many threads
# -------------------------------------------------------------------------


def test_of_twelve_threads_those_hear_who_touched_damage(
    path: Path, facts: Facts
) -> None:
    good = path.with_name("good.lzm")
    lm.save(good, a=A, chunk_bytes=CHUNK)
    barrier = threading.Barrier(12)

    def work(a: Any) -> Facts:
        barrier.wait()
        return verdict(a.sum)

    with ThreadPoolExecutor(12) as pool:
        for _ in range(5):
            arrays = [lm.open(path if i % 3 == 0 else good)["a"] for i in range(12)]
            found = list(pool.map(work, arrays))
            assert found == [facts, SILENCE, SILENCE] * 4


# ---- damage that lasts, and damage that does not
# ------------------------------------------


def in_main(work: Callable[[], None]) -> None:
    work()


@pytest.mark.parametrize("wait", [in_main, in_join])
@pytest.mark.parametrize("operation", ["sum", "bytes", "copy"])
def test_lasting_damage_raises_each_time_at_once(
    bad: Any, facts: Facts, operation: str, wait: Any
) -> None:
    found: list[Facts] = []

    def work() -> None:
        found.extend(verdict(lambda: OPERATIONS[operation](bad)) for _ in range(4))

    wait(work)
    assert found == [facts] * 4
    np.testing.assert_array_equal(bad[:49], A[:49])


@pytest.mark.parametrize("wait", [in_main, in_join])
def test_transient_damage_raises_once_and_heals(tmp_path: Path, wait: Any) -> None:
    lm.save(tmp_path / "t.lzm", a=A, chunk_bytes=CHUNK)
    with lm.open(tmp_path / "t.lzm") as store:
        a = store["a"]
        a[0, 0]
        plain = np.asarray(a)[BAD_ROW:]
        found: list[Any] = []

        def work() -> None:
            with failing("read", errno.ENXIO, count=1):
                found.extend([verdict(plain.sum), verdict(plain.sum)])
            found.append(np.array_equal(plain, A[BAD_ROW:]))

        wait(work)
        assert found[0][:4] == ("FillError", str(tmp_path / "t.lzm"), "a", BAD_CHUNK)
        assert found[1:] == [SILENCE, True]


# ---- notebooks
# ----------------------------------------------------------------------------


def run_cell(client: Any, code: str) -> dict[str, Any]:
    """Run a cell and return what it shows, by kind."""
    shown: dict[str, Any] = {}

    def hook(message: dict[str, Any]) -> None:
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "stream":
            shown[content["name"]] = shown.get(content["name"], "") + content["text"]
        elif kind == "error":
            shown["error"] = content["ename"], content["evalue"]

    reply = client.execute_interactive(code, output_hook=hook, timeout=60)
    shown["status"] = reply["content"]["status"]
    return shown


def test_the_cell_that_touches_damage_fails_and_the_next_one_works(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Jupyter kernel runs cells in the main thread, and talks in others."""
    manager = pytest.importorskip("jupyter_client.manager")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    kernel, client = manager.start_new_kernel(kernel_name="python3")
    try:
        opened = run_cell(
            client,
            "import numpy as np, threading, lazymem as lm\n"
            f"a = lm.open({str(path)!r})['a']\nb = np.asarray(a)\nprint(a.shape)",
        )
        assert opened == {"stdout": "(500, 1000)\n", "status": "ok"}
        for code in ("a.sum()", "b.sum()", f"b[{BAD_ROW}, 3]", "a[:100].tolist();"):
            failed = run_cell(client, f"{code}\nprint('went on')")
            assert failed["status"] == "error", code
            assert failed["error"][0] == "ChecksumError"
            assert f"{path}, object 'a', chunk {BAD_CHUNK}" in failed["error"][1]
            assert "stdout" not in failed or "[" not in code
            fine = run_cell(client, "print(float(a[300, 3]))")
            assert fine == {"stdout": f"{float(A[300, 3])}\n", "status": "ok"}
        threaded = run_cell(
            client,
            "found = []\ndef work():\n    try:\n        b.sum()\n"
            "    except lm.ChecksumError as error:\n        found.append(error)\n"
            "thread = threading.Thread(target=work)\nthread.start(); thread.join()\n"
            "print(found[0].chunk_idx)",
        )
        assert threaded == {"stdout": f"{BAD_CHUNK}\n", "status": "ok"}
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
