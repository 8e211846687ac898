# SPDX-License-Identifier: BSD-3-Clause
"""What grows with the size of an array, the number of arrays, and what is in memory?

Back of the envelope.  *Size*: opening reserves addresses.  A word of 4 bytes for each
chunk lies in leaves of 16 KiB, which come when one of their chunks is touched; the
index is a tree of pages for 1,024 entries, three levels deep at most.  So 16 TiB open
as quickly as 1 MB, and a first touch far from all others reads two index pages, some 10
us each, and takes 40 KiB.  A chunk that was never written is a fault and a lookup, and
no more.  *Objects*: they are listed in a JSON text of some 150 bytes each, which is
decoded as a whole when a store is opened, 3 us and 1 KiB each: what is constant in the
size is linear here, 4 s and 1 GB for a million.  A new array takes a slot of an arena
that is there, some 30 us.  *Giving back*: what the kernel takes to free pages, 0.3 us
each, 80 us a MiB.

There is no rival but lazymem of another size; for giving back, MADV_DONTNEED on as much
private memory.  Each figure is from a fresh process, the file in the page cache.
Touches are of chunks of 128 KiB with the noise of a weather field, zstd at level 3, in
random order; those that were never written are their neighbours.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import data
import harness
import numpy as np
from harness import GIB, MIB, Bench

import lazymem as lm

_CHUNK_BYTES = 128 << 10
_COLUMNS = _CHUNK_BYTES // 4
"""A row is a chunk."""
_SIZES = {"1 MB": MIB, "1 GB": GIB, "1 TiB": GIB << 10, "16 TiB": GIB << 14}
_CHUNKS_WRITTEN = 1000
_OBJECTS = (1, 1_000, 100_000, 1_000_000)
_OBJECTS_SMOKE = (1, 100)
_OBJECT_ELEMENTS = 256
_OPEN_SECONDS_MAX = 30.0
"""A store that takes longer to open, in all, is not opened again."""
_LOOKUPS = 1000
_RESIDENT_MIB = (1, 16, 256, 1024)
_RESIDENT_MIB_SMOKE = (1, 4)
_REST_S = 0.3
"""For which the threads of numpy's BLAS spin after its import, and a bit."""
_OPEN_MS_MAX = 1.0


def _timed(operation: Callable[[], Any]) -> float:
    start = time.perf_counter()
    operation()
    return time.perf_counter() - start


# ---- one array, ever larger ----------------------------------------------------------


def touch(path: str, rows: list[int], absent: list[int]) -> dict[str, Any]:
    """Open a store, touch rows that were written and rows that were not."""
    time.sleep(_REST_S)
    before = harness.memory_bytes("RssAnon")
    start = time.perf_counter()
    store = lm.open(path)
    lazy = store["x"]
    opened = time.perf_counter() - start
    opened_bytes = harness.memory_bytes("RssAnon") - before
    array = np.asarray(lazy)
    found, ns = _touch_each(array, rows)
    _, zero_ns = _touch_each(array, absent)
    own = harness.memory_bytes("RssAnon") - before - len(rows) * _CHUNK_BYTES
    return {
        "answer": sum(found),
        "open_ms": opened * 1e3,
        "first_us": ns[0] / 1e3,
        "p50_us": harness.percentile(ns[1:], 50) / 1e3,
        "p99_us": harness.percentile(ns[1:], 99) / 1e3,
        "zero_p50_us": harness.percentile(zero_ns, 50) / 1e3,
        "zero_p99_us": harness.percentile(zero_ns, 99) / 1e3,
        "opened_MiB": opened_bytes / MIB,
        "own_MiB": own / MIB,
    }


def _touch_each(array: Any, rows: list[int]) -> tuple[list[float], list[int]]:
    clock = time.perf_counter_ns
    found, ns = [], []
    for i in rows:
        start = clock()
        value = array[i, 0]
        ns.append(clock() - start)
        found.append(float(value))
    return found, ns


def _write_sparse(path: Path, nbytes: int, count: int) -> tuple[list[int], float]:
    """Write some chunks, evenly spread; return which, and the sum of their first."""
    blocks = data.weather(MIB).reshape(-1, _COLUMNS)
    chunks = nbytes // _CHUNK_BYTES
    rows = [
        i * chunks // min(count, chunks // 2) for i in range(min(count, chunks // 2))
    ]
    total = 0.0
    with lm.Writer(path) as writer:
        x = writer.create("x", (chunks, _COLUMNS), "f4", chunk_bytes=_CHUNK_BYTES)
        for k, i in enumerate(rows):
            block = blocks[k % len(blocks)] + np.float32(k)
            total += float(block[0])
            x.write(block, at=i)
    return rows, total


def _measure_size(bench: Bench, label: str, nbytes: int) -> None:
    path = bench.folder / "x.lzm"
    rows, expected = _write_sparse(path, nbytes, bench.pick(_CHUNKS_WRITTEN, 16))
    order = np.random.default_rng(8).permutation(len(rows)).tolist()
    shuffled = [rows[k] for k in order]
    absent = [i + 1 for i in shuffled]
    found = harness.interleave(
        bench.pick(5, 1),
        {"": lambda: harness.fresh(touch, str(path), shuffled, absent)},
    )[""]
    values = {key: harness.spread([x[key] for x in found]) for key in found[0]}
    del values["answer"]
    with lm.open(path) as store:
        metadata_bytes = store.commit.file_bytes - store.info("x").stored_bytes
    bench.add(
        "one array, of which at most 1,000 chunks are written",
        label,
        {"lazymem": found[0]["answer"], "numpy": expected},
        size_MiB=nbytes / MIB,
        chunks=len(rows),
        **values,
        metadata_KiB=metadata_bytes / 1024,
        at_most=(values["open_ms"]["median"], _OPEN_MS_MAX),
    )
    path.unlink()


# ---- ever more arrays ----------------------------------------------------------------


def _name(i: int) -> str:
    return f"array {i}"


def write_objects(path: str, count: int) -> dict[str, Any]:
    """Write a store of many small arrays."""
    block = np.arange(_OBJECT_ELEMENTS, dtype=np.float32)
    before = harness.memory_bytes("RssAnon")
    writer = lm.Writer(path)
    start = time.perf_counter()
    for i in range(count):
        writer.create(_name(i), block.shape, block.dtype).write(block + np.float32(i))
    middle = time.perf_counter()
    writer.close()
    return {
        "create_us_each": (middle - start) / count * 1e6,
        "close_us_each": (time.perf_counter() - middle) / count * 1e6,
        "writer_MiB": (harness.memory_bytes("VmHWM") - before) / MIB,
    }


def open_objects(path: str, count: int) -> dict[str, Any]:
    """Open a store of many arrays, and look some of them up."""
    some = np.random.default_rng(9).choice(count, min(count, _LOOKUPS), replace=False)
    names = [_name(i) for i in some.tolist()]
    time.sleep(_REST_S)
    before = harness.memory_bytes("RssAnon")
    start = time.perf_counter()
    store = lm.open(path)
    opened = time.perf_counter() - start
    rss = harness.memory_bytes("RssAnon") - before
    first = _timed(lambda: store[names[0]][0])
    infos = _timed(lambda: [store.info(name) for name in names])
    start = time.perf_counter()
    arrays = [store[name] for name in names]
    lookups = time.perf_counter() - start
    start = time.perf_counter()
    answer = sum(float(array[0]) for array in arrays)
    touches = time.perf_counter() - start
    return {
        "answer": answer,
        "expected": float(some.sum()),
        "open_ms": opened * 1e3,
        "first_us": first * 1e6,
        "info_us": infos / len(names) * 1e6,
        "array_us": lookups / len(names) * 1e6,
        "touch_us": touches / len(names) * 1e6,
        "opened_MiB": rss / MIB,
    }


def _measure_objects(bench: Bench, count: int) -> None:
    path = bench.folder / "objects.lzm"
    written = harness.fresh(write_objects, str(path), count)
    found = harness.interleave(
        bench.pick(3, 1),
        {"": lambda: harness.fresh(open_objects, str(path), count)},
        _OPEN_SECONDS_MAX,
    )[""]
    values = {key: harness.spread([x[key] for x in found]) for key in found[0]}
    del values["answer"], values["expected"]
    bench.add(
        "many arrays of 1 KiB in one store",
        "1 array" if count == 1 else f"{count:,} arrays",
        {"lazymem": found[0]["answer"], "numpy": found[0]["expected"]},
        arrays=count,
        **values,
        **written,
        file_bytes_each=path.stat().st_size / count,
    )
    path.unlink()


# ---- giving memory back --------------------------------------------------------------


def evict(path: str, rows: list[int], rounds: int) -> dict[str, Any]:
    """Fill some chunks and give them back; the same with private memory, in turns."""
    nbytes = len(rows) * _CHUNK_BYTES
    with lm.open(path) as store:
        lazy = store["x"]
        array = np.asarray(lazy)

        def ours() -> dict[str, float]:
            answer = sum(float(array[i, 0]) for i in rows)
            before = harness.memory_bytes("RssAnon")
            seconds = _timed(lazy.evict)
            given = before - harness.memory_bytes("RssAnon")
            return {"answer": answer, "seconds": seconds, "given": given}

        def theirs() -> dict[str, float]:
            memory = harness.in_small_pages(nbytes)
            np.frombuffer(memory, np.uint8)[:] = 1
            seconds = _timed(partial(memory.madvise, mmap.MADV_DONTNEED))
            return {"seconds": seconds}

        return harness.interleave(rounds, {"lazymem": ours, "madvise": theirs})


def _measure_evict(bench: Bench, label: str, path: Path, rows: list[int]) -> None:
    found = harness.fresh(evict, str(path), rows, bench.pick(5, 1))
    ms = {name: [x["seconds"] * 1e3 for x in xs] for name, xs in found.items()}
    mib = len(rows) * _CHUNK_BYTES / MIB
    bench.add(
        "giving back all that is in memory",
        label,
        {str(i): x["answer"] for i, x in enumerate(found["lazymem"])},
        resident_MiB=mib,
        given_MiB=harness.spread([x["given"] / MIB for x in found["lazymem"]]),
        evict_ms=harness.spread(ms["lazymem"]),
        madvise_ms=harness.spread(ms["madvise"]),
        us_per_MiB=harness.spread([x * 1e3 / mib for x in ms["lazymem"]]),
        ratio=harness.ratio(ms["lazymem"], ms["madvise"]),
    )


def _measure_evictions(bench: Bench) -> None:
    path = bench.folder / "full.lzm"
    sizes = _RESIDENT_MIB_SMOKE if bench.smoke else _RESIDENT_MIB
    tile = data.weather(MIB).reshape(-1, _COLUMNS)
    chunks = max(sizes) * MIB // _CHUNK_BYTES
    with lm.Writer(path) as writer:
        x = writer.create("x", (chunks, _COLUMNS), "f4", chunk_bytes=_CHUNK_BYTES)
        for _ in range(0, chunks, len(tile)):
            x.write(tile)
    for mib in sizes:
        rows = list(range(mib * MIB // _CHUNK_BYTES))
        _measure_evict(bench, f"{mib:,} MiB", path, rows)
    rows, _ = _write_sparse(path, _SIZES["16 TiB"], bench.pick(_CHUNKS_WRITTEN, 16))
    _measure_evict(bench, "scattered in 16 TiB", path, rows)
    path.unlink()


def measure(bench: Bench) -> None:
    """Measure sizes, then numbers of arrays, then giving back."""
    for label, nbytes in _SIZES.items():
        _measure_size(bench, label, nbytes)
    for count in _OBJECTS_SMOKE if bench.smoke else _OBJECTS:
        _measure_objects(bench, count)
    _measure_evictions(bench)


if __name__ == "__main__":
    harness.main(measure)
