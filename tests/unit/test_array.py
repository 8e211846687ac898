# SPDX-License-Identifier: BSD-3-Clause
"""Is a LazyArray an ndarray in every respect, and does it cost what is touched?"""

from __future__ import annotations

import gc
import io
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazymem as lm
from lazymem.testing import failing
from tests.conftest import smooth

CHUNK = 65536
A = smooth((1000, 1000))  # 62 chunks


@pytest.fixture
def path(tmp_path: Path) -> Path:
    lm.save(
        tmp_path / "s.lzm",
        {"a": A, "f": np.asfortranarray(A), "n": np.arange(10), "z": np.zeros(10**6)},
        chunk_bytes=CHUNK,
    )
    return tmp_path / "s.lzm"


@pytest.fixture
def a(path: Path) -> lm.LazyArray:
    return lm.open(path)["a"]


@pytest.mark.needs_uffd
def test_opening_and_looking_at_facts_touches_nothing(path: Path) -> None:
    with lm.open(path) as store:
        a = store["a"]
        assert a.shape == (1000, 1000)
        assert "0 of 62 chunks resident" in repr(a)
        assert (repr(a[5:]), len(a), a.nbytes, a.T.strides) is not None
        assert a.residency().chunks_resident == 0
        assert store.stats().faults == 0
        assert store.stats().bytes_resident == 0


@pytest.mark.needs_uffd
def test_a_touch_fills_one_chunk(path: Path) -> None:
    with lm.open(path) as store:
        a = store["a"]
        assert a[500, 500] == A[500, 500]
        residency = a.residency()
        assert residency.chunks == 62
        assert np.flatnonzero(residency.mask).tolist() == [500 * 4000 // CHUNK]
        assert store.stats().fills == 1
        assert store.stats().arrays["a"].bytes_resident == CHUNK
        assert a[500].residency().fraction == 1.0
        assert a[:100].residency().chunks_resident == 0


@pytest.mark.needs_uffd
def test_zero_chunks_take_no_memory(path: Path) -> None:
    with lm.open(path) as store:
        z = store["z"]
        assert z.sum() == 0
        stats = store.stats().arrays["z"]
        assert stats.zero_fills == stats.fills == stats.chunks
        assert stats.stored_bytes_read == 0


@pytest.mark.parametrize(
    "index",
    [
        np.s_[3],
        np.s_[3, 4],
        np.s_[::-7, 5:900:3],
        np.s_[..., 0],
        np.s_[[1, 999, 1], 2:5],
        np.s_[np.array([0, 500]), np.array([999, 1])],
        np.s_[None, 10:20, ::-1],
    ],
    ids=str,
)
def test_indexing_equals_numpy(path: Path, index: Any) -> None:
    with lm.open(path) as store:
        for name in ("a", "f"):
            np.testing.assert_array_equal(store[name][index], A[index])


def test_boolean_masks_and_ufuncs_equal_numpy(a: lm.LazyArray) -> None:
    np.testing.assert_array_equal(a[a > 300], A[A > 300])
    np.testing.assert_array_equal(
        np.add(a, a, where=a > 0, out=np.zeros_like(A)),
        np.add(A, A, where=A > 0, out=np.zeros_like(A)),
    )
    np.testing.assert_array_equal(np.sort(a, axis=0), np.sort(A, axis=0))
    np.testing.assert_array_equal(
        np.concatenate([a, a[:1]]), np.concatenate([A, A[:1]])
    )
    np.testing.assert_array_equal(a @ A[:, :3], A @ A[:, :3])
    assert a.sum() == A.sum()
    assert np.percentile(a, 30) == np.percentile(A, 30)


def test_views_are_lazy_and_results_are_plain(a: lm.LazyArray) -> None:
    for view in (a[1:3], a.T, a.reshape(-1), a[5], a.view("u4"), a[None], a.ravel()):
        assert type(view) is lm.LazyArray
        assert view.object_name == "a"
    plain = [a + 1, a[[1, 2]], a[a > 0], a.copy(), a.astype("f8"), np.sin(a), a.mean(0)]
    plain += [np.concatenate([a, a]), np.where(a > 0, a, 0), np.asarray(a), np.copy(a)]
    for result in plain:
        assert type(result) is np.ndarray
    assert isinstance(a.sum(), np.float32)
    assert isinstance(a[1, 2], np.float32)


def test_mode_r_can_not_be_written_by_any_view(a: lm.LazyArray) -> None:
    for view in (a, a[1:], np.asarray(a), a.T):
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1
        with pytest.raises(ValueError, match="cannot set WRITEABLE"):
            view.flags.writeable = True
    assert memoryview(a).readonly


def test_mode_c_changes_memory_and_not_the_file(path: Path) -> None:
    before = path.read_bytes()
    with lm.open(path, "c") as store:
        store["a"][0, :2] = 7, 8
        store["z"][5] = 3.0
        gc.collect()
        assert store["a"][0, :3].tolist() == [7, 8, A[0, 2]]
        assert store["z"][4:7].tolist() == [0, 3, 0]
        b = store["a"]
        b += 1
        assert type(b) is lm.LazyArray
        np.testing.assert_array_equal(b[1:], A[1:] + 1)
        np.multiply(b, 2, out=b)
        assert b[0, 0] == 16
    assert path.read_bytes() == before
    with lm.open(path, "c") as store:
        assert store["a"][0, 0] == A[0, 0]


def test_the_same_name_gives_the_same_memory(path: Path) -> None:
    with lm.open(path) as store:
        assert store["a"] is store["a"]
        assert np.shares_memory(store["a"][5:], store["a"])


@pytest.mark.needs_uffd
def test_memory_goes_with_the_last_view(path: Path) -> None:
    with lm.open(path) as store:
        a = store["a"]
        view = np.asarray(a)[10:20].T
        del a
        gc.collect()
        np.testing.assert_array_equal(view, A[10:20].T)
        assert store.stats().engine["regions_live"] >= 1
        live = store.stats().engine["regions_live"]
        assert store.stats().arrays["a"].fills > 0
        del view
        gc.collect()
        assert store.stats().engine["regions_live"] == live - 1
        np.testing.assert_array_equal(store["a"], A)


@pytest.mark.needs_uffd
def test_load_fills_all_and_prefetch_some(a: lm.LazyArray) -> None:
    calls: list[tuple[int, int]] = []
    assert a[:100].load() is not None
    assert a.residency().chunks_resident == -(-100 * 4000 // CHUNK)
    assert a.load(progress=lambda *call: calls.append(call)) is a
    assert a.residency().fraction == 1.0
    assert calls[-1][0] == calls[-1][1] == 62 * CHUNK
    np.testing.assert_array_equal(a, A)


@pytest.mark.needs_uffd
def test_prefetch_fills_in_the_background(path: Path) -> None:
    with lm.open(path) as store:
        a = store["a"]
        a.prefetch(np.s_[200:300])
        a.prefetch(5)
        a.prefetch((7, 8))
        faults = store.stats().faults
        a[200:300].load()  # waits for the same chunks
        assert a[200:300].residency().fraction == 1.0
        np.testing.assert_array_equal(np.asarray(a)[200:300], A[200:300])
        assert store.stats().faults == faults
        with pytest.raises(TypeError, match="basic index"):
            a.prefetch([1, 2])
        a.prefetch()


def test_a_result_is_pickled_by_its_values(a: lm.LazyArray) -> None:
    for protocol in (2, 5):
        copy = pickle.loads(pickle.dumps(a[3:5] + 1, protocol))
        assert type(copy) is np.ndarray
        np.testing.assert_array_equal(copy, A[3:5] + 1)


def test_files_take_the_array(a: lm.LazyArray, tmp_path: Path) -> None:
    a.tofile(tmp_path / "raw")
    assert (tmp_path / "raw").read_bytes() == A.tobytes()
    np.save(tmp_path / "a.npy", a)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), A)
    buffer = io.BytesIO()
    np.save(buffer, a)
    buffer.seek(0)
    np.testing.assert_array_equal(np.load(buffer), A)
    lm.save(tmp_path / "again.lzm", a=a, codec="none")
    with lm.open(tmp_path / "again.lzm") as store:
        np.testing.assert_array_equal(store["a"], A)


def test_str_shows_elements_and_repr_facts(path: Path) -> None:
    with lm.open(path) as store:
        n = store["n"]
        assert str(n) == str(np.arange(10))
        assert (
            repr(n) == "<LazyArray, read-only 'n': (10,) int64, 1 of 1 chunks resident>"
        )
        assert repr(store).startswith(
            f"<Store {str(path)!r}, mode 'r': 'a', 'f', 'n', 'z'"
        )
    with lm.open(path, "c") as store:
        assert repr(store["n"]).startswith("<LazyArray 'n'")


def test_a_store_is_a_mapping(path: Path) -> None:
    with lm.open(path) as store:
        assert len(store) == 4
        assert list(store.keys()) == ["a", "f", "n", "z"]
        assert "a" in store
        assert "b" not in store
        assert store.get("b") is None
        assert {name: array.shape for name, array in store.items()}["n"] == (10,)
        info = store.info("a")
        assert (info.shape, info.dtype, info.nbytes) == (
            (1000, 1000),
            np.dtype("f4"),
            4 * 10**6,
        )


def test_a_store_is_equal_to_itself_alone_and_can_be_a_key(path: Path) -> None:
    with lm.open(path) as store, lm.open(path) as other:
        assert store == store
        assert store != other
        assert store != dict(store)
        assert {store: 1, other: 2}[store] == 1
        assert other in {store, other}
        assert store.stats().arrays == other.stats().arrays == {}


def test_blocks_give_the_bytes_without_the_array(path: Path) -> None:
    with lm.open(path) as store:
        for name, expected in (("a", A.tobytes()), ("f", A.T.tobytes())):
            blocks = [bytes(block) for block in store.blocks(name, block_bytes=300_000)]
            assert {len(block) for block in blocks[:-1]} == {300_000}
            assert b"".join(blocks) == expected
        assert store.stats().faults == 0
        lm.save(path, e=np.empty((0, 3)))
    with lm.open(path) as store:
        assert list(store.blocks("e")) == []


def test_a_store_tells_of_its_commit(path: Path) -> None:
    with lm.open(path) as store:
        commit = store.commit
    assert (commit.sequence, commit.torn_bytes) == (1, 0)
    assert commit.file_bytes == path.stat().st_size
    assert commit.writer == f"lazymem {lm.__version__}"
    assert abs(commit.time.timestamp() - path.stat().st_mtime) < 60
    assert len(commit.store_id) == 32


def test_an_unknown_name_gets_a_hint(path: Path) -> None:
    lm.save(path, temperature=np.zeros(3), wind=np.zeros(3))
    with lm.open(path) as store:
        with pytest.raises(KeyError, match="did you mean 'temperature'") as caught:
            store["temprature"]
        assert isinstance(caught.value, lm.LazyMemError)
        assert (caught.value.path, caught.value.name) == (str(path), "temprature")
        with pytest.raises(KeyError, match="it has 'temperature', 'wind'"):
            store["zzzzzz"]


def test_a_closed_store_refuses_and_its_arrays_raise(path: Path) -> None:
    store = lm.open(path)
    a = store["a"]
    view = np.asarray(a)[3:]
    only_view = np.asarray(store["f"])
    a.load()
    store.close()
    store.close()
    assert store.closed
    with pytest.raises(lm.ClosedError, match="the store is closed"):
        store["a"]
    if lm._engine.uffd_probe().mode:
        for refused in (a.load, a.prefetch, store.verify):
            with pytest.raises(lm.ClosedError, match="the store is closed"):
                refused()
        for _ in range(2):
            with pytest.raises(lm.ClosedError, match="object 'a'"):
                a.sum()
            with pytest.raises(lm.ClosedError):
                view.sum()
            with pytest.raises(lm.ClosedError):
                only_view.sum()
            with pytest.raises(lm.ClosedError):
                a[0, 0]


def test_a_wrong_mode_says_which_there_are(path: Path) -> None:
    with pytest.raises(ValueError, match="mode must be 'r', 'c'"):
        lm.open(path, "rw")  # type: ignore[arg-type]


@pytest.mark.needs_uffd
@pytest.mark.parametrize("same", [True, False])
def test_eight_threads_read_right_data(path: Path, same: bool) -> None:
    for _ in range(5):
        with lm.open(path) as store:
            a = np.asarray(store["a"])
            wrong: list[int] = []
            barrier = threading.Barrier(8)

            def read(
                k: int, a: Any = a, barrier: Any = barrier, wrong: Any = wrong
            ) -> None:
                order = np.random.default_rng(0 if same else k).permutation(1000)
                barrier.wait()
                wrong += [i for i in order if not np.array_equal(a[i], A[i])]

            threads = [threading.Thread(target=read, args=(k,)) for k in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert wrong == []
            assert store.stats().fills == 62


# ---- evict ---------------------------------------------------------------------------


def rss_anon() -> int:
    """Return the anonymous memory of this process in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) << 10


@pytest.mark.needs_uffd
def test_evict_gives_memory_back_and_a_touch_fills_again(tmp_path: Path) -> None:
    a = smooth((64, 1 << 18))  # 64 MiB, a row is a MiB
    lm.save(tmp_path / "a.lzm", a=a, chunk_bytes=1 << 16)
    with lm.open(tmp_path / "a.lzm") as store:
        lazy = store["a"].load()
        before = rss_anon()
        assert lazy.evict(np.s_[8:]) == 56 << 20
        assert before - rss_anon() > 50 << 20
        assert lazy.residency().chunks_resident == 8 * 16
        assert np.array_equal(lazy, a)
        assert store.stats().fills == 64 * 16 + 56 * 16
        assert lazy.evict() == a.nbytes
        assert lazy.evict() == 0
        assert lazy[-1, -1] == a[-1, -1]


@pytest.mark.needs_uffd
def test_evict_takes_whole_chunks_only(tmp_path: Path) -> None:
    a = smooth((10_000,))
    lm.save(tmp_path / "a.lzm", a=a, chunk_bytes=4096)
    with lm.open(tmp_path / "a.lzm") as store:
        lazy = store["a"].load()
        assert lazy.evict(np.s_[1:2047]) == 0
        assert lazy.evict(np.s_[1:2048]) == 4096
        assert (
            lazy.evict(np.s_[9_216:]) == (10_000 - 9_216) * 4
        )  # the last, short chunk
        assert lazy.residency().chunks_resident == 10 - 2
        assert np.array_equal(lazy, a)


def test_evict_of_what_may_have_been_written_is_refused(tmp_path: Path) -> None:
    lm.save(tmp_path / "a.lzm", a=np.arange(10_000))
    with lm.open(tmp_path / "a.lzm", "c") as store:
        store["a"][5] = -1
        if store["a"]._binding.region is not None:
            with pytest.raises(ValueError, match="mode 'c'"):
                store["a"].evict()
        assert store["a"][5] == -1


@pytest.mark.parametrize(
    "name",
    [
        "all",
        "any",
        "cumprod",
        "cumsum",
        "max",
        "mean",
        "min",
        "prod",
        "std",
        "sum",
        "trace",
        "var",
    ],
)
def test_reductions_are_those_of_the_plain_array(a: lm.LazyArray, name: str) -> None:
    small, plain = a[:4, :3], A[:4, :3]
    for kwargs in ({}, {"axis": 0} if name != "trace" else {"offset": 2}):
        result = getattr(small, name)(**kwargs)
        right = getattr(plain, name)(**kwargs)
        assert type(result) is type(right)
        np.testing.assert_array_equal(result, right)
        np.testing.assert_array_equal(getattr(np, name)(small, **kwargs), right)
    out = np.empty_like(np.asarray(right))
    assert getattr(small, name)(**kwargs, out=out) is out
    np.testing.assert_array_equal(out, right)


@pytest.mark.needs_uffd
def test_a_reduction_that_fails_lets_the_array_go(path: Path) -> None:
    regions = lm.open(path).stats().engine["regions_live"]
    for name in ("sum", "mean", "std", "max", "any"):
        with failing("read", 5), pytest.raises(lm.FillError):
            getattr(lm.open(path)["a"], name)()
    gc.collect()
    assert lm.open(path).stats().engine["regions_live"] == regions
