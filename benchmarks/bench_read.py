# SPDX-License-Identifier: BSD-3-Clause
"""How long until the answer, from a file that has just been opened?

Back of the envelope, for a field of 1 GiB in chunks of 128 KiB.  10,000 random elements
touch 5,800 of its 8,192 chunks, one column and the sum touch all: 1 GiB to decode (1.2
to 1.7 GiB/s on a core with lz4, half of it with zstd) and to install (2.5 GiB/s), which
is 1.1 s and 1.8 s on one core, half of that on two.  200 rows touch a fortieth.  The
file is 320 to 430 MB, 0.5 s from a disk.  The second time nothing is left to do but to
read memory.  Who decodes anew at each access does 10,000 times what one chunk takes.

Rivals: peers.py says how each of them is used; those that are missing here are listed
with the reason.  Each figure is from a fresh process that has imported and opened.
"cold": the file, not the libraries, has been dropped from the page cache; "warm": it
has been read just before; "again": the same operation once more.  A rival that is slow
takes part in the first rounds only.  "best" is the quickest rival that reads a file;
"ndarray" is what there is to be had once all is in memory.  Writing ends when the file
is on the disk.

The floor is this machine's, and lazymem's own file's: the chunks that a question
touches, read from the disk or decoded on two cores by ``store.verify()``, whichever
takes longer, without any address space to put them into.  What is in memory already
has the ndarray's time as its floor.  read_floor.c measures a page fault and a copy.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import data
import harness
import images
import numpy as np
import peers
from harness import GIB, MIB, Bench

import lazymem as lm

_ELEMENTS = 10_000
_ROWS = 200
_FEW = 20
"""Elements and rows of a smoke run."""
_ROUNDS = 5
_SECONDS_MAX = 6.0
"""Of each rival, for each operation; who has taken longer is not asked again."""
_PACK_SECONDS_MAX = 15.0
_NOISE = 1.1
"""Two ordinary ndarrays differ by this much in one run, now and then."""
_FRESH_IN_SMOKE = ("memmap", "lazymem_zstd", "lazymem_shared")
"""Others are asked within the benchmark's process, since their imports take longer."""
_OURS = ("lz4", "zstd")
_SHARING = "lazymem_shared"
_NOT_RIVALS = ("ndarray", "lazymem_lz4", "lazymem_zstd", "lazymem_evicting")

Points = np.ndarray[Any, Any]
Found = dict[str, list[dict[str, Any]]]
"""What each peer gave, in each round."""


# ---- the questions -------------------------------------------------------------------


def _points(shape: tuple[int, ...], count: int) -> Points:
    return np.random.default_rng(3).integers(0, shape, (count, 2)).T


def _some_rows(shape: tuple[int, ...], count: int) -> list[int]:
    return np.random.default_rng(5).integers(0, shape[0], count).tolist()


def _elements(peer: peers.Peer, a: Any, shape: tuple[int, ...], count: int) -> float:
    rows, columns = _points(shape, count).tolist()
    return sum(float(peer.element(a, i, j)) for i, j in zip(rows, columns))


def _gather(peer: peers.Peer, a: Any, shape: tuple[int, ...], count: int) -> float:
    return float(peer.gather(a, *_points(shape, count)).sum(dtype=np.float64))


def _rows(peer: peers.Peer, a: Any, shape: tuple[int, ...], count: int) -> float:
    return sum(peers.total_of(peer.row(a, i)) for i in _some_rows(shape, count))


def _column(peer: peers.Peer, a: Any, shape: tuple[int, ...], _: int) -> float:
    return float(np.asarray(peer.column(a, shape[1] // 3)).sum(dtype=np.float64))


def _sum(peer: peers.Peer, a: Any, _: tuple[int, ...], __: int) -> float:
    return peer.total(a)


@dataclass(frozen=True)
class Question:
    """Something that is asked of each peer."""

    case: str
    answer: Callable[[peers.Peer, Any, tuple[int, ...], int], float]
    count: int = 0
    states: tuple[str, ...] = ("cold",)


_QUESTIONS = {
    "elements": Question("10,000 random elements", _elements, _ELEMENTS),
    "gather": Question("10,000 elements, in one call", _gather, _ELEMENTS),
    "rows": Question("200 random rows", _rows, _ROWS),
    "column": Question("one column", _column),
    "sum": Question("sum of all", _sum, states=("cold", "warm")),
}
_OPERATIONS = ("floor", "pack", *_QUESTIONS, "pair")


@dataclass(frozen=True)
class Set:
    """A data set, what is asked of it, and the most that is hoped for.

    Bounds are of lz4 and zstd: seconds by case, else by what they are.
    """

    name: str
    nbytes: int
    rounds: int
    asked: tuple[str, ...]
    bounds: Mapping[str, tuple[float | None, float]]


_SETS = (
    Set(
        "weather",
        GIB,
        _ROUNDS,
        tuple(_QUESTIONS),
        {
            "file, MiB": (430, 315),
            "writing": (1.2, 4.0),
            "10,000 random elements, cold": (0.6, 0.6),
            "10,000 elements, in one call, cold": (0.4, 0.4),
            "200 random rows, cold": (0.08, 0.08),
            "one column, cold": (0.55, 0.55),
            "sum of all, cold": (0.55, 0.75),
            "peak": (144, 144),
        },
    ),
    Set(
        "land mask",
        GIB,
        3,
        ("elements", "rows", "sum"),
        {
            "file, MiB": (None, 3),
            "10,000 random elements, cold": (0.3, 0.3),
            "200 random rows, cold": (0.15, 0.15),
            "sum of all, cold": (0.35, 0.35),
        },
    ),
)


# ---- in processes of their own -------------------------------------------------------


def pack(name: str, raw: str, path: str) -> dict[str, Any]:
    """Write an array in a peer's way; return the seconds, or why it can't."""
    peer, array = peers.PEERS[name], np.load(raw)
    peer.load_packages()
    start = time.perf_counter()
    try:
        peer.write(Path(path), array)
    except images.UnavailableError as exc:
        return {"unavailable": str(exc)}
    peer.sync(Path(path))
    return {
        "seconds": time.perf_counter() - start,
        "bytes": peer.disk_bytes(Path(path)),
        "answer": array.shape[0],
    }


def read(
    name: str, path: str, operation: str, shape: list[int], count: int
) -> dict[str, float]:
    """Open a file, ask a question twice, and return how long each took."""
    peer, question = peers.PEERS[name], _QUESTIONS[operation]
    peer.load_packages()
    a = peer.open(Path(path))
    ask = partial(question.answer, peer, a, tuple(shape), count)
    before = harness.memory_bytes()
    harness.reset_peak_memory()
    start = time.perf_counter()
    answer = ask()
    middle = time.perf_counter()
    peak = harness.memory_bytes("VmHWM")
    again = time.perf_counter()
    ask()
    return {
        "answer": answer,
        "first": middle - start,
        "again": time.perf_counter() - again,
        "peak": peak - before,
    }


def hold(name: str, path: str) -> None:
    """Read all of a file, say so, and keep it until a line is read."""
    peer = peers.PEERS[name]
    peer.load_packages()
    a = peer.open(Path(path))
    print(json.dumps(peer.total(a)), flush=True)
    sys.stdin.readline()


def decode(path: str, cores: int) -> dict[str, float]:
    """Decode a store on some of the cores, keeping nothing."""
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(all_cores)[:cores])
    try:
        with lm.open(path) as store:
            chunks = store.info("x").chunks
            start = time.perf_counter()
            damage = store.verify()
            seconds = time.perf_counter() - start
    finally:
        os.sched_setaffinity(0, all_cores)
    return {"seconds": seconds, "answer": chunks - len(damage)}


def read_file(path: str) -> dict[str, float]:
    """Read a file from one end to the other."""
    buffer, count = bytearray(8 * MIB), 0
    start = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while got := file.readinto(buffer):
            count += got
    return {"seconds": time.perf_counter() - start, "answer": count}


def _call(bench: Bench, function: Callable[..., Any], *args: Any) -> Any:
    if bench.smoke and args[0] not in _FRESH_IN_SMOKE:
        return function(*args)
    return harness.fresh(function, *args)


# ---- the machine ---------------------------------------------------------------------


def _measure_machine(bench: Bench) -> None:
    program = harness.compile_c("read_floor.c", bench.folder)
    memory_bytes = bench.pick(256 * MIB, 4 * MIB)
    rounds = bench.pick(_ROUNDS, 1)
    found = [harness.json_of(program, memory_bytes) for _ in range(rounds)]
    if None in found:
        return
    for case, key in {"two cores": "across_ns", "one core": "one_core_ns"}.items():
        bench.add(
            "the machine: a page fault that a thread serves, 4 KiB",
            f"a page fault, {case}",
            {"cores": found[0]["cores"]},
            median_us=harness.spread([x[key]["median"] / 1e3 for x in found]),
            low_us=harness.spread([x[key]["low"] / 1e3 for x in found]),
            p99_us=harness.spread([x[key]["p99"] / 1e3 for x in found]),
        )
    for key in ("fresh", "resident"):
        bench.add(
            "the machine: copying memory",
            f"to {key} memory",
            {"cores": found[0]["cores"]},
            GiB_s=harness.spread([x[f"{key}_GiB_s"] for x in found]),
        )


@dataclass(frozen=True)
class Floor:
    """What this machine takes at least for a store."""

    info: Any
    decode_s: float
    disk_s: float

    def seconds(
        self, operation: str, state: str, shape: tuple[int, ...], count: int
    ) -> float:
        """Return the least for a question of which nothing is in memory."""
        chunk_bytes, row_bytes = self.info.chunk_bytes, self.info.nbytes // shape[0]
        at = None
        if operation in ("elements", "gather"):
            rows, columns = _points(shape, count)
            at = rows * row_bytes + columns * self.info.dtype.itemsize
        elif operation == "rows":
            starts = np.array(_some_rows(shape, count))[:, None] * row_bytes
            at = starts + np.append(np.arange(0, row_bytes, chunk_bytes), row_bytes - 1)
        share = (
            1 if at is None else len(np.unique(at // chunk_bytes)) / self.info.chunks
        )
        slower = max(self.decode_s, self.disk_s if state == "cold" else 0)
        return share * slower


def _measure_floor(bench: Bench, set_name: str, codec: str, path: Path) -> Floor:
    with lm.open(path) as store:
        info = store.info("x")

    def from_disk() -> Any:
        harness.drop_from_page_cache(path)
        return _call(bench, read_file, str(path))

    found = harness.interleave(
        bench.pick(_ROUNDS, 1),
        {
            "from the disk": from_disk,
            "decoding, one core": lambda: _call(bench, decode, str(path), 1),
            "decoding, two cores": lambda: _call(bench, decode, str(path), 2),
        },
    )
    seconds = {case: [x["seconds"] for x in xs] for case, xs in found.items()}
    for case, xs in seconds.items():
        bench.add(
            f"{set_name}: the floor",
            f"{codec}, {case}",
            {"chunks": found["decoding, one core"][0]["answer"], "all": info.chunks},
            s=harness.spread(xs),
            GiB_s=harness.spread([info.nbytes / GIB / x for x in xs]),
        )
    least = {case: harness.spread(xs)["median"] for case, xs in seconds.items()}
    return Floor(info, least["decoding, two cores"], least["from the disk"])


# ---- one data set --------------------------------------------------------------------


class _Run:
    """A data set in the files of all peers that can be had here."""

    def __init__(self, bench: Bench, of: Set, array: Any) -> None:
        self.bench, self.of = bench, of
        self.shape, self.nbytes = array.shape, array.nbytes
        self.folder = bench.folder / of.name.replace(" ", "-")
        self.rounds = bench.pick(of.rounds, 1)
        self.names = [
            name for name in bench.chosen["peers"] if not peers.PEERS[name].missing()
        ]
        self.floors: dict[str, Floor] = {}
        self.folder.mkdir()
        np.save(self.folder / "source.npy", array)

    def path(self, name: str) -> Path:
        """Return the file or the folder of a peer."""
        return self.folder / (peers.PEERS[name].file_of or name)

    def asked(self, operation: str) -> list[str]:
        """Return the peers that an operation is asked of."""
        asked = {name: peers.PEERS[name].asked for name in self.names}
        return [name for name, some in asked.items() if not some or operation in some]

    def interleave(
        self, names: list[str], run: Callable[[str], Any], seconds_max: float
    ) -> Found:
        """Ask peers in turns."""
        turns = {name: partial(run, name) for name in names}
        return harness.interleave(self.rounds, turns, seconds_max)

    def leave_out(self, name: str, reason: str) -> None:
        """Do without a peer, and say why."""
        self.names.remove(name)
        row = next(row for row in self.bench.rows if row["case"] == name)
        row["left_out"] = f"{self.of.name}: {reason}"

    def bounds(self, key: str, found: Mapping[str, float]) -> dict[str, Any]:
        """Return what was found and hoped for, of lz4 and zstd."""
        hoped = zip(_OURS, self.of.bounds.get(key, ()))
        ours = {codec: (found.get(f"lazymem_{codec}"), most) for codec, most in hoped}
        return {codec: pair for codec, pair in ours.items() if None not in pair}


def _pack(run: _Run) -> None:
    """Write all files; who can't is left out."""
    source = str(run.folder / "source.npy")
    owners = list(dict.fromkeys(peers.PEERS[n].file_of or n for n in run.names))

    def write(name: str) -> Any:
        harness.remove(run.path(name))
        return _call(run.bench, pack, name, source, str(run.path(name)))

    is_asked = "pack" in run.bench.chosen["ops"]
    found = run.interleave(owners, write, _PACK_SECONDS_MAX if is_asked else 0)
    for name, xs in list(found.items()):
        if "unavailable" in xs[0]:
            del found[name]
            run.leave_out(name, xs[0]["unavailable"])
    if is_asked:
        _add_files(run, found)


def _add_files(run: _Run, found: Found) -> None:
    answers = {name: xs[0]["answer"] for name, xs in found.items()}
    mib = {name: xs[0]["bytes"] / MIB for name, xs in found.items()}
    seconds = {name: [x["seconds"] for x in xs] for name, xs in found.items()}
    medians = {name: harness.spread(xs)["median"] for name, xs in seconds.items()}
    run.bench.add(
        f"{run.of.name}: file",
        "file, MiB",
        answers,
        **{f"{name}_MiB": x for name, x in mib.items()},
        at_most=run.bounds("file, MiB", mib),
    )
    run.bench.add(
        f"{run.of.name}: packing",
        "writing",
        answers,
        **{f"{name}_s": harness.spread(xs) for name, xs in seconds.items()},
        at_most=run.bounds("writing", medians),
    )


def _ask(run: _Run, operation: str, places: Mapping[str, Path]) -> None:
    """Ask all peers one question, in each state of the page cache."""
    question = _QUESTIONS[operation]
    count = run.bench.pick(question.count, _FEW)

    def once(state: str, name: str) -> Any:
        if state == "cold":
            peers.PEERS[name].drop(run.path(name))
        else:
            _read_all(places[name])
        harness.use_memory(run.nbytes * 5 // 4)
        args = (str(places[name]), operation, run.shape, count)
        return _call(run.bench, read, name, *args)

    for state in question.states:
        ask = partial(once, state)
        found = run.interleave(run.asked(operation), ask, _SECONDS_MAX)
        seconds = {name: [x["first"] for x in xs] for name, xs in found.items()}
        floors = {
            codec: floor.seconds(operation, state, run.shape, count)
            for codec, floor in run.floors.items()
        }
        answers = {name: xs[0]["answer"] for name, xs in found.items()}
        _add_times(run, f"{question.case}, {state}", answers, seconds, floors)
        if state == "cold":
            seconds = {name: [x["again"] for x in xs] for name, xs in found.items()}
            _add_times(run, f"{question.case}, again", answers, seconds)
    if operation == "sum":
        _add_peak(run, found)


def _read_all(path: Path) -> None:
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            read_file(str(file))


def _add_times(
    run: _Run,
    case: str,
    answers: Mapping[str, Any],
    seconds: Mapping[str, list[float]],
    floors: Mapping[str, float] | None = None,
) -> None:
    """Add a row; without `floors`, of what is in memory already."""
    medians = {name: harness.spread(xs)["median"] for name, xs in seconds.items()}
    values: dict[str, Any] = {f"{n}_s": harness.spread(xs) for n, xs in seconds.items()}
    rivals = [name for name in seconds if name not in _NOT_RIVALS]
    best = min(rivals, key=medians.__getitem__, default="")
    bounds = run.bounds(case, medians)
    if floors is None:
        floors = (
            dict.fromkeys(_OURS, medians["ndarray"]) if "ndarray" in medians else {}
        )
        like = medians.get("ndarray" if case.startswith("sum") else "memmap")
        if like is not None:
            ours = {codec: medians.get(f"lazymem_{codec}") for codec in _OURS}
            bounds = {c: (x, like * _NOISE) for c, x in ours.items() if x is not None}
    for codec in _OURS:
        ours_s = seconds.get(f"lazymem_{codec}")
        if ours_s and codec in floors:
            values[f"{codec}_floor_s"] = floors[codec]
            values[f"{codec}_to_floor"] = harness.ratio(
                ours_s, [floors[codec]] * len(ours_s)
            )
        if ours_s and best:
            values[f"{codec}_to_best"] = harness.ratio(ours_s, seconds[best])
    values["best"] = best.replace("_", " ")
    run.bench.add(f"{run.of.name}: reading", case, answers, **values, at_most=bounds)


def _add_peak(run: _Run, found: Found) -> None:
    readers = {name: xs for name, xs in found.items() if name != "ndarray"}
    mib = {name: [x["peak"] / MIB for x in xs] for name, xs in readers.items()}
    highest = {name: max(xs) for name, xs in mib.items()}
    bounds = run.bounds("peak", highest)
    if "peak" in run.of.bounds and "lazymem_evicting" in highest:
        bounds["evicting"] = (highest["lazymem_evicting"], run.of.bounds["peak"][1])
    run.bench.add(
        f"{run.of.name}: memory",
        "peak of the sum",
        {name: xs[0]["answer"] for name, xs in found.items()},
        **{f"{name}_MiB": harness.spread(xs) for name, xs in mib.items()},
        at_most=bounds,
    )


# ---- two processes -------------------------------------------------------------------


@contextmanager
def _holder(name: str, path: Path) -> Iterator[tuple[float, int]]:
    """Let a process hold all of a file; gives its answer, and its number."""
    command = [sys.executable, __file__, "--call", "hold"]
    process = subprocess.Popen(
        [*command, json.dumps([name, str(path)])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline()), process.pid
    finally:
        process.communicate("\n")


def _pss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise KeyError("Pss")


def _pair(run: _Run, places: Mapping[str, Path]) -> None:
    """Ask for what two processes take that have read all of the same file."""
    answers: dict[str, float] = {}
    one: dict[str, float] = {}
    two: dict[str, float] = {}
    for name in run.asked("pair"):
        if run.bench.smoke and name not in _FRESH_IN_SMOKE:
            continue
        with _holder(name, places[name]) as (answers[name], first):
            one[name] = _pss_mib(first)
            with _holder(name, places[name]) as (_, second):
                two[name] = _pss_mib(first) + _pss_mib(second)
    of = f"{run.of.name}: memory of those that have read all (PSS)"
    for case, mib in {"one process": one, "two processes": two}.items():
        run.bench.add(
            of, case, answers, **{f"{name}_MiB": x for name, x in mib.items()}
        )
    if _SHARING in two:
        alone, shared = one["lazymem_zstd"], two[_SHARING]
        run.bench.add(
            of,
            "two processes that share",
            {name: answers[name] for name in (_SHARING, "lazymem_zstd")},
            lazymem_zstd_MiB=shared,
            at_most={"zstd": (shared, alone * _NOISE)},
        )


def _measure_set(bench: Bench, of: Set) -> None:
    run = _Run(bench, of, data.DATASETS[of.name](bench.pick(of.nbytes, MIB)))
    _pack(run)
    operations = [x for x in bench.chosen["ops"] if x in (*of.asked, "pair", "floor")]
    with ExitStack() as stack:
        places = {}
        for name in list(run.names):
            try:
                attached = peers.PEERS[name].attached(run.path(name))
                places[name] = stack.enter_context(attached)
            except images.UnavailableError as exc:
                run.leave_out(name, str(exc))
        for codec in _OURS:
            if f"lazymem_{codec}" in run.names and "floor" in operations:
                path = run.path(f"lazymem_{codec}")
                run.floors[codec] = _measure_floor(bench, of.name, codec, path)
        for operation in operations:
            if operation in _QUESTIONS:
                _ask(run, operation, places)
        if "pair" in operations and of.name == "weather":
            _pair(run, places)
    harness.remove(run.folder)


def measure(bench: Bench) -> None:
    """Say who is here, measure the machine, then each data set."""
    for name in bench.chosen["peers"]:
        reason = peers.PEERS[name].missing()
        bench.add(
            "peers", name, {"peers": 1}, how=peers.PEERS[name].how, left_out=reason
        )
    if "floor" in bench.chosen["ops"]:
        _measure_machine(bench)
    for of in _SETS:
        if of.name in bench.chosen["sets"]:
            _measure_set(bench, of)


if __name__ == "__main__":
    sets = tuple(of.name for of in _SETS)
    harness.main(measure, peers=tuple(peers.PEERS), ops=_OPERATIONS, sets=sets)
