# SPDX-License-Identifier: BSD-3-Clause
"""A store that all threads of stress.py write to, amid snapshots, restores and forks.

Each thread has elements of its own, eight of every few dozen, and notes in `right` what
it has written.

(W1) A thread reads from its elements what it has written.
(W2) In every snapshot a thread's pairs of counters, first one array's and then the
     other's, are equal, or the first one is ahead by one.
(W3) A snapshot that was begun while nobody wrote is what `right` was then; also when it
     is restored, and when the file is opened again.
(W4) What a child writes is the child's.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import traceback
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import lazymem as lm

GROUP = 8
PAIRS = 8
KEPT = 6
"""Snapshots that can be restored; the others are deleted now and then."""
NAMES = ("first", "second")
CHILD_S = 15

Arrays = dict[str, np.ndarray[Any, Any]]


def crc_of(arrays: Any) -> list[int]:
    return [zlib.crc32(np.asarray(arrays[name]).tobytes()) for name in NAMES]


class Desk:
    """The store, and what must be in it."""

    def __init__(self, path: Path, threads: int, length: int = 200_000) -> None:
        self.path, self.threads, self.length = path, threads, length
        self.store = lm.open(path, "w")
        for name, codec in zip(NAMES, ("lz4", "zstd"), strict=True):
            self.store.create(name, (length,), "i8", codec=codec, chunk_bytes=16384)
        self.right: Arrays = {name: np.zeros(length, "i8") for name in NAMES}
        self.one = threading.Lock()
        """A snapshot, or a restore, at a time; before `mine`."""
        self.mine = [threading.Lock() for _ in range(threads)]
        """Held by a thread that writes, or compares."""
        self.kept: list[tuple[int, list[int]]] = []

    @contextlib.contextmanager
    def nobody_writes(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for lock in self.mine:
                stack.enter_context(lock)
            yield

    def at(self, thread: int, group: int) -> int:
        """Return the first element of a thread's group, which is for pairs."""
        return (group * self.threads + thread) * GROUP

    def groups(self) -> int:
        return self.length // (GROUP * self.threads)

    def pairs(self, thread: int) -> list[int]:
        return [self.at(thread, n * (self.groups() - 1) // PAIRS) for n in range(PAIRS)]

    # ---- what a thread does with its elements ----------------------------------------

    def write(self, thread: int, rng: random.Random) -> None:
        for _ in range(12):
            name = rng.choice(NAMES)
            array: Any = self.store[name]
            if rng.random() < 0.3:
                array = np.asarray(array)
            low = self.at(thread, rng.randrange(self.groups())) + 1
            values = rng.randrange(1 << 60) + np.arange(rng.randrange(1, GROUP))
            array[low : low + values.size] = values
            self.right[name][low : low + values.size] = values
            self.check(thread, rng)

    def check(self, thread: int, rng: random.Random) -> None:
        name = rng.choice(NAMES)
        low = self.at(thread, rng.randrange(self.groups()))
        got = self.store[name][low : low + GROUP].copy()
        right = self.right[name][low : low + GROUP]
        if not np.array_equal(got, right):  # (W1)
            raise AssertionError(f"{name}[{low}:] is {got}, not {right}")

    def count_up(self, thread: int) -> None:
        first, second = (self.store[name] for name in NAMES)
        for at in self.pairs(thread):
            count = self.right["first"][at] + 1
            first[at] = count
            second[at] = count
            self.right["first"][at] = self.right["second"][at] = count

    def change(self, thread: int, rng: random.Random) -> None:
        with self.mine[thread]:
            self.write(thread, rng)
            self.count_up(thread)

    def peek(self, rng: random.Random) -> None:
        """Read what may just be restored, or evict it."""
        array = self.store[rng.choice(NAMES)]
        low = rng.randrange(self.length - 3000)
        array[low : low + 3000].sum()
        if rng.random() < 0.5:
            array.evict(slice(low, low + 3000))
        repr(self.store)

    # ---- snapshots -------------------------------------------------------------------

    def snapshot(self, rng: random.Random) -> None:
        if not self.one.acquire(blocking=False):
            return
        try:
            if rng.random() < 0.4:
                with self.nobody_writes():
                    future = self.store.snapshot(wait=False)
                    right = crc_of(self.right)
                self.kept.insert(0, (future.result().sequence, right))
            else:
                future = self.store.snapshot(wait=False)
            if rng.random() < 0.3:
                self.check_moment(future.result().sequence)
            future.result()
            if len(self.kept) > KEPT:
                self.tidy()
        finally:
            self.one.release()

    def check_moment(self, sequence: int) -> None:
        with lm.open(self.path, at=sequence) as store:
            first, second = (np.asarray(store[name]) for name in NAMES)
            for thread in range(self.threads):
                at = self.pairs(thread)
                ahead = first[at] - second[at]
                if not np.isin(ahead, (0, 1)).all():  # (W2)
                    raise AssertionError(f"snapshot {sequence} is torn: {ahead}")

    def tidy(self) -> None:
        del self.kept[KEPT // 2 :]
        wanted = {sequence for sequence, _ in self.kept}
        for info in self.store.log():
            if info.sequence not in wanted:
                self.store.delete_snapshot(info.sequence)
        self.store.prune()

    def restore(self, rng: random.Random) -> None:
        if not self.one.acquire(blocking=False):
            return
        try:
            if not self.kept:
                return
            sequence, crc = rng.choice(self.kept)
            with self.nobody_writes():
                self.store.restore(sequence, discard=True)
                for name in NAMES:
                    self.right[name][:] = self.store[name]
                if crc_of(self.right) != crc:  # (W3)
                    raise AssertionError(f"snapshot {sequence} is not what it was")
        finally:
            self.one.release()

    # ---- fork ------------------------------------------------------------------------

    def in_child(self, thread: int, rng: random.Random) -> int:
        if self.store.mode != "c":
            return 2
        for _ in range(5):
            self.write(thread, rng)
        return 0

    def fork(self, thread: int, rng: random.Random) -> None:
        with self.mine[thread], warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads and fork
            child = os.fork()
            if child == 0:
                signal.alarm(CHILD_S)
                status = 5
                try:
                    status = self.in_child(thread, rng)
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(status)
        _, status = os.waitpid(child, 0)
        if status != 0:
            raise AssertionError(f"a child that writes ended with {status}")
        with self.mine[thread]:
            self.check(thread, rng)  # (W4)

    # ---- the end ---------------------------------------------------------------------

    def close(self) -> None:
        last = self.store.snapshot("last").sequence
        if crc_of(self.store) != crc_of(self.right):
            raise AssertionError("what is in memory is not right")
        self.store.close()
        for sequence, crc in [*self.kept, (last, crc_of(self.right))]:
            with lm.open(self.path, at=sequence) as store:
                if crc_of(store) != crc:  # (W3)
                    raise AssertionError(f"snapshot {sequence} is not what it was")
        self.path.unlink()
