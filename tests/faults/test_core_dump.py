# SPDX-License-Identifier: BSD-3-Clause
"""What is in a core dump of a process with open arrays, and does the dump end?

The kernel writes what is in memory, and leaves a hole in the file for each page that is
not: a dump fills nothing.  Where nothing was touched, there is not even a look.
"""

from __future__ import annotations

import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import lazymem as lm
from lazymem import _engine
from tests.faults.test_external import setting

CHUNK = 65536
PT_LOAD = 1

pytestmark = pytest.mark.needs_uffd

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Return a folder in which a process that dies leaves its core file."""
    (tmp_path / "dump").mkdir()
    with setting(Path("/proc/sys/kernel/core_pattern"), "core"):
        yield tmp_path / "dump"


SCRIPT = """
import os, resource, sys, threading, zlib
import numpy as np, lazymem as lm
from lazymem.testing import HANG, failing
from tests.conftest import wait_until
path, folder = sys.argv[1:3]
try:
    unlimited = resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_CORE, (unlimited, unlimited))
except ValueError as error:
    sys.exit(f"no core files: {error}")
os.chdir(folder)
store = lm.open(path, {options})
a = store["a"]
print(np.asarray(a).ctypes.data, flush=True)
"""


def dump(
    run_python: Run, script: str, path: Path, folder: Path, options: str = "'c'"
) -> tuple[Path, int]:
    """Run a script that aborts.  Return its core file, and where its array was."""
    opening = SCRIPT.replace("{options}", options)
    done = run_python(opening + script, path, folder)
    if done.returncode == 1 and "no core files" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == -signal.SIGABRT, done.stderr
    (core,) = folder.glob("core*")  # some systems add the process id
    return core, int(done.stdout)


def bytes_at(core: Path, address: int, size: int) -> bytes:
    """Return what a debugger would find at an address (ELF, 64 bits)."""
    with core.open("rb") as file:
        header = file.read(64)
        (start,) = struct.unpack_from("=Q", header, 32)
        entry_bytes, count = struct.unpack_from("=HH", header, 54)
        for i in range(count):
            file.seek(start + i * entry_bytes)
            kind, _, offset, low, _, held = struct.unpack("=IIQQQQ", file.read(40))
            if kind == PT_LOAD and low <= address and address + size <= low + held:
                file.seek(offset + address - low)
                return file.read(size)
    raise AssertionError("the core file does not have the array")


TOUCH = """
assert a[0, 0] in range(256)
a[1] ^= 0xA5
"""
WAIT = """
def wait():
    with failing("read", HANG):
        zlib.crc32(np.asarray(a)[8:])  # without the GIL
served = store.stats().faults
threading.Thread(target=wait, daemon=True).start()
wait_until(lambda: store.stats().faults > served)
"""
ABORT = "os.abort()\n"


@pytest.mark.parametrize("meanwhile", ["", WAIT], ids=["alone", "while_a_thread_waits"])
def test_a_core_dump_has_what_is_in_memory_and_holes_for_the_rest(
    tmp_path: Path,
    folder: Path,
    rng: np.random.Generator,
    run_python: Run,
    meanwhile: str,
) -> None:
    """Where a process dies that has read one chunk, written another, and no more.

    np.memmap: nothing of a map that is only read, the whole file where a byte was
    written.  lazymem: the chunks that are in memory, written or not.  Others are zeros
    to a debugger: it can't tell them from data.
    """
    data = rng.integers(0, 256, (16, CHUNK), "u1")
    lm.save(tmp_path / "s.lzm", a=data, chunk_bytes=CHUNK)
    script = TOUCH + meanwhile + ABORT
    core, address = dump(run_python, script, tmp_path / "s.lzm", folder)
    expected = np.zeros_like(data)
    expected[0], expected[1] = data[0], data[1] ^ 0xA5
    found = np.frombuffer(bytes_at(core, address, data.nbytes), "u1")
    np.testing.assert_array_equal(found.reshape(data.shape), expected)


def test_a_core_dump_has_nothing_of_an_array_that_was_not_touched(
    tmp_path: Path, folder: Path, run_python: Run
) -> None:
    with lm.Writer(tmp_path / "s.lzm") as writer:
        writer.create("a", shape=(2**44,), dtype="u1")
    core, address = dump(run_python, ABORT, tmp_path / "s.lzm", folder)
    assert core.stat().st_size < 1 << 30
    with pytest.raises(AssertionError):
        bytes_at(core, address, CHUNK)


def test_a_core_dump_of_a_huge_array_takes_what_was_touched(
    tmp_path: Path, folder: Path, rng: np.random.Generator, run_python: Run
) -> None:
    """Where an array is larger than memory and disk, and its process dies.

    Any memory without a file: what was touched, after a look at the place of each page,
    which takes half a minute for a TiB.  lazymem: the same.
    """
    size = 2**36
    needle = rng.integers(0, 256, 4 * CHUNK, "u1")
    with lm.Writer(tmp_path / "s.lzm") as writer:
        a = writer.create("a", shape=(size,), dtype="u1", chunk_bytes=CHUNK)
        a.write(needle, at=size // 2)
    script = f"a[{size // 2} :][:{needle.size}] ^= 0xA5\na[5] = 9\n" + ABORT
    try:
        core, address = dump(run_python, script, tmp_path / "s.lzm", folder)
    except subprocess.TimeoutExpired:
        pytest.fail("the dump does not end")
    assert core.stat().st_blocks * 512 < 256 << 20
    found = bytes_at(core, address + size // 2, needle.size)
    assert found == (needle ^ 0xA5).tobytes()
    assert bytes_at(core, address, CHUNK) == bytes(5) + b"\t" + bytes(CHUNK - 6)
    assert bytes_at(core, address + size // 4, CHUNK) == bytes(CHUNK)


@pytest.mark.skipif(
    "minor_shmem" not in _engine.uffd_features(_engine.uffd_probe().features),
    reason="this kernel reports no minor faults of shared memory",
)
def test_a_core_dump_brings_nothing_of_memory_that_processes_share(
    tmp_path: Path, folder: Path, rng: np.random.Generator, run_python: Run
) -> None:
    size = 2**33
    needle = rng.integers(0, 256, 4 * CHUNK, "u1")
    with lm.Writer(tmp_path / "s.lzm") as writer:
        a = writer.create("a", shape=(size,), dtype="u1", chunk_bytes=CHUNK)
        a.write(needle, at=size // 2)
    script = f"a.advise('random')\na[{size // 2} :][:{needle.size}].sum()\n" + ABORT
    file = tmp_path / "s.lzm"
    core, address = dump(run_python, script, file, folder, "shared=True")
    assert core.stat().st_blocks * 512 < 256 << 20
    assert bytes_at(core, address + size // 2, needle.size) == needle.tobytes()
    assert bytes_at(core, address + size // 4, CHUNK) == bytes(CHUNK)
