# SPDX-License-Identifier: BSD-3-Clause
"""Does what another format's own library wrote come back, and back again?"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import lazymem as lm
from lazymem import cli, sources
from lazymem.formats import chunked
from tests.conftest import smooth

h5py = pytest.importorskip("h5py")
pa = pytest.importorskip("pyarrow")
safetensors_numpy = pytest.importorskip("safetensors.numpy")
tifffile = pytest.importorskip("tifffile")

needs_zarr = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="zarr-python 3 needs Python 3.11"
)
UNSTABLE = "ignore:The data type.*does not have a Zarr V3 specification"

RECORD = np.zeros(50, [("a", "<i4"), ("b", ">f8", (2,)), ("s", "S3")])
RECORD["a"] = np.arange(50)
ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "bool": np.arange(99) % 3 == 0,
    "f2": np.linspace(-1, 1, 500).astype("f2"),
    "c16": np.exp(1j * np.linspace(0, 9, 400)),
    "big-endian": np.arange(700, dtype=">i4"),
    "bytes": np.array([b"x", b"yyy"] * 40),
    "3-d": smooth((7, 31, 13), "f8"),
    "scalar": np.array(3.5),
    "empty": np.empty((0, 5)),
    "empty-tail": np.empty((4, 0), "i2"),
    "fortran": np.asfortranarray(smooth((30, 40))),
}


def assert_same(found: Any, expected: Any) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


def packed(out: Path, *args: Any, **options: Any) -> lm.Store:
    lm.save(out, *args, **options)
    return lm.open(out)


def run(*args: object) -> Result:
    return CliRunner().invoke(cli.cli, [str(arg) for arg in args])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small arrays be read and written in many pieces."""
    monkeypatch.setattr(sources, "BLOCK_BYTES", 4000)
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 700)


# ---- HDF5 ----------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [None, True, "odd"])
@pytest.mark.usefixtures("small_blocks")
def test_hdf5_datasets_of_every_kind_come_back(tmp_path: Path, chunks: Any) -> None:
    record = RECORD
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, array in {**ARRAYS, "record": record}.items():
            options: dict[str, Any] = {}
            if chunks and array.size and array.ndim:
                shape = (
                    True if chunks is True else tuple(min(5, n) for n in array.shape)
                )
                options = {"chunks": shape, "compression": "gzip", "shuffle": True}
            file.create_dataset(f"group/{name}", data=array, **options)
    with packed(tmp_path / "a.lzm", tmp_path / "a.h5") as store:
        assert list(store) == sorted(f"group/{name}" for name in [*ARRAYS, "record"])
        for name, array in {**ARRAYS, "record": record}.items():
            assert_same(store[f"group/{name}"], array)


def test_hdf5_attributes_dims_and_enums_are_kept(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs.update(title="weather", version=np.int32(3), missing=np.nan)
        x = file.create_dataset("g/x", data=np.zeros((2, 3)))
        file["g"].attrs["levels"] = np.array([1.5, np.inf])
        x.attrs.update(unit=b"K", names=["a", "b"], dims2=np.array([True]))
        file["time"] = np.arange(2.0)
        file["time"].make_scale("time")
        x.dims[0].attach_scale(file["time"])
        x.dims[1].label = "station"
        kind = h5py.enum_dtype({"LOW": 0, "HIGH": 7}, "u1")
        file.create_dataset("state", data=np.array([7, 0], "u1"), dtype=kind)
    with packed(tmp_path / "a.lzm", tmp_path / "a.h5", attrs={"version": 4}) as store:
        assert store.attrs == {
            "title": "weather",
            "version": 4,
            "missing": "NaN",
            "g/": {"levels": [1.5, "Infinity"]},
        }
        assert store["time"].attrs == {"_dims": ["time"]}
        assert store["g/x"].attrs == {
            "_dims": ["time", "station"],
            "unit": "K",
            "names": ["a", "b"],
            "dims2": [True],
        }
        assert store["state"].attrs["enum"] == {"LOW": 0, "HIGH": 7}
        assert_same(store["state"], np.array([7, 0], "u1"))


def test_hdf5_what_a_store_can_not_hold_is_listed(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"secret!!")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.arange(3)
        file["also"] = file["x"]
        file["soft"] = h5py.SoftLink("/x")
        file["text"] = ["a", "bcd"]
        file["null"] = h5py.Empty("f4")
        file["loop/self"] = file["/"]
        file["other"] = h5py.ExternalLink("/etc/other.h5", "/x")
        file.create_dataset("raw", (8,), "u1", external=[(str(tmp_path / "raw"), 0, 8)])
        file["x"].attrs["ref"] = file["x"].ref
        file.attrs["z"] = 1j
    with pytest.warns(lm.LazyMemWarning) as caught:
        lm.save(tmp_path / "a.lzm", tmp_path / "a.h5")
    (text,) = (str(warning.message) for warning in caught)
    for part in (
        f"{tmp_path / 'a.h5'}: left out: ",
        "soft: a link to /x",
        "text: texts of any length",
        "null: ",
        "loop/self: another name",
        "x: another name",
        "other: a link to another file, /etc/other.h5",
        "raw: its data are in another file",
        "@z: an attribute of type complex128",
        "also@ref: an attribute of type Reference",
    ):
        assert part in text
    with lm.open(tmp_path / "a.lzm") as store:
        assert list(store) == ["also"]


def test_hdf5_without_anything_to_store_is_an_error(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["text"] = ["a", "bcd"]
    with pytest.raises(
        ValueError, match=r"a\.h5: nothing in it .* texts of any length"
    ):
        lm.save(tmp_path / "a.lzm", tmp_path / "a.h5")
    assert os.listdir(tmp_path) == ["a.h5"]


def test_hdf5_virtual_dataset_needs_its_files(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "part.h5", "w") as file:
        file["x"] = np.arange(10.0)
    with h5py.File(tmp_path / "all.h5", "w") as file:
        layout = h5py.VirtualLayout((10,), "f8")
        layout[:] = h5py.VirtualSource("part.h5", "x", (10,))
        file.create_virtual_dataset("v", layout, fillvalue=-1)
    with packed(tmp_path / "a.lzm", tmp_path / "all.h5") as store:
        assert_same(store["v"], np.arange(10.0))
    (tmp_path / "part.h5").unlink()
    with pytest.raises(lm.FormatError, match=r"all\.h5, object 'v': .* in part\.h5"):
        lm.save(tmp_path / "a.lzm", tmp_path / "all.h5")


def test_hdf5_damage_names_file_and_object_and_keeps_the_old_store(
    tmp_path: Path,
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 100_000, "u1")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["first"] = np.arange(3)
        file.create_dataset("g/x", data=noise, chunks=(10_000,), fletcher32=True)
    data = bytearray((tmp_path / "a.h5").read_bytes())
    data[data.index(noise[50_000:50_100].tobytes())] ^= 1
    (tmp_path / "a.h5").write_bytes(data)
    lm.save(tmp_path / "a.lzm", old=np.arange(3))
    with pytest.raises(lm.FormatError, match=r"a\.h5, object 'g/x': ") as caught:
        lm.save(tmp_path / "a.lzm", tmp_path / "a.h5")
    assert caught.value.path == str(tmp_path / "a.h5")
    assert caught.value.name == "g/x"
    assert list(lm.open(tmp_path / "a.lzm")) == ["old"]
    (tmp_path / "a.h5").write_bytes(data[:-50_000])
    with pytest.raises((lm.FormatError, OSError), match=r"a\.h5: .*truncated"):
        lm.save(tmp_path / "a.lzm", tmp_path / "a.h5")


# ---- Zarr ----------------------------------------------------------------------------


@needs_zarr
@pytest.mark.filterwarnings(UNSTABLE)
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.usefixtures("small_blocks")
def test_zarr_arrays_of_every_kind_come_back(
    tmp_path: Path, zarr_format: int, order: str
) -> None:
    import zarr

    root = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=zarr_format)
    dates = np.arange("2020-01", "2020-03", dtype="M8[D]")
    for name, array in {**ARRAYS, "dates": dates}.items():
        chunks = tuple(max(1, min(5, n)) for n in array.shape)
        stored = root.create_array(
            f"group/{name}",
            shape=array.shape,
            dtype=array.dtype,
            chunks=chunks or "auto",
            order=order if zarr_format == 2 else None,
        )
        stored[...] = array
    with packed(tmp_path / "a.lzm", tmp_path / "a.zarr") as store:
        assert list(store) == sorted(f"group/{name}" for name in [*ARRAYS, "dates"])
        for name, array in {**ARRAYS, "dates": dates}.items():
            if zarr_format == 3:  # which keeps the order of bytes out of the dtype
                array = array.astype(array.dtype.newbyteorder("="))
            assert_same(store[f"group/{name}"], array)


@needs_zarr
def test_zarr_attributes_dims_and_fill_value_are_kept(tmp_path: Path) -> None:
    import zarr

    root = zarr.open_group(tmp_path / "a.zarr", mode="w", attributes={"title": "T"})
    root.create_group("g", attributes={"k": [1]})
    root.create_array(
        "g/x",
        shape=(100, 4),
        dtype="f4",
        chunks=(10, 2),
        shards=(50, 4),
        fill_value=-1,
        dimension_names=["time", None],
        attributes={"unit": "K"},
    )
    old = zarr.open_array(
        tmp_path / "old.zarr", mode="w", shape=(3,), dtype="i2", zarr_format=2
    )
    old[:] = [1, 2, 3]
    old.attrs["_ARRAY_DIMENSIONS"] = ["lat"]
    with packed(tmp_path / "a.lzm", tmp_path / "a.zarr") as store:
        assert store.attrs == {"title": "T", "g/": {"k": [1]}}
        assert store["g/x"].attrs == {"_dims": ["time", "dim_1"], "unit": "K"}
        assert_same(store["g/x"], np.full((100, 4), -1, "f4"))
    with packed(tmp_path / "b.lzm", tmp_path / "old.zarr") as store:
        assert store["old"].attrs == {"_dims": ["lat"]}
        assert store["old"].tolist() == [1, 2, 3]


@needs_zarr
def test_zarr_in_a_zip_file_is_read(tmp_path: Path) -> None:
    import zarr

    with zarr.storage.ZipStore(tmp_path / "a.zarr.zip", mode="w") as zipped:
        zarr.create_array(zipped, name="x", data=np.arange(50.0))
    with packed(tmp_path / "a.lzm", tmp_path / "a.zarr.zip") as store:
        assert_same(store["x"], np.arange(50.0))


@needs_zarr
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_zarr_damage_names_store_and_object(tmp_path: Path) -> None:
    import zarr

    root = zarr.open_group(tmp_path / "a.zarr", mode="w")
    root.create_array("g/x", data=smooth((1000,)), chunks=(100,))
    (tmp_path / "a.zarr/g/x/c/3").write_bytes(b"not zstd at all")
    with pytest.raises(lm.FormatError, match=r"a\.zarr, object 'g/x': "):
        lm.save(tmp_path / "a.lzm", tmp_path / "a.zarr")
    (tmp_path / "a.zarr/zarr.json").write_text("{")
    with pytest.raises(lm.FormatError, match=r"a\.zarr: "):
        lm.save(tmp_path / "a.lzm", tmp_path / "a.zarr")
    (tmp_path / "folder").mkdir()
    with pytest.raises((lm.FormatError, FileNotFoundError), match="folder"):
        lm.save(tmp_path / "a.lzm", tmp_path / "folder")
    assert sorted(os.listdir(tmp_path)) == ["a.zarr", "folder"]


# ---- safetensors ---------------------------------------------------------------------


def test_safetensors_come_back_with_metadata(tmp_path: Path) -> None:
    tensors = {
        "w.f4": smooth((30, 40)),
        "bool": np.array([True, False]),
        "i8": np.arange(9, dtype="i1"),
        "scalar": np.array(5, "u2"),
        "empty": np.empty((0, 3), "f8"),
        "half": np.linspace(0, 1, 33).astype("f2"),
    }
    file = tmp_path / "model.safetensors"
    safetensors_numpy.save_file(tensors, file, metadata={"format": "pt"})
    with packed(tmp_path / "a.lzm", file) as store:
        assert store.attrs == {"format": "pt"}
        assert set(store) == set(tensors)
        for name, array in tensors.items():
            assert_same(store[name], array)


def raw_safetensors(file: Path, header: dict[str, Any], data: bytes) -> Path:
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


def test_safetensors_bfloat16_is_kept_bit_by_bit(tmp_path: Path) -> None:
    bits = np.array([0x3F80, 0xC000, 0x7FC0], "<u2")  # 1, -2, NaN
    file = raw_safetensors(
        tmp_path / "m.safetensors",
        {
            "a": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]},
            "b": {"dtype": "F8_E4M3", "shape": [2, 1], "data_offsets": [6, 8]},
        },
        bits.tobytes() + b"\x38\xb8",
    )
    with packed(tmp_path / "a.lzm", file) as store:
        assert_same(store["a"], bits)
        assert store["a"].attrs == {"dtype": "bfloat16"}
        floats = (store["a"].astype("u4") << 16).view("f4")
        assert floats[:2].tolist() == [1, -2]
        assert store["b"].attrs == {"dtype": "float8_e4m3fn"}
        assert store["b"].tolist() == [[0x38], [0xB8]]


def test_safetensors_damage_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    one = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
    lies = [
        ({"a": one}, b"x" * 11),
        ({"a": {**one, "shape": [2**62]}}, b"x" * 12),
        ({"a": one, "b": {**one, "data_offsets": [4, 16]}}, b"x" * 16),
        ({"a": {**one, "dtype": "F4096"}}, b"x" * 12),
    ]
    for header, data in lies:
        raw_safetensors(file, header, data)
        with pytest.raises(lm.FormatError, match=r"m\.safetensors: "):
            lm.save(tmp_path / "a.lzm", file)
    file.write_bytes(b"\xff" * 30)
    with pytest.raises(lm.FormatError, match=r"m\.safetensors: "):
        lm.save(tmp_path / "a.lzm", file)
    assert os.listdir(tmp_path) == ["m.safetensors"]


# ---- Parquet and Arrow ---------------------------------------------------------------


def write_parquet(table: Any, file: Path) -> None:
    import pyarrow.parquet

    pyarrow.parquet.write_table(table, file, row_group_size=300)


def write_ipc(table: Any, file: Path) -> None:
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, 300)


def write_stream(table: Any, file: Path) -> None:
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, 300)


def write_feather(table: Any, file: Path) -> None:
    import pyarrow.feather

    pyarrow.feather.write_feather(table, file, compression="zstd", chunksize=300)


TABLES = pytest.mark.parametrize(
    ("write", "suffix"),
    [
        (write_parquet, "parquet"),
        (write_ipc, "arrow"),
        (write_stream, "arrow"),
        (write_feather, "feather"),
    ],
)
Write = Callable[[Any, Path], None]


@TABLES
def test_columns_of_every_kind_come_back(
    tmp_path: Path, write: Write, suffix: str
) -> None:
    n = 1000
    days = np.datetime64("2020-01-01") + np.arange(n)
    columns = {
        "f4": smooth((n,)),
        "i8": np.arange(n),
        "u1": (np.arange(n) % 256).astype("u1"),
        "bool": np.arange(n) % 3 == 0,
        "f2": np.linspace(0, 1, n).astype("f2"),
        "days": days,
        "times": days.astype("M8[us]"),
        "steps": np.arange(n).astype("m8[ms]"),
    }
    table = pa.table({name: pa.array(data) for name, data in columns.items()})
    vectors = smooth((n, 4))
    flat = pa.array(vectors.reshape(-1))
    table = table.append_column("vec", pa.FixedSizeListArray.from_arrays(flat, 4))
    table = table.append_column("text", pa.array(["a"] * n))
    table = table.append_column("kind", pa.array(["a"] * n).dictionary_encode())
    table = table.replace_schema_metadata({"source": "test"})
    file = tmp_path / f"t.{suffix}"
    write(table, file)
    with pytest.warns(lm.LazyMemWarning, match=r"text: .*string.*; kind: .*dictionary"):
        lm.save(tmp_path / "a.lzm", file)
    with lm.open(tmp_path / "a.lzm") as store:
        assert store.attrs == {"source": "test"}
        for name, data in {**columns, "vec": vectors}.items():
            assert_same(store[name], data)


@TABLES
def test_nulls_are_nan_in_floats_and_an_error_in_integers(
    tmp_path: Path, write: Write, suffix: str
) -> None:
    file = tmp_path / f"t.{suffix}"
    some = pa.array([1, None, 3] * 400)
    stamps = pa.array([0, None, 5] * 400, pa.timestamp("s", "UTC"))
    write(pa.table({"f": some.cast("f4"), "n": some, "t": stamps}), file)
    with pytest.raises(
        lm.FormatError, match=rf"t\.{suffix}, object 'n': the column has 400 nulls"
    ):
        lm.save(tmp_path / "a.lzm", file)
    with packed(tmp_path / "a.lzm", file, only=["f", "t"]) as store:
        assert list(store) == ["f", "t"]
        assert np.isnan(store["f"]).sum() == np.isnat(store["t"]).sum() == 400
        assert store["f"][2] == 3
        assert store["t"].attrs == {"timezone": "UTC"}
        assert store["t"][2] == np.datetime64(5, "s")


@TABLES
def test_a_table_without_rows_is_empty_arrays(
    tmp_path: Path, write: Write, suffix: str
) -> None:
    write(pa.table({"x": pa.array([], "f8")}), tmp_path / f"t.{suffix}")
    with packed(tmp_path / "a.lzm", tmp_path / f"t.{suffix}") as store:
        assert_same(store["x"], np.empty(0))


@TABLES
def test_a_damaged_table_names_file_and_column(
    tmp_path: Path, write: Write, suffix: str
) -> None:
    file = tmp_path / f"t.{suffix}"
    noise = np.random.default_rng(0).standard_normal(3000)
    write(pa.table({"a": np.zeros(3000), "x": noise}), file)
    whole = file.read_bytes()
    for cut in (10, len(whole) // 2, len(whole) - 5):
        file.write_bytes(whole[:cut])
        if suffix == "arrow" and write is write_stream and cut == len(whole) - 5:
            continue  # only its end marker is gone
        with pytest.raises((lm.FormatError, OSError), match=rf"t\.{suffix}"):
            lm.save(tmp_path / "a.lzm", file)
    assert os.listdir(tmp_path) == [file.name]


def test_columns_whose_names_begin_alike_are_told_apart(tmp_path: Path) -> None:
    columns = {"a.b": [1.0], "a": [2.0], "a.c": [3.0]}
    write_parquet(pa.table(columns), tmp_path / "t.parquet")
    with packed(tmp_path / "a.lzm", tmp_path / "t.parquet") as store:
        assert {name: store[name].tolist() for name in store} == columns


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["x", "x"])
    write_ipc(table, tmp_path / "t.arrow")
    with pytest.raises(lm.FormatError, match="object 'x': there are two of that name"):
        lm.save(tmp_path / "a.lzm", tmp_path / "t.arrow")


# ---- TIFF ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rowsperstrip": 7},
        {"tile": (16, 32)},
        {"tile": (16, 32), "compression": "zlib", "predictor": True},
        {"compression": "zlib", "rowsperstrip": 5, "byteorder": ">"},
        {"bigtiff": True},
    ],
)
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
def test_images_come_back(tmp_path: Path, options: dict[str, Any], dtype: str) -> None:
    image = (smooth((75, 50)) % 120).astype(dtype)
    if dtype == "f4":  # whose predictor is one of imagecodecs
        options = {**options, "predictor": None}
    tifffile.imwrite(tmp_path / "i.tif", image, **options)
    with packed(tmp_path / "a.lzm", tmp_path / "i.tif") as store:
        np.testing.assert_array_equal(store["i"], image)
        assert store["i"].dtype.newbyteorder("=") == image.dtype
        assert store["i"].attrs["_dims"] == ["y", "x"]


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_images_of_bands_come_back(tmp_path: Path, planar: str, tile: Any) -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 40, 50), "u1")
    data = image if planar == "separate" else np.moveaxis(image, 0, -1)
    tifffile.imwrite(
        tmp_path / "i.tif",
        data,
        photometric="rgb",
        planarconfig=planar,
        tile=tile,
        compression="zlib",
    )
    with packed(tmp_path / "a.lzm", tmp_path / "i.tif") as store:
        np.testing.assert_array_equal(store["i"], data)
        dims = ["band", "y", "x"] if planar == "separate" else ["y", "x", "band"]
        assert store["i"].attrs["_dims"] == dims


def test_stacks_and_series_come_back(tmp_path: Path) -> None:
    stack = (smooth((5, 20, 30)) % 99).astype("u2")
    other = np.ones((4, 6), "f4")
    with tifffile.TiffWriter(tmp_path / "i.tif") as writer:
        writer.write(stack, photometric="minisblack")
        writer.write(other)
    with packed(tmp_path / "a.lzm", tmp_path / "i.tif") as store:
        np.testing.assert_array_equal(store["i/0"], stack)
        np.testing.assert_array_equal(store["i/1"], other)


def test_geotiff_tags_are_kept(tmp_path: Path) -> None:
    tags = [
        (33550, "d", 3, (0.5, 0.25, 0.0), True),
        (33922, "d", 6, (0.0, 0.0, 0.0, 7.0, 47.0, 0.0), True),
        (34735, "H", 12, (1, 1, 0, 2, 1024, 0, 1, 2, 2048, 0, 1, 4326), True),
        (42113, "s", 6, "-9999", True),
    ]
    tifffile.imwrite(tmp_path / "i.tif", np.zeros((4, 6), "f4"), extratags=tags)
    with packed(tmp_path / "a.lzm", tmp_path / "i.tif") as store:
        attrs = store["i"].attrs
    assert attrs["GDAL_NODATA"] == "-9999"
    assert attrs["geotiff"]["ModelPixelScale"] == [0.5, 0.25, 0.0]
    assert attrs["geotiff"]["GeographicTypeGeoKey"] == "WGS_84"


def test_an_image_of_a_codec_that_is_not_installed_names_it(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "i.tif", np.zeros((9, 9), "u1"), compression="zlib")
    with tifffile.TiffFile(tmp_path / "i.tif", mode="r+") as file:
        file.pages[0].tags["Compression"].overwrite(50001)  # WebP
    with pytest.raises(lm.FormatError, match=r"object 'i': .*imagecodecs"):
        lm.save(tmp_path / "a.lzm", tmp_path / "i.tif")


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_cut_image_is_an_error_and_not_zeros(
    tmp_path: Path, compression: str | None
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), "u1")
    file = tmp_path / "i.tif"
    tifffile.imwrite(file, noise, rowsperstrip=8, compression=compression)
    data = file.read_bytes()
    file.write_bytes(data[:-100])
    with pytest.raises(lm.FormatError, match=r"i\.tif, object 'i': "):
        lm.save(tmp_path / "a.lzm", file)
    file.write_bytes(data[:6])
    with pytest.raises(lm.FormatError, match=r"i\.tif: "):
        lm.save(tmp_path / "a.lzm", file)


def test_an_image_that_lists_too_few_strips_is_an_error(tmp_path: Path) -> None:
    image = np.ones((64, 64), "u1")
    tifffile.imwrite(tmp_path / "i.tif", image, rowsperstrip=8, compression="zlib")
    with tifffile.TiffFile(tmp_path / "i.tif", mode="r+") as file:
        file.pages[0].tags["ImageLength"].overwrite(80)
    with pytest.raises(lm.FormatError, match=r"object 'i': 8 of 10 .* are listed"):
        lm.save(tmp_path / "a.lzm", tmp_path / "i.tif")


# ---- all of them ---------------------------------------------------------------------


def test_several_files_keep_their_attributes_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file.attrs["by"] = name
            file["x"] = np.arange(3)
            if name == "b":
                file["y"] = np.arange(4)
    with pytest.raises(ValueError, match="two objects are named 'x'; in Python"):
        lm.save(tmp_path / "s.lzm", [tmp_path / "a.h5", tmp_path / "b.h5"])
    arrays = {"one": tmp_path / "a.h5", "two": tmp_path / "b.h5"}
    with packed(tmp_path / "s.lzm", arrays) as store:
        assert list(store) == ["one", "two/x", "two/y"]
        assert store.attrs == {"one": {"by": "a"}, "two": {"by": "b"}}
    np.save(tmp_path / "c.npy", np.arange(5))
    with packed(tmp_path / "s.lzm", [tmp_path / "a.h5", tmp_path / "c.npy"]) as store:
        assert store.attrs == {"a.h5": {"by": "a"}}
        assert list(store) == ["x", "c"]


def test_put_takes_a_file_of_one_array_with_its_attributes(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.arange(5)
        file["x"].attrs["unit"] = "K"
    with lm.Store() as store:
        store["a"] = tmp_path / "a.h5"
        store.put("b", tmp_path / "a.h5", attrs={"mine": 1})
        assert store["a"].tolist() == [0, 1, 2, 3, 4]
        assert store["a"].attrs == {"unit": "K"}
        assert store["b"].attrs == {"mine": 1}
        with h5py.File(tmp_path / "a.h5", "r+") as file:
            file["y"] = 1
        with pytest.raises(ValueError, match="holds 2 arrays, not one"):
            store["c"] = tmp_path / "a.h5"


def test_only_takes_what_matches(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", t1=[1], t2=[2], u=[3])
    with packed(tmp_path / "a.lzm", tmp_path / "a.npz", only="t*") as store:
        assert list(store) == ["t1", "t2"]
    with pytest.raises(ValueError, match="no object's name matches x or y"):
        lm.save(tmp_path / "a.lzm", tmp_path / "a.npz", only=["x", "y"])


def test_an_unknown_format_says_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_bytes(b"123")
    with pytest.raises(lm.FormatError, match=r"a\.xyz: of no known format: \.npy"):
        lm.save(tmp_path / "a.lzm", tmp_path / "a.xyz")


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.bin", "w") as file:
        file["x"] = np.arange(3)
    with packed(tmp_path / "a.lzm", tmp_path / "a.bin") as store:
        assert store["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("module", "extra", "file", "magic"),
    [
        ("h5py", "hdf5", "a.h5", b"\x89HDF\r\n\x1a\n"),
        ("zarr", "zarr", "a.zarr", None),
        ("safetensors", "safetensors", "a.safetensors", b"12345678"),
        ("pyarrow", "arrow", "a.parquet", b"PAR1"),
        ("tifffile", "tiff", "a.tif", b"II*\0"),
    ],
)
def test_a_missing_library_names_the_extra(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    extra: str,
    file: str,
    magic: bytes | None,
) -> None:
    if magic is None:
        (tmp_path / file).mkdir()
    else:
        (tmp_path / file).write_bytes(magic)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'lazymem\[{extra}\]'"):
        lm.save(tmp_path / "a.lzm", tmp_path / file)


@pytest.mark.parametrize(
    "kind", ["h5", pytest.param("zarr", marks=needs_zarr), "parquet", "tif"]
)
def test_packing_takes_memory_for_some_blocks_only(
    tmp_path: Path, run_python: Callable[..., Any], kind: str
) -> None:
    make = {
        "h5": "h5py.File(p, 'w').create_dataset('x', data=a, chunks=(64, 256))",
        "zarr": "zarr.open_group(p, mode='w').create_array('x', data=a, "
        "chunks=(64, 1024))",
        "parquet": "pyarrow.parquet.write_table(pa.table({'x': a.reshape(-1)}), p, "
        "row_group_size=1 << 20)",
        "tif": "tifffile.imwrite(p, a, tile=(64, 64), compression='zlib')",
    }[kind]
    module = {"h5": "h5py", "tif": "tifffile", "parquet": "pyarrow as pa"}.get(
        kind, "zarr"
    )
    extra = "import pyarrow.parquet" if kind == "parquet" else ""
    script = f"""
import os, resource, sys, numpy as np, lazymem as lm
import {module}
{extra}
p, out = sys.argv[1:]
if os.fork() == 0:
    a = (np.arange(120 << 18) % 1000).astype('f4').reshape(-1, 4096)
    {make}
    os._exit(0)
assert os.wait()[1] == 0
from lazymem import sources
sources.BLOCK_BYTES = 8 << 20
def peak():
    with open('/proc/self/status') as lines:
        return next(int(l.split()[1]) for l in lines if l.startswith('VmHWM'))
lm.save(out + '.warm', x=np.arange(1 << 22))
before = peak()
lm.save(out, p, codec='lz4')
print((peak() - before) >> 10)
"""
    done = run_python(script, tmp_path / f"a.{kind}", tmp_path / "out.lzm")
    assert done.returncode == 0, done.stderr
    with lm.open(tmp_path / "out.lzm") as store:
        (name,) = store
        assert store.info(name).nbytes == 120 << 20
        assert store[name].reshape(-1)[[0, 12_345, -1]].tolist() == [0, 345, 279]
    assert int(done.stdout) < 60


# ---- unpack --------------------------------------------------------------------------


def read_npz(file: Path, name: str) -> Any:
    return np.load(file)[name]


def read_hdf5(file: Path, name: str) -> Any:
    with h5py.File(file) as found:
        return found[name][()]


def read_zarr(file: Path, name: str) -> Any:
    import zarr

    return np.asarray(zarr.open(file, mode="r")[name][...])


TARGETS = pytest.mark.parametrize(
    ("target", "read"),
    [
        ("out.npz", read_npz),
        ("out.h5", read_hdf5),
        pytest.param("out.zarr", read_zarr, marks=needs_zarr),
    ],
)
Read = Callable[[Path, str], Any]


@TARGETS
@pytest.mark.parametrize("name", [*ARRAYS, "dates"])
@pytest.mark.filterwarnings(UNSTABLE)
@pytest.mark.usefixtures("small_blocks")
def test_unpack_is_read_by_the_formats_own_library(
    tmp_path: Path, target: str, read: Read, name: str
) -> None:
    array = {**ARRAYS, "dates": np.arange("2020", "2021", dtype="M8[D]")}[name]
    lm.save(tmp_path / "s.lzm", {f"g/{name}": array}, chunk_bytes=4096)
    result = run("unpack", tmp_path / "s.lzm", "--to", tmp_path / target)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(tmp_path / target)
    if target == "out.zarr":  # which keeps the order of bytes out of the dtype
        array = array.astype(array.dtype.newbyteorder("="))
    assert_same(read(tmp_path / target, f"g/{name}"), array)
    assert sorted(os.listdir(tmp_path)) == sorted(["s.lzm", target])


@pytest.mark.parametrize("target", ["a.h5", pytest.param("a.zarr", marks=needs_zarr)])
def test_what_is_unpacked_and_packed_again_is_the_same(
    tmp_path: Path, target: str
) -> None:
    attrs = {"unit": "K", "_dims": ["t", "x"], "levels": [1.5, 2.5], "odd/": "x"}
    with lm.open(tmp_path / "s.lzm", "w") as store:
        store.put("g/x", smooth((30, 40)), attrs=attrs)
        store.attrs.update({"title": "T", "g/": {"of": "group"}})
        store.flush()
    assert run("unpack", tmp_path / "s.lzm", "--to", tmp_path / target).exit_code == 0
    result = run("pack", tmp_path / "t.lzm", tmp_path / target, "--json")
    assert json.loads(result.stdout)["objects"] == 1
    with lm.open(tmp_path / "t.lzm") as store:
        assert store.attrs == {"title": "T", "g/": {"of": "group"}}
        assert store["g/x"].attrs == attrs
        assert_same(store["g/x"], smooth((30, 40)))


@TARGETS
def test_unpack_onto_what_exists(tmp_path: Path, target: str, read: Read) -> None:
    lm.save(tmp_path / "s.lzm", x=np.arange(5))
    lm.save(tmp_path / "t.lzm", x=np.arange(9))
    assert run("unpack", tmp_path / "s.lzm", "--to", tmp_path / target).exit_code == 0
    result = run("unpack", tmp_path / "t.lzm", "--to", tmp_path / target)
    assert result.exit_code == 1
    assert f"{tmp_path / target} exists" in result.output
    assert read(tmp_path / target, "x").shape == (5,)
    forced = run("unpack", tmp_path / "t.lzm", "--to", tmp_path / target, "--force")
    if target == "out.zarr":  # a folder can't be replaced in one step
        assert forced.exit_code == 1
        assert "remove it" in forced.output
    else:
        assert forced.exit_code == 0
        assert read(tmp_path / target, "x").shape == (9,)


@pytest.mark.parametrize(
    "target", ["o.npz", "o.h5", pytest.param("o.zarr", marks=needs_zarr)]
)
def test_unpack_of_damage_leaves_nothing(tmp_path: Path, target: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 50_000, "u1")
    lm.save(tmp_path / "s.lzm", a=np.arange(5), noise=noise)
    data = bytearray((tmp_path / "s.lzm").read_bytes())
    data[data.index(noise[30_000:30_100].tobytes())] ^= 1
    (tmp_path / "s.lzm").write_bytes(data)
    result = run("unpack", tmp_path / "s.lzm", "--to", tmp_path / target)
    assert result.exit_code == 1
    assert "object 'noise', chunk 0" in result.output
    assert os.listdir(tmp_path) == ["s.lzm"]


UNPACK = """
import os, resource, signal, sys, lazymem as lm
signal.signal(signal.SIGINT, signal.default_int_handler)
store, target, limit = sys.argv[1:]

def blocks_until_ctrl_c(store, name):
    for i, block in enumerate(blocks(store, name, block_bytes=1 << 20)):
        if i == 2:
            os.kill(os.getpid(), signal.SIGINT)
        yield block

if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
else:
    blocks, lm.Store.blocks = lm.Store.blocks, blocks_until_ctrl_c
sys.argv[1:] = ["unpack", store, "--to", target]
from lazymem.__main__ import main
sys.exit(main())
"""
ALL_TARGETS = pytest.mark.parametrize(
    "target", ["out", "o.npz", "o.h5", pytest.param("o.zarr", marks=needs_zarr)]
)


@ALL_TARGETS
def test_unpack_without_room_is_an_error_and_leaves_nothing(
    tmp_path: Path, run_python: Callable[..., Any], target: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 3_000_000, "u1")
    (tmp_path / "to").mkdir()
    lm.save(tmp_path / "s.lzm", noise=noise)
    done = run_python(UNPACK, tmp_path / "s.lzm", tmp_path / "to" / target, 500_000)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {tmp_path / 'to' / target}")
    assert done.stderr.endswith(": File too large\n")
    assert [path for path in (tmp_path / "to").rglob("*") if path.is_file()] == []


@ALL_TARGETS
def test_unpack_that_is_interrupted_leaves_nothing(
    tmp_path: Path, run_python: Callable[..., Any], target: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 5_000_000, "u1")
    (tmp_path / "to").mkdir()
    lm.save(tmp_path / "s.lzm", noise=noise, codec="none")
    done = run_python(UNPACK, tmp_path / "s.lzm", tmp_path / "to" / target, 0)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert [path for path in (tmp_path / "to").rglob("*") if path.is_file()] == []


def test_unpack_to_hdf5_of_what_it_has_no_type_for(tmp_path: Path) -> None:
    lm.save(tmp_path / "s.lzm", {"g/text": np.array(["ä", "bc"])})
    result = run("unpack", tmp_path / "s.lzm", "--to", tmp_path / "o.h5")
    assert result.exit_code == 1
    assert "object 'g/text': No conversion path for dtype" in result.output
    assert os.listdir(tmp_path) == ["s.lzm"]


# ---- raw binary ----------------------------------------------------------------------


def test_pack_takes_raw_binary_of_a_given_form(tmp_path: Path) -> None:
    array = np.arange(60, dtype=">i2").reshape(5, 12)
    (tmp_path / "x.bin").write_bytes(b"head" + array.tobytes())
    out = tmp_path / "out.lzm"
    form = ("--dtype", ">i2", "--offset", 4)
    assert run("pack", out, tmp_path / "x.bin", *form, "--shape", "5,12").exit_code == 0
    assert_same(lm.open(out)["x"], array)
    assert run("pack", out, tmp_path / "x.bin", *form).exit_code == 0
    assert_same(lm.open(out)["x"], array.reshape(-1))
    result = run("pack", out, tmp_path / "x.bin", *form, "--shape", "5,11")
    assert result.exit_code == 1
    assert "120 bytes of data, but (5, 11) of >i2 take 110" in result.output
    assert run("pack", out, tmp_path / "x.bin", "--shape", "5,12").exit_code == 2
    assert run("pack", out, tmp_path / "x.bin", *form, "--shape", "5x").exit_code == 2
    for dtype in ("nonsense", "O"):
        assert run("pack", out, tmp_path / "x.bin", "--dtype", dtype).exit_code == 2
    (tmp_path / "x.raw").write_bytes(b"1234")
    twice = run("pack", out, tmp_path / "x.bin", tmp_path / "x.raw", "--dtype", "u1")
    assert twice.exit_code == 2
    beyond = run("pack", out, tmp_path / "x.raw", "--dtype", "i2", "--offset", 10)
    assert beyond.exit_code == 1
    assert_same(lm.open(out)["x"], array.reshape(-1))
