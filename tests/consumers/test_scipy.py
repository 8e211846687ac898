# SPDX-License-Identifier: BSD-3-Clause
"""Do scipy's filters and sparse products read arrays?"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage, sparse

import lazymem as lm
from tests.consumers.conftest import A

pytestmark = pytest.mark.needs_uffd


def test_filters(lazy: lm.LazyArray) -> None:
    found = ndimage.gaussian_filter(lazy[:300], 2)
    np.testing.assert_array_equal(found, ndimage.gaussian_filter(A[:300], 2))
    assert lazy.residency().fraction < 0.2
    labels = np.arange(A.size).reshape(A.shape) % 5
    np.testing.assert_array_equal(
        ndimage.mean(lazy, labels, range(5)), ndimage.mean(A, labels, range(5))
    )


def test_sparse_matrices(lazy: lm.LazyArray) -> None:
    picks = sparse.csr_array(
        (np.ones(3, "f4"), [5, 10, 11], [0, 1, 3]), shape=(2, len(A))
    )
    np.testing.assert_array_equal(picks @ lazy, picks @ A)
    data = lazy[:10].reshape(-1)  # as the values of one
    matrix = sparse.csr_array((data, np.arange(1000), [0, 500, 1000]))
    assert np.shares_memory(matrix.data, lazy)
    assert np.isclose(matrix.sum(), A[:10].sum())


def test_damage_is_an_error(damaged: lm.LazyArray) -> None:
    with pytest.raises(lm.ChecksumError):
        ndimage.gaussian_filter(damaged, 2)
    with pytest.raises(lm.ChecksumError):
        sparse.csr_array(np.eye(2, len(A), dtype="f4") + 1) @ damaged
