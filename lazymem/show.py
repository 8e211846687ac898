# SPDX-License-Identifier: BSD-3-Clause
"""What notebooks show of stores, arrays and snapshots: HTML without scripts."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from functools import cache
from html import escape
from itertools import groupby, islice
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from lazymem import strip
from lazymem.array import LazyArray
from lazymem.errors import ClosedError
from lazymem.strip import Strip

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lazymem.history import SnapshotInfo
    from lazymem.store import Store

CSS = Path(__file__).with_name("show.css")
_TEXT_MAX = 200
"""Characters of a name, a message or attributes that are shown."""
_ATTRS_MAX = 20
_SHADES = 8
_STRIP_HEIGHT, _DIRTY_HEIGHT = 10, 4


def store(store: Store) -> str:
    """Return the HTML of a store."""
    return _page(_store(store), _css())


def live(store: Store, rates: Sequence[float]) -> str:
    """Return the HTML of a store, without its style, with what happens in a second.

    That is faults, fills, bytes decoded and bytes read.
    """
    faults, fills, decoded, read = rates
    told = [f"{faults:,.0f} faults/s", f"{fills:,.0f} fills/s"]
    told += [f"decodes {_size(decoded)}/s", f"reads {_size(read)}/s"]
    return _page(_store(store, _line(told)))


def gone(path: str) -> str:
    """Return the HTML of a store that nobody holds any more."""
    return _page(_title(os.path.basename(path), "Store, gone"))


def array(array: LazyArray) -> str | None:
    """Return the HTML of an array; None for a copy, which numpy shows."""
    binding = array._binding
    if binding is None:
        return None
    info, region, seen = binding.info, binding.region, strip.of_array(array)
    is_view = isinstance(array.base, LazyArray) or array.shape != info.shape
    kind = "view of a LazyArray" if is_view else "LazyArray"
    if not array.flags.writeable:
        kind += ", read-only"
    facts = {"shape": str(array.shape), "dtype": str(array.dtype)}
    facts["size"] = _size(array.nbytes)
    if region is None or not region.is_tracked:  # else it is of an older state
        whole = f"{_size(info.nbytes)} as " if is_view else ""
        ratio = _ratio(info.nbytes, info.stored_bytes)
        facts["stored"] = f"{whole}{_size(info.stored_bytes)}, ratio {ratio}"
    if region is not None and region.released:
        facts["memory"] = f"given up: {region.object.gone or 'the store is closed'}"
    elif seen.chunks:
        facts["in memory"] = _share(seen, seen.resident)
    if region is not None and region.is_tracked and not region.released:
        facts["dirty"] = _share(seen, seen.dirty)
    with suppress(ClosedError):  # an array that has left its store has none
        if info.attrs:
            facts["attributes"] = _attrs(info.attrs)
    rows = "".join(
        f"<tr><th>{_text(name)}</th><td>{_text(fact)}</td></tr>"
        for name, fact in facts.items()
    )
    picture = _svg(seen) + _legend() if seen.chunks else ""
    return _page(f"{_title(info.name, kind)}<table>{rows}</table>{picture}", _css())


def snapshot(info: SnapshotInfo) -> str:
    """Return the HTML of what is known of a snapshot."""
    facts = [
        f"{info.time:%Y-%m-%d %H:%M:%S} UTC",
        f"{info.chunks:,} chunks, {_size(info.bytes_written)} written",
    ]
    if info.parent is not None:
        facts.append(f"after {info.parent}")
    lines = [_title(info.name or "", f"snapshot {info.sequence}"), _line(facts)]
    if info.message:
        lines.append(f"<div>{_text(info.message)}</div>")
    return _page("".join(lines), _css())


# ---- parts ---------------------------------------------------------------------------


def _store(store: Store, *more: str) -> str:
    strips = strip.of_store(store)
    state = "closed" if store.closed else f"mode {store.mode!r}"
    lines = [_title(os.path.basename(store.path), f"Store, {state}")]
    lines += [_line(_sizes(store)), *more]
    if store.attrs:
        lines.append(_line([_attrs(store.attrs)]))
    if strips:
        lines += [_table(strips), _legend()]
    if len(store) > len(strips):
        lines.append(_line([f"and {len(store) - len(strips):,} more arrays"]))
    return "".join(lines)


def _sizes(store: Store) -> list[str]:
    held = strip.regions(store).values()
    resident = sum(region.stats().bytes_resident for region in held)
    dirty = sum(region.dirty() * region.chunk_bytes for region in held)
    limit = getattr(store, "limit", None)
    facts = [
        f"{len(store):,} array{'' if len(store) == 1 else 's'}",
        f"file {_size(store.commit.file_bytes)}",
        f"in memory {_size(resident)}{f' of {_size(limit)}' if limit else ''}",
    ]
    if dirty:
        facts.append(f"dirty {_size(dirty)}")
    return [*facts, store.path]


def _table(strips: Mapping[str, object]) -> str:
    numbers = ("size", "stored", "ratio", "in memory", "dirty")
    head = "".join(f'<th class="lazymem-number">{name}</th>' for name in numbers)
    rows = "".join(_row(name, found) for name, found in strips.items())
    return (
        f"<table><thead><tr><th>name</th><th>shape</th><th>dtype</th>{head}<th></th>"
        f"</tr></thead><tbody>{rows}</tbody></table>"
    )


def _row(name: str, found: object) -> str:
    if not isinstance(found, Strip):
        return f'<tr><td>{_text(name)}</td><td colspan="8">{_text(found)}</td></tr>'
    info = found.info
    texts = "".join(
        f'<td class="lazymem-text" title="{_text(x)}">{_text(x)}</td>'
        for x in (name, info.shape, info.dtype)
    )
    numbers = (
        _size(info.nbytes),
        _size(info.stored_bytes),
        _ratio(info.nbytes, info.stored_bytes),
        _size(found.nbytes(found.resident)),
        _size(found.nbytes(found.dirty)),
    )
    cells = "".join(f'<td class="lazymem-number">{number}</td>' for number in numbers)
    return f"<tr>{texts}{cells}<td>{_svg(found)}</td></tr>"


def _svg(seen: Strip) -> str:
    """Draw a strip: full height where chunks are in memory, the foot where dirty."""
    width, height = len(seen.cells), _STRIP_HEIGHT
    if not width:
        return ""
    told = (
        f"{seen.resident:,} of {seen.chunks:,} chunks in memory, {seen.dirty:,} dirty"
    )
    resident = [cell.resident / cell.chunks for cell in seen.cells]
    dirty = [cell.dirty / cell.chunks for cell in seen.cells]
    return (
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="{told}"><title>{told}</title>'
        f'<rect class="lazymem-absent" width="{width}" height="{height}"/>'
        f"{_lane('resident', resident, 0)}"
        f"{_lane('dirty', dirty, height - _DIRTY_HEIGHT)}</svg>"
    )


def _lane(name: str, shares: Iterable[float], top: int) -> str:
    """Draw cells from `top` down, one path for each shade; the least can be seen."""
    paths: dict[int, str] = {}
    start = 0
    for shade, run in groupby(ceil(share * _SHADES) for share in shares):
        cells = len(list(run))
        box = f"M{start} {top}h{cells}v{_STRIP_HEIGHT - top}h-{cells}z"
        paths[shade] = paths.get(shade, "") + box
        start += cells
    return "".join(
        f'<path class="lazymem-{name}" opacity="{0.2 + 0.8 * shade / _SHADES:.1f}" '
        f'd="{d}"/>'
        for shade, d in paths.items()
        if shade
    )


def _legend() -> str:
    names = {"resident": "in memory", "dirty": "dirty", "absent": "absent"}
    keys = (
        f'<span><i class="lazymem-{state}"></i>{name}</span>'
        for state, name in names.items()
    )
    return f"<div>{''.join(keys)}</div>"


def _title(name: str, kind: str) -> str:
    return f"<div><b>{_text(name)}</b> <small>{_text(kind)}</small></div>"


def _line(facts: Iterable[str]) -> str:
    return f"<div><small>{' · '.join(map(_text, facts))}</small></div>"


def _page(body: str, style: str = "") -> str:
    return f'{style}<div class="lazymem">{body}</div>'


@cache
def _css() -> str:
    return f"<style>{CSS.read_text(encoding='utf-8')}</style>"


# ---- words ---------------------------------------------------------------------------


def cut(text: str, most: int) -> str:
    """Return so many characters at most, without those that have no UTF-8."""
    text = text if len(text) <= most else text[: most - 1] + "…"
    return text.encode(errors="replace").decode()


def _text(value: object) -> str:
    return escape(cut(str(value), _TEXT_MAX))


def _attrs(attrs: Mapping[str, object]) -> str:
    return ", ".join(
        f"{key} = {json.dumps(attrs[key], ensure_ascii=False)}"
        for key in islice(attrs, _ATTRS_MAX)
    )


def _size(nbytes: float) -> str:
    units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while nbytes >= 1000 and len(units) > 1:
        nbytes /= 1024
        units.pop(0)
    return f"{nbytes:.3g} {units[0]}"


def _ratio(nbytes: int, stored_bytes: int) -> str:
    if not stored_bytes:
        return "–"
    ratio = nbytes / stored_bytes
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"


def _share(seen: Strip, chunks: int) -> str:
    return (
        f"{_size(seen.nbytes(chunks))}, {chunks:,} of {seen.chunks:,} chunks of "
        f"{_size(seen.chunk_bytes)}"
    )
