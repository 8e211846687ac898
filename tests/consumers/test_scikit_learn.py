# SPDX-License-Identifier: BSD-3-Clause
"""Does scikit-learn fit on arrays, here and in joblib's processes?"""

from __future__ import annotations

import joblib
import numpy as np
import numpy.typing as npt
import pytest
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import SGDRegressor
from sklearn.model_selection import cross_val_score

import lazymem as lm
import lazymem.joblib
from tests.consumers.conftest import A

pytestmark = pytest.mark.needs_uffd
Y = A[:, 0] * 2 + 1


def test_fits_are_those_of_a_plain_array(lazy: lm.LazyArray) -> None:
    for fit in (
        lambda x: PCA(3, random_state=0).fit(x).components_,
        lambda x: KMeans(3, n_init=1, random_state=0).fit(x).cluster_centers_,
        lambda x: SGDRegressor(random_state=0, max_iter=5, tol=None).fit(x, Y).coef_,
    ):
        np.testing.assert_allclose(fit(lazy), fit(A), rtol=1e-4)


def test_batches_fill_what_they_take(lazy: lm.LazyArray) -> None:
    model = SGDRegressor(random_state=0)
    for start in range(0, 400, 100):
        model.partial_fit(lazy[start : start + 100], Y[start : start + 100])
    assert lazy.residency().fraction < 0.5


def test_cross_validation_in_threads_and_in_processes(lazy: lm.LazyArray) -> None:
    def score(x: npt.NDArray[np.float32]) -> list[float]:
        return list(cross_val_score(SGDRegressor(random_state=0), x, Y, cv=3))

    expected = score(A)
    with lazymem.joblib.by_reference(n_jobs=2):
        np.testing.assert_allclose(score(lazy), expected, rtol=1e-4)
    assert lazy.residency().chunks_resident == 0  # the workers read it
    with joblib.parallel_config("threading", n_jobs=2):
        np.testing.assert_allclose(score(lazy), expected, rtol=1e-4)


def test_damage_in_openmp_and_in_joblibs_threads_is_an_error(
    damaged: lm.LazyArray,
) -> None:
    with pytest.raises(lm.ChecksumError):
        KMeans(3, n_init=1, random_state=0).fit(damaged)
    with pytest.raises(lm.ChecksumError):
        RandomForestRegressor(2, n_jobs=2, max_depth=2).fit(damaged, Y)
