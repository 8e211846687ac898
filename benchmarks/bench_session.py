# SPDX-License-Identifier: BSD-3-Clause
"""What does it cost to keep the variables of a notebook, and to go back to them?

Back of the envelope.  *First save*: who compresses writes a third of the bytes, at what
two cores compress, 1 GB/s and more; who pickles writes all of them at the disk's pace,
and must not end before the disk has them.  *After a hundredth has changed*: pickles are
written anew.  lazymem compares plain arrays with what is stored, which costs their
decompression, 2 GB/s; of arrays that are its own it knows what was written, 5 ms a
gigabyte.  Kishu finds out after each cell which variables changed, by hashing what they
reach, and pickles these into SQLite.  *Undo*: who has pickles loads them; lazymem drops
what was written.  *A new kernel*: likewise, and first use fills a chunk of each array.

A session is weather in eight arrays, and a frame of floats, integers, times and
categories.  All rivals sync their file; a new kernel finds nothing in the page cache.
"""

from __future__ import annotations

import os
import sys
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import data
import harness
import numpy as np
from harness import GIB, MIB

import lazymem as lm

Variables = dict[str, Any]

_COLUMNS = 16384
_FIELDS = 8
_SHARE = 0.01
_SIZES = {"1": GIB, "5": 5 * GIB}
"""Gibibytes."""
_SECONDS_MAX = 100
"""A rival that has taken so long has no part in later rounds."""
_UNDO_OF_SAVE_MAX = 0.05
_RESTART_S_MAX = 1.0


def session_of(nbytes: int) -> Variables:
    """Return the variables of a notebook, of about so many bytes."""
    import pandas as pd

    part = nbytes // (_FIELDS + 2)
    weather = data.weather(part).reshape(-1, _COLUMNS)
    variables = {f"field{i}": weather + np.float32(i) for i in range(_FIELDS)}
    count = 2 * part // 25
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            "reading": np.resize(weather, count).astype("f8"),
            "station": rng.integers(0, 5000, count),
            "time": pd.date_range("2020-01-01", periods=count, freq="s"),
            "kind": pd.Categorical.from_codes(
                rng.integers(0, 3, count).astype("i1"), ["a", "b", "c"]
            ),
        }
    )
    return {**variables, "frame": frame, "note": {"of": "a benchmark", "n": [1, 2]}}


def change(variables: Variables, seed: int) -> None:
    """Do what a cell does that changes a hundredth: rows here and there, a note."""
    rng = np.random.default_rng(seed)
    for i in range(_FIELDS):
        field = variables[f"field{i}"]
        rows = rng.choice(len(field), max(1, round(len(field) * _SHARE)), False)
        for row in rows.tolist():
            field[row] += 1
    frame = variables["frame"]
    count = max(1, round(len(frame) * _SHARE))
    at = int(rng.integers(0, len(frame) - count))
    frame.iloc[at : at + count, 0] = float(seed)
    variables["note"]["n"].append(seed)


def first_use(variables: Variables) -> float:
    """Look at one row of each array, and at some rows of the frame."""
    fields = sum(float(variables[f"field{i}"][-1].mean()) for i in range(_FIELDS))
    return fields + float(variables["frame"].iloc[1000:1100]["reading"].mean())


def answer(variables: Variables) -> int:
    """Return a number that depends on each bit of it."""
    frame = variables["frame"]
    codes = frame["kind"].cat.codes
    columns = [frame[name].to_numpy() for name in ("reading", "station", "time")]
    fields = [variables[f"field{i}"] for i in range(_FIELDS)]
    parts = [np.ascontiguousarray(x).view("u8").sum() for x in (*fields, *columns)]
    told = [int(codes.sum()), *variables["note"]["n"], *map(int, parts)]
    return sum(n * (i + 1) for i, n in enumerate(told)) % 2**53


# ---- rivals --------------------------------------------------------------------------


class Pickles:
    """A rival that writes and loads all variables at once."""

    def __init__(
        self, write: Callable[[Variables, Path], Any], load: Callable[[Path], Variables]
    ) -> None:
        self._write, self._load = write, load

    def begin(self, path: Path) -> None:
        """Remember where the file is to be."""
        self._path = path

    def save(self, variables: Variables) -> None:
        """Write all, and let the file take the place of the last one."""
        fresh = self._path.with_name("fresh")
        self._write(variables, fresh)
        harness.sync(fresh)
        fresh.replace(self._path)

    def undo(self, variables: Variables) -> None:
        """Load what was saved last."""
        variables.update(self._load(self._path))

    def restore(self, path: Path) -> Variables:
        """Load all in a new process."""
        return self._load(path)

    def end(self) -> None:
        """Nothing is open."""


class Session:
    """lazymem: a store that stays open."""

    def begin(self, path: Path) -> None:
        """Open a new store."""
        self._store = lm.open(path, "w")

    def save(self, variables: Variables) -> None:
        """Append what differs from what is stored."""
        from lazymem import session

        session.save(variables, self._store)

    def checkpoint(self, variables: Variables, name: str) -> None:
        """Adopt the arrays, and keep the state."""
        from lazymem import session

        session.checkpoint(variables, self._store, name)

    def undo(self, variables: Variables) -> None:
        """Go back to the last checkpoint."""
        from lazymem import session

        session.rollback(variables, self._store, "last")

    def restore(self, path: Path) -> Variables:
        """Open the store in a new process."""
        from lazymem import session

        self._store = lm.open(path, "r+")
        return session.restore(self._store)

    def end(self) -> None:
        """Close the store."""
        self._store.close(discard=True)


def _dill_dump(variables: Variables, path: Path) -> None:
    import dill

    main = types.ModuleType("work")
    main.__dict__.update(variables)
    sys.modules["work"] = main
    dill.dump_session(str(path), main=main)


def _dill_load(path: Path) -> Variables:
    import dill

    main = types.ModuleType("work")
    sys.modules["work"] = main
    dill.load_session(str(path), main=main)
    return {name: x for name, x in vars(main).items() if not name.startswith("__")}


def _joblib_dump(variables: Variables, path: Path, **options: Any) -> None:
    import joblib

    joblib.dump(variables, path, **options)


def _joblib_load(path: Path) -> Variables:
    import joblib

    return joblib.load(path)


class Kishu:
    """Kishu: what it does after a cell that has used all variables is its save.

    What it does for the notebook's file is left out: there is no Jupyter server.
    """

    def begin(self, path: Path) -> None:
        """Attach it to a shell."""
        from IPython.core.interactiveshell import InteractiveShell
        from kishu.jupyterint import KishuForJupyter
        from kishu.notebook_id import NotebookId

        self._shell = shell = InteractiveShell.instance()
        notebook = NotebookId("k", path.with_suffix(".ipynb"), "k")
        self._kishu = kishu = KishuForJupyter(notebook, ip=shell)
        for of_notebook in ("save_notebook", "_edit_execution_counts"):
            setattr(kishu, of_notebook, lambda *_: None)
        kishu._read_and_fill_notebook_state = lambda *_: None
        self._path, self._cell = path, shell.run_cell("")

    def save(self, variables: Variables) -> None:
        """Let it see the end of a cell, and remember this state."""
        self.end_cell(variables)
        head = self._kishu._kishu_branch.get_head().commit_id
        self._path.with_suffix(".head").write_text(head)
        harness.sync(self._path)

    def end_cell(self, variables: Variables) -> None:
        """Let it see the end of a cell that has used all variables."""
        self._kishu.pre_run_cell(None)
        for name, value in variables.items():
            self._shell.user_ns[name] = value
        self._kishu.post_run_cell(self._cell)

    def undo(self, variables: Variables) -> None:
        """Check the state out that was saved last."""
        head = self._path.with_suffix(".head").read_text()
        self._kishu.checkout(head, skip_notebook=True)
        variables.update({name: self._shell.user_ns[name] for name in variables})

    def restore(self, path: Path) -> Variables:
        """Attach it to a new shell, and check the last commit out."""
        self.begin(path)
        before = set(self._shell.user_ns)
        self.undo({})
        names = set(self._shell.user_ns) - before
        return {name: self._shell.user_ns[name] for name in names}

    def end(self) -> None:
        """Nothing is open."""


RIVALS: dict[str, Callable[[], Pickles | Session | Kishu]] = {
    "lazymem": Session,
    "kishu": Kishu,
    "dill": lambda: Pickles(_dill_dump, _dill_load),
    "joblib": lambda: Pickles(_joblib_dump, _joblib_load),
    "joblib_lz4": lambda: Pickles(
        partial(_joblib_dump, compress=("lz4", 1)), _joblib_load
    ),
}


def _packages(name: str) -> tuple[str, ...]:
    return ("pandas", name.partition("_")[0])


# ---- measuring -----------------------------------------------------------------------


def _timed(function: Callable[..., Any], *args: Any) -> float:
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def work(name: str, path: str, nbytes: int, seed: int) -> dict[str, float]:
    """Save, change, save again, and undo, in the life of one kernel."""
    import importlib

    for package in _packages(name):
        importlib.import_module(package)
    rival, file = RIVALS[name](), Path(path)
    variables = session_of(nbytes)
    rival.begin(file)
    found = {"first_s": _timed(rival.save, variables)}
    found["first_MiB"] = os.stat(file).st_size / MIB
    change(variables, seed)
    found["again_s"] = _timed(rival.save, variables)
    found["again_MiB"] = os.stat(file).st_size / MIB
    if isinstance(rival, Session):
        found["adopt_s"] = _timed(rival.checkpoint, variables, "adopted")
        change(variables, seed + 1)
        found["checkpoint_s"] = _timed(rival.checkpoint, variables, "last")
    else:
        change(variables, seed + 1)
        rival.save(variables)
    expected = answer(variables)
    change(variables, seed + 2)
    if isinstance(rival, Kishu):
        rival.end_cell(variables)  # which costs as much as a save
    found["undo_s"] = _timed(rival.undo, variables)
    found["answer"] = answer(variables)
    if found["answer"] != expected:
        raise ValueError(f"{name}: undone, it is not what it was")
    rival.end()
    harness.drop_from_page_cache(file)
    return found


def restart(name: str, path: str) -> dict[str, float]:
    """Restore everything in a new kernel, and use it for the first time."""
    import importlib

    for package in _packages(name):
        importlib.import_module(package)
    rival = RIVALS[name]()
    start = time.perf_counter()
    variables = rival.restore(Path(path))
    restored = time.perf_counter()
    first_use(variables)
    end = time.perf_counter()
    found = {"restore_s": restored - start, "use_s": end - restored}
    return {**found, "answer": answer(variables)}


def _life(bench: harness.Bench, name: str, nbytes: int, seed: int) -> dict[str, float]:
    path = str(bench.folder / f"{name}.{name}db")
    found = harness.fresh(work, name, path, nbytes, seed)
    again = harness.fresh(restart, name, path)
    harness.remove(Path(path))
    if again["answer"] != found["answer"]:
        raise ValueError(f"{name}: restored, it is not what it was")
    return {**again, **found}


def measure(bench: harness.Bench) -> None:
    """Let each rival live through the same sessions, in turns."""
    sizes = [16 * MIB] if bench.smoke else [_SIZES[x] for x in bench.chosen["sizes"]]
    for nbytes in sizes:
        _measure(bench, nbytes)


def _measure(bench: harness.Bench, nbytes: int) -> None:
    if not bench.smoke:
        harness.use_memory(2 * nbytes)
    names = [
        name
        for name in bench.chosen["rivals"]
        if all(map(harness.have, _packages(name)))
    ]
    turns = {name: partial(_life, bench, name, nbytes, 7) for name in names}
    found = harness.interleave(bench.pick(3, 1), turns, _SECONDS_MAX)
    rows = {
        "first save": "first_s",
        "save, 1 % changed": "again_s",
        "checkpoint, adopting all": "adopt_s",
        "checkpoint, 1 % changed": "checkpoint_s",
        "undo of a cell that changed 1 %": "undo_s",
        "new kernel: restore": "restore_s",
        "new kernel: first use": "use_s",
        "file after the first save, MiB": "first_MiB",
        "file after the second, MiB": "again_MiB",
    }
    answers = {name: xs[-1]["answer"] for name, xs in found.items()}
    ours = {
        key: harness.spread([x[key] for x in found["lazymem"]]) for key in rows.values()
    }
    bounds = {
        "undo_s": ours["first_s"]["median"] * _UNDO_OF_SAVE_MAX,
        "restore_s": _RESTART_S_MAX,
    }
    for case, key in rows.items():
        bench.add(
            f"a session of {nbytes / GIB:.3g} GiB",
            case,
            answers,
            at_most=(ours[key]["median"], bounds[key]) if key in bounds else None,
            **{
                name: harness.spread([x[key] for x in xs])
                for name, xs in found.items()
                if key in xs[0]
            },
        )


if __name__ == "__main__":
    harness.main(measure, rivals=tuple(RIVALS), sizes=tuple(_SIZES))
