# SPDX-License-Identifier: BSD-3-Clause
"""Traces of chunks that are read, and how often known policies would miss.

FIFO and LRU are what their names say; Belady's policy (IBM Systems Journal 5, 1966)
drops what is not read for longest from now on, which nobody can know: it is the bound.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

Trace = np.ndarray[Any, np.dtype[np.int64]]


def traces(chunks: int, capacity: int, length: int) -> dict[str, Trace]:
    """Return traces of reads of so many chunks, where `capacity` have room."""
    rng = np.random.default_rng(11)

    def zipf(exponent: float) -> Trace:
        weights = np.arange(1, chunks + 1) ** -exponent
        ranks = rng.choice(chunks, length, p=weights / weights.sum())
        return rng.permutation(chunks)[ranks]

    hot = rng.permutation(chunks)[: capacity // 2]
    mixed = np.resize(np.setdiff1d(np.arange(chunks), hot), length)
    is_hot = rng.random(length) < 0.5
    mixed[is_hot] = rng.choice(hot, is_hot.sum())
    return {
        "uniform": rng.integers(0, chunks, length),
        "Zipf 0.8": zipf(0.8),
        "Zipf 1.0": zipf(1.0),
        "Zipf 1.2": zipf(1.2),
        "scan": np.resize(np.arange(chunks), length),
        "loop a tenth larger than the limit": np.resize(
            np.arange(int(1.1 * capacity)), length
        ),
        "scan and hot set": mixed,
    }


def fifo(trace: Trace, capacity: int) -> int:
    """Count the misses of first in, first out."""
    return _ordered(trace, capacity, lambda found, chunk: None)


def lru(trace: Trace, capacity: int) -> int:
    """Count the misses if the least recently used goes."""
    return _ordered(trace, capacity, OrderedDict.move_to_end)


def _ordered(
    trace: Trace, capacity: int, hit: Callable[[OrderedDict[int, None], int], Any]
) -> int:
    found: OrderedDict[int, None] = OrderedDict()
    misses = 0
    for chunk in trace.tolist():
        if chunk in found:
            hit(found, chunk)
            continue
        misses += 1
        if len(found) == capacity:
            found.popitem(last=False)
        found[chunk] = None
    return misses


def belady(trace: Trace, capacity: int) -> int:
    """Count the misses of who knows the future."""
    chunks = trace.tolist()
    never, upcoming = len(chunks), {}
    next_use = [never] * len(chunks)
    for i in range(len(chunks) - 1, -1, -1):
        next_use[i] = upcoming.get(chunks[i], never)
        upcoming[chunks[i]] = i
    found: dict[int, int] = {}
    heap: list[tuple[int, int]] = []
    misses = 0
    for chunk, use in zip(chunks, next_use, strict=True):
        if chunk not in found:
            misses += 1
            while len(found) == capacity:
                latest, victim = heapq.heappop(heap)
                if found.get(victim) == -latest:
                    del found[victim]
        found[chunk] = use
        heapq.heappush(heap, (-use, chunk))
    return misses
