# SPDX-License-Identifier: BSD-3-Clause
"""Make a golden file of the current version: ``python -m tests.golden.make``.

Golden files are never made anew: one is added when the format gains something, and each
has to open for ever.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import lazymem as lm

FOLDER = Path(__file__).parent


def arrays() -> dict[str, np.ndarray[Any, Any]]:
    """Return one array for each thing the format can say."""
    n = np.arange(6000)
    record = np.zeros(50, [("id", "<i4"), ("xy", ">f4", (2,)), ("name", "U3")])
    record["id"] = np.arange(50)
    record["name"] = "äb"
    sparse = np.zeros(
        1200 * 4096, "u1"
    )  # two levels of index, one of its leaves absent
    sparse[[5, 1100 * 4096]] = 1, 2
    return {
        "smooth": (n * n % 1000).astype("<f4").reshape(60, 100),
        "fortran": np.asfortranarray((n % 777).astype(">i2").reshape(60, 100)),
        "noise": np.frombuffer(
            bytes((i * i * 31 + i // 7) % 256 for i in range(5000)), "u1"
        ),
        "record": record,
        "complex": np.exp(1j * n[:200]).round(3),
        "dates": np.arange("2000-01-01", "2000-02-01", dtype="M8[D]"),
        "text": np.array(["", "a", "ß€😀"]),
        "bool": n % 3 == 0,
        "zero": np.zeros((3, 5000)),
        "scalar": np.array(2.5),
        "empty": np.empty((0, 3), "f8"),
        "repeated": np.tile(n[:512], 40),
        "sparse": sparse,
    }


def make(name: str, codec: str) -> Path:
    """Write a golden file."""
    path = FOLDER / f"{name}.lzm"
    with lm.Writer(
        path, codec=codec, chunk_bytes=4096, attrs={"codec": codec}
    ) as writer:
        for name, a in arrays().items():
            order = "F" if name == "fortran" else "C"
            obj = writer.create(name, a.shape, a.dtype, order=order, attrs={"of": name})
            if a.size:
                obj.write(a)
    return path


if __name__ == "__main__":
    # v1-none, v1-lz4 and v1-zstd come from before index pages could be packed.
    print(make("v1-zstd-packed-index", "zstd"))
