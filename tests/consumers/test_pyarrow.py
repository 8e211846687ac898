# SPDX-License-Identifier: BSD-3-Clause
"""Does Arrow compute on an array's own memory?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import lazymem as lm
from tests.consumers.conftest import CHUNK, A, chunks_of

pytestmark = pytest.mark.needs_uffd


def arrow(array: lm.LazyArray) -> Any:
    return pa.Array.from_buffers(pa.float32(), array.size, [None, pa.py_buffer(array)])


def test_a_buffer_is_the_memory_of_the_array(lazy: lm.LazyArray) -> None:
    assert pa.py_buffer(lazy).address == lazy.ctypes.data
    assert pa.array(lazy[:10].reshape(-1)).buffers()[1].address == lazy.ctypes.data
    found = arrow(lazy)
    assert lazy.residency().chunks_resident <= 1  # of pa.array(), which looks for NaN
    assert pc.max(found.slice(0, 10_000)).as_py() == A[:100].max()
    assert lazy.residency().chunks_resident == chunks_of(100)
    expected = np.sort(A, axis=None)[:5]
    assert pc.take(found, pc.sort_indices(found)[:5]).to_pylist() == expected.tolist()


def test_damage_in_arrows_threads_is_an_error(damaged: lm.LazyArray) -> None:
    step = CHUNK // 8
    chunked = pa.chunked_array(
        [arrow(damaged).slice(i, step) for i in range(0, A.size, step)]
    )
    table = pa.table({"x": chunked, "key": np.arange(A.size) % 3})
    with pytest.raises(lm.ChecksumError):
        table.group_by("key").aggregate([("x", "sum")])
        for _ in range(1000):  # a loop of Python's, at the latest
            pass
