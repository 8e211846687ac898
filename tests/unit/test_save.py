# SPDX-License-Identifier: BSD-3-Clause
"""Does what is saved come back, whatever form it was given in?"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazymem as lm
from lazymem import _engine
from lazymem.encoding import Encoding, choose_layout
from lazymem.testing import failing
from tests.conftest import smooth

RECORD = np.dtype([("a", "<i4"), ("b", ">f8", (2,)), ("s", "S3")])
ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "bool": np.arange(999) % 3 == 0,
    "f2": np.linspace(-1, 1, 5000).astype("f2"),
    "c16": np.exp(1j * np.linspace(0, 9, 40_000)),
    "big-endian": np.arange(70_000, dtype=">i4"),
    "datetime": np.arange("2000-01", "2020-01", dtype="M8[D]"),
    "timedelta": np.arange(100, dtype="m8[ns]"),
    "unicode": np.array(["", "ab", "äöü€"] * 5000),
    "bytes": np.array([b"x", b"yyy"] * 40_000),
    "void": np.zeros(7, "V13"),
    "record": np.zeros(20_000, RECORD),
    "fortran": np.asfortranarray(smooth((300, 400))),
    "3-d": smooth((30, 40, 50), "f8"),
    "scalar": np.array(3.5),
    "empty": np.empty((0, 5)),
    "empty-tail": np.empty((4, 0), "i2"),
    "zero": np.zeros((1000, 1000)),
    "one": np.ones(1, "u1"),
    "view": smooth((500, 500))[::3, ::-2],
    "transposed": smooth((20, 30, 40)).transpose(1, 0, 2),
    "broadcast": np.broadcast_to(np.arange(10.0), (1000, 10)),
    "noise": np.random.default_rng(1).integers(0, 256, 300_000, dtype="u1"),
}
ARRAYS["record"]["a"] = np.arange(20_000)
ARRAYS["record"]["s"] = b"abc"


def assert_same(found: Any, expected: Any) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("codec", ["zstd", "lz4", "none"])
def test_every_kind_of_array_comes_back_equal(tmp_path: Path, codec: str) -> None:
    lm.save(tmp_path / "a.lzm", ARRAYS, codec=codec)
    with lm.open(tmp_path / "a.lzm") as store:
        assert list(store) == list(ARRAYS)
        for name, expected in ARRAYS.items():
            assert_same(store[name], expected)
            is_f = expected.flags.f_contiguous and not expected.flags.c_contiguous
            assert store.info(name).order == ("F" if is_f else "C")


@pytest.mark.parametrize("chunk_bytes", [4096, 65536, 1 << 24])
@pytest.mark.parametrize("shuffle", [None, False, True, 3])
def test_chunk_size_and_shuffle_change_nothing_but_size(
    tmp_path: Path, chunk_bytes: int, shuffle: Any
) -> None:
    a = smooth((123, 4567))
    lm.save(tmp_path / "a.lzm", {"a": a}, chunk_bytes=chunk_bytes, shuffle=shuffle)
    with lm.open(tmp_path / "a.lzm") as store:
        assert store.info("a").chunk_bytes == chunk_bytes
        assert_same(store["a"], a)


def test_shuffle_is_chosen_by_trial(tmp_path: Path) -> None:
    walk = np.cumsum(np.random.default_rng(0).standard_normal(400_000)).astype("f4")
    rng = np.random.default_rng(0)
    decimal = rng.choice(rng.integers(0, 100_000, 500) / 1000, 200_000)
    lm.save(tmp_path / "a.lzm", walk=walk, decimal=decimal)
    with lm.open(tmp_path / "a.lzm") as store:
        assert store.info("walk").shuffle == 4
        assert store.info("decimal").shuffle == 0
    plain = lm.save(tmp_path / "p.lzm", walk=walk, decimal=decimal, shuffle=False)
    forced = lm.save(tmp_path / "f.lzm", walk=walk, decimal=decimal, shuffle=True)
    assert (tmp_path / "a.lzm").stat().st_size < min(plain, forced)


def test_chunk_size_is_chosen_by_trial(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    far = np.tile(rng.integers(0, 256, 100_000, np.uint8), 20)  # repeats at a distance
    noise = rng.integers(0, 256, 2_000_000, np.uint8)
    nbytes = lm.save(tmp_path / "a.lzm", far=far, noise=noise, mask=noise < 9)
    with lm.open(tmp_path / "a.lzm") as store:
        chunk_kib = {name: store.info(name).chunk_bytes >> 10 for name in store}
    assert chunk_kib == {"far": 256, "noise": 128, "mask": 256}
    small = lm.save(
        tmp_path / "s.lzm", far=far, noise=noise, mask=noise < 9, chunk_bytes=128 << 10
    )
    assert nbytes < small


def test_lz4_compresses_in_parts_what_gains_by_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "steps": (np.cumsum(rng.integers(-2, 3, 1 << 20)) // 3).astype("u1"),
        "text": rng.choice(np.frombuffer(b"the quick brown fox", np.uint8), 1 << 20),
    }
    is_split = {}
    for name, a in arrays.items():
        layout = choose_layout(
            Encoding("lz4"), a.dtype, a.nbytes, lambda at, n, a=a: a[at : at + n]
        )
        other = replace(layout, is_split=not layout.is_split)
        chunk = a[: layout.chunk_bytes]
        ours, theirs = (
            _engine.encoded_bytes(how.to_engine(a.nbytes), chunk)
            for how in (layout, other)
        )
        assert ours < theirs
        is_split[name] = layout.is_split
    assert is_split == {"steps": False, "text": True}
    lm.save(tmp_path / "a.lzm", arrays, codec="lz4")
    with lm.open(tmp_path / "a.lzm") as store:
        for name, a in arrays.items():
            assert_same(store[name], a)


def test_positional_mapping_and_keywords_mix(tmp_path: Path) -> None:
    lm.save(tmp_path / "a.lzm", {"x": [1, 2]}, y=np.eye(2), z=7)
    with lm.open(tmp_path / "a.lzm") as store:
        assert list(store) == ["x", "y", "z"]
        assert store["z"].shape == ()
    lm.save(tmp_path / "a.lzm", np.arange(3))
    with lm.open(tmp_path / "a.lzm") as store:
        assert list(store) == ["arr_0"]


def test_npy_and_npz_files_are_packed_as_they_are(tmp_path: Path) -> None:
    a, f = smooth((100, 300)), np.asfortranarray(smooth((40, 50), ">f8"))
    np.save(tmp_path / "a.npy", a)
    np.save(tmp_path / "f.npy", f)
    np.savez_compressed(tmp_path / "both.npz", p=a, q=f)
    names = [tmp_path / "a.npy", str(tmp_path / "f.npy"), tmp_path / "both.npz"]
    lm.save(tmp_path / "s.lzm", names)
    with lm.open(tmp_path / "s.lzm") as store:
        assert list(store) == ["a", "f", "p", "q"]
        for name, expected in zip(store, (a, f, a, f)):
            assert_same(store[name], expected)
            assert store[name].flags.f_contiguous == expected.flags.f_contiguous
    lm.save(tmp_path / "s.lzm", {"renamed": tmp_path / "a.npy"})
    with lm.open(tmp_path / "s.lzm") as store:
        assert_same(store["renamed"], a)


@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
def test_an_npy_file_of_format_3_is_packed(tmp_path: Path) -> None:
    a = np.ones(4, [("größe€", "f4"), ("n", "i2")])
    np.save(tmp_path / "u.npy", a)
    assert (tmp_path / "u.npy").read_bytes()[6:8] == b"\x03\x00"
    lm.save(tmp_path / "s.lzm", tmp_path / "u.npy")
    with lm.open(tmp_path / "s.lzm") as store:
        assert_same(store["u"], a)


def test_a_cut_npy_file_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", smooth((100, 300)))
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(data[:-1])
    with pytest.raises(
        ValueError, match=r"a\.npy, object 'a': it ends after 119999 of 120000"
    ):
        lm.save(tmp_path / "s.lzm", tmp_path / "a.npy")
    assert os.listdir(tmp_path) == ["a.npy"]


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_a_memmap_is_packed_in_pieces(
    tmp_path: Path, mode: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("lazymem.sources.BLOCK_BYTES", 100_000)
    a = smooth((1000, 300))
    np.save(tmp_path / "a.npy", a)
    mapped = np.load(tmp_path / "a.npy", mmap_mode=mode)
    if mode != "r":
        mapped[5] = a[5] = 1.5
    lm.save(tmp_path / "s.lzm", whole=mapped, part=mapped[100:200])
    with lm.open(tmp_path / "s.lzm") as store:
        assert_same(store["whole"], a)
        assert_same(store["part"], a[100:200])
    assert (mapped == a).all()


def test_python_objects_are_refused_with_the_name(tmp_path: Path) -> None:
    nested = np.zeros(2, [("a", "i4"), ("o", "O")])
    for bad in (np.array([{}, None]), nested):
        with pytest.raises(TypeError, match=r"object 'bad': dtype .* Python objects"):
            lm.save(tmp_path / "s.lzm", good=np.zeros(3), bad=bad)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"codec": "gzip"}, "codec must be one of 'none', 'lz4', 'zstd'"),
        ({"level": 23}, "level of zstd must be -100 to 22"),
        ({"codec": "lz4", "level": 13}, "level of lz4 must be"),
        ({"chunk_bytes": 5000}, "chunk_bytes must be a power of two"),
        ({"chunk_bytes": 2048}, "chunk_bytes must be a power of two"),
    ],
)
def test_options_out_of_range_say_what_is_allowed(
    tmp_path: Path, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        lm.save(tmp_path / "s.lzm", a=np.zeros(3), **options)
    assert os.listdir(tmp_path) == []


def test_an_array_named_as_an_option_needs_a_mapping(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="an array of that name can be saved in a map"):
        lm.save(tmp_path / "s.lzm", codec=np.zeros(3))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", None])
def test_a_name_must_be_text(tmp_path: Path, name: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="name must"):
        lm.save(tmp_path / "s.lzm", {name: np.zeros(3)})


def test_strange_names_come_back(tmp_path: Path) -> None:
    names = ["a/b", "../up", "ß€😀", " ", 'quote"', "line\nbreak", "codec"]
    lm.save(tmp_path / "s.lzm", {name: np.array(i) for i, name in enumerate(names)})
    with lm.open(tmp_path / "s.lzm") as store:
        assert [int(store[name]) for name in names] == list(range(len(names)))


def test_attributes_come_back_and_must_be_json(tmp_path: Path) -> None:
    attrs = {"unit": "K", "scale": [1, 2.5, None], "nested": {"ä": True}}
    with lm.Writer(tmp_path / "s.lzm", attrs={"title": "t"}) as writer:
        writer.create("x", 3, "f4", attrs=attrs).write([1, 2, 3])
    with lm.open(tmp_path / "s.lzm") as store:
        assert store.attrs == {"title": "t"}
        assert store["x"].attrs == attrs
    with pytest.raises(TypeError, match="attrs of the store must be JSON"):
        lm.save(tmp_path / "t.lzm", a=np.zeros(1), attrs={"bad": {1, 2}})


def test_a_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    lm.save(tmp_path / "s.lzm", a=np.arange(5))
    old = (tmp_path / "s.lzm").read_bytes()
    for point in ("write", "sync"):
        with (
            pytest.raises(OSError, match="No space left") as caught,
            failing(point, errno.ENOSPC, skip=1),  # type: ignore[arg-type]
        ):
            lm.save(tmp_path / "s.lzm", a=smooth((1000, 1000)))
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(tmp_path / "s.lzm")
        assert os.listdir(tmp_path) == ["s.lzm"]
        assert (tmp_path / "s.lzm").read_bytes() == old


def test_a_save_that_the_user_interrupts_keeps_the_old_file(tmp_path: Path) -> None:
    lm.save(tmp_path / "s.lzm", a=np.arange(5))

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lm.save(tmp_path / "s.lzm", a=smooth((3000, 1000)), progress=interrupt)
    assert os.listdir(tmp_path) == ["s.lzm"]
    with lm.open(tmp_path / "s.lzm") as store:
        assert store["a"].tolist() == [0, 1, 2, 3, 4]


def test_saving_over_a_store_that_is_open_leaves_its_arrays(tmp_path: Path) -> None:
    a = smooth((1000, 100))
    lm.save(tmp_path / "s.lzm", a=a)
    with lm.open(tmp_path / "s.lzm") as old:
        view = old["a"]
        lm.save(tmp_path / "s.lzm", a=view[:10] + 1)
        assert (view == a).all()
    with lm.open(tmp_path / "s.lzm") as new:
        assert (new["a"] == a[:10] + 1).all()


def test_mode_and_link_of_an_existing_file_are_kept(tmp_path: Path) -> None:
    lm.save(tmp_path / "real.lzm", a=np.arange(5))
    (tmp_path / "real.lzm").chmod(0o640)
    (tmp_path / "link.lzm").symlink_to("real.lzm")
    lm.save(tmp_path / "link.lzm", b=np.arange(6))
    assert (tmp_path / "link.lzm").is_symlink()
    assert stat.S_IMODE((tmp_path / "real.lzm").stat().st_mode) == 0o640
    with lm.open(tmp_path / "real.lzm") as store:
        assert list(store) == ["b"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no/s\.lzm"):
        lm.save(tmp_path / "no" / "s.lzm", a=np.zeros(1))


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    a = smooth((1000, 1000))
    lm.save(tmp_path / "s.lzm", a=a, b=a, progress=lambda *call: calls.append(call))
    assert calls[-1] == (2 * a.nbytes, 2 * a.nbytes)
    assert calls == sorted(calls)


def test_equal_data_gives_equal_payloads_on_any_number_of_cores(
    tmp_path: Path, run_python: Callable[..., Any]
) -> None:
    script = """
import os, sys, numpy as np, lazymem as lm
os.sched_setaffinity(0, eval(sys.argv[2]))
lm.save(sys.argv[1], a=np.sin(np.arange(900_000)))
"""
    cores = sorted(os.sched_getaffinity(0))
    for name, some in (("one", cores[:1]), ("all", cores)):
        done = run_python(script, tmp_path / name, set(some))
        assert done.returncode == 0, done.stderr
    one, both = ((tmp_path / name).read_bytes() for name in ("one", "all"))
    with lm.open(tmp_path / "one") as store:
        end = store.info("a").index[0]  # type: ignore[index]
    assert one[64:end] == both[64:end]


def test_repeated_chunks_are_stored_once(tmp_path: Path) -> None:
    block = np.random.default_rng(0).integers(0, 256, 1 << 17, dtype="u1")
    a = np.tile(block, 20)
    size = lm.save(tmp_path / "s.lzm", a=a, b=a[: 1 << 18])
    assert size < 1.1 * block.nbytes
    with lm.open(tmp_path / "s.lzm") as store:
        assert_same(store["a"], a)
        assert store.info("b").stored_bytes == 0


def test_zero_chunks_take_no_space(tmp_path: Path) -> None:
    a = np.zeros(50_000_000, "u1")
    a[-1] = 1
    assert lm.save(tmp_path / "s.lzm", a=a) < 20_000
    with lm.open(tmp_path / "s.lzm") as store:
        assert_same(store["a"], a)


@pytest.mark.parametrize("order", ["C", "F"])
def test_blocks_and_gaps_give_the_array(tmp_path: Path, order: str) -> None:
    rng = np.random.default_rng(3)
    expected = np.zeros((2000, 37), "f8", order=order)  # type: ignore[call-overload]
    if order == "F":
        expected = np.zeros((37, 2000), "f8", order="F")
    with lm.Writer(tmp_path / "s.lzm", chunk_bytes=4096) as writer:
        x = writer.create("x", expected.shape, "f8", order=order)
        y = writer.create("y", 10, "i4")
        row = 0
        while row < 2000:
            row += int(rng.integers(0, 30))
            n = min(int(rng.integers(1, 60)), 2000 - row)
            if n <= 0:
                break
            index = np.s_[row : row + n] if order == "C" else np.s_[:, row : row + n]
            expected[index] = rng.random(expected[index].shape)
            x.write(expected[index], at=row)
            row += n
        y.write([1, 2])
        y.write(3)
    with lm.open(tmp_path / "s.lzm") as store:
        assert_same(store["x"], expected)
        assert store["y"].tolist() == [1, 2, 3] + [0] * 7


def test_blocks_out_of_order_or_place_are_refused(tmp_path: Path) -> None:
    with lm.Writer(tmp_path / "s.lzm") as writer:
        x = writer.create("x", (10, 3), "f4")
        x.write(np.ones((2, 3)), at=4)
        for block, at in (
            (np.ones((1, 3)), 5),
            (np.ones((5, 3)), 6),
            (np.ones((1, 3)), -1),
        ):
            with pytest.raises(ValueError, match="ascending order"):
                x.write(block, at=at)
        with pytest.raises(ValueError, match="does not fit"):
            x.write(np.ones((2, 2)))
        with pytest.raises(ValueError, match="unique"):
            writer.create("x", 3, "f4")
        x.write(np.full(3, 7.0))
    with lm.open(tmp_path / "s.lzm") as store:
        assert store["x"][:, 0].tolist() == [0, 0, 0, 0, 1, 1, 7, 0, 0, 0]
    with pytest.raises(ValueError, match="the writer is closed"):
        writer.create("y", 3, "f4")


def test_a_writer_left_by_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lm.Writer(tmp_path / "s.lzm") as writer:
        writer.create("x", 1000, "f4").write(np.ones(10))
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []
