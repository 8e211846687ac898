# SPDX-License-Identifier: BSD-3-Clause
"""What a store holds, as something that can be compared."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import lazymem as lm

Arrays = Mapping[str, npt.NDArray[Any]]


def _array(dtype: np.dtype[Any], shape: tuple[int, ...], data: bytes) -> str:
    return f"{dtype.str}{shape} {hashlib.sha256(data).hexdigest()[:8]}"


@dataclass(frozen=True)
class State:
    """Arrays by name, and the snapshots that have a name, each with its own."""

    arrays: Mapping[str, str]
    snapshots: Mapping[str, Mapping[str, str]]

    @classmethod
    def of(cls, arrays: Arrays, **snapshots: Arrays) -> State:
        """Return the state that holds these arrays."""
        return cls(_arrays(arrays), {k: _arrays(v) for k, v in snapshots.items()})


def _arrays(arrays: Arrays) -> dict[str, str]:
    return {k: _array(a.dtype, a.shape, a.tobytes()) for k, a in arrays.items()}


class DamageError(Exception):
    """A store opens, but not all that it holds can be read."""


def read_state(path: Path) -> State | None:
    """Return what a store file holds; None if there is no file.

    Raises
    ------
    Exception
        If the file can't be opened, or not all of it be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lm.LazyMemWarning)  # a torn tail
        try:
            store = lm.open(path)
        except FileNotFoundError:
            return None
        with store:
            snapshots = {}
            for info in store.log():
                with lm.open(path, at=info) as earlier:
                    found = _read(earlier)
                if info.name is not None:
                    snapshots[info.name] = found
            return State(_read(store), snapshots)


def go_on(path: Path, state: State | None) -> None:
    """Add to a store that holds `state`, as one does after a crash."""
    if state is None:
        state = State({}, {})
        lm.open(path, "x").close()
    more = np.arange(100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lm.LazyMemWarning)
        with lm.open(path, "r+") as store:
            store["more"] = more
            store.flush()
    found = read_state(path)
    expected = State({**state.arrays, **_arrays({"more": more})}, state.snapshots)
    if found != expected:
        raise DamageError(f"then it can't be added to: {found}, not {expected}")


def _read(store: lm.Store) -> dict[str, str]:
    damage = store.verify()
    if damage:
        raise DamageError(f"{len(damage)} errors, the first: {damage[0]}")
    arrays = {}
    for name in store:
        info = store.info(name)
        data = b"".join(bytes(block) for block in store.blocks(name))
        arrays[name] = _array(info.dtype, info.shape, data)
    return arrays
