# SPDX-License-Identifier: BSD-3-Clause
"""Do system calls work on memory that is not there yet, and say so where they can't?"""

from __future__ import annotations

import errno
import io
import mmap
import os
import shutil
import socket
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazymem as lm
from tests.conftest import needs_full_mode, open_to_all, smooth

A = smooth((500, 1000))
pytestmark = pytest.mark.needs_uffd


@pytest.fixture
def path(tmp_path: Path) -> Path:
    lm.save(tmp_path / "s.lzm", a=A, chunk_bytes=65536)
    return tmp_path / "s.lzm"


# ---- the system reads the array
# -----------------------------------------------------------


def by_write(a: Any, path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        assert os.write(file.fileno(), a) == a.nbytes


def by_pwritev(a: Any, path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        rows = [a[i] for i in range(499, -1, -1)]
        assert os.pwritev(file.fileno(), rows, 0) == a.nbytes
    np.fromfile(path, a.dtype).reshape(a.shape)[::-1].tofile(path)


def by_sendall(a: Any, path: Path) -> None:
    left, right = socket.socketpair()
    with left, right, path.open("wb") as file:

        def receive() -> None:
            while data := right.recv(1 << 20):
                file.write(data)

        thread = threading.Thread(target=receive)
        thread.start()
        try:
            left.sendall(a)
        finally:
            left.shutdown(socket.SHUT_WR)
            thread.join()


def by_file(a: Any, path: Path) -> None:
    with path.open("wb") as file:
        file.write(a)


def by_tofile(a: Any, path: Path) -> None:
    a.tofile(path)


def by_save(a: Any, path: Path) -> None:
    np.save(path.with_suffix(".npy"), a)
    np.load(path.with_suffix(".npy")).tofile(path)


def by_tobytes(a: Any, path: Path) -> None:
    path.write_bytes(a.tobytes())


def by_mmap(a: Any, path: Path) -> None:
    with path.open("w+b") as file:
        file.truncate(a.nbytes)
        with mmap.mmap(file.fileno(), a.nbytes) as target:
            target[:] = memoryview(a).cast("B")


def by_copyfileobj(a: Any, path: Path) -> None:
    class Reader(io.RawIOBase):
        left = memoryview(a).cast("B")

        def read(self, size: int = -1) -> Any:
            block, self.left = self.left[:size], self.left[size:]
            return block

    with path.open("wb", buffering=0) as file:
        shutil.copyfileobj(Reader(), file)


def by_zipfile(a: Any, path: Path) -> None:
    with (
        zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive,
        archive.open("a", "w") as member,
    ):
        member.write(a)
    with zipfile.ZipFile(path.with_suffix(".zip")) as archive:
        path.write_bytes(archive.read("a"))


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    f.__name__: f
    for f in (
        by_write,
        by_pwritev,
        by_sendall,
        by_file,
        by_tofile,
        by_save,
        by_tobytes,
        by_mmap,
        by_copyfileobj,
        by_zipfile,
    )
}


@needs_full_mode
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("writer", WRITERS)
def test_absent_pages_are_written_as_they_should_be(
    path: Path, tmp_path: Path, writer: str, plain: bool
) -> None:
    with lm.open(path) as store:
        a = store["a"]
        WRITERS[writer](np.asarray(a) if plain else a, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == A.tobytes()


# ---- the system writes into the array
# -----------------------------------------------------


def into_readinto(a: Any, path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        assert file.readinto(memoryview(a).cast("B")) == a.nbytes  # type: ignore[attr-defined]


def into_preadv(a: Any, path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        assert os.preadv(file.fileno(), [a[:7], a[7:]], 0) == a.nbytes


def into_recv(a: Any, path: Path) -> None:
    left, right = socket.socketpair()
    with left, right:
        thread = threading.Thread(target=left.sendall, args=(path.read_bytes(),))
        thread.start()
        assert right.recv_into(a, a.nbytes, socket.MSG_WAITALL) == a.nbytes
        thread.join()


READERS = {f.__name__: f for f in (into_readinto, into_preadv, into_recv)}


@needs_full_mode
@pytest.mark.parametrize("reader", READERS)
def test_absent_pages_are_written_into(path: Path, tmp_path: Path, reader: str) -> None:
    """Rows 5 to 12 begin and end within pages, which keep their other bytes."""
    new = smooth((8, 1000)) + 1
    new.tofile(tmp_path / "new")
    before = path.read_bytes()
    with lm.open(path, "c") as store, lm.open(path, "c") as other:
        a = store["a"]
        READERS[reader](np.asarray(a)[5:13], tmp_path / "new")
        np.testing.assert_array_equal(a[5:13], new)
        np.testing.assert_array_equal(a[:5], A[:5])
        np.testing.assert_array_equal(a[13:], A[13:])
        np.testing.assert_array_equal(other["a"], A)
    assert path.read_bytes() == before


# ---- where only user-mode faults are served
# -----------------------------------------------

NOBODY = """
import encodings.cp437, os, sys, warnings
from pathlib import Path
import numpy as np, lazymem as lm
from tests.faults import test_syscalls as t
warnings.simplefilter("ignore")
os.setgroups([]); os.setgid(65534); os.setuid(65534)
folder = Path(sys.argv[2])
new = t.smooth((8, 1000))
new.tofile(folder / "new")
def write(a, name):
    t.WRITERS[name](a, folder / "out")
    return (folder / "out").read_bytes() == t.A.tobytes()
def read(a, name):
    t.READERS[name](a[5:13], folder / "new")
    return np.array_equal(a[5:13], new) and np.array_equal(a[13:], t.A[13:])
for names, use in ((t.WRITERS, write), (t.READERS, read)):
    for name in names:
        for kind in ("lazy", "plain"):
            with lm.open(sys.argv[1], "c") as store:
                a, found = store["a"], []
                for _ in range(2):
                    try:
                        right = use(np.asarray(a) if kind == "plain" else a, name)
                        found.append("right" if right else "wrong")
                    except OSError as error:
                        found.append(error.strerror or str(error))
                    a.load()
                print(name, kind, *found, sep=", ")
"""
BY_NUMPY = {"by_tofile", "by_save"}
BY_ITSELF = {"by_tobytes", "by_mmap", "by_zipfile"}  # read it first, in user code


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become nobody")
def test_nobody_gets_efault_or_data_and_never_false_bytes(
    path: Path, tmp_path: Path, run_python: Callable[..., Any]
) -> None:
    open_to_all(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o777)
    done = run_python(NOBODY, path, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    expected = []
    for name in (*WRITERS, *READERS):
        for kind in ("lazy", "plain"):
            first = os.strerror(errno.EFAULT)
            if name in BY_NUMPY:  # a LazyArray loads first; numpy has words of its own
                failed = f"{A.size} requested and 0 written"
                first = "right" if kind == "lazy" else failed
            elif name in BY_ITSELF:
                first = "right"
            expected.append(f"{name}, {kind}, {first}, right")
    assert done.stdout.splitlines() == expected
