# SPDX-License-Identifier: BSD-3-Clause
"""Do prune, compact and repair leave every state that is kept as it was?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazymem as lm
from lazymem import _engine
from lazymem.testing import failing

pytestmark = pytest.mark.needs_uffd

CHUNK = 4096
N = 64 * CHUNK // 8
States = dict[str, dict[str, np.ndarray[Any, Any]]]


def used_bytes(path: Path) -> int:
    return os.stat(path).st_blocks * 512


def snapshot(store: lm.Store, states: States, name: str) -> None:
    store.snapshot(name)
    states[name] = {key: np.array(a) for key, a in store.items() if a.size < 10**8}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "work.lzm"


def make(path: Path, states: States) -> lm.Store:
    """Make a store with a branch, and objects that come, go and change their shape."""
    rng = np.random.default_rng(4)
    store = lm.open(path, "w")
    x = store.create("x", (N,), "f8", chunk_bytes=CHUNK)
    store.create("zero", (10**9,), "u1")
    for i in range(5):
        low = int(rng.integers(0, N - 9000))
        x[low : low + 9000] = rng.random(9000)
        store["y"] = rng.random(3000 * (i + 1))
        store.attrs["round"] = i
        snapshot(store, states, f"s{i}")
    store.restore("s1")
    x[7] = 7
    del store["y"]
    snapshot(store, states, "branch")
    return store


def check(path: Path, states: States) -> None:
    for name, arrays in states.items():
        with lm.open(path, at=name) as old:
            assert set(old) == {*arrays, "zero"}
            for key, right in arrays.items():
                assert np.array_equal(old[key], right)


@pytest.fixture
def states() -> States:
    return {}


def test_prune_gives_back_what_deleted_snapshots_held(
    path: Path, states: States
) -> None:
    with make(path, states) as store:
        store.prune()  # the commit of the empty store
        assert store.prune() == 0  # all is in use
        for name in ("s0", "s2", "s3"):
            store.delete_snapshot(name)
            del states[name]
        before = used_bytes(path)
        freed = store.prune()
        assert freed > 50_000
        assert used_bytes(path) == before - freed
        assert store.prune() == 0
        check(path, states)
        store["x"][9] = 9
        snapshot(store, states, "later")
        store.restore("s4")
        assert np.array_equal(store["x"], states["s4"]["x"])
    check(path, states)


def test_prune_spares_what_a_reader_has_open(path: Path, states: States) -> None:
    with make(path, states) as store:
        reader = lm.open(path, at="s2")
        y = reader["y"]
        for name in ("s0", "s1", "s2", "s3"):
            store.delete_snapshot(name)
        assert store.prune() > 0
        assert np.array_equal(y, states["s2"]["y"])
        assert reader.verify() == []
        reader.close()  # though its array is held
        assert store.prune() > 0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_prune_spares_what_a_forked_child_reads(path: Path, states: States) -> None:
    with make(path, states) as store:
        reader = lm.open(path, at="s2")
        y = reader["y"]
        go = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(go[0], 1)
            is_right = np.array_equal(y, states["s2"]["y"])
            os._exit(0 if is_right else 1)
        reader.close()  # in this process alone
        for name in ("s0", "s1", "s2", "s3"):
            store.delete_snapshot(name)
        store.prune()
        os.write(go[1], b"g")
        assert os.waitpid(child, 0)[1] == 0
        for fd in go:
            os.close(fd)


def test_prune_spares_what_the_arrays_go_on_from(path: Path, states: States) -> None:
    with make(path, states) as store:
        store.restore("s0")
        for info in store.log():
            if info.name not in ("s4", "branch"):
                store.delete_snapshot(info.sequence)
        store.prune()
        assert np.array_equal(store["x"], states["s0"]["x"])
        store["x"][3] = 3
        snapshot(store, states, "again")
    check(path, {name: states[name] for name in ("s4", "branch", "again")})


def test_prune_of_a_damaged_index_changes_nothing(path: Path, states: States) -> None:
    with make(path, states) as store:
        store.delete_snapshot("s0")
        with failing("read", 5), pytest.raises(lm.FillError):
            store.prune()
        assert store.prune() > 0


@pytest.mark.parametrize("how", [{}, {"codec": "lz4"}, {"level": 9}])
def test_compact_keeps_every_snapshot(
    path: Path, states: States, how: dict[str, Any]
) -> None:
    with make(path, states) as store:
        x, log = store["x"], store.log()
        store.compact(**how)
        assert [(i.sequence, i.name, i.parent, i.time) for i in store.log()] == [
            (i.sequence, i.name, i.parent, i.time) for i in log
        ]
        assert store["x"] is x  # the array that was held
        check(path, states)
        x[1] = 1
        snapshot(store, states, "later")
        store.restore("s3")
        assert np.array_equal(x, states["s3"]["x"])
    check(path, states)
    if "codec" in how:
        assert lm.open(path).info("x").codec == "lz4"


def test_compact_copies_what_the_arrays_go_on_from(path: Path, states: States) -> None:
    with make(path, states) as store:
        store.restore("s0")
        for info in store.log():
            if info.name not in ("s4", "branch"):
                store.delete_snapshot(info.sequence)
        store.compact()
        store["x"].evict()
        assert np.array_equal(store["x"], states["s0"]["x"])
        store["x"][3] = 3
        snapshot(store, states, "again")
    check(path, {name: states[name] for name in ("s4", "branch", "again")})


def test_compact_makes_a_smaller_file(path: Path, states: States) -> None:
    with make(path, states) as store:
        for name in ("s0", "s2", "s3"):
            store.delete_snapshot(name)
            del states[name]
        before = os.path.getsize(path)
        store.compact()
        assert os.path.getsize(path) < before
        assert os.path.getsize(path) <= used_bytes(path)
        check(path, states)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_who_reads_the_old_file_goes_on(path: Path, states: States) -> None:
    with make(path, states) as store, lm.open(path, at="s2") as reader:
        store.compact()
        assert np.array_equal(reader["y"], states["s2"]["y"])


def test_compact_refuses_to_lose_changes(path: Path, states: States) -> None:
    with make(path, states) as store:
        store["x"][0] = 5
        with pytest.raises(lm.UnsavedChangesError, match=r"first, or flush\(\)"):
            store.compact()
        store.flush()
        store.compact()
        assert store["x"][0] == 5


def test_compact_that_fails_changes_nothing(path: Path, states: States) -> None:
    with make(path, states) as store:
        before = path.read_bytes()
        with failing("write", 28, skip=4), pytest.raises(OSError, match="No space"):
            store.compact()
        assert path.read_bytes() == before
        assert [p.name for p in path.parent.iterdir()] == [path.name]
        store["x"][2] = 2
        snapshot(store, states, "later")
    check(path, states)


def test_compact_that_is_not_known_to_be_durable_goes_on_with_the_new_file(
    path: Path, states: States, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is that of the old one: what is saved later is to be found there."""
    with make(path, states) as store:

        def fail(folder: str) -> None:
            raise OSError(5, "Input/output error", folder)

        with monkeypatch.context() as patch:
            patch.setattr(_engine, "sync_folder", fail)
            with pytest.raises(OSError, match="Input/output"):
                store.compact()
        check(path, states)
        store["x"][2] = 2
        snapshot(store, states, "later")
        assert store.verify() == []
    check(path, states)


@pytest.mark.parametrize(
    ("how", "found"),
    [
        ({"level": 1}, {"z": "zstd", "l": "lz4", "n": "none"}),
        ({"codec": "lz4"}, {"z": "lz4", "l": "lz4", "n": "lz4"}),
    ],
)
def test_compact_without_a_codec_keeps_that_of_each_object(
    path: Path, how: dict[str, Any], found: dict[str, str]
) -> None:
    with lm.open(path, "w") as store:
        store.put("z", np.arange(9999.0), codec="zstd", level=9)
        store.put("l", np.arange(9999.0), codec="lz4")
        store.put("n", np.arange(9999.0), codec="none")
        store.flush()
        store.compact(**how)
        assert {name: store.info(name).codec for name in store} == found
        assert {store.info(name).level for name in store} <= {0, 1}
        assert all(np.array_equal(a, np.arange(9999.0)) for a in store.values())


def test_a_store_in_memory_is_pruned_and_not_compacted() -> None:
    with lm.Store() as store:
        store["x"] = np.random.default_rng(1).random(100_000)
        store.snapshot("one")
        store["x"] = np.zeros(3)
        store.flush()
        store.delete_snapshot("one")
        assert store.prune() > 500_000
        with pytest.raises(ValueError, match="memory"):
            store.compact()


# ---- repair ------------------------------------------------------------------------


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def test_repair_of_an_intact_store_changes_nothing(path: Path, states: States) -> None:
    make(path, states).close()
    before = path.read_bytes()
    info = lm.repair(path)
    assert (info.name, info.damaged, info.is_repaired) == ("branch", (), False)
    assert path.read_bytes() == before


def test_repair_goes_back_to_the_newest_intact_state(
    path: Path, states: States
) -> None:
    make(path, states).close()
    with lm.open(path) as store:
        *_, s4, branch = store.log()
    damage(path, s4.offset + 128)  # the first payload behind it
    with lm.open(path) as store:
        assert store.verify()
    info = lm.repair(path)
    assert info.name == "s4"
    assert info.is_repaired
    assert [number for number, _ in info.damaged] == [branch.sequence]
    del states["branch"]
    check(path, states)
    with lm.open(path) as store:
        assert store.verify() == []
        assert store.log()[-1].name == "s4"
        assert np.array_equal(store["x"], states["s4"]["x"])


@pytest.mark.parametrize("kept", [0, 64, 127])
def test_repair_of_a_record_that_was_cut_off(
    path: Path, states: States, kept: int
) -> None:
    make(path, states).close()
    with lm.open(path) as store:
        end = store.log()[-1].offset
    path.write_bytes(path.read_bytes()[: end + kept])
    with pytest.warns(lm.LazyMemWarning):
        lm.open(path).close()
    assert lm.repair(path).name == "s4"
    del states["branch"]
    with pytest.warns(lm.LazyMemWarning):
        check(path, states)


def test_repair_passes_over_a_manifest_that_makes_no_sense(
    path: Path, states: States
) -> None:
    make(path, states).close()
    with lm.open(path) as store:
        end = store.log()[-1].offset
    damage(path, end - 70)  # in the manifest, or the padding behind it
    damage(path, end - 90)
    with pytest.raises(lm.FormatError):
        lm.open(path)
    info = lm.repair(path)
    assert info.name == "s4"
    assert info.is_repaired
    del states["branch"]
    check(path, states)


def test_what_is_no_store_is_not_repaired(path: Path) -> None:
    path.write_bytes(b"something else" * 100)
    with pytest.raises(lm.NotAStoreError, match="not a lazymem store file"):
        lm.repair(path)
    assert path.read_bytes() == b"something else" * 100


def test_nothing_is_intact(path: Path) -> None:
    lm.save(path, x=np.random.default_rng(1).random(10_000))
    damage(path, 200)
    with pytest.raises(lm.FormatError, match=r"no state .* is intact: commit 1"):
        lm.repair(path)
