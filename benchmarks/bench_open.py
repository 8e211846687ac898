# SPDX-License-Identifier: BSD-3-Clause
"""What do importing, opening and the first element cost, and does the size matter?

Back of the envelope.  Import: one C module and a dozen small Python files, 10 to 20 ms
above numpy.  Open: three small reads and a JSON text of some hundred bytes, under 0.1
ms; once per process a userfaultfd and its threads, 0.1 ms.  First element: one fault
(about 15 us) and one chunk (128 KiB at about 1 GiB/s: 0.12 ms; the 1 MiB chunks of a
huge array: 1 ms).  Nothing is proportional to the size of the array.

Rivals: ``np.load(mmap_mode="r")``, which parses a header and maps a file that is not
compressed; for the import, blosc2.  Files of all sizes are sparse: one block of data at
the start, the rest zero.  Each figure is from a fresh process, after its imports;
"cold": the file has been dropped from the page cache.

For a tenth of a second after ``import numpy`` the threads of its BLAS spin, one on
each other core, which a rival without threads does not notice; after a rest its caches
are cold and its cores asleep.  So both states have rows of their own.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import data
import harness
import numpy as np
from harness import GIB, MIB, Bench

import lazymem as lm

_COLUMNS = 1024
_IMPORT_MS_MAX = 30
_RATIO_MAX = 2.0
_COLD_MS_MAX = 3.0
_REST_S = 0.3
_PICKLE_MS_MAX = 2.0
_STATES = (
    ("warm", False, 0.0),
    ("cold", True, 0.0),
    ("warm, after a rest", False, _REST_S),
)
_IMPORT = """
import time
import numpy
start = time.perf_counter()
import {module}
print(time.perf_counter() - start)
"""


def _import_seconds(module: str, env: dict[str, str]) -> float:
    command = [sys.executable, "-c", _IMPORT.format(module=module)]
    return float(harness.output_of(command, env))


def _with_bytecode(bench: Bench) -> dict[str, str]:
    """Return an environment where imports find bytecode, as after an installation."""
    env = dict(os.environ)
    if not bench.smoke:
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        env["PYTHONPYCACHEPREFIX"] = str(bench.folder / "bytecode")
    return env


def open_memmap(path: str, rest_s: float) -> dict[str, Any]:
    """Open a raw file and read its first element."""
    time.sleep(rest_s)
    start = time.perf_counter()
    array = np.load(path, mmap_mode="r")
    answer = array[0, 0]
    return {"seconds": time.perf_counter() - start, "answer": float(answer)}


def open_lazymem(path: str, rest_s: float) -> dict[str, Any]:
    """Open a store and read its first element."""
    time.sleep(rest_s)
    start = time.perf_counter()
    array = lm.open(path)["x"]
    answer = array[0, 0]
    return {"seconds": time.perf_counter() - start, "answer": float(answer)}


def unpickle(path: str) -> dict[str, Any]:
    """Read an array from a pickle, and its first element."""
    pickled = Path(path).read_bytes()
    start = time.perf_counter()
    array = pickle.loads(pickled)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "answer": float(array[0, 0]), "bytes": len(pickled)}


def _write(folder: Path, nbytes: int) -> tuple[Path, Path]:
    """Write a raw file and a store of `nbytes` with data at the start only."""
    block = data.weather(MIB).reshape(-1, _COLUMNS)
    shape = (nbytes // _COLUMNS // 4, _COLUMNS)
    raw, store = folder / f"{nbytes}.npy", folder / f"{nbytes}.lzm"
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with raw.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        block.tofile(file)
        file.truncate(start + nbytes)
    with lm.Writer(store) as writer:
        writer.create("x", shape, "f4").write(block)
    return raw, store


def _measure_import(bench: Bench) -> None:
    modules = [name for name in ("lazymem", "blosc2") if harness.have(name)]
    env = _with_bytecode(bench)
    for name in modules:
        _import_seconds(name, env)  # writes the bytecode
    found = harness.interleave(
        bench.pick(15, 1),
        {name: lambda name=name: _import_seconds(name, env) for name in modules},
    )
    for name, seconds in found.items():
        ms = harness.spread([s * 1e3 for s in seconds])
        bench.add(
            "import, above numpy",
            name,
            {"imported": 1},
            ms=ms,
            at_most=(ms["median"], _IMPORT_MS_MAX) if name == "lazymem" else None,
        )


def _measure_open(bench: Bench, label: str, nbytes: int) -> None:
    raw, store = _write(bench.folder, nbytes)

    def run(function: Any, path: Path, cold: bool, rest_s: float) -> Any:
        if cold:
            harness.drop_from_page_cache(path)
        return harness.fresh(function, str(path), rest_s)

    for cache, cold, rest_s in _STATES:
        found = harness.interleave(
            bench.pick(15, 1),
            {
                "memmap": partial(run, open_memmap, raw, cold, rest_s),
                "lazymem": partial(run, open_lazymem, store, cold, rest_s),
            },
        )
        ms = {name: [x["seconds"] * 1e3 for x in xs] for name, xs in found.items()}
        times = harness.ratio(ms["lazymem"], ms["memmap"])
        ours = harness.spread(ms["lazymem"])
        bench.add(
            "open and first element",
            f"{label}, {cache}",
            {name: xs[0]["answer"] for name, xs in found.items()},
            memmap_ms=harness.spread(ms["memmap"]),
            lazymem_ms=ours,
            ratio=times,
            at_most=(
                (ours["median"], _COLD_MS_MAX)
                if cold
                else (times["median"], _RATIO_MAX)
            ),
        )
    raw.unlink()
    store.unlink()


def _measure_pickle(bench: Bench) -> None:
    raw, store = _write(bench.folder, 10 * GIB)
    pickled = bench.folder / "array.pickle"
    pickled.write_bytes(pickle.dumps(lm.open(store)["x"]))
    found = [harness.fresh(unpickle, str(pickled)) for _ in range(bench.pick(15, 1))]
    ms = harness.spread([1000 * x["seconds"] for x in found])
    expected = open_memmap(str(raw), 0)["answer"]
    bench.add(
        "an array of 10 GB from a pickle",
        "lazymem",
        {"memmap": expected, "lazymem": found[0]["answer"]},
        at_most=(ms["median"], _PICKLE_MS_MAX),
        ms=ms,
        bytes=found[0]["bytes"],
    )


def measure(bench: Bench) -> None:
    """Measure the import, then files of three sizes."""
    _measure_import(bench)
    for label, nbytes in {"1 MB": MIB, "1 GB": GIB, "1 TiB": GIB << 10}.items():
        _measure_open(bench, label, nbytes)
    _measure_pickle(bench)


if __name__ == "__main__":
    harness.main(measure)
