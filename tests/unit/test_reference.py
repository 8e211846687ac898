# SPDX-License-Identifier: BSD-3-Clause
"""Does a pickle say where an array's bytes are, as long as they are in the file?"""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

import lazymem as lm
from tests.conftest import ROOT, smooth

A = smooth((1000, 1000))
SIZE_MAX = 1000
pytestmark = pytest.mark.needs_uffd

RECORDS = np.zeros(1000, [("when", "M8[s]"), ("what", "S7"), ("x", ">f4", (2,))])
RECORDS["x"] = 3


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "s.lzm"
    lm.save(path, a=A, f=np.asfortranarray(A), r=RECORDS, chunk_bytes=65536)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "part",
    [
        lambda s: s["a"],
        lambda s: s["f"],
        lambda s: s["a"][10:900:3, ::-7],
        lambda s: s["f"].T[5],
        lambda s: s["a"][7, 8, ...],
        lambda s: s["a"].view("i4")[::2],
        lambda s: np.broadcast_to(s["a"][3], (5, 1000), subok=True),
        lambda s: s["r"]["x"][:, 1],
        lambda s: s["r"][::-1],
        lambda s: pickle.loads(pickle.dumps(s["a"][100:]))[5:, 5:],
    ],
)
def test_a_part_is_the_same_part(path: Path, part: Any, protocol: int) -> None:
    with lm.open(path) as store:
        array = part(store)
        assert isinstance(array, lm.LazyArray)
        pickled = pickle.dumps(array, protocol)
        assert len(pickled) < SIZE_MAX
        again = pickle.loads(pickled)
        assert type(again) is lm.LazyArray
        assert (again.shape, again.dtype) == (array.shape, array.dtype)
        assert again.strides == array.strides
        assert not again.flags.writeable
        np.testing.assert_array_equal(again, array)


def test_nothing_is_read(path: Path) -> None:
    with lm.open(path) as store:
        a = store["a"]
        again = pickle.loads(pickle.dumps(a[100:]))
        assert a.residency().chunks_resident == 0
        assert again.residency().chunks_resident == 0
        assert again.object_name == "a"
        assert again[0, 0] == A[100, 0]


def test_arrays_of_one_state_share_memory(path: Path) -> None:
    with lm.open(path) as store:
        pickles = [pickle.dumps(store["a"][i:]) for i in (0, 100)]
    whole, part = map(pickle.loads, pickles)
    assert np.shares_memory(whole, part)
    assert whole._binding is part._binding
    del whole
    np.testing.assert_array_equal(part, A[100:])


def test_ten_gigabytes_are_few_bytes(tmp_path: Path) -> None:
    with lm.Writer(tmp_path / "s.lzm") as writer:
        writer.create("x", shape=(10 << 30,), dtype="u1")
    with lm.open(tmp_path / "s.lzm") as store:
        pickled = pickle.dumps(store["x"])
    assert len(pickled) < SIZE_MAX
    assert pickle.loads(pickled).nbytes == 10 << 30


def test_what_is_not_in_the_file_goes_by_value(path: Path) -> None:
    copies: list[Callable[[lm.Store], Any]] = [
        lambda s: s["a"].copy(),
        lambda s: s["a"][[1, 2]],
        lambda s: s["a"] + 1,
        lambda s: s["a"][5:5],
    ]
    with lm.open(path) as store:
        for make in copies:
            array = make(store)
            again = pickle.loads(pickle.dumps(array))
            assert type(again) is np.ndarray
            np.testing.assert_array_equal(again, array)
        assert type(copy.deepcopy(store["a"][:3])) is not None
        assert not np.shares_memory(copy.deepcopy(store["a"][:3]), store["a"])
    with lm.open(path, "c") as store:
        a = store["a"]
        a[0] = 1
        assert np.array_equal(pickle.loads(pickle.dumps(a[:2])), a[:2])
        assert len(pickle.dumps(a[:2])) > 8000
    with lm.Store() as store:
        store["x"] = A
        store.snapshot()
        assert np.array_equal(pickle.loads(pickle.dumps(store["x"][:2])), A[:2])


def test_an_array_that_can_be_written_goes_by_reference_once_it_is_saved(
    path: Path,
) -> None:
    with lm.open(path, "r+") as store:
        a = store["a"]
        assert len(pickle.dumps(a)) < SIZE_MAX
        before = pickle.dumps(a[:2])
        a[0] = 1
        assert len(pickle.dumps(a)) > A.nbytes
        assert (pickle.loads(pickle.dumps(a[:2]))[0] == 1).all()
        store.snapshot("ones")
        after = pickle.dumps(a[:2])
        assert len(after) < SIZE_MAX
        np.testing.assert_array_equal(pickle.loads(before), A[:2])
        assert (pickle.loads(after)[0] == 1).all()
        store.restore(store.log()[0])
        assert len(pickle.dumps(a)) > A.nbytes  # the last commit holds another state
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(a)), A)
        store.flush()
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(a)), A)
        assert len(pickle.dumps(a)) < SIZE_MAX
        new = store.create("new", (100_000,), "f8")
        assert len(pickle.dumps(new)) > new.nbytes
        store.flush()
        assert len(pickle.dumps(new)) < SIZE_MAX


def test_an_older_state_is_found_behind_which_others_lie(path: Path) -> None:
    with lm.open(path) as store:
        first = pickle.dumps(store["a"])
    with lm.open(path, "r+") as store:
        store["a"][0] = 1
        store.flush()
        last = pickle.dumps(store["a"])
        store["a"][0] = 2
        store.flush()
    np.testing.assert_array_equal(pickle.loads(first), A)
    assert (pickle.loads(last)[0] == 1).all()


def test_a_state_that_is_gone_is_an_error(path: Path, tmp_path: Path) -> None:
    with lm.open(path) as store:
        pickled = pickle.dumps(store["a"])
    lm.save(tmp_path / "other.lzm", a=A + 1)
    os.replace(tmp_path / "other.lzm", path)
    with pytest.raises(lm.SnapshotNotFoundError, match=r"s\.lzm: .* another store"):
        pickle.loads(pickled)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        pickle.loads(pickled)


def test_a_closed_array_is_not_pickled(path: Path) -> None:
    with lm.open(path) as store:
        a = store["a"]
    with pytest.raises(lm.ClosedError):
        pickle.dumps(a)


def test_a_relative_path_is_of_the_folder_it_was_opened_in(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    with lm.open(path.name) as store:
        pickled = pickle.dumps(store["a"])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(pickle.loads(pickled), A)


def test_two_copies_of_a_file_that_went_on_are_told_apart(
    path: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copy(path, tmp_path / "other.lzm"))
    for file, value in ((path, 1), (other, 2)):
        with lm.open(file, "r+") as store:
            store["a"][0] = value
            store.flush()
            pickled = pickle.dumps(store["a"])
        if file == path:
            first = pickled
            offset = store.commit.sequence, os.path.getsize(file)
    assert offset == (store.commit.sequence, os.path.getsize(other))
    os.replace(other, path)
    with pytest.raises(lm.SnapshotNotFoundError, match=r"s\.lzm: .* another one"):
        pickle.loads(first)


def total(a: Any) -> tuple[str, float]:
    return type(a).__name__, float(a.sum(dtype="f8"))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_get_references(
    path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with (
        lm.open(path) as store,
        multiprocessing.get_context(method).Pool(2) as pool,
    ):
        parts = [store["a"][i : i + 100] for i in range(0, 1000, 100)]
        found = pool.map(total, parts)
        expected = [float(part.sum(dtype="f8")) for part in np.split(A, 10)]
        assert found == [("LazyArray", x) for x in expected]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_an_executors_workers_get_references(
    path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    context = multiprocessing.get_context(method)
    with lm.open(path) as store, ProcessPoolExecutor(2, context) as pool:
        a = store["a"]
        assert list(pool.map(total, [a[:5], a[7:9]])) == [
            ("LazyArray", float(A[:5].sum(dtype="f8"))),
            ("LazyArray", float(A[7:9].sum(dtype="f8"))),
        ]
        assert a.residency().chunks_resident == 0


def test_cloudpickle_and_a_fresh_process_get_a_reference(
    path: Path, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    with lm.open(path) as store:
        a = store["a"]
        pickled = cloudpickle.dumps(
            lambda: (type(a).__name__, a.object_name, float(a[3, 4]))
        )
        assert len(pickled) < 3 * SIZE_MAX
        assert a.residency().chunks_resident == 0
    file = path.with_suffix(".pickle")
    file.write_bytes(pickled)
    script = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb'))())"
    done = run_python(script, file)
    assert done.stdout.strip() == str(("LazyArray", "a", float(A[3, 4]))), done.stderr


@pytest.mark.parametrize("kind", ["here", "raised"])
def test_an_error_is_pickled_with_all_it_says(path: Path, kind: str) -> None:
    error: lm.LazyMemError = lm.FillError("no")
    if kind == "raised":  # as one is that is raised from outside in a thread
        error.path, error.offset, error.errno = "p", 5, 7
        error = error.as_raiser(lambda: None)()
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is lm.FillError
    for name in ("args", "path", "offset", "errno", "chunk_idx"):
        assert getattr(again, name) == getattr(error, name)
