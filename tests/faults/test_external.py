# SPDX-License-Identifier: BSD-3-Clause
"""What if somebody else changes the memory of an array, or what memory there is?

Each test says what other systems do, and what lazymem does.
"""

from __future__ import annotations

import errno
import gc
import signal
from collections.abc import Callable
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
MADV_HUGEPAGE = 14
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
        assert a.residency().fraction == 1
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
