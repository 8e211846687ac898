# SPDX-License-Identifier: BSD-3-Clause
"""Which lines of a piece of code made the arrays of stores cost what."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from lazymem.arrays import open_regions

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType

    from lazymem._engine import RegionHandle


@dataclass
class LineCost:
    """What a line has cost, with all that it called, over all open stores.

    What other threads did meanwhile, and readahead, counts for the line that ran.
    """

    hits: int = 0
    """How often it ran."""
    seconds: float = 0.0
    """How long it ran, waiting for chunks included."""
    faults: int = 0
    """Page faults served."""
    write_faults: int = 0
    """First writes to chunks."""
    fills: int = 0
    """Chunks filled."""
    bytes_filled: int = 0
    """Bytes of these, in whole chunks."""
    stored_bytes_read: int = 0
    """Compressed bytes read from files."""


class LineTrace:
    """A context in which the lines of some files are traced, by `sys.settrace`.

    Parameters
    ----------
    is_traced : callable
        Whether the lines of a frame are to be told apart; else what they cost counts
        for the line that called them.

    Attributes
    ----------
    costs : mapping from int to LineCost
        By line.
    """

    def __init__(self, is_traced: Callable[[FrameType], bool]) -> None:
        self.costs: defaultdict[int, LineCost] = defaultdict(LineCost)
        self._is_traced = is_traced
        self._lines: list[int] = []
        self._seen: WeakKeyDictionary[RegionHandle, tuple[int, ...]]
        self._seen = WeakKeyDictionary()
        self._now = 0.0

    def __enter__(self) -> LineTrace:
        self._before = sys.gettrace()
        self._charge()
        sys.settrace(self._on_call)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sys.settrace(self._before)

    def _on_call(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not self._is_traced(frame):
            return None
        self._charge()
        self._lines.append(frame.f_lineno)
        return self._on_event

    def _on_event(self, frame: FrameType, event: str, arg: Any) -> Any:
        self._charge()
        if event == "line":
            self._lines[-1] = frame.f_lineno
            self.costs[frame.f_lineno].hits += 1
        elif event == "return":
            self._lines.pop()
        self._now = time.perf_counter()
        return self._on_event

    def _charge(self) -> None:
        """Let the line that ran pay for what has happened since the last event."""
        cost = self.costs[self._lines[-1]] if self._lines else LineCost()
        cost.seconds += time.perf_counter() - self._now
        for region in open_regions():
            raw = region.stats()
            now = raw.faults, raw.write_faults, raw.fills, raw.stored_bytes_read
            before = self._seen.get(region, (0, 0, 0, 0))
            self._seen[region] = now
            faults, write_faults, fills, read = (a - b for a, b in zip(now, before))
            cost.faults += faults
            cost.write_faults += write_faults
            cost.fills += fills
            cost.bytes_filled += fills * region.chunk_bytes
            cost.stored_bytes_read += read
        self._now = time.perf_counter()


def table(costs: dict[int, LineCost], source: str) -> str:
    """Return the costs of the lines of a source as a text, for a fixed-width font."""
    heads = ("line", "hits", "s", "faults", "write faults", "chunks", "MiB", "MiB read")
    rows: list[tuple[str, ...]] = [heads]
    lines = source.splitlines()
    for number in range(1, len(lines) + 1):
        if number not in costs:
            rows.append((str(number), *[""] * (len(heads) - 1)))
            continue
        cost = costs[number]
        rows.append(
            (
                str(number),
                f"{cost.hits:,}",
                f"{cost.seconds:.4f}",
                f"{cost.faults:,}",
                f"{cost.write_faults:,}",
                f"{cost.fills:,}",
                f"{cost.bytes_filled / 2**20:,.1f}",
                f"{cost.stored_bytes_read / 2**20:,.1f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    shown = (
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows
    )
    return "\n".join(
        f"{row}  {line}".rstrip() for row, line in zip(shown, ["", *lines])
    )
