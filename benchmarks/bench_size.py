# SPDX-License-Identifier: BSD-3-Clause
"""How small are the files, and how long does writing take?

Back of the envelope.  lazymem and blosc2 use the same codecs behind the same byte
shuffle, so sizes differ by how data are cut: lazymem compresses chunks of 128 KiB as
one, blosc2 cuts its blocks (here 32 to 256 KiB) into one stream for each byte of an
element.  A few percent, either way.  Writing is the codec's speed on all cores, 0.5 to
1.5 GiB/s, and the disk's.

Rival: blosc2 at the same level of the same codec.  Its ``clevel`` is not the codec's
level: for lz4, acceleration is 10 - clevel, so that clevel 9 is what liblz4 does by
default; for zstd, the level is 2 * clevel - 1, so that levels 1, 3 and 5 are clevel 1,
2 and 3.  Both use all cores and choose the shape of their chunks; blosc2 always
shuffles, lazymem by trial.  Writing ends when the file is on the disk: blosc2's is
synced here, lazymem's always is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data
import harness
import numpy as np
from harness import GIB, MIB, Bench

import lazymem as lm

_LEVELS = {  # lazymem's codec and level, blosc2's codec and clevel
    "lz4": ("lz4", 1, "LZ4", 9),
    "lz4, acceleration 5": ("lz4", -5, "LZ4", 5),
    "zstd 1": ("zstd", 1, "ZSTD", 1),
    "zstd 3": ("zstd", 3, "ZSTD", 2),
    "zstd 5": ("zstd", 5, "ZSTD", 3),
}
_SMOKE_LEVELS = ("lz4", "zstd 3")
_RATIO_MAX = 1.03

Array = np.ndarray[Any, Any]


def _timed_write(write: Callable[[], Any], path: Path) -> tuple[float, int]:
    start = time.perf_counter()
    write()
    seconds = time.perf_counter() - start
    return seconds, path.stat().st_size


def _write_blosc2(path: Path, array: Array, codec: str, clevel: int) -> None:
    import blosc2

    cparams = blosc2.CParams(
        codec=getattr(blosc2.Codec, codec),
        clevel=clevel,
        typesize=array.dtype.itemsize,
        nthreads=len(os.sched_getaffinity(0)),
    )
    blosc2.asarray(array, urlpath=str(path), mode="w", cparams=cparams)
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def _checksum(array: Array) -> float:
    """Return a number in which every element counts and its place too."""
    weights = np.arange(1, len(array) + 1, dtype=np.float64)
    return float(array.sum(axis=1, dtype=np.float64) @ weights)


def _read_back(peer: str, path: Path) -> float:
    if peer == "lazymem":
        with lm.open(path) as store:
            return _checksum(store["x"])
    import blosc2

    return _checksum(blosc2.open(str(path), mode="r")[:])


def _compare(
    bench: Bench, name: str, array: Array, level: str, expected: float
) -> None:
    codec, ours, b2_codec, clevel = _LEVELS[level]
    paths = {"lazymem": bench.folder / "x.lzm"}
    writers = {
        "lazymem": lambda: lm.save(paths["lazymem"], x=array, codec=codec, level=ours)
    }
    if harness.have("blosc2"):
        paths["blosc2"] = bench.folder / "x.b2nd"
        writers["blosc2"] = lambda: _write_blosc2(
            paths["blosc2"], array, b2_codec, clevel
        )
    found = harness.interleave(
        bench.pick(5, 1),
        {peer: lambda p=peer: _timed_write(writers[p], paths[p]) for peer in paths},
    )
    seconds = {peer: [x[0] for x in xs] for peer, xs in found.items()}
    nbytes = {peer: xs[0][1] for peer, xs in found.items()}
    values: dict[str, Any] = {"raw_MiB": array.nbytes / MIB}
    values |= {f"{peer}_MiB": count / MIB for peer, count in nbytes.items()}
    target = None
    if "blosc2" in paths:
        values["size_ratio"] = nbytes["lazymem"] / nbytes["blosc2"]
        target = (values["size_ratio"], _RATIO_MAX)
    values |= {f"{peer}_s": harness.spread(xs) for peer, xs in seconds.items()}
    if "blosc2" in paths:
        values["time_ratio"] = harness.ratio(seconds["lazymem"], seconds["blosc2"])
    answers = {peer: _read_back(peer, path) for peer, path in paths.items()}
    answers["numpy"] = expected
    bench.add("size and write", f"{name}, {level}", answers, at_most=target, **values)


def measure(bench: Bench) -> None:
    """Write every data set at every level."""
    levels = _SMOKE_LEVELS if bench.smoke else tuple(_LEVELS)
    for name, generate in data.DATASETS.items():
        full = GIB if name == "land mask" else 256 * MIB
        array = generate(bench.pick(full, MIB))
        expected = _checksum(array)
        for level in levels:
            _compare(bench, name, array, level, expected)


if __name__ == "__main__":
    harness.main(measure)
