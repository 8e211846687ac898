# SPDX-License-Identifier: BSD-3-Clause
"""Does opening stay cheap when stores are huge, or hold very many objects?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import lazymem as lm


def resident_kib() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    raise AssertionError


def mappings() -> int:
    return len(Path("/proc/self/maps").read_text(encoding="ascii").splitlines())


@pytest.mark.needs_uffd
def test_sixteen_tebibytes_open_and_answer_from_both_ends(tmp_path: Path) -> None:
    n = 1 << 44
    with lm.Writer(tmp_path / "s.lzm") as writer:
        x = writer.create("x", n, "u1")
        x.write(np.arange(100, dtype="u1"), at=0)
        x.write(np.full(10, 5), at=n // 2 + 12345)
        x.write(np.arange(100, dtype="u1"), at=n - 100)
    assert (tmp_path / "s.lzm").stat().st_size < 1 << 20
    before = resident_kib()
    with lm.open(tmp_path / "s.lzm") as store:
        x = store["x"]
        assert x.nbytes == n
        assert x[:100].tolist() == x[-100:].tolist() == list(range(100))
        assert x[n // 2 + 12344 : n // 2 + 12356].tolist() == [0] + [5] * 10 + [0]
        assert x[n // 3] == 0
        assert "4 of 134217728 chunks resident" in repr(x)
        assert resident_kib() - before < 16 << 10


def test_a_hundred_thousand_objects_open_in_one_store(tmp_path: Path) -> None:
    count = 100_000
    lm.save(tmp_path / "s.lzm", {f"n{i}": np.arange(i, i + 3) for i in range(count)})
    before = mappings()
    with lm.open(tmp_path / "s.lzm") as store:
        assert len(store) == count
        arrays = [store[name] for name in store]
        for i in [0, 1, 12345, *range(count - 100, count)]:
            assert arrays[i].tolist() == [i, i + 1, i + 2]
        assert mappings() - before < 1500
        regions = store.stats().engine["regions_live"]
        del arrays
        if lm._engine.uffd_probe().mode:
            assert regions >= count
            assert store.stats().engine["regions_live"] <= regions - count
