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
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

MIB = 1 << 20
GIB = 1 << 30
CANNOT = 77
"""Exit code of a C program: the kernel can't."""

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
    "tensorstore",
    "safetensors",
    "pandas",
    "dill",
    "kishu",
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
    """Return the spread of the ratios, of the rounds that both took part in."""
    return spread([a / b for a, b in zip(ours, theirs)])


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value below which `percent` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def interleave(
    rounds: int,
    rivals: Mapping[str, Callable[[], Any]],
    seconds_max: float = math.inf,
) -> dict[str, list[Any]]:
    """Call all rivals in each round, in rotating order, and return their results.

    A rival that has taken `seconds_max` in all has no part in later rounds.
    """
    results: dict[str, list[Any]] = {name: [] for name in rivals}
    spent = dict.fromkeys(rivals, 0.0)
    names = list(rivals)
    for i in range(rounds):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            if i == 0 or spent[name] < seconds_max:
                start = time.perf_counter()
                results[name].append(rivals[name]())
                spent[name] += time.perf_counter() - start
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


def sync(path: str | os.PathLike[str], drop: bool = False) -> None:
    """Have a file on the disk; and, to `drop` it, not in the page cache any more."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        if drop:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def drop_from_page_cache(path: str | os.PathLike[str]) -> None:
    """Make the next read of a file come from the disk.  Needs no rights."""
    sync(path, drop=True)  # dirty pages can't be dropped


def remove(path: Path) -> None:
    """Remove a file, or a folder with all in it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def have(package: str) -> bool:
    """Return whether a rival is installed."""
    return importlib.util.find_spec(package) is not None


def compile_c(source: str, folder: Path, *flags: str) -> Path:
    """Compile a C program that lies beside the benchmarks; return the program."""
    path, program = Path(__file__).with_name(source), folder / Path(source).stem
    cc = (sysconfig.get_config_var("CC") or "cc").split()
    output_of([*cc, "-O2", "-pthread", *flags, str(path), "-o", str(program)])
    return program


def json_of(program: Path, *args: Any) -> Any:
    """Run a C program that prints JSON; None if it says that the kernel can't."""
    command = [str(word) for word in (program, *args)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == CANNOT:
        return None
    done.check_returncode()
    return json.loads(done.stdout)


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


def use_memory(nbytes: int) -> None:
    """Take memory from the system and give it back, so that it is the machine's.

    Under a hypervisor memory that was free for some seconds is not: the first who uses
    it waits, two seconds a GiB, and each rival would, or not, by who came before.
    """
    with mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for page in range(0, nbytes, mmap.PAGESIZE):
            memory[page] = 1


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
    chosen : mapping
        What is to be measured, of each kind that the benchmark lets one choose.
    """

    def __init__(
        self, smoke: bool, folder: Path, chosen: Mapping[str, Sequence[str]]
    ) -> None:
        self.smoke = smoke
        self.folder = folder
        self.chosen = chosen
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
        at_most: tuple[float, float] | Mapping[str, tuple[float, float]] | None = None,
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
        at_most : (float, float), or a mapping from names to such, optional
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
        bounds = at_most if isinstance(at_most, Mapping) else {"": at_most}
        for name, bound in bounds.items():
            if bound is not None:
                label = f"{name}_" if name else ""
                row[f"{label}target"] = bound[1]
                row[f"{label}met"] = bound[0] <= bound[1]
        self.rows.append(row | {"answers": dict(answers)})
        print(".", end="", file=sys.stderr, flush=True)

    def markdown(self) -> str:
        """Return the rows as Markdown tables."""
        return markdown(self.rows)


def agree(answers: Sequence[Any], tolerance: float = 1e-5) -> bool:
    """Return whether answers are equal, up to the order in which floats are added."""
    first, *others = answers
    return all(math.isclose(first, x, rel_tol=tolerance, abs_tol=1e-9) for x in others)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows of a benchmark as Markdown tables."""
    tables: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        tables.setdefault(row["table"], []).append(row)
    return "\n\n".join(f"{name}\n\n{_table(found)}" for name, found in tables.items())


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
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


def main(measure: Callable[[Bench], None], **choices: Sequence[str]) -> None:
    """Run a benchmark as a program; see ``--help``.

    Each of the choices becomes an option: which of them to measure, default all.
    """
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
    for kind, names in choices.items():
        parser.add_argument(
            f"--{kind}",
            type=_some_of(names),
            default=names,
            metavar="A,B",
            help=f"measure only these {kind}: {', '.join(names)}",
        )
    options = parser.parse_args()
    if options.call:
        name, args = options.call
        print(json.dumps(getattr(module, name)(*json.loads(args))))
        return
    with tempfile.TemporaryDirectory(prefix="lazymem-bench-") as folder:
        chosen = {kind: getattr(options, kind) for kind in choices}
        bench = Bench(options.smoke, Path(folder), chosen)
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


def _some_of(names: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        given = text.split(",")
        unknown = [name for name in given if name not in names]
        if unknown:
            raise argparse.ArgumentTypeError(f"no such name: {', '.join(unknown)}")
        return [name for name in names if name in given]

    return parse


def _rounded(text: str) -> str:
    """Round the floats of a JSON text to what they are worth."""

    def number(digits: str) -> float:
        return float(f"{float(digits):.6g}")

    return json.dumps(json.loads(text, parse_float=number), indent=1) + "\n"
