# SPDX-License-Identifier: BSD-3-Clause
"""Can a store go back to each state that was kept, and tell what was different?"""

from __future__ import annotations

import errno
import json
import os
import threading
from concurrent.futures import Future
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazymem as lm
from lazymem import _engine, manifest
from lazymem.testing import HANG, failing
from tests.conftest import smooth, wait_until

pytestmark = pytest.mark.needs_uffd

CHUNK = 65536
A = smooth((1000, 1000))  # 62 chunks


@pytest.fixture
def path(tmp_path: Path) -> Path:
    arrays = {"a": A, "f": np.asfortranarray(A), "n": np.arange(10)}
    lm.save(tmp_path / "s.lzm", arrays, chunk_bytes=CHUNK, attrs={"by": "test"})
    return tmp_path / "s.lzm"


@pytest.fixture
def three(path: Path) -> Path:
    """Make three states besides the saved one: "one", "two" and one that is flushed."""
    with lm.open(path, "r+") as store:
        store["a"][0] = 1
        store["a"].attrs["state"] = 1
        store.snapshot("one", "the first")
        store["a"][0] = 2
        store["n"][3] = 2
        store["y"] = np.ones(1000)
        store.snapshot("two")
        store["a"][500] = 3
        del store["f"]
        store.flush()
    return path


def first_rows(store: lm.Store) -> list[float]:
    return [float(store["a"][row, 0]) for row in (0, 500)]


def rewrite_manifest(path: Path, **changes: Any) -> None:
    """Commit a manifest with other fields."""
    with lm.open(path, "r+") as store:
        assert store._workspace is not None
        content = {**json.loads(store._handle.manifest()), **changes}
        store._workspace._writer.commit(json.dumps(content).encode())


# ---- snapshots -----------------------------------------------------------------------


def test_a_snapshot_tells_what_it_is_and_the_log_repeats_it(path: Path) -> None:
    before = datetime.now(timezone.utc)
    with lm.open(path, "r+") as store:
        store["a"][::500] = 0  # two rows, in two chunks
        info = store.snapshot("one", "zeros")
        assert (info.sequence, info.name, info.message) == (2, "one", "zeros")
        assert (info.parent, info.chunks) == (1, 2)
        assert 0 < info.bytes_written < 2 * CHUNK
        assert before <= info.time <= datetime.now(timezone.utc)
        assert info.pause_seconds is not None
        assert info.seconds is not None
        assert 0 < info.pause_seconds < info.seconds < 10
        second = store.snapshot()
        assert (second.name, second.message, second.chunks) == (None, "", 0)
        log = store.log()
    assert lm.open(path).log() == log
    assert [entry.sequence for entry in log] == [1, 2, 3]
    assert [entry.parent for entry in log] == [None, 1, 2]
    assert [entry.name for entry in log] == [None, "one", None]
    assert log[1].time == info.time
    assert log[1].offset == info.offset
    assert log[1].seconds is None
    assert log[0].chunks == 62 + 62 + 1
    assert log[0].bytes_written == sum(
        lm.open(path, at=1).info(name).stored_bytes for name in ("a", "f", "n")
    )


def test_a_file_that_was_saved_at_once_is_its_first_snapshot(path: Path) -> None:
    with lm.open(path) as store:
        (only,) = store.log()
        assert (only.sequence, only.name, only.parent) == (1, None, None)
        assert only.offset == path.stat().st_size - 128
    lm.open(path, "w").close()
    assert lm.open(path).log() == []


def test_flushes_have_no_place_in_the_log(three: Path) -> None:
    with lm.open(three) as store:
        assert [entry.sequence for entry in store.log()] == [1, 2, 3]
        assert store.commit.sequence == 4
        assert first_rows(store) == [2, 3]
        with pytest.raises(lm.SnapshotNotFoundError, match="no snapshot 4"):
            lm.open(three, at=4)


def test_names_of_snapshots_are_unique_and_not_empty(three: Path) -> None:
    with lm.open(three, "r+") as store:
        with pytest.raises(ValueError, match="named 'one' exists"):
            store.snapshot("one")
        with pytest.raises(ValueError, match="must not be empty"):
            store.snapshot("")
        with pytest.raises(ValueError, match="surrogates"):
            store.snapshot("\ud800")
        for bad in ((3,), ("x", None)):
            with pytest.raises(TypeError, match="must be a str"):
                store.snapshot(*bad)  # type: ignore[call-overload]
        store["a"][0] = 7
        store.snapshot("three")
        assert [entry.name for entry in store.log()] == [None, "one", "two", "three"]


def test_progress_of_a_snapshot_ends_at_all_of_it(path: Path) -> None:
    steps: list[tuple[int, int]] = []
    with lm.open(path, "r+") as store:
        store["a"][:] = 1
        store.snapshot(progress=lambda done, total: steps.append((done, total)))
    assert steps[-1] == (62 * CHUNK, 62 * CHUNK)
    assert sorted(steps) == steps


# ---- in the background ---------------------------------------------------------------


def test_a_snapshot_in_the_background_has_what_was_there_when_it_began(
    path: Path,
) -> None:
    with lm.open(path, "r+") as store:
        a = store["a"]
        for k in range(20):
            a[:] = k
            future = store.snapshot(str(k), wait=False)
            assert isinstance(future, Future)
            a[::3] = -1  # some before it is stored, some after
            info = future.result(30)
            assert (info.name, future.cancel()) == (str(k), False)
        store.close(discard=True)
    for k in range(20):
        assert (lm.open(path, at=str(k))["a"] == k).all()


def test_other_operations_and_close_wait_for_a_snapshot(path: Path) -> None:
    store = lm.open(path, "r+")
    a = store["a"]
    a[:] = np.random.default_rng(1).random(A.shape)
    expected = a.copy()
    with failing("write", HANG):
        future = store.snapshot("one", wait=False)
        assert store.unsaved
        a[0] = 5
        store.attrs["late"] = True
        assert store["n"].tolist() == list(range(10))
        thread = threading.Thread(target=lambda: store.create("x", 5, "f8"))
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
        assert "x" not in store
    thread.join()
    assert "x" in store
    with pytest.warns(lm.LazyMemWarning, match="1 chunk of 'a', 'x', which is new"):
        store.close()
    assert future.done()
    with lm.open(path) as store:
        np.testing.assert_array_equal(store["a"], expected)
        assert (list(store), "late" in store.attrs) == (["a", "f", "n"], False)


def test_a_snapshot_that_fails_in_the_background_tells_the_future(path: Path) -> None:
    with lm.open(path, "r+") as store:
        store["a"][:] = 3
        with failing("sync", errno.EIO):
            future = store.snapshot("one", wait=False)
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                future.result(30)
        assert store.unsaved
        assert store.stats().arrays["a"].chunks_dirty == 62
        assert store.log() == lm.open(path).log()
        store.snapshot("one")
    assert (lm.open(path, at="one")["a"] == 3).all()


@pytest.mark.parametrize("point", ["write", "sync"])
def test_a_snapshot_that_fails_can_be_taken_again(path: Path, point: Any) -> None:
    with lm.open(path, "r+") as store:
        a = store["a"]
        a[:] = np.random.default_rng(2).random(A.shape)
        expected = a.copy()
        for skip in range(100):
            try:
                with failing(point, errno.ENOSPC, skip=skip):
                    store.snapshot("one")
            except OSError as exc:
                assert exc.errno == errno.ENOSPC  # noqa: PT017
                assert store.unsaved
                # Of a commit record that may not be on the disk nobody can tell.
                if point == "write":
                    np.testing.assert_array_equal(lm.open(path)["a"], A)
                np.testing.assert_array_equal(a, expected)
                a[skip] = expected[skip] = skip
            else:
                break
        assert skip >= (2 if point == "sync" else 62)
        assert not store.unsaved
    np.testing.assert_array_equal(lm.open(path, at="one")["a"], expected)


def test_what_is_interrupted_can_be_done_again(path: Path) -> None:
    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    with lm.open(path, "r+") as store:
        a = store["a"]
        a[:] = 5
        for action in (
            lambda: store.snapshot("five", progress=interrupt),
            lambda: store.flush(progress=interrupt),
            lambda: store.put("x", A, progress=interrupt),
        ):
            with pytest.raises(KeyboardInterrupt):
                action()
            assert store.stats().arrays["a"].chunks_dirty == 62
            assert "x" not in store
            np.testing.assert_array_equal(lm.open(path)["a"], A)
        store.put("x", A)
        store.snapshot("five")
    with lm.open(path, at="five") as then:
        assert (then["a"] == 5).all()
        np.testing.assert_array_equal(then["x"], A)


# ---- going back ----------------------------------------------------------------------


def test_restore_shows_the_old_state_in_the_arrays_that_are_held(three: Path) -> None:
    with lm.open(three, "r+") as store:
        a, view = store["a"], store["a"][0]
        assert first_rows(store) == [2, 3]
        info = store.restore("one")
        assert (info.snapshot.name, info.chunks_dropped) == ("one", 2)
        assert (info.arrays_closed, info.seconds > 0) == ((), True)
        assert store["a"] is a
        assert (view[5], a[500, 0]) == (1, A[500, 0])
        assert list(store) == ["a", "f", "n"]
        assert a.attrs == {"state": 1}
        assert not store.unsaved
        store.restore(1)
        np.testing.assert_array_equal(a, A)
        np.testing.assert_array_equal(store["f"], A)
        assert (a.attrs, store.attrs) == ({}, {"by": "test"})
        assert first_rows(lm.open(three)) == [2, 3]  # the file is as it was
    assert first_rows(lm.open(three)) == [2, 3]


def test_restore_costs_what_differs(three: Path) -> None:
    with lm.open(three, "r+") as store:
        a = store["a"].load()
        fills = store.stats().arrays["a"].fills
        assert store.restore("two").chunks_dropped == 1
        a.load()
        assert store.stats().arrays["a"].fills == fills + 1


def test_restore_refuses_to_lose_changes_unless_told_to(three: Path) -> None:
    with lm.open(three, "r+") as store:
        store["a"][7] = 7
        with pytest.raises(lm.UnsavedChangesError, match="lose 1 chunk of 'a'"):
            store.restore("one")
        assert store["a"][7, 7] == 7
        store.restore("one", discard=True)
        assert store["a"][7, 7] == A[7, 7]
        store["y"] = [1]
        with pytest.raises(lm.UnsavedChangesError, match="'y', which is new"):
            store.restore("one")
        store.restore("one", discard=True)
        assert "y" not in store
        with pytest.raises(lm.SnapshotNotFoundError):
            store.restore("none")


def test_what_comes_after_a_restore_goes_on_from_there(three: Path) -> None:
    with lm.open(three, "r+") as store:
        store.restore("one")
        store["a"][500] = 5
        branch = store.snapshot("branch")
        assert (branch.parent, branch.chunks) == (2, 1)
        store.restore("two")
        assert store.flush().chunks == 0
    with lm.open(three, "r+") as store:
        assert first_rows(store) == [2, float(A[500, 0])]
        assert store["y"].sum() == 1000
        assert store.snapshot("more").parent == 3
        assert [entry.parent for entry in store.log()] == [None, 1, 2, 2, 3]
    assert first_rows(lm.open(three, at="branch")) == [1, 5]


def test_restore_across_other_forms_closes_what_does_not_fit(path: Path) -> None:
    with lm.open(path, "r+") as store:
        store.snapshot("before")
        store["n"] = np.arange(20)
        store["f"] = A
        store["new"] = [1]
        store.create("empty", (0, 3), "f8")
        held = {name: store[name] for name in ("a", "f", "n", "new", "empty")}
        store.snapshot("after")
        info = store.restore("before")
        assert sorted(info.arrays_closed) == ["empty", "f", "n", "new"]
        for name in ("f", "n", "new"):
            with pytest.raises(lm.ClosedError, match="restore"):
                held[name].sum()
        assert store["a"] is held["a"]
        assert store["n"].tolist() == list(range(10))
        assert store["f"].flags.f_contiguous
        with pytest.raises(lm.ObjectNotFoundError):
            store["new"]
        store.restore("after")
        assert store["n"].tolist() == list(range(20))
        assert store["new"].tolist() == [1]


def test_an_object_put_again_in_the_same_form_is_restored_in_place(path: Path) -> None:
    with lm.open(path, "r+") as store:
        store.put("a", A * 2, chunk_bytes=CHUNK, shuffle=store.info("a").shuffle)
        a = store["a"]
        store.snapshot()
        assert store.restore(1).arrays_closed == ()
        np.testing.assert_array_equal(a, A)


def test_restore_of_a_state_that_can_not_be_read_leaves_all_as_it_was(
    three: Path,
) -> None:
    with lm.open(three, "r+") as store:
        a = store["a"]
        assert first_rows(store) == [2, 3]
        with failing("read", errno.EIO), pytest.raises(lm.FillError):
            store.restore("one")
        assert first_rows(store) == [2, 3]
        assert store["a"] is a
        store.restore("one")
        assert first_rows(store)[0] == 1


def test_an_array_whose_index_can_not_be_read_is_closed_by_restore(three: Path) -> None:
    with lm.open(three, "r+") as store:
        a = store["a"]
        with failing("read", errno.EIO, skip=2), pytest.raises(lm.FillError):
            store.restore("one")  # commit record and manifest can be read
        with pytest.raises(lm.ClosedError, match="restore"):
            a.sum()
        assert first_rows(store)[0] == 1
        assert not store.unsaved


# ---- earlier states ------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["r", "c"])
def test_an_earlier_state_opens_by_name_number_and_info(three: Path, mode: Any) -> None:
    log = lm.open(three).log()
    for at in ("one", 2, log[1]):
        with lm.open(three, mode, at=at) as store:
            assert first_rows(store) == [1, A[500, 0]]
            assert list(store) == ["a", "f", "n"]
            assert store.commit.sequence == 2
            assert store.log() == log
            assert store.verify() == []
            data = b"".join(bytes(block) for block in store.blocks("a"))
            assert np.frombuffer(data, "f4")[0] == 1
            assert store["a"].flags.writeable == (mode == "c")
            assert not store.unsaved


def test_an_earlier_state_can_be_read_while_the_store_is_written(three: Path) -> None:
    with lm.open(three, at="one") as old, lm.open(three, "r+") as store:
        store["a"][:] = 9
        store.snapshot("nine")
        assert first_rows(old) == [1, A[500, 0]]
        assert first_rows(lm.open(three, at="two")) == [2, A[500, 0]]


def test_a_snapshot_that_is_not_there_says_which_are(three: Path) -> None:
    with pytest.raises(lm.SnapshotNotFoundError, match="it has 1, 'one', 'two'") as e:
        lm.open(three, at="tree")
    assert isinstance(e.value, KeyError)
    other = lm.SnapshotInfo(2, "one", "", datetime.now(timezone.utc), 1, 0, 0, 4096)
    for missing in (0, 7, other, "2"):
        with pytest.raises(lm.SnapshotNotFoundError):
            lm.open(three, at=missing)
    for bad in (True, 1.0, b"one"):
        with pytest.raises(TypeError, match="told by name, number"):
            lm.open(three, at=bad)  # type: ignore[arg-type]
    lm.open(three, "w").close()
    with pytest.raises(lm.SnapshotNotFoundError, match="it has none"):
        lm.open(three, at="one")


def test_a_deleted_snapshot_is_forgotten_and_the_state_stays(three: Path) -> None:
    with lm.open(three, "r+") as store:
        store["a"][9] = 9  # not saved, and not to be
        store.delete_snapshot("one")
        assert [(i.sequence, i.parent) for i in store.log()] == [(1, None), (3, 1)]
        assert store.unsaved
        assert first_rows(lm.open(three)) == [2, 3]
        assert lm.open(three)["a"][9, 0] == A[9, 0]
        with pytest.raises(lm.SnapshotNotFoundError):
            store.delete_snapshot("one")
        store.snapshot("one")  # the name is free
        assert store.log()[-1].parent == 3
        store.delete_snapshot(store.log()[-1])  # the last commit is one like others
        assert not store.unsaved
        assert store.snapshot("last").parent == 3
    assert lm.open(three, at="last")["a"][9, 0] == 9
    assert [i.name for i in lm.open(three).log()] == [None, "two", "last"]


def test_a_snapshot_that_was_restored_can_be_deleted(three: Path) -> None:
    with lm.open(three, "r+") as store:
        store.restore("one")
        store.delete_snapshot("one")
        assert not store.unsaved
        assert first_rows(lm.open(three)) == [2, 3]
        info = store.snapshot("again")
        assert info.parent == 1
    assert first_rows(lm.open(three))[0] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"history": 5},
        {"history": [5]},
        {"history": [{"sequence": 1}]},
        {"history": [{"sequence": -1}]},
        {"snapshot": "x"},
        {"snapshot": {"name": 5, "message": "", "parent": None, "chunks": 0}},
    ],
    ids=str,
)
def test_a_history_that_makes_no_sense_is_a_format_error(
    path: Path, changes: Any
) -> None:
    rewrite_manifest(path, **changes)
    with lm.open(path) as store:
        np.testing.assert_array_equal(store["a"], A)
        with pytest.raises(lm.FormatError, match="bad history"):
            store.log()
    with pytest.raises(lm.FormatError, match="bad history"):
        lm.open(path, "r+")
    with pytest.raises(lm.FormatError, match="bad history"):
        lm.open(path, at=1)


def test_a_history_that_points_elsewhere_is_an_error(path: Path) -> None:
    (entry,) = lm.open(path).log()
    about = {"name": "x", "message": "", "parent": None, "chunks": 0, "bytes": 0}
    about |= {"sequence": 1, "time_ns": 0, "offset": entry.offset - 64}
    rewrite_manifest(path, snapshot=None, history=[about], parent=1)
    with pytest.raises(lm.FormatError):
        lm.open(path, at="x")
    rewrite_manifest(path, snapshot=None, history=[], parent="x")
    with pytest.raises(lm.FormatError, match="bad parent"):
        lm.open(path, "r+")


# ---- differences ---------------------------------------------------------------------


def test_diff_tells_what_was_added_removed_and_changed(three: Path) -> None:
    with lm.open(three) as store:
        diff = store.diff("one", "two")
        assert (diff.a, diff.b, bool(diff)) == (2, 3, True)
        assert (diff.added, diff.removed, diff.attrs) == (("y",), (), False)
        assert set(diff.changed) == {"a", "n"}
        assert diff.changed["a"] == lm.ObjectDiff(False, False, 1, 0, ((0, 1),))
        assert diff.changed["n"].ranges == ((3, 4),)
        assert store.diff("two", "one").removed == ("y",)
        assert store.diff(1, "one").changed["a"].attrs
        assert not store.diff("one", "one")
        last = store.diff("two")
        assert (last.removed, last.changed["a"].ranges) == (("f",), ((500, 501),))


def test_diff_counts_rows_along_the_slowest_axis(path: Path) -> None:
    with lm.open(path, "r+") as store:
        a, f = store["a"], store["f"]
        store.create("scalar", (), "f8")
        store.snapshot("before")
        a[[3, 4, 5, 700], 1] = -1
        a[999] = -1
        f[:, 20:23] = -1
        f[5, 30] = -1
        store["scalar"][()] = 1
        store.attrs["x"] = 1
        store.snapshot("after")
        diff = store.diff("before", "after")
        assert diff.changed["a"].ranges == ((3, 6), (700, 701), (999, 1000))
        assert diff.changed["a"].axis == 0
        assert diff.changed["f"].ranges == ((20, 23), (30, 31))
        assert diff.changed["f"].axis == 1
        assert diff.changed["scalar"].ranges == ((0, 1),)
        assert diff.changed["scalar"].axis is None
        assert diff.attrs


def test_diff_compares_bytes_and_not_where_they_are_stored(path: Path) -> None:
    with lm.open(path, "r+") as store:
        store.snapshot("before")
        changed = A.copy()
        changed[10:20] += 1
        store.put("a", changed, chunk_bytes=4096, codec="lz4", shuffle=False)
        store["n"] = np.arange(10)
        store["f"] = A  # order C now
        store.snapshot("after")
        diff = store.diff("before", "after")
        assert set(diff.changed) == {"a", "f"}
        assert diff.changed["a"].ranges == ((10, 20),)
        assert diff.changed["a"].chunks == 11
        assert diff.changed["f"].is_reshaped


def test_diff_of_damage_is_an_error(three: Path) -> None:
    with lm.open(three) as store:
        with failing("read", errno.EIO, skip=4), pytest.raises(lm.FillError):
            store.diff("one", "two")
        store.diff("one", "two")


# ---- what is written -----------------------------------------------------------------


def test_the_file_grows_by_what_changed(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    a = rng.integers(0, 256, 64 << 20, dtype="u1")
    path = tmp_path / "s.lzm"
    lm.save(path, a=a, chunk_bytes=CHUNK)
    with lm.open(path, "r+") as store:
        before = path.stat().st_size
        a[:: 100 * CHUNK] ^= 1
        store["a"][:: 100 * CHUNK] ^= 1
        info = store.snapshot()
        assert info.chunks == 11
        grown = path.stat().st_size - before
        assert info.bytes_written <= grown < info.bytes_written * 1.01 + 4096
    np.testing.assert_array_equal(lm.open(path)["a"], a)


def test_the_stored_bytes_of_an_object_are_those_of_its_state(tmp_path: Path) -> None:
    path = tmp_path / "r.lzm"
    lm.save(path, a=np.random.default_rng(1).random(100_000), codec="none")
    with lm.open(path, "r+") as store:
        first = store.info("a").stored_bytes
        for _ in range(3):
            store["a"][:5000] += 1
            store.flush()
        assert store.info("a").stored_bytes == first
        store["a"][:] = 0
        store.flush()
        assert store.info("a").stored_bytes == 0


def test_a_manifest_says_how_an_object_is_split(tmp_path: Path) -> None:
    info = manifest.ObjectInfo(
        "x", (1,), np.dtype("u1"), "C", 4096, "lz4", 1, 0, None, 0, {}, is_split=False
    )
    assert info.to_json()["split"] is False
    assert not manifest.object_info("", "x", info.to_json()).is_split
    with pytest.raises(lm.FormatError, match="neither true nor false"):
        manifest.object_info("", "x", {**info.to_json(), "split": 1})


def test_commits_of_a_store_in_use_are_told(path: Path) -> None:
    with lm.open(path, "r+") as store:
        assert store.commit.sequence == 1
        store["n"] = [1]
        store.snapshot()
        assert store.commit.sequence == 2
        assert store.commit.file_bytes == path.stat().st_size
        assert _engine.StoreHandle(str(path)).commit.sequence == 2
    wait_until(lambda: True)
