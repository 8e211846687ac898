# SPDX-License-Identifier: BSD-3-Clause
"""Which chunks of arrays are in memory, at a glance: counted in cells of a picture.

Touches no page, and keeps no array: what it gives are numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lazymem import _engine
from lazymem.errors import LazyMemError

if TYPE_CHECKING:
    from lazymem.array import LazyArray
    from lazymem.manifest import ObjectInfo
    from lazymem.store import Store

CELLS_MAX = 256
ROWS_MAX = 32


@dataclass(frozen=True)
class Strip:
    """The chunks of an array, or of a part of it."""

    info: ObjectInfo
    """Whose they are."""
    chunk_bytes: int
    """Bytes of a chunk; of a page where pages are larger."""
    cells: list[_engine.Cell]
    """At most CELLS_MAX, between which the chunks are shared out evenly."""

    @property
    def chunks(self) -> int:
        """How many there are."""
        return sum(cell.chunks for cell in self.cells)

    @property
    def resident(self) -> int:
        """Of these, in memory."""
        return sum(cell.resident for cell in self.cells)

    @property
    def dirty(self) -> int:
        """Of these, written since the last snapshot or flush."""
        return sum(cell.dirty for cell in self.cells)

    def nbytes(self, chunks: int) -> int:
        """Return the bytes of so many chunks; the object's last one may be shorter."""
        return min(chunks * self.chunk_bytes, self.info.nbytes)


def of_array(array: LazyArray) -> Strip:
    """Return the chunks between the first and the last byte of an array."""
    binding = array._bound()
    first, count = array._chunk_range()
    return _strip(binding.info, binding.region, first, count, is_loaded=True)


def of_store(store: Store) -> dict[str, Strip | LazyMemError]:
    """Return the chunks of each object, by name, or what is wrong with its entry.

    Of more than ROWS_MAX, those whose memory is held come first, and the rest is left
    out.
    """
    held, names = regions(store), list(store)
    if len(names) > ROWS_MAX:
        names.sort(key=lambda name: name not in held)
    found: dict[str, Strip | LazyMemError] = {}
    for name in names[:ROWS_MAX]:
        try:
            found[name] = _of_object(store, name, held.get(name))
        except LazyMemError as exc:
            found[name] = exc
    return found


def regions(store: Store) -> dict[str, _engine.RegionHandle]:
    """Return the memory of a store's arrays, by name; a closed store has none."""
    with store._arrays.lock:
        held = store._arrays.regions()
    return {region.object.name: region for region in held if not region.released}


def _of_object(store: Store, name: str, region: _engine.RegionHandle | None) -> Strip:
    info = store.info(name)
    if region is not None:
        return _strip(info, region, 0, region.chunks)
    array = store._arrays.get(name)
    binding = array._binding if array is not None else None
    is_loaded = binding is not None and binding.region is None
    return _strip(info, None, 0, info.chunks, is_loaded=is_loaded)


def _strip(
    info: ObjectInfo,
    region: _engine.RegionHandle | None,
    first: int,
    count: int,
    *,
    is_loaded: bool = False,
) -> Strip:
    if region is not None:
        cells = region.strip(first, count, min(count, CELLS_MAX))
        return Strip(info, region.chunk_bytes, cells)
    all_alike = _engine.Cell(count, count if is_loaded else 0, 0)
    return Strip(info, info.chunk_bytes, [all_alike] if count else [])
