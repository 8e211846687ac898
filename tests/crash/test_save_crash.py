# SPDX-License-Identifier: BSD-3-Clause
"""Does a save that dies at any write or sync leave exactly the old file, or none?"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazymem as lm

SAVE = """
import sys, numpy as np, lazymem as lm
from lazymem.testing import KILL, failing
path, point, skip = sys.argv[1], sys.argv[2], int(sys.argv[3])
with failing(point, KILL, skip=skip):
    lm.save(path, a=np.arange(20_000), b=np.ones(9000, "f4"), chunk_bytes=65536)
"""


@pytest.mark.parametrize("point", ["write", "sync"])
@pytest.mark.parametrize("has_old", [True, False])
def test_a_killed_save_leaves_the_old_file_or_none(
    tmp_path: Path, run_python: Callable[..., Any], point: str, has_old: bool
) -> None:
    path = tmp_path / "store" / "s.lzm"
    path.parent.mkdir()
    if has_old:
        lm.save(path, a=np.arange(5))
    old = path.read_bytes() if has_old else None
    for skip in range(100):
        done = run_python(SAVE, path, point, skip)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        if path.exists() and path.read_bytes() != old:
            # Killed behind the rename: the new file, whole.
            assert point == "sync"
            with lm.open(path) as store:
                assert store.verify() == []
        else:
            assert path.exists() == has_old
    assert skip >= 3
    with lm.open(path) as store:
        assert store["a"].tolist() == list(range(20_000))
        assert store.verify() == []
