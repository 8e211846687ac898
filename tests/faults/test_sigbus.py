# SPDX-License-Identifier: BSD-3-Clause
"""Does ``on_error="sigbus"`` let nobody see false bytes, as its users want?"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import lazymem as lm
from lazymem import _engine
from tests.conftest import smooth

if TYPE_CHECKING:
    pass

pytestmark = pytest.mark.needs_uffd

SCRIPT = """
import errno, os, sys
import numpy as np, lazymem as lm
from lazymem.testing import failing
store = lm.open(sys.argv[1], on_error="sigbus")
a = np.asarray(store["a"]).reshape(-1)
print(a[0], flush=True)  # a chunk that can be read
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    if not _engine.uffd_features(_engine.uffd_probe().features)["poison"]:
        pytest.skip("this kernel has no UFFDIO_POISON")
    lm.save(tmp_path / "a.lzm", a=smooth((100, 1000)), chunk_bytes=65536)
    return tmp_path / "a.lzm"


Run = "Callable[..., subprocess.CompletedProcess[str]]"


def test_a_touch_kills(run_python: Run, path: Path) -> None:
    script = """
with failing("read", errno.EIO):
    total = a.sum()
    print("survived")
"""
    done = run_python(SCRIPT + script, path)
    assert done.returncode == -signal.SIGBUS, done.stderr
    assert "survived" not in done.stdout


def test_a_touch_in_another_thread_kills(run_python: Run, path: Path) -> None:
    script = """
import threading
with failing("read", errno.EIO):
    threads = [threading.Thread(target=a.max) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    print("survived")
"""
    done = run_python(SCRIPT + script, path)
    assert done.returncode == -signal.SIGBUS, done.stderr
    assert "survived" not in done.stdout


def test_a_system_call_gets_efault(run_python: Run, path: Path) -> None:
    script = """

read, write = os.pipe()
with failing("read", errno.EIO):
    try:
        os.write(write, a[50_000:50_100])
        print("written")
    except OSError as error:
        print(errno.errorcode[error.errno])
print(store.stats().arrays["a"].failures > 0, store.stats().engine["poisons"] > 0)
store.close()
"""
    done = run_python(SCRIPT + script, path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1:] == ["EFAULT", "True", "True"]


def test_a_closed_store_kills_as_well(run_python: Run, path: Path) -> None:
    script = """
store.close()
print(a[3])
"""
    done = run_python(SCRIPT + script, path)
    assert done.returncode == -signal.SIGBUS, done.stderr


def test_a_kernel_that_can_not_is_an_error(run_python: Run, path: Path) -> None:
    done = run_python(SCRIPT, path, LAZYMEM_MASK="poison")
    assert "UnsupportedKernelError" in done.stderr
    assert "UFFDIO_POISON" in done.stderr


def test_an_unknown_choice_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="on_error"):
        lm.open(path, on_error="ignore")  # type: ignore[arg-type]
