# SPDX-License-Identifier: BSD-3-Clause
"""Do signals that interrupt page faults lose, repeat or spoil anything?"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import lazymem as lm
from lazymem import _engine
from lazymem.testing import failing
from tests.conftest import needs_full_mode, smooth, wait_until

A = smooth((500, 1000))
INTERVAL_S = 0.001
pytestmark = pytest.mark.needs_uffd


@pytest.fixture
def path(tmp_path: Path) -> Path:
    lm.save(tmp_path / "s.lzm", a=A, chunk_bytes=4096)
    return tmp_path / "s.lzm"


@pytest.fixture
def storm() -> Iterator[list[int]]:
    """Send a signal each millisecond; return a list of those that have arrived."""
    arrived: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: arrived.append(number))
    signal.setitimer(signal.ITIMER_REAL, INTERVAL_S, INTERVAL_S)
    yield arrived
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_a_storm_of_signals_spoils_no_scan(path: Path, storm: list[int]) -> None:
    for _ in range(1000):
        with lm.open(path) as store:
            a = store["a"]
            assert np.asarray(a).tobytes() == A.tobytes()
            # A signal lets the thread see the last page before the books are in order.
            wait_until(lambda: a.residency().fraction == 1)
        if len(storm) >= 100:
            break
    assert len(storm) >= 100


def test_signals_while_fills_are_slow_spoil_nothing(
    path: Path, storm: list[int]
) -> None:
    for _ in range(30):
        with lm.open(path) as store, failing("read", errno.EAGAIN, count=2):
            a = np.asarray(store["a"])
            assert a[::-1].tobytes() == A[::-1].tobytes()
    assert storm


@needs_full_mode
def test_signals_do_not_cut_a_system_call_on_absent_pages_short(
    path: Path, tmp_path: Path, storm: list[int]
) -> None:
    """In the kernel, a signal does not end the wait for a page: write() goes on."""
    for _ in range(30):
        with (
            lm.open(path) as store,
            (tmp_path / "raw").open("wb", 0) as file,
            failing("read", errno.EAGAIN, count=2),
        ):
            assert os.write(file.fileno(), np.asarray(store["a"])) == A.nbytes
        assert (tmp_path / "raw").read_bytes() == A.tobytes()
    assert storm


def test_signals_leave_each_error_in_its_place(path: Path, storm: list[int]) -> None:
    with lm.open(path) as store:
        a = store["a"]
        a[0, 0]
        for row in range(10, 490, 10):
            with failing("read", errno.ENXIO), pytest.raises(lm.FillError) as caught:
                a[row].sum()
            first = row * 4000 // 4096
            assert caught.value.chunk_idx in range(first, first + 2)
        np.testing.assert_array_equal(a, A)
    assert _engine.take_failure() is None
    assert storm
