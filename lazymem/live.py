# SPDX-License-Identifier: BSD-3-Clause
"""A widget that shows, while a notebook's cell runs, which chunks are in memory.

A thread looks at the store and sends what it sees: the main thread is busy with the
cell.  It keeps neither the store nor an array, and ends with the store.
"""

from __future__ import annotations

import threading
import time
import weakref
from contextvars import copy_context
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lazymem import show, strip
from lazymem.extras import needs

with needs("live"):
    import anywidget
    import traitlets

if TYPE_CHECKING:
    import numpy.typing as npt

    from lazymem.store import Store


_LOOK_SHARE = 0.05
"""That of a core's time which looks take at most."""


class LiveView(anywidget.AnyWidget):
    """Shows a store's arrays until it, or the store, is closed.

    Made by :meth:`lazymem.Store.live`.
    """

    _esm = Path(__file__).with_name("live.js")
    _css = show.CSS
    html = traitlets.Unicode().tag(sync=True)
    _thread: threading.Thread | None = None

    def __init__(self, store: Store, interval: float) -> None:
        if not (isfinite(interval) and interval > 0):
            raise ValueError(f"interval must be a positive number, not {interval!r}")
        self._path, self._end = store.path, threading.Event()
        self._then, self._counted = time.monotonic(), _count(store)
        super().__init__(html=show.live(store, [0, 0, 0, 0]))
        # In this context ipykernel finds the cell that what is sent belongs to.
        self._thread = threading.Thread(
            target=copy_context().run,
            args=(self._watch, weakref.ref(store), interval),
            name="lazymem-live",
            daemon=True,
        )
        self._thread.start()

    def close(self) -> None:
        """End the view; no thread of it is left."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._end.set()
            thread.join()
        super().close()

    def _watch(self, store_ref: weakref.ref[Store], interval: float) -> None:
        is_open, pause = True, interval
        while is_open and not self._end.wait(pause):
            start, store = time.thread_time(), store_ref()
            is_open = store is not None and not store.closed
            self.html = show.gone(self._path) if store is None else self._look(store)
            del store
            pause = max(interval, (time.thread_time() - start) / _LOOK_SHARE)

    def _look(self, store: Store) -> str:
        then, before = self._then, self._counted
        self._then, self._counted = time.monotonic(), _count(store)
        gained = (
            np.maximum(counts - before.get(name, 0), 0)
            for name, counts in self._counted.items()
        )
        rates = sum(gained, np.zeros(4)) / (self._then - then)
        return show.live(store, rates.tolist())


def _count(store: Store) -> dict[str, npt.NDArray[np.float64]]:
    """Return each array's faults, fills, bytes decoded and bytes read so far."""
    found = {}
    for name, region in strip.regions(store).items():
        raw = region.stats()
        decoded_bytes = (raw.fills - raw.zero_fills) * region.chunk_bytes
        faults = raw.faults + raw.write_faults
        counts = (faults, raw.fills, decoded_bytes, raw.stored_bytes_read)
        found[name] = np.array(counts, np.float64)
    return found
