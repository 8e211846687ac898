# SPDX-License-Identifier: BSD-3-Clause
"""Print the README's tables of figures as Markdown.

They are those of benchmarks/results/*.json, or of another folder: ``report.py FOLDER``.
With ``--all`` it prints all tables: benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edits
import harness
import peers

_ABOUT_ALL = """\
# All that was measured

Made by `python benchmarks/report.py --all` from `benchmarks/results/*.json`, which
`make bench` writes.  Medians, with the least and the greatest value in brackets;
ratios are medians of the ratios within a round.  What a target that is not met would
need is told in [CONTRIBUTING.md](../CONTRIBUTING.md).
"""
RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Figure:
    """A row of a table: what was asked, and where the answers are."""

    question: str
    benchmark: str
    table: str
    case: str
    columns: tuple[str | tuple[str, ...] | None, ...]
    """Columns of the result, one for each of the table's; of several the least; None:
    does not apply."""


def _opening(label: str, cache: str) -> Figure:
    return Figure(
        f"open and first element, {label}, {cache}, ms",
        "open",
        "open and first element",
        f"{label}, {cache}",
        ("memmap_ms", None, "lazymem_ms"),
    )


def _resident(question: str, case: str) -> Figure:
    case = f"{case}: np.asarray(a)"
    return Figure(
        question,
        "touched",
        "reading what is resident",
        case,
        (None, None, "ratio"),
    )


_FIGURES = (
    Figure(
        "import, above numpy, ms",
        "open",
        "import, above numpy",
        "lazymem",
        (None, None, "ms"),
    ),
    _opening("1 MB", "warm"),
    _opening("1 GB", "warm"),
    _opening("1 TiB", "warm"),
    _opening("1 TiB", "cold"),
    _opening("1 TiB", "warm, after a rest"),
    _resident("sum of what is in memory, ratio to an ndarray", "sum of all"),
    _resident("fancy indexing of it, likewise", "1,000,000 elements, fancy"),
    _resident("single elements of it, likewise", "100,000 scalars"),
    Figure(
        "resident after 1 % of the rows of 1 GB, MiB",
        "memory",
        "memory after touching",
        "1 % of the rows, random",
        ("memmap_rss_MiB", None, "lazymem_rss_MiB"),
    ),
    Figure(
        "peak memory of packing 4 GB, MiB",
        "memory",
        "packing a memory map",
        "4 GB",
        (None, "blosc2_peak_MiB", "lazymem_peak_MiB"),
    ),
)


_FILE_SYSTEMS = tuple(
    name for name, peer in peers.PEERS.items() if isinstance(peer, peers.FileSystem)
)
_READERS: dict[str, tuple[str, ...]] = {
    "np.memmap": ("memmap", "memmap_random"),
    "the best file system": _FILE_SYSTEMS,
    "blosc2 zstd": ("blosc2_zstd",),
    "tensorstore": ("tensorstore",),
    "zarr 3": ("zarr",),
    "h5py": ("h5py",),
    "lazymem lz4": ("lazymem_lz4",),
    "lazymem zstd": ("lazymem_zstd",),
}
"""The peers of each column."""


def _asking(question: str, table: str, case: str, unit: str = "s") -> Figure:
    columns = tuple(
        tuple(f"{name}_{unit}" for name in names) for names in _READERS.values()
    )
    return Figure(question, "read", table, case, columns)


def _asking_weather(question: str, case: str) -> Figure:
    return _asking(question, "weather: reading", case)


_READS = (
    _asking("file, MiB", "weather: file", "file, MiB", "MiB"),
    _asking("writing it, s", "weather: packing", "writing"),
    _asking_weather("10,000 random elements, cold, s", "10,000 random elements, cold"),
    _asking_weather("the same again, s", "10,000 random elements, again"),
    _asking_weather(
        "10,000 in one call, cold, s", "10,000 elements, in one call, cold"
    ),
    _asking_weather("200 random rows, cold, s", "200 random rows, cold"),
    _asking_weather("one column, cold, s", "one column, cold"),
    _asking_weather("sum of all, cold, s", "sum of all, cold"),
    _asking_weather("from the page cache, s", "sum of all, warm"),
    _asking_weather("the same again, s", "sum of all, again"),
    _asking("peak memory of it, MiB", "weather: memory", "peak of the sum", "MiB"),
    _asking(
        "two processes that did it, MiB",
        "weather: memory of those that have read all (PSS)",
        "two processes",
        "MiB",
    ),
    _asking(
        "the same, `shared=True`, MiB",
        "weather: memory of those that have read all (PSS)",
        "two processes that share",
        "MiB",
    ),
    _asking("land mask: file, MiB", "land mask: file", "file, MiB", "MiB"),
    _asking(
        "land mask: 10,000 random elements, cold, s",
        "land mask: reading",
        "10,000 random elements, cold",
    ),
    _asking(
        "land mask: 200 random rows, cold, s",
        "land mask: reading",
        "200 random rows, cold",
    ),
    _asking("land mask: sum of all, cold, s", "land mask: reading", "sum of all, cold"),
)


def _writing(question: str, case: str) -> list[Figure]:
    return [
        Figure(
            f"{question}, {label}, s",
            "writes",
            "writing to what is resident",
            f"{case}, {label} pass",
            ("ndarray_s", "s"),
        )
        for label in ("first", "second")
    ]


def _saving(question: str, case: str) -> Figure:
    return Figure(question, "writes", "1 % of the chunks, scattered", case, (None, "s"))


def _stalling(question: str, case: str, column: str) -> Figure:
    table = "two threads write random rows: how long a single write takes"
    return Figure(question, "writes", table, case, (None, column))


_WRITES = (
    *_writing("copying into it", "copy of another array"),
    *_writing("filling it with a scalar", "fill with a scalar"),
    *_writing("all its rows, in random order", "random rows of 64 KiB, all"),
    *_writing(
        "one in eight of its rows, likewise", "random rows of 64 KiB, one in eight"
    ),
    _saving("`lm.save` of it, s", "save of all"),
    _saving("snapshot, 1 % of its chunks written, s", "snapshot of 1 %"),
    _saving("restore, likewise, s", "restore: another snapshot, 1 % differs"),
    Figure(
        "restore, 1 TiB, nothing differs, ms",
        "writes",
        "1 TiB of addresses, little of it written",
        "restore, nothing differs",
        (None, "ms"),
    ),
    _stalling(
        "a row, all having been written before, 99th percentile, us",
        "all written before",
        "p99_us",
    ),
    _stalling(
        "a row, while a snapshot of 256 MiB is stored, likewise",
        "a snapshot of a sixteenth, which they write to",
        "p99_us",
    ),
    _stalling(
        "a row, while a snapshot of 4 GiB is stored, likewise",
        "a snapshot of all under way",
        "p99_us",
    ),
)

_EDITS = tuple(
    Figure(
        name,
        "writes",
        "1 % of the rows of an array changed, scattered",
        f"{name}, scattered",
        ("s", "written_MiB", "state_before_is_kept"),
    )
    for name in edits.PEERS
)

_COLD = "sum of 1 GiB of weather, cold"
_GROUP = "1 GiB of weather, cold, in a memory cgroup of a quarter"
_MISSES = "misses where a quarter has room"
_DOUBLED = "six times its limit, in memory, doubled in place"


def _limited(
    question: str, table: str, case: str, *columns: str | None, last: str = "s"
) -> Figure:
    return Figure(question, "budget", table, case, (*columns, last))


_LIMITS = (
    _limited("sum of 1 GiB, cold, no limit, s", _COLD, "limit: no limit", None, None),
    _limited("the same, limit 128 MiB, s", _COLD, "limit: an eighth", None, None),
    _limited(
        "peak memory of it, MiB",
        _COLD,
        "limit: an eighth",
        None,
        None,
        last="peak_mib",
    ),
    _limited("the same in a cgroup of 256 MiB, s", _GROUP, "sum", "memmap_s", None),
    _limited(
        "2,000 random rows in it, s", _GROUP, "2,000 random rows", "memmap_s", None
    ),
    *(
        _limited(
            f"misses of 100,000 reads, {name}",
            _MISSES,
            name,
            None,
            "lru",
            last="misses",
        )
        for name in ("Zipf 0.8", "Zipf 1.0", "Zipf 1.2", "scan and hot set")
    ),
    _limited(
        "doubling 6 GiB in place, limit 1 GiB, s",
        _DOUBLED,
        "write, double, read",
        None,
        None,
        last="double_s",
    ),
)

_SESSION_RIVALS = {
    "kishu": "kishu",
    "dill": "dill",
    "joblib": "joblib",
    "joblib, lz4": "joblib_lz4",
    "lazymem": "lazymem",
}
"""The column of each."""
_SESSION = tuple(
    Figure(
        question, "session", "a session of 5 GiB", case, tuple(_SESSION_RIVALS.values())
    )
    for question, case in (
        ("first save, s", "first save"),
        ("again, 1 % changed, s", "save, 1 % changed"),
        ("checkpoint, 1 % changed, s", "checkpoint, 1 % changed"),
        ("undo of a cell that changed 1 %, s", "undo of a cell that changed 1 %"),
        ("restore in a new kernel, s", "new kernel: restore"),
        ("first use there, s", "new kernel: first use"),
        ("file, MiB", "file after the first save, MiB"),
        ("after the second save, MiB", "file after the second, MiB"),
    )
)


def _load(folder: Path) -> dict[str, dict[str, Any]]:
    results = (json.loads(path.read_text()) for path in sorted(folder.glob("*.json")))
    return {result["benchmark"]: result for result in results}


def _row(figure: Figure, results: dict[str, dict[str, Any]]) -> str:
    rows = results[figure.benchmark]["rows"]
    row = next(
        r for r in rows if (r["table"], r["case"]) == (figure.table, figure.case)
    )
    cells = [figure.question]
    for column in figure.columns:
        names = (column,) if isinstance(column, str) else column or ()
        found = [row[name] for name in names if name in row]
        medians = [x["median"] if isinstance(x, dict) else x for x in found]
        cells.append(harness.shown(min(medians, default="-")))
    return "| " + " | ".join(cells) + " |"


def _where(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {v}" for name, v in result["versions"].items())
    return (
        f"{result['cores']} cores ({result['cpu']}), {result['memory_gib']} GiB, "
        f"Linux {result['kernel'].partition('-')[0]}, {versions}; medians."
    )


def _print(
    columns: Sequence[str],
    figures: Sequence[Figure],
    results: dict[str, dict[str, Any]],
) -> None:
    print(f"| {' | '.join(columns)} |".replace("|  |", "| |"))
    print("|---" + "|---:" * (len(columns) - 1) + "|")
    for figure in figures:
        print(_row(figure, results))
    print()


def _print_reads(results: dict[str, dict[str, Any]]) -> None:
    _print(("", "np.memmap (raw)", "blosc2", "lazymem"), _FIGURES, results)
    _print(("1 GiB of weather, 890 MiB of a land mask", *_READERS), _READS, results)
    print(_where(results["read"]))
    print()


def _print_all(results: dict[str, dict[str, Any]]) -> None:
    print(_ABOUT_ALL)
    for name, result in results.items():
        print(f"## {result['question']}\n")
        print(f"`bench_{name}.py`, commit {result['commit']}: {_where(result)}\n")
        if (RESULTS / f"{name}.svg").exists():
            print(f"![{result['question']}](results/{name}.svg)\n")
        print(harness.markdown(result["rows"]) + "\n")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=RESULTS)
    parser.add_argument("--all", action="store_true", help="everything: RESULTS.md")
    options = parser.parse_args()
    results = _load(options.folder)
    if options.all:
        _print_all(results)
        return
    _print_reads(results)
    _print(("writes to 4 GiB in memory", "an ndarray", "lazymem"), _WRITES, results)
    _print(
        (
            "1 % of the rows of 1 GiB changed, scattered",
            "s",
            "MiB written",
            "the state before is kept",
        ),
        _EDITS,
        results,
    )
    print(_where(results["writes"]))
    print()
    _print(("within a limit", "np.memmap", "LRU", "lazymem"), _LIMITS, results)
    _print(("5 GiB of a notebook's variables", *_SESSION_RIVALS), _SESSION, results)
    print(_where(results["session"]))


if __name__ == "__main__":
    main()
