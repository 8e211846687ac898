# SPDX-License-Identifier: BSD-3-Clause
"""Are datasets of xarray what they were, and the store's own memory?"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import lazymem as lm
import lazymem.xarray
from tests.consumers.conftest import CHUNK
from tests.faults.test_damage import flip, places

pytestmark = pytest.mark.needs_uffd
T = np.cumsum(np.ones((300, 100, 50), "f4"), axis=0)


def weather() -> xr.Dataset:
    rng = np.random.default_rng(1)
    return xr.Dataset(
        {
            "t": (("time", "y", "station"), T, {"unit": "K", "levels": np.arange(3)}),
            "ok": ("time", rng.random(300) < 0.5),
            "label": ("station", [f"Süd {i}" for i in range(50)]),
            "kind": ("station", np.array(["a", "", "long"] * 16 + ["b"] * 2, object)),
            "lead": ("time", pd.timedelta_range("1h", periods=300).values),
            "z": ("y", rng.random(100) + 1j),
            "none": (("y", "empty"), np.empty((100, 0), "i2")),
            "version": 3,
        },
        coords={
            "time": pd.date_range("2000-01-01", periods=300, freq="h"),
            "station": [f"s{i}" for i in range(50)],
            "latitude": (("y", "station"), rng.random((100, 50)), {"unit": "deg"}),
            "run": np.datetime64("2000-01-01T00:00:00", "ns"),
        },
        attrs={"title": "weather", "count": np.int64(3)},
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    lazymem.xarray.save(weather(), tmp_path / "w.lzm", chunk_bytes=CHUNK)
    return tmp_path / "w.lzm"


def owner(array: Any) -> lm.LazyArray:
    """Return the lazy array whose memory an array is."""
    while not isinstance(array, lm.LazyArray):
        array = array.base
    return array


@pytest.mark.parametrize("chunks", [None, {}, {"time": 70}])
def test_a_dataset_is_what_it_was(path: Path, chunks: Any) -> None:
    with xr.open_dataset(path, engine="lazymem", chunks=chunks) as found:
        expected = weather()
        xr.testing.assert_identical(found.compute(), expected)
        assert set(found.coords) == set(expected.coords)
        for name, variable in expected.variables.items():
            if variable.dtype != object:
                assert found[name].dtype == variable.dtype
        assert found["t"].attrs == {"unit": "K", "levels": [0, 1, 2]}


def test_values_are_the_memory_of_the_store(path: Path) -> None:
    with xr.open_dataset(path) as found:  # the engine is guessed
        assert "float32" in repr(found)
        values = found["t"].values
        array = owner(values)
        assert values.ctypes.data == array.ctypes.data
        assert array.residency().chunks_resident == 0
        assert found["t"][7, 3].values.tolist() == T[7, 3].tolist()
        assert np.shares_memory(found["t"].isel(time=slice(5, 9)).values, array)
        assert array.residency().chunks_resident == 1
        picked = found["t"].isel(time=[290, 5], station=[3, 4]).values
        np.testing.assert_array_equal(picked, T[[290, 5]][:, :, [3, 4]])
        late = found["t"].sel(time="2000-01-02", station="s7")
        np.testing.assert_array_equal(late.values, T[24:48, :, 7])
    with pytest.raises(lm.ClosedError):
        values.sum()
        for _ in range(1000):
            pass


def test_what_is_written_is_a_copy(path: Path) -> None:
    with xr.open_dataset(path) as found:
        found["t"][0, 0, 0] = 7
        assert found["t"][0, 0, 0] == 7
    with xr.open_dataset(path) as found:
        assert found["t"][0, 0, 0] == 1


def test_blocks_of_a_large_variable_lie_in_one_place(tmp_path: Path) -> None:
    with lm.Writer(tmp_path / "s.lzm") as writer:
        writer.create("x", shape=(1 << 10, 1 << 18), dtype="u1")
        writer.create("f", shape=(1 << 10, 1 << 18), dtype="u1", order="F")
    with xr.open_dataset(tmp_path / "s.lzm", chunks={}) as found:
        assert found["x"].data.chunksize == (1 << 8, 1 << 18)
        assert found["f"].data.chunksize == (1 << 10, 1 << 16)


def test_chunks_are_references(path: Path) -> None:
    with xr.open_dataset(path, chunks={"time": 10}) as found:
        assert len(pickle.dumps(found["t"].data.dask)) < 5000
        with dask.config.set(scheduler="processes", num_workers=2):
            assert found["t"].max().compute() == 300
        sent = pickle.loads(pickle.dumps(found["t"]))
        xr.testing.assert_identical(sent.compute(), weather()["t"])
    with xr.open_dataset(path) as found:
        assert len(pickle.dumps(found[["t"]])) < 10_000
        again = pickle.loads(pickle.dumps(found))
    xr.testing.assert_identical(again.load(), weather())


def test_a_dataset_of_blocks_is_written_block_by_block(
    path: Path, tmp_path: Path
) -> None:
    with xr.open_dataset(path, chunks={"time": 70, "y": 30}) as found:
        lazymem.xarray.save(found[["t"]] * 1, tmp_path / "again.lzm", codec="lz4")
        lazymem.xarray.save(found, path)  # in the place of what is read
    for file in (path, tmp_path / "again.lzm"):
        with xr.open_dataset(file) as found:
            np.testing.assert_array_equal(found["t"], T)
    with lm.open(tmp_path / "again.lzm") as store:
        assert store.info("t").codec == "lz4"


def test_any_store_is_a_dataset_and_a_dataset_any_store(
    path: Path, tmp_path: Path
) -> None:
    with lm.open(path) as store:
        assert store["t"].attrs["_dims"] == ["time", "y", "station"]
        assert store.attrs["_coords"] == ["time", "station", "latitude", "run"]
        assert store["time"].dtype == weather()["time"].dtype
    with lm.open(tmp_path / "p.lzm", "w") as store:
        store["a"] = T
        store.snapshot("first")
        store["b"] = np.asfortranarray(T[0])
        store.snapshot("second")
    with xr.open_dataset(tmp_path / "p.lzm", drop_variables="a") as found:
        assert dict(found.sizes) == {"b_0": 100, "b_1": 50}
        np.testing.assert_array_equal(found["b"], T[0])
    with xr.open_dataset(tmp_path / "p.lzm", at="first", chunks={}) as found:
        assert list(found) == ["a"]


def test_a_packed_file_is_a_dataset_with_its_dimensions(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.nc", "w") as file:
        file["time"] = np.arange(4.0)
        file["time"].make_scale("time")
        file["t"] = T[:4, :, 0]
        file["t"].attrs["unit"] = "K"
        file["t"].dims[0].attach_scale(file["time"])
        file["t"].dims[1].label = "y"
    lm.save(tmp_path / "w.lzm", tmp_path / "w.nc")
    with xr.open_dataset(tmp_path / "w.lzm") as found:
        expected = xr.Dataset(
            {"t": (("time", "y"), T[:4, :, 0], {"unit": "K"})}, {"time": np.arange(4.0)}
        )
        xr.testing.assert_identical(found.load(), expected)


def test_what_can_not_be_kept_is_an_error_and_no_file(tmp_path: Path) -> None:
    objects = np.array(["a", None], object)
    for dataset, error, message in [
        (xr.Dataset({"x": ("i", objects)}), TypeError, "'x'.*Python objects"),
        (
            xr.Dataset({"x": ("i", np.array(["a\0"], object))}),
            ValueError,
            "'x'.*NUL",
        ),
        (xr.Dataset({"x": ("i", [1], {"_dims": 1})}), ValueError, "'x'.*'_dims'"),
        (xr.Dataset(attrs={"when": {1, 2}}), TypeError, "must be JSON"),
        (xr.Dataset({3: ("i", [1])}), TypeError, "name must be a str"),
    ]:
        with pytest.raises(error, match=message):
            lazymem.xarray.save(dataset, tmp_path / "no.lzm")
        assert list(tmp_path.iterdir()) == []


def test_damage_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.lzm"
    dataset = xr.Dataset({"a": (("i", "j", "k"), T)})
    lazymem.xarray.save(dataset, path, chunk_bytes=CHUNK)
    flip(path, places(path)["payload"] + 3)
    for chunks in (None, {"i": 10}):
        with (
            xr.open_dataset(path, chunks=chunks) as found,
            pytest.raises(lm.ChecksumError),
        ):
            found["a"].mean().compute()
