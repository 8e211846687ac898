# SPDX-License-Identifier: BSD-3-Clause
"""Processes that share memory, and are killed: ``python shared.py SECONDS [SEED]``.

Four at a time open a store, most of them with ``shared=True``, and read, evict, load,
fork, start threads and fail to read at random, until they end or are killed.  Each row
that is read has the checksum that it was saved with, or the process ends with an error.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np

import lazymem as lm
from lazymem.testing import failing

PROCESSES = 4
ROWS = 40
NAMES = "abcd"
HANG_S = 60


def row(name: str, i: int) -> np.ndarray[Any, Any]:
    """Return what row `i` of an array is; every seventh is zero."""
    n = np.arange(40_000)
    return (np.sin(n * (0.1 + i)) * (i % 7 > 0) * ord(name)).astype("f4")


def check(a: Any, name: str, i: int) -> None:
    assert zlib.crc32(a[i].tobytes()) == zlib.crc32(row(name, i).tobytes()), (name, i)


def fork(a: Any, name: str, i: int) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            check(a, name, i)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0, "in a forked child"


def fail(a: Any, i: int) -> None:
    """Leave false bytes where nobody has filled the chunk."""
    with failing("read", errno.EIO), suppress(lm.FillError):
        a[i].sum()


def work(path: str, seed: int) -> None:
    """Do things to a store until they are over."""
    chosen = random.Random(seed)
    for _ in range(chosen.randrange(1, 12)):
        store = lm.open(path, shared=chosen.random() < 0.9)
        for _ in range(chosen.randrange(1, 40)):
            name, i = chosen.choice(NAMES), chosen.randrange(ROWS)
            a, dice = store[name], chosen.random()
            if dice < 0.1:
                a.evict()
            elif dice < 0.15:
                a.load()
            elif dice < 0.2:
                fork(a, name, i)
            elif dice < 0.3:
                fail(a, i)
            elif dice < 0.4:
                with ThreadPoolExecutor(3) as pool:
                    list(pool.map(lambda i, a=a, n=name: check(a, n, i), range(ROWS)))
            else:
                check(a, name, i)
        if chosen.random() < 0.7:
            store.close()
        if chosen.random() < 0.05:
            os.kill(os.getpid(), signal.SIGKILL)


def start(path: str, seed: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-X", "faulthandler", __file__, "work", path, str(seed)]
    return subprocess.Popen(command)


def main(seconds: float, seed: int) -> None:
    print(f"shared.py: seed {seed}, {seconds:g} s", flush=True)
    chosen = random.Random(seed)
    ends: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "s.lzm")
        arrays = {n: np.stack([row(n, i) for i in range(ROWS)]) for n in NAMES}
        lm.save(path, arrays, chunk_bytes=65536)
        deadline = time.monotonic() + seconds
        running: dict[subprocess.Popen[bytes], float] = {}
        while running or time.monotonic() < deadline:
            if len(running) < PROCESSES and time.monotonic() < deadline:
                running[start(path, chosen.randrange(2**32))] = time.monotonic()
            for process, since in list(running.items()):
                if process.poll() is None:
                    assert time.monotonic() - since < HANG_S, "a process hangs"
                    continue
                del running[process]
                ends[process.returncode] = ends.get(process.returncode, 0) + 1
            if running and chosen.random() < 0.02:
                chosen.choice(list(running)).kill()
            time.sleep(0.02)
    print(f"shared.py: ended, by status: {ends}", flush=True)
    assert set(ends) <= {0, -signal.SIGKILL}


if __name__ == "__main__":
    if sys.argv[1] == "work":
        work(sys.argv[2], int(sys.argv[3]))
    else:
        given = sys.argv[2:]
        main(float(sys.argv[1]), int(given[0]) if given else random.randrange(2**32))
