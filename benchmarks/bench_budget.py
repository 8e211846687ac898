# SPDX-License-Identifier: BSD-3-Clause
"""What does it cost to keep to a memory limit?

Back of the envelope.  A chunk of 128 KiB takes 100 us to read, decode and install, and
12 to drop, on another core: so a *scan* of eight times the limit takes hardly longer
than one without a limit, or less, since dropped pages are used again where fresh ones
must be had from the system.  *Misses*: nobody knows how often a resident chunk is
read, so the policy sees misses only; LRU, simulated, sees all.  *Twice its limit*, and
more: what was written is compressed (1 GB/s), written to the page cache or the disk
(0.7 GB/s), read again, and decoded: 5 s for each pass over 6 GiB on two cores.

Rivals.  Of the scan: the same without a limit.  Of misses: FIFO, LRU, and Belady's
policy (policies.py), for the same trace, which a fresh store is read by, one element of
a chunk at a time, readahead off.  Of cold reads in a memory cgroup: ``np.memmap`` of
the raw file in a group of the same size, whose page cache is the group's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import data
import harness
import numpy as np
import policies
from harness import GIB, MIB, Bench

import lazymem as lm

_CHUNK_BYTES = 16 << 10
_SLACK_BYTES = 8 * MIB
_SCAN_MAX = 1 / 0.95
_OF_LRU_MAX = 1.1


# ---- scans ---------------------------------------------------------------------------


def scan(path: str, limit: int | None) -> dict[str, Any]:
    """Add up an array, with a limit or without."""
    harness.drop_from_page_cache(path)
    if limit is None:
        harness.use_memory(os.path.getsize(path) * 4)
    with lm.open(path, limit=limit) as store:
        x = store["x"]
        x[:1, :1].sum()
        before = harness.memory_bytes()
        harness.reset_peak_memory()
        start = time.perf_counter()
        answer = float(x.sum(dtype=np.float64))
        seconds = time.perf_counter() - start
        peak = harness.memory_bytes("VmHWM") - before
    return {"answer": answer, "s": seconds, "peak": peak}


def _measure_scans(bench: Bench, path: Path, nbytes: int) -> None:
    limit = max(16 * MIB, nbytes // 8)
    cases: dict[str, int | None] = {"no limit": None, "an eighth": limit}
    found = harness.interleave(
        bench.pick(7, 1),
        {
            name: partial(harness.fresh, scan, str(path), most)
            for name, most in cases.items()
        },
    )
    free = [x["s"] for x in found["no limit"]]
    for name, runs in found.items():
        times = harness.ratio([x["s"] for x in runs], free)
        peak = max(x["peak"] for x in runs)
        bounds = {"time": (times["median"], _SCAN_MAX)}
        if cases[name]:
            bounds["peak"] = (peak, limit + _SLACK_BYTES + 2 * _CHUNK_BYTES)
        bench.add(
            "sum of 1 GiB of weather, cold",
            f"limit: {name}",
            {key: x[0]["answer"] for key, x in found.items()},
            s=harness.spread([x["s"] for x in runs]),
            ratio=times,
            peak_mib=peak / MIB,
            at_most=bounds if cases[name] else None,
        )


# ---- misses --------------------------------------------------------------------------


def misses(path: str, limit: int, length: int, name: str) -> dict[str, Any]:
    """Read an element of each chunk of a trace; count the fills."""
    with lm.open(path, limit=limit) as store:
        x = store["x"]
        x.advise("random")
        memory = np.asarray(x)
        trace = policies.traces(len(memory), limit // _CHUNK_BYTES, length)[name]
        total = 0.0
        before, peak = harness.memory_bytes(), 0
        for n, i in enumerate(trace.tolist()):
            total += memory[i, 7]
            if n % 64 == 0:
                peak = max(peak, harness.memory_bytes() - before)
        return {"misses": store.stats().fills, "peak": peak, "answer": float(total)}


def _measure_misses(bench: Bench, path: Path, chunks: int, limit: int) -> None:
    length, capacity = bench.pick(100_000, 5_000), limit // _CHUNK_BYTES
    for name, trace in policies.traces(chunks, capacity, length).items():
        found = harness.fresh(misses, str(path), limit, length, name)
        lru = policies.lru(trace, capacity)
        of_lru = found["misses"] / lru
        bounds = {"peak": (found["peak"], limit + _SLACK_BYTES)}
        if name.startswith("Zipf"):
            bounds["misses"] = (of_lru, _OF_LRU_MAX)
        elif name == "scan and hot set":
            bounds["misses"] = (of_lru, 1.0)
        bench.add(
            "misses where a quarter has room",
            name,
            {"reads": length},
            misses=found["misses"],
            ratio_to_lru=of_lru,
            lru=lru,
            fifo=policies.fifo(trace, capacity),
            belady=policies.belady(trace, capacity),
            peak_mib=found["peak"] / MIB,
            at_most=bounds,
        )


# ---- in a memory cgroup --------------------------------------------------------------


@contextmanager
def _memory_group(nbytes: int) -> Iterator[Path | None]:
    """Make a memory cgroup, of either version; None where that is not allowed."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    groups = {line.split(":")[1]: line.split(":")[2] for line in lines}
    base = Path("/sys/fs/cgroup")
    own = base / "memory" if "memory" in groups else base
    own /= groups.get("memory", groups.get("", "/")).lstrip("/")
    group = own / f"lazymem-bench-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        yield None
        return
    try:
        for name in ("memory.max", "memory.limit_in_bytes"):
            if (group / name).exists():
                (group / name).write_text(str(nbytes))
                yield group
                return
        yield None
    finally:
        group.rmdir()


def in_group(group: str, peer: str, path: str, question: str) -> dict[str, Any]:
    """Read a file that is not in the page cache, as a member of a memory cgroup."""
    Path(group, "cgroup.procs").write_text(str(os.getpid()))
    harness.drop_from_page_cache(path)
    start = time.perf_counter()
    if peer == "lazymem":
        x = lm.open(path, limit="auto")["x"]
    else:
        x = np.load(path, mmap_mode="r")
    if question == "sum":
        answer = sum(float(x[i : i + 64].sum(dtype="f8")) for i in range(0, len(x), 64))
    else:
        rows = np.random.default_rng(4).integers(0, len(x), 2000).tolist()
        answer = sum(float(x[i].sum(dtype="f8")) for i in rows)
    return {"answer": answer, "s": time.perf_counter() - start}


def _measure_groups(bench: Bench, stored: Path, raw: Path, nbytes: int) -> None:
    group_bytes = max(96 * MIB, nbytes // 4)
    with _memory_group(group_bytes) as group:
        if group is None:
            return
        for question in ("sum", "2,000 random rows"):
            paths = {"np.memmap": raw, "lazymem": stored}
            found = harness.interleave(
                bench.pick(5, 1),
                {
                    peer: partial(
                        harness.fresh, in_group, str(group), peer, str(path), question
                    )
                    for peer, path in paths.items()
                },
            )
            seconds = {peer: [x["s"] for x in runs] for peer, runs in found.items()}
            times = harness.ratio(seconds["lazymem"], seconds["np.memmap"])
            bench.add(
                "1 GiB of weather, cold, in a memory cgroup of a quarter",
                question,
                {peer: x[0]["answer"] for peer, x in found.items()},
                memmap_s=harness.spread(seconds["np.memmap"]),
                s=harness.spread(seconds["lazymem"]),
                ratio=times,
                at_most=(times["median"], 1.0),
            )


# ---- larger than memory, and written -------------------------------------------------


def double(nbytes: int, limit: int, folder: str) -> dict[str, Any]:
    """Write an array of several times the limit, double it in place, and check it."""
    rows, row_bytes = nbytes // MIB, MIB
    block = data.weather(row_bytes).ravel()
    with lm.Store(limit=limit, spill=folder) as store:
        x = store.create("x", (rows, len(block)), "f4")
        start = time.perf_counter()
        for i in range(rows):
            np.add(block, np.float32(i), out=x[i])
        wrote = time.perf_counter()
        for i in range(0, rows, 8):
            x[i : i + 8] *= 2
        doubled = time.perf_counter()
        right = all(
            np.array_equal(x[i], (block + np.float32(i)) * 2) for i in range(rows)
        )
        read = time.perf_counter()
        found = store.stats().budget
        assert found is not None
        store.close(discard=True)
    return {
        "right": int(right),
        "write": wrote - start,
        "double": doubled - wrote,
        "read": read - doubled,
        "spilled": found.bytes_spilled,
        "peak": harness.memory_bytes("VmHWM"),
    }


def _measure_doubling(bench: Bench) -> None:
    nbytes = bench.pick(6 * GIB, 64 * MIB)
    limit = bench.pick(GIB, 16 * MIB)
    runs = [
        harness.fresh(double, nbytes, limit, str(bench.folder))
        for _ in range(bench.pick(3, 1))
    ]
    bench.add(
        "six times its limit, in memory, doubled in place",
        "write, double, read",
        {"right": min(x["right"] for x in runs), "all": 1},
        write_s=harness.spread([x["write"] for x in runs]),
        double_s=harness.spread([x["double"] for x in runs]),
        read_s=harness.spread([x["read"] for x in runs]),
        spilled_mib=runs[0]["spilled"] / MIB,
        peak_mib=max(x["peak"] for x in runs) / MIB,
    )


def measure(bench: Bench) -> None:
    """Measure scans, misses, groups, and what was written."""
    nbytes = bench.pick(GIB, 32 * MIB)
    plain = data.weather(nbytes)
    stored, raw, small = (bench.folder / name for name in ("x.lzm", "x.npy", "s.lzm"))
    np.save(raw, plain)
    lm.save(stored, x=plain, codec="lz4")
    harness.sync(stored)
    harness.sync(raw)
    _measure_scans(bench, stored, nbytes)
    _measure_groups(bench, stored, raw, nbytes)
    chunks, limit = bench.pick(8192, 2048), bench.pick(32 * MIB, 16 * MIB)
    rows = plain.ravel()[: chunks * _CHUNK_BYTES // 4].reshape(chunks, -1)
    lm.save(small, x=rows, codec="lz4", chunk_bytes=_CHUNK_BYTES)
    _measure_misses(bench, small, chunks, limit)
    _measure_doubling(bench)


if __name__ == "__main__":
    harness.main(measure)
