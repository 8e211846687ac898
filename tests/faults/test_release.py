# SPDX-License-Identifier: BSD-3-Clause
"""Is memory gone when its store is, whatever others are doing with it?"""

from __future__ import annotations

import contextlib
import gc
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
from lazymem import _engine
from tests.conftest import smooth, wait_until
from tests.unit.test_array import rss_anon

A = smooth((500, 1000))
CHUNK = 16384
LATE_S = 0.02
"""In which a second error of the same operation arrives, if there is one."""

pytestmark = pytest.mark.needs_uffd


@pytest.fixture
def path(tmp_path: Path) -> Path:
    lm.save(tmp_path / "s.lzm", a=A, chunk_bytes=CHUNK)
    return tmp_path / "s.lzm"


def here(operation: Callable[[], object]) -> None:
    operation()


def in_thread(operation: Callable[[], object]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(operation).result()


def touch(view: Any) -> None:
    zlib.crc32(view)
    (lambda: None)()  # an error has come by the next call


@pytest.mark.parametrize("where", [here, in_thread])
def test_memory_of_a_closed_store_goes_at_once_while_views_live(
    tmp_path: Path, where: Callable[[Callable[[], object]], None]
) -> None:
    a = smooth((64, 1 << 18))  # 64 MiB, a row is a MiB
    lm.save(tmp_path / "a.lzm", a=a)
    store = lm.open(tmp_path / "a.lzm")
    lazy = store["a"].load()
    plain = np.asarray(lazy)
    views = [lazy[3], plain[3], plain[40:42], memoryview(plain[5])]
    before = rss_anon()
    store.close()
    assert before - rss_anon() > 60 << 20
    for view in views:
        with pytest.raises(lm.ClosedError, match="object 'a'"):
            where(lambda view=view: touch(view))
    assert before - rss_anon() > 50 << 20


def until_closed(work: Callable[[], None]) -> str:
    """Work again and again; return what ended it."""
    try:
        while True:
            work()
    except lm.ClosedError as error:
        with contextlib.suppress(lm.ClosedError):
            end = time.monotonic() + LATE_S
            while time.monotonic() < end:
                pass
        return type(error).__name__


def test_a_store_closed_amid_faults_prefetch_and_verify_ends_them_all(
    path: Path,
) -> None:
    """Each thread has right data until then, and ClosedError from then on."""
    wrong: list[int] = []
    for fills in range(1, 400, 40):
        store = lm.open(path)
        a = store["a"]

        def read(a: Any = a) -> None:
            wrong.extend(i for i in range(500) if not np.array_equal(a[i], A[i]))

        def fill_ahead(a: Any = a) -> None:
            a.evict()
            a.prefetch()

        def verify(store: lm.Store = store) -> None:
            assert store.verify() == []

        work = (read, read, read, fill_ahead, verify)
        with ThreadPoolExecutor(len(work)) as pool:
            futures = [pool.submit(until_closed, each) for each in work]
            wait_until(lambda: store.stats().fills >= fills)
            store.close()
            found = [future.result(30) for future in futures]
        assert found == ["ClosedError"] * len(work)
        assert a.residency().chunks_resident == 0
    assert wrong == []


def test_stores_collected_amid_faults_prefetch_and_verify_leave_nothing(
    path: Path,
) -> None:
    """Nobody closes them: each goes, in a cycle, with the last who holds it."""
    gc.collect()
    regions = _engine.pager_stats()["regions_live"]
    stop = threading.Event()
    rounds = [0] * 4

    def read() -> bool:
        return np.array_equal(np.asarray(lm.open(path)["a"]), A)

    def fill_ahead() -> bool:
        lm.open(path)["a"].prefetch()
        return True

    def verify() -> bool:
        return lm.open(path).verify() == []

    def work(i: int, once: Callable[[], bool]) -> bool:
        right = True
        while not stop.is_set():
            right = once() and right
            rounds[i] += 1
        return right

    with ThreadPoolExecutor(4) as pool:
        futures = [
            pool.submit(work, i, once)
            for i, once in enumerate((read, read, fill_ahead, verify))
        ]
        try:
            while min(rounds) < 3:
                cycle: list[Any] = [lm.open(path)["a"]]
                cycle.append(cycle)
                cycle[0].prefetch()
                del cycle
                gc.collect()
        finally:
            stop.set()
        assert [future.result(30) for future in futures] == [True] * 4
    gc.collect()
    wait_until(lambda: _engine.pager_stats()["regions_live"] == regions)


CLOSED_PRODUCT = """
import sys, numpy as np, lazymem as lm
a = lm.open(sys.argv[1])["a"]
b = lm.open(sys.argv[1])
closed = b["a"]
plain = np.asarray(closed)
b.close()
for product in (lambda: closed @ closed.T, lambda: plain @ plain.T):
    try:
        product()
        (lambda: None)()
        print("silence")
    except lm.ClosedError:
        print("closed")
    assert closed.residency().chunks_resident == 0
print(np.array_equal(a, np.load(sys.argv[2])))
"""


def test_a_product_of_matrices_in_a_closed_store_comes_to_its_end(
    tmp_path: Path, run_python: Callable[..., Any]
) -> None:
    """It needs each page many times: hours, if each time were a failure of its own."""
    matrix = np.random.default_rng(1).random((1024, 1024), "f4")
    np.save(tmp_path / "a.npy", matrix)
    lm.save(tmp_path / "a.lzm", a=matrix)
    done = run_python(CLOSED_PRODUCT, tmp_path / "a.lzm", tmp_path / "a.npy")
    assert done.stdout.split() == ["closed", "closed", "True"], done.stderr
