# SPDX-License-Identifier: BSD-3-Clause
"""Does pandas work on an array's own memory?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import lazymem as lm
from tests.consumers.conftest import A, chunks_of

pytestmark = pytest.mark.needs_uffd


def test_a_frame_is_the_memory_of_the_array(lazy: lm.LazyArray) -> None:
    frame = pd.DataFrame(lazy, copy=False)
    assert np.shares_memory(frame.to_numpy(), lazy)
    assert lazy.residency().chunks_resident == 0
    assert frame.iloc[:100].to_numpy().sum() == A[:100].sum()
    assert lazy.residency().chunks_resident == chunks_of(100)


def test_groupby_and_describe(lazy: lm.LazyArray) -> None:
    groups = np.arange(len(A)) % 7
    found = pd.DataFrame(lazy, copy=False).groupby(groups).mean()
    pd.testing.assert_frame_equal(found, pd.DataFrame(A).groupby(groups).mean())
    series = pd.Series(lazy[:, 5])
    pd.testing.assert_series_equal(series.describe(), pd.Series(A[:, 5]).describe())


def test_damage_is_an_error(damaged: lm.LazyArray) -> None:
    frame = pd.DataFrame(damaged, copy=False)
    with pytest.raises(lm.ChecksumError):
        frame.groupby(np.arange(len(A)) % 7).mean()
