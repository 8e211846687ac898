# SPDX-License-Identifier: BSD-3-Clause
"""Does torch work on an array's own memory, and load batches by reference?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazymem as lm
from tests.conftest import ROOT
from tests.consumers.conftest import A, chunks_of

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.needs_uffd,
    # torch says so of every read-only array, memory maps among them
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writ:UserWarning"),
]


class Rows(torch.utils.data.Dataset[Any]):
    def __init__(self, array: Any) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, i: int) -> Any:
        assert isinstance(self.array, lm.LazyArray)
        return torch.tensor(self.array[i])


def test_a_tensor_is_the_memory_of_the_array(lazy: lm.LazyArray) -> None:
    tensor = torch.from_numpy(lazy)
    assert tensor.data_ptr() == lazy.ctypes.data
    assert lazy.residency().chunks_resident == 0
    np.testing.assert_allclose(tensor[:100].sum(0), A[:100].sum(0), rtol=1e-3)
    assert lazy.residency().chunks_resident == chunks_of(100)
    np.testing.assert_allclose(
        tensor @ torch.ones(100), A @ np.ones(100, "f4"), rtol=1e-2, atol=1e-2
    )


def test_what_is_written_to_a_tensor_is_in_the_array(path: Path) -> None:
    with lm.open(path, "c") as store:
        tensor = torch.from_numpy(store["a"])
        tensor[3] = 7
        assert (store["a"][3] == 7).all()
        assert (store["a"][4] == A[4]).all()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_loader_with_workers(
    lazy: lm.LazyArray, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    loader = torch.utils.data.DataLoader(
        Rows(lazy[:1000]), 100, num_workers=2, multiprocessing_context=method
    )
    batches = torch.cat(list(loader))
    np.testing.assert_array_equal(batches.numpy(), A[:1000])
    assert lazy.residency().chunks_resident == 0


def test_damage_in_torchs_threads_is_an_error(damaged: lm.LazyArray) -> None:
    tensor = torch.from_numpy(damaged)
    with pytest.raises(lm.ChecksumError):
        torch.sin(tensor).sum()
        for _ in range(1000):  # a loop of Python's, at the latest
            pass
