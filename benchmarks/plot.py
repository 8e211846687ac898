# SPDX-License-Identifier: BSD-3-Clause
"""Draw the figures of benchmarks/results/*.json, or of another folder, as SVG there.

``python plot.py [FOLDER]`` draws read.svg, what each peer takes for each question, and
scale.svg, what grows with what; a result that is not there is left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
import matplotlib as mpl
import peers

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

RESULTS = Path(__file__).with_name("results")

_OURS = "#c2410c"
_THEIRS = "#9aa5b1"
_FILE_SYSTEM = "#5b8db8"
_INK = "#27303a"
_STYLE = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.edgecolor": "#c8ced4",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "svg.hashsalt": "lazymem",
}

_BEHIND_NUMBERS = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}

Row = dict[str, Any]

_PANELS = (
    ("file", "file, MiB", "MiB", "size of the file, MiB"),
    ("packing", "writing", "s", "writing it, s"),
    *(
        ("reading", case, "s", f"{case}, s")
        for case in (
            "10,000 random elements, cold",
            "10,000 random elements, again",
            "10,000 elements, in one call, cold",
            "200 random rows, cold",
            "one column, cold",
            "sum of all, cold",
            "sum of all, warm",
            "sum of all, again",
        )
    ),
    ("memory", "peak of the sum", "MiB", "peak memory of the sum, MiB"),
    (
        "memory of those that have read all (PSS)",
        "two processes",
        "MiB",
        "two processes that have read all, MiB",
    ),
)
"""Table, without the data set; case; unit; title."""


def _median(value: Any) -> float | None:
    return value["median"] if isinstance(value, dict) else value


def _load(folder: Path, name: str) -> dict[str, Any] | None:
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _rows(result: dict[str, Any], table: str) -> dict[str, Row]:
    return {row["case"]: row for row in result["rows"] if row["table"] == table}


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    print(path)


# ---- bars: each question, each peer --------------------------------------------------


def _color(name: str) -> str:
    if name.startswith("lazymem"):
        return _OURS
    is_image = isinstance(peers.PEERS[name], peers.FileSystem)
    return _FILE_SYSTEM if is_image else _THEIRS


def _bars(ax: Any, row: Row, names: Sequence[str], unit: str, title: str) -> None:
    found = {name: _median(row.get(f"{name}_{unit}")) for name in names}
    there = [x for x in found.values() if x]
    ax.set_title(title)
    ax.set_xscale("log")
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(axis="x", color="#e6eaee")
    ax.tick_params(which="both", length=0)
    ax.xaxis.set_major_formatter(NullFormatter())  # bars have their numbers
    ax.xaxis.set_minor_formatter(NullFormatter())
    if not there:
        return
    low = min(there) / 2
    ax.set_xlim(low, (max(there) / low) ** 1.3 * low)  # a quarter for the numbers
    for y, (name, x) in enumerate(found.items()):
        if x:
            ax.barh(y, x - low, left=low, color=_color(name), height=0.72)
        text = " -" if x is None else f" {harness.shown(x)}"
        ax.text(x or low, y, text, va="center", fontsize=7, bbox=_BEHIND_NUMBERS)
    for codec, style in {"lz4": ":", "zstd": "--"}.items():
        floor = _median(row.get(f"{codec}_floor_{unit}"))
        if floor and floor > low and "again" not in title:
            ax.axvline(floor, color=_INK, linewidth=0.8, linestyle=style)


def draw_read(result: dict[str, Any], folder: Path) -> None:
    """Draw a panel of bars for each question about the weather."""
    tables = {table: _rows(result, f"weather: {table}") for table, *_ in _PANELS}
    panels = [p for p in _PANELS if p[1] in tables[p[0]]]
    if not panels:
        return
    rows = [tables[table][case] for table, case, *_ in panels]
    names = [
        n for n in peers.PEERS if any(f"{n}_s" in r or f"{n}_MiB" in r for r in rows)
    ]
    lines = -(-len(panels) // 3)
    figure, axes = plt.subplots(
        lines,
        3,
        figsize=(11, 0.6 + lines * (0.5 + 0.17 * len(names))),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for ax in axes.flat[len(panels) :]:
        ax.axis("off")
    for ax, row, (_, _, unit, title) in zip(axes.flat, rows, panels):
        _bars(ax, row, names, unit, title)
    for ax in axes[:, 0]:
        ax.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    figure.suptitle(
        "1 GiB of float32 weather; log scale, less is better.  Orange: lazymem; blue: "
        "np.memmap over a file system that compresses.\nLines: the floor for "
        "lazymem's file on this machine, dotted lz4, dashed zstd.",
        x=0.01,
        ha="left",
        fontsize=9,
    )
    _save(figure, folder / "read.svg")


# ---- lines: what grows with what -----------------------------------------------------


def _short(x: float, _: int) -> str:
    for factor, letter in ((1e6, "M"), (1e3, "k")):
        if x >= factor:
            return f"{x / factor:g}{letter}"
    return f"{x:g}"


def _lines(
    ax: Any, rows: Sequence[Row], x: str, columns: dict[str, str], title: str
) -> None:
    """Draw columns, which are given by label, over another one."""
    ax.set_title(title)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.grid(color="#e6eaee")
    colors = (_OURS, _FILE_SYSTEM, "#7a9a3a", "#8a63a8")
    for (label, column), color in zip(columns.items(), colors):
        ys = [_median(row[column]) for row in rows]
        ax.plot(
            [row[x] for row in rows], ys, "o-", color=color, ms=3, lw=1.2, label=label
        )
    low, high = ax.get_ylim()
    ax.set_ylim(low / 5, high * 3)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(_short))
        axis.set_minor_formatter(NullFormatter())
    place = {"loc": "upper left", "bbox_to_anchor": (-0.02, -0.19)}
    ax.legend(frameon=False, fontsize=7, ncols=2, **place)


def draw_scale(result: dict[str, Any], folder: Path) -> None:
    """Draw what grows with the size, with the number of arrays, and with memory."""
    sizes = list(
        _rows(result, "one array, of which at most 1,000 chunks are written").values()
    )
    objects = list(_rows(result, "many arrays of 1 KiB in one store").values())
    given = list(_rows(result, "giving back all that is in memory").values())
    given = [row for row in given if "scattered" not in row["case"]]
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
    (open_, touch, memory), (many, each, evict) = axes
    _lines(open_, sizes, "size_MiB", {"open": "open_ms"}, "opening, ms")
    touches = {
        "a chunk, median": "p50_us",
        "a chunk, 99th percentile": "p99_us",
        "a chunk never written, median": "zero_p50_us",
    }
    _lines(touch, sizes, "size_MiB", touches, "touching random chunks, us")
    own = {"in memory, MiB": "own_MiB", "in the file, KiB": "metadata_KiB"}
    _lines(memory, sizes, "size_MiB", own, "besides the data, 1,000 chunks touched")
    many_columns = {"opening, ms": "open_ms", "memory then, MiB": "opened_MiB"}
    _lines(many, objects, "arrays", many_columns, "a store of many arrays")
    costs = {
        "writing, us each": "create_us_each",
        "closing the writer, us each": "close_us_each",
        "store[name], us": "array_us",
        "store.info(name), us": "info_us",
    }
    _lines(each, objects, "arrays", costs, "one of many arrays, us")
    frees = {"evict()": "evict_ms", "MADV_DONTNEED": "madvise_ms"}
    _lines(evict, given, "resident_MiB", frees, "giving memory back, ms")
    for ax in (open_, touch, memory):
        ax.set_xlabel("size of the array")
        ax.set_xticks(
            [row["size_MiB"] for row in sizes], [row["case"] for row in sizes]
        )
        ax.minorticks_off()
    for ax in (many, each):
        ax.set_xlabel("arrays in the store")
    evict.set_xlabel("in memory, MiB")
    _save(figure, folder / "scale.svg")


def main() -> None:
    """Draw what there is in a folder."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    with mpl.rc_context(_STYLE):
        for name, draw in {"read": draw_read, "scale": draw_scale}.items():
            result = _load(folder, name)
            if result is not None:
                draw(result, folder)


if __name__ == "__main__":
    main()
