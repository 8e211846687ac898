# SPDX-License-Identifier: BSD-3-Clause
"""Counters of running processes, for ``lazymem top``.

A process that was started with ``LAZYMEM_TOP=1`` in its environment writes, twice a
second, a small JSON file named by its number in a folder of its user's, in memory.
Whoever reads them checks that the process is the one that wrote, and removes the files
of those that have gone without doing so.
"""

from __future__ import annotations

import atexit
import json
import os
import threading
import time
import warnings
import weakref
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazymem.errors import LazyMemWarning
from lazymem.files import command
from lazymem.runtime import folders, is_own, make_own

if TYPE_CHECKING:
    from lazymem.store import Store

INTERVAL_S = 0.5


def watch(store: Store) -> None:
    """Publish the counters of a store as long as it is open."""
    global _publisher
    with _lock:
        if _publisher is None:
            _publisher = _publish()
    if _publisher is not None:
        stores = _publisher.stores
        stores[id(store)] = weakref.ref(store, partial(stores.pop, id(store)))


def samples() -> list[dict[str, Any]]:
    """Return what this user's processes have published last, by their numbers.

    Returns
    -------
    list of dict
        ``pid``, ``command`` and ``stores``: of each ``path``, ``mode``, ``arrays`` (how
        many are open), ``bytes_resident``, ``bytes_dirty``, ``faults``,
        ``bytes_filled``, ``failures``, and as of now ``faults_per_s`` and
        ``bytes_filled_per_s``.
    """
    found = []
    for folder in folders():
        if not is_own(folder):
            continue
        for file in folder.glob("*.json"):
            with suppress(OSError, ValueError, KeyError, TypeError):
                sample = json.loads(file.read_text(encoding="utf-8"))
                pid = int(sample["pid"])
                if _start_time(pid) == sample["start"]:
                    found.append({**sample, "command": command(pid)})
                else:
                    file.unlink()
    return sorted(found, key=lambda sample: int(sample["pid"]))


# ---- who publishes -------------------------------------------------------------------


class _Publisher:
    """A thread that writes the counters of this process's stores."""

    def __init__(self, folder: Path, stores: dict[int, weakref.ref[Store]]) -> None:
        self.folder, self.stores = folder, stores
        self._pid = os.getpid()
        self._file = folder / f"{self._pid}.json"
        self._start = _start_time(self._pid)
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="lazymem-top", daemon=True
        )
        self._thread.start()
        atexit.register(self.close)

    def close(self) -> None:
        if self._pid == os.getpid():
            self._stopped.set()
            self._thread.join(timeout=1)
            with suppress(OSError):
                self._file.unlink()

    def _run(self) -> None:
        before: dict[int, dict[str, Any]] = {}
        then = time.monotonic()
        while not self._stopped.wait(INTERVAL_S):
            now = time.monotonic()
            counters = {}
            for key, reference in list(self.stores.items()):
                store = reference()
                if store is not None and not store.closed:
                    counters[key] = _counters(store)
                del store
            for key, values in counters.items():
                old = before.get(key, values)
                for name in ("faults", "bytes_filled"):
                    rate = max(0, values[name] - old[name]) / (now - then)
                    values[f"{name}_per_s"] = rate
            before, then = counters, now
            with suppress(OSError):  # the next one may fit
                self._write(list(counters.values()))

    def _write(self, stores: list[dict[str, Any]]) -> None:
        sample = {"pid": self._pid, "start": self._start, "stores": stores}
        temporary = self._file.with_suffix(".tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(temporary, flags, 0o600), "w", encoding="utf-8") as file:
            json.dump(sample, file)
        temporary.replace(self._file)


def _publish() -> _Publisher | None:
    """Begin to publish, if there is a place for it."""
    for folder in folders():
        if make_own(folder):
            return _Publisher(folder, {})
    places = " and ".join(map(str, folders()))
    warnings.warn(
        f"LAZYMEM_TOP: {places} can't be a folder of this user alone: "
        "'lazymem top' will not see this process",
        LazyMemWarning,
        stacklevel=5,
    )
    return None


_publisher: _Publisher | None = None
_lock = threading.Lock()


def _counters(store: Store) -> dict[str, Any]:
    with store._arrays.lock:
        regions = store._arrays.regions()
    stats = [(region.chunk_bytes, region.stats()) for region in regions]
    return {
        "path": store.path,
        "mode": store.mode,
        "arrays": len(regions),
        "bytes_resident": sum(raw.bytes_resident for _, raw in stats),
        "bytes_dirty": sum(raw.chunks_dirty * size for size, raw in stats),
        "faults": sum(raw.faults for _, raw in stats),
        "bytes_filled": sum((raw.fills - raw.zero_fills) * size for size, raw in stats),
        "failures": sum(raw.failures for _, raw in stats),
    }


def _after_fork() -> None:
    """Let a child, which has no threads, publish for itself."""
    global _publisher, _lock
    _lock = threading.Lock()
    if _publisher is not None:
        _publisher = _Publisher(_publisher.folder, _publisher.stores)


os.register_at_fork(after_in_child=_after_fork)


# ---- which process ----------------------------------------------------------------


def _start_time(pid: int) -> int | None:
    """Return when a process began, in ticks; numbers are used again."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(fields.rpartition(")")[2].split()[19])
