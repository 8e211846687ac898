# SPDX-License-Identifier: BSD-3-Clause
"""Does the thread that touched damage hear of it, and nobody else?"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazymem as lm
from lazymem import _engine
from tests.conftest import smooth
from tests.faults.test_damage import CHUNK, flip, places

A = smooth((500, 1000))
pytestmark = pytest.mark.needs_uffd


@pytest.fixture
def store(tmp_path: Path) -> lm.Store:
    lm.save(tmp_path / "s.lzm", a=A, chunk_bytes=CHUNK)
    flip(tmp_path / "s.lzm", places(tmp_path / "s.lzm")["payload"] + 3)
    return lm.open(tmp_path / "s.lzm")


def outcome(operation: Any, grace_s: float = 0.0) -> str:
    """Return whether an error arrived, with the operation or within `grace_s` of it."""
    try:
        operation()
        end = time.monotonic() + grace_s
        while time.monotonic() < end:
            pass
    except lm.ChecksumError:
        return "error"
    return "silence"


@pytest.mark.parametrize("plain", [False, True])
def test_a_thread_hears_while_main_waits_in_join(store: lm.Store, plain: bool) -> None:
    a: Any = np.asarray(store["a"]) if plain else store["a"]
    found: list[str] = []
    for _ in range(10):
        thread = threading.Thread(target=lambda: found.append(outcome(a.sum)))
        thread.start()
        thread.join()
    assert found == ["error"] * 10


@pytest.mark.parametrize("plain", [False, True])
def test_eight_threads_on_one_bad_chunk_all_hear(store: lm.Store, plain: bool) -> None:
    a: Any = np.asarray(store["a"]) if plain else store["a"]
    barrier = threading.Barrier(8)

    # Eight threads hold the interpreter's lock in turns, each asleep in a fault:
    # without the help of LazyArray, an error can be late.
    def work() -> str:
        barrier.wait()
        return outcome(a.sum, grace_s=3.0 if plain else 0.0)

    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            assert [f.result() for f in [pool.submit(work) for _ in range(8)]] == [
                "error"
            ] * 8


def test_only_the_thread_that_touched_damage_hears(store: lm.Store) -> None:
    good = np.asarray(store["a"])[200:]
    bad = np.asarray(store["a"])
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            futures = [
                pool.submit(outcome, array.sum) for array in (good, bad, good, good)
            ]
            found = [future.result() for future in futures]
            assert found == ["silence", "error", "silence", "silence"]


def test_a_lone_element_raises_in_a_lazy_array(store: lm.Store) -> None:
    a = store["a"]
    row = 3 * CHUNK // 4000 + 1
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(outcome, lambda: a[row, 3]).result() == "error"
    assert outcome(lambda: a[row, 3]) == "error"


def test_a_coroutine_and_its_thread_hear(store: lm.Store) -> None:
    plain = np.asarray(store["a"])

    async def main() -> list[str]:
        return [outcome(plain.sum), await asyncio.to_thread(outcome, plain.sum)]

    assert asyncio.run(main()) == ["error", "error"]


def test_an_error_is_raised_once(store: lm.Store) -> None:
    a = store["a"]
    for _ in range(20):
        assert outcome(a.sum) == "error"
        for _ in range(1000):  # nothing arrives late
            pass
    assert outcome(np.asarray(a)[200:].sum) == "silence"


def test_an_error_taken_while_it_is_announced_is_not_raised(
    store: lm.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    enumerate_threads = threading.enumerate

    def take_first() -> list[threading.Thread]:
        """Do as a thread's own operation that comes before the announcement."""
        for thread in enumerate_threads():
            _engine.lib.lm_failure_take(thread.native_id, _engine.ffi.NULL)
        return enumerate_threads()

    monkeypatch.setattr(threading, "enumerate", take_first)
    plain = np.asarray(store["a"])
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(outcome, plain.sum, 0.1).result() == "silence"
