# SPDX-License-Identifier: BSD-3-Clause
"""Is what an index array reads filled ahead, by all cores, and nothing else?"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazymem as lm
from lazymem import _engine, gather
from lazymem.testing import HANG, failing
from tests.conftest import smooth

CHUNK = 65536
A = smooth((1000, 1000))  # 62 chunks, 16.4 rows in each
ROWS = np.array([0, 100, 100, -1, 300, 301])
pytestmark = pytest.mark.needs_uffd


@pytest.fixture
def path(tmp_path: Path) -> Path:
    lm.save(tmp_path / "s.lzm", {"a": A, "f": np.asfortranarray(A)}, chunk_bytes=CHUNK)
    return tmp_path / "s.lzm"


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let jobs end before numpy gathers; returns how many chunks each was given."""
    started: list[int] = []
    prefetch = _engine.RegionHandle.prefetch_chunks

    def and_wait(region: _engine.RegionHandle, chunks: Any, *, is_urgent: bool) -> None:
        job = prefetch(region, chunks, is_urgent=is_urgent)
        if job is not None:
            started.append(len(chunks))
            job.wait()

    monkeypatch.setattr(_engine.RegionHandle, "prefetch_chunks", and_wait)
    return started


@pytest.mark.parametrize("name", ["a", "f"])
@pytest.mark.parametrize(
    "read",
    [
        lambda a: a[ROWS],
        lambda a: a[ROWS.tolist()],
        lambda a: a[ROWS, ROWS],
        lambda a: a[ROWS, 5:900:300],
        lambda a: a[10:][np.abs(ROWS[:3])],
        lambda a: a[::-3, ROWS],
        lambda a: a.T[ROWS],
        lambda a: a[np.arange(1000) % 300 == 5],
        lambda a: a[np.arange(10**6).reshape(1000, 1000) % 70_001 == 5],
        lambda a: a[np.ix_(ROWS, ROWS)],
    ],
    ids=range(10),
)
def test_what_an_index_reads_is_filled_ahead(
    path: Path, jobs: list[int], name: str, read: Callable[..., Any]
) -> None:
    with lm.open(path) as store:
        a = store[name]
        result = read(a)
        assert type(result) is np.ndarray
        np.testing.assert_array_equal(result, read(A))
        stats = store.stats()
        assert (stats.faults, jobs) == (0, [stats.fills])
        assert stats.fills > 1


def test_crossed_indices_may_be_longer_than_what_is_looked_at_in_one_piece(
    tmp_path: Path, jobs: list[int]
) -> None:
    wide = np.arange(10 * 40_000).reshape(10, 40_000)
    crossed = np.ix_([1, 2, 5], np.arange(40_000))
    lm.save(tmp_path / "w.lzm", {"w": wide}, chunk_bytes=CHUNK)
    with lm.open(tmp_path / "w.lzm") as store:
        w = store["w"]
        np.testing.assert_array_equal(w[crossed], wide[crossed])
        assert (store.stats().faults, jobs) == (0, [store.stats().fills])


@pytest.mark.parametrize(
    "take",
    [
        lambda a: a.take(ROWS, 0),
        lambda a: np.take(a, ROWS, axis=-2),
        lambda a: a.take(ROWS * 1000),
        lambda a: np.take_along_axis(a, ROWS[:, None] * 2, 0),
        lambda a: a.take([[5, 700_000]]),
    ],
    ids=range(5),
)
def test_take_fills_ahead(
    path: Path, jobs: list[int], take: Callable[..., Any]
) -> None:
    with lm.open(path) as store:
        a = store["a"]
        result = take(a)
        assert type(result) is np.ndarray
        np.testing.assert_array_equal(result, take(A))
        assert store.stats().faults == 0
        assert jobs == [store.stats().fills]


def test_take_is_numpys_in_all_else(path: Path) -> None:
    with lm.open(path) as store:
        a, out = store["a"], np.zeros((2, 1000), "f4")
        assert a.take([1, 2], 0, out, "clip") is out
        np.testing.assert_array_equal(out, A[1:3])
        np.testing.assert_array_equal(a.take([1, 1001], 0, mode="wrap"), A[[1, 1]])
        np.testing.assert_array_equal(a.T.take([1, 2], axis=1), A.T[:, 1:3])
        assert a.take(5) == A[0, 5]
        with pytest.raises(IndexError):
            a.take([0, 1, 1000], 0)
        with pytest.raises(np.exceptions.AxisError):
            a.take([0, 1], 2)


def test_what_is_in_memory_starts_nothing(path: Path, jobs: list[int]) -> None:
    with lm.open(path) as store:
        a = store["a"]
        for _ in range(3):
            a[ROWS]
        assert len(jobs) == 1
        a.load()
        a[::-1][ROWS]
        assert len(jobs) == 1


def test_looks_in_vain_become_rare_until_something_is_filled(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Any] = []
    touched = gather.touched

    def counted(*args: Any) -> Any:
        looks.append(args)
        return touched(*args)

    monkeypatch.setattr(gather, "touched", counted)
    with lm.open(path) as store:
        a = store["a"]
        a[ROWS].sum()
        for _ in range(3):  # the first of them sees the effect of the one before
            a[ROWS]
        assert len(looks) == 4
        for _ in range(10_000):
            a[ROWS]
        assert len(looks) < 100
        before = len(looks)
        assert a[500, 0] == A[500, 0]
        a[ROWS]
        assert len(looks) == before + 1


def test_single_elements_and_slices_start_nothing(path: Path, jobs: list[int]) -> None:
    with lm.open(path) as store:
        a = store["a"]
        assert (a[5, 5], a[-1][0], a[500:502, 1].tolist()) is not None
        a[[3]]  # one chunk: the touch does as well
        a[[]]
        assert jobs == []


def test_an_index_out_of_bounds_is_numpys_error(path: Path, jobs: list[int]) -> None:
    with lm.open(path) as store:
        a = store["a"]
        for index in ([0, 500, 1000], [[-1001]], np.ones(999, bool), ["x"]):
            with pytest.raises(IndexError):
                a[index]
        assert jobs == []


def test_views_beyond_the_object_are_left_alone(path: Path) -> None:
    with lm.open(path) as store:
        wide = np.lib.stride_tricks.as_strided(
            store["a"], (10, 2), (1 << 30, 4), subok=True, writeable=False
        )
        assert type(wide) is lm.LazyArray
        np.testing.assert_array_equal(wide[[0, 0]], A[[0, 0], :2])


def test_damage_is_an_error_of_the_gather(path: Path) -> None:
    with lm.open(path) as store:
        a = store["a"]
        with failing("read", errno.ENXIO), pytest.raises(lm.FillError):
            a[ROWS]
        np.testing.assert_array_equal(a[ROWS], A[ROWS])


def test_a_job_that_hangs_holds_nobody_who_has_what_he_needs(path: Path) -> None:
    with lm.open(path) as store:
        a = store["a"]
        a[ROWS]
        with failing("read", HANG):
            region = a._binding.region  # type: ignore[union-attr]
            assert region is not None
            job = region.prefetch_chunks(np.array([40, 50]), is_urgent=True)
            assert job is not None
            np.testing.assert_array_equal(a[ROWS], A[ROWS])
            job.leave()
        np.testing.assert_array_equal(a[::100], A[::100])


def test_large_gathers_take_a_part_of_the_memory_there_is(
    path: Path, jobs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lazymem.array._GATHER_BYTES_MIN", 10 * CHUNK)
    monkeypatch.setattr(_engine, "memory_available", lambda: 80 * CHUNK)
    with lm.open(path) as store:
        np.testing.assert_array_equal(store["a"][np.arange(1000)], A)
        assert jobs == [20]


@pytest.mark.parametrize("mode", ["c", "r+"])
def test_what_was_written_is_gathered(path: Path, mode: Any) -> None:
    right = A.copy()
    with lm.open(path, mode) as store:
        a = store["a"]
        for row in (100, 700):
            a[row] = right[row] = row
        np.testing.assert_array_equal(a[np.r_[ROWS, 700]], right[np.r_[ROWS, 700]])
        a[ROWS] += 1
        right[ROWS] += 1
        np.testing.assert_array_equal(a[ROWS], right[ROWS])
        np.testing.assert_array_equal(a, right)
        if mode == "r+":
            store.snapshot("rows")
    with lm.open(path) as store:
        np.testing.assert_array_equal(store["a"], right if mode == "r+" else A)
