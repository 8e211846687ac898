# SPDX-License-Identifier: BSD-3-Clause
"""Do variables come back as what they were, and does it cost what has changed?"""

from __future__ import annotations

import errno
import json
import math
import os
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazymem as lm
from lazymem import session
from lazymem.testing import failing
from tests.conftest import smooth

CHUNKS = 40


def big() -> Any:
    return smooth((CHUNKS * 1000, 16), "f8")  # of 128 KiB each


@pytest.fixture
def store(tmp_path: Path) -> Iterator[lm.Store]:
    with lm.open(tmp_path / "s.lzm", "w") as store:
        yield store
        store.close(discard=True)


def back(namespace: dict[str, Any], path: str, **options: Any) -> dict[str, Any]:
    """Return what a new store file gives back, read by another reader."""
    with lm.open(path, "w") as store:
        info = session.save(namespace, store, **options)
    assert info.skipped == {}
    return session.restore(lm.open(path, "c"))


def again(namespace: dict[str, Any], store: lm.Store) -> int:
    """Save, and return how many bytes the file has grown by."""
    before = os.stat(store.path).st_size
    session.save(namespace, store)
    return os.stat(store.path).st_size - before


# ---- plain values --------------------------------------------------------------------

PLAIN: dict[str, Any] = {
    "none": None,
    "yes": True,
    "huge": 2**200,
    "pi": 0.1 + 0.2,
    "nothing": float("-inf"),
    "text": "Zürich \N{SNOWMAN}",
    "nested": {"a": [1, (2, 3.5), {}], 3: {("t", None): []}},
    "empty": [[], (), {}],
}


def test_plain_values_are_what_they_were(tmp_path: Path) -> None:
    found = back(PLAIN, str(tmp_path / "p.lzm"))
    assert repr(found) == repr(PLAIN)
    assert math.isnan(back({"x": float("nan")}, str(tmp_path / "n.lzm"))["x"])


SCALARS = [
    np.float32(1.5),
    np.int8(-3),
    np.bool_(True),
    np.str_("text"),
    np.str_(""),
    np.bytes_(b"ab"),
    np.complex128(1 - 2j),
    np.datetime64("2020-01-02T03:04", "s"),
    np.timedelta64("NaT", "D"),
    np.void(b"\1\2"),
    np.array((1, 2.5), "i4,>f8")[()],
]


@pytest.mark.parametrize("scalar", SCALARS, ids=lambda x: x.dtype.str)
def test_numpy_scalars_are_what_they_were(scalar: Any, tmp_path: Path) -> None:
    found = back({"x": scalar}, str(tmp_path / "s.lzm"))["x"]
    assert type(found) is type(scalar)
    assert found.dtype == scalar.dtype
    assert repr(found) == repr(scalar)


def test_one_object_of_two_names_is_one_object(tmp_path: Path) -> None:
    shared, array = [1], big()
    found = back(
        {"a": shared, "b": {"k": shared}, "x": array, "y": [array, array]},
        str(tmp_path / "s.lzm"),
    )
    assert found["a"] is found["b"]["k"]
    assert found["x"] is found["y"][0] is found["y"][1]


def test_what_can_not_be_saved_is_told_and_the_rest_is_saved(store: lm.Store) -> None:
    loop: list[Any] = []
    loop.append(loop)
    deep: list[Any] = []
    for _ in range(10**5):
        deep = [deep]
    namespace = {
        "x": np.ones(3),
        "loop": loop,
        "deep": deep,
        "instance": types.SimpleNamespace(),
        "inside": [np.ones(3), {"k": object()}],
        "objects": np.array([object()]),
        "surrogate": "\ud800",
        "digits": 10**5000,
        "masked": np.ma.array([1], mask=[True]),
        "store": store,
    }
    info = session.save(namespace, store)
    assert info.saved == ("x",)
    told = {name: reason for name, reason in info.skipped.items()}
    assert list(told) == list(namespace)[1:]
    assert told["loop"] == "it contains itself"
    assert told["deep"] == "it is nested too deeply"
    assert "object has no form" in told["objects"]
    assert "SimpleNamespace" in told["instance"]
    assert list(session.restore(store)) == ["x"]
    assert set(store) == {"x", ".session"}  # nothing of "inside" has stayed


def test_code_and_hidden_names_are_left_out_unless_named(store: lm.Store) -> None:
    namespace = {"_h": 1, "f": back, "m": os, "c": dict, "b": len, "x": 2}
    assert session.save(namespace, store).saved == ("x",)
    info = session.save(namespace, store, "_h", "f")
    assert info.saved == ("_h",)
    assert "code" in info.skipped["f"]
    assert session.restore(store) == {"x": 2, "_h": 1}
    with pytest.raises(KeyError, match="no variable 'y'"):
        session.save(namespace, store, "y")


# ---- pickles -------------------------------------------------------------------------


def test_pickles_are_made_and_loaded_for_those_who_say_so(store: lm.Store) -> None:
    namespace = {"s": {1, 2}, "x": [1, {3}]}
    assert set(session.save(namespace, store).skipped) == {"s", "x"}
    session.save(namespace, store, pickle=True)
    assert session.restore(store, trust_pickle=True) == namespace
    with pytest.warns(lm.LazyMemWarning, match="s: it is a pickle.*x: it is a pickle"):
        assert session.restore(store) == {}
    with pytest.raises(session.UnsupportedValueError, match="trust"):
        session.restore(store, "s")
    info = session.save({"f": {lambda: 1}}, store, pickle=True)
    assert "can't be pickled" in info.skipped["f"]


def test_a_pickle_holds_the_bytes_of_lazy_arrays(store: lm.Store) -> None:
    store["other"] = big()
    store.flush()
    namespace = {"x": types.SimpleNamespace(a=store["other"])}
    session.save(namespace, store, pickle=True)
    del store["other"]
    found = session.restore(store, trust_pickle=True)["x"].a
    np.testing.assert_array_equal(found, big())


# ---- arrays --------------------------------------------------------------------------

RECORD = np.zeros(50, [("a", "i4"), ("b", "f8", (2,))])
ARRAYS: dict[str, Any] = {
    "c": np.arange(12).reshape(3, 4),
    "f": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "strided": np.arange(100)[::-7],
    "zero": np.array(5, "f2"),
    "none": np.empty((0, 3), "M8[ns]"),
    "text": np.array(["a", "bcd"]),
    "big-endian": np.arange(5, dtype=">i2"),
    "record": RECORD,
    "strings": np.array([["a", None], [float("nan"), "Zürich"]], object),
    "objects": np.array([1, "a", None, (2, [3]), 0.5], object),
    "broadcast": np.broadcast_to(np.arange(3.0), (10**9, 3)),
    "no bytes": np.zeros(3, "V0"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_what_they_were(name: str, tmp_path: Path) -> None:
    array = ARRAYS[name]
    found = back({"x": array}, str(tmp_path / "a.lzm"))["x"]
    assert (found.shape, found.dtype) == (array.shape, array.dtype)
    assert found.flags.writeable == array.flags.writeable
    if name == "broadcast":
        found, array = found[-2:], array[-2:]
    assert repr(np.asarray(found)) == repr(array)


def test_views_are_views_again(tmp_path: Path) -> None:
    x = np.arange(1000.0).reshape(10, 100)
    namespace = {"row": x[3], "x": x, "back": x[::-1, ::2], "bits": x.view("u8")}
    found = back(namespace, str(tmp_path / "v.lzm"))
    found["x"][3, :2] = -1
    assert found["row"][:2].tolist() == [-1, -1]
    assert found["back"][-4, 0] == -1
    assert found["bits"][3, 0] == np.float64(-1).view("u8")
    assert len(lm.open(tmp_path / "v.lzm")) == 2  # of x, and the document


def test_overlapping_parts_of_what_has_no_name_are_one_object(tmp_path: Path) -> None:
    whole = np.arange(10**6)
    namespace = {
        "a": whole[:10],
        "b": whole[5:15],
        "c": whole[-10:],
        "d": whole[100::9],
    }
    found = back(namespace, str(tmp_path / "o.lzm"))
    for name, array in namespace.items():
        np.testing.assert_array_equal(found[name], array)
    found["a"][7] = -7
    assert found["b"][2] == -7
    with lm.open(tmp_path / "o.lzm") as store:
        sizes = {name: store.info(name).nbytes for name in store if name[0] != "."}
    assert sizes == {"a": 120, "d": (10**6 - 100) * 8}  # which "c" is in the midst of


def test_a_lone_part_is_saved_without_the_rest(store: lm.Store) -> None:
    session.save({"column": np.ones((1000, 1000))[:, 5]}, store)
    assert store.info("column").shape == (1000,)


# ---- what saving again costs ---------------------------------------------------------


def test_saving_the_same_again_takes_no_space(store: lm.Store) -> None:
    namespace = {"x": big(), "f": np.asfortranarray(big()), "s": big()[::2], "n": 1}
    assert again(namespace, store) > 0
    assert again(namespace, store) == 0
    assert again({name: np.copy(x) for name, x in namespace.items()}, store) < 5000


@pytest.mark.needs_uffd
@pytest.mark.parametrize("order", ["C", "F"])
def test_only_chunks_that_differ_are_appended(order: str, store: lm.Store) -> None:
    x = np.array(np.random.default_rng(1).random((CHUNKS * 1024, 16)), order=order)
    namespace = {"x": x}
    whole = again(namespace, store)
    x[5, 0] += 1
    x[-1, -1] += 1
    assert 0 < again(namespace, store) < whole * 3 / CHUNKS
    np.testing.assert_array_equal(lm.open(store.path)["x"], x)
    assert store["x"].residency().chunks_resident == 0


def test_an_array_that_is_another_one_is_stored_anew(store: lm.Store) -> None:
    for x in (big(), big() + 1, big().astype("f4"), big()[:50], np.arange(3)):
        session.save({"x": x}, store)
        np.testing.assert_array_equal(session.restore(store)["x"], x)


@pytest.mark.needs_uffd
def test_what_a_failed_save_has_left_is_not_believed(store: lm.Store) -> None:
    x = big()
    session.save({"x": x}, store)
    x[5] = -1
    with failing("write", errno.ENOSPC), pytest.raises(OSError, match="No space"):
        session.save({"x": x}, store)
    np.testing.assert_array_equal(lm.open(store.path)["x"], big())
    x[5] = big()[5]
    session.save({"x": x}, store)
    np.testing.assert_array_equal(lm.open(store.path)["x"], big())


def test_an_interrupted_save_leaves_the_last_state(
    store: lm.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.save({"x": big(), "y": 1}, store)

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lm.Store, "flush", interrupt)
        with pytest.raises(KeyboardInterrupt):
            session.save({"x": big() + 1, "z": 1}, store)
    found = session.restore(lm.open(store.path))
    assert list(found) == ["x", "y"]
    np.testing.assert_array_equal(found["x"], big())


def test_names_that_are_gone_are_gone_and_their_space_is_free(store: lm.Store) -> None:
    session.save({"x": big(), "y": 1}, store)
    session.save({"y": 1}, store)
    assert session.restore(store) == {"y": 1}
    assert list(store) == [".session"]


def test_some_names_are_saved_beside_the_others(store: lm.Store) -> None:
    x = big()
    shared = [x[:5]]
    namespace = {"x": x, "y": {"k": shared}, "z": shared}
    session.save(namespace, store)
    namespace["x"] = np.arange(5)
    session.save(namespace, store, "x")
    found = session.restore(store)
    np.testing.assert_array_equal(found["x"], np.arange(5))
    np.testing.assert_array_equal(found["z"][0], big()[:5])
    assert found["y"]["k"] is found["z"]


def test_objects_of_others_are_left_alone(store: lm.Store) -> None:
    store["x"] = np.arange(7)
    session.save({"x": np.ones(3)}, store)
    session.save({}, store)
    assert store["x"].tolist() == list(range(7))


def test_arrays_of_other_stores_are_saved_or_what_is_wrong_is_told(
    store: lm.Store, tmp_path: Path
) -> None:
    lm.save(tmp_path / "o.lzm", x=big(), y=big(), chunk_bytes=65536)
    with lm.open(tmp_path / "o.lzm") as other:
        x, y = other["x"], np.asarray(other["y"])
        with failing("read", errno.EIO), pytest.raises(OSError, match=r"o\.lzm"):
            session.save({"y": y}, store)
        session.save({"x": x, "y": y}, store)
    for name in ("x", "y"):
        np.testing.assert_array_equal(session.restore(store)[name], big())
    info = session.save({"x": x, "n": 1}, store)
    assert info.skipped == {"x": "it is an array of a store that is closed"}


# ---- adopting, checkpoints, and going back -------------------------------------------


@pytest.mark.needs_uffd
def test_adopted_arrays_are_the_stores_and_names_stay_one_object() -> None:
    x = big()
    namespace = {"x": x, "y": x, "row": x[3], "list": [x], "n": 5, "plain": [1]}
    plain = namespace["plain"]
    with lm.Store() as store:
        info = session.save(namespace, store, adopt=True)
        assert info.adopted == ("x", "y", "row", "list")
        assert namespace["x"] is namespace["y"] is namespace["list"][0]
        assert namespace["plain"] is plain
        namespace["x"][3] = 7
        assert namespace["row"].tolist() == [7] * 16
        assert store.stats().arrays["x"].chunks_dirty == 1
        before = dict(namespace)
        info = session.save(namespace, store, adopt=True)
        assert info.adopted == ()
        assert all(namespace[name] is before[name] for name in before)


@pytest.mark.needs_uffd
def test_rolling_back_costs_what_changed_and_brings_all_back() -> None:
    namespace = {"x": big(), "d": {"k": [1]}, "s": "old"}
    namespace["head"] = namespace["x"][:3]
    with lm.Store() as store:
        session.checkpoint(namespace, store, "first")
        x, head = namespace["x"], namespace["head"]
        x.load()
        x[5] = 0
        namespace["d"]["k"].append(2)
        namespace["s"] = namespace["head"] = None
        namespace["later"], namespace["never"] = np.ones(5), np.ones(3)
        del namespace["never"]
        session.checkpoint(namespace, store, "second")
        namespace["never"] = 3
        x[:] = 0
        info = session.rollback(namespace, store, "first")
        assert namespace["x"] is x
        np.testing.assert_array_equal(x, big())
        np.testing.assert_array_equal(head, big()[:3])
        assert namespace["d"] == {"k": [1]}
        assert namespace["s"] == "old"
        assert set(namespace) == {"x", "d", "s", "head", "never"}
        session.rollback(namespace, store, "second")
        assert (x[5] == 0).all()
        assert (x[6] == big()[6]).all()
        assert namespace["later"].tolist() == [1] * 5
        x.load()
        x[8] = 1
        info = session.rollback(namespace, store, "second")
        assert info.chunks_dropped == 1
        np.testing.assert_array_equal(x[8], big()[8])


@pytest.mark.needs_uffd
def test_a_checkpoint_needs_a_name_of_its_own_and_a_session() -> None:
    with lm.Store() as store:
        store.snapshot("raw")
        namespace = {"x": np.ones(3)}
        with pytest.raises(ValueError, match="'raw' exists"):
            session.checkpoint(namespace, store, "raw")
        assert type(namespace["x"]) is np.ndarray
        with pytest.raises(lm.SnapshotNotFoundError, match="'raw'"):
            session.rollback(namespace, store, "none")
        with pytest.raises(lm.FormatError, match="no session"):
            session.rollback(namespace, store, "raw")


@pytest.mark.needs_uffd
def test_memory_that_somebody_holds_is_never_given_up(store: lm.Store) -> None:
    namespace: dict[str, Any] = {"x": big()}
    session.save(namespace, store, adopt=True)
    for hold in (
        lambda a: a,
        lambda a: a[1:],
        np.asarray,
        lambda a: np.asarray(a)[2:].T,
        memoryview,
    ):
        held = hold(namespace.pop("x"))
        expected = np.array(held)
        session.save(namespace, store)
        namespace["x"] = big() + 1
        session.save(namespace, store, adopt=True)
        np.testing.assert_array_equal(np.asarray(held), expected)
        np.testing.assert_array_equal(namespace["x"], big() + 1)
    del held
    session.save(namespace, store)
    assert len(store) == 2


@pytest.mark.needs_uffd
def test_what_is_saved_after_a_restore_is_what_was_written(tmp_path: Path) -> None:
    with lm.open(tmp_path / "s.lzm", "w") as store:
        session.save({"x": big(), "s": "text"}, store)
    with lm.open(tmp_path / "s.lzm", "r+") as store:
        namespace = session.restore(store)
        assert store.stats().fills == 0
        namespace["x"][7] = 7
        info = session.save(namespace, store)
        assert 0 < info.bytes_written < big().nbytes / 10
    found = session.restore(lm.open(tmp_path / "s.lzm"))["x"]
    assert found[7].tolist() == [7] * 16
    assert not found.flags.writeable


def test_without_userfaultfd_nothing_is_adopted(
    tmp_path: Path, run_python: Any
) -> None:
    done = run_python(
        "import sys, warnings, numpy as np, lazymem as lm\n"
        "from lazymem import session\n"
        "warnings.simplefilter('ignore')\n"
        "with lm.open(sys.argv[1], 'w') as s:\n"
        "    x = np.arange(100_000)\n"
        "    session.save({'x': x}, s); x[3] = 7; session.save({'x': x}, s)\n"
        "    print(session.restore(s)['x'][3])\n"
        "    try: session.checkpoint({'x': x}, s, 'a')\n"
        "    except lm.UnsupportedKernelError as exc: print(exc)\n",
        tmp_path / "s.lzm",
        LAZYMEM_MASK="dev,syscall,user",
    )
    assert "nothing tells" in done.stdout, done.stderr
    assert done.stdout.startswith("7\n")


class Model:
    """Variables as places in buffers, which a copy of all buffers brings back."""

    def __init__(self) -> None:
        self.buffers: dict[int, Any] = {}
        self.places: dict[str, tuple[int, slice]] = {}
        self.kept: dict[str, Any] = {}

    def keep(self, name: str) -> None:
        buffers = {key: x.copy() for key, x in self.buffers.items()}
        self.kept[name] = buffers, dict(self.places)

    def go_back(self, name: str) -> None:
        buffers, self.places = self.kept[name][0], dict(self.kept[name][1])
        self.buffers = {key: x.copy() for key, x in buffers.items()}

    def check(self, namespace: dict[str, Any]) -> None:
        assert set(namespace) == set(self.places)
        for name, (key, part) in self.places.items():
            np.testing.assert_array_equal(namespace[name], self.buffers[key][part])


@pytest.mark.needs_uffd
@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_done_variables_are_what_they_are_to_be(
    seed: int, store: lm.Store
) -> None:
    rng, model = np.random.default_rng(seed), Model()
    namespace: dict[str, Any] = {}
    for step in range(150):
        name = "abcdef"[rng.integers(6)]
        others = list(model.places)
        action = rng.integers(10)
        if action < 2 or not others:  # a new array
            key, n = step, int(rng.integers(1, 60_000))
            model.buffers[key] = rng.integers(0, 9, n)
            namespace[name] = model.buffers[key].copy()
            model.places[name] = key, slice(0, n)
        elif action == 2:  # another name, of all or a part
            key, part = model.places[others[rng.integers(len(others))]]
            source = namespace[
                next(x for x in others if model.places[x] == (key, part))
            ]
            low = int(rng.integers(0, len(source)))
            high = int(rng.integers(low, len(source))) + 1
            namespace[name] = source[low:high] if rng.random() < 0.7 else source
            if namespace[name] is not source:
                part = slice(part.start + low, part.start + high)
            model.places[name] = key, part
        elif action < 6:  # some elements
            key, part = model.places[others[0]]
            at = int(rng.integers(0, part.stop - part.start))
            namespace[others[0]][at] = model.buffers[key][part.start + at] = step
        elif action == 6:
            namespace.pop(others[-1])
            model.places.pop(others[-1])
        elif action == 7:
            session.save(namespace, store, adopt=bool(rng.random() < 0.5))
            found = session.restore(lm.open(store.path))
            model.check(found)
        elif action == 8:
            session.checkpoint(namespace, store, str(step))
            model.keep(str(step))
        elif model.kept:
            back_to = list(model.kept)[rng.integers(len(model.kept))]
            session.save(namespace, store)  # what was never saved would stay
            session.rollback(namespace, store, back_to)
            model.go_back(back_to)
        model.check(namespace)


# ---- files that make no sense --------------------------------------------------------


def write_document(store: lm.Store, document: Any) -> None:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    store[".session"] = np.frombuffer(data, np.uint8)


def whole(**array: Any) -> Any:
    node = {"kind": "numpy.array", "array": array, "writeable": True}
    return {"format": 1, "names": {"x": {"node": 0}}, "nodes": [node]}


LIST = {"kind": "builtins.list", "items": [{"node": 0}]}
BAD = [
    b"",
    b"{}",
    [],
    {"format": 2, "names": {}, "nodes": []},
    {"format": 1, "names": [], "nodes": []},
    {"format": 1, "names": {"x": {"node": 5}}, "nodes": []},
    {"format": 1, "names": {"x": {"node": 0}}, "nodes": [{"kind": "os.system"}]},
    {"format": 1, "names": {"x": {"node": 0}}, "nodes": [LIST]},
    whole(object="a", offset=8, shape=[10], strides=[8], dtype="<f8"),
    whole(object="a", offset=0, shape=[10], strides=[-8], dtype="<f8"),
    whole(object="a", offset=0, shape=[10], strides=[8], dtype="|O"),
    whole(object="none"),
]


@pytest.mark.parametrize("document", BAD, ids=range(len(BAD)))
def test_a_document_that_makes_no_sense_is_an_error(
    document: Any, store: lm.Store
) -> None:
    store["a"] = np.ones(10)
    write_document(store, document)
    with pytest.raises((lm.FormatError, lm.ObjectNotFoundError)):
        session.restore(store)


def test_a_store_without_a_session_and_a_name_that_is_none(store: lm.Store) -> None:
    with pytest.raises(lm.FormatError, match="no session"):
        session.restore(store)
    assert session.names_in(store) == ()
    session.save({"x": 1, "y": 2}, store)
    assert session.names_in(store) == ("x", "y")
    with pytest.raises(lm.ObjectNotFoundError, match="it has 'x', 'y'"):
        session.restore(store, "z")
    reader = lm.open(store.path)
    with pytest.raises(ValueError, match=r"'r\+'"):
        session.save({"x": 1}, reader)


# ---- pandas --------------------------------------------------------------------------


def frames() -> dict[str, Any]:
    pd = pytest.importorskip("pandas")
    n = 1000
    times = pd.date_range("2020-01-01", periods=n, freq="h", name="when")
    frame = pd.DataFrame(
        {
            "int": np.arange(n),
            "float": smooth((n,)),
            "bool": np.arange(n) % 3 == 0,
            "time": times,
            "zone": times.tz_localize("UTC").tz_convert("Europe/Berlin"),
            "delta": times - times[5],
            "category": pd.Categorical.from_codes(np.arange(n) % 2, ["b", "a"], None),
            "ordered": pd.Categorical(np.arange(n) % 4, ordered=True),
            "Int": pd.array([1, None] * (n // 2), "Int16"),
            "Float": pd.array([0.5, None] * (n // 2), "Float64"),
            "Bool": pd.array([True, None] * (n // 2), "boolean"),
            "text": [f"Zürich {i % 7}" for i in range(n)],
            "string": pd.array(["a", None] * (n // 2), "string"),
            "object": pd.Series(
                ["a", None, float("nan"), "b"] * (n // 4), dtype=object
            ),
            "period": pd.period_range("2000", periods=n, freq="D"),
            7: np.arange(n, dtype="u1"),
            "mixed": pd.Series([1, "a", (2, 3), None] * (n // 4), dtype=object),
        }
    )
    frame.attrs["unit"] = "K"
    matrix = pd.DataFrame(np.arange(12.0).reshape(3, 4), columns=list("abca"))
    return {
        "frame": frame,
        "matrix": matrix,
        "timed": matrix.set_axis(times[:3]),
        "multi": frame.set_index(["category", "int"]),
        "columns": matrix.set_axis(
            pd.MultiIndex.from_product([[1, 2], ["x", "y"]]), axis=1
        ),
        "series": frame["float"],
        "named": pd.Series([1, 2], index=["a", "b"], name=("t", 1)),
        "empty": pd.DataFrame(index=times[:3]),
        "nothing": pd.DataFrame(),
        "index": times,
        "range": pd.RangeIndex(2, 20, 3, name="r"),
    }


def assert_same(found: Any, expected: Any) -> None:
    pd = pytest.importorskip("pandas")
    if isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected, check_freq=True)
    elif isinstance(expected, pd.Series):
        pd.testing.assert_series_equal(found, expected)
    else:
        pd.testing.assert_index_equal(found, expected, exact=True)
    assert getattr(found, "attrs", {}) == getattr(expected, "attrs", {})


def test_frames_are_what_they_were(tmp_path: Path) -> None:
    expected = frames()
    found = back(expected, str(tmp_path / "f.lzm"))
    for name, value in expected.items():
        assert_same(found[name], value)


LOOKED_AT = ("columns/ends", "columns/bytes", "c/categories", "index/levels/0")
CODES = ("c/codes", "index/codes/0", "index/codes/1", "index/levels/0/codes")


@pytest.mark.needs_uffd
def test_frames_are_put_together_without_touching_their_columns(store: Any) -> None:
    pd = pytest.importorskip("pandas")
    n = 100_000
    times = pd.date_range("2020", periods=n, freq="s", tz="Europe/Berlin")
    frame = pd.DataFrame({"x": np.arange(n), "t": times, "u": times.tz_localize(None)})
    frame["i"] = pd.array(np.arange(n), "Int64")
    frame["c"] = pd.Categorical.from_codes(np.arange(n) % 3, [1.0, 2.0, 3.0])
    session.save({"f": frame, "m": frame.set_index(["c", "x"])}, store)
    session.restore(store)
    arrays = store.stats().arrays
    filled = {name for name, stats in arrays.items() if stats.chunks_resident}
    assert filled <= {f"{f}/{part}" for f in "fm" for part in LOOKED_AT + CODES}
    assert {"f/x", "f/t", "f/u", "f/i", "f/i/mask", "f/c/codes"} <= set(arrays)


@pytest.mark.needs_uffd
@pytest.mark.parametrize("code", [-2, 3, 127])
def test_codes_of_no_category_never_get_to_pandas(
    code: int, store: lm.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pd = pytest.importorskip("pandas")
    frames = pytest.importorskip("lazymem.session.frames")
    monkeypatch.setattr(frames, "_PIECE_BYTES", 1 << 18)  # a chunk
    codes = (np.arange(10**6) % 4 - 1).astype("i1")
    categories = pd.Categorical.from_codes(codes, ["a", "b", "c"])
    index = pd.MultiIndex([["a", "b", "c"]], [codes.copy()], verify_integrity=False)
    session.save({"c": pd.Series(categories), "m": index}, store)
    for name, key in (("c", "c/codes"), ("m", "m/codes/0")):
        session.restore(store, name)
        assert store[key].residency().chunks_resident <= 1  # the last piece's end
        store[key][-5] = code
        with pytest.raises(lm.FormatError, match=f"'{name}'.*none of 3 categories"):
            session.restore(store, name)


@pytest.mark.needs_uffd
def test_writing_to_an_adopted_frame_writes_to_the_store(store: lm.Store) -> None:
    pd = pytest.importorskip("pandas")
    namespace = {"f": pd.DataFrame({"a": big()[:, 0].copy(), "b": 1, "s": "text"})}
    expected = namespace["f"].copy()
    session.checkpoint(namespace, store, "before")
    frame = namespace["f"]
    frame.loc[5, "a"] = -1.0
    assert store["f/a"][5] == -1
    info, _ = session.checkpoint(namespace, store, "after")
    assert namespace["f"] is frame
    assert info.adopted == ()
    session.rollback(namespace, store, "before")
    assert_same(namespace["f"], expected)
    session.rollback(namespace, store, "after")
    assert namespace["f"].loc[5, "a"] == -1


@pytest.mark.needs_uffd
def test_frames_that_are_independent_stay_so(store: lm.Store) -> None:
    pd = pytest.importorskip("pandas", minversion="3")
    frame = pd.DataFrame({"a": np.arange(1000.0), "b": np.arange(1000.0)})
    parts = {"first": frame.iloc[:10], "last": frame.iloc[-10:]}
    namespace = {**parts, "a": frame["a"], "f": frame}
    session.save(namespace, store, adopt=True)
    assert len([name for name in store if store.info(name).nbytes == 8000]) == 2
    for found in (namespace, session.restore(store)):
        found["f"].loc[3, "a"] = -1
        assert (found["a"][3], found["first"].loc[3, "a"]) == (3, 3)
        found["last"].loc[995, "b"] = -2
        assert found["f"].loc[995, "b"] == 995
        found["f"].loc[996, "b"] = -3
        assert found["last"].loc[996, "b"] == 996


def test_a_frame_of_python_objects_is_told(store: lm.Store) -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": [1, 2], "o": [object(), {}]})
    namespace = {
        "f": frame,
        "i": pd.Series(pd.arrays.IntervalArray.from_breaks([1, 2])),
    }
    info = session.save(namespace, store)
    assert info.skipped["f"].startswith("column 'o': a object has no")
    assert "interval" in info.skipped["i"]
    session.save({"f": pd.DataFrame({"o": [{1}]})}, store, pickle=True)
    assert session.restore(store, trust_pickle=True)["f"]["o"][0] == {1}


# ---- xarray --------------------------------------------------------------------------


def test_data_sets_are_what_they_were(store: lm.Store) -> None:
    xr, pd = pytest.importorskip("xarray"), pytest.importorskip("pandas")
    grid = xr.Dataset(
        {
            "t": (("time", "x"), smooth((100, 50)), {"unit": "K"}),
            "mask": ("x", np.arange(50) > 3),
            "zero": ((), 5),
        },
        {
            "time": pd.date_range("2020", periods=100),
            "x": np.arange(50) * 0.5,
            "label": ("x", np.array(["p", "q"] * 25, object)),
        },
        {"title": "a grid"},
    )
    namespace = {"grid": grid, "t": grid["t"], "plain": xr.DataArray(np.ones(3))}
    session.save(namespace, store)
    found = session.restore(store)
    for name, value in namespace.items():
        xr.testing.assert_identical(found[name], value)
    found["grid"]["t"][0, 0] = 7
    assert found["t"][0, 0] == 7
    stacked = grid.stack(p=("time", "x"))
    info = session.save({"s": stacked}, store)
    assert "reset_index" in info.skipped["s"]


@pytest.mark.needs_uffd
def test_an_adopted_data_set_stays_adopted(store: lm.Store) -> None:
    xr = pytest.importorskip("xarray")
    coords = {"x": np.arange(50), "label": ("x", np.arange(50) % 7)}
    array = xr.DataArray(smooth((50, 50)), coords, ("x", "y"), name="a")
    namespace = {"a": array}
    assert session.save(namespace, store, adopt=True).adopted == ("a",)
    assert session.save(namespace, store, adopt=True).adopted == ()
    xr.testing.assert_identical(namespace["a"], array)


# ---- torch ---------------------------------------------------------------------------


def test_tensors_are_what_they_were(store: lm.Store) -> None:
    torch = pytest.importorskip("torch")
    whole = torch.arange(1000, dtype=torch.float32).reshape(10, 100)
    step = torch.ones(3, requires_grad=True)
    namespace = {
        "whole": whole,
        "part": whole[2:, ::2],
        "half": torch.ones(5, dtype=torch.bfloat16) * 1.5,
        "flags": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "leaf": step,
        "step": step * 2,
        "layer": torch.nn.Linear(2, 2),
        "state": torch.nn.Linear(2, 2).state_dict(),
    }
    info = session.save(namespace, store)
    assert set(info.skipped) == {"step", "layer", "state"}
    found = session.restore(store)
    for name, value in found.items():
        assert type(value) is type(namespace[name])
        assert value.dtype == namespace[name].dtype
        assert value.requires_grad == namespace[name].requires_grad
        assert torch.equal(value, namespace[name])
    found["whole"][2, 0] = -1
    assert found["part"][0, 0] == -1


@pytest.mark.needs_uffd
def test_an_adopted_tensor_goes_back_in_place() -> None:
    torch = pytest.importorskip("torch")
    x = big()
    namespace = {"x": x, "t": torch.from_numpy(x)[:10]}
    with lm.Store() as store:
        session.checkpoint(namespace, store, "first")
        tensor = namespace["t"]
        tensor += 1
        np.testing.assert_array_equal(namespace["x"][:10], big()[:10] + 1)
        assert store.stats().arrays["x"].chunks_dirty == 1
        assert session.save(namespace, store, adopt=True).adopted == ()
        session.rollback(namespace, store, "first")
        np.testing.assert_array_equal(tensor.numpy(), big()[:10])


def test_what_needs_a_missing_package_is_told(
    store: lm.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = {"kind": "torch.tensor"}
    document = {"format": 1, "names": {"x": {"node": 0}, "y": 1}, "nodes": [node]}
    write_document(store, document)
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    monkeypatch.delitem(
        __import__("sys").modules, "lazymem.session.tensors", raising=False
    )
    with pytest.warns(lm.LazyMemWarning, match=r"pip install 'lazymem\[torch\]'"):
        assert session.restore(store) == {"y": 1}
    with pytest.raises(ImportError, match=r"lazymem\[torch\]"):
        session.restore(store, "x")
