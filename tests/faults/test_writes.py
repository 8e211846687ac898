# SPDX-License-Identifier: BSD-3-Clause
"""Is everything that is written to an array in the next snapshot, whoever wrote it?"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazymem as lm
from tests.conftest import needs_full_mode, open_to_all, smooth

pytestmark = pytest.mark.needs_uffd

CHUNK = 16384
A = smooth((64, CHUNK // 4))
"""A chunk in each row."""
NEW = np.arange(3 * CHUNK // 4, dtype="f4").reshape(3, -1) + 0.5
Write = Callable[[Any, Path], None]


# ---- who writes three rows -----------------------------------------------------------


def by_assignment(rows: Any, folder: Path) -> None:
    rows[...] = NEW


def by_ufunc(rows: Any, folder: Path) -> None:
    np.add(NEW, 0, out=rows)


def by_blas(rows: Any, folder: Path) -> None:
    np.dot(np.eye(3, dtype="f4"), NEW, out=np.asarray(rows))


def by_memoryview(rows: Any, folder: Path) -> None:
    memoryview(rows).cast("B")[:] = NEW.tobytes()


def by_memmove(rows: Any, folder: Path) -> None:
    ctypes.memmove(rows.ctypes.data, NEW.ctypes.data, NEW.nbytes)


def by_threads(rows: Any, folder: Path) -> None:
    def write(i: int) -> None:
        rows[:, i::4] = NEW[:, i::4]

    threads = [threading.Thread(target=write, args=[i]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def by_readinto(rows: Any, folder: Path) -> None:
    NEW.tofile(folder / "new")
    with (folder / "new").open("rb", buffering=0) as file:
        assert file.readinto(rows) == NEW.nbytes


def by_preadv(rows: Any, folder: Path) -> None:
    NEW.tofile(folder / "new")
    with (folder / "new").open("rb", buffering=0) as file:
        assert os.preadv(file.fileno(), list(rows), 0) == NEW.nbytes


def by_recv_into(rows: Any, folder: Path) -> None:
    left, right = socket.socketpair()
    with left, right:
        thread = threading.Thread(target=left.sendall, args=[NEW])
        thread.start()
        into = memoryview(rows).cast("B")
        done = 0
        while done < NEW.nbytes:
            done += right.recv_into(into[done:])
        thread.join()


BY_CODE: list[Write] = [
    by_assignment,
    by_ufunc,
    by_blas,
    by_memoryview,
    by_memmove,
    by_threads,
]
BY_SYSTEM_CALL: list[Write] = [by_readinto, by_preadv, by_recv_into]


def write_everywhere(path: Path, write: Write, **options: Any) -> None:
    """Write to what is absent, clean, zero, and saved before; then look at the file."""
    right = {"a": A.copy(), "zero": np.zeros_like(A)}
    with lm.open(path, "r+", **options) as store:
        store.create("zero", A.shape, "f4", chunk_bytes=CHUNK)
        for array in (store["a"], store["zero"]):
            assert array[10, 0] == right[array.object_name][10, 0]
        for first in (10, 20, 20, 40):  # in memory, absent, written before, absent
            for name in ("a", "zero"):
                write(store[name][first : first + 3], path.parent)
                right[name][first : first + 3] = NEW
            store.snapshot()
            for name in ("a", "zero"):
                with lm.open(path) as reader:
                    assert np.array_equal(reader[name], right[name])
                assert np.array_equal(store[name], right[name])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    lm.save(tmp_path / "a.lzm", a=A, chunk_bytes=CHUNK)
    return tmp_path / "a.lzm"


@pytest.mark.parametrize("write", BY_CODE)
def test_code_that_writes_is_found(path: Path, write: Write) -> None:
    write_everywhere(path, write)


@needs_full_mode
@pytest.mark.parametrize("write", BY_SYSTEM_CALL)
def test_system_calls_that_write_are_found(path: Path, write: Write) -> None:
    write_everywhere(path, write)


EVERYWHERE = """
import sys
from pathlib import Path
from tests.faults import test_writes as t
for write in t.{which}:
    path = Path(sys.argv[1]) / (write.__name__ + ".lzm")
    t.lm.save(path, a=t.A, chunk_bytes=t.CHUNK)
    t.write_everywhere(path, write)
print("found")
"""


@needs_full_mode
@pytest.mark.parametrize("mask", ["wp", "wp_unpopulated,move", "thread_id", "dev"])
def test_kernels_that_can_do_less(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    mask: str,
) -> None:
    script = EVERYWHERE.format(which="BY_CODE + t.BY_SYSTEM_CALL")
    done = run_python(script, tmp_path, LAZYMEM_MASK=mask)
    assert done.stdout == "found\n", done.stderr


NOBODY = """
import os, sys, warnings
import numpy as np, lazymem as lm
from pathlib import Path
from tests.faults import test_writes as t
os.setgid(65534)
os.setuid(65534)
warnings.simplefilter("ignore")
folder = Path(sys.argv[1])
for write in t.BY_CODE:
    path = folder / (write.__name__ + ".lzm")
    t.lm.save(path, a=t.A, chunk_bytes=t.CHUNK)
    t.write_everywhere(path, write)
with lm.open(path, "r+") as store:
    rows = store["a"][50:53]
    for state in ("absent", "clean"):
        try:
            t.by_readinto(rows, folder)
        except OSError as exc:
            print(state, exc.errno)
        rows.load()
    rows[:, ::1024] = 0  # a byte of each page
    t.by_readinto(rows, folder)
    store.snapshot()
print(np.array_equal(lm.open(path)["a"][50:53], t.NEW))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become nobody")
@pytest.mark.skipif(
    Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() == "1",
    reason="everybody may serve system calls' page faults here",
)
def test_nobody_writes_by_code_and_gets_an_error_from_system_calls(
    run_python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "all"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    open_to_all(folder)
    done = run_python(NOBODY, folder)
    lines = [f"absent {errno.EFAULT}", f"clean {errno.EFAULT}", "True"]
    assert done.stdout.splitlines() == lines, done.stderr
    shutil.rmtree(folder)


def test_what_is_written_and_given_back_to_the_system_is_as_it_was(path: Path) -> None:
    """As of a private mapping of a file."""
    from tests.conftest import LIBC, PAGE

    with lm.open(path, "r+") as store:
        a = store["a"]
        a[5] = 1
        a[6] = 2
        page = a[5].ctypes.data
        assert LIBC.madvise(page, PAGE, 4) == 0  # MADV_DONTNEED
        right = A.copy()
        right[5, PAGE // 4 :] = 1
        right[6] = 2
        assert np.array_equal(a, right)
        store.snapshot()
    assert np.array_equal(lm.open(path)["a"], right)
