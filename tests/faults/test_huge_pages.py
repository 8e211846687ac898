# SPDX-License-Identifier: BSD-3-Clause
"""Huge pages: of the system's pool, and those that the system makes by itself.

Is the data right, and does nobody die when the pool is empty?  The tests put pages into
the pool, and take them away again.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

import lazymem as lm
from lazymem import _engine
from lazymem.testing import failing
from tests.conftest import LIBC, smooth
from tests.faults.test_damage import flip, places
from tests.faults.test_external import setting
from tests.faults.test_fork import end_child, start_child

MIB = 1 << 20
PAGE = 2 * MIB
CHUNK = 128 << 10
A = smooth((10, MIB // 4))  # 10 MiB: 5 pages, 80 chunks
SMALL = smooth((1000,))
TAIL = smooth((PAGE // 4 * 2 + 5,))  # its last page has 20 bytes
POOLS = Path("/sys/kernel/mm/hugepages")
pytestmark = [
    pytest.mark.needs_uffd,
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]


class Pool:
    """The system's pool of pages of one size."""

    def __init__(self, kib: int) -> None:
        self.folder = POOLS / f"hugepages-{kib}kB"

    def number(self, name: str) -> int:
        return int((self.folder / name).read_text())

    @property
    def unused(self) -> int:
        """Pages that nobody has, and that nobody has been promised."""
        return self.number("free_hugepages") - self.number("resv_hugepages")

    def resize(self, pages: int) -> None:
        (self.folder / "nr_hugepages").write_text(str(pages))


def pool_with(kib: int, pages: int) -> Iterator[Pool]:
    pool = Pool(kib)
    try:
        before = pool.number("nr_hugepages")
        pool.resize(before - pool.unused + pages)
    except OSError as error:
        pytest.skip(f"{pool.folder}: {error.strerror}")
    try:
        if pool.unused < pages:
            pytest.skip(f"the system has no {pages} pages of {kib} KiB to spare")
        yield pool
    finally:
        gc.collect()
        pool.resize(before)


@pytest.fixture
def pool() -> Iterator[Pool]:
    """Have 16 pages of 2 MiB to use, and see that all of them come back."""
    for pool in pool_with(2048, 16):
        unused = pool.unused
        yield pool
        gc.collect()
        assert pool.unused == unused


@pytest.fixture
def path(tmp_path: Path) -> Path:
    arrays = {"a": A, "small": SMALL, "tail": TAIL}
    lm.save(tmp_path / "s.lzm", arrays, chunk_bytes=CHUNK)
    return tmp_path / "s.lzm"


def page_bytes(store: lm.Store, name: str) -> int:
    return store.stats().arrays[name].page_bytes


def hugetlb_kib(_: Any = None) -> int:
    """Return how much memory this process has from the pools."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(
        next(line for line in lines if line.startswith("HugetlbPages")).split()[1]
    )


# ---- data ----------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("chunk_bytes", [4096, CHUNK, 4 * MIB])
def test_arrays_in_huge_pages_are_right(
    pool: Pool, tmp_path: Path, codec: str, chunk_bytes: int
) -> None:
    lm.save(tmp_path / "s.lzm", a=A, tail=TAIL, codec=codec, chunk_bytes=chunk_bytes)
    with lm.open(tmp_path / "s.lzm", pages="2M") as store:
        a, tail = store["a"], store["tail"]
        before = hugetlb_kib()
        assert a[7, 5] == A[7, 5]
        unit = max(PAGE, chunk_bytes)
        assert hugetlb_kib() - before == unit >> 10
        assert a.residency().chunk_bytes == unit
        assert a.residency().chunks_resident == 1
        np.testing.assert_array_equal(a, A)
        np.testing.assert_array_equal(tail, TAIL)
        assert page_bytes(store, "a") == page_bytes(store, "tail") == PAGE
        assert store.stats().arrays["a"].faults <= A.nbytes // PAGE + 1


def test_zeros_and_what_is_loaded_ahead_are_right(pool: Pool, tmp_path: Path) -> None:
    zeros = np.zeros(3 * PAGE, np.uint8)
    zeros[PAGE + 5] = 7
    lm.save(tmp_path / "s.lzm", z=zeros, a=A, chunk_bytes=CHUNK)
    with lm.open(tmp_path / "s.lzm", pages="2M") as store:
        np.testing.assert_array_equal(store["z"].load(), zeros)
        a = store["a"].load()
        assert a.residency().fraction == 1
        assert a.evict(np.s_[2:7]) == 2 * PAGE  # whole pages of it
        np.testing.assert_array_equal(a, A)


def test_a_small_array_has_ordinary_pages(pool: Pool, path: Path) -> None:
    with lm.open(path, pages="2M") as store:
        small = store["small"]
        np.testing.assert_array_equal(small, SMALL)
        assert page_bytes(store, "small") == os.sysconf("SC_PAGESIZE")


def test_written_pages_stay_in_memory(pool: Pool, path: Path) -> None:
    with lm.open(path, "c", pages="2M") as store:
        a = store["a"]
        a[3] = 1
        expected = A.copy()
        expected[3] = 1
        np.testing.assert_array_equal(a, expected)
    np.testing.assert_array_equal(lm.open(path)["a"], A)


def test_pages_of_one_gib_are_right(tmp_path: Path) -> None:
    length = (1 << 30) + 12345
    with lm.Writer(tmp_path / "s.lzm") as writer:
        writer.create("x", (length,), "u1").write(A.view("u1").ravel(), at=1 << 29)
    for pool in pool_with(1048576, 2):
        unused = pool.unused
        with lm.open(tmp_path / "s.lzm", pages="1G") as store:
            x = store["x"]
            assert page_bytes(store, "x") == 1 << 30
            at = 1 << 29
            np.testing.assert_array_equal(x[at : at + A.nbytes], A.view("u1").ravel())
            assert not x[at - 1000 : at].any()
            assert pool.number("free_hugepages") == unused - 1
            del x
        gc.collect()
        assert pool.unused == unused


# ---- the pool ------------------------------------------------------------------------


def test_a_pool_too_small_is_an_error_that_counts(pool: Pool, path: Path) -> None:
    pool.resize(pool.number("nr_hugepages") - 12)
    with lm.open(path, pages="2M") as store:
        with pytest.raises(lm.HugePagesError, match=r"'a'.*expected 5.*doctor.*auto"):
            _ = store["a"]
        tail = store["tail"]  # 3 pages
        np.testing.assert_array_equal(tail, TAIL)
    with lm.open(path, pages="auto") as store:
        with pytest.warns(lm.LazyMemWarning, match="too few"):
            a = store["a"]
        np.testing.assert_array_equal(a, A)
        assert page_bytes(store, "a") == os.sysconf("SC_PAGESIZE")
    pool.resize(pool.number("nr_hugepages") + 12)


def test_pages_are_promised_when_the_array_is_opened(pool: Pool, path: Path) -> None:
    with lm.open(path, pages="auto") as store:
        a = store["a"]
        others = [lm.open(path, "c", pages="2M") for _ in range(4)]
        taken = []
        with pytest.raises(lm.HugePagesError):
            taken.extend(other["a"] for other in others)
        for array in taken:
            array[:] = 0
        np.testing.assert_array_equal(a, A)
        assert page_bytes(store, "a") == PAGE
        for other in others:
            other.close()


def test_a_closed_store_gives_its_pages_back_though_views_live(
    pool: Pool, path: Path
) -> None:
    before = hugetlb_kib()
    store = lm.open(path, pages="2M")
    a = store["a"].load()
    assert hugetlb_kib() - before == A.nbytes >> 10
    store.close()
    assert hugetlb_kib() == before
    with pytest.raises(lm.ClosedError):
        _ = a[0, 0]
    assert hugetlb_kib() == before


def test_a_kernel_that_can_not_is_an_error(
    run_python: Callable[..., CompletedProcess[str]], path: Path
) -> None:
    script = (
        "import sys, warnings, lazymem as lm\n"
        "try:\n    lm.open(sys.argv[1], pages='2M')['a']\n"
        "except lm.UnsupportedKernelError as error:\n    print(error)\n"
        "warnings.simplefilter('ignore')\n"
        "print(lm.open(sys.argv[1], pages='auto')['a'][1, 2])\n"
    )
    done = run_python(script, path, LAZYMEM_MASK="hugetlb")
    assert "huge pages" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == str(A[1, 2])
    for wrong in ("3M", 2 << 20, ["2M"]):
        with pytest.raises(ValueError, match="pages must be"):
            lm.open(path, pages=wrong)  # type: ignore[arg-type]


# ---- failures ------------------------------------------------------------------------


def test_damage_is_named_and_spares_the_other_pages(pool: Pool, path: Path) -> None:
    flip(path, places(path)["payload"] + 3)
    with lm.open(path, pages="2M") as store:
        a = store["a"]
        bad = {}
        for row in range(10):
            try:
                np.testing.assert_array_equal(a[row].copy(), A[row])
            except lm.ChecksumError as error:
                bad[row] = error.chunk_idx
    assert bad == {0: 3, 1: 3}


def test_a_failure_that_passes_heals(pool: Pool, path: Path) -> None:
    with lm.open(path, pages="2M") as store:
        a = store["a"]
        with failing("read", 5), pytest.raises(lm.FillError):
            a.copy()
        with failing("uffd_copy", 12, count=6), pytest.raises(lm.BudgetError):
            a.copy()
        np.testing.assert_array_equal(a, A)


# ---- fork ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["r", "c"])
def test_children_need_no_huge_pages(pool: Pool, path: Path, mode: Any) -> None:
    """A pool that is empty would kill a child, or the parent when it writes."""
    pool.resize(pool.number("nr_hugepages") - 11)
    with lm.open(path, mode, pages="2M") as store:
        a, plain = store["a"], np.asarray(store["a"])
        expected = A.copy()
        assert a[4, 4] == A[4, 4]
        if mode == "c":
            a[2, 7] = expected[2, 7] = 1
        assert pool.unused == 0
        reading, writing = os.pipe()

        def read_and_write() -> bool:
            if mode == "c":
                a[5] = 3
            os.read(reading, 1)  # until the parent has written
            right = expected.copy()
            if mode == "c":
                right[5] = 3
            return np.array_equal(a, right) and np.array_equal(plain, right)

        pid = start_child(read_and_write)
        if mode == "c":
            a[:3] = 9
        os.write(writing, b"x")
        assert end_child(pid) == 0
        if mode == "c":
            expected[:3] = 9
        np.testing.assert_array_equal(a, expected)
        os.close(reading)
        os.close(writing)
    pool.resize(pool.number("nr_hugepages") + 11)


def test_a_child_of_a_child_reads_what_both_wrote(pool: Pool, path: Path) -> None:
    with lm.open(path, "c", pages="2M") as store:
        a = store["a"]
        a[1] = 5

        def child() -> bool:
            a[6] = 6

            def grandchild() -> bool:
                expected = A.copy()
                expected[1], expected[6] = 5, 6
                return np.array_equal(a, expected)

            return end_child(start_child(grandchild)) == 0

        assert end_child(start_child(child)) == 0


# ---- transparent huge pages ----------------------------------------------------------

THP = Path("/sys/kernel/mm/transparent_hugepage")
LARGE = smooth((8, 3 * MIB // 4))  # 24 MiB
BESIDE_ZEROS = smooth((6, MIB // 2))  # 12 MiB: its third MiB is zeros
BESIDE_ZEROS[1] = 0

LOAD = """
import sys, hashlib, numpy as np, lazymem as lm
store = lm.open(sys.argv[1])
kept = [store["a"], store["zeros"]]
for a in kept:
    a.load()
    print(hashlib.sha256(np.asarray(a)).hexdigest())
    assert a.evict(np.s_[3:5]) > 0 and a.residency().fraction < 1
    print(hashlib.sha256(np.asarray(a)).hexdigest())
print(store.stats().engine["moves"])
huge, inside = 0, False
for line in open("/proc/self/smaps"):
    if "-" in line.split()[0]:
        low, high = (int(part, 16) for part in line.split()[0].split("-"))
        inside = low <= kept[0].ctypes.data < high
    elif inside and line.startswith("AnonHugePages"):
        huge += int(line.split()[1])
print(huge)
"""


def hashes_moves_and_huge_kib(
    run_python: Callable[..., CompletedProcess[str]], path: Path, mask: str
) -> tuple[int, int]:
    """Load arrays in a fresh process; they must be right."""
    done = run_python(LOAD, path, LAZYMEM_MASK=mask)
    assert done.returncode == 0, done.stderr
    *hashes, moves, huge = done.stdout.split()
    right = [hashlib.sha256(x.tobytes()).hexdigest() for x in (LARGE, BESIDE_ZEROS)]
    assert hashes == [right[0], right[0], right[1], right[1]]
    return int(moves), int(huge)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    lm.save(tmp_path / "l.lzm", a=LARGE, zeros=BESIDE_ZEROS, chunk_bytes=CHUNK)
    return tmp_path / "l.lzm"


def test_what_is_loaded_whole_is_moved_in_by_huge_pages(
    run_python: Callable[..., CompletedProcess[str]], large: Path
) -> None:
    if "[never]" in (THP / "enabled").read_text():
        pytest.skip("the system makes no huge pages")
    if not _engine.uffd_features(_engine.uffd_probe().features)["move"]:
        pytest.skip("the kernel has no UFFDIO_MOVE")
    moves, huge = hashes_moves_and_huge_kib(run_python, large, "")
    # Of the second array not where zeros are, which are to take no memory.
    assert 1 <= moves <= LARGE.nbytes // PAGE + 5
    if moves >= LARGE.nbytes // PAGE:  # else the system had no huge pages to spare
        assert huge >= LARGE.nbytes // PAGE // 2 << 11


def test_without_moves_pages_are_copied(
    run_python: Callable[..., CompletedProcess[str]], large: Path
) -> None:
    assert hashes_moves_and_huge_kib(run_python, large, "move") == (0, 0)


def test_where_the_system_makes_no_huge_pages_they_are_copied(
    run_python: Callable[..., CompletedProcess[str]], large: Path
) -> None:
    with setting(THP / "enabled", "never"):
        assert hashes_moves_and_huge_kib(run_python, large, "") == (0, 0)


def test_locked_memory_takes_copies(large: Path) -> None:
    """UFFDIO_MOVE refuses to move pages into it."""
    lock_on_fault = 1
    with lm.open(large) as store:
        a = store["a"]
        if LIBC.mlock2(ctypes.c_void_p(a.ctypes.data), LARGE.nbytes, lock_on_fault):
            pytest.skip(f"mlock2: {os.strerror(ctypes.get_errno())}")
        before = store.stats().engine
        np.testing.assert_array_equal(a.load(), LARGE)
        after = store.stats().engine
        assert after["copies"] - before["copies"] >= LARGE.nbytes // PAGE
        assert after["refused"] == before["refused"]


def test_a_child_shares_moved_pages_until_it_writes(large: Path) -> None:
    with lm.open(large, "c") as store:
        a = store["a"].load()

        def child() -> bool:
            a[2] = 1
            expected = LARGE.copy()
            expected[2] = 1
            return np.array_equal(a, expected)

        assert end_child(start_child(child)) == 0
        a.load()
        np.testing.assert_array_equal(a, LARGE)


# ---- writing -------------------------------------------------------------------------


def test_snapshots_of_huge_pages_hold_the_chunks_that_were_written(
    pool: Pool, path: Path
) -> None:
    right = A.copy()
    with lm.open(path, "r+", pages="2M") as store:
        a = store["a"]
        assert a[0, 0] == right[0, 0]
        a[3] = right[3] = 5
        store["tail"][-1] = 7
        first = store.snapshot("first")
        # A page was written to; of its chunks, those that differ are stored.
        assert first.chunks < PAGE // CHUNK
        a[5:9] = 6
        store.restore("first", discard=True)
        np.testing.assert_array_equal(a, right)
        assert page_bytes(store, "a") == PAGE
        future = store.snapshot("second", wait=False)
        a[2] = right[2] = 8
        assert future.result().chunks == 0
        store.flush()
    with lm.open(path) as store:
        np.testing.assert_array_equal(store["a"], right)
        assert store["tail"][-1] == 7
    with lm.open(path, at="second") as store:
        assert np.array_equal(store["a"][2], A[2])
