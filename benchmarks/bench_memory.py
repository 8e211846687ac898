# SPDX-License-Identifier: BSD-3-Clause
"""How much memory do opening, touching and packing take?

Back of the envelope.  Resident: the chunks that were touched, each whole, and no more;
nothing after opening.  One row of 64 KiB lies in one or two chunks of 128 KiB.  The
engine's own: two handler threads with a buffer for a chunk and a codec's tables each, 2
to 5 MiB; allowed are 16.  Packing: the 64 MiB block being read, and for each core the
chunk being encoded, at any size of the array.

Rivals: ``np.memmap`` of the raw file, whose pages are the kernel's to take back, and
blosc2, packing from the same memory map.  Each figure is from a fresh process, above
what it had after its imports.  "peak" is VmHWM, which counts pages of mapped files as
well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import data
import harness
import numpy as np
from harness import GIB, MIB, Bench

import lazymem as lm

_OWN_BYTES_MAX = 16 * MIB
_PACK_PEAK_MIB_MAX = 256
_BLOCK_BYTES = 64 * MIB
_SHARES = {"nothing": 0.0, "1 % of the rows, random": 0.01, "everything": 1.0}


def touch(peer: str, path: str, share: float) -> dict[str, Any]:
    """Open, add up a share of the rows, and return what it took."""
    harness.reset_peak_memory()
    before = {name: harness.memory_bytes(name) for name in ("VmRSS", "RssAnon")}
    lazy = peer == "lazymem"
    array = lm.open(path)["x"] if lazy else np.load(path, mmap_mode="r")
    rows = _rows(len(array), share)
    answer = sum(float(array[i].sum()) for i in rows)
    return {
        "answer": answer,
        "rss": harness.memory_bytes("VmRSS") - before["VmRSS"],
        "anon": harness.memory_bytes("RssAnon") - before["RssAnon"],
        "peak": harness.memory_bytes("VmHWM") - before["VmRSS"],
    }


def _rows(count: int, share: float) -> list[int]:
    rng = np.random.default_rng(7)
    return sorted(rng.choice(count, round(count * share), replace=False).tolist())


def _touched_bytes(path: Path, share: float) -> int:
    """Return the bytes of the chunks that the touched rows lie in."""
    info = lm.open(path).info("x")
    row_bytes = info.nbytes // info.shape[0]
    chunks: set[int] = set()
    for i in _rows(info.shape[0], share):
        first, last = i * row_bytes, (i + 1) * row_bytes - 1
        chunks.update(range(first // info.chunk_bytes, last // info.chunk_bytes + 1))
    return len(chunks) * info.chunk_bytes


def pack(peer: str, raw: str, out: str) -> dict[str, Any]:
    """Pack a raw file through a memory map, and return what it took."""
    if peer == "blosc2":
        import blosc2
    harness.reset_peak_memory()
    before = harness.memory_bytes()
    array = np.load(raw, mmap_mode="r")
    if peer == "lazymem":
        lm.save(out, x=array)
        answer = lm.open(out)["x"][-1].sum()
    else:
        cparams = blosc2.CParams(codec=blosc2.Codec.ZSTD, clevel=2, typesize=4)
        packed = blosc2.asarray(array, urlpath=out, mode="w", cparams=cparams)
        answer = packed[-1:].sum()
    peak = harness.memory_bytes("VmHWM") - before
    Path(out).unlink()
    return {"answer": float(answer), "peak": peak}


def _write(folder: Path, nbytes: int) -> tuple[Path, Path]:
    """Write one weather field again and again, each time a little warmer."""
    block = data.weather(min(nbytes, _BLOCK_BYTES)).reshape(-1, 16384)
    repeats = nbytes // block.nbytes
    shape = (len(block) * repeats, 16384)
    raw, store = folder / "x.npy", folder / "x.lzm"
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with raw.open("wb") as file, lm.Writer(store) as writer:
        np.lib.format.write_array_header_1_0(file, header)
        x = writer.create("x", shape, "f4")
        for i in range(repeats):
            warmer = block + np.float32(i)
            warmer.tofile(file)
            x.write(warmer)
    return raw, store


def _measure_touching(bench: Bench, paths: dict[str, Path]) -> None:
    for case, share in _SHARES.items():
        found = harness.interleave(
            bench.pick(3, 1),
            {
                name: lambda name=name, share=share: harness.fresh(
                    touch, name, str(paths[name]), share
                )
                for name in paths
            },
        )
        mib = {
            f"{name}_{key}_MiB": harness.spread([x[key] / MIB for x in xs])
            for name, xs in found.items()
            for key in ("anon", "rss", "peak")
        }
        bound = (_touched_bytes(paths["lazymem"], share) + _OWN_BYTES_MAX) / MIB
        bench.add(
            "memory after touching",
            case,
            {name: xs[0]["answer"] for name, xs in found.items()},
            **mib,
            chunks_touched_MiB=bound - _OWN_BYTES_MAX / MIB,
            at_most=(mib["lazymem_peak_MiB"]["high"], bound),
        )


def _measure_packing(bench: Bench, label: str, raw: Path) -> None:
    peers = [name for name in ("lazymem", "blosc2") if harness.have(name)]
    found = harness.interleave(
        bench.pick(3, 1),
        {
            name: lambda name=name: harness.fresh(
                pack, name, str(raw), str(raw.with_suffix(f".{name}"))
            )
            for name in peers
        },
    )
    mib = {
        f"{name}_peak_MiB": harness.spread([x["peak"] / MIB for x in xs])
        for name, xs in found.items()
    }
    bench.add(
        "packing a memory map",
        label,
        {name: xs[0]["answer"] for name, xs in found.items()},
        **mib,
        at_most=(mib["lazymem_peak_MiB"]["high"], _PACK_PEAK_MIB_MAX),
    )


def measure(bench: Bench) -> None:
    """Measure touching a 1 GB array, and packing that and one of 4 GB."""
    raw, store = _write(bench.folder, bench.pick(GIB, 4 * MIB))
    _measure_touching(bench, {"lazymem": store, "memmap": raw})
    _measure_packing(bench, "1 GB", raw)
    raw, store = _write(bench.folder, bench.pick(4 * GIB, 16 * MIB))
    store.unlink()
    _measure_packing(bench, "4 GB", raw)


if __name__ == "__main__":
    harness.main(measure)
