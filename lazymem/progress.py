# SPDX-License-Identifier: BSD-3-Clause
"""Progress of long work: a tqdm bar, or a function of the caller's."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Progress: TypeAlias = "bool | None | Callable[[int, int], None]"
"""``True`` for a tqdm bar, a function of (bytes done, bytes in all), or nothing."""


class Meter:
    """Counts bytes of one piece of work, whose parts report steps."""

    def __init__(self, total: int, show: Callable[[int, int], None] | None) -> None:
        self._total = total
        self._done = 0
        self._show = show

    def part(self, nbytes: int) -> Callable[[int, int], None]:
        """Return a function of (steps done, steps in all) for the next `nbytes`."""
        start = self._done
        self._done += nbytes

        def tick(done: int, steps: int) -> None:
            if self._show is not None:
                self._show(start + nbytes * done // max(steps, 1), self._total)

        return tick


@contextmanager
def meter(progress: Progress, total: int, label: str) -> Iterator[Meter]:
    """Show the progress of work on `total` bytes.

    Raises
    ------
    ModuleNotFoundError
        If a bar is asked for and tqdm is not installed.
    """
    if callable(progress):
        yield Meter(total, progress)
    elif not progress:
        yield Meter(total, None)
    else:
        from tqdm.auto import tqdm

        with tqdm(total=total, desc=label, unit="B", unit_scale=True) as bar:
            yield Meter(total, lambda done, _: _advance(bar, done))


def _advance(bar: object, done: int) -> None:
    bar.update(done - bar.n)  # type: ignore[attr-defined]
