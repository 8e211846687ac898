# SPDX-License-Identifier: BSD-3-Clause
"""What does a fault cost, beside the one library that does the same?

UMap 2.1 (LLNL, C++) maps uncompressed files by userfaultfd.  Back of the envelope: its
one reader of faults hands each page to a filler, which wakes the toucher: three threads
wake up in turn, at 5 to 15 us each.  In lazymem two do, since who reads the fault fills
the chunk.  So a touch of 4 KiB takes 25 to 50 us there, and 13 to 20 here.  Then come a
pread and a copy into fresh memory, 0.3 ms a MiB, which are the same; and a checksum,
0.1 ms, which UMap has none of.  So the larger the page the less there is to gain: a
sixth at 64 KiB; at 1 MiB lazymem should take 1.3 times as long.  UMap has no readahead:
each page of a scan is a touch, 0.08 GiB/s at 4 KiB, 1 at 64 KiB, 2.5 at 1 MiB.  lazymem
sees the run, and has both cores fill ahead of its reader: 2 to 4 GiB/s, and half of it
in chunks of 4 KiB, each of which is an ioctl.  np.memmap copies nothing and maps many
pages at a time: 0.3 us a touch, and the speed of memory.  It shows what not owning the
memory saves.

All have the same incompressible bytes, raw, or in a store with codec "none" whose
chunks are as large as UMap's pages.  The file has been read just before, so that it is
in the page cache; each figure is from a fresh process.  The loops are those of touch.c,
in one library that all load.  "random touch": a 64-bit word in each of many pages, none
twice, in random order; the first, which finds the threads only starting, does not
count.  "scan": every 64-bit word of the data is added up, in order.  "in a quarter": a
scan of which a quarter may be in memory.  UMap has a buffer of that size then, which
its evictors keep below 90 %, lazymem has such a limit; np.memmap's reader gives each
eighth back when he is through with it, to the page cache, and his time to do so counts.
"peak" is what the scan had in memory at most.

UMap has a filler and an evictor for each core, a buffer in which all fits otherwise,
and is built for release, without logging.  UMAP_SOURCE names the folder of its source;
without it, it is cloned.  The build is kept in build/umap; a smoke run makes none.
Targets: 0.7 times UMap's time for a touch, half of it for a scan.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import os
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import data
import harness
import numpy as np
from harness import GIB, MIB, Bench

import lazymem as lm

_URL = "https://github.com/LLNL/umap"
_BUILDS = Path(__file__).parents[1] / "build" / "umap"
_PAGE_KIB = (4, 64, 1024)
_SMOKE_PAGE_KIB = (4, 64)
_TOUCHES_MAX = 4096
_ROUNDS = 5
_LIMITED_TO = 4
"""The part of the data that may be in memory, where it is limited: a quarter."""
_ROOM = 1.25
"""UMap evicts from nine tenths of its buffer on."""
_FREE_MIN = 2.5
"""Times the data.  UMap takes at most nine tenths of what is free without caches."""
_SECONDS_MAX = 120
"""Whoever takes longer hangs."""
_TOUCH_MAX = 0.7
_SCAN_MAX = 0.5

_HOW = {
    "umap": "UMap 2.1, a filler and an evictor for each core, release, no logging",
    "lazymem": 'codec "none", chunks of the same size, all else by default',
    "memmap": "np.memmap of the raw file",
}

Array = np.ndarray[Any, Any]
Found = dict[str, list[dict[str, Any]]]
"""What each rival gave, in each round."""


# ---- the loops, and who brings the memory --------------------------------------------


class Loops:
    """The functions of touch.h."""

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        pointer, size, word = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint64
        self._each, self._all = library.touch_each, library.touch_all
        self._each.argtypes = (pointer, pointer, size, pointer)
        self._all.argtypes = (pointer, size, word)
        self._each.restype = self._all.restype = word

    def touch_each(self, memory: Array, offsets: Array) -> tuple[int, Array]:
        """Return the sum of some words, and the nanoseconds that each took."""
        ns = np.zeros_like(offsets)
        at = memory.ctypes.data, offsets.ctypes.data
        answer = int(self._each(*at, len(offsets), ns.ctypes.data))
        return answer, ns

    def touch_all(self, memory: Array, answer: int = 0) -> int:
        """Return the sum of all, after what came before."""
        return int(self._all(memory.ctypes.data, memory.nbytes, answer))


@contextmanager
def _memory(
    name: str, path: str, limit_bytes: int | None = None
) -> Iterator[tuple[Array, Callable[[int, int], Any]]]:
    """Map a file; give its bytes, and what gives memory back, from one to another."""
    if name == "memmap":
        raw: Any = np.memmap(path, np.uint8, "r")

        def unmap(low: int, high: int) -> None:
            raw._mmap.madvise(mmap.MADV_DONTNEED, low, high - low)

        yield raw, unmap
    else:
        with lm.open(path, limit=limit_bytes) as store:
            lazy = store["x"]
            yield np.asarray(lazy), lambda low, high: None


def touch(name: str, path: str, loops: str, offsets: str) -> dict[str, Any]:
    """Touch single words of a file."""
    with _memory(name, path) as (memory, _):
        answer, ns = Loops(loops).touch_each(memory, np.fromfile(offsets, np.uint64))
    return {"answer": answer, "ns": ns.tolist()}


def scan(name: str, path: str, loops: str, limit_bytes: int | None) -> dict[str, Any]:
    """Read all of a file; if memory is limited, in bands of half of what is allowed."""
    with _memory(name, path, limit_bytes) as (memory, give_back):
        step = limit_bytes // 2 if limit_bytes else memory.nbytes
        touch_all, answer = Loops(loops).touch_all, 0
        before = harness.memory_bytes()
        harness.reset_peak_memory()
        start = time.perf_counter()
        for low in range(0, memory.nbytes, step):
            answer = touch_all(memory[low : low + step], answer)
            if limit_bytes:
                give_back(low, min(low + step, memory.nbytes))
        seconds = time.perf_counter() - start
        peak = harness.memory_bytes("VmHWM") - before
    return {"answer": answer, "s": seconds, "peak": peak}


# ---- UMap ----------------------------------------------------------------------------


class MissingError(Exception):
    """UMap can't be had, and why."""


def _run(*command: Any, env: Mapping[str, str] | None = None) -> str:
    """Run a command and return its output, or the last that it had to say."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS_MAX,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise MissingError(f"{words[0]}: no end after {_SECONDS_MAX} s") from None
    except OSError as exc:
        raise MissingError(f"{words[0]}: {exc.strerror}") from None
    if done.returncode != 0:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise MissingError(f"{Path(words[0]).name}: {last}")
    return done.stdout


def _source(bench: Bench) -> Path:
    if "UMAP_SOURCE" in os.environ:
        source = Path(os.environ["UMAP_SOURCE"])
        if not (source / "src" / "umap" / "umap.h").is_file():
            raise MissingError(f"UMAP_SOURCE={source}: no src/umap/umap.h there")
        return source
    if bench.smoke:
        raise MissingError("UMAP_SOURCE is not set, and a smoke run clones nothing")
    source = bench.folder / "umap"
    env = os.environ | {"GIT_TERMINAL_PROMPT": "0"}
    _run("git", "clone", "--quiet", "--depth", "1", _URL, source, env=env)
    return source


def _library(bench: Bench, source: Path) -> Path:
    """Return UMap's static library, built where there is none of this source."""
    files = sorted(file for file in (source / "src").rglob("*") if file.is_file())
    key = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    library = _BUILDS / f"libumap-{key[:16]}.a"
    if not library.exists():
        if bench.smoke:
            raise MissingError("not built, and a smoke run builds nothing")
        folder = bench.folder / "umap-build"
        options = ("-DCMAKE_BUILD_TYPE=Release", "-DENABLE_TESTS=Off")
        _run("cmake", "-S", source, "-B", folder, *options, "-DENABLE_LOGGING=Off")
        _run("cmake", "--build", folder, "--target", "umap-static", "--parallel")
        _BUILDS.mkdir(parents=True, exist_ok=True)
        new = library.with_suffix(".new")
        shutil.copy(next(folder.rglob("libumap.a")), new)
        new.replace(library)
    return library


class UMap:
    """UMap, and a program that reads by it."""

    def __init__(self, bench: Bench, loops: Path) -> None:
        source = _source(bench)
        library = _library(bench, source)
        self.program = bench.folder / "umap_touch"
        compiler = (sysconfig.get_config_var("CXX") or "c++").split()
        path = Path(__file__).with_name("umap_touch.cpp")
        flags = ("-O2", "-pthread", f"-I{source / 'src'}")
        _run(*compiler, *flags, path, loops, library, "-o", self.program)

    def read(self, page_bytes: int, buffer_bytes: int, *files: Path) -> dict[str, Any]:
        """Touch single words of a file, or read all of it; or say why that failed."""
        cores = str(len(os.sched_getaffinity(0)))
        settings = {
            "UMAP_PAGESIZE": str(page_bytes),
            "UMAP_BUFSIZE": str(buffer_bytes // page_bytes),
            "UMAP_PAGE_FILLERS": cores,
            "UMAP_PAGE_EVICTORS": cores,
        }
        try:
            text = _run(self.program, *files, env=os.environ | settings)
        except MissingError as exc:
            return {"failed": str(exc)}
        found: dict[str, Any] = json.loads(text)
        return found


# ---- the questions -------------------------------------------------------------------


def _warm(path: Path, nbytes: int) -> None:
    """Have a file in the page cache, and enough memory free for UMap beside it."""
    meminfo = Path("/proc/meminfo").read_text().splitlines()
    free_kib, available_kib = (int(line.split()[1]) for line in meminfo[1:3])
    wanted = int(nbytes * _FREE_MIN)
    if free_kib * 1024 < wanted < available_kib * 1024 // 2:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        mmap.mmap(-1, wanted, flags=flags).close()
    buffer = bytearray(MIB)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


class _Run:
    """The same bytes for all rivals, in pages and chunks of one size."""

    def __init__(
        self, bench: Bench, umap: UMap | None, loops: Path, raw: Path, page_bytes: int
    ) -> None:
        self.bench, self.umap, self.loops, self.raw = bench, umap, loops, raw
        self.page_bytes = page_bytes
        self.nbytes = raw.stat().st_size
        self.label = f"{page_bytes >> 10:,} KiB"
        self.store = bench.folder / "x.lzm"
        array = np.memmap(raw, np.uint8, "r")
        lm.save(self.store, x=array, codec="none", chunk_bytes=page_bytes)
        harness.sync(self.store)

    def ask(
        self,
        function: Callable[..., dict[str, Any]],
        arg: Any,
        buffer_bytes: int,
        *files: Path,
    ) -> tuple[Found, dict[str, str]]:
        """Ask all in turns; return what they gave, and why UMap gave nothing."""

        def of(name: str, path: Path) -> dict[str, Any]:
            _warm(path, self.nbytes)
            harness.use_memory(self.nbytes * 5 // 4)
            if name == "umap" and self.umap:
                return self.umap.read(self.page_bytes, buffer_bytes, path, *files)
            args = (name, str(path), str(self.loops), arg)
            found: dict[str, Any] = harness.fresh(function, *args)
            return found

        paths = {"umap": self.raw, "lazymem": self.store, "memmap": self.raw}
        if not self.umap:
            del paths["umap"]
        turns = {name: partial(of, name, path) for name, path in paths.items()}
        found = harness.interleave(self.bench.pick(_ROUNDS, 1), turns)
        for x in found.get("umap", []):
            if "failed" in x:
                del found["umap"]
                return found, {"left_out": f"umap: {x['failed']}"}
        return found, {}


def _to(found: Mapping[str, list[float]], label: str) -> dict[str, harness.Spread]:
    """Return lazymem's ratios to the others."""
    return {
        f"{label}_to_{name}": harness.ratio(found["lazymem"], xs)
        for name, xs in found.items()
        if name != "lazymem"
    }


def _bound(
    ratios: Mapping[str, harness.Spread], key: str, most: float
) -> tuple[float, float] | None:
    return (ratios[key]["median"], most) if key in ratios else None


def _touch(run: _Run) -> None:
    rng = np.random.default_rng(7)
    pages = run.nbytes // run.page_bytes
    count = min(_TOUCHES_MAX, pages // 2)
    words = rng.integers(0, run.page_bytes // 8, count + 1) * 8
    offsets = rng.permutation(pages)[: count + 1] * run.page_bytes + words
    file = run.bench.folder / "offsets"
    offsets.astype(np.uint64).tofile(file)
    found, left_out = run.ask(touch, str(file), int(run.nbytes * _ROOM), file)
    us = {
        percent: {
            name: [harness.percentile(x["ns"][1:], percent) / 1e3 for x in xs]
            for name, xs in found.items()
        }
        for percent in (50, 99)
    }
    ratios = _to(us[50], "p50") | _to(us[99], "p99")
    run.bench.add(
        "random touch of distinct pages",
        f"{run.label}, random touch",
        {name: xs[0]["answer"] for name, xs in found.items()},
        touches=count,
        **{
            f"{name}_p{percent}_us": harness.spread(us[percent][name])
            for name in found
            for percent in us
        },
        **ratios,
        **left_out,
        at_most=_bound(ratios, "p50_to_umap", _TOUCH_MAX),
    )


def _scan(run: _Run, limit_bytes: int | None) -> None:
    buffer_bytes = limit_bytes or int(run.nbytes * _ROOM)
    found, left_out = run.ask(scan, limit_bytes, buffer_bytes)
    seconds = {name: [x["s"] for x in xs] for name, xs in found.items()}
    ratios = _to(seconds, "time")
    run.bench.add(
        "scan, a quarter of it in memory" if limit_bytes else "scan",
        f"{run.label}, scan in a quarter" if limit_bytes else f"{run.label}, scan",
        {name: xs[0]["answer"] for name, xs in found.items()},
        **{
            f"{name}_GiB_s": harness.spread([run.nbytes / GIB / x for x in xs])
            for name, xs in seconds.items()
        },
        **{
            f"{name}_peak_MiB": harness.spread([x["peak"] / MIB for x in xs])
            for name, xs in found.items()
        },
        **ratios,
        **left_out,
        at_most=_bound(ratios, "time_to_umap", _SCAN_MAX),
    )


def _add_peers(bench: Bench, loops: Path) -> UMap | None:
    """Say who is here."""
    umap, missing = None, ""
    try:
        umap = UMap(bench, loops)
    except MissingError as exc:
        missing = str(exc)
    for name, how in _HOW.items():
        reason = missing if name == "umap" else ""
        bench.add("peers", name, {"peers": 1}, how=how, left_out=reason)
    return umap


def measure(bench: Bench) -> None:
    """Touch and scan in pages of each size."""
    loops = harness.compile_c("touch.c", bench.folder, "-shared", "-fPIC")
    umap = _add_peers(bench, loops)
    raw = bench.folder / "raw"
    data.noise(bench.pick(GIB, 64 * MIB)).tofile(raw)
    harness.sync(raw)
    for kib in _SMOKE_PAGE_KIB if bench.smoke else _PAGE_KIB:
        run = _Run(bench, umap, loops, raw, kib << 10)
        _touch(run)
        _scan(run, None)
        _scan(run, run.nbytes // _LIMITED_TO)
        run.store.unlink()


if __name__ == "__main__":
    harness.main(measure)
