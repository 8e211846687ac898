# SPDX-License-Identifier: BSD-3-Clause
"""Do joblib's workers get references?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest

import lazymem as lm
import lazymem.joblib
from tests.consumers.conftest import CHUNK, A

pytestmark = pytest.mark.needs_uffd
Found = tuple[str, bool, float]


def look(array: Any) -> Found:
    """Say what arrived, whether it has all been read, and an element."""
    is_read = not isinstance(array, lm.LazyArray) or array.residency().fraction == 1
    return type(array).__name__, is_read, float(array[-1, -1])


def run(*arrays: Any) -> list[Found]:
    return list(joblib.Parallel()(joblib.delayed(look)(x) for x in arrays))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return where joblib is to put arrays that are large for it."""
    (tmp_path / "joblib").mkdir()
    return tmp_path / "joblib"


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
def test_an_array_goes_by_reference(
    lazy: lm.LazyArray, backend: str, folder: Path
) -> None:
    assert A.nbytes > 10**6  # else joblib would not dump an ordinary array
    with joblib.parallel_config(backend, n_jobs=2, temp_folder=folder):
        found = run(lazy, lazy[:10])
    assert found == [
        ("LazyArray", False, A[-1, -1]),
        ("LazyArray", False, A[9, -1]),
    ]
    assert list(folder.rglob("*.pkl")) == []
    if backend != "threading":
        assert lazy.residency().chunks_resident == 0


def test_ordinary_arrays_over_one_go_by_reference_if_told_to(
    lazy: lm.LazyArray, folder: Path
) -> None:
    plain = np.asarray(lazy)
    expected = [("LazyArray", False, A[-1, -1]), ("LazyArray", False, A[20, -1])]
    for _ in range(2):
        with lazymem.joblib.by_reference(n_jobs=2, temp_folder=folder):
            assert run(plain, plain.T[:, 10:21].T) == expected
            assert run(A.copy()) == [("memmap", True, A[-1, -1])]  # as ever
    assert lazy.residency().chunks_resident == 0
    with joblib.parallel_config("loky", n_jobs=2, temp_folder=folder):
        assert run(plain) == [("memmap", True, A[-1, -1])]


def test_workers_are_kept(lazy: lm.LazyArray) -> None:
    pids = []
    for _ in range(2):
        with lazymem.joblib.by_reference(n_jobs=1):
            pids += joblib.Parallel(n_jobs=2)(joblib.delayed(os.getpid)() for _ in "ab")
    assert len(set(pids)) <= 2


def test_a_damaged_chunk_is_the_callers_error(damaged: lm.LazyArray) -> None:
    assert damaged.nbytes > 4 * CHUNK
    for backend in ("loky", "threading"):
        with (
            joblib.parallel_config(backend, n_jobs=2),
            pytest.raises(lm.ChecksumError),
        ):
            joblib.Parallel()(joblib.delayed(np.sum)(damaged) for _ in range(2))
