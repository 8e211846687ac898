# SPDX-License-Identifier: BSD-3-Clause
"""What the benchmarks share: rounds, fresh processes, memory, and the result as JSON.

A benchmark is a function that takes a :class:`Bench` and adds rows to it.  Rivals are
run in turns, so that a slow moment of the machine meets all of them, and compared by
the median of the ratios within a round.  Every row carries the answers that the rivals
gave; if they differ, there is no result.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import inspect
import json
import math
import mmap
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

MIB = 1 << 20
GIB = 1 << 30

_VERSIONS_OF = (
    "numpy",
    "blosc2",
    "zstandard",
    "lz4",
    "h5py",
    "hdf5plugin",
    "zarr",
    "icechunk",
    "joblib",
)

Spread = dict[str, float]
"""``median``, ``low``, ``high`` and the number of ``rounds``."""


# ---- numbers
# -----------------------------------------------------------------------------


def spread(values: Sequence[float]) -> Spread:
    """Return the median of some values, the least, the greatest, and how many."""
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "rounds": len(values),
    }


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Return the spread of the ratios, round by round."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value below which `percent` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def interleave(
    rounds: int, rivals: Mapping[str, Callable[[], Any]]
) -> dict[str, list[Any]]:
    """Call all rivals in each round, in rotating order, and return their results."""
    results: dict[str, list[Any]] = {name: [] for name in rivals}
    names = list(rivals)
    for i in range(rounds):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            results[name].append(rivals[name]())
    return results


# ---- processes and the page cache
# ----------------------------------------------------------


def fresh(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of a benchmark in a new process; all is passed as JSON."""
    script = inspect.getsourcefile(function)
    command = [sys.executable, script, "--call", function.__name__, json.dumps(args)]
    return json.loads(output_of(command))


def output_of(command: Sequence[Any], env: Mapping[str, str] | None = None) -> str:
    """Run a command and return its output; what it writes to stderr is shown."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=env
    )
    return done.stdout


def drop_from_page_cache(path: str | os.PathLike[str]) -> None:
    """Make the next read of a file come from the disk.  Needs no rights."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)  # dirty pages can't be dropped
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def have(package: str) -> bool:
    """Return whether a rival is installed."""
    return importlib.util.find_spec(package) is not None


# ---- memory
# ------------------------------------------------------------------------------


def memory_bytes(field: str = "VmRSS") -> int:
    """Return a field of this process's memory: VmRSS, RssAnon, VmHWM."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def reset_peak_memory() -> None:
    """Let VmHWM, the peak, begin again at what is resident."""
    Path("/proc/self/clear_refs").write_text("5")


def in_small_pages(nbytes: int) -> mmap.mmap:
    """Return private memory that never has huge pages; nothing of it is faulted in."""
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


# ---- one benchmark
# -------------------------------------------------------------------------


class Bench:
    """A run of a benchmark: its sizes, its folder, and the rows it has found.

    Attributes
    ----------
    smoke : bool
        Sizes are to be small: the run is to show that all works, not how fast.
    folder : pathlib.Path
        A temporary folder, emptied afterwards.
    """

    def __init__(self, smoke: bool, folder: Path) -> None:
        self.smoke = smoke
        self.folder = folder
        self.rows: list[dict[str, Any]] = []

    def pick(self, full: int, smoke: int) -> int:
        """Return a size or a number of rounds."""
        return smoke if self.smoke else full

    def add(
        self,
        table: str,
        case: str,
        answers: Mapping[str, Any],
        *,
        at_most: tuple[float, float] | None = None,
        **values: Any,
    ) -> None:
        """Add a row.

        Parameters
        ----------
        table : str
            The table it belongs to; all rows of a table have the same columns.
        case : str
            What was measured.
        answers : mapping
            What each rival answered, as numbers.
        at_most : (float, float), optional
            What was found, and what was hoped for.
        **values
            Columns: numbers, strings, or spreads.  A name ends with its unit.

        Raises
        ------
        ValueError
            If the rivals disagree.
        """
        if not agree(list(answers.values())):
            raise ValueError(f"{table}, {case}: the answers differ: {dict(answers)}")
        row = {"table": table, "case": case, **values}
        if at_most is not None:
            row |= {"target": at_most[1], "met": at_most[0] <= at_most[1]}
        self.rows.append(row | {"answers": dict(answers)})
        print(".", end="", file=sys.stderr, flush=True)

    def markdown(self) -> str:
        """Return the rows as Markdown tables."""
        tables: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows:
            tables.setdefault(row["table"], []).append(row)
        return "\n\n".join(
            f"{name}\n\n{_markdown(rows)}" for name, rows in tables.items()
        )


def agree(answers: Sequence[Any], tolerance: float = 1e-5) -> bool:
    """Return whether answers are equal, up to the order in which floats are added."""
    first, *others = answers
    return all(math.isclose(first, x, rel_tol=tolerance, abs_tol=1e-9) for x in others)


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    columns = [name for name in columns if name not in ("table", "answers")]
    lines = [
        "| " + " | ".join(name.replace("_", " ") for name in columns) + " |",
        "|---" + "|---:" * (len(columns) - 1) + "|",
    ]
    for row in rows:
        cells = " | ".join(shown(row.get(name, "")) for name in columns)
        lines.append(f"| {cells} |")
    return "\n".join(lines)


def shown(value: Any) -> str:
    """Return a value as a table shows it: three digits, the spread in brackets."""
    if isinstance(value, dict):
        if value["rounds"] == 1:
            return shown(value["median"])
        low, high = shown(value["low"]), shown(value["high"])
        return f"{shown(value['median'])} ({low} to {high})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        digits = 2 - math.floor(math.log10(abs(value))) if value else 0
        return f"{value:,.{min(max(digits, 0), 4)}f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


# ---- the program
# -----------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """Return what a figure depends on besides the code."""
    versions = {"python": platform.python_version()}
    for package in _VERSIONS_OF:
        if have(package):
            versions[package] = importlib.metadata.version(package)
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(
            os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
        ),
        "kernel": platform.release(),
        "arch": platform.machine(),
        "versions": versions,
        "commit": _commit(),
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _commit() -> str:
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(
            command,
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def main(measure: Callable[[Bench], None]) -> None:
    """Run a benchmark as a program; see ``--help``."""
    module = sys.modules["__main__"]
    doc = (module.__doc__ or "").strip()
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="small sizes, one round")
    parser.add_argument(
        "--out", type=Path, metavar="FILE.json", help="write the result"
    )
    parser.add_argument("--call", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.call:
        name, args = options.call
        print(json.dumps(getattr(module, name)(*json.loads(args))))
        return
    with tempfile.TemporaryDirectory(prefix="lazymem-bench-") as folder:
        bench = Bench(options.smoke, Path(folder))
        measure(bench)
    print(file=sys.stderr)
    print(bench.markdown())
    if options.out:
        result = {
            "benchmark": Path(sys.argv[0]).stem.removeprefix("bench_"),
            "question": doc.partition("\n")[0],
            "smoke": bench.smoke,
            **environment(),
            "rows": bench.rows,
        }
        text = json.dumps(result, indent=1, default=float) + "\n"
        options.out.write_text(_rounded(text))


def _rounded(text: str) -> str:
    """Round the floats of a JSON text to what they are worth."""

    def number(digits: str) -> float:
        return float(f"{float(digits):.6g}")

    return json.dumps(json.loads(text, parse_float=number), indent=1) + "\n"
