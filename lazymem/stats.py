# SPDX-License-Identifier: BSD-3-Clause
"""Facts about memory and faults, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime  # noqa: TC003 - a field's type is to be seen at run time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class Commit:
    """The state of a store file that was opened."""

    sequence: int
    """1 for the first commit of the file."""
    time: datetime
    """When it was made, in UTC."""
    store_id: str
    """Random identity of the file, 32 hexadecimal digits."""
    writer: str
    """The program that made it."""
    file_bytes: int
    """Length of the file."""
    torn_bytes: int
    """Bytes at its end that belong to no intact commit, and are ignored."""


@dataclass(frozen=True)
class Residency:
    """How much of an array is in memory.  Asking touches no page."""

    chunks: int
    """Chunks that the array overlaps."""
    chunks_resident: int
    """Of these, in memory."""
    chunk_bytes: int
    """Bytes of a chunk; of a page where pages are larger."""
    mask: npt.NDArray[np.bool_]
    """Shape ``(chunks,)``: which chunks are in memory."""

    @property
    def fraction(self) -> float:
        """Share of the chunks that is in memory, 0 to 1."""
        return self.chunks_resident / self.chunks if self.chunks else 1.0


@dataclass(frozen=True)
class RegionStats:
    """What an array has cost so far."""

    page_bytes: int
    """Bytes of its pages."""
    chunks: int
    """Chunks of the object; in huge pages, those pages."""
    chunks_resident: int
    """Of these, in memory."""
    bytes_resident: int
    """Bytes in memory, in whole chunks."""
    faults: int
    """Page faults served."""
    fills: int
    """Chunks brought to memory, by faults or ahead of them."""
    zero_fills: int
    """Of these, chunks of zeros, which take no memory that is not shared."""
    failures: int
    """Fills that failed."""
    stored_bytes_read: int
    """Compressed bytes read from the file."""
    chunks_dirty: int
    """Chunks written since the last snapshot or flush, in a store open for writing."""
    write_faults: int
    """First writes to chunks, in a store open for writing."""
    ahead: int
    """Chunks asked for by readahead, before anybody touched them."""
    ahead_wasted: int
    """Of these, such as a run of accesses ended before.  An estimate: when a run has
    ended shows when others have begun."""
    fills_shared: int
    """Of the fills, chunks that were decoded before, in shared memory: by others, or
    here, before they were evicted."""


@dataclass(frozen=True)
class WarmStats:
    """What has become of the working set that a store was opened with.

    Nothing tells which of the chunks filled ahead were used.  So every 16th of a set is
    not filled ahead: how many of those are in memory later tells which share of the set
    was used.  That is an estimate, and worth nothing with a handful of samples; it
    is too high where samples came to memory in another way, by ``load()``, a prefetch
    or an index array, and too low where they were evicted.  Arrays that are
    no longer open do not count.
    """

    chunks: int
    """In the set: those filled ahead, and the samples."""
    sampled: int
    """Of these, left to whoever touches them."""
    touched: int
    """Of the samples, in memory by now."""

    @property
    def used(self) -> float | None:
        """Estimated share of the set that was used, 0 to 1; None without samples."""
        return self.touched / self.sampled if self.sampled else None


@dataclass(frozen=True)
class BudgetStats:
    """What has become of a memory limit: a store's own, or the process's."""

    limit: int
    """Bytes that arrays may have in memory, in whole chunks."""
    used: int
    """Bytes that they have, or are about to."""
    pinned: int
    """Of the limit, bytes that may not be dropped to make room."""
    evicted: int
    """Chunks dropped to make room."""
    spilled: int
    """Of these, chunks that were written, and went to a file."""
    bytes_spilled: int
    """Bytes that the file has for them now."""
    refilled: int
    """Chunks that came back soon after they were dropped: what a larger limit would
    have spared."""


@dataclass(frozen=True)
class StoreStats:
    """What a store's open arrays have cost so far."""

    arrays: dict[str, RegionStats]
    """Each array that is open, by name."""
    engine: dict[str, int]
    """Counters of the whole process: userfaultfd calls and answers, threads, arenas."""
    warm: WarmStats | None = None
    """What became of the working set; None: the store was opened without one."""
    budget: BudgetStats | None = None
    """What bounds its memory; None: nothing does."""

    @property
    def bytes_resident(self) -> int:
        """Bytes in memory."""
        return sum(stats.bytes_resident for stats in self.arrays.values())

    @property
    def faults(self) -> int:
        """Page faults served."""
        return sum(stats.faults for stats in self.arrays.values())

    @property
    def fills(self) -> int:
        """Chunks brought to memory."""
        return sum(stats.fills for stats in self.arrays.values())


def region_stats(raw: Any) -> RegionStats:
    """Make a :class:`RegionStats` of a ``struct lm_region_stats``."""
    return RegionStats(
        page_bytes=raw.page_bytes,
        chunks=raw.chunks_total,
        chunks_resident=raw.chunks_resident,
        bytes_resident=raw.bytes_resident,
        faults=raw.faults,
        fills=raw.fills,
        zero_fills=raw.zero_fills,
        failures=raw.failures,
        stored_bytes_read=raw.stored_bytes_read,
        chunks_dirty=raw.chunks_dirty,
        write_faults=raw.write_faults,
        ahead=raw.ahead,
        ahead_wasted=raw.ahead_wasted,
        fills_shared=raw.fills_shared,
    )


def budget_stats(raw: Any) -> BudgetStats:
    """Make a :class:`BudgetStats` of a ``struct lm_budget_stats``."""
    return BudgetStats(
        limit=raw.limit_bytes,
        used=raw.used_bytes,
        pinned=raw.pinned_bytes,
        evicted=raw.chunks_evicted,
        spilled=raw.chunks_spilled,
        bytes_spilled=raw.spilled_bytes,
        refilled=raw.chunks_back,
    )
