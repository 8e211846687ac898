# SPDX-License-Identifier: BSD-3-Clause
"""The data sets of the benchmarks: four made up, one real.

Every generator takes the bytes wanted and gives about as many, always the same ones.  A
small set is a cut from the large one, so that it compresses like it.
"""

from __future__ import annotations

import importlib.util
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_FIELD_EXTENT = 16384
"""Pixels, each way, over which the octaves of the weather field are laid out."""
_OCTAVES = (3, 7, 16, 37, 85, 196, 450, 1035, 2380, 5474)
"""Grid cells over that extent, from continents to gusts."""
_BLOCK_ROWS = 512
_TIMESTAMPS_PER_ROW = 8192
_NOISE_PER_ROW = 4096
_MASK_FIRST_ROW = 4800
"""50 degrees north, where a cut of the land mask begins: land, sea and coasts."""


def _axis(cells: int, extent: int) -> tuple[Array, Array]:
    """Return the cell of each pixel and its place there, eased at both ends."""
    x = np.arange(extent) * (cells / _FIELD_EXTENT)
    i = x.astype(np.int64)
    t = x - i
    return i, (t * t * (3 - 2 * t)).astype(np.float32)


def _field(rows: int, columns: int, seed: int, step: float, noise: float) -> Array:
    """Return ten octaves of smooth noise, the finer the weaker, in steps of `step`."""
    rng = np.random.default_rng(seed)
    grids = [
        (rng.standard_normal((n + 2, n + 2)) * 14.0 * (n / 3) ** -0.85).astype(
            np.float32
        )
        for n in _OCTAVES
    ]
    down = [_axis(n, rows) for n in _OCTAVES]
    along = [_axis(n, columns) for n in _OCTAVES]
    out = np.empty((rows, columns), np.float32)
    for top in range(0, rows, _BLOCK_ROWS):
        end = min(rows, top + _BLOCK_ROWS)
        total = np.full((end - top, columns), 283.15, np.float32)
        for grid, (ri, rt), (ci, ct) in zip(grids, down, along):
            t = rt[top:end, None]
            band = grid[ri[top:end]] * (1 - t) + grid[ri[top:end] + 1] * t
            total += np.take(band, ci, axis=1)
            total += np.take(np.diff(band, axis=1), ci, axis=1) * ct
        if noise:
            total += rng.standard_normal(total.shape, dtype=np.float32) * np.float32(
                noise
            )
        np.rint(total / np.float32(step), out=total)
        np.multiply(total, np.float32(step), out=out[top:end])
    return out


def _square(nbytes: int, itemsize: int) -> int:
    return max(256, math.isqrt(nbytes // itemsize) // 256 * 256)


def weather(nbytes: int) -> Array:
    """Return float32 temperatures in kelvin with sensor noise, in steps of 1/256."""
    side = _square(nbytes, 4)
    return _field(side, side, seed=20260, step=2.0**-8, noise=0.05)


def timestamps(nbytes: int) -> Array:
    """Return sorted int64 nanoseconds: bursts of arrivals on a microsecond clock."""
    n = max(1, nbytes // 8 // _TIMESTAMPS_PER_ROW) * _TIMESTAMPS_PER_ROW
    rng = np.random.default_rng(20261)
    pauses = np.where(rng.random(n) < 0.01, 500, 1)
    gaps = (rng.exponential(40.0, n) * pauses).astype(np.int64) * 1000
    times = 1_700_000_000_000_000_000 + np.cumsum(gaps)
    return times.reshape(-1, _TIMESTAMPS_PER_ROW)


def imagery(nbytes: int) -> Array:
    """Return a uint8 aerial image: relief, fields with sharp borders, grain."""
    side = _square(nbytes, 1)
    relief = _field(side, side, seed=20262, step=2.0**-4, noise=0.0)
    rng = np.random.default_rng(20263)
    tones = rng.integers(0, 60, (side // 128 + 1, side // 96 + 1)).astype(np.float32)
    out = np.empty((side, side), np.uint8)
    for top in range(0, side, _BLOCK_ROWS):
        block = relief[top : top + _BLOCK_ROWS]
        rows = np.arange(top, top + len(block)) // 128
        patch = tones[rows][:, np.arange(side) // 96]
        grain = rng.standard_normal(block.shape, dtype=np.float32) * 1.5
        out[top : top + len(block)] = np.clip(
            (block - 240) * 1.6 + patch + grain, 0, 255
        )
    return out


def noise(nbytes: int) -> Array:
    """Return uniform float64 noise, which does not compress."""
    n = max(1, nbytes // 8 // _NOISE_PER_ROW) * _NOISE_PER_ROW
    return np.random.default_rng(20263).random(n).reshape(-1, _NOISE_PER_ROW)


def land_mask_npz() -> Path:
    """Return the file of the package global-land-mask, which is not imported."""
    spec = importlib.util.find_spec("global_land_mask")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "pip install global-land-mask", name="global_land_mask"
        )
    return Path(spec.origin).with_name("globe_combined_mask_compressed.npz")


def land_mask(nbytes: int) -> Array:
    """Return where the sea is: 21600 x 43200 bools, or a cut of them."""
    with zipfile.ZipFile(land_mask_npz()) as npz, npz.open("mask.npy") as file:
        np.lib.format.read_magic(file)
        (rows, columns), _, dtype = np.lib.format.read_array_header_1_0(file)
        count = min(rows, max(1, nbytes // columns))
        first = _MASK_FIRST_ROW if _MASK_FIRST_ROW + count <= rows else 0
        file.seek(first * columns, 1)
        out = np.empty((count, columns), dtype)
        view = memoryview(out.reshape(-1).view(np.uint8))
        done = 0
        while done < len(view):
            got = file.readinto(view[done:])
            if not got:
                raise ValueError(f"{land_mask_npz().name} ends early")
            done += got
    return out


DATASETS: dict[str, Callable[[int], Array]] = {
    "weather": weather,
    "timestamps": timestamps,
    "imagery": imagery,
    "noise": noise,
    "land mask": land_mask,
}
