# SPDX-License-Identifier: BSD-3-Clause
"""What all tests share."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings

from lazymem import _engine
from tests.engine.build import engine  # noqa: F401 - a fixture

ROOT = Path(__file__).resolve().parent.parent
PAGE = os.sysconf("SC_PAGESIZE")
LIBC = ctypes.CDLL(None, use_errno=True)
_ADDR, _BYTES, _INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
LIBC.madvise.argtypes = LIBC.mprotect.argtypes = [_ADDR, _BYTES, _INT]
LIBC.mlock.argtypes = LIBC.munlock.argtypes = LIBC.munmap.argtypes = [_ADDR, _BYTES]
LIBC.mincore.argtypes = [_ADDR, _BYTES, ctypes.c_void_p]
LIBC.mremap.argtypes, LIBC.mremap.restype = [_ADDR, _BYTES, _BYTES, _INT], _ADDR

# The same examples each time, but where others are asked for: `make stress`.
settings.register_profile("repeatable", derandomize=True)
if "LAZYMEM_STRESS_SECONDS" not in os.environ:
    settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs userfaultfd where there is none, with the kernel's reason."""
    info = _engine.uffd_probe()
    if info.mode:
        return
    reason = f"no userfaultfd: {os.strerror(info.user_errno or info.api_errno)}"
    for item in items:
        if item.get_closest_marker("needs_uffd"):
            item.add_marker(pytest.mark.skip(reason=reason))


needs_full_mode = pytest.mark.skipif(
    _engine.uffd_probe().mode != _engine.lib.LM_UFFD_FULL,
    reason="this process may not serve system calls' page faults",
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261)


def smooth(
    shape: tuple[int, ...], dtype: npt.DTypeLike = "f4"
) -> npt.NDArray[np.float32]:
    """Return numbers that compress, but not to nothing."""
    n = int(np.prod(shape))
    return (np.cumsum(np.sin(np.arange(n) * 0.37)) * 100).astype(dtype).reshape(shape)


def open_to_all(folder: Path) -> None:
    """Let every user enter a folder of ours."""
    for parent in (folder, *folder.parents):
        if parent != Path("/") and parent.stat().st_uid == os.getuid():
            parent.chmod(parent.stat().st_mode | 0o055)


def wait_until(condition: Callable[[], object], timeout_s: float = 30) -> None:
    """Wait for what another thread or process is about to do."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.0001)


def cached_share(path: Path, offset: int, nbytes: int) -> float:
    """Return how much of a file's range, from a page on, is in the page cache."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        mapped = mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)
    memory = np.frombuffer(mapped, "u1")
    cached = (ctypes.c_ubyte * -(-nbytes // PAGE))()
    assert LIBC.mincore(memory.ctypes.data + offset, nbytes, cached) == 0
    return sum(page & 1 for page in cached) / len(cached)


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script in a fresh process, perhaps with features masked."""

    def run(script: str, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "script.py"
        file.write_text(script, encoding="utf-8")
        return subprocess.run(
            [sys.executable, "-X", "faulthandler", str(file), *map(str, args)],
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    return run
