# SPDX-License-Identifier: BSD-3-Clause
"""The operations whose crashes are tried, one line of a table each."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import lazymem as lm
from tests.crash.appender import Appender
from tests.crash.state import State

CHUNK = 4096
NAME = "s.lzm"
"""Of the store file, in a folder of its own."""

_rng = np.random.default_rng(20262)
A, B, C = (_rng.random(3 * CHUNK // 8) for _ in range(3))
D = np.arange(5 * CHUNK // 4, dtype="i4")


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
    open: Callable[[Path], Any] = lambda path: path


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


def _append(writer: Appender, **arrays: Any) -> None:
    for name, array in arrays.items():
        writer.put(name, array, CHUNK)
    writer.commit()


def _replace(writer: Appender) -> None:
    writer.delete("a")
    _append(writer, b=C, d=D)


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
    _save(path, a=A)
    whole = path.read_bytes()
    _append(writer := Appender(path), b=B)
    writer.close()
    torn = path.read_bytes()[:-70]
    assert torn.startswith(whole)
    path.write_bytes(torn)


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
    "append objects": Scenario(
        setup=_saved(a=A),
        open=Appender,
        steps=[lambda w: _append(w, b=B), _replace],
        states=[
            State.of({"a": A}),
            State.of({"a": A, "b": B}),
            State.of({"b": C, "d": D}),
        ],
    ),
    "append behind a torn tail": Scenario(
        setup=_torn,
        open=Appender,
        steps=[lambda w: _append(w, c=C)],
        states=[State.of({"a": A}), State.of({"a": A, "c": C})],
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
