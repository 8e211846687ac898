# SPDX-License-Identifier: BSD-3-Clause
"""What do writes to tracked memory cost, and snapshots of what was written?

Back of the envelope.  *First write*: a clean chunk is write-protected, so the first
write to it is a fault: two switches between threads, and an ioctl that unprotects 32
pages, 10 to 15 us ("the kernel's part" measures just that).  Copying a random row of 64
KiB takes 7 us, so where rows are far apart the first pass takes 3 times as long.  A
quarter of the chunks of 2 MiB having been written, the rest is unprotected, so all rows
in random order have a fault for eight of them, and take 1.5 times as long.  Who
writes chunk after chunk has what follows unprotected ahead of him, on another core, at
25 us a MiB where copying takes 100: about 1.2 times.  From then on it is memory like
any other.  *Snapshot* of 1 % of the chunks, scattered: compare and encode 1 % of the
bytes, patch their index pages (26 bytes a chunk), two fsyncs of some milliseconds each.
*Restore*: compare two indexes where they differ, drop 1 % of the pages.  *Writers
during a snapshot*: a write to a chunk that is frozen waits for its copy, about 30 us;
but four threads share two cores then, and who is not running waits for milliseconds.
And copies may take a quarter of the free memory: who writes to more than that before it
is stored waits for the snapshot, 0.4 ms a chunk.

Rivals.  Of writes: ndarrays in the same process, in turns, all faulted in before.  One
is in small pages, as tracked memory is (mmap() with MADV_NOHUGEPAGE), one in the huge
pages that numpy asks for.  Of snapshots: ``lm.save`` of the same array.  Of edits:
edits.py says what each peer does.  Of writers during a snapshot: the same writers
beside an ``lm.save`` of another array, which shows what busy cores do to them.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import data
import edits
import harness
import numpy as np
from harness import GIB, MIB, Bench

import lazymem as lm

_COLUMNS = 16384
"""A row is 64 KiB: half a chunk."""
_TILE_BYTES = 256 * MIB
_CHUNK_BYTES = 128 << 10
_SHARE = 0.01
_SEQUENTIAL_MAX = 1.25
_RANDOM_MAX = 2.0
_NOISE = 1.1
"""Two ordinary ndarrays differ by this much in one run, now and then."""
_OF_A_SAVE_MAX = 0.02
_FIXED_S_MAX = 0.02
_GROWTH_MAX = 1.01
_RESTORE_MS_MAX = 5.0
_STALL_P99_US_MAX = 1000.0

Array = np.ndarray[Any, Any]


def _write(path: Path, nbytes: int, tile_bytes: int = _TILE_BYTES) -> None:
    """Write one weather field again and again, each time a little warmer."""
    tile = data.weather(min(nbytes, tile_bytes)).reshape(-1, _COLUMNS)
    repeats = nbytes // tile.nbytes
    with lm.Writer(path) as writer:
        shape = (len(tile) * repeats, _COLUMNS)
        x = writer.create("x", shape, "f4", chunk_bytes=_CHUNK_BYTES)
        for i in range(repeats):
            x.write(tile + np.float32(i))


def _timed(operation: Callable[[], Any]) -> float:
    start = time.perf_counter()
    operation()
    return time.perf_counter() - start


def _spread_of(values: list[float], factor: float = 1.0) -> harness.Spread:
    return harness.spread([value * factor for value in values])


# ---- the first write to a chunk, and the second --------------------------------------


def _measure_floor(bench: Bench) -> None:
    program = harness.compile_c("write_floor.c", bench.folder)
    rounds = bench.pick(5, 1)
    found = [harness.json_of(program, _CHUNK_BYTES) for _ in range(rounds)]
    if None in found:
        return
    bench.add(
        "the kernel's part: a chunk of 128 KiB is written to, without lazymem",
        "write fault, and unprotecting the chunk",
        {"chunks": 1},
        median_us=_spread_of([x["median"] for x in found], 1e-3),
        low_us=_spread_of([x["low"] for x in found], 1e-3),
        p99_us=_spread_of([x["p99"] for x in found], 1e-3),
        protecting_us=_spread_of([x["protect_ns"] for x in found], 1e-3),
    )


def _copy_all(a: Array, source: Array) -> None:
    for i in range(0, len(a), len(source)):
        np.copyto(a[i : i + len(source)], source)


def _write_rows(a: Array, source: Array, rows: list[tuple[int, int]]) -> None:
    for to, of in rows:
        a[to] = source[of]


def _random_rows(a: Array, source: Array, count: int) -> list[tuple[int, int]]:
    """Return pairs of rows to write, all of them others, and to take."""
    rng = np.random.default_rng(3)
    to = rng.choice(len(a), count, replace=False)
    return list(zip(to.tolist(), rng.integers(0, len(source), count).tolist()))


def _answer_of(a: Array) -> float:
    return float(a[::37, ::4096].sum(dtype=np.float64))


def first_writes(path: str, rounds: int) -> dict[str, Any]:
    """Write to a tracked array, clean and then not, and to two ndarrays, in turns."""
    with lm.open(path, "r+") as store:
        lazy = store["x"].load()
        tracked = np.asarray(lazy)
        source = np.array(tracked[: max(1, len(tracked) // 4)])
        rows = _random_rows(tracked, source, len(tracked))
        memory = harness.in_small_pages(tracked.nbytes)
        small = np.frombuffer(memory, tracked.dtype).reshape(tracked.shape)
        small[:] = tracked
        plain = {"small": small, "huge": tracked.copy()}
        operations = {
            "copy of another array": lambda a: _copy_all(a, source),
            "fill with a scalar": lambda a: a.fill(0.5),
            "random rows of 64 KiB, all": lambda a: _write_rows(a, source, rows),
            "random rows of 64 KiB, one in eight": lambda a: _write_rows(
                a, source, rows[: len(rows) // 8]
            ),
        }
        found = {}
        for case, operation in operations.items():
            turns: dict[str, Callable[[], Any]] = {
                name: partial(_timed, partial(operation, a))
                for name, a in plain.items()
            }
            turns["tracked"] = partial(_passes, store, partial(operation, tracked))
            results = harness.interleave(rounds, turns)
            passes = results.pop("tracked")
            found[case] = {
                "seconds": results
                | {name: [x[name] for x in passes] for name in ("first", "second")},
                "faults": passes[0]["faults"],
                "answers": {name: _answer_of(a) for name, a in plain.items()}
                | {"tracked": _answer_of(tracked)},
            }
        store.close(discard=True)
    return found


def _passes(store: lm.Store, write: Callable[[], None]) -> dict[str, float]:
    """Write twice to an array of which nothing is dirty."""
    store.snapshot()
    before = store.stats().arrays["x"].write_faults
    first = _timed(write)
    faults = store.stats().arrays["x"].write_faults - before
    return {"first": first, "second": _timed(write), "faults": faults}


def _measure_first_writes(bench: Bench, path: Path) -> None:
    found = harness.fresh(first_writes, str(path), bench.pick(7, 1))
    for case, x in found.items():
        seconds = x["seconds"]
        most = _RANDOM_MAX if case.startswith("random") else _SEQUENTIAL_MAX
        for name, bound in {"first": most, "second": _NOISE}.items():
            times = harness.ratio(seconds[name], seconds["small"])
            bench.add(
                "writing to what is resident",
                f"{case}, {name} pass",
                x["answers"],
                ndarray_s=_spread_of(seconds["small"]),
                ndarray_huge_pages_s=_spread_of(seconds["huge"]),
                s=_spread_of(seconds[name]),
                faults=x["faults"] if name == "first" else 0,
                ratio=times,
                at_most=(times["median"], bound),
            )


# ---- snapshots of a hundredth --------------------------------------------------------


def _rows_of_some_chunks(a: Array, seed: int) -> Array:
    """Return a row in each of a hundredth of the chunks, scattered."""
    rng = np.random.default_rng(seed)
    chunks = a.nbytes // _CHUNK_BYTES
    chosen = rng.choice(chunks, max(1, round(chunks * _SHARE)), replace=False)
    return np.sort(chosen) * (_CHUNK_BYTES // a[0].nbytes)


def _warm_rows(a: Array, seed: int) -> float:
    rows = _rows_of_some_chunks(a, seed)
    start = time.perf_counter()
    for i in rows.tolist():
        a[i] += 1
    return time.perf_counter() - start


def _read_rows(a: Array, seed: int) -> float:
    rows = _rows_of_some_chunks(a, seed).tolist()
    return _timed(lambda: [a[i].sum() for i in rows])


def snapshots(path: str, rounds: int, of_each: int) -> dict[str, Any]:
    """Save all; write to a hundredth and snapshot, or restore, again and again."""
    found: dict[str, list[float]] = {}

    def note(**values: float) -> None:
        for name, value in values.items():
            found.setdefault(name, []).append(value)

    other = Path(path).with_suffix(".other")
    with lm.open(path, "r+") as store:
        a = np.asarray(store["x"].load())
        plain = a.copy()
        last = store.snapshot("0")
        for seed in range(rounds * of_each):
            if seed % of_each == 0:
                note(save_s=_timed(lambda: lm.save(other, x=plain)))
                other.unlink()
            file_bytes = os.stat(path).st_size
            note(write_s=_warm_rows(a, seed))
            start = time.perf_counter()
            info = store.snapshot(str(seed + 1))
            note(
                snapshot_s=time.perf_counter() - start,
                pause_s=info.pause_seconds or 0.0,
                chunks=info.chunks,
                payload_bytes=info.bytes_written,
                growth_bytes=os.stat(path).st_size - file_bytes,
            )
            expected = _answer_of(a)
            _warm_rows(a, seed + 1)
            note(discard_s=_timed(lambda i=info: store.restore(i, discard=True)))
            note(refill_s=_read_rows(a, seed + 1))
            there, back = (
                _timed(partial(store.restore, state)) for state in (last, info)
            )
            note(restore_s=there, back_s=back)
            _read_rows(a, seed)
            if _answer_of(a) != expected:
                raise ValueError("restored, it is not what it was")
            last = info
    return found


def _measure_snapshots(bench: Bench, path: Path) -> None:
    x = harness.fresh(snapshots, str(path), bench.pick(3, 1), bench.pick(10, 2))
    save = _spread_of(x["save_s"])
    most = save["median"] * _OF_A_SAVE_MAX + _FIXED_S_MAX
    rows = {
        "save of all": ("save_s", None),
        "writing to 1 %": ("write_s", None),
        "snapshot of 1 %": ("snapshot_s", most),
        "of this: writers are held": ("pause_s", None),
        "restore: 1 % written, not saved": ("discard_s", most),
        "restore: another snapshot, 1 % differs": ("restore_s", most),
        "reading 1 % that was dropped": ("refill_s", None),
    }
    for case, (key, bound) in rows.items():
        found = _spread_of(x[key])
        bench.add(
            "1 % of the chunks, scattered",
            case,
            {"chunks": min(x["chunks"]), "written": max(x["chunks"])},
            s=found,
            part_of_a_save=found["median"] / save["median"],
            at_most=None if bound is None else (found["median"], bound),
        )
    growth = sum(x["growth_bytes"]) / sum(x["payload_bytes"])
    bench.add(
        "growth of the file",
        f"{len(x['chunks'])} snapshots of 1 %",
        {"chunks": min(x["chunks"]), "written": max(x["chunks"])},
        payloads_MiB=_spread_of(x["payload_bytes"], 1 / MIB),
        file_MiB=_spread_of(x["growth_bytes"], 1 / MIB),
        ratio=growth,
        at_most=(growth, _GROWTH_MAX),
    )


# ---- a store of a tebibyte -----------------------------------------------------------


def restore_huge(path: str, rounds: int) -> dict[str, Any]:
    """Restore a huge store of which nothing, or little, is in memory."""
    found: dict[str, list[float]] = {"same": [], "other": [], "flush": []}
    with lm.open(path, "r+") as store:
        a = np.asarray(store["x"])
        states = []
        for value in range(2):
            a[:: len(a) // 3] = value
            states.append(store.snapshot())
        for i in range(rounds):
            state = states[i % 2]
            found["other"].append(_timed(partial(store.restore, state)))
            found["same"].append(_timed(partial(store.restore, state)))
            store.flush()  # the way back is a state of its own
            found["flush"].append(_timed(store.flush))
            answer = float(a[len(a) // 3, 0])
            if answer != i % 2:
                raise ValueError("restored, it is not what it was")
    return found


def _measure_huge(bench: Bench) -> None:
    path = bench.folder / "huge.lzm"
    with lm.Writer(path) as writer:
        x = writer.create("x", ((GIB << 10) // 4 // _COLUMNS, _COLUMNS), "f4")
        x.write(data.weather(MIB).reshape(-1, _COLUMNS))
    found = harness.fresh(restore_huge, str(path), bench.pick(20, 2))
    rows = {
        "restore, nothing differs": ("same", _RESTORE_MS_MAX),
        "restore, four chunks differ": ("other", None),
        "flush, nothing is written": ("flush", None),
    }
    for case, (key, bound) in rows.items():
        ms = _spread_of(found[key], 1e3)
        bench.add(
            "1 TiB of addresses, little of it written",
            case,
            {"restored": 1},
            ms=ms,
            at_most=None if bound is None else (ms["median"], bound),
        )
    path.unlink()


# ---- writers during a snapshot -------------------------------------------------------


class _Writer(threading.Thread):
    """Writes to rows of its own share of the chunks, in random order, without end.

    ``starts`` and ``ns`` have the nanoseconds of each write; the rows come around again
    and again in the same order.
    """

    def __init__(self, a: Array, source: Array, share: slice, seed: int) -> None:
        super().__init__()
        self._a, self._source = a, source
        per_chunk = _CHUNK_BYTES // a[0].nbytes
        chunks = np.arange(len(a) // per_chunk)[share]
        rows = (chunks[:, None] * per_chunk + np.arange(per_chunk)).reshape(-1)
        self.rows = np.random.default_rng(seed).permutation(rows)
        self.chunks = self.rows // per_chunk
        self.starts: list[int] = []
        self.ns: list[int] = []
        self._end = threading.Event()

    def run(self) -> None:
        """Write until the end."""
        clock = time.perf_counter_ns
        rows, a, source = self.rows.tolist(), self._a, self._source
        i = 0
        while not self._end.is_set():
            target, row = a[rows[i % len(rows)]], source[i * 37 % len(source)]
            start = clock()
            target[:] = row
            self.ns.append(clock() - start)
            self.starts.append(start)
            i += 1

    def end(self) -> None:
        """Stop it."""
        self._end.set()
        self.join()

    def found(self, begin: int, end: int) -> tuple[Array, Array]:
        """Return the nanoseconds of the writes between two moments.

        Second: of the first ones to each chunk.
        """
        starts, ns = np.array(self.starts), np.array(self.ns)
        within = (starts + ns >= begin) & (starts < end)
        chunks = self.chunks[np.flatnonzero(within) % len(self.chunks)]
        _, firsts = np.unique(chunks, return_index=True)
        return ns[within], ns[within][firsts]


def _stalls_during(operation: Callable[[], Any], a: Array, source: Array) -> Any:
    """Return how long single writes of two threads took meanwhile, in us."""
    writers = [_Writer(a, source, slice(k, None, 2), seed=k) for k in range(2)]
    for writer in writers:
        writer.start()
    begin = time.perf_counter_ns()
    operation()
    end = time.perf_counter_ns()
    for writer in writers:
        writer.end()
    both = [writer.found(begin, end) for writer in writers]
    every, first = (np.concatenate(x) / 1e3 for x in zip(*both))
    return {
        "seconds": (end - begin) / 1e9,
        "writes": len(every),
        "p50": float(np.percentile(every, 50)),
        "p99": float(np.percentile(every, 99)),
        "p999": float(np.percentile(every, 99.9)),
        "first_p50": float(np.percentile(first, 50)),
        "first_p99": float(np.percentile(first, 99)),
        "max": float(every.max()),
    }


def stalls(path: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Let two threads write while nothing else is done, a snapshot, or a save."""
    other = Path(path).with_suffix(".other")
    with lm.open(path, "r+") as store:
        a = np.asarray(store["x"].load())
        source = a[: len(a) // 8].copy()

        part = a[: len(a) // 16]

        def all_written(of: Array = a) -> None:
            np.add(of, 1, out=of)

        def rest() -> Any:
            all_written()
            return _stalls_during(lambda: time.sleep(seconds), a, source)

        def rest_clean() -> Any:
            store.snapshot()
            return _stalls_during(lambda: time.sleep(seconds), a, source)

        def snapshot(of: Array) -> Any:
            store.flush()
            all_written(of)
            return _stalls_during(
                lambda: store.snapshot(wait=False).result(), of, source
            )

        def save() -> Any:
            all_written()
            return _stalls_during(lambda: lm.save(other, x=source), a, source)

        found = harness.interleave(
            rounds,
            {
                "all written before": rest,
                "nothing written before": rest_clean,
                "a snapshot of all under way": partial(snapshot, a),
                "a snapshot of a sixteenth, which they write to": partial(
                    snapshot, part
                ),
                "all written before, a save of another array": save,
            },
        )
        other.unlink()
        store.close(discard=True)
    return found


def _measure_stalls(bench: Bench, path: Path) -> None:
    seconds = 3.0 if not bench.smoke else 0.1
    found = harness.fresh(stalls, str(path), bench.pick(3, 1), seconds)
    for case, xs in found.items():
        us = {
            f"{key}_us": harness.spread([x[key] for x in xs])
            for key in ("p50", "p99", "p999", "first_p50", "first_p99", "max")
        }
        bench.add(
            "two threads write random rows: how long a single write takes",
            case,
            {"threads": 2},
            s=harness.spread([x["seconds"] for x in xs]),
            writes=harness.spread([x["writes"] for x in xs]),
            **us,
            at_most=(
                (us["p99_us"]["median"], _STALL_P99_US_MAX)
                if case.startswith("a snapshot")
                else None
            ),
        )


# ---- edits, and the peers ------------------------------------------------------------


def create(name: str, raw: str, path: str) -> None:
    """Write an array in a peer's way."""
    peer = edits.PEERS[name]
    peer.import_all()
    peer.create(Path(path), np.load(raw))
    os.sync()


def edit(name: str, path: str, block: str, rows: list[int], at: int) -> dict[str, Any]:
    """Write a block to rows, or from one row on; return what it took."""
    peer, file, values = edits.PEERS[name], Path(path), np.load(block)
    where: Any = np.array(rows) if rows else slice(at, at + len(values))
    peer.import_all()
    state = peer.load(file)
    disk, written = edits.disk_bytes(file), edits.written_bytes()
    start = time.perf_counter()
    peer.edit(file, state, where, values)
    seconds = time.perf_counter() - start
    written = edits.written_bytes() - written
    return {
        "seconds": seconds,
        "written": written,
        "added": edits.disk_bytes(file) - disk,
        "disk": disk,
        "answer": float(peer.read(file, where).sum(dtype=np.float64)),
    }


def _edit_args(bench: Bench, count: int, seed: int, scattered: bool) -> list[Any]:
    """Write a block to the folder; return it, and where it is to go."""
    rng = np.random.default_rng(seed)
    path = bench.folder / "block.npy"
    rows = np.sort(rng.choice(count, max(1, round(count * _SHARE)), replace=False))
    block = data.weather(len(rows) * _COLUMNS * 4).reshape(-1)
    block = np.resize(block, (len(rows), _COLUMNS))
    np.save(path, block + np.float32(seed))
    at = int(rng.integers(0, count - len(rows)))
    return [str(path), rows.tolist() if scattered else [], at]


def _measure_peers(bench: Bench, nbytes: int) -> None:
    raw = bench.folder / "raw.npy"
    array = data.weather(nbytes).reshape(-1, _COLUMNS)
    np.save(raw, array)
    peers = [name for name, peer in edits.PEERS.items() if peer.is_here()]
    paths = {name: bench.folder / f"peer{i}" for i, name in enumerate(peers)}
    for name in peers:
        harness.fresh(create, name, str(raw), str(paths[name]))
    for seed, (label, scattered) in enumerate(
        {"scattered": True, "in one piece": False}.items()
    ):
        found: dict[str, list[Any]] = {name: [] for name in peers}
        for i in range(bench.pick(3, 1)):
            args = _edit_args(bench, len(array), 10 * i + seed, scattered)
            turns = {
                name: partial(harness.fresh, edit, name, str(paths[name]), *args)
                for name in peers
            }
            for name, (x,) in harness.interleave(1, turns).items():
                found[name].append(x)
        answers = {name: xs[-1]["answer"] for name, xs in found.items()}
        for name, xs in found.items():
            bench.add(
                f"1 % of the rows of an array changed, {label}",
                f"{name}, {label}",
                answers,
                s=harness.spread([x["seconds"] for x in xs]),
                written_MiB=harness.spread([x["written"] / MIB for x in xs]),
                added_MiB=harness.spread([x["added"] / MIB for x in xs]),
                of_MiB=xs[0]["disk"] / MIB,
                state_before_is_kept=edits.PEERS[name].keeps_history,
            )
    for path in paths.values():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def measure(bench: Bench) -> None:
    """Measure writes, then snapshots, then what others do."""
    _measure_floor(bench)
    _measure_huge(bench)
    _measure_peers(bench, bench.pick(GIB, 16 * MIB))
    path = bench.folder / "x.lzm"
    for part in (_measure_first_writes, _measure_snapshots, _measure_stalls):
        _write(path, bench.pick(4 * GIB, 16 * MIB))
        part(bench, path)
        path.unlink()


if __name__ == "__main__":
    harness.main(measure)
