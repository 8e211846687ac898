# SPDX-License-Identifier: BSD-3-Clause
"""The operations whose crashes are tried, one line of a table each."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazymem as lm
from tests.crash.state import Arrays, State

CHUNK = 4096
NAME = "s.lzm"
"""Of the store file, in a folder of its own."""

_rng = np.random.default_rng(20262)
A, B, C = (_rng.random(3 * CHUNK // 8) for _ in range(3))
D = np.arange(5 * CHUNK // 4, dtype="i4")


def _path_itself(path: Path) -> Path:
    return path


@dataclass(frozen=True)
class Scenario:
    """Steps that change a store file, each all or nothing.

    A step is called with what `open` returns.  It must be possible to try it again
    after it has failed.
    """

    setup: Callable[[Path], object]
    """Makes what is there before; called with the path of the store file."""
    steps: Sequence[Callable[[Any], object]]
    states: Sequence[State | None]
    """What is there before the first step, and after each."""
    open: Callable[[Path], Any] = _path_itself


def _save(path: Path, **arrays: Any) -> None:
    lm.save(path, arrays, chunk_bytes=CHUNK)


def _write(path: Path) -> None:
    with lm.Writer(path, chunk_bytes=CHUNK) as w:
        a = w.create("a", A.shape, A.dtype)
        d = w.create("d", D.shape, D.dtype, codec="lz4")
        a.write(A[:700])
        d.write(D)
        a.write(A[700:])


def _nothing(path: Path) -> None:
    pass


def _saved(**arrays: Any) -> Callable[[Path], object]:
    return lambda path: _save(path, **arrays)


def _editable(path: Path) -> lm.Store:
    return lm.open(path, "r+")


def _history(path: Path) -> None:
    """Make a store of two snapshots and a flush."""
    with lm.open(path, "w") as store:
        x = store.create("x", A.shape, A.dtype, chunk_bytes=CHUNK)
        x[:] = A
        store.snapshot("one")
        x[:] = B
        store["d"] = D
        store.snapshot("two")
        x[:100] = C[:100]
        store.flush()


BC = np.concatenate([C[:100], B[100:]])
ONE: Arrays = {"x": A}
TWO: Arrays = {"x": B, "d": D}
LAST: Arrays = {"x": BC, "d": D}
BOTH = {"one": ONE, "two": TWO}


def _write_and_snapshot(store: lm.Store) -> None:
    store["a"][:100] = C[:100]
    store.snapshot("one")


def _change_all_and_snapshot(store: lm.Store) -> None:
    store["a"][:] = B
    store.put("d", D, chunk_bytes=CHUNK)
    store.snapshot("two")


def _go_back(store: lm.Store) -> None:
    store.restore("one", discard=True)
    store.flush()


def _torn(path: Path) -> None:
    """Make a store whose last commit was interrupted."""
    _history(path)
    with lm.open(path, "r+") as store:
        store["c"] = C
        store.flush()
    path.write_bytes(path.read_bytes()[:-70])


def _many(path: Path) -> None:
    """Make an object of many chunks, all small in the file."""
    with lm.open(path, "w") as store:
        x = store.create("x", MANY.shape, MANY.dtype, chunk_bytes=CHUNK)
        x[:] = MANY
        store.snapshot("one")


MANY = np.repeat(np.arange(1, 65), CHUNK // 8)
FEW, MORE = MANY.copy(), MANY.copy()
FEW[:3] = MORE[:3] = 0
MORE[30_000] = 5


def _write_x(store: lm.Store, values: Any) -> None:
    store["x"][:] = values


def _snapshot(store: lm.Store, values: Any, name: str | None) -> None:
    _write_x(store, values)
    store.snapshot(name)


def _snapshot_in_background(store: lm.Store, values: Any, name: str) -> None:
    _write_x(store, values)
    store.snapshot(name, wait=False).result()


def _flush(store: lm.Store, values: Any) -> None:
    _write_x(store, values)
    store.flush()


def _restore(store: lm.Store, name: str) -> None:
    store.restore(name, discard=True)
    store.flush()


def _create(store: lm.Store, name: str, values: Any) -> None:
    if name not in store:
        store.create(name, values.shape, values.dtype, chunk_bytes=CHUNK)
    store[name][:] = values
    store.flush()


def _put(store: lm.Store, **arrays: Any) -> None:
    for name, array in arrays.items():
        store[name] = array
    store.flush()


def _delete_snapshot_and_prune(store: lm.Store, name: str) -> None:
    if name in [info.name for info in store.log()]:
        store.delete_snapshot(name)
    store.prune()


def _compact_and_snapshot(store: lm.Store, values: Any, name: str) -> None:
    if not store.unsaved:
        store.compact()
    _snapshot(store, values, name)


def _delete(store: lm.Store, name: str) -> None:
    if name in store:
        del store[name]
    store.flush()


AC = np.concatenate([C[:100], A[100:]])
_ONE: dict[str, Any] = {"one": {"a": AC}}
_TWO: dict[str, Any] = {"two": {"a": B, "d": D}}
_BOTH = {**_ONE, **_TWO}

SCENARIOS = {
    "save to a new name": Scenario(
        setup=_nothing,
        steps=[lambda path: _save(path, a=A, d=D)],
        states=[None, State.of({"a": A, "d": D})],
    ),
    "save over a store": Scenario(
        setup=_saved(a=A, b=B),
        steps=[lambda path: _save(path, a=C), lambda path: _save(path, d=D)],
        states=[State.of({"a": A, "b": B}), State.of({"a": C}), State.of({"d": D})],
    ),
    "write several objects": Scenario(
        setup=_saved(b=B),
        steps=[_write],
        states=[State.of({"b": B}), State.of({"a": A, "d": D})],
    ),
    "open a new store": Scenario(
        setup=_nothing,
        steps=[lambda path: lm.open(path, "x").close()],
        states=[None, State.of({})],
    ),
    "open a new store over another": Scenario(
        setup=_history,
        steps=[lambda path: lm.open(path, "w").close()],
        states=[State.of(LAST, **BOTH), State.of({})],
    ),
    "snapshot": Scenario(
        setup=_history,
        open=_editable,
        steps=[
            lambda store: _snapshot(store, C, "three"),
            lambda store: _snapshot_in_background(store, A, "four"),
        ],
        states=[
            State.of(LAST, **BOTH),
            State.of({**LAST, "x": C}, **BOTH, three={**LAST, "x": C}),
            State.of(
                {**LAST, "x": A},
                **BOTH,
                three={**LAST, "x": C},
                four={**LAST, "x": A},
            ),
        ],
    ),
    "snapshot of few chunks": Scenario(
        setup=_many,
        open=_editable,
        steps=[
            lambda store: _snapshot(store, FEW, "two"),
            lambda store: _flush(store, MORE),
        ],
        states=[
            State.of({"x": MANY}, one={"x": MANY}),
            State.of({"x": FEW}, one={"x": MANY}, two={"x": FEW}),
            State.of({"x": MORE}, one={"x": MANY}, two={"x": FEW}),
        ],
    ),
    "snapshot behind a torn tail": Scenario(
        setup=_torn,
        open=_editable,
        steps=[lambda store: _snapshot(store, C, "three")],
        states=[
            State.of(LAST, **BOTH),
            State.of({**LAST, "x": C}, **BOTH, three={**LAST, "x": C}),
        ],
    ),
    "flush": Scenario(
        setup=_history,
        open=_editable,
        steps=[lambda store: _flush(store, C), lambda store: _flush(store, A)],
        states=[
            State.of(LAST, **BOTH),
            State.of({**LAST, "x": C}, **BOTH),
            State.of({**LAST, "x": A}, **BOTH),
        ],
    ),
    "restore, then flush": Scenario(
        setup=_history,
        open=_editable,
        steps=[lambda store: _restore(store, "one")],
        states=[State.of(LAST, **BOTH), State.of(ONE, **BOTH)],
    ),
    "create": Scenario(
        setup=_history,
        open=_editable,
        steps=[lambda store: _create(store, "new", C)],
        states=[State.of(LAST, **BOTH), State.of({**LAST, "new": C}, **BOTH)],
    ),
    "put": Scenario(
        setup=_history,
        open=_editable,
        steps=[lambda store: _put(store, d=C, e=A, f=A)],
        states=[
            State.of(LAST, **BOTH),
            State.of({**LAST, "d": C, "e": A, "f": A}, **BOTH),
        ],
    ),
    "delete": Scenario(
        setup=_history,
        open=_editable,
        steps=[lambda store: _delete(store, "d")],
        states=[State.of(LAST, **BOTH), State.of({"x": BC}, **BOTH)],
    ),
    "delete a snapshot": Scenario(
        setup=_history,
        open=_editable,
        steps=[lambda store: store.delete_snapshot("one")],
        states=[State.of(LAST, **BOTH), State.of(LAST, two=TWO)],
    ),
    "delete a snapshot and prune": Scenario(
        setup=_history,
        open=_editable,
        steps=[
            lambda store: _delete_snapshot_and_prune(store, "one"),
            lambda store: _flush(store, C),
        ],
        states=[
            State.of(LAST, **BOTH),
            State.of(LAST, two=TWO),
            State.of({**LAST, "x": C}, two=TWO),
        ],
    ),
    "compact, then snapshot": Scenario(
        setup=_history,
        open=_editable,
        steps=[lambda store: _compact_and_snapshot(store, C, "three")],
        states=[
            State.of(LAST, **BOTH),
            State.of({**LAST, "x": C}, **BOTH, three={**LAST, "x": C}),
        ],
    ),
    "write to arrays": Scenario(
        setup=_saved(a=A),
        open=lambda path: lm.open(path, "r+"),
        steps=[
            _write_and_snapshot,
            _change_all_and_snapshot,
            _go_back,
            lambda store: store.delete_snapshot("one"),
        ],
        states=[
            State.of({"a": A}),
            State.of({"a": AC}, **_ONE),
            State.of({"a": B, "d": D}, **_BOTH),
            State.of({"a": AC}, **_BOTH),
            State.of({"a": AC}, **_TWO),
        ],
    ),
}


def _in_place(path: Path) -> None:
    """Overwrite the file with another store."""
    made = path.with_suffix(".tmp")
    _save(made, a=C)
    path.write_bytes(made.read_bytes())
    made.unlink()
    _sync(path)
    _sync(path.parent)


def _renamed_early(path: Path) -> None:
    """Rename a file that is not on the disk."""
    made, copy = path.with_suffix(".tmp"), path.with_suffix(".copy")
    _save(made, a=C)
    copy.write_bytes(made.read_bytes())
    os.replace(copy, path)
    _sync(path)
    made.unlink()
    _sync(path.parent)


def _reported_early(path: Path) -> None:
    """Rename a file, and don't wait until its name is on the disk."""
    made = path.with_suffix(".tmp")
    _save(made, a=C)
    os.replace(made, path)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


BROKEN = {
    function.__name__: Scenario(
        setup=_saved(a=A),
        steps=[function],
        states=[State.of({"a": A}), State.of({"a": C})],
    )
    for function in (_in_place, _renamed_early, _reported_early)
}
"""What the harness must find fault with."""

OTHERS = {
    **BROKEN,
    "prune": Scenario(
        setup=_nothing, open=_editable, steps=[lm.Store.prune], states=[]
    ),
}

CASES = [
    pytest.param(
        name, marks=() if scenario.open is _path_itself else pytest.mark.needs_uffd
    )
    for name, scenario in SCENARIOS.items()
]
"""The names, for tests: what is written to arrays can't be told everywhere."""
