# SPDX-License-Identifier: BSD-3-Clause
"""Do arrays keep their promises when everything happens at once?

    python tests/stress/stress.py [SECONDS [SEED]]

Threads, one of them the main thread, read arrays, as LazyArray and as plain views, fill
ahead, load, verify, close and reopen the stores, collect garbage, fork and start
processes.  Operation k of thread t draws from a generator of its own, so what it does
depends on the seed, t and k alone; only the timing is the machine's.

(P1) What an operation of LazyArray returns is right; else it raises.
(P2) A plain view may show wrong bytes, and then there is an exception on its way.
(P3) ClosedError is raised for stores that were closed, ChecksumError for the damaged
     array, and nothing else is.
(P4) The damaged chunk never gives data.
(P5) A thread that hangs has every stack dumped; at the end nothing is left.

What holds for the store that they write to stands in writes.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import multiprocessing
import multiprocessing.resource_tracker
import os
import pickle
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import lazymem as lm
from lazymem import _engine

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.stress.writes import Desk

THREADS = 5
SECONDS = 3.0
WARM_UP_MAX_S = 5.0
WATCHDOG_S = 20
CHILD_S = 15
"""After which a child shows its stack and ends, by SIGALRM."""
GRACE_S = 10.0
"""For an error to arrive: threads hold the interpreter's lock in turns, each asleep in
a fault."""
LATE_S = 0.02
"""After an operation on a store that was closed: a second thread's error for the same
page may come last, and is not to hit the next operation."""
BAD = "bad"
CHUNK = 16384

LIBC = ctypes.CDLL(None)
M_MMAP_THRESHOLD = -3

Array = Any


@dataclass(frozen=True)
class Kind:
    """A store file and what is in it."""

    path: Path
    oracle: dict[str, np.ndarray[Any, Any]]


@dataclass
class Slot:
    """An open store that threads share, until one of them closes it."""

    kind: Kind
    store: lm.Store


class Failure(Exception):
    """A promise was broken."""


def make_kinds(folder: Path, seed: int) -> list[Kind]:
    rng = np.random.default_rng(seed)
    smooth = np.cumsum(np.sin(np.arange(400_000) * 0.37)).astype("f4")
    sparse = np.zeros(3_000_000, "f8")
    sparse[rng.integers(0, sparse.size, 20)] = 1.5
    oracle: dict[str, Any] = {
        "grid": smooth.reshape(400, 1000),
        "noise": rng.integers(0, 255, 700_001, np.uint8),
        "sparse": sparse.reshape(300, 10, 1000),
        "tiny": np.arange(37),
        "large": np.arange(2_000_000, dtype="i8") // 3,
        "fortran": np.asfortranarray(smooth[:120_000].reshape(300, 400)),
    }
    kinds = []
    for codec in ("none", "lz4", "zstd"):
        kinds.append(Kind(folder / f"{codec}.lzm", oracle))
        lm.save(kinds[-1].path, oracle, codec=codec, chunk_bytes=CHUNK)
    bad = {BAD: rng.integers(0, 255, 8 * CHUNK, np.uint8), "tiny": oracle["tiny"]}
    kinds.append(Kind(folder / "bad.lzm", bad))
    lm.save(kinds[-1].path, bad, codec="none", chunk_bytes=CHUNK)
    data = bytearray(kinds[-1].path.read_bytes())
    data[data.index(bad[BAD][3 * CHUNK : 4 * CHUNK].tobytes()) + 99] ^= 1
    kinds[-1].path.write_bytes(data)
    return kinds


class Worker:
    """A thread of the run."""

    def __init__(self, run: Run, index: int) -> None:
        self.run, self.index = run, index
        self.op_idx = 0
        self.doing = "nothing"
        self.since = time.monotonic()
        self.rng = random.Random()
        self.counts: Counter[str] = Counter()

    def loop(self) -> None:
        try:
            while not self.run.stop:
                self.operate()
            self.doing = "nothing"
        except BaseException:
            self.run.failed(self)

    def operate(self) -> None:
        self.rng = random.Random(f"{self.run.seed} {self.index} {self.op_idx}")
        names = list(OPS)
        self.doing = self.rng.choices(names, [OPS[name][0] for name in names])[0]
        self.since = time.monotonic()
        OPS[self.doing][1](self)
        self.counts[self.doing] += 1
        self.op_idx += 1

    # ---- what operations draw --------------------------------------------------------

    def slot(self) -> Slot:
        return self.rng.choice(self.run.slots)

    def index_of(self, array: Array) -> Any:
        """Draw a basic index, mostly of few elements."""
        index = []
        for length in array.shape:
            low = self.rng.randrange(length)
            high = low + 1 + self.rng.randrange(min(length, 2000))
            index.append(slice(low, high, self.rng.choice((1, 1, 3))))
        return tuple(index)


@contextlib.contextmanager
def may_be_closed(store: lm.Store) -> Iterator[None]:
    """Accept ClosedError of a store that was closed, also if it comes late."""
    try:
        yield
        if store.closed:
            let_late_errors_arrive()
    except lm.ClosedError:
        if not store.closed:
            raise
        with contextlib.suppress(lm.ClosedError):
            let_late_errors_arrive()


def let_late_errors_arrive() -> None:
    end = time.monotonic() + LATE_S
    while time.monotonic() < end:
        pass


def pick(worker: Worker, slot: Slot) -> tuple[Array, np.ndarray[Any, Any]]:
    """Return a good array and what must be in it."""
    name = worker.rng.choice([name for name in slot.kind.oracle if name != BAD])
    return slot.store[name], slot.kind.oracle[name]


# ---- operations ----------------------------------------------------------------------


def lazy(worker: Worker) -> None:
    """Read through LazyArray."""
    slot = worker.slot()
    store = slot.store
    with may_be_closed(store):
        a, right = pick(worker, slot)
        index = worker.index_of(right)
        # np.ascontiguousarray() may be a plain view, to which errors come later.
        for got in (a[index].copy(), a[index] + 0, np.concatenate([a[index]])):
            if not np.array_equal(got, right[index]):  # (P1)
                raise Failure(f"{store.path} {a.object_name}[{index}] was read wrong")


def element(worker: Worker) -> None:
    slot = worker.slot()
    store = slot.store
    with may_be_closed(store):
        a, right = pick(worker, slot)
        for _ in range(20):
            index = tuple(worker.rng.randrange(n) for n in right.shape)
            if a[index] != right[index]:
                raise Failure(f"{store.path} {a.object_name}[{index}] was read wrong")


def plain(worker: Worker) -> None:
    """Read through a plain view, to which errors come from outside."""
    slot = worker.slot()
    store = slot.store
    with may_be_closed(store):
        a, right = pick(worker, slot)
        index = worker.index_of(right)
        view = np.asarray(a)[index]
        del a  # the view keeps the memory
        end = time.monotonic() + GRACE_S
        while not np.array_equal(view, right[index]):  # (P2)
            if not store.closed:
                raise Failure(f"{store.path} {index}: a plain view is wrong")
            if time.monotonic() > end:
                raise Failure(f"{store.path} {index}: a plain view is wrong, unheard")


def whole(worker: Worker) -> None:
    slot = worker.slot()
    store = slot.store
    with may_be_closed(store):
        a, right = pick(worker, slot)
        # Not a.sum(): numpy 2.4 never lets go of an operand whose reduction raises.
        if worker.rng.random() < 0.5:
            a.load()
        if not np.array_equal(a.copy(), right):
            raise Failure(f"{store.path} {a.object_name} was read wrong")


def gather(worker: Worker) -> None:
    slot = worker.slot()
    store = slot.store
    with may_be_closed(store):
        a, right = pick(worker, slot)
        count = worker.rng.choice((3, 30, 300))
        index = np.array([worker.rng.randrange(len(right)) for _ in range(count)])
        got = a.take(index, 0) if worker.rng.random() < 0.3 else a[index]
        if not np.array_equal(got, right[index]):
            raise Failure(f"{store.path} {a.object_name} was gathered wrong")


def refer(worker: Worker) -> None:
    """Read what was pickled, which opens the file anew."""
    slot = worker.slot()
    store = slot.store
    with may_be_closed(store):
        a, right = pick(worker, slot)
        index = worker.index_of(right)
        again = pickle.loads(pickle.dumps(a[index]))
        if not np.array_equal(again, right[index]):
            raise Failure(f"{store.path} {index} was read wrong by reference")


def advise(worker: Worker) -> None:
    slot = worker.slot()
    with may_be_closed(slot.store):
        a, _ = pick(worker, slot)
        a.advise(worker.rng.choice(("normal", "normal", "random", "sequential")))


def prefetch(worker: Worker) -> None:
    slot = worker.slot()
    store = slot.store
    with may_be_closed(store):
        a, right = pick(worker, slot)
        a.prefetch(worker.index_of(right))
        a.residency()
        repr(a)


def evict(worker: Worker) -> None:
    slot = worker.slot()
    store = slot.store
    with may_be_closed(store):
        a, right = pick(worker, slot)
        if store.mode == "r":
            a.evict(worker.index_of(right))


def damaged(worker: Worker) -> None:
    """Read what can't be read, beside what can."""
    slot = next(s for s in worker.run.slots if BAD in s.kind.oracle)
    store, right = slot.store, slot.kind.oracle[BAD]
    with may_be_closed(store):
        a = store[BAD]
        # Not through LazyArray, which raises if any touch of the array fails meanwhile.
        if not np.array_equal(np.asarray(a)[: 3 * CHUNK], right[: 3 * CHUNK]):
            raise Failure("what stands beside the damage was read wrong")
        is_plain = worker.rng.random() < 0.5
        data = np.asarray(a) if is_plain else a
        end = time.monotonic() + (GRACE_S if is_plain else 0.0)
        try:
            while True:
                data[3 * CHUNK + worker.rng.randrange(CHUNK) :].copy()
                if time.monotonic() > end:
                    break
        except lm.ChecksumError:
            with contextlib.suppress(lm.ChecksumError):
                let_late_errors_arrive()
            return
        raise Failure("a damaged chunk was read without an error")  # (P4)


def reopen(worker: Worker) -> None:
    slot = worker.slot()
    old = slot.store
    slot.store = lm.open(slot.kind.path)
    if worker.rng.random() < 0.5:
        old.close()
    del old
    if worker.rng.random() < 0.2:
        gc.collect()


def limit(worker: Worker) -> None:
    """Another memory limit for all stores, or none; each array can be loaded."""
    most = worker.rng.randrange(32, 96) << 20
    lm.set_limit(most if worker.rng.random() < 0.9 else None)


def verify(worker: Worker) -> None:
    slot = worker.slot()
    store = slot.store
    with may_be_closed(store):
        damage = store.verify()
        if len(damage) != (BAD in slot.kind.oracle):
            raise Failure(f"{store.path}: verify found {damage}")


def blocks(worker: Worker) -> None:
    slot = worker.slot()
    store, right = slot.store, slot.kind.oracle["tiny"]
    with may_be_closed(store):
        pieces = store.blocks("tiny", block_bytes=100)
        if b"".join(map(bytes, pieces)) != right.tobytes():
            raise Failure(f"{store.path}: blocks() gave wrong bytes")
        store.stats()


def check_in_child(store: lm.Store, held: Array, kind: Kind, name: str) -> int:
    """Return the exit status of a forked child, which does this."""
    right = kind.oracle[name]
    try:
        for a in (held, store[name]):
            if not np.array_equal(a[-1], right[-1]) or not np.array_equal(a, right):
                return 2
        with lm.open(kind.path) as own:
            if not np.array_equal(own[name][-1], right[-1]):
                return 3
    except lm.ClosedError:
        return 0 if store.closed else 4
    return 0


def fork(worker: Worker) -> None:
    slot = worker.slot()
    store = slot.store
    name = worker.rng.choice([name for name in slot.kind.oracle if name != BAD])
    with may_be_closed(store):
        held = store[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads and fork
            child = os.fork()
        if child == 0:
            signal.alarm(CHILD_S)
            status = 5
            try:
                status = check_in_child(store, held, slot.kind, name)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        status = wait_for(child)
        if status != 0:
            raise Failure(f"{store.path} {name}: a child ended with {status}")


def wait_for(child: int) -> int:
    """Wait for a process; an exception from outside must not leave it behind."""
    late: BaseException | None = None
    while True:
        try:
            _, status = os.waitpid(child, 0)
            break
        except lm.ClosedError as exc:
            late = exc
    if late:
        raise late
    return os.waitstatus_to_exitcode(status)


def check_in_process(path: str, name: str, wanted: float) -> None:
    signal.alarm(CHILD_S)
    with lm.open(path) as store:
        sys.exit(0 if store[name].sum() == wanted else 1)


def process(worker: Worker) -> None:
    """Let a process of multiprocessing open the file by its name."""
    kind = worker.rng.choice(worker.run.slots).kind
    method = worker.rng.choice(("fork", "fork", "fork", "spawn"))
    args = (str(kind.path), "tiny", kind.oracle["tiny"].sum())
    context: Any = multiprocessing.get_context(method)
    child = context.Process(target=check_in_process, args=args)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child.start()
    child.join()
    if child.exitcode != 0:
        raise Failure(f"{method}: a process ended with {child.exitcode}")
    child.close()


def change(worker: Worker) -> None:
    worker.run.desk.change(worker.index, worker.rng)


def peek(worker: Worker) -> None:
    worker.run.desk.peek(worker.rng)


def snapshot(worker: Worker) -> None:
    worker.run.desk.snapshot(worker.rng)


def restore(worker: Worker) -> None:
    worker.run.desk.restore(worker.rng)


def fork_and_write(worker: Worker) -> None:
    worker.run.desk.fork(worker.index, worker.rng)


OPS: dict[str, tuple[int, Callable[[Worker], None]]] = {
    "lazy": (300, lazy),
    "element": (200, element),
    "plain": (200, plain),
    "whole": (20, whole),
    "gather": (60, gather),
    "refer": (10, refer),
    "advise": (5, advise),
    "prefetch": (60, prefetch),
    "evict": (60, evict),
    "damaged": (10, damaged),
    "reopen": (40, reopen),
    "limit": (10, limit),
    "verify": (8, verify),
    "blocks": (20, blocks),
    "fork": (6, fork),
    "process": (1, process),
    "change": (150, change),
    "peek": (40, peek),
    "snapshot": (15, snapshot),
    "restore": (4, restore),
    "fork_and_write": (4, fork_and_write),
}
"""Name, weight and function of all that a thread may do.  What arrays learn to do gets
a line here and a function above."""


# ---- the run -------------------------------------------------------------------------


@dataclass(frozen=True)
class Holdings:
    """What the process holds of the system while nothing is open."""

    fds: int
    threads: int
    mappings: int
    rss_kib: int

    @classmethod
    def look(cls) -> Holdings:
        gc.collect()
        LIBC.malloc_trim(0)
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        rss = next(line.split()[1] for line in status if line.startswith("VmRSS"))
        return cls(
            fds=len(os.listdir("/proc/self/fd")),
            threads=len(os.listdir("/proc/self/task")),
            mappings=len(Path("/proc/self/maps").read_bytes().splitlines()),
            rss_kib=int(rss),
        )

    def is_within(self, before: Holdings) -> bool:
        """Whether nothing has leaked since `before`.

        Handlers come and go, a handler's stack and heap are two mappings each, and the
        heaps of libc and numpy keep holes.  What each of the stores that a run opens
        would leak is far beyond that.
        """
        cores = os.cpu_count() or 1
        return (
            self.fds == before.fds
            and self.threads <= before.threads + 2 * cores
            and self.mappings <= before.mappings + 64
            and self.rss_kib <= before.rss_kib + (48 << 10)
        )


class Run:
    """The threads, and what they share."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.seed = seed
        self.stop = False
        self.failures: list[str] = []
        self.kinds = make_kinds(folder, seed)
        self.folder = folder
        self.desk: Desk
        self.slots: list[Slot] = []
        self.workers = [Worker(self, index) for index in range(THREADS)]

    def failed(self, worker: Worker) -> None:
        self.stop = True
        self.failures.append(
            f"seed {self.seed}, thread {worker.index}, operation {worker.op_idx}, "
            f"{worker.doing}:\n{traceback.format_exc()}"
        )

    def watch(self, until: float) -> None:
        """Put the dump of all stacks off as long as every thread gets on."""
        while any(worker.doing != "nothing" for worker in self.workers):
            now = time.monotonic()
            if all(now - worker.since < WATCHDOG_S for worker in self.workers):
                faulthandler.dump_traceback_later(WATCHDOG_S, exit=True)
            if now >= until:
                self.stop = True
            if self.stop and self.failures:
                break
            time.sleep(0.1)

    def run_for(self, seconds: float) -> None:
        self.stop = False
        self.slots = [
            Slot(kind, lm.open(kind.path)) for kind in self.kinds for _ in range(2)
        ]
        self.desk = Desk(self.folder / "desk.lzm", THREADS)
        for worker in self.workers:
            worker.doing, worker.since = "starting", time.monotonic()
        threads = [threading.Thread(target=w.loop) for w in self.workers[1:]]
        watch = threading.Thread(
            target=self.watch, args=(time.monotonic() + seconds,), daemon=True
        )
        for thread in (*threads, watch):
            thread.start()
        self.workers[0].loop()  # the main thread, which hears in a way of its own
        for thread in (*threads, watch):
            thread.join()
        faulthandler.cancel_dump_traceback_later()
        if not self.failures:
            self.desk.close()
        del self.desk
        for slot in self.slots:
            slot.store.close()
        self.slots = []

    def settled(self) -> Holdings:
        """Wait until closed arrays are gone, and return what is held then."""
        gc.collect()
        end = time.monotonic() + WATCHDOG_S
        while _engine.pager_stats()["regions_live"] and time.monotonic() < end:
            time.sleep(0.01)
        if left := _engine.pager_stats()["regions_live"]:
            self.failures.append(f"{left} regions are left")
        return Holdings.look()


def main(seconds: float, seed: int) -> int:
    print(f"stress.py: seed {seed}, {seconds:g} s", flush=True)
    warm_up = min(seconds / 4, WARM_UP_MAX_S)
    faulthandler.register(signal.SIGALRM, chain=True)
    # Else each thread's heap keeps tens of MiB at its top, which hides what leaks.
    LIBC.mallopt(M_MMAP_THRESHOLD, 1 << 20)
    multiprocessing.resource_tracker.ensure_running()  # else the first "spawn" does
    with tempfile.TemporaryDirectory(prefix="lazymem-stress-") as folder:
        run = Run(Path(folder), seed)
        run.run_for(warm_up)
        before = now = run.settled()
        if not run.failures:
            run.run_for(seconds - warm_up)
            now = run.settled()
    if not run.failures and not now.is_within(before):
        run.failures.append(f"leak: {before} -> {now}")
    totals = sum((worker.counts for worker in run.workers), Counter[str]())
    engine = _engine.pager_stats()
    facts = ("events", "copies", "eexist", "eagain_partial", "eagain", "enoent")
    print(
        "stress.py:",
        *(f"{name} {totals[name]}" for name in OPS),
        *(f"{name} {engine[name]}" for name in facts),
        f"{before} -> {now}",
    )
    for failure in run.failures:
        print(failure, file=sys.stderr)
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(
        main(
            float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS,
            int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() // 10**9,
        )
    )
