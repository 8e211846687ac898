# SPDX-License-Identifier: BSD-3-Clause
"""Does compiled code fault, in threads that never run Python?"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest

import lazymem as lm
from tests.consumers.conftest import A, chunks_of

pytestmark = pytest.mark.needs_uffd


@numba.njit
def total(x: Any) -> float:
    found = 0.0
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            found += x[i, j]
    return found


@numba.njit(parallel=True, nogil=True)
def totals(x: Any) -> Any:
    found = np.zeros(x.shape[0])
    for i in numba.prange(x.shape[0]):
        for j in range(x.shape[1]):
            found[i] += x[i, j]
    return found


def test_loops(lazy: lm.LazyArray) -> None:
    assert np.isclose(total(lazy[:100]), A[:100].sum(dtype="f8"))
    assert lazy.residency().chunks_resident == chunks_of(100)
    np.testing.assert_allclose(totals(lazy), A.sum(axis=1, dtype="f8"), rtol=1e-3)


@pytest.mark.parametrize("loop", [total, totals])
def test_damage_is_an_error(damaged: lm.LazyArray, loop: Any) -> None:
    loop(A)  # compiled; for another type than a read-only array's perhaps
    with pytest.raises(lm.ChecksumError):
        loop(damaged)
        for _ in range(1000):  # a loop of Python's, at the latest
            pass
