# SPDX-License-Identifier: BSD-3-Clause
"""Once it has been touched, is reading an array as quick as reading any other memory?

Back of the envelope.  A filled page is an ordinary page of the process: the processor
does not know where its bytes came from, so every ratio should be 1.  Indexing a
subclass of ndarray with a method of its own costs an interpreter call, though.

Rivals: an ordinary ndarray with the same data in the same process, in turns; a second
one, its copy, shows how much two runs over ordinary memory differ.  Both are in small
pages, as the lazy array is.  numpy asks for huge pages for its own large arrays, where
the system has them: the last ndarray shows what these are worth.  Where memory is
fragmented, sums of the lazy array are up to a tenth slower, since a processor joins
pages that happen to be neighbours; ``echo 1 > /proc/sys/vm/compact_memory`` ends that.
For scalars also ``np.memmap``, another subclass of ndarray.  ``np.asarray(a)`` is the
lazy array's memory without the subclass.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data
import harness
import numpy as np
from harness import MIB, Bench

import lazymem as lm

_NOISE = 1.1
"""Two ordinary ndarrays differ by this much in one run, now and then."""
_SCALARS = 100_000
_SCALARS_SMOKE = 2_000

Array = np.ndarray[Any, Any]


def _timed(operation: Callable[[Array], Any], array: Array) -> tuple[float, float]:
    start = time.perf_counter()
    answer = operation(array)
    return time.perf_counter() - start, float(answer)


def _operations(bench: Bench, shape: tuple[int, ...]) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    rows = rng.integers(0, shape[0], bench.pick(500, 50))
    gather = rng.integers(0, shape, (bench.pick(1_000_000, 1000), 2)).T
    columns = rng.integers(0, shape[1], 20)
    return {
        "sum of all": lambda a: a.sum(),
        "500 random rows": lambda a: sum(float(a[i].sum()) for i in rows),
        "20 columns": lambda a: sum(float(a[:, j].sum()) for j in columns),
        "1,000,000 elements, fancy": lambda a: a[gather[0], gather[1]].sum(),
    }


def _scalars(bench: Bench, shape: tuple[int, ...]) -> Callable[[Array], float]:
    count = bench.pick(_SCALARS, _SCALARS_SMOKE)
    points = np.random.default_rng(2).integers(0, shape, (count, 2)).tolist()

    def read(a: Array) -> float:
        total = 0.0
        for i, j in points:
            total += a[i, j]
        return total

    return read


def _compare(bench: Bench, case: str, operation: Any, arrays: dict[str, Array]) -> None:
    found = harness.interleave(
        bench.pick(21, 2),
        {name: lambda a=a: _timed(operation, a) for name, a in arrays.items()},
    )
    seconds = {name: [x[0] for x in xs] for name, xs in found.items()}
    answers = {name: xs[0][1] for name, xs in found.items()}
    for name in list(arrays)[1:]:
        times = harness.ratio(seconds[name], seconds["ndarray"])
        bench.add(
            "reading what is resident",
            f"{case}: {name}",
            answers,
            ndarray_ms=harness.spread([s * 1e3 for s in seconds["ndarray"]]),
            ms=harness.spread([s * 1e3 for s in seconds[name]]),
            ratio=times,
            at_most=(times["median"], _NOISE) if name == "np.asarray(a)" else None,
        )


def _copy_in_small_pages(array: Array) -> Array:
    memory = harness.in_small_pages(array.nbytes)
    copy = np.frombuffer(memory, array.dtype).reshape(array.shape)
    copy[:] = array
    return copy


def _save(folder: Path, array: Array) -> tuple[Path, Path]:
    raw, store = folder / "x.npy", folder / "x.lzm"
    np.save(raw, array)
    lm.save(store, x=array, codec="lz4")
    return raw, store


def measure(bench: Bench) -> None:
    """Compare block operations, then loops over scalars."""
    plain = data.weather(bench.pick(256 * MIB, MIB))
    raw, path = _save(bench.folder, plain)
    with lm.open(path) as store:
        lazy = store["x"].load()
        arrays = {
            "ndarray": _copy_in_small_pages(plain),
            "its copy": _copy_in_small_pages(plain),
            "an ndarray in huge pages": plain,
            "np.asarray(a)": np.asarray(lazy),
            "a": lazy,
        }
        for case, operation in _operations(bench, plain.shape).items():
            _compare(bench, case, operation, arrays)
        mapped = np.load(raw, mmap_mode="r")
        mapped.sum()
        scalars = _scalars(bench, plain.shape)
        _compare(bench, "100,000 scalars", scalars, {**arrays, "memmap": mapped})


if __name__ == "__main__":
    harness.main(measure)
