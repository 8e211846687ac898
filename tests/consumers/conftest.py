# SPDX-License-Identifier: BSD-3-Clause
"""A store for other libraries to work on, and one with a damaged chunk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import lazymem as lm
from tests.conftest import smooth
from tests.faults.test_damage import flip, places

CHUNK = 65536
A = smooth((4000, 100)) / np.float32(100)
"""Of which a chunk has some 164 rows."""
DAMAGED = slice(3 * CHUNK // 400, 4 * CHUNK // 400)
"""Rows of chunk 3."""


def save(path: Path, array: npt.NDArray[np.generic] = A) -> Path:
    lm.save(path, a=array, chunk_bytes=CHUNK)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save(tmp_path / "s.lzm")


@pytest.fixture
def lazy(path: Path) -> Iterator[lm.LazyArray]:
    """Return an array of which nothing is filled before it is touched."""
    with lm.open(path) as store:
        array = store["a"]
        array.advise("random")
        yield array


@pytest.fixture
def damaged_path(tmp_path: Path) -> Path:
    path = save(tmp_path / "damaged.lzm")
    flip(path, places(path)["payload"] + 3)
    return path


@pytest.fixture
def damaged(damaged_path: Path) -> Iterator[lm.LazyArray]:
    with lm.open(damaged_path) as store:
        yield store["a"]


def chunks_of(rows: int) -> int:
    """Return how many chunks the first rows lie in."""
    return -(-rows * A[0].nbytes // CHUNK)
