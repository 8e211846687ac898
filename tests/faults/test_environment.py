# SPDX-License-Identifier: BSD-3-Clause
"""Does it work, and say what it lacks, where the kernel or the rights allow less?"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazymem as lm
from tests.conftest import open_to_all, smooth

A = smooth((500, 1000))

READ = """
import sys, warnings, numpy as np, lazymem as lm
warnings.simplefilter("always")
with lm.open(sys.argv[1]) as store:
    a = store["a"]
    row, whole = (float(x.astype("f8").sum()) for x in (a[3], a))
    print(row, whole, a.residency().fraction)
    print("mode", lm.open(sys.argv[1]).stats().engine["mode"])
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    lm.save(tmp_path / "s.lzm", a=A, chunk_bytes=65536)
    open_to_all(tmp_path)
    return tmp_path / "s.lzm"


def expected() -> str:
    return f"{float(A[3].astype('f8').sum())} {float(A.astype('f8').sum())} 1.0\n"


@pytest.mark.needs_uffd
@pytest.mark.parametrize("mask", ["dev", "thread_id", "wp,move,poison,wp_async,sigbus"])
def test_masked_features_change_nothing_for_readers(
    path: Path, run_python: Callable[..., Any], mask: str
) -> None:
    done = run_python(READ, path, LAZYMEM_MASK=mask)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(expected())
    assert "Warning" not in done.stderr


DAMAGE = """
import sys, numpy as np, lazymem as lm
a = np.asarray(lm.open(sys.argv[1])["a"])
try:
    a.sum()
except lm.ChecksumError as error:
    print("error", error.name)
"""


@pytest.mark.needs_uffd
def test_without_thread_ids_the_main_thread_hears_of_damage(
    path: Path, run_python: Callable[..., Any]
) -> None:
    data = bytearray(path.read_bytes())
    data[70] ^= 1
    path.write_bytes(data)
    done = run_python(DAMAGE, path, LAZYMEM_MASK="thread_id")
    assert done.stdout == "error a\n", done.stderr


def test_without_userfaultfd_arrays_are_loaded_whole_with_a_warning(
    path: Path, run_python: Callable[..., Any]
) -> None:
    done = run_python(READ, path, LAZYMEM_MASK="dev,syscall,user")
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected() + "mode 0\n"
    assert "LazyMemWarning: arrays are loaded whole at first access" in done.stderr
    assert "userfaultfd" in done.stderr
    assert "'lazymem doctor'" in done.stderr


def test_without_userfaultfd_damage_raises_at_first_access(
    path: Path, run_python: Callable[..., Any]
) -> None:
    data = bytearray(path.read_bytes())
    data[70] ^= 1
    path.write_bytes(data)
    done = run_python(READ, path, LAZYMEM_MASK="dev,syscall,user")
    assert done.returncode == 1
    assert "ChecksumError" in done.stderr
    assert "object 'a', chunk 0" in done.stderr


WRITE = """
import sys, warnings, numpy as np, lazymem as lm
warnings.simplefilter("ignore")
with lm.open(sys.argv[1], "r+") as store:
    a = store["a"]
    try:
        a[0] = 1
    except ValueError as exc:
        print(exc)
    try:
        store.create("x", 3, "f8")
    except lm.UnsupportedKernelError as exc:
        print("create" in str(exc), list(store))
    store["a"] = np.zeros(5)
    store["a"].attrs["unit"] = "K"
    store.snapshot("zeros")
    print(store.restore(1).arrays_closed, store["a"].shape == a.shape)
    print(store.diff(1).changed["a"].is_reshaped, store.unsaved)
"""


def test_without_userfaultfd_whole_arrays_can_still_be_stored(
    path: Path, run_python: Callable[..., Any]
) -> None:
    with lm.open(path) as store:
        names = list(store)
    done = run_python(WRITE, path, LAZYMEM_MASK="dev,syscall,user")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "assignment destination is read-only",
        f"True {names}",
        "('a',) True",
        "True False",
    ]
    with lm.open(path) as store, lm.open(path, at=1) as before:
        assert store["a"].tolist() == [0.0] * 5
        assert np.array_equal(before["a"], A)
    done = run_python(
        WRITE.replace("ignore", "error"), path, LAZYMEM_MASK="dev,syscall,user"
    )
    assert "can't be written to, only replaced: userfaultfd" in done.stderr


SECCOMP = """
import ctypes, platform, struct, sys
# A container's usual filter: the system call number of userfaultfd gets EPERM.
number = {"x86_64": 323, "aarch64": 282}[platform.machine()]
program = b"".join(struct.pack("HBBI", *op) for op in [
    (0x20, 0, 0, 0),               # load the system call's number
    (0x15, 0, 1, number),          # not userfaultfd: skip one
    (0x06, 0, 0, 0x00050001),      # return EPERM
    (0x06, 0, 0, 0x7FFF0000)])     # allow
buf = ctypes.create_string_buffer(program, len(program))
prog = struct.pack("HxxxxxxP", 4, ctypes.addressof(buf))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, prog, 0, 0) == 0, ctypes.get_errno()
"""


def test_a_seccomp_filter_leads_to_the_fallback(
    path: Path, run_python: Callable[..., Any]
) -> None:
    done = run_python(SECCOMP + READ, path, LAZYMEM_MASK="dev")
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected() + "mode 0\n"
    assert "EPERM" in done.stderr


NOBODY = """
import os, sys, warnings, numpy as np, lazymem as lm, difflib
warnings.simplefilter("always")
os.setgroups([]); os.setgid(65534); os.setuid(65534)
folder = sys.argv[2]
with lm.open(sys.argv[1]) as store:
    a = store["a"]
    print(float(a[3].astype("f8").sum()), end=" ")
    try:
        with open(folder + "/raw", "wb", buffering=0) as file:
            file.write(np.asarray(lm.open(sys.argv[1])["a"]))
    except OSError as error:
        print(error.strerror, end=" ")
    a.tofile(folder + "/raw")
    np.save(folder + "/a.npy", lm.open(sys.argv[1])["a"])
    assert np.array_equal(np.load(folder + "/a.npy"), a)
    assert open(folder + "/raw", "rb").read() == a.tobytes()
    lm.save(folder + "/again.lzm", a=lm.open(sys.argv[1])["a"], codec="none")
    assert np.array_equal(lm.open(folder + "/again.lzm")["a"], a)
    print("mode", store.stats().engine["mode"])
"""


@pytest.mark.needs_uffd
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become nobody")
def test_nobody_reads_by_user_mode_faults_and_is_told(
    path: Path, tmp_path: Path, run_python: Callable[..., Any]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o777)
    done = run_python(NOBODY, path, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{float(A[3].astype('f8').sum())} Bad address mode 2\n"
    assert "system calls on memory not yet filled" in done.stderr
    assert done.stderr.count("LazyMemWarning") == 1


# ---- fork
# -----------------------------------------------------------------------------------


@pytest.mark.needs_uffd
@pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)
def test_a_forked_child_reads_right_data_resident_or_not(path: Path) -> None:
    with lm.open(path) as store, lm.open(path, "c") as mine:
        a, c = store["a"], mine["a"]
        assert a[0, 0] == A[0, 0]
        c[0, 0] = 7
        for depth in range(2):
            pid = os.fork()
            if pid == 0:
                right = np.array_equal(np.asarray(a), A) and c[0, 0] == 7
                right = right and np.array_equal(c[1:], A[1:])
                c[1, 1] = 9
                if depth == 0 and right:
                    inner = os.fork()
                    if inner == 0:
                        os._exit(0 if np.array_equal(a[::-1], A[::-1]) else 1)
                    right = os.waitpid(inner, 0)[1] == 0
                a.load()
                os._exit(0 if right else 1)
            assert os.waitpid(pid, 0)[1] == 0
        assert c[1, 1] == A[1, 1]
        np.testing.assert_array_equal(a, A)


@pytest.mark.needs_uffd
@pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)
def test_a_child_forked_amid_a_look_up_can_look_up(path: Path) -> None:
    with lm.open(path) as store:
        with store._arrays.lock:  # as if another thread were looking an array up
            pid = os.fork()
            if pid == 0:
                signal.alarm(10)
                os._exit(0 if store["a"][0, 0] == A[0, 0] else 1)
        assert os.waitpid(pid, 0)[1] == 0


# ---- memory changed from outside
# -----------------------------------------------------------


@pytest.mark.needs_uffd
def test_pages_given_back_by_madvise_are_filled_again(path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with lm.open(path) as store:
        a = store["a"].load()
        plain = np.asarray(a)
        start, page = plain.ctypes.data, os.sysconf("SC_PAGESIZE")
        for offset, length in ((3 * page, page), (0, 30 * page)):
            addr = ctypes.c_void_p(start + offset)
            assert libc.madvise(addr, ctypes.c_size_t(length), 4) == 0
            np.testing.assert_array_equal(plain, A)
