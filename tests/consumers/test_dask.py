# SPDX-License-Identifier: BSD-3-Clause
"""Do dask's workers read their own blocks, and give back what they took?"""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from dask.base import tokenize
from distributed import Client, LocalCluster

import lazymem as lm
from tests.conftest import ROOT
from tests.consumers.conftest import A, save

pytestmark = pytest.mark.needs_uffd
MEMORY_LIMIT = 300 << 20


@pytest.fixture(params=["to_dask", "from_array"])
def to_dask(request: pytest.FixtureRequest) -> Any:
    if request.param == "to_dask":
        return lm.LazyArray.to_dask
    return da.from_array


def test_blocks_are_those_of_the_array(path: Path, to_dask: Any) -> None:
    with lm.open(path) as store:
        a = store["a"]
        for part, expected in [
            (a, A),
            (a[10:2000:3, ::-1], A[10:2000:3, ::-1]),
            (a.T[5:], A.T[5:]),
            (a[7], A[7]),
            (a[7, 8, ...], A[7, 8]),
            (a.view("i4"), A.view("i4")),
        ]:
            blocks = to_dask(part, chunks=-1 if part.ndim < 2 else (70, 500))
            assert (blocks.shape, blocks.dtype) == (expected.shape, expected.dtype)
            found = blocks.compute()
            assert type(found) is np.ndarray or found.ndim == 0
            np.testing.assert_array_equal(found, expected)
        blocks = to_dask(a, chunks=(500, -1))
        np.testing.assert_array_equal(blocks[[5, 3, 700], 2:4], A[[5, 3, 700], 2:4])
        np.testing.assert_array_equal(blocks[1000:10:-7, 3], A[1000:10:-7, 3])
        assert np.isclose(blocks.mean(dtype="f8").compute(), A.mean(dtype="f8"))
        assert a.residency().chunks_resident == 0
    np.testing.assert_array_equal(blocks[:600], A[:600])  # a graph needs no open store


def test_a_graph_holds_references(tmp_path: Path, to_dask: Any) -> None:
    with lm.Writer(tmp_path / "s.lzm") as writer:
        writer.create("x", shape=(1 << 20, 1 << 10), dtype="u1")
    with lm.open(tmp_path / "s.lzm") as store:
        x = store["x"]
        blocks = to_dask(x, chunks=(1 << 10, -1))
        assert blocks.npartitions == 1 << 10
        assert len(pickle.dumps(blocks.dask)) < 20_000
        tasks = dict(blocks.dask)
        assert max(len(pickle.dumps(task)) for task in tasks.values()) < 1000
        assert x.residency().chunks_resident == 0


def test_blocks_are_whole_rows_or_columns_by_default(path: Path) -> None:
    with lm.open(path) as store, dask.config.set({"array.chunk-size": "160 kB"}):
        assert store["a"].to_dask().chunksize == (400, 100)
        assert store["a"].T.to_dask().chunksize == (100, 400)
        assert store["a"][0, 0, ...].to_dask().chunks == ()


def test_a_name_comes_from_the_place_and_not_from_the_data(path: Path) -> None:
    def names() -> list[str]:
        with lm.open(path) as store:
            a = store["a"]
            parts = [a, a[1:], a[:, ::2], a.T, a.view("i4"), a.view([("x", "f4")])]
            found = [tokenize(x) for x in (*parts, a.view([("y", "f4")]))]
            found += [a.to_dask().name, a.to_dask(chunks=10).name]
            assert da.from_array(a).name == da.from_array(a).name
            assert a.residency().chunks_resident == 0
            return found

    first = names()
    assert len(set(first)) == len(first)
    assert names() == first
    with lm.open(path, "r+") as store:
        assert tokenize(store["a"]) == first[0]
        store["a"][0] = 1
        assert tokenize(store["a"]) != tokenize(store["a"])  # the file does not have it
        store.flush()
        assert tokenize(store["a"]) == tokenize(store["a"]) != first[0]


def test_what_no_file_has_is_an_error_or_a_copy(path: Path) -> None:
    with lm.open(path, "r+") as store:
        a = store["a"]
        before = a.to_dask()
        a[0] = 1
        with pytest.raises(ValueError, match=r"'a': no file has its bytes.*flush\(\)"):
            a.to_dask()
        assert (da.from_array(a)[0].compute() == 1).all()
        store.flush()
        assert (a.to_dask()[0].compute() == 1).all()
    np.testing.assert_array_equal(before[0], A[0])
    with pytest.raises(lm.ClosedError):
        a.to_dask()


def test_damage_is_an_error_of_the_block(damaged_path: Path) -> None:
    with lm.open(damaged_path) as store:
        blocks = store["a"].to_dask(chunks=(100, -1))
        for scheduler in ("threads", "sync"):
            with pytest.raises(lm.ChecksumError):
                blocks.sum().compute(scheduler=scheduler)
        np.testing.assert_array_equal(blocks[1000:].compute(), A[1000:])


# ---- processes -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    os.environ["PYTHONPATH"], before = str(ROOT), os.environ.get("PYTHONPATH", "")
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    with (
        dask.config.set({"distributed.worker.memory.terminate": 1.0}),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            memory_limit=MEMORY_LIMIT,
            dashboard_address=None,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client
    os.environ["PYTHONPATH"] = before
    for number, handler in handlers.items():
        signal.signal(number, handler)


def peak_bytes() -> int:
    """Return the most memory that this process has had."""
    with open("/proc/self/status", encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines["VmHWM"].split()[0]) << 10


def look(array: Any) -> tuple[str, float]:
    return type(array).__name__, array.residency().fraction


def test_workers_take_no_more_than_their_blocks(
    client: Client, tmp_path: Path, to_dask: Any
) -> None:
    rows = np.arange(1 << 18, dtype="f4")
    with lm.Writer(tmp_path / "s.lzm", codec="lz4") as writer:
        x = writer.create("x", shape=(512, 1 << 18), dtype="f4")
        for i in range(512):
            x.write(rows + i)
    with lm.open(tmp_path / "s.lzm") as store:
        x = store["x"]
        assert x.nbytes > MEMORY_LIMIT * 1.5
        before = client.run(peak_bytes)
        blocks = to_dask(x, chunks=(16, -1))
        block_bytes = x.nbytes // blocks.npartitions
        found = blocks.mean(dtype="f8").compute()
        assert found == rows.mean(dtype="f8") + 255.5
        assert x.residency().chunks_resident == 0
    after = client.run(peak_bytes)
    assert set(after) == set(before)  # nobody was restarted
    for worker, nbytes in after.items():
        assert nbytes < MEMORY_LIMIT
        assert nbytes < before[worker] + 8 * block_bytes


def test_results_need_no_file(client: Client, tmp_path: Path) -> None:
    path = save(tmp_path / "s.lzm")
    with lm.open(path) as store:
        held = client.persist(store["a"].to_dask(chunks=(500, -1)))
        assert held.sum().compute() != 0
    path.unlink()
    np.testing.assert_array_equal(held.compute(), A)


def test_arrays_go_by_reference(client: Client, path: Path) -> None:
    with lm.open(path) as store:
        a = store["a"]
        assert client.submit(look, a).result() == ("LazyArray", 0)
        assert client.submit(look, client.scatter(a)).result() == ("LazyArray", 0)
        part = client.submit(lambda x: x[100:], a).result()
        assert type(part) is lm.LazyArray
        np.testing.assert_array_equal(part, A[100:])
        np.testing.assert_array_equal(client.scatter(a.copy()).result(), A)
        assert a.residency().chunks_resident == 25


def test_damage_is_an_error_of_the_caller(client: Client, damaged_path: Path) -> None:
    with lm.open(damaged_path) as store, pytest.raises(lm.ChecksumError):
        store["a"].to_dask(chunks=(100, -1)).sum().compute()
