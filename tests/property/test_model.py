# SPDX-License-Identifier: BSD-3-Clause
"""Does a store hold what a dict of ndarrays would, through any history of it?"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

import lazymem as lm
from tests.reference_reader import read

NAMES = st.sampled_from(["a", "b", "c"])
SNAPSHOTS = st.sampled_from(["s", "t", "u", None])
SHAPES = st.sampled_from([(5,), (3, 3000), (40, 700), (0, 3), (), (9000,)])
DTYPES = st.sampled_from(["f4", "u1", "i8", ">i2"])
ORDERS = st.sampled_from(["C", "F"])
CHUNKS = st.sampled_from([4096, 8192])
VALUES = st.integers(0, 9)


@dataclass
class State:
    """What a store holds."""

    arrays: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    attrs: dict[str, int] = field(default_factory=dict)

    def same(self, other: dict[str, Any], attrs: dict[str, Any]) -> bool:
        """Return whether a store holds the same."""
        return (
            list(self.arrays) == list(other)
            and all(
                a.dtype == other[name].dtype
                and a.shape == other[name].shape
                and a.tobytes() == np.asarray(other[name]).tobytes()
                for name, a in self.arrays.items()
            )
            and self.attrs == dict(attrs)
        )


class Model(RuleBasedStateMachine):
    """A store and its oracle, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name, "s.lzm")
        self.store: Any = None
        self.now, self.committed = State(), State()
        self.is_changed = False  # of what unsaved speaks
        self.kept: dict[int, tuple[str | None, State]] = {}

    def teardown(self) -> None:
        if self.store is not None:
            self.store.close(discard=True)
        self.folder.cleanup()

    @initialize(chunk_bytes=CHUNKS, saves=st.booleans())
    def begin(self, chunk_bytes: int, saves: bool) -> None:
        if saves:
            self.now.arrays = {"a": np.arange(9000.0).reshape(90, 100)}
            lm.save(self.path, self.now.arrays, chunk_bytes=chunk_bytes)
            self.kept[1] = (None, copy.deepcopy(self.now))
        else:
            lm.open(self.path, "x").close()
        self.committed = copy.deepcopy(self.now)
        self.store = lm.open(self.path, "r+")

    # ---- changes ---------------------------------------------------------------------

    @rule(name=NAMES, shape=SHAPES, dtype=DTYPES, order=ORDERS, chunk_bytes=CHUNKS)
    def create(
        self, name: str, shape: Any, dtype: str, order: Any, chunk_bytes: int
    ) -> None:
        if name in self.now.arrays:
            with pytest.raises(ValueError, match="exists"):
                self.store.create(name, shape, dtype)
            return
        self.store.create(name, shape, dtype, order=order, chunk_bytes=chunk_bytes)
        self.now.arrays[name] = np.zeros(shape, dtype, order)
        self.is_changed = True

    @rule(name=NAMES, shape=SHAPES, dtype=DTYPES, order=ORDERS, value=VALUES)
    def put(self, name: str, shape: Any, dtype: str, order: Any, value: int) -> None:
        array = np.full(shape, value, dtype, order)
        array.reshape(-1)[::3] = 1
        self.store[name] = array
        self.now.arrays[name] = array.copy(order)
        self.is_changed = True

    @precondition(lambda self: self.now.arrays)
    @rule(data=st.data())
    def put_what_is_its_own_source(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.now.arrays)))
        self.store[name] = self.store[name].T
        self.now.arrays[name] = self.now.arrays[name].T.copy("A")
        self.is_changed = True

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        if name not in self.now.arrays:
            with pytest.raises(lm.ObjectNotFoundError):
                del self.store[name]
            return
        del self.store[name]
        del self.now.arrays[name]
        self.is_changed = True

    @precondition(lambda self: any(a.size for a in self.now.arrays.values()))
    @rule(data=st.data(), value=VALUES)
    def write(self, data: st.DataObject, value: int) -> None:
        names = sorted(name for name, a in self.now.arrays.items() if a.size)
        name = data.draw(st.sampled_from(names))
        array = self.now.arrays[name]
        start, stop = data.draw(
            st.tuples(st.integers(0, 99), st.integers(0, 99)).map(sorted)
        )
        index: Any = ...
        if array.ndim:
            index = slice(len(array) * start // 100, len(array) * stop // 100 + 1)
        self.store[name][index] = value
        array[index] = value
        self.is_changed = True

    @rule(key=NAMES, value=VALUES)
    def set_attribute(self, key: str, value: int) -> None:
        self.store.attrs[key] = value
        self.now.attrs[key] = value
        self.is_changed = True

    @rule(name=NAMES)
    def evict(self, name: str) -> None:
        if name in self.now.arrays:
            self.store[name].evict()

    # ---- commits ---------------------------------------------------------------------

    @rule(name=SNAPSHOTS, waits=st.booleans())
    def snapshot(self, name: str | None, waits: bool) -> None:
        if name is not None and name in [kept for kept, _ in self.kept.values()]:
            with pytest.raises(ValueError, match="exists"):
                self.store.snapshot(name)
            return
        if waits:
            info = self.store.snapshot(name)
        else:
            info = self.store.snapshot(name, wait=False).result(60)
        self.kept[info.sequence] = (name, copy.deepcopy(self.now))
        self.committed = copy.deepcopy(self.now)
        self.is_changed = False

    @rule()
    def flush(self) -> None:
        self.store.flush()
        self.committed = copy.deepcopy(self.now)
        self.is_changed = False

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(sorted(self.kept)))
        if self.store.unsaved:
            assert self.is_changed
            with pytest.raises(lm.UnsavedChangesError):
                self.store.restore(sequence)
        self.store.restore(sequence, discard=True)
        self.now = copy.deepcopy(self.kept[sequence][1])
        self.is_changed = False

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def delete_snapshot(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(sorted(self.kept)))
        self.store.delete_snapshot(sequence)
        del self.kept[sequence]

    @rule()
    def prune(self) -> None:
        self.store.prune()

    @rule(codec=st.sampled_from([None, "lz4"]))
    def compact(self, codec: str | None) -> None:
        if self.store.unsaved:
            with pytest.raises(lm.UnsavedChangesError):
                self.store.compact(codec=codec)
        else:
            self.store.compact(codec=codec)
            for name in self.now.arrays:
                self.store[name].evict()  # is all of it in the new file?

    @rule()
    def reopen(self) -> None:
        self.store.close(discard=True)
        arrays, manifest = read(self.path)
        assert self.committed.same(arrays, manifest["attrs"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lm.store.warnings, "warn", lambda *_, **__: None)
            self.store = lm.open(self.path, "r+")  # discarded puts are a torn tail
        self.now = copy.deepcopy(self.committed)
        self.is_changed = False

    # ---- what must hold --------------------------------------------------------------

    @invariant()
    def the_store_has_what_the_oracle_has(self) -> None:
        if self.store is None:
            return
        assert self.now.same(self.store, self.store.attrs)
        if self.store.unsaved:
            assert self.is_changed

    @invariant()
    def others_read_the_last_commit(self) -> None:
        if self.store is None:
            return
        with lm.open(self.path) as store:
            assert self.committed.same(store, store.attrs)

    @rule()
    def every_snapshot_is_what_it_was(self) -> None:
        log = self.store.log()
        assert [(i.sequence, i.name) for i in log] == [
            (sequence, name) for sequence, (name, _) in self.kept.items()
        ]
        numbers = [None, *self.kept]
        assert all(i.parent in numbers for i in log)
        for info in log:
            with lm.open(self.path, at=info) as store:
                assert self.kept[info.sequence][1].same(store, store.attrs)

    @precondition(lambda self: len(self.kept) > 1)
    @rule(data=st.data())
    def differences_are_those_of_the_oracle(self, data: st.DataObject) -> None:
        sequences = st.sampled_from(sorted(self.kept))
        a, b = data.draw(sequences), data.draw(sequences)
        old, new = self.kept[a][1].arrays, self.kept[b][1].arrays
        diff = self.store.diff(a, b)
        assert diff.added == tuple(name for name in new if name not in old)
        assert diff.removed == tuple(name for name in old if name not in new)
        for name in new.keys() & old.keys():
            x, y = old[name], new[name]
            found = diff.changed.get(name)
            is_reshaped = found is not None and found.is_reshaped
            if x.shape != y.shape or x.dtype != y.dtype or is_reshaped:
                assert is_reshaped
                continue
            if y.ndim == 0:
                rows = {0} if x.tobytes() != y.tobytes() else set()
            else:
                axis = found.axis if found else 0
                x, y = np.moveaxis(x, axis or 0, 0), np.moveaxis(y, axis or 0, 0)
                rows = {i for i in range(len(y)) if x[i].tobytes() != y[i].tobytes()}
            ranges = found.ranges if found else ()
            assert {i for r in ranges for i in range(*r)} == rows
            assert all(r[1] < s[0] for r, s in pairwise(ranges))


TestModel = pytest.mark.needs_uffd(Model.TestCase)
TestModel.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
