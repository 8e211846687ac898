# SPDX-License-Identifier: BSD-3-Clause
"""Which chunk size should be the default?

Back of the envelope.  A random touch is a fault (15 us), a small read, and a chunk
decoded and installed at about 0.8 GiB/s: 35 us at 16 KiB, 95 at 64, 170 at 128, 1.3 ms
at 1 MiB.  A scan pays the 15 us once per chunk: half its time at 16 KiB, 10 % at 128,
nothing at 1 MiB.  Codecs lose what they had learnt at each chunk's end: zstd some
percent at 16 KiB, lz4, whose window is 64 KiB, hardly anything from there on.  So the
best lies between 64 and 256 KiB.

There is no rival but lazymem with another chunk size.  Each figure is from a fresh
process, the file in the page cache.  "touch": one element in each of up to 1000 random
chunks; "scan": one thread adds up the whole array, chunk by chunk as it faults; "load":
all cores fill it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import data
import harness
import numpy as np
from harness import GIB, MIB, Bench

import lazymem as lm

_DATASETS = ("weather", "timestamps", "land mask")
_CODECS = ("lz4", "zstd")
_CHUNK_KIB = (16, 32, 64, 128, 256, 512, 1024)
_SMOKE_CHUNK_KIB = (16, 128)
_TOUCHES_MAX = 1000


def _touch_latencies(path: str) -> list[int]:
    """Return the nanoseconds of the first touch of random chunks."""
    with lm.open(path) as store:
        array = store["x"]
        flat = np.asarray(array).reshape(-1).view(np.uint8)
        chunk_bytes = store.info("x").chunk_bytes
        chunks = np.random.default_rng(6).permutation(store.info("x").chunks)
        memory = memoryview(flat)
        memory[int(chunks[0]) * chunk_bytes]  # starts the engine's threads
        latencies = []
        for chunk in chunks[1 : 1 + min(_TOUCHES_MAX, len(chunks) // 2)].tolist():
            start = time.perf_counter_ns()
            memory[chunk * chunk_bytes]
            latencies.append(time.perf_counter_ns() - start)
        return latencies


def read(path: str) -> dict[str, float]:
    """Touch, scan and load a store."""
    latencies = _touch_latencies(path)
    with lm.open(path) as store:
        array = np.asarray(store["x"])
        start = time.perf_counter()
        answer = float(array.sum(dtype=np.float64))
        scan = time.perf_counter() - start
        nbytes = array.nbytes
    with lm.open(path) as store:
        lazy = store["x"]
        start = time.perf_counter()
        lazy.load()
        load = time.perf_counter() - start
    return {
        "answer": answer,
        "touch_p50_us": harness.percentile(latencies, 50) / 1e3,
        "touch_p99_us": harness.percentile(latencies, 99) / 1e3,
        "scan_GiB_s": nbytes / scan / GIB,
        "load_GiB_s": nbytes / load / GIB,
    }


def _compare(bench: Bench, name: str, array: Any, codec: str) -> None:
    sizes = _SMOKE_CHUNK_KIB if bench.smoke else _CHUNK_KIB
    paths: dict[int, Path] = {}
    for kib in sizes:
        paths[kib] = bench.folder / f"{kib}.lzm"
        lm.save(paths[kib], x=array, codec=codec, chunk_bytes=kib * 1024)
    found = harness.interleave(
        bench.pick(5, 1),
        {
            str(kib): lambda p=path: harness.fresh(read, str(p))
            for kib, path in paths.items()
        },
    )
    expected = float(array.sum(dtype=np.float64))
    for kib, path in paths.items():
        rounds = found[str(kib)]
        measured = {
            key: harness.spread([x[key] for x in rounds])
            for key in rounds[0]
            if key != "answer"
        }
        bench.add(
            f"{name}, {codec}",
            f"{kib} KiB",
            {"lazymem": rounds[0]["answer"], "numpy": expected},
            ratio=array.nbytes / path.stat().st_size,
            **measured,
        )


def measure(bench: Bench) -> None:
    """Try every chunk size on every data set with every codec."""
    for name in _DATASETS:
        array = data.DATASETS[name](bench.pick(256 * MIB, 2 * MIB))
        for codec in _CODECS:
            _compare(bench, name, array, codec)


if __name__ == "__main__":
    harness.main(measure)
