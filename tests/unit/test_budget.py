# SPDX-License-Identifier: BSD-3-Clause
"""Do arrays keep to a memory limit, whatever is done, and lose nothing by it?"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazymem as lm
from lazymem.budget import limit_bytes
from tests.conftest import smooth, wait_until

CHUNK = 16384
LIMIT = 16 << 20
IN_LIMIT = LIMIT // CHUNK
A = smooth((4096, CHUNK // 4))  # a chunk in each row, 64 MiB in all
pytestmark = pytest.mark.needs_uffd


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("budget") / "s.lzm"
    lm.save(path, a=A, codec="lz4", level=1, chunk_bytes=CHUNK)
    return path


@pytest.fixture
def process_limit() -> Iterator[None]:
    yield
    lm.set_limit(None)


def _used(store: lm.Store) -> int:
    found = store.stats().budget
    assert found is not None
    return found.used


# ---- what a limit may be
# ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "nbytes"),
    [
        ("4 GiB", 4 << 30),
        ("4GB", 4 * 10**9),
        ("1.5 gib", 3 << 29),
        ("64M", 64 * 10**6),
        ("99999999", 99999999),
        (1 << 30, 1 << 30),
    ],
)
def test_limits_are_bytes_or_texts(limit: Any, nbytes: int) -> None:
    assert limit_bytes(limit) == nbytes


@pytest.mark.parametrize("limit", ["four", "-1 GiB", "4 GiBit", 1.5, True, 0, "1 MiB"])
def test_other_limits_are_refused(path: Path, limit: Any) -> None:
    with pytest.raises(ValueError, match="limit"):
        lm.open(path, limit=limit)
    with lm.open(path) as store, pytest.raises(ValueError, match="limit"):
        store.limit = limit


def test_auto_is_half_of_what_is_available(path: Path) -> None:
    with lm.open(path, limit="auto") as store:
        assert store.limit is not None
        assert 64 << 20 < store.limit < os.sysconf("SC_PHYS_PAGES") * 4096


# ---- reading
# ------------------------------------------------------------------------------------


def test_what_does_not_fit_is_dropped_and_comes_back(path: Path) -> None:
    with lm.open(path, limit=LIMIT) as store:
        a = store["a"]
        for _ in range(2):
            for i in range(0, len(A), 64):
                assert np.array_equal(a[i : i + 64], A[i : i + 64])
                assert _used(store) <= LIMIT
        stats = store.stats()
        assert stats.arrays["a"].bytes_resident <= LIMIT
        assert stats.budget is not None
        assert stats.budget.evicted >= 2 * len(A) - 2 * IN_LIMIT
        assert stats.budget.limit == store.limit == LIMIT


def test_all_arrays_of_a_store_share_its_limit(tmp_path: Path) -> None:
    arrays = {f"x{i}": smooth((600, CHUNK // 4)) + i for i in range(4)}
    lm.save(tmp_path / "s.lzm", arrays, chunk_bytes=CHUNK)
    with lm.open(tmp_path / "s.lzm", limit=LIMIT) as store:
        lazy = {name: store[name] for name in store}
        for i in range(600):
            for name, x in arrays.items():
                assert lazy[name][i, 5] == x[i, 5]
        assert _used(store) <= LIMIT
        assert store.stats().bytes_resident <= LIMIT
        del lazy
        gc.collect()
        assert _used(store) == 0


def test_a_limit_can_be_changed_and_what_is_too_much_is_dropped_at_once(
    path: Path,
) -> None:
    with lm.open(path) as store:
        a = store["a"].load()
        assert store.limit is None
        assert store.stats().budget is None
        store.limit = 2 * LIMIT
        assert a.residency().chunks_resident <= 2 * IN_LIMIT
        store.limit = LIMIT
        assert a.residency().chunks_resident <= IN_LIMIT
        assert np.array_equal(a, A)
        store.limit = None
        a.load()
        assert a.residency().fraction == 1
        assert np.array_equal(a, A)
    with pytest.raises(lm.ClosedError):
        store.limit = LIMIT


@pytest.mark.usefixtures("process_limit")
def test_the_process_has_a_limit_for_stores_without_one(path: Path) -> None:
    with lm.open(path) as early, lm.open(path, limit=3 * LIMIT) as own:
        x = early["a"].load()
        lm.set_limit(2 * LIMIT)
        assert lm.get_limit() == early.limit == 2 * LIMIT
        assert own.limit == 3 * LIMIT
        assert x.residency().chunks_resident <= 2 * IN_LIMIT
        with lm.open(path) as late:
            for i in range(0, len(A), 16):
                assert late["a"][i, 3] == x[i, 3] == A[i, 3]
            assert _used(late) == _used(early) <= 2 * LIMIT
        lm.set_limit(None)
        assert early.limit is lm.get_limit() is None
        assert x.load().residency().fraction == 1


def test_more_than_the_limit_is_not_loaded_and_not_prefetched(path: Path) -> None:
    with lm.open(path, limit=LIMIT) as store:
        a = store["a"]
        with pytest.raises(
            lm.BudgetError, match=f"limit of {LIMIT}; raise store.limit"
        ):
            a.load()
        a[:600].load()
        assert a[:600].residency().fraction == 1
        a.evict()
        a.prefetch()
        wait_until(lambda: a.residency().chunks_resident >= IN_LIMIT // 2)
        time.sleep(0.05)
        assert a.residency().chunks_resident == IN_LIMIT // 2
        rows = np.random.default_rng(1).integers(0, len(A), 10000)
        assert np.array_equal(a[rows, 17], A[rows, 17])
        assert _used(store) <= LIMIT


# ---- what may not be dropped
# --------------------------------------------------------------------


def test_what_is_pinned_stays(path: Path) -> None:
    with lm.open(path, limit=LIMIT) as store:
        a = store["a"]
        with a.pin(np.s_[100:300]):
            assert a[100:300].residency().fraction == 1
            fills = store.stats().fills
            for i in range(1000, len(A)):
                assert a[i, 0] == A[i, 0]
            assert a[100:300].residency().fraction == 1
            assert np.array_equal(a[100:300], A[100:300])
            # What was filled ahead is counted behind its last page.
            wait_until(lambda: store.stats().fills - fills >= len(A) - 1000)
            assert store.stats().budget.pinned == 200 * CHUNK  # type: ignore[union-attr]
        assert store.stats().budget.pinned == 0  # type: ignore[union-attr]
        for i in range(1000, len(A)):
            assert a[i, 0] == A[i, 0]
        assert a[100:300].residency().fraction < 1


def test_too_many_pins_are_refused(path: Path) -> None:
    with lm.open(path, limit=LIMIT) as store:
        a = store["a"]
        pin = a.pin(np.s_[: IN_LIMIT // 2])
        with pytest.raises(lm.BudgetError, match=r"pinned.*release pins"):
            a.pin(np.s_[2000 : 2000 + IN_LIMIT // 2])
        del pin
        a.pin(np.s_[2000 : 2000 + IN_LIMIT // 2]).release()
        a.pin(np.s_[:0]).release()
    with lm.open(path) as store:
        a = store["a"]
        with a.pin():
            assert a.residency().fraction == 1


def test_what_is_written_in_mode_c_is_there_afterwards(path: Path) -> None:
    with lm.open(path, "c", limit=LIMIT) as store:
        a = store["a"]
        a[:4096:8, 3] = -7
        assert a[1:500].sum() != 0
        assert a.evict() > 0
        for i in range(len(A)):
            assert a[i, 3] == (A[i, 3] if i % 8 else -7)
        assert _used(store) <= LIMIT
    with lm.open(path, "c") as store:
        a = store["a"]
        a[0, 3] = -7
        with pytest.raises(ValueError, match=r"mode 'c'.*open the store with limit="):
            store.limit = LIMIT
        assert a[0, 3] == -7


# ---- which are dropped
# ----------------------------------------------------------------------------


def _misses_of_lru(trace: Any, capacity: int) -> int:
    found: OrderedDict[int, None] = OrderedDict()
    misses = 0
    for i in trace:
        if i in found:
            found.move_to_end(i)
            continue
        misses += 1
        if len(found) == capacity:
            found.popitem(last=False)
        found[i] = None
    return misses


def _zipf(exponent: float) -> Any:
    rng = np.random.default_rng(5)
    weights = np.arange(1, len(A) + 1) ** -exponent
    ranks = rng.choice(len(A), 60_000, p=weights / weights.sum())
    return rng.permutation(len(A))[ranks]


def _scan_and_hot_set() -> Any:
    rng = np.random.default_rng(6)
    hot = rng.permutation(len(A))[: IN_LIMIT // 2]
    trace = np.resize(np.setdiff1d(np.arange(len(A)), hot), 40_000)
    trace[rng.random(len(trace)) < 0.5] = -1
    places = trace == -1
    trace[places] = rng.choice(hot, places.sum())
    return trace


def _loop() -> Any:
    return np.resize(np.arange(int(1.1 * IN_LIMIT)), 20_000)


@pytest.mark.parametrize(
    ("trace", "of_lru"),
    [
        (_zipf(0.8), 1.1),
        (_zipf(1.0), 1.1),
        (_zipf(1.2), 1.1),
        (_scan_and_hot_set(), 0.9),
        (_loop(), 1.01),
    ],
    ids=["zipf 0.8", "zipf 1.0", "zipf 1.2", "scan and hot set", "loop"],
)
def test_chunks_that_come_back_stay_longer(
    path: Path, trace: Any, of_lru: float
) -> None:
    room = 0  # less than IN_LIMIT, where others have left the threads large buffers
    with lm.open(path, limit=LIMIT) as store:
        lazy = store["a"]
        lazy.advise("random")
        a = np.asarray(lazy)
        for n, i in enumerate(trace.tolist()):
            a[i, 0]
            if n % 16 == 0:
                room = max(room, _used(store) // CHUNK)
        assert IN_LIMIT * 2 // 3 < room <= IN_LIMIT
        lru = _misses_of_lru(trace.tolist(), room)
        assert store.stats().fills <= of_lru * lru


# ---- many threads
# -----------------------------------------------------------------------------------

BOUND = """
import os, sys, threading, time, numpy as np, lazymem as lm
path, limit, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]

def rss(key="VmRSS:"):
    text = open("/proc/self/status").read()
    return int(text.split(key)[1].split()[0]) << 10

expected = np.load(sys.argv[4])   # what the process has anyway
np.random.default_rng(1).zipf(1.3)
idle = [threading.Thread(target=lambda: time.sleep(0.2)) for _ in range(8)]
for thread in idle:
    thread.start()
for thread in idle:
    thread.join()
with lm.open(path) as store:
    store["a"][::500].sum()
before = rss()
with lm.open(path, limit=limit) as store:
    lazy = store["a"]
    a = np.asarray(lazy)
    n, end = len(a), time.monotonic() + 4
    wrong = []

    def rows(seed):
        rng = np.random.default_rng(seed)
        if kind == "random":
            return iter(lambda: int(rng.integers(n)), None)
        if kind == "zipf":
            return iter(lambda: int(rng.zipf(1.3)) * 977 % n, None)
        step = 1 if kind == "sequential" else n // 2 + 1  # never soon again
        return (i * step % n for i in range(seed * n // 8, 1 << 60))

    def read(seed):
        for i in rows(seed):
            if a[i].sum() != expected[i]:
                wrong.append(i)
            if time.monotonic() > end:
                return

    threads = [threading.Thread(target=read, args=[i]) for i in range(8)]
    for thread in threads:
        thread.start()
    highest = 0
    while any(thread.is_alive() for thread in threads):
        highest = max(highest, rss())
        time.sleep(0.01)
    fills = store.stats().fills
print(highest - before, rss("VmHWM:") - before, len(wrong), fills)
"""


@pytest.mark.parametrize("kind", ["random", "sequential", "zipf", "adversarial"])
def test_memory_stays_within_the_limit_and_8_mib(
    path: Path, tmp_path: Path, run_python: Callable[..., Any], kind: str
) -> None:
    np.save(tmp_path / "sums.npy", A.sum(axis=1))
    done = run_python(BOUND, path, LIMIT, kind, tmp_path / "sums.npy")
    assert done.returncode == 0, done.stderr
    highest, at_any_time, wrong, fills = map(int, done.stdout.split())
    slack = (8 << 20) + os.cpu_count() * CHUNK  # type: ignore[operator]
    assert wrong == 0
    assert fills > 2 * IN_LIMIT
    assert max(highest, at_any_time) <= LIMIT + slack


def test_arrays_read_side_by_side_do_not_displace_what_was_filled_ahead(
    tmp_path: Path,
) -> None:
    a = smooth((512, 4096))
    lm.save(tmp_path / "s.lzm", {f"a{i}": a + i for i in range(16)}, chunk_bytes=65536)
    with lm.open(tmp_path / "s.lzm", limit="16 MiB") as store:
        arrays = [np.asarray(array) for array in store.values()]
        for row in range(0, 512, 4):
            for i, array in enumerate(arrays):
                np.testing.assert_array_equal(array[row], a[row] + i)
        stats = store.stats()
        assert stats.faults < 0.8 * stats.fills  # the rest was filled ahead
        assert stats.fills < 1.4 * 16 * store.info("a0").chunks


def test_arrays_are_closed_while_others_need_their_room(path: Path) -> None:
    """Two stores in one budget: one is opened and closed, while the other is read."""
    done = threading.Event()
    failures = []

    def reopen() -> None:
        while not done.is_set():
            with lm.open(path) as store:
                a = store["a"]
                for i in range(0, len(A), 3):
                    if a[i, 1] != A[i, 1]:
                        failures.append(i)

    lm.set_limit(LIMIT)
    try:
        thread = threading.Thread(target=reopen)
        thread.start()
        with lm.open(path) as store:
            a = store["a"]
            for _ in range(3):
                assert np.array_equal(a, A)
            done.set()
            thread.join()
            gc.collect()
            assert _used(store) == store.stats().bytes_resident <= LIMIT
    finally:
        done.set()
        lm.set_limit(None)
    assert not failures


def test_a_forked_child_keeps_to_the_limit_too(path: Path) -> None:
    with lm.open(path, limit=LIMIT) as store:
        a = store["a"]
        a[:2000].sum()
        child = os.fork()
        if child == 0:
            try:
                assert all(a[i, 9] == A[i, 9] for i in range(len(A)))
                assert _used(store) <= LIMIT
                os._exit(0)
            finally:
                os._exit(1)
        assert all(a[i, 9] == A[i, 9] for i in range(len(A)))
        assert os.waitpid(child, 0)[1] == 0


# ---- what was written and does not fit
# --------------------------------------------------------------


def _spilled(store: lm.Store) -> int:
    found = store.stats().budget
    assert found is not None
    return found.spilled


def test_a_store_in_memory_may_be_larger_than_its_limit(tmp_path: Path) -> None:
    """In place, twice over, with a snapshot of it all and a restore."""
    with lm.Store(limit=LIMIT, spill=tmp_path) as store:
        x = store.create("x", A.shape, A.dtype, chunk_bytes=CHUNK)
        for i in range(0, len(A), 100):
            x[i : i + 100] = A[i : i + 100]
        assert _spilled(store) > len(A) - 2 * IN_LIMIT
        for i in range(0, len(A), 64):
            x[i : i + 64] *= 2
        assert _used(store) <= LIMIT
        store.snapshot("doubled")
        assert store.stats().arrays["x"].chunks_dirty == 0
        assert store.stats().budget.bytes_spilled == 0  # type: ignore[union-attr]
        assert np.array_equal(x, 2 * A)
        x[::2] = -1
        assert _used(store) <= LIMIT
        assert np.all(x[::2] == -1)
        assert np.array_equal(x[1::2], 2 * A[1::2])
        store.restore("doubled", discard=True)
        assert store.stats().budget.bytes_spilled == 0  # type: ignore[union-attr]
        assert np.array_equal(x, 2 * A)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["c", "r+"])
def test_what_was_written_comes_back(path: Path, tmp_path: Path, mode: Any) -> None:
    copy = tmp_path / "s.lzm"
    copy.write_bytes(path.read_bytes())
    right = A.copy()
    rng = np.random.default_rng(7)
    with lm.open(copy, mode, limit=LIMIT, spill=tmp_path) as store:
        a = store["a"]
        for n in range(12_000):
            i, j = int(rng.integers(len(A))), int(rng.integers(A.shape[1]))
            if n % 3:
                a[i, j] = right[i, j] = n
            else:
                assert a[i, j] == right[i, j]
        assert _spilled(store) > 1000
        assert _used(store) <= LIMIT
        assert np.array_equal(a, right)
        if mode == "r+":
            info = store.snapshot("all")
            assert info.chunks == (right != A).any(axis=1).sum()
        else:
            store.close()
    with lm.open(copy) as store:
        assert np.array_equal(store["a"], right if mode == "r+" else A)


def test_what_was_only_read_since_it_was_spilled_is_not_spilled_again(
    tmp_path: Path,
) -> None:
    with lm.Store(limit=LIMIT, spill=tmp_path) as store:
        x = store.create("x", A.shape, A.dtype, chunk_bytes=CHUNK)
        x[...] = A
        assert np.array_equal(x, A)
        before = _spilled(store)
        assert np.array_equal(x, A)
        assert np.array_equal(x, A)
        assert _spilled(store) <= before + IN_LIMIT


def test_snapshots_hold_what_was_spilled_while_threads_go_on_writing(
    tmp_path: Path,
) -> None:
    with lm.Store(limit=LIMIT, spill=tmp_path) as store:
        x = store.create("x", (3 * IN_LIMIT, CHUNK // 8), "i8", chunk_bytes=CHUNK)
        x[...] = 0
        y = np.asarray(x)
        done = threading.Event()

        def write() -> None:
            n = 0
            while not done.is_set():
                n += 1
                for i in range(0, len(y), 7):
                    y[i, :8] = n  # in ascending order: earlier rows are never behind

        thread = threading.Thread(target=write)
        thread.start()
        try:
            for n in range(4):
                time.sleep(0.1)
                store.snapshot(f"s{n}")
        finally:
            done.set()
            thread.join()
        for n in range(4):
            store.restore(f"s{n}", discard=True)
            rows = x[::7, :8].astype("i8")
            assert (rows == rows[:, :1]).all() or _torn_rows(rows) <= 1
            steps = np.diff(rows[:, 0])
            assert ((steps == 0) | (steps == -1)).all()
            assert (steps == -1).sum() <= 1


def _torn_rows(rows: Any) -> int:
    return int((rows != rows[:, :1]).any(axis=1).sum())


def test_a_full_disk_is_an_error_and_nothing_is_lost(
    tmp_path: Path, small_disk: Path
) -> None:
    noise = np.random.default_rng(8).integers(0, 2**31, A.shape, "i4")
    with lm.Store(limit=LIMIT, spill=small_disk) as store:
        x = store.create("x", noise.shape, noise.dtype, chunk_bytes=CHUNK)
        written = 0
        with pytest.raises(OSError, match=r"spill.*No space left") as info:
            for i in range(len(noise)):
                x[i] = noise[i]
                written = i + 1
        assert "chunk" in str(info.value)
        assert "object 'x'" in str(info.value)
        assert IN_LIMIT < written < len(noise)
        store.limit = 8 * LIMIT
        assert np.array_equal(x[:written], noise[:written])
        x[written:] = noise[written:]
        assert np.array_equal(x, noise)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    import subprocess

    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.getuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder], check=False
        ).returncode
    ):
        pytest.skip("no right to mount a file system")
    try:
        yield folder
    finally:
        gc.collect()
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_forked_child_has_what_its_parent_had_spilled(tmp_path: Path) -> None:
    with lm.Store(limit=LIMIT, spill=tmp_path) as store:
        x = store.create("x", A.shape, A.dtype, chunk_bytes=CHUNK)
        x[...] = A
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.read(read, 1)  # the parent has written it all anew
                assert all(np.array_equal(x[i], A[i]) for i in range(len(A)))
                os._exit(0)
            finally:
                os._exit(1)
        for i in range(0, len(A), 64):
            x[i : i + 64] += 1
        os.write(write, b"x")
        assert os.waitpid(child, 0)[1] == 0
        assert np.array_equal(x, A + 1)
        os.close(read)
        os.close(write)


def test_a_damaged_spill_file_is_an_error(tmp_path: Path) -> None:
    with lm.Store(limit=LIMIT, spill=tmp_path) as store:
        x = store.create("x", A.shape, A.dtype, chunk_bytes=CHUNK)
        x[...] = A
        for fd in os.listdir("/proc/self/fd"):
            try:
                name = os.readlink(f"/proc/self/fd/{fd}")
            except OSError:
                continue
            if name.startswith(f"{tmp_path}/") and name.endswith("(deleted)"):
                size = os.fstat(int(fd)).st_size
                for at in range(5000, size, 1000):
                    os.pwrite(int(fd), b"?", at)
        with pytest.raises(lm.ChecksumError, match=r"object 'x'.*chunk"):
            x.sum()
        store.close(discard=True)


def test_no_folder_for_what_is_spilled(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "there.lzm"
    lm.save(file, a=A[:1])
    with pytest.raises(FileNotFoundError):
        lm.open(file, "w", limit=LIMIT, spill=tmp_path / "none")
    with pytest.raises(NotADirectoryError):
        lm.open(file, "w", limit=LIMIT, spill=file)
    with pytest.raises(ValueError, match="limit"):
        lm.open(file, "w", limit=5)
    assert np.array_equal(lm.open(file)["a"], A[:1])


def test_where_all_is_pinned_a_touch_is_an_error(tmp_path: Path) -> None:
    """Chunks so large that one, beside the buffers for them, is all that fits."""
    large = np.arange(3 << 20, dtype="f8").reshape(3, -1)  # 8 MiB in each row
    lm.save(tmp_path / "s.lzm", a=large, codec="none", chunk_bytes=8 << 20)
    with lm.open(tmp_path / "s.lzm", limit=LIMIT) as store:
        a = store["a"]
        with a.pin(np.s_[0]):
            with pytest.raises(lm.BudgetError, match=r"chunk 1: .*limit is reached"):
                a[1].sum()
            assert np.array_equal(a[0], large[0])
        assert np.array_equal(a, large)
