# SPDX-License-Identifier: BSD-3-Clause
"""Is a scan filled ahead of its reader, and everything else left alone?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazymem as lm
from lazymem.stats import RegionStats
from tests.conftest import cached_share, smooth, wait_until

CHUNK = 16384
A = smooth((2048, 4096), "i4")  # 2048 chunks, a row in each
pytestmark = pytest.mark.needs_uffd


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ahead") / "s.lzm"
    lm.save(path, a=A, codec="lz4", level=1, chunk_bytes=CHUNK)
    return path


def _stats(store: lm.Store) -> RegionStats:
    return store.stats().arrays["a"]


def _backwards(a: Any) -> Any:
    return sum(int(row[-1]) for row in a[::-1])


@pytest.mark.parametrize(
    "scan",
    [
        lambda a: int(a.sum(dtype="i8")),
        lambda a: int(a[:, 77].sum(dtype="i8")),
        lambda a: int(a[::3, 5:50].sum(dtype="i8")),
        lambda a: int(a.T[9].sum(dtype="i8")),
        _backwards,
    ],
    ids=["all", "column", "every third row", "transposed", "backwards"],
)
def test_a_run_is_filled_ahead(path: Path, scan: Any) -> None:
    with lm.open(path) as store:
        a = store["a"]
        assert scan(a) == scan(A)
        stats = _stats(store)
        assert stats.ahead > 400
        assert stats.ahead_wasted == 0


def test_a_stride_that_is_no_multiple_of_pages_is_a_run(tmp_path: Path) -> None:
    x = smooth((700, 12345), "f4")
    lm.save(tmp_path / "s.lzm", a=x, chunk_bytes=CHUNK)
    with lm.open(tmp_path / "s.lzm") as store:
        a = store["a"]
        assert np.array_equal(a[:, 1000], x[:, 1000])
        stats = _stats(store)
        assert stats.ahead > 500
        assert stats.fills < 800  # and not all 2100 chunks between


def test_random_elements_are_not(path: Path) -> None:
    points = np.random.default_rng(7).integers(0, A.shape, (10_000, 2)).tolist()
    with lm.open(path) as store:
        a = np.asarray(store["a"])
        assert all(a[i, j] == A[i, j] for i, j in points)
        assert _stats(store).ahead <= _stats(store).fills / 100


def test_advice(path: Path) -> None:
    with lm.open(path) as store:
        a = store["a"]
        a.advise("random")
        assert int(a[:500].sum(dtype="i8")) == int(A[:500].sum(dtype="i8"))
        assert (_stats(store).ahead, _stats(store).fills) == (0, 500)
        a[700:].advise("sequential")
        assert a[1000, 5] == A[1000, 5]  # by this thread, without a fault
        assert a[1001, 5] == A[1001, 5]
        assert _stats(store).ahead > 100
        with pytest.raises(ValueError, match=r"'normal', 'random', 'sequential'"):
            a.advise("never")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="copy"):
            a[[1, 2]].view(lm.LazyArray).advise("random")
    with pytest.raises(lm.ClosedError):
        a.advise("random")


def test_what_is_ahead_of_a_writer_is_not_taken_for_written(tmp_path: Path) -> None:
    path = tmp_path / "s.lzm"
    lm.save(path, a=A, codec="lz4", level=1, chunk_bytes=CHUNK)
    with lm.open(path, "r+") as store:
        a = store["a"]
        a[:100] = 1
        assert _stats(store).ahead > 20
        store.snapshot("ones")
        wait_until(lambda: _stats(store).fills > _stats(store).ahead)
        assert not store.unsaved
        assert np.array_equal(a[100:], A[100:])
        a[200:300] += 1
        store.snapshot("more")
        changed = store.diff("ones", "more").changed["a"]
        assert changed.ranges == ((200, 300),)
    with lm.open(path) as store:
        expected = A.copy()
        expected[:100] = 1
        expected[200:300] += 1
        assert np.array_equal(store["a"], expected)


def test_the_disk_is_asked_for_all_of_where_six_reads_had_to_wait(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path, mib = tmp_path / "s.lzm", 1 << 20
    noise = rng.integers(0, 256, 4 * mib, "u1")
    lm.save(path, a=noise, codec="none", chunk_bytes=CHUNK)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_share(path, 2 * mib, mib) > 0:
        pytest.skip("files of this file system are in memory")
    with lm.open(path) as store:
        a = store["a"]
        a.advise("random")
        reads = [2 * mib + 100_000 + i * 120_000 for i in range(6)]
        for at in reads[:5]:
            assert a[at] == noise[at]
        assert cached_share(path, 2 * mib, mib) < 0.3
        assert a[reads[5]] == noise[reads[5]]
        wait_until(lambda: cached_share(path, 2 * mib, mib) > 0.9)
        assert cached_share(path, 0, mib) < 0.3
        assert cached_share(path, 3 * mib, mib) < 0.3
