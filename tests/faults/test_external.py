# SPDX-License-Identifier: BSD-3-Clause
"""What if somebody else changes the memory of an array, or what memory there is?

Each test says what other systems do, and what lazymem does.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazymem as lm
from lazymem import _engine
from lazymem.testing import failing
from tests.conftest import LIBC, PAGE, smooth, wait_until

A = smooth((500, 1000))
CHUNK = 65536
MADV_DONTNEED, MADV_HUGEPAGE, MADV_COLLAPSE = 4, 14, 25
PROT_NONE, PROT_READ_WRITE = 0, 3

pytestmark = pytest.mark.needs_uffd


@pytest.fixture
def path(tmp_path: Path) -> Path:
    lm.save(tmp_path / "s.lzm", a=A, chunk_bytes=CHUNK)
    return tmp_path / "s.lzm"


def address(a: Any) -> int:
    return int(np.asarray(a).ctypes.data)


# ---- attributes of a part of the memory
# ---------------------------------------------------


@pytest.mark.parametrize("what", ["mlock", "madvise", "mprotect"])
def test_attributes_of_some_pages_leave_their_chunks_fillable(
    path: Path, what: str
) -> None:
    """Where only a part of a chunk is locked, advised or protected.

    np.memmap: works.  The kernel cuts the mapping in three, and UFFDIO_COPY takes no
    range across mappings.  lazymem goes on page by page.
    """
    with lm.open(path) as store:
        a = np.asarray(store["a"])
        part = address(a) + 3 * CHUNK + 2 * PAGE, 2 * PAGE
        if what == "mlock":
            assert LIBC.mlock(*part) == 0
        elif what == "madvise":
            assert LIBC.madvise(*part, MADV_HUGEPAGE) == 0
        else:
            assert LIBC.mprotect(*part, PROT_NONE) == 0
            beside = slice(3 * CHUNK // 4, (3 * CHUNK + 2 * PAGE) // 4)
            assert np.array_equal(a.ravel()[beside], A.ravel()[beside])
            assert LIBC.mprotect(*part, PROT_READ_WRITE) == 0
        np.testing.assert_array_equal(a, A)
        LIBC.munlock(*part)


# ---- locked memory
# ------------------------------------------------------------------------


def test_locked_memory_is_filled_by_the_lock(path: Path) -> None:
    """Where mlock() is called on an array that is not in memory.

    np.memmap: reads the file.  Anonymous memory: zeros.  lazymem: mlock() fills it.
    """
    with lm.open(path) as store:
        a = store["a"]
        assert LIBC.mlock(address(a), a.nbytes) == 0
        present = (ctypes.c_ubyte * -(-a.nbytes // PAGE))()
        assert LIBC.mincore(address(a), a.nbytes, present) == 0
        assert all(page & 1 for page in present)
        wait_until(lambda: a.residency().fraction == 1)  # noted behind the last page
        np.testing.assert_array_equal(a, A)


MLOCKALL = """
import sys, numpy as np, lazymem as lm
from tests.conftest import LIBC, PAGE
def resident_bytes():
    return int(open("/proc/self/statm").read().split()[1]) * PAGE
assert LIBC.mlockall(1) == 0  # MCL_CURRENT: what is not ours
before = resident_bytes()
with lm.open(sys.argv[1]) as store:
    a = store["a"]
    assert LIBC.mlockall(1) == 0
    print(a.residency().fraction, resident_bytes() - before < 16 << 20)
    np.save(sys.argv[2], np.asarray(a))
    with lm.open(sys.argv[1], "c") as second:
        assert np.array_equal(np.asarray(second["a"]), a)
"""


def test_mlockall_fills_the_open_arrays_and_nothing_else(
    path: Path, tmp_path: Path, run_python: Callable[..., Any]
) -> None:
    """Where mlockall() is called, as real-time programs do, while a store is open.

    np.memmap: reads all maps.  lazymem: fills what is open; addresses that are only
    reserved for more arrays take no memory and raise nothing.
    """
    done = run_python(MLOCKALL, path, tmp_path / "got.npy")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1.0 True\n"
    np.testing.assert_array_equal(np.load(tmp_path / "got.npy"), A)


def test_locked_memory_of_a_closed_store_is_given_back(path: Path) -> None:
    """Where an array is locked in memory, and its store is closed.

    madvise(MADV_DONTNEED) refuses locked pages.  lazymem drops them all the same: a
    touch raises, and the next array at that place shows nothing of the last one.
    """
    lm.save(path.with_name("other.lzm"), a=np.full_like(A, 7), chunk_bytes=CHUNK)
    gc.collect()
    regions = _engine.pager_stats()["regions_live"]
    store = lm.open(path)
    a = np.asarray(store["a"])
    start = address(a)
    assert LIBC.mlock(start, a.nbytes) == 0
    np.testing.assert_array_equal(a, A)
    store.close()
    with pytest.raises(lm.ClosedError):
        a.sum()
    del a, store
    wait_until(lambda: _engine.pager_stats()["regions_live"] == regions)
    with lm.open(path.with_name("other.lzm")) as other:
        assert address(other["a"]) == start
        assert np.all(np.asarray(other["a"]) == 7)


def test_failures_in_locked_memory_heal(path: Path) -> None:
    """Where the chunks of locked memory can't be read for a while.

    Here the 0xFF bytes with which a failed touch is let go are locked as well.  lazymem
    drops them all the same: no later reader takes them for data.
    """
    with lm.open(path) as store:
        a = np.asarray(store["a"])
        with failing("read", errno.ENXIO), pytest.raises(lm.FillError):
            LIBC.mlock(address(a), a.nbytes)
        np.testing.assert_array_equal(a, A)
        LIBC.munlock(address(a), a.nbytes)


# ---- memory that is moved or unmapped
# -----------------------------------------------------

MOVED = """
import ctypes, faulthandler, sys, numpy as np, lazymem as lm
from tests.conftest import LIBC, PAGE
a = np.asarray(lm.open(sys.argv[1])["a"])
np.testing.assert_array_equal(a[:10], np.load(sys.argv[2])[:10])
size = a.nbytes // PAGE * PAGE
moved = LIBC.mremap(a.ctypes.data, size, 2 * size, 1)  # MREMAP_MAYMOVE
assert moved not in (None, a.ctypes.data, 2**64 - 1)
there = np.frombuffer((ctypes.c_float * (size // 2)).from_address(moved), "f4")
print(np.array_equal(there[:10_000], np.load(sys.argv[2]).ravel()[:10_000]))
def touch(at):
    there[at : at + 4].copy()
    np.add(1, 1)  # an error has come by the next call
    (lambda: print("no error"))()
for at in (1 << 17, 1 << 18, size // 2 - 9):
    try:
        touch(at)
    except lm.FillError as error:
        print(error.code)
sys.stdout.flush()
faulthandler.disable()
a.sum()
"""


def test_memory_that_mremap_has_moved_raises_where_it_is(
    path: Path, tmp_path: Path, run_python: Callable[..., Any]
) -> None:
    """Where mremap() moves the memory of an array, and makes it larger.

    np.memmap: the new place shows the file, the array gets SIGSEGV.  Memory that is
    registered with a userfaultfd: zeros at the new place, silently.  lazymem: what was
    filled is there, any other touch of the new place raises FillError, and the array
    itself gets SIGSEGV, as any array whose memory was taken away.
    """
    np.save(tmp_path / "a.npy", A)
    done = run_python(MOVED, path, tmp_path / "a.npy")
    lost = f"{_engine.lib.LM_E_LOST_MAPPING}\n"
    assert done.stdout == "True\n" + 3 * lost, done.stderr
    assert done.returncode == -signal.SIGSEGV


SWAPPED = """
import ctypes, mmap, os, sys, numpy as np, lazymem as lm
from tests.conftest import LIBC
store = lm.open(sys.argv[1])
a, b = (np.asarray(store[name]) for name in "ab")
if sys.argv[2] == "partly_filled":
    a[::4].sum()
    b[1::4].sum()
right = [lm.open(sys.argv[1])[name].copy() for name in "ab"]
LIBC.mremap.argtypes = 2 * [ctypes.c_void_p] + [ctypes.c_size_t, ctypes.c_int,
                                                ctypes.c_void_p]
def move(old, new):  # MREMAP_MAYMOVE | MREMAP_FIXED
    assert LIBC.mremap(old, a.nbytes, a.nbytes, 3, new) == new
between = mmap.mmap(-1, a.nbytes)
spare = ctypes.addressof(ctypes.c_char.from_buffer(between))
move(a.ctypes.data, spare)
move(b.ctypes.data, a.ctypes.data)
move(spare, b.ctypes.data)
for array in (a, b):
    for i, row in enumerate(array):
        found = [np.array_equal(row, rows[i]) for rows in right]
        print("ab"[found.index(True)] if any(found) else "?", end="")
    print()
sys.stdout.flush()
os._exit(0)  # the end of `between` would unmap what has taken its place since
"""


@pytest.mark.parametrize("filled", ["absent", "partly_filled"])
def test_memory_that_mremap_swaps_shows_no_zeros(
    tmp_path: Path,
    rng: np.random.Generator,
    run_python: Callable[..., Any],
    filled: str,
) -> None:
    """Where mremap() lets two arrays change places.

    np.memmap: each shows the other's file.  Memory that is registered with a
    userfaultfd: zeros.  lazymem: what was filled has moved, and the rest is filled as
    the array that has the address wants it.
    """
    arrays = {name: rng.integers(1, 256, (16, CHUNK), "u1") for name in "ab"}
    lm.save(tmp_path / "s.lzm", arrays, chunk_bytes=CHUNK)
    done = run_python(SWAPPED, tmp_path / "s.lzm", filled)
    assert done.returncode == 0, done.stderr
    if filled == "absent":
        assert done.stdout == 16 * "a" + "\n" + 16 * "b" + "\n"
    else:
        assert done.stdout == 4 * "abaa" + "\n" + 4 * "abbb" + "\n"


UNMAPPED = """
import faulthandler, mmap, sys, ctypes, numpy as np, lazymem as lm
from tests.conftest import LIBC, PAGE
lazy = lm.open(sys.argv[1])["a"]
a, expected = np.asarray(lazy), np.load(sys.argv[2])
hole = a.ctypes.data + 3 * 65536 + 4 * PAGE, 2 * PAGE
assert LIBC.munmap(*hole) == 0
if sys.argv[3] == "reused":  # somebody else's memory, which is not to be filled
    LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + 3 * [ctypes.c_int] + [
        ctypes.c_long]
    LIBC.mmap.restype = ctypes.c_void_p
    fixed = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x100000  # MAP_FIXED_NOREPLACE
    assert LIBC.mmap(hole[0], hole[1], 3, fixed, -1, 0) == hole[0]
    ctypes.memset(hole[0], 7, hole[1] // 2)
print(np.array_equal(a[:49], expected[:49]), np.array_equal(a[70:], expected[70:]))
for operation in (lambda: a[50].sum(), lazy.load):
    try:
        operation()
        print("no error")
    except lm.FillError as error:
        print(error.chunk_idx, error.code)
if sys.argv[3] == "reused":
    print(ctypes.string_at(*hole) == b"\\7" * PAGE + bytes(PAGE))
sys.stdout.flush()
faulthandler.disable()
ctypes.string_at(*hole)
print("alive")
"""


@pytest.mark.parametrize("then", ["empty", "reused"])
def test_a_hole_in_the_memory_is_an_error_and_not_filled(
    path: Path, tmp_path: Path, run_python: Callable[..., Any], then: str
) -> None:
    """Where munmap() takes pages away from the middle of an array.

    Any memory: SIGSEGV in the hole, the rest goes on.  lazymem: the same, but for the
    chunk that the hole is in, which raises FillError; what is mapped into the hole
    belongs to its owner.
    """
    np.save(tmp_path / "a.npy", A)
    done = run_python(UNMAPPED, path, tmp_path / "a.npy", then)
    lost = f"3 {_engine.lib.LM_E_LOST_MAPPING}\n"
    if then == "empty":
        assert done.stdout == "True True\n" + 2 * lost, done.stderr
        assert done.returncode == -signal.SIGSEGV
    else:
        assert done.stdout == "True True\n" + 2 * lost + "True\nalive\n", done.stderr
        assert done.returncode == 0


# ---- other processes that look in
# ----------------------------------------------------------

LOOK = """
import ctypes, os, sys, zlib
pid, address, size = map(int, sys.argv[1:4])
how = sys.argv[4]
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("bytes", ctypes.c_size_t)]
def look():
    if how == "process_vm_readv":
        buffer = ctypes.create_string_buffer(size)
        mine = ctypes.byref(Vector(ctypes.addressof(buffer), size))
        other = ctypes.byref(Vector(address, size))
        got = libc.process_vm_readv(pid, mine, 1, other, 1, 0)
        return buffer.raw[:got] if got >= 0 else ctypes.get_errno()
    if how == "mem":
        with open(f"/proc/{pid}/mem", "rb", 0) as file:
            file.seek(address)
            return file.read(size)
    arguments = pid, ctypes.c_void_p(0), ctypes.c_void_p(0)
    assert libc.ptrace(16, *arguments) == 0, ctypes.get_errno()  # PTRACE_ATTACH
    os.waitpid(pid, 0)
    ctypes.set_errno(0)
    word = libc.ptrace(1, pid, ctypes.c_void_p(address), ctypes.c_void_p(0))  # PEEKTEXT
    error = ctypes.get_errno()
    assert libc.ptrace(17, *arguments) == 0  # PTRACE_DETACH
    return error or word.to_bytes(8, "little", signed=True)
try:
    found = look()
except OSError as error:
    found = error.errno
print(found if isinstance(found, int) else zlib.crc32(found))
"""


@pytest.mark.parametrize("how", ["process_vm_readv", "mem", "ptrace"])
def test_another_process_sees_data_or_an_error_but_no_zeros(
    path: Path, tmp_path: Path, how: str
) -> None:
    """Where a debugger or profiler reads the memory of this process.

    np.memmap: the data.  lazymem: process_vm_readv() waits for the fill, as any system
    call; /proc/pid/mem and ptrace can't wait and get EIO for pages that are not there,
    where they would see zeros in other absent memory, and data where they are.
    """
    script = tmp_path / "look.py"
    script.write_text(LOOK)
    size = 8 if how == "ptrace" else 3 * CHUNK

    def look(a: Any) -> str:
        place = address(a) + 5 * CHUNK + 4 * PAGE
        done = subprocess.run(
            [sys.executable, script, str(os.getpid()), str(place), str(size), how],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if "Error" in done.stderr and f"{errno.EPERM}\n" in done.stderr:
            pytest.skip(f"{how} is forbidden here")
        assert done.stderr == ""
        return done.stdout

    start = 5 * CHUNK + 4 * PAGE
    right = f"{zlib.crc32(A.tobytes()[start : start + size])}\n"
    with lm.open(path) as store:
        a = store["a"]
        waits = how == "process_vm_readv" and _engine.uffd_probe().mode == 1
        assert look(a) == (right if waits else f"{errno.EIO}\n")
        a.load()
        assert look(a) == right
        np.testing.assert_array_equal(a, A)


# ---- huge pages
# ---------------------------------------------------------------------------


@contextmanager
def setting(file: Path, value: str) -> Iterator[None]:
    """Change a setting of the system for a while."""
    try:
        before = file.read_text()
        file.write_text(value)
    except OSError as error:
        pytest.skip(f"{file}: {error.strerror}")
    if "[" in before:
        before = before[before.index("[") + 1 : before.index("]")]
    try:
        yield
    finally:
        file.write_text(before)


def test_huge_pages_everywhere_change_nothing(tmp_path: Path) -> None:
    """Where the system gives huge pages to all ("always"), and is asked to collapse.

    Anonymous memory: a touch brings 2 MiB.  lazymem: a touch brings a chunk; ranges
    that are only partly there are left alone, so nothing reads as zeros.
    """
    a = smooth((4096, 2048))  # 32 MiB, in an arena of its own
    lm.save(tmp_path / "h.lzm", a=a, chunk_bytes=CHUNK)
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    with setting(enabled, "always"), lm.open(tmp_path / "h.lzm", "c") as store:
        b = store["a"]
        plain = np.asarray(b)
        whole = address(b), b.nbytes
        LIBC.madvise(*whole, MADV_HUGEPAGE)
        assert plain[7, 7] == a[7, 7]
        assert b.residency().chunks_resident == 1
        assert LIBC.madvise(*whole, MADV_COLLAPSE) != 0  # nothing to collapse
        plain[::512, 3] += 1
        a[::512, 3] += 1
        LIBC.madvise(*whole, MADV_COLLAPSE)
        np.testing.assert_array_equal(plain, a)
        LIBC.madvise(*whole, MADV_COLLAPSE)
        np.testing.assert_array_equal(plain, a)
        assert LIBC.madvise(*whole, MADV_DONTNEED) == 0
        a[::512, 3] -= 1
        np.testing.assert_allclose(plain, a, rtol=1e-4, atol=1e-2)


# ---- memory that is short
# ------------------------------------------------------------------


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """Return a memory cgroup of our own, of either version, below this process's."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    groups = {line.split(":")[1]: line.split(":")[2] for line in lines}
    base = Path("/sys/fs/cgroup")
    own = base / "memory" if "memory" in groups else base
    own /= groups.get("memory", groups.get("", "/")).lstrip("/")
    group = own / f"lazymem-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"{group}: {error.strerror}")
    try:
        if not (group / "memory.stat").exists():
            pytest.skip("cgroups do not control memory here")
        yield group
    finally:
        group.rmdir()


IN_GROUP = """
import os, resource, sys, zlib, numpy as np, lazymem as lm
group, limit = sys.argv[2], sys.argv[3]
names = os.listdir(group)
with open(f"{group}/cgroup.procs", "w") as file:
    file.write(str(os.getpid()))
name = "memory.max" if "memory.max" in names else "memory.limit_in_bytes"
with open(f"{group}/{name}", "w") as file:
    file.write(limit)
mode, step = sys.argv[4], int(sys.argv[5])
with lm.open(sys.argv[1], mode) as store:
    a = store["a"]
    if mode == "c":
        a[::16, 0] = 5
    total = 0
    for _ in range(2):
        for at in range(0, len(a), step):
            total = zlib.crc32(a[at], total)
    print(total)
"""


def crc_of_rows(a: Any, step: int) -> int:
    total = 0
    for _ in range(2):
        for at in range(0, len(a), step):
            total = zlib.crc32(a[at], total)
    return total


def test_a_memory_limit_above_what_is_touched_is_not_noticed(
    tmp_path: Path, memory_group: Path, run_python: Callable[..., Any]
) -> None:
    """Where a container may use less memory than the array is large.

    np.load: killed.  lazymem: it costs what is touched, here a sixteenth.
    """
    a = smooth((8192, 4096))  # 128 MiB
    lm.save(tmp_path / "m.lzm", a=a, chunk_bytes=CHUNK)
    step = 128
    done = run_python(IN_GROUP, tmp_path / "m.lzm", memory_group, 96 << 20, "r", step)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{crc_of_rows(a, step)}\n"


IN_GROUP_WRITTEN = """
import os, sys, numpy as np, lazymem as lm
group, limit = sys.argv[2], int(sys.argv[3])
names = os.listdir(group)
with open(f"{group}/cgroup.procs", "w") as file:
    file.write(str(os.getpid()))
name = "memory.max" if "memory.max" in names else "memory.limit_in_bytes"
with open(f"{group}/{name}", "w") as file:
    file.write(str(limit))
with lm.open(sys.argv[1], "r+", limit="auto", spill=sys.argv[4]) as store:
    assert store.limit < limit
    a = store["a"]
    for i in range(0, len(a), 16):
        a[i : i + 16] += 1
    assert store.stats().budget.spilled > 0
    store.snapshot("all")
"""


def test_a_pass_over_four_times_the_memory_of_a_group_ends(
    tmp_path: Path, memory_group: Path, run_python: Callable[..., Any]
) -> None:
    """np.load: killed.  lazymem: reads, writes and stores all of it."""
    a = smooth((24_576, 4096))  # 384 MiB
    path = tmp_path / "m.lzm"
    lm.save(path, a=a, codec="lz4", level=1, chunk_bytes=CHUNK)
    done = run_python(IN_GROUP_WRITTEN, path, memory_group, 96 << 20, tmp_path)
    assert done.returncode == 0, done.stderr
    a += 1
    assert np.array_equal(lm.open(path)["a"], a)


@pytest.fixture
def swap(tmp_path: Path) -> Iterator[None]:
    file = tmp_path / "swap"
    file.write_bytes(bytes(256 << 20))
    file.chmod(0o600)
    on, make = shutil.which("swapon"), shutil.which("mkswap")
    if not on or not make or os.getuid() != 0:
        pytest.skip("no swapon, or no right to use it")
    subprocess.run([make, file], check=True, capture_output=True)
    done = subprocess.run([on, file], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no swap here: {done.stderr}")
    try:
        yield
    finally:
        subprocess.run(["swapoff", file], check=True)


@pytest.mark.usefixtures("swap")
@pytest.mark.parametrize("mode", ["r", "c"])
def test_pages_that_were_swapped_out_come_back(
    tmp_path: Path, memory_group: Path, run_python: Callable[..., Any], mode: str
) -> None:
    """Where an array has to leave memory for the disk, written or not.

    np.memmap: is read from its file again.  lazymem: comes from swap, as all anonymous
    memory; nothing is filled twice, and what was written stays.
    """
    a = smooth((4096, 4096))  # 64 MiB
    lm.save(tmp_path / "m.lzm", a=a, chunk_bytes=CHUNK)
    if mode == "c":
        a[::16, 0] = 5
    done = run_python(IN_GROUP, tmp_path / "m.lzm", memory_group, 56 << 20, mode, 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{crc_of_rows(a, 1)}\n"


OVERCOMMIT = """
import sys, numpy as np, lazymem as lm
with lm.open(sys.argv[1]) as store:
    def charge():
        lines = open("/proc/self/status").readlines()
        return next(int(x.split()[1]) for x in lines if "VmData" in x)
    before = charge()
    a = store["small"]
    assert np.array_equal(a, np.arange(1000))
    print(charge() - before < 64 << 10)
    try:
        store["huge"]
    except lm.BudgetError as error:
        print(error.name, "vm.overcommit_memory" in str(error))
    assert np.array_equal(a, np.arange(1000))
"""


def test_without_overcommit_arrays_count_and_a_huge_one_is_an_error(
    tmp_path: Path, run_python: Callable[..., Any]
) -> None:
    """Where vm.overcommit_memory is 2: address space that can be written counts.

    np.empty: MemoryError.  np.memmap, read only: works.  lazymem: an array counts by
    its size, even if nothing of it is touched; one that is too large is a BudgetError.
    """
    with lm.Writer(tmp_path / "o.lzm") as writer:
        writer.create("huge", shape=(2**44,), dtype="u1")
        writer.create("small", shape=(1000,), dtype="i8").write(np.arange(1000))
    with setting(Path("/proc/sys/vm/overcommit_memory"), "2"):
        done = run_python(OVERCOMMIT, tmp_path / "o.lzm")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True\nhuge True\n"


# ---- limits
# -------------------------------------------------------------------------------

NO_DESCRIPTORS = """
import os, resource, sys, numpy as np, lazymem as lm
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
taken = []
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
for spare in range(3):
    try:
        array = lm.open(sys.argv[1])["a"]
        print(spare, "opened", end=" ")
        break
    except OSError as error:
        print(spare, error.strerror, error.filename == sys.argv[1])
        del error
    os.close(taken.pop())
for fd in taken:
    os.close(fd)
with lm.open(sys.argv[1]) as store:
    np.save(sys.argv[2], store["a"])
    print("mode", store.stats().engine["mode"])
"""


def test_open_without_descriptors_is_an_os_error_that_passes(
    path: Path, tmp_path: Path, run_python: Callable[..., Any]
) -> None:
    """Where a process has no file descriptor left.

    open(): OSError EMFILE.  lazymem: the same; one descriptor is the userfaultfd's, one
    the file's.  When there are some again, so is all the rest.
    """
    done = run_python(NO_DESCRIPTORS, path, tmp_path / "got.npy")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "0 Too many open files True\n1 Too many open files True\n2 opened mode 1\n"
    )
    assert done.stderr == ""
    np.testing.assert_array_equal(np.load(tmp_path / "got.npy"), A)


NO_ADDRESSES = """
import resource, sys, numpy as np, lazymem as lm
store = lm.open(sys.argv[1])
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
unlimited = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20), unlimited[1]))
try:
    store["a"]
except MemoryError as error:
    print(type(error).__name__, error.name, error.code, error)
resource.setrlimit(resource.RLIMIT_AS, unlimited)
np.save(sys.argv[2], store["a"])
"""


def test_an_array_without_address_space_is_a_clear_error_that_passes(
    path: Path, tmp_path: Path, run_python: Callable[..., Any]
) -> None:
    """Where RLIMIT_AS leaves no addresses for an array.

    np.memmap: OSError ENOMEM.  lazymem: BudgetError, which names array and remedy.
    """
    done = run_python(NO_ADDRESSES, path, tmp_path / "got.npy")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"BudgetError a {-errno.ENOMEM} {path}, object 'a'")
    assert "ulimit -v" in done.stdout
    np.testing.assert_array_equal(np.load(tmp_path / "got.npy"), A)
