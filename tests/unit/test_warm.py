# SPDX-License-Identifier: BSD-3-Clause
"""Is a working set filled ahead in a store opened with it, whatever is there?"""

from __future__ import annotations

import gc
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lazymem as lm
from lazymem import _engine, warm
from lazymem.testing import HANG, failing
from lazymem.warm import sample
from tests.conftest import open_to_all, smooth, wait_until
from tests.faults.test_fork import end_child, start_child

CHUNK = 4096
A = smooth((1000, 1000))  # 977 chunks
SET = np.s_[100:400]  # 294 chunks
pytestmark = pytest.mark.needs_uffd
Mask = np.ndarray[Any, np.dtype[np.bool_]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    lm.save(tmp_path / "s.lzm", {"a": A, "b": A[:100] + 1}, chunk_bytes=CHUNK)
    return tmp_path / "s.lzm"


def record(path: Path, name: str = "set", **options: Any) -> Mask:
    """Record a part of one array and a chunk of the other; return which chunks."""
    with lm.open(path, **options) as store:
        a, b = store["a"], store["b"]
        a[SET].load()
        b[:40].load()
        count = store.record(name)
        assert count == a.residency().chunks_resident + b.residency().chunks_resident
        return a.residency().mask


def record_file(path: Path) -> Path:
    return path.with_name(path.name + ".set.warm")


def samples(mask: Mask) -> Mask:
    found = np.zeros_like(mask)
    chunks = np.flatnonzero(mask)
    found[chunks[sample(len(chunks))]] = True
    return found


def is_filled(array: lm.LazyArray, mask: Mask) -> bool:
    return array.residency().chunks_resident >= np.count_nonzero(mask & ~samples(mask))


@pytest.mark.parametrize("mode", ["r", "c", "r+"])
def test_a_set_is_filled_without_a_touch(path: Path, mode: Any) -> None:
    mask = record(path)
    with lm.open(path, mode, warm="set") as store:
        a = store["a"]
        wait_until(lambda: is_filled(a, mask))
        np.testing.assert_array_equal(a.residency().mask, mask & ~samples(mask))
        assert store.stats().faults == 0
        np.testing.assert_array_equal(a[:], A)


@pytest.mark.parametrize("mode", ["c", "r+"])
def test_what_is_written_meanwhile_stays(path: Path, mode: Any) -> None:
    mask = record(path)
    right = A.copy()
    with lm.open(path, mode, warm="set") as store:
        a = store["a"]
        for row in range(399, 99, -7):
            a[row] = right[row] = row
        wait_until(lambda: is_filled(a, mask))
        np.testing.assert_array_equal(a, right)
        if mode == "r+":
            store.snapshot()
    np.testing.assert_array_equal(lm.open(path)["a"], right if mode == "r+" else A)


def test_samples_tell_which_share_was_used(path: Path) -> None:
    mask = record(path)
    with lm.open(path) as store:
        assert store.stats().warm is None
    with lm.open(path, warm="set") as store:
        assert store.stats().warm == lm.WarmStats(0, 0, 0)
        assert lm.WarmStats(0, 0, 0).used is None
        a = store["a"]
        wait_until(lambda: is_filled(a, mask))
        chunks, sampled = np.count_nonzero(mask), np.count_nonzero(samples(mask))
        assert store.stats().warm == lm.WarmStats(chunks, sampled, 0)
        a[100:250].sum()
        stats = store.stats().warm
        assert stats is not None
        assert stats.used is not None
        assert 0.4 < stats.used < 0.6
        a[SET].sum()
        assert store.stats().warm == lm.WarmStats(chunks, sampled, sampled)
        b = store["b"]
        more = store.stats().warm
        assert more is not None
        assert more.chunks > chunks
        a = None
        gc.collect()
        gone = store.stats().warm
        assert gone is not None
        assert gone.chunks == more.chunks - chunks
        assert b.residency().chunks == 98


def test_a_set_is_filled_once(path: Path) -> None:
    mask = record(path)
    with lm.open(path, warm="set") as store:
        a = store["a"]
        wait_until(lambda: is_filled(a, mask))
        a = None
        gc.collect()
        assert store["a"].residency().chunks_resident == 0


def test_the_first_time_there_is_no_record(path: Path) -> None:
    with lm.open(path, warm="set") as store:
        a = store["a"]
        assert a[5, 5] == A[5, 5]
        assert store.record("set") == 1
        assert sorted(os.listdir(path.parent)) == [path.name, record_file(path).name]


def test_a_record_is_what_its_module_says(path: Path) -> None:
    with lm.open(path) as store:
        a, _ = store["a"], store["b"]
        a[0, 0], a[1, 0], a[5, 0], a[-1, -1]
        store_id = store.commit.store_id
        store.record("set")
    assert json.loads(record_file(path).read_text()) == {
        "format": "lazymem warm 1",
        "store_id": store_id,
        "objects": {
            "a": {
                "nbytes": 4_000_000,
                "chunk_bytes": CHUNK,
                "runs": [[0, 1], [4, 1], [976, 1]],
            }
        },
    }


def test_runs_across_blocks_are_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "_BLOCK", 10)
    mask = record(path)
    entry = json.loads(record_file(path).read_text())["objects"]["a"]
    assert entry["runs"] == [[int(mask.argmax()), np.count_nonzero(mask)]]
    with lm.open(path, warm="set") as store:
        a = store["a"]
        a[SET].load()
        stats = store.stats().warm
        assert stats is not None
        assert stats.touched == stats.sampled > 10


OBJECT = '{"format": "lazymem warm 1", "store_id": "ID", "objects": {"a": %s}}'
ENTRY = '{"nbytes": 4000000, "chunk_bytes": 4096, "runs": %s}'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        "\x00\xff",
        '{"format": "lazymem warm 2"}',
        '{"format": "lazymem warm 1"}',
        '{"format": "lazymem warm 1", "store_id": "ID", "objects": 5}',
        OBJECT % "5",
        OBJECT % "{}",
        OBJECT % '{"nbytes": 1e999, "chunk_bytes": 4096, "runs": []}',
        *(
            OBJECT % (ENTRY % runs)
            for runs in (
                "null",
                '"runs"',
                "[]",
                "[5]",
                "[[1.5, 1]]",
                "[[0, 0]]",
                "[[-1, 2]]",
                "[[976, 2]]",
                "[[5, 2], [6, 1]]",
                "[[5, 2], [1, 1]]",
                "[[0, 1], [2]]",
                "[[9223372036854775807, 9223372036854775807]]",
                "[[1000000000000000000000000000, 1]]",
            )
        ),
    ],
    ids=lambda text: text[:90],
)
def test_a_damaged_record_is_a_warning(path: Path, text: str) -> None:
    with lm.open(path) as store:
        text = text.replace("ID", store.commit.store_id)
    record_file(path).write_text(text, encoding="latin-1")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        store = lm.open(path, warm="set")
        a = store["a"]
    assert [warning.filename for warning in caught] == [__file__]
    assert str(record_file(path)) in str(caught[0].message)
    assert "is ignored: it" in str(caught[0].message)
    assert a[3, 3] == A[3, 3]
    assert a.residency().chunks_resident == 1
    store.close()


def test_a_record_that_can_not_be_read_is_a_warning(path: Path) -> None:
    record_file(path).mkdir()
    with (
        pytest.warns(lm.LazyMemWarning, match="ignored: Is a directory"),
        lm.open(path, warm="set") as store,
    ):
        assert store["a"][3, 3] == A[3, 3]


def test_a_record_of_another_store_is_a_warning(path: Path) -> None:
    record(path)
    lm.save(path, {"a": A, "b": A[:100]}, chunk_bytes=CHUNK)
    with (
        pytest.warns(lm.LazyMemWarning, match="with another store"),
        lm.open(path, warm="set") as store,
    ):
        assert store["a"].residency().chunks_resident == 0


def test_an_array_of_another_form_is_a_warning_and_others_are_filled(
    path: Path,
) -> None:
    mask = record(path)
    with lm.open(path, "r+", warm="set") as store:
        store.put("b", A[:50], chunk_bytes=CHUNK)
        with pytest.warns(lm.LazyMemWarning, match=r"of 'b' is ignored.*200000 in"):
            assert store["b"][3, 3] == A[3, 3]
        a = store["a"]
        wait_until(lambda: is_filled(a, mask))
        store.snapshot("other")
    with (
        lm.open(path, at="other", warm="set") as store,
        pytest.warns(lm.LazyMemWarning, match="of 'b' is ignored"),
    ):
        store["b"]


def test_zeros_are_not_filled(path: Path) -> None:
    record(path)
    with lm.open(path, "r+", warm="set") as store:
        del store["a"]
        a = store.create("a", A.shape, "f4", chunk_bytes=CHUNK)
        assert a.residency().chunks_resident == 0
        assert store.stats().warm == lm.WarmStats(0, 0, 0)
        store.close(discard=True)


def test_an_earlier_state_is_filled_with_what_it_holds(path: Path) -> None:
    with lm.open(path, "r+") as store:
        store.snapshot("first")
        store["a"][:] = 7
        store.snapshot("second")
    mask = record(path, at="first")
    for at, right in (("first", A), ("second", np.full_like(A, 7))):
        with lm.open(path, at=at, warm="set") as store:
            a = store["a"]
            wait_until(lambda a=a: is_filled(a, mask))
            np.testing.assert_array_equal(a, right)


def test_memory_bounds_what_is_filled(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(path)
    monkeypatch.setattr(_engine, "memory_available", lambda: 2 * 30 * CHUNK)
    with lm.open(path, warm="set") as store:
        b, a = store["b"], store["a"]
        stats = store.stats().warm
        assert stats is not None
        assert stats.chunks == 30
        wait_until(lambda: b.residency().chunks_resident == 28)
        assert a.residency().chunks_resident == 0


@pytest.mark.parametrize(
    ("runs", "nbytes_max", "chunks"),
    [
        ([[0, 1], [2, 3], [30, 1]], 1 << 40, [0, 1, 7]),
        ([[0, 1], [2, 3], [30, 1]], 2 * 16384 + 5, [0, 1]),
        ([[3, 2], [6, 1]], 1 << 40, [0, 1]),
        ([[4, 90]], 3 * 16384, [1, 2, 3]),
        ([[4, 90]], 5, []),
    ],
)
def test_larger_pages_hold_several_chunks(
    runs: list[list[int]], nbytes_max: int, chunks: list[int]
) -> None:
    region: Any = SimpleNamespace(
        chunk_bytes=16384, object=SimpleNamespace(chunk_bytes=4096)
    )
    found = warm._chunks(np.array(runs), region, nbytes_max)
    assert found.tolist() == chunks


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a\0"])
def test_a_name_that_is_no_part_of_a_files_is_refused(path: Path, name: str) -> None:
    with lm.open(path) as store, pytest.raises(ValueError, match="working set's name"):
        store.record(name)
    with pytest.raises(ValueError, match="working set's name"):
        lm.open(path, warm=name)
    with pytest.raises(TypeError):
        lm.open(path, warm=b"set")  # type: ignore[arg-type]
    assert os.listdir(path.parent) == [path.name]


def test_what_has_no_working_set_says_so(path: Path) -> None:
    for mode in ("w", "x"):
        with pytest.raises(ValueError, match="warm='set' is not for"):
            lm.open(path, mode, warm="set")  # type: ignore[arg-type]
    with lm.Store() as memory, pytest.raises(ValueError, match="has no file"):
        memory.record("set")
    store = lm.open(path)
    store.close()
    with pytest.raises(lm.ClosedError):
        store.record("set")


def test_a_relative_path_is_of_the_folder_it_was_opened_in(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(path.parent)
    with lm.open(path.name) as store:
        monkeypatch.chdir(tmp_path / "elsewhere")
        store.record("set")
    assert os.listdir() == []
    assert (path.parent / f"{path.name}.set.warm").exists()


READ_ONLY = """
import os, sys, lazymem as lm
path = sys.argv[1]
with lm.open(path) as store:
    a = store["a"]
    a[0, 0]
    store.record("set")
    before = open(path + ".set.warm").read()
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    a[500, 0]
    try:
        store.record("set")
    except PermissionError as exc:
        print(exc)
    assert open(path + ".set.warm").read() == before
    print(sorted(os.listdir(os.path.dirname(path))))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become nobody")
def test_a_folder_that_can_not_be_written_is_an_error(
    path: Path, tmp_path: Path, run_python: Callable[..., Any]
) -> None:
    folder = tmp_path / "read-only"
    folder.mkdir()
    path = path.rename(folder / "s.lzm")
    open_to_all(folder)
    done = run_python(READ_ONLY, path)
    assert done.returncode == 0, done.stderr
    error, names = done.stdout.splitlines()
    assert error == f"[Errno 13] Permission denied: '{record_file(path)}'"
    assert names == "['s.lzm', 's.lzm.set.warm']"


def test_a_store_closed_while_it_is_filled_gives_all_back(path: Path) -> None:
    record(path)
    gc.collect()
    regions = _engine.pager_stats()["regions_live"]
    store = lm.open(path, warm="set")
    with failing("read", HANG):
        a = store["a"]
        store.close()
    with pytest.raises(lm.ClosedError):
        a.sum()
    del a, store
    gc.collect()
    wait_until(lambda: _engine.pager_stats()["regions_live"] <= regions)


def test_filling_ends_with_the_last_view(path: Path) -> None:
    record(path)
    gc.collect()
    regions = _engine.pager_stats()["regions_live"]
    with lm.open(path, warm="set") as store:
        copies = _engine.pager_stats()["copies"]
        with failing("read", HANG):
            store["a"]
            gc.collect()
        wait_until(lambda: _engine.pager_stats()["regions_live"] <= regions)
        # Those that were begun, one a worker, were for nothing.
        assert _engine.pager_stats()["copies"] - copies < 40


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_children_forked_while_it_is_filled_read_right_data(path: Path) -> None:
    record(path)
    for mode in ("r", "c", "r+"):
        with lm.open(path, mode, warm="set") as store:
            a = store["a"]

            def is_right(a: Any = a, store: Any = store) -> bool:
                right = np.array_equal(a, A) and np.array_equal(store["b"], A[:100] + 1)
                stats = store.stats().warm
                return right and stats.touched == stats.sampled > 0

            children = [start_child(is_right) for _ in range(3)]
            assert [end_child(child) for child in children] == [0, 0, 0]
            np.testing.assert_array_equal(a, A)


def test_without_a_working_set_none_is_looked_for(path: Path) -> None:
    record_file(path).write_text("{")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with lm.open(path) as store:
            assert store["a"].residency().chunks_resident == 0
