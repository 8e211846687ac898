# SPDX-License-Identifier: BSD-3-Clause
"""Can a store be changed in place, and is the file what it was until it is told?"""

from __future__ import annotations

import errno
import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazymem as lm
from lazymem.testing import failing
from tests.conftest import smooth, wait_until
from tests.reference_reader import read

CHUNK = 65536
A = smooth((1000, 1000))  # 62 chunks


@pytest.fixture
def path(tmp_path: Path) -> Path:
    arrays = {"a": A, "f": np.asfortranarray(A), "n": np.arange(10)}
    lm.save(tmp_path / "s.lzm", arrays, chunk_bytes=CHUNK, attrs={"by": "test"})
    return tmp_path / "s.lzm"


def content(path: Path) -> dict[str, Any]:
    """Return what another program reads in the file."""
    found: dict[str, Any] = read(path)[0]
    return found


# ---- ways to open --------------------------------------------------------------------


def test_mode_w_replaces_what_is_there_at_once(path: Path) -> None:
    path.chmod(0o640)
    with lm.open(path) as before, lm.open(path, "w") as store:
        assert (store.mode, list(store), store.path) == ("r+", [], str(path))
        assert list(lm.open(path)) == []
        np.testing.assert_array_equal(before["a"], A)
    assert path.stat().st_mode & 0o777 == 0o640
    assert [file.name for file in path.parent.iterdir()] == ["s.lzm"]


def test_mode_x_makes_a_store_and_replaces_none(path: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match=r"s\.lzm"):
        lm.open(path, "x")
    np.testing.assert_array_equal(lm.open(path)["a"], A)
    with lm.open(tmp_path / "new.lzm", "x") as store:
        store["y"] = [1, 2, 3]
        store.flush()
    assert content(tmp_path / "new.lzm")["y"].tolist() == [1, 2, 3]
    with pytest.raises(FileNotFoundError):
        lm.open(tmp_path / "none" / "new.lzm", "x")


def test_mode_x_works_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "no hard links")

    monkeypatch.setattr(os, "link", refuse)
    lm.open(tmp_path / "x.lzm", "x").close()
    assert list(lm.open(tmp_path / "x.lzm")) == []
    assert [file.name for file in tmp_path.iterdir()] == ["x.lzm"]


def test_mode_w_follows_a_symbolic_link(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(path)
    lm.open(tmp_path / "link", "w").close()
    assert (tmp_path / "link").is_symlink()
    assert list(lm.open(path)) == []


def test_a_failed_mode_w_leaves_the_old_file_alone(path: Path) -> None:
    with failing("sync", errno.EIO), pytest.raises(OSError, match=r"s\.lzm"):
        lm.open(path, "w")
    assert list(content(path)) == ["a", "f", "n"]
    assert len(list(path.parent.iterdir())) == 1


def test_writing_needs_a_mode_that_allows_it(path: Path) -> None:
    for mode in ("r", "c"):
        with lm.open(path, mode) as store:  # type: ignore[arg-type]
            assert not store.unsaved
            actions: list[Callable[[], Any]] = [
                lambda: store.create("x", 3, "f8"),
                lambda: store.__setitem__("x", [1]),
                lambda: store.__delitem__("a"),
                lambda: store.snapshot("x"),
                lambda: store.flush(),
                lambda: store.restore(1),
                lambda: store.delete_snapshot(1),
                lambda: store.attrs.__setitem__("by", 1),
                lambda: store["a"].attrs.__setitem__("unit", "K"),
            ]
            for action in actions:
                with pytest.raises(ValueError, match=r"open it with mode 'r\+'"):
                    action()
    with pytest.raises(ValueError, match="for the modes 'r' and 'c'"):
        lm.open(path, "r+", at=1)


# ---- one writer at a time ------------------------------------------------------------


def test_one_writer_at_a_time_and_the_error_says_which(
    path: Path, run_python: Any
) -> None:
    with lm.open(path, "r+"):
        for action in (
            lambda: lm.open(path, "r+"),
            lambda: lm.open(path, "w"),
            lambda: lm.save(path, x=1),
        ):
            with pytest.raises(lm.LockError, match="this process has it") as caught:
                action()
            assert caught.value.pid == os.getpid()
            assert isinstance(caught.value, OSError)
        found = run_python(
            "import sys, lazymem as lm\n"
            "try: lm.open(sys.argv[1], 'r+')\n"
            "except lm.LockError as exc: print(exc.pid, exc)\n",
            path,
        )
        assert found.stdout.startswith(f"{os.getpid()} {path}: process {os.getpid()} (")
        assert "pytest" in found.stdout
        with lm.open(path) as reader:
            np.testing.assert_array_equal(reader["a"], A)
    assert len(list(path.parent.glob("*.lzm*"))) == 1
    lm.open(path, "r+").close()


def test_a_holder_that_is_not_known_is_another_process(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lm.open(path, "r+"):
        monkeypatch.setattr(lm.files, "_lock_holder", lambda _: None)
        with pytest.raises(lm.LockError, match="another process has it open"):
            lm.open(path, "r+")


def test_a_closed_store_lets_the_next_writer_in_though_views_live(path: Path) -> None:
    store = lm.open(path, "r+")
    a, view = store["a"], store["f"][2:]
    store.close()
    with lm.open(path, "r+") as again:
        np.testing.assert_array_equal(again["a"], A)
        with pytest.raises(lm.ClosedError):
            view.sum()
        with pytest.raises(lm.ClosedError):
            a[0, 0] = 1


def test_a_store_that_nobody_closes_warns_and_lets_the_next_one_in(path: Path) -> None:
    store = lm.open(path, "r+")
    store["n"][3] = 7
    warns = pytest.warns(lm.LazyMemWarning, match="without saving 1 chunk of 'n'")
    with warns:
        del store
        gc.collect()
    with lm.open(path, "r+") as store:
        assert store["n"].tolist() == list(range(10))


# ---- writing -------------------------------------------------------------------------


@pytest.mark.needs_uffd
def test_what_is_written_is_in_the_file_after_a_flush_and_not_before(
    path: Path,
) -> None:
    with lm.open(path, "r+") as store:
        a, f = store["a"], store["f"]
        a[500] = -1
        f[:, 7] += 1
        np.multiply(a[1], 2, out=a[1])
        assert store.unsaved
        np.testing.assert_array_equal(content(path)["a"], A)
        np.testing.assert_array_equal(lm.open(path)["f"], A)
        info = store.flush()
        assert not store.unsaved
        expected_a, expected_f = A.copy(), A.copy()
        expected_a[500], expected_a[1] = -1, A[1] * 2
        expected_f[:, 7] += 1
        for found in (store, lm.open(path), content(path)):
            np.testing.assert_array_equal(found["a"], expected_a)
            np.testing.assert_array_equal(found["f"], expected_f)
        assert info.sequence == 2
        assert info.chunks == 3  # a row of each kind is in one chunk
        assert 0 < info.bytes_written < 3 * CHUNK
        assert store.flush().sequence == 2  # nothing to do
        a[2] = 0
        assert store.flush().sequence == 3
    assert content(path)["a"][2].tolist() == [0] * 1000


@pytest.mark.needs_uffd
def test_what_is_written_as_it_was_is_not_stored_again(path: Path) -> None:
    with lm.open(path, "r+") as store:
        a = store["a"]
        a[:] = A
        assert store.stats().arrays["a"].chunks_dirty == 62
        assert store.unsaved
        info = store.flush()
        assert (info.chunks, info.bytes_written) == (0, 0)
        a[:] = 0
        assert store.flush().chunks == 62
        assert store.info("a").index is None
        assert content(path)["a"].sum() == 0


@pytest.mark.needs_uffd
def test_closing_discards_what_is_not_saved_and_warns(path: Path) -> None:
    store = lm.open(path, "r+")
    store["a"][[3, 900]] = 0
    store["new"] = [1]
    del store["n"]
    store["f"].attrs["unit"] = "K"
    store.attrs["by"] = "me"
    with pytest.warns(lm.LazyMemWarning) as caught:
        store.close()
    text = str(caught[0].message)
    assert caught[0].filename == __file__
    for part in (
        "2 chunks of 'a'",
        "'new', which is new",
        "that 'n' was deleted",
        "attributes of 'f'",
        "attributes of the store",
    ):
        assert part in text
    assert list(content(path)) == ["a", "f", "n"]
    with pytest.warns(lm.LazyMemWarning, match="interrupted or discarded"):
        store = lm.open(path, "r+")  # of "new" something is there
    with store:
        store["a"][3] = 0
        store.close(discard=True)
        assert not store.unsaved
    np.testing.assert_array_equal(content(path)["a"], A)


@pytest.mark.needs_uffd
def test_arrays_of_a_writable_store_are_kept_with_what_was_written(path: Path) -> None:
    with lm.open(path, "r+") as store:
        store["a"][5] = 5
        gc.collect()
        assert store["a"][5, 0] == 5
        assert store["a"] is store["a"]
        store.close(discard=True)


@pytest.mark.needs_uffd
def test_evict_gives_back_what_is_in_the_file_and_keeps_what_is_not(
    path: Path,
) -> None:
    with lm.open(path, "r+") as store:
        a = store["a"].load()
        a[500] = 1
        assert a.evict() == 61 * CHUNK - (62 * CHUNK - a.nbytes)
        assert a.residency().chunks_resident == 1
        assert a[500, 0] == 1
        store.flush()
        assert a.evict() == CHUNK
        assert a[500].tolist() == [1] * 1000


@pytest.mark.needs_uffd
def test_stats_tell_what_was_written(path: Path) -> None:
    with lm.open(path, "r+") as store:
        a = store["a"]
        a[0] += 1
        a[1] += 1
        a[500] += 1
        stats = store.stats().arrays["a"]
        assert (stats.chunks_dirty, stats.write_faults >= 1) == (2, True)
        store.flush()
        assert store.stats().arrays["a"].chunks_dirty == 0


@pytest.mark.needs_uffd
def test_where_a_quarter_is_written_the_rest_is_let_be_written(tmp_path: Path) -> None:
    with lm.Store() as store:
        area = (2 << 20) // CHUNK
        a = store.create("a", (2 * area, CHUNK), "u1", chunk_bytes=CHUNK)
        a[...] = 1
        store.flush()
        before = store.stats().arrays["a"].write_faults
        scattered = np.random.default_rng(1).permutation(area // 2) * 2

        def write(rows: Any) -> tuple[int, int]:
            for row in rows:
                a[row, 5] = 2
            stats = store.stats().arrays["a"]
            return stats.chunks_dirty, stats.write_faults - before

        assert write(scattered[: area // 4 - 1]) == (area // 4 - 1,) * 2
        assert write(scattered[area // 4 - 1 : area // 4]) == (area, area // 4)
        assert write(range(area)) == (area, area // 4)
        a[:] = 1
        a[7] = 3
        assert store.flush().chunks == 1


# ---- create, put, delete -------------------------------------------------------------


@pytest.mark.needs_uffd
@pytest.mark.parametrize("order", ["C", "F"])
def test_create_gives_zeros_that_can_be_written(path: Path, order: Any) -> None:
    with lm.open(path, "r+") as store:
        x = store.create("x", (300, 400), "f4", order=order, attrs={"unit": "K"})
        assert (x.shape, x.dtype, x.sum()) == ((300, 400), np.float32, 0)
        assert (x.flags.c_contiguous, x.attrs["unit"]) == (order == "C", "K")
        x[17, 3:9] = 2
        assert "x" not in lm.open(path)
        store.flush()
        assert content(path)["x"].sum() == 12
        info = lm.open(path).info("x")
        assert (info.order, info.codec, info.shuffle) == (order, "zstd", 4)
        assert info.chunk_bytes == 128 << 10


@pytest.mark.needs_uffd
def test_create_takes_any_dtype_shape_and_encoding(path: Path) -> None:
    made = {
        "scalar": ((), "f8", {}, 8),
        "empty": ((0, 5), "f8", {}, 8),
        "complex": (7, "c16", {"codec": "lz4", "level": 5}, 8),
        "record": ((3,), [("a", "i4"), ("b", "S3")], {"chunk_bytes": 4096}, 0),
        "byte": ((9,), "u1", {}, 0),
        "plain": ((9,), "f8", {"codec": "none"}, 0),
        "asked": ((9,), "f8", {"shuffle": False}, 0),
        "huge": (2**44, "i2", {}, 2),
    }
    with lm.open(path, "r+") as store:
        for name, (shape, dtype, encoding, _) in made.items():
            x = store.create(name, shape, dtype, **encoding)
            if x.size:
                x.reshape(-1)[-1] = 1
        store.snapshot()
    with lm.open(path) as store:
        for name, (_, dtype, encoding, shuffle) in made.items():
            info = store.info(name)
            assert info.dtype == np.dtype(dtype)
            assert info.shuffle == shuffle, name
            for key, value in encoding.items():
                assert getattr(info, key) == value
            if store[name].size:
                last = store[name].reshape(-1)[-1]
                assert last == np.ones(1, dtype)[0]


def test_create_refuses_what_can_not_be(path: Path) -> None:
    with lm.open(path, "r+") as store:
        for arguments, kind, text in (
            (("a", 3, "f8"), ValueError, "'a' exists"),
            (("", 3, "f8"), ValueError, "empty"),
            ((5, 3, "f8"), TypeError, "must be a str"),
            (("\ud800", 3, "f8"), ValueError, "surrogates"),
            (("x", -1, "f8"), ValueError, "can't be stored"),
            (("x", 2**62, "f8"), ValueError, "can't be stored"),
            (("x", 3, "O"), TypeError, "Python objects"),
        ):
            with pytest.raises(kind, match=text):
                store.create(*arguments)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="must be JSON"):
            store.create("x", 3, "f8", attrs={"x": np.nan})
        with pytest.raises(ValueError, match="codec must be"):
            store.create("x", 3, "f8", codec="gzip")
        assert list(store) == ["a", "f", "n"]
        assert not store.unsaved


def test_put_takes_what_save_takes(path: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", A)
    mapped = np.memmap(tmp_path / "m", "u1", "w+", shape=(200_000,))
    mapped[:] = np.arange(200_000)
    values = {
        "list": [1, 2, 3],
        "scalar": 7.5,
        "path": tmp_path / "x.npy",
        "memmap": mapped,
        "strided": A[::3, ::-2],
        "fortran": np.asfortranarray(A),
        "empty": np.empty((3, 0)),
        "record": np.ones(5, [("a", "i4"), ("b", "S3")]),
        "lazy": lm.open(path)["a"],
    }
    with lm.open(path, "r+") as store:
        for name, value in values.items():
            store[name] = value
            expected = A if name == "path" else np.asarray(value)
            assert store[name].dtype == expected.dtype
            np.testing.assert_array_equal(store[name], expected)
        assert not set(values) & set(lm.open(path))
        info = store.flush()
        assert info.bytes_written > 10_000
    found = content(path)
    for name, value in values.items():
        expected = A if name == "path" else np.asarray(value)
        np.testing.assert_array_equal(found[name], expected)
    with lm.open(path, "r+") as store:
        for bad in ([object()], np.array(["a", None])):
            with pytest.raises(TypeError, match="Python objects"):
                store["bad"] = bad
        with pytest.raises(ValueError, match="empty"):
            store[""] = 1
        assert "bad" not in store


def test_put_with_options_stores_as_they_say(path: Path) -> None:
    done = []

    def progress(*steps: int) -> None:
        done.append(steps)

    with lm.open(path, "r+") as store:
        options: dict[str, Any] = {"codec": "lz4", "level": 3, "shuffle": 3}
        store.put("a", A, chunk_bytes=4096, **options, attrs={"unit": "K"})
        assert {key: getattr(store.info("a"), key) for key in options} == options
        assert (store.info("a").chunk_bytes, store["a"].attrs) == (4096, {"unit": "K"})
        store.put("a", A, level=5, progress=progress)
        assert (store.info("a").codec, store.info("a").level) == ("lz4", 5)
        store.put("a", A, codec="zstd")
        assert (store.info("a").codec, store.info("a").level) == ("zstd", 3)
        assert done[-1] == (A.nbytes, A.nbytes)
        np.testing.assert_array_equal(store["a"], A)
        with pytest.raises(ValueError, match="level of zstd"):
            store.put("a", A, level=50)
        store.flush()


@pytest.mark.needs_uffd
def test_an_operation_in_place_on_an_object_leaves_its_array_open(path: Path) -> None:
    with lm.open(path, "r+") as store:
        a = store["a"]
        store["a"] *= 2
        np.testing.assert_array_equal(a, A * 2)
        assert store["a"] is a
        with pytest.raises(TypeError):
            store["new"] = None
        store.snapshot()
    np.testing.assert_array_equal(content(path)["a"], A * 2)


def test_put_replaces_an_array_which_may_be_its_own_source(path: Path) -> None:
    with lm.open(path, "r+") as store:
        store["a"].attrs["unit"] = "K"
        store.create("y", 10, "f8", codec="lz4", level=4)[:] = np.arange(10)
        a, y = store["a"], store["y"]
        a[3] = 3
        store["a"] = a[::-1]
        store["y"] = y * 2
        expected = A.copy()
        expected[3] = 3
        np.testing.assert_array_equal(store["a"], expected[::-1])
        assert store["y"].tolist() == list(range(0, 20, 2))
        assert dict(store["a"].attrs) == {}
        assert (store.info("y").codec, store.info("y").level) == ("lz4", 4)
        assert list(store) == ["a", "f", "n", "y"]
        with pytest.raises(lm.ClosedError, match="another array was assigned"):
            a[0, 0]
        with pytest.raises(lm.ClosedError, match=r"take store\['y'\] again"):
            y.sum()
        with pytest.raises(lm.ClosedError, match="left the store"):
            dict(a.attrs)
        store["a"][0] = 0
        store.snapshot()
        expected[-1] = 0
        np.testing.assert_array_equal(content(path)["a"], expected[::-1])


@pytest.mark.needs_uffd
def test_put_of_what_can_not_be_read_changes_nothing(path: Path) -> None:
    with lm.open(path) as source, lm.open(path, "r+") as store:
        held = store["a"]
        with failing("read", errno.EIO), pytest.raises(lm.FillError):
            store["a"] = source["f"]
        assert not store.unsaved
        np.testing.assert_array_equal(held, A)
        store["a"] = source["f"]
        assert store.unsaved
        store.flush()


def test_delete_takes_the_name_and_the_memory(path: Path) -> None:
    with lm.open(path, "r+") as store:
        a = store["a"]
        del store["a"]
        assert list(store) == ["f", "n"]
        if lm._engine.has_pager():
            for touch in (lambda: a[0, 0], lambda: a.load(), a.prefetch):
                with pytest.raises(lm.ClosedError, match="the object was deleted"):
                    touch()
        with pytest.raises(lm.ObjectNotFoundError, match="no object 'a'"):
            store["a"]
        with pytest.raises(lm.ObjectNotFoundError):
            del store["a"]
        assert "a" in lm.open(path)
        store["a"] = [1]
        store.flush()
    assert list(content(path)) == ["f", "n", "a"]


def test_a_full_disk_is_an_error_and_the_store_goes_on(path: Path) -> None:
    with lm.open(path, "r+") as store:
        with failing("write", errno.ENOSPC), pytest.raises(OSError, match="space") as e:
            store["x"] = A
        assert (e.value.errno, e.value.filename) == (errno.ENOSPC, str(path))
        assert "x" not in store
        store["x"] = A
        with failing("sync", errno.EIO), pytest.raises(OSError, match="error"):
            store.flush()
        assert store.unsaved
        store.flush()
        assert not store.unsaved
    np.testing.assert_array_equal(content(path)["x"], A)


# ---- attributes ----------------------------------------------------------------------


def test_attributes_are_checked_and_saved(path: Path) -> None:
    with lm.open(path, "r+") as store:
        a = store["a"]
        a.attrs["unit"] = "K"
        a.attrs["levels"] = (1, 2)
        a[3:].attrs["more"] = None
        store.attrs.update(by="me", at={"x": [1.5]})
        del a.attrs["more"]
        a.attrs["levels"].append(3)  # a copy
        assert dict(a.attrs) == {"unit": "K", "levels": [1, 2]}
        assert repr(store.attrs) == "{'by': 'me', 'at': {'x': [1.5]}}"
        assert "unit" in a.attrs
        assert len(a.attrs) == 2
        for key, value in (("x", object()), ("x", np.inf), (3, 1)):
            with pytest.raises(TypeError, match="attrs of object 'a' must be"):
                a.attrs[key] = value  # type: ignore[index]
        with pytest.raises(KeyError):
            del a.attrs["x"]
        assert lm.open(path).attrs == {"by": "test"}
        assert store.info("a").attrs == {"unit": "K", "levels": [1, 2]}
        store.flush()
        np.testing.assert_array_equal(a, A)
    with lm.open(path) as store:
        assert store["a"].attrs == {"unit": "K", "levels": [1, 2]}
        assert store.attrs == {"by": "me", "at": {"x": [1.5]}}


def test_what_a_later_version_has_noted_stays(path: Path) -> None:
    with lm.open(path, "r+") as store:
        objects = store._content["objects"]
        objects["a"] = {**objects["a"], "future": {"x": 1}}
        objects["n"] = {**objects["n"], "future": 2}
        store["f"].attrs["unit"] = "K"
        store.flush()
    with lm.open(path, "r+") as store:
        store["n"][0] = 5
        store.attrs["x"] = 1
        store.snapshot()
    with lm.open(path) as store:
        objects = store._content["objects"]
        assert objects["a"]["future"] == {"x": 1}
        assert objects["n"]["future"] == 2


@pytest.mark.needs_uffd
def test_later_chunks_are_encoded_as_the_first_ones(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    steps = (np.cumsum(rng.integers(-2, 3, 1 << 20)) // 3).astype("u1")
    lm.save(tmp_path / "s.lzm", steps=steps, codec="lz4")
    with lm.open(tmp_path / "s.lzm", "r+") as store:
        assert not store.info("steps").is_split
        stored_bytes = store.info("steps").stored_bytes
        store["steps"][:] = np.roll(steps, 77)
        assert store.flush().bytes_written < stored_bytes * 1.01


# ---- after the end, in a child, in threads -------------------------------------------


def test_a_closed_store_refuses_to_be_changed(path: Path) -> None:
    store = lm.open(path, "r+")
    a = store["a"]
    store.close()
    store.close()
    actions: list[Callable[[], Any]] = [
        lambda: store.create("x", 3, "f8"),
        lambda: store.__setitem__("x", [1]),
        lambda: store.__delitem__("a"),
        lambda: store.snapshot(),
        lambda: store.flush(),
        lambda: store.restore(1),
        lambda: store.delete_snapshot(1),
        lambda: store.attrs.__setitem__("by", 1),
        lambda: a.attrs.__setitem__("unit", "K"),
        lambda: store.diff(1),
    ]
    for action in actions:
        with pytest.raises(lm.ClosedError):
            action()


@pytest.mark.needs_uffd
def test_a_forked_child_has_a_copy_and_the_parent_stays_the_writer(path: Path) -> None:
    store = lm.open(path, "r+")
    a = store["a"]
    a[0] = 1
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            a[1] = 2
            store["f"][0] = 3
            assert store.mode == "c"
            assert (a[0, 0], a[1, 0], store["f"][0, 0]) == (1, 2, 3)
            np.testing.assert_array_equal(a[2:], A[2:])
            assert not store.unsaved
            for action in (
                store.snapshot,
                store.flush,
                lambda: store.restore(1),
                lambda: store.create("x", 3, "f8"),
                lambda: store.__setitem__("x", [1]),
                lambda: store.__delitem__("a"),
                lambda: a.attrs.__setitem__("unit", "K"),
            ):
                with pytest.raises(lm.LockError, match="this one is a fork"):
                    action()
            with pytest.raises(ValueError, match="of mode 'c'"):
                a.evict()
            store.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    np.testing.assert_array_equal(a[1:], A[1:])
    store.flush()
    store.close()
    expected = A.copy()
    expected[0] = 1
    np.testing.assert_array_equal(content(path)["a"], expected)


@pytest.mark.needs_uffd
def test_a_child_that_lives_on_does_not_keep_the_lock(path: Path) -> None:
    store = lm.open(path, "r+")
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(theirs)
        os.read(ours, 1)
        os._exit(0)
    os.close(ours)
    store.close()
    lm.open(path, "r+").close()
    os.close(theirs)
    os.waitpid(pid, 0)


@pytest.mark.needs_uffd
def test_changes_by_many_threads_are_all_there(path: Path) -> None:
    with lm.open(path, "r+") as store:
        a = store["a"]

        def work(k: int) -> None:
            for i in range(k, 200, 4):
                a[i] = i
                store[f"x{k}"] = np.full(1000, i)
                a.attrs[str(i)] = i
            store.create(f"y{k}", 10, "f8")[k] = k

        threads = [threading.Thread(target=work, args=[k]) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(a.attrs) == 200
        store.snapshot()
    found = content(path)
    assert found["a"][:200, 0].tolist() == list(range(200))
    for k in range(4):
        assert found[f"x{k}"].tolist() == [196 + k] * 1000
        assert found[f"y{k}"][k] == k


def test_an_operation_within_another_is_an_error_and_no_hang(path: Path) -> None:
    with lm.open(path, "r+") as store:
        store["x"] = A

        def progress(*_: int) -> None:
            store.flush()

        store.create("y", A.shape, "f4")[:] = A
        with pytest.raises(RuntimeError, match="in the midst of another"):
            store.snapshot(progress=progress)
        store.flush()


# ---- in memory -----------------------------------------------------------------------


@pytest.mark.needs_uffd
@pytest.mark.parametrize("spills", [False, True])
def test_a_store_in_memory_does_all_that_a_file_does(
    tmp_path: Path, spills: bool
) -> None:
    with lm.Store(spill=tmp_path if spills else None) as store:
        assert isinstance(store, lm.Store)
        assert (store.path, store.mode, len(store)) == ("<memory>", "r+", 0)
        x = store.create("x", A.shape, A.dtype)
        x[:] = A
        store["y"] = A
        first = store.snapshot("first")
        x[:10] = 0
        del store["y"]
        store.snapshot("second")
        assert store.diff(first).removed == ("y",)
        assert store.diff(first).changed["x"].ranges == ((0, 10),)
        store.restore("first")
        np.testing.assert_array_equal(x, A)
        np.testing.assert_array_equal(store["y"], A)
        assert store.verify() == []
        x[0] = 1  # nobody needs to hear that this is lost
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(lm.ClosedError, match="<memory>"):
        x[0, 0]


def test_stores_in_memory_are_apart_and_leave_nothing(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    a, b = lm.Store(), lm.Store(spill=tmp_path)
    a["x"], b["x"] = [1], [2]
    assert (a["x"].tolist(), b["x"].tolist()) == ([1], [2])
    assert a.commit.store_id != b.commit.store_id
    del a, b
    gc.collect()
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before + 2)
    with pytest.raises(FileNotFoundError):
        lm.Store(spill=tmp_path / "none")
    with pytest.raises(ValueError, match="pages must be"):
        lm.Store(pages="3M")  # type: ignore[arg-type]
