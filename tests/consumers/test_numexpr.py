# SPDX-License-Identifier: BSD-3-Clause
"""Do numexpr's threads fault?"""

from __future__ import annotations

from collections.abc import Iterator

import numexpr
import numpy as np
import pytest

import lazymem as lm
from tests.consumers.conftest import A, chunks_of

pytestmark = pytest.mark.needs_uffd


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = numexpr.set_num_threads(2)
    yield
    numexpr.set_num_threads(before)


def test_an_expression(lazy: lm.LazyArray) -> None:
    operands = {"a": lazy[:1000], "b": lazy[1000:2000]}
    found = numexpr.evaluate("a * 2 + b", operands)
    np.testing.assert_allclose(found, A[:1000] * 2 + A[1000:2000], rtol=1e-5)
    assert lazy.residency().chunks_resident == chunks_of(2000)


def test_damage_is_an_error(damaged: lm.LazyArray) -> None:
    with pytest.raises(lm.ChecksumError):
        numexpr.evaluate("a * 2", {"a": damaged})
