# SPDX-License-Identifier: BSD-3-Clause
"""How long until the answer, from a file that has just been opened?

Back of the envelope, for a field of 256 MiB in chunks of 128 KiB: 10,000 random
elements or one column touch every one of its 2048 chunks, and so cost what the sum of
all costs: 256 MiB through one core, decoded (1.2 to 1.7 GiB/s with lz4, half of it with
zstd) and installed (2.5 GiB/s), 0.3 s and 0.5 s.  200 rows touch a tenth.  The file is
100 MB: 0.15 s from the disk.  The second time nothing is left to do but to read memory.

Rivals: ``np.memmap`` of the raw file (no codec, two to three times the bytes from the
disk, read 16 pages around each touched one), and blosc2 with the same codec at the same
level (lz4: clevel 9, zstd level 3: clevel 2; see bench_size.py), which decodes anew at
each access.  Each figure is from a fresh process that has imported and opened; the
file, not the libraries, has been dropped from the page cache.  "again" is the same
operation once more.
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

_ELEMENTS = 10_000
_ELEMENTS_SMOKE = 200
_ROWS = 200


def _elements(array: Any, count: int) -> float:
    points = np.random.default_rng(3).integers(0, array.shape, (count, 2)).tolist()
    return float(sum(float(array[i, j]) for i, j in points))


def _gather(array: Any, count: int) -> float:
    rows, columns = np.random.default_rng(4).integers(0, array.shape, (count, 2)).T
    return float(array[rows, columns].sum(dtype=np.float64))


def _rows(array: Any, _: int) -> float:
    rows = np.random.default_rng(5).integers(0, array.shape[0], _ROWS).tolist()
    return float(sum(float(array[i].sum(dtype=np.float64)) for i in rows))


def _column(array: Any, _: int) -> float:
    return float(np.asarray(array[:, array.shape[1] // 3]).sum(dtype=np.float64))


def _sum(array: Any, _: int) -> float:
    return float(array.sum())


_OPERATIONS: dict[str, Callable[[Any, int], float]] = {
    "10,000 random elements": _elements,
    "10,000 elements, fancy": _gather,
    "200 random rows": _rows,
    "one column": _column,
    "sum of all": _sum,
}
_CODECS = {"lz4": (1, "LZ4", 9), "zstd": (3, "ZSTD", 2)}


def read(peer: str, path: str, operation: str, count: int) -> dict[str, float]:
    """Open a file, do an operation twice, and return how long each took."""
    array: Any
    if peer == "memmap":
        array = np.load(path, mmap_mode="r")
    elif peer == "blosc2":
        import blosc2

        array = blosc2.open(path, mode="r")
    else:
        array = lm.open(path)["x"]
    function = _OPERATIONS[operation]
    start = time.perf_counter()
    answer = function(array, count)
    middle = time.perf_counter()
    function(array, count)
    return {
        "answer": answer,
        "first": middle - start,
        "again": time.perf_counter() - middle,
    }


def _write(folder: Path, array: Any) -> dict[str, tuple[str, Path]]:
    """Write the array in every format; returns the peer and the file, by column."""
    files = {"memmap": ("memmap", folder / "x.npy")}
    np.save(files["memmap"][1], array)
    for codec, (level, b2_codec, clevel) in _CODECS.items():
        path = folder / f"{codec}.lzm"
        lm.save(path, x=array, codec=codec, level=level)
        if harness.have("blosc2"):
            import blosc2

            b2_path = folder / f"{codec}.b2nd"
            cparams = blosc2.CParams(
                codec=getattr(blosc2.Codec, b2_codec), clevel=clevel, typesize=4
            )
            blosc2.asarray(array, urlpath=str(b2_path), mode="w", cparams=cparams)
            files[f"blosc2_{codec}"] = ("blosc2", b2_path)
        files[f"lazymem_{codec}"] = ("lazymem", path)
    return files


def _run(peer: str, path: Path, operation: str, count: int) -> Any:
    harness.drop_from_page_cache(path)
    return harness.fresh(read, peer, str(path), operation, count)


def _compare(bench: Bench, operation: str, files: dict[str, tuple[str, Path]]) -> None:
    count = bench.pick(_ELEMENTS, _ELEMENTS_SMOKE)
    found = harness.interleave(
        bench.pick(7, 1),
        {
            name: lambda file=file: _run(*file, operation, count)
            for name, file in files.items()
        },
    )
    answers = {name: xs[0]["answer"] for name, xs in found.items()}
    for when in ("first", "again"):
        seconds = {name: [x[when] for x in xs] for name, xs in found.items()}
        values: dict[str, Any] = {
            f"{name}_s": harness.spread(xs) for name, xs in seconds.items()
        }
        for codec in _CODECS:
            ours = seconds[f"lazymem_{codec}"]
            rivals = {"memmap": "memmap", f"blosc2_{codec}": "blosc2"}
            for rival, name in rivals.items():
                if rival in seconds:
                    key = f"{codec}_to_{name}"
                    values[key] = harness.ratio(ours, seconds[rival])
        bench.add(f"reading, {when}", operation, answers, **values)


def measure(bench: Bench) -> None:
    """Do every operation on a weather field."""
    files = _write(bench.folder, data.weather(bench.pick(256 * MIB, MIB)))
    for operation in _OPERATIONS:
        _compare(bench, operation, files)


if __name__ == "__main__":
    harness.main(measure)
