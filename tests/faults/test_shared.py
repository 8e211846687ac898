# SPDX-License-Identifier: BSD-3-Clause
"""Do processes that share memory read what is in the file, whoever dies meanwhile?"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazymem as lm
from lazymem import _engine, shared
from tests.conftest import LIBC, PAGE, ROOT, needs_full_mode, smooth
from tests.faults.test_damage import flip
from tests.faults.test_external import setting
from tests.faults.test_fork import in_child

CHUNK = 65536
A = smooth((64, 1 << 16))  # 16 MiB, 256 chunks; a row is four
CHUNKS = A.nbytes // CHUNK
Z = np.zeros((8, 1 << 14))  # 1 MiB, 16 chunks of zeros

_info = _engine.uffd_probe()
pytestmark = [
    pytest.mark.needs_uffd,
    pytest.mark.skipif(
        "minor_shmem" not in _engine.uffd_features(_info.features),
        reason="this kernel reports no minor faults of shared memory",
    ),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    lm.save(tmp_path / "s.lzm", a=A, z=Z, small=A[0, :100], chunk_bytes=CHUNK)
    return tmp_path / "s.lzm"


def memory_of(store: lm.Store, name: str = "a") -> tuple[int, int, int]:
    """Return the descriptor of the memory, and where an array and its states are."""
    store[name]
    found: Any = store._arrays._shared
    return (found.me.fd, *found._places[name])


def counts(a: Any) -> tuple[int, int]:
    """Return how many chunks of an array were decoded here, and elsewhere."""
    stats = a._binding.region.stats()
    return stats.fills - stats.fills_shared, stats.fills_shared


# ---- other processes -----------------------------------------------------------------

_held: dict[str, Any] = {}


def begin(path: Path, **options: Any) -> None:
    _held["a"] = lm.open(path, shared=True, **options)["a"]


def rows(first: int, last: int) -> int:
    return zlib.crc32(_held["a"][first:last].tobytes())


def decoded() -> tuple[int, int]:
    return counts(_held["a"])


def pss() -> int:
    """Return the process's share of the shared memory that it maps."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss_Shmem:"):
            return int(line.split()[1]) << 10
    return 0


def crc(first: int, last: int) -> int:
    return zlib.crc32(A[first:last].tobytes())


@pytest.fixture
def other(path: Path) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, begin, (path,)) as pool:
        yield pool


# ---- sharing -------------------------------------------------------------------------


def test_a_chunk_is_decoded_once_and_in_memory_once(
    path: Path, other: ProcessPoolExecutor
) -> None:
    with lm.open(path, shared=True) as store:
        a = store["a"]
        np.testing.assert_array_equal(a[:40], A[:40])
        assert other.submit(rows, 0, 64).result() == crc(0, 64)
        here, there = counts(a), other.submit(decoded).result()
        assert there[1] >= 160
        assert here[0] + there[0] == CHUNKS
        np.testing.assert_array_equal(a, A)
        assert counts(a)[0] + there[0] == CHUNKS
        total = pss() + other.submit(pss).result()
        assert A.nbytes <= total < 1.1 * A.nbytes
        assert not a.flags.writeable
        # One of zeros, too.
        z = store["z"]
        assert not z.any()
        assert counts(z) == (16, 0)


def test_two_openings_in_one_process_share(path: Path) -> None:
    with lm.open(path, shared=True) as one, lm.open(path, shared=True) as two:
        a, b = one["a"], two["a"]
        np.testing.assert_array_equal(a, A)
        np.testing.assert_array_equal(b, A)
        assert counts(b) == (0, CHUNKS)
        assert two.stats().arrays["a"].stored_bytes_read == 0


def test_what_is_evicted_here_needs_no_decoding(path: Path) -> None:
    with lm.open(path, shared=True) as store:
        a = store["a"].load()
        assert a.evict() == a.nbytes
        assert a.residency().chunks_resident == 0
        np.testing.assert_array_equal(a, A)
        assert counts(a) == (CHUNKS, CHUNKS)


def test_arrays_that_are_sent_share(path: Path, other: ProcessPoolExecutor) -> None:
    with lm.open(path, shared=True) as store, lm.open(path) as alone:
        a = store["a"].load()
        again = pickle.loads(pickle.dumps(a[3:]))
        np.testing.assert_array_equal(again, A[3:])
        assert counts(again)[0] == 0
        assert counts(again)[1] >= CHUNKS - 12
        private = pickle.loads(pickle.dumps(alone["a"]))
        np.testing.assert_array_equal(private, A)
        assert counts(private)[1] == 0


def test_an_earlier_state_is_other_memory(path: Path) -> None:
    with lm.open(path, "r+") as store:
        store["a"][5] = 7
        store.snapshot("seven")
    with (
        lm.open(path, shared=True) as last,
        lm.open(path, shared=True, at=1) as first,
    ):
        a, b = last["a"].load(), first["a"]
        np.testing.assert_array_equal(b, A)
        assert (a[5] == 7).all()
        assert counts(b) == (CHUNKS, 0)


def test_copies_that_went_on_apart_do_not_meet(path: Path, tmp_path: Path) -> None:
    copies = [path, tmp_path / "copy.lzm"]
    shutil.copy(*copies)
    for number, copied in enumerate(copies):
        with lm.open(copied, "r+") as store:
            store["a"][:] = number
            store.flush()
    with ExitStack() as stack:
        for number, copied in enumerate(copies):
            store = stack.enter_context(lm.open(copied, shared=True))
            assert (store["a"] == number).all()


def test_small_and_empty_arrays_have_memory_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "small.lzm"
    lm.save(file, small=A[0, :100], empty=A[:0], scalar=A[3, 3])
    for _ in range(2):
        with lm.open(file, shared=True) as store:
            np.testing.assert_array_equal(store["small"], A[0, :100])
            assert store["empty"].shape == A[:0].shape
            assert store["scalar"] == A[3, 3]


@pytest.mark.parametrize(
    "options", [{"mode": "c"}, {"mode": "r+"}, {"limit": "64 MiB"}, {"pages": "2M"}]
)
def test_what_can_not_be_shared(path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="shared=True is not for mode"):
        lm.open(path, shared=True, **options)


def test_no_limit_holds(path: Path) -> None:
    lm.set_limit("16 MiB")
    try:
        with lm.open(path, shared=True) as store, lm.open(path) as alone:
            a = store["a"].load()
            with pytest.raises(ValueError, match="opened with shared=True"):
                store.limit = "64 MiB"
            assert store.limit is None
            assert alone.limit == 16 << 20
            lm.set_limit("17 MiB")
            assert a.residency().fraction == 1
    finally:
        lm.set_limit(None)


# ---- where they meet -----------------------------------------------------------------


def meetings() -> set[Path]:
    return {file for file in shared._folder().iterdir() if file.suffix == ".shared"}


def test_nothing_is_left_behind(path: Path) -> None:
    before = meetings()
    one, two = lm.open(path, shared=True), lm.open(path, shared=True)
    a, b = one["a"], two["a"]
    (file,) = meetings() - before
    assert file.stat().st_mode & 0o777 == 0o600
    one.close()
    two.close()
    del a, one
    gc.collect()
    assert file.exists()
    del b, two
    gc.collect()
    assert not file.exists()


def test_a_closed_store_without_arrays_holds_no_memory(path: Path) -> None:
    before = meetings()
    with lm.open(path, shared=True) as store:
        store["a"].load()
        gc.collect()
        assert meetings() != before
    assert meetings() == before
    assert store.closed


def test_an_array_keeps_the_memory_that_others_look_for(path: Path) -> None:
    a = lm.open(path, shared=True)["a"].load()
    gc.collect()
    with lm.open(path, shared=True) as store:
        b = store["a"]
        np.testing.assert_array_equal(b, A)
        assert counts(b) == (0, CHUNKS)
    del a


def test_who_was_killed_is_not_looked_for(path: Path) -> None:
    (shared._folder() / f"{'0' * 32}.shared").write_text("4194305 3 1\n")  # no such pid
    with lm.open(path, shared=True) as store:
        store["a"]
        assert not [file for file in meetings() if file.stem == "0" * 32]
    before = meetings()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, begin, (path,)) as pool:
        assert pool.submit(rows, 0, 64).result() == crc(0, 64)
        pid = pool.submit(os.getpid).result()
        os.kill(pid, signal.SIGKILL)
    (file,) = meetings() - before
    assert file.read_text().startswith(f"{pid} ")
    a = lm.open(path, shared=True)["a"]
    np.testing.assert_array_equal(a, A)
    assert counts(a) == (CHUNKS, 0)
    del a
    gc.collect()
    assert not file.exists()


@pytest.mark.parametrize(
    "line", ["", "x y z\n", "1 2\n", "{me} 1 2\n", "{me} {fd} 7\n"]
)
def test_who_is_not_who_was_meant_is_passed_by(
    path: Path, line: str, tmp_path: Path
) -> None:
    before = meetings()
    a = lm.open(path, shared=True)["a"]
    (file,) = meetings() - before
    del a
    gc.collect()
    with (tmp_path / "stranger").open("wb") as stranger:
        file.write_text(line.format(me=os.getpid(), fd=stranger.fileno()))
        with lm.open(path, shared=True) as store:
            a = store["a"]
            np.testing.assert_array_equal(a, A)
            assert counts(a) == (CHUNKS, 0)
    assert (tmp_path / "stranger").stat().st_size == 0


def test_memory_of_another_store_is_not_taken(path: Path, tmp_path: Path) -> None:
    shutil.copy(path, tmp_path / "copy.lzm")
    with lm.open(tmp_path / "copy.lzm", "r+") as store:
        store["a"][:] = 1
        store.flush()
    with (
        lm.open(path, shared=True) as store,
        lm.open(tmp_path / "copy.lzm", shared=True) as changed,
    ):
        before = meetings()
        a = store["a"].load()
        (file,) = meetings() - before
        b = changed["a"]
        (trap,) = meetings() - before - {file}
        trap.write_text(file.read_text())
        again = lm.open(tmp_path / "copy.lzm", shared=True)["a"]
        assert (again == 1).all()
        assert counts(again) == (CHUNKS, 0)
        assert (b == 1).all()
        np.testing.assert_array_equal(a, A)


def test_a_folder_that_others_may_write_to_is_no_place_to_meet(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setattr(shared.runtime, "folders", lambda: [tmp_path / "open"])
    with lm.open(path, shared=True) as store:
        assert "mode 'r', shared: 'a'" in repr(store)
        with pytest.warns(lm.LazyMemWarning, match="no folder of this user") as caught:
            a = store["a"]
        assert "mode 'r': 'a'" in repr(store)
        assert caught[0].filename == __file__
        np.testing.assert_array_equal(a, A)
        assert not store["z"].any()  # the warning comes once
        store.limit = "16 MiB"
        assert store.limit == 16 << 20


def test_a_store_without_addresses_for_all_is_not_shared(tmp_path: Path) -> None:
    with lm.Writer(tmp_path / "s.lzm") as writer:
        writer.create("a", shape=(2**46,), dtype="u1")
        writer.create("b", shape=(2**46,), dtype="u1")
    with lm.open(tmp_path / "s.lzm", shared=True) as store:
        with pytest.warns(lm.LazyMemWarning, match="more than addresses reach"):
            a = store["a"]
        assert a[2**45] == 0


def test_memory_of_which_each_page_counts_is_not_shared(path: Path) -> None:
    """Where vm.overcommit_memory is 2, and a touch may be the one too many."""
    with (
        setting(Path("/proc/sys/vm/overcommit_memory"), "2"),
        lm.open(path, shared=True) as store,
    ):
        with pytest.warns(lm.LazyMemWarning, match="vm.overcommit_memory=2"):
            a = store["a"]
        np.testing.assert_array_equal(a, A)


def test_dask_reads_memory_that_it_can_give_back(path: Path) -> None:
    dask = pytest.importorskip("dask")
    with lm.open(path, shared=True) as store:
        a = store["a"]
        blocks = a.to_dask(chunks=(8, -1))
        with dask.config.set(scheduler="synchronous"):
            np.testing.assert_array_equal(blocks.compute(), A)
        assert counts(a) == (0, 0)


def test_a_child_does_not_hold_the_lock_that_it_was_forked_under(
    tmp_path: Path,
) -> None:
    file = tmp_path / "x.shared"
    with shared._locked(file, 1):
        pid = os.fork()
        if pid == 0:
            signal.pause()
    try:
        with shared._locked(file, 0):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with pytest.raises(BlockingIOError), shared._locked(file, 1):
        raise BlockingIOError
    with pytest.raises(FileNotFoundError), shared._locked(file, 1):
        raise FileNotFoundError


def test_nobody_is_waited_for_who_was_stopped_where_they_meet(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "_LOCK_S", 0.05)
    before = meetings()
    with lm.open(path, shared=True) as store, lm.open(path, shared=True) as late:
        first = store["a"].load()
        (file,) = meetings() - before
        with file.open("r+") as stopped:
            fcntl.flock(stopped, fcntl.LOCK_EX)
            with pytest.warns(lm.LazyMemWarning, match="another process has it locked"):
                a = late["a"]
        np.testing.assert_array_equal(a, A)
        assert counts(a) == (CHUNKS, 0)
        del first


ALONE = """
import sys, warnings
import numpy as np
import lazymem as lm
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    with lm.open(sys.argv[1], shared=True) as store:
        print(float(np.asarray(store["a"]).sum(dtype="f8")))
print(caught[0].message)
"""


@pytest.mark.parametrize(
    ("mask", "text"),
    [("minor_shmem", "for shared memory"), ("dev,syscall,user", "loaded whole")],
)
def test_where_the_system_can_not_share(
    path: Path, run_python: Any, mask: str, text: str
) -> None:
    done = run_python(ALONE, path, LAZYMEM_MASK=mask)
    total, warning = done.stdout.splitlines()
    assert float(total) == A.sum(dtype="f8"), done.stderr
    assert text in warning


# ---- what is not data ----------------------------------------------------------------


@pytest.mark.parametrize("state", [b"\0", b"\1"])
def test_pages_of_a_chunk_that_nobody_has_filled_are_nothing(
    path: Path, state: bytes
) -> None:
    """As a process leaves them that was killed while it filled the chunk."""
    with lm.open(path, shared=True) as store:
        fd, offset, states = memory_of(store)
        os.pwrite(fd, state * CHUNKS, states)
        chosen = random.Random(1)
        for page in range(0, A.nbytes, PAGE):
            if chosen.random() < 0.4:
                os.pwrite(fd, b"\xaa" * PAGE, offset + page)
        _, z_offset, _ = memory_of(store, "z")
        os.pwrite(fd, b"\xaa" * Z.nbytes, z_offset)
        assert store["a"][17, 7] == A[17, 7]
        np.testing.assert_array_equal(store["a"], A)
        assert not store["z"].any()
        assert set(os.pread(fd, CHUNKS, states)) == {2}


def test_what_one_could_not_read_another_is_not_given(
    path: Path, other: ProcessPoolExecutor
) -> None:
    with lm.open(path, shared=True) as store:
        a = store["a"]
        intact = path.read_bytes()
        flip(path, len(intact) // 3)
        damage = store.verify()
        assert len(damage) == 1
        chunk = damage[0].chunk_idx  # type: ignore[attr-defined]
        row = chunk // 4
        assert 0 < row < 63
        for _ in range(3):
            with pytest.raises(lm.ChecksumError):
                a[row].sum()
        with pytest.raises(lm.ChecksumError):
            other.submit(rows, row, row + 1).result()
        path.write_bytes(intact)
        assert other.submit(rows, 0, 64).result() == crc(0, 64)
        np.testing.assert_array_equal(a, A)


@pytest.mark.skipif(
    "poison" not in _engine.uffd_features(_info.features), reason="no UFFDIO_POISON"
)
def test_a_dead_page_is_dead_here_only(path: Path, run_python: Any) -> None:
    with lm.open(path, shared=True) as store:
        a = store["a"]
        intact = path.read_bytes()
        flip(path, len(intact) // 3)
        done = run_python(
            "import sys, lazymem as lm\n"
            "s = lm.open(sys.argv[1], shared=True, on_error='sigbus')\n"
            "s['a'].view('u1').tobytes()\n",
            path,
        )
        assert done.returncode == -signal.SIGBUS, done.stderr
        path.write_bytes(intact)
        np.testing.assert_array_equal(a, A)


def test_arrays_of_a_closed_store_raise(path: Path) -> None:
    with lm.open(path, shared=True) as store:
        a = store["a"].load()
        fresh = store["z"]
    for array in (a, fresh):
        with pytest.raises(lm.ClosedError):
            np.asarray(array).sum() + array.sum()


# ---- children ------------------------------------------------------------------------


def test_a_forked_child_shares_on(path: Path) -> None:
    with lm.open(path, shared=True) as store:
        a = store["a"]
        assert (a[:2] == A[:2]).all()

        def read() -> bool:
            grandchild = in_child(lambda: np.array_equal(a[::-1], A[::-1]))
            return grandchild == 0 and np.array_equal(a, A)

        assert in_child(read) == 0
        np.testing.assert_array_equal(a, A)
        assert counts(a)[1] > 0  # what the child has decoded
        assert meetings()


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="SYS_fork is x86-64's")
def test_zeros_that_a_bare_child_reads_are_its_own(path: Path) -> None:
    with lm.open(path, shared=True) as store, lm.open(path, shared=True) as other:
        a = store["a"]
        base = np.asarray(a).__array_interface__["data"][0]
        pid = LIBC.syscall(57)
        if pid == 0:  # without what fork() does for a child
            for page in range(0, A.nbytes, PAGE):
                LIBC.strnlen(ctypes.c_void_p(base + page), ctypes.c_size_t(1))
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        np.testing.assert_array_equal(other["a"], A)
        np.testing.assert_array_equal(a, A)


FORK = """
import os, sys, warnings
import numpy as np, lazymem as lm
warnings.simplefilter("ignore")
with lm.open(sys.argv[1], shared=True) as store:
    a = store["a"].load()
    pid = os.fork()
    if pid == 0:
        a.load()
        file = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)
        assert os.write(file, a) == a.nbytes
        os._exit(0)
    print(os.waitpid(pid, 0)[1])
"""


@pytest.mark.parametrize("mask", ["", "dev,syscall"], ids=["full", "user mode only"])
def test_a_child_can_write_what_it_has_loaded(
    path: Path, run_python: Any, tmp_path: Path, mask: str
) -> None:
    done = run_python(FORK, path, tmp_path / "out", LAZYMEM_MASK=mask)
    assert done.stdout == "0\n", done.stderr
    assert (tmp_path / "out").read_bytes() == A.tobytes()


# ---- amid all that -------------------------------------------------------------------

TOUCH = """
import random, sys
import numpy as np
import lazymem as lm
seed = int(sys.argv[2])
chosen = random.Random(seed)
with lm.open(sys.argv[1], shared=True) as store:
    a = store["a"]
    print("ready", flush=True)
    while True:
        if chosen.random() < 0.1:
            a.evict()
        np.asarray(a)[chosen.randrange(64), ::1024].sum()
"""


def test_processes_that_are_killed_leave_nothing_false(path: Path) -> None:
    with lm.open(path, shared=True) as store:
        a = store["a"]
        for seed in range(8):
            child = subprocess.Popen(
                [sys.executable, "-c", TOUCH, str(path), str(seed)],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
            )
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            time.sleep(random.Random(seed).random() * 0.02)
            child.kill()
            child.communicate()
            np.testing.assert_array_equal(a[seed * 8], A[seed * 8])
        np.testing.assert_array_equal(a, A)


@pytest.mark.parametrize("order", [1, -1])
def test_threads_of_processes_at_the_same_time(
    path: Path, other: ProcessPoolExecutor, order: int
) -> None:
    with lm.open(path, shared=True) as store, lm.open(path, shared=True) as second:
        other.submit(rows, 0, 0).result()
        there = [other.submit(rows, i, i + 1) for i in range(64)]
        arrays = [store["a"], second["a"]]

        def touch(seed: int) -> None:
            chosen = random.Random(seed)
            a = arrays[seed % 2]
            for row in list(range(64))[::order]:
                if chosen.random() < 0.1:
                    a[row : row + 2].evict()
                np.testing.assert_array_equal(a[row], A[row])

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(touch, range(6)))
        assert [f.result() for f in there] == [crc(i, i + 1) for i in range(64)]


def test_a_store_that_is_closed_amid_faults(path: Path) -> None:
    for _ in range(20):
        with lm.open(path, shared=True) as kept:
            store = lm.open(path, shared=True)
            a = store["a"]
            began = threading.Event()

            def touch(a: Any = a, began: threading.Event = began) -> None:
                for row in range(64):
                    try:
                        sums = a[row].sum(dtype="f8")
                    except lm.ClosedError:
                        return
                    assert sums == A[row].sum(dtype="f8")
                    began.set()

            with ThreadPoolExecutor(2) as pool:
                ends = [pool.submit(touch) for _ in range(2)]
                began.wait()
                store.close()
                for end in ends:
                    end.result()
            np.testing.assert_array_equal(kept["a"], A)


SWAP = """
import ctypes, mmap, os, sys
import numpy as np, lazymem as lm
from tests.conftest import LIBC
store = lm.open(sys.argv[1], shared=True)
lazy = [store[name] for name in "ab"]
a, b = (np.asarray(x) for x in lazy)
a[0, :100].sum()
def move(old, new):  # MREMAP_MAYMOVE | MREMAP_FIXED
    assert LIBC.mremap(old, a.nbytes, a.nbytes, 3, new) == new
LIBC.mremap.argtypes = [ctypes.c_void_p] + [ctypes.c_size_t] * 2 + [
    ctypes.c_int, ctypes.c_void_p]
between = mmap.mmap(-1, a.nbytes)
spare = ctypes.addressof(ctypes.c_char.from_buffer(between))
move(a.ctypes.data, spare)
move(b.ctypes.data, a.ctypes.data)
move(spare, b.ctypes.data)
for array in lazy:
    try:
        array[40:].sum()
    except lm.FillError as error:
        print(error.name, error.chunk_idx >= 160, flush=True)
os._exit(0)  # the end of `between` would unmap what has taken its place since
"""


def test_memory_that_mremap_swaps_is_false_nowhere(
    tmp_path: Path, run_python: Any
) -> None:
    file = tmp_path / "two.lzm"
    lm.save(file, a=A, b=A + 1, chunk_bytes=CHUNK)
    with lm.open(file, shared=True) as store:
        a, b = store["a"], store["b"]
        done = run_python(SWAP, file)
        assert done.stdout == "a True\nb True\n", done.stderr
        np.testing.assert_array_equal(a, A)
        np.testing.assert_array_equal(b, A + 1)


LOSE = """
import gc, os, sys
import numpy as np
import lazymem as lm
store = lm.open(sys.argv[1], shared=True)
a = store["a"]
a[0, 0]
os.closerange(3, 1000)
strangers = [open(f"{sys.argv[2]}.{i}", "w+b") for i in range(20)]
try:
    print(float(a.sum(dtype="f8")))
finally:
    del a, store
    gc.collect()
    assert all(os.fstat(file.fileno()).st_size == 0 for file in strangers)
"""


def test_descriptors_that_the_program_closes_are_not_needed(
    path: Path, run_python: Any, tmp_path: Path
) -> None:
    done = run_python(LOSE, path, tmp_path / "stranger")
    assert "AssertionError" not in done.stderr
    assert "Bad file descriptor" not in done.stderr
    if "object 'a'" not in done.stderr:  # the file's own descriptor is gone, too
        assert float(done.stdout) == A.sum(dtype="f8"), done.stderr
    for i in range(20):
        assert (tmp_path / f"stranger.{i}").stat().st_size == 0


LOCK = """
import ctypes, sys
import numpy as np
import lazymem as lm
libc = ctypes.CDLL(None, use_errno=True)
now, later = 1, 2
if sys.argv[2] == "before":
    assert libc.mlockall(later) == 0
store = lm.open(sys.argv[1], shared=True)
a = store["a"]
if sys.argv[2] == "after":
    assert libc.mlockall(now | later) == 0
print(float(a.sum(dtype="f8")), float(store["z"].sum()))
"""


@needs_full_mode
@pytest.mark.skipif(os.getuid() != 0, reason="memory may not be locked without bounds")
@pytest.mark.parametrize("when", ["before", "after"])
def test_memory_that_is_locked(path: Path, run_python: Any, when: str) -> None:
    done = run_python(LOCK, path, when)
    assert done.stdout.split() == [str(float(A.sum(dtype="f8"))), "0.0"], done.stderr
