# SPDX-License-Identifier: BSD-3-Clause
"""Is every damage an exception that says where, what was expected, and what to do?"""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from typing import Any

import lz4.block
import numpy as np
import pytest

import lazymem as lm
from lazymem import _engine
from lazymem.testing import failing
from tests.conftest import smooth
from tests.reference_reader import crc32c

A = smooth((500, 1000))
CHUNK = 65536
RECORD_BYTES = 128


@pytest.fixture
def path(tmp_path: Path) -> Path:
    lm.save(tmp_path / "s.lzm", a=A, b=np.arange(10), chunk_bytes=CHUNK)
    return tmp_path / "s.lzm"


def flip(path: Path, offset: int, bits: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= bits
    path.write_bytes(data)


def record(path: Path) -> dict[str, int]:
    """Return the fields of the commit record that point somewhere."""
    tail = path.read_bytes()[-RECORD_BYTES:]
    manifest_offset, stored, decoded = struct.unpack_from("<QII", tail, 56)
    return {"manifest": manifest_offset, "stored": stored, "decoded": decoded}


def reseal(path: Path, change: dict[int, bytes]) -> None:
    """Change bytes of the commit record and make its checksum right again."""
    data = bytearray(path.read_bytes())
    tail = data[-RECORD_BYTES:]
    for offset, new in change.items():
        tail[offset : offset + len(new)] = new
    tail[124:] = struct.pack("<I", crc32c(bytes(tail[:124])))
    data[-RECORD_BYTES:] = tail
    path.write_bytes(data)


# ---- opening
# ----------------------------------------------------------------------------


def test_another_kind_of_file_is_named_as_such(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", A)
    with pytest.raises(
        lm.FormatError, match=r"x\.npy.*not a lazymem store.*another kind"
    ):
        lm.open(tmp_path / "x.npy")


@pytest.mark.parametrize("size", [0, 7, 63, 64, 100, 191])
def test_a_stump_of_a_file_is_refused(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(lm.FormatError, match=str(path)):
        lm.open(path)


def test_a_cut_file_says_that_its_commit_is_missing(path: Path) -> None:
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(lm.FormatError, match="no intact commit record") as caught:
        lm.open(path)
    assert caught.value.offset == size - 1
    assert "copy it again" in str(caught.value)


def test_a_future_version_asks_for_an_upgrade(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8:12] = struct.pack("<I", 7)
    data[60:64] = struct.pack("<I", crc32c(bytes(data[:60])))
    path.write_bytes(data)
    with pytest.raises(
        lm.FormatError, match=r"expected 1, found 7\); upgrade"
    ) as caught:
        lm.open(path)
    assert (caught.value.expected, caught.value.found) == (1, 7)


@pytest.mark.parametrize("offset", [8, 13, 20, 33, 50, 61])
def test_a_flipped_bit_in_the_superblock_is_found(path: Path, offset: int) -> None:
    flip(path, offset)
    with pytest.raises(
        lm.ChecksumError, match="superblock: checksum mismatch"
    ) as caught:
        lm.open(path)
    assert caught.value.offset == 0
    assert caught.value.expected != caught.value.found


@pytest.mark.parametrize("offset", range(8, RECORD_BYTES, 11))
def test_a_flipped_bit_in_the_record_is_found(path: Path, offset: int) -> None:
    at = path.stat().st_size - RECORD_BYTES
    flip(path, at + offset)
    with pytest.raises(lm.ChecksumError, match="commit record: checksum") as caught:
        lm.open(path)
    assert caught.value.offset == at


def test_a_flipped_bit_in_the_manifest_is_found(path: Path) -> None:
    at = record(path)["manifest"]
    flip(path, at + 5)
    with pytest.raises(lm.ChecksumError, match="manifest: checksum") as caught:
        lm.open(path)
    assert caught.value.offset == at


def test_an_older_commit_is_used_where_the_tail_is_torn(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"LZMCOMMT" + os.urandom(300))
    with (
        pytest.warns(lm.LazyMemWarning, match="308 bytes after the last intact commit"),
        lm.open(path) as store,
    ):
        np.testing.assert_array_equal(store["a"], A)


def test_a_store_within_a_store_is_not_taken_for_it(tmp_path: Path, path: Path) -> None:
    inner = np.frombuffer(path.read_bytes(), "u1")
    lm.save(tmp_path / "outer.lzm", inner=inner, codec="none")
    data = (tmp_path / "outer.lzm").read_bytes()
    end = data.rindex(b"LZMCOMMT")
    (tmp_path / "outer.lzm").write_bytes(data[:end])
    with pytest.raises(lm.FormatError, match="store id in the commit record"):
        lm.open(tmp_path / "outer.lzm")


@pytest.mark.parametrize(
    "change",
    [
        {32: struct.pack("<Q", 0)},  # sequence
        {40: struct.pack("<Q", 1 << 40)},  # previous record behind this one
        {56: struct.pack("<Q", 3)},  # manifest in the superblock
        {56: struct.pack("<Q", 1 << 62)},
        {64: struct.pack("<I", 0xFFFFFFFF)},
        {68: struct.pack("<I", 0xFFFFFFFF)},  # 4 GiB out of a few hundred bytes
        {76: b"\x02"},
        {100: b"\x01"},
    ],
    ids=str,
)
def test_a_sealed_but_senseless_record_is_refused(
    path: Path, change: dict[int, bytes]
) -> None:
    reseal(path, change)
    with pytest.raises(lm.FormatError, match="contradicts the file format"):
        lm.open(path)


def with_manifest(path: Path, text: bytes) -> None:
    """Replace the manifest of a store by other bytes, sealed as they should be."""
    data = path.read_bytes()
    at = record(path)["manifest"]
    head = data[:at] + text
    head += bytes(-len(head) % 64)
    tail = bytearray(data[-RECORD_BYTES:])
    tail[24:32] = struct.pack("<Q", len(head))
    tail[56:76] = struct.pack("<QIII", at, len(text), len(text), crc32c(text))
    tail[76] = 0
    tail[124:] = struct.pack("<I", crc32c(bytes(tail[:124])))
    path.write_bytes(head + tail)


ENTRY = (
    '{"dtype":"<f4","shape":[9],"order":"C","chunk_bytes":65536,"codec":"none","level":0,'
    '"shuffle":0,"index":null,"stored_bytes":0,"attrs":{}}'
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"objects":[]}',
        "[" * 100_000,
        '{"objects":{},"attrs":3}',
        "\xff",
    ],
)
def test_a_sealed_but_senseless_manifest_is_refused(path: Path, text: str) -> None:
    with_manifest(path, text.encode("latin-1") or b" ")
    with pytest.raises(lm.FormatError, match="the manifest"):
        lm.open(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"<f4"', '"O"'),
        ('"<f4"', '[["a","O"]]'),
        ('"<f4"', "7"),
        ('"<f4"', '"no type"'),
        ("[9]", "[-1]"),
        ("[9]", "[4611686018427387904,4]"),
        ("[9]", "9"),
        ("[9]", "[1.5]"),
        ('"C"', '"X"'),
        ("65536", "65535"),
        ("65536", "2048"),
        ("65536", "33554432"),
        ('"none"', '"gzip"'),
        ('"shuffle":0', '"shuffle":65537'),
        ("null", "[1,2]"),
        ("null", "[0,24,1]"),
        ("null", "[64,4294967296,1]"),
        ('"attrs":{}', '"attrs":[]'),
        ('"shape"', '"form"'),
    ],
)
def test_a_senseless_object_is_refused_by_name(path: Path, old: str, new: str) -> None:
    entry = ENTRY.replace(old, new, 1)
    assert entry != ENTRY
    with_manifest(path, f'{{"objects":{{"x":{entry},"y":{ENTRY}}}}}'.encode())
    with lm.open(path) as store:
        with pytest.raises(
            lm.FormatError, match="object 'x': bad entry in the manifest"
        ):
            store["x"]
        assert store["y"].tolist() == [0] * 9
        assert len(store.verify()) == 1


@pytest.mark.parametrize("index", [[64, 24, 1], [1 << 60, 24, 1], [64, 48, 1]])
def test_an_index_that_points_astray_is_an_error_when_touched(
    path: Path, index: list[int]
) -> None:
    entry = ENTRY.replace("null", str(index))
    with_manifest(path, f'{{"objects":{{"x":{entry}}}}}'.encode())
    with (
        lm.open(path) as store,
        pytest.raises(lm.FormatError, match="object 'x', chunk 0"),
    ):
        store["x"].sum()


# ---- touching
# ------------------------------------------------------------------------------


def places(path: Path) -> dict[str, int]:
    """Return where chunk 3's payload and the index page of object a lie."""
    with lm.open(path) as store:
        index, chunks = store.info("a").index, store.info("a").chunks
    assert index is not None
    page = path.read_bytes()[index[0] :][: index[1]]
    if len(page) < 24 * chunks:
        page = lz4.block.decompress(page, uncompressed_size=24 * chunks)
    payload = struct.unpack_from("<Q", page, 3 * 24)[0]
    return {"payload": payload, "index page": index[0]}


@pytest.mark.parametrize("what", ["payload", "index page"])
def test_a_flipped_bit_raises_right_after_the_operation(path: Path, what: str) -> None:
    at = places(path)[what]
    flip(path, at + 17, 0x80)
    with lm.open(path) as store:
        a = store["a"]
        plain = np.asarray(a)
        for _ in range(2):  # lasting damage raises each time
            for operation in (a.sum, plain.sum, lambda: np.sort(plain, axis=None)):
                with pytest.raises(lm.ChecksumError, match=what) as caught:
                    operation()
                error = caught.value
                assert (error.path, error.name, error.offset) == (str(path), "a", at)
                assert error.chunk_idx == (3 if what == "payload" else 0)
                assert error.expected != error.found
                assert "restore the file from a copy" in str(error)
        assert store["b"].tolist() == list(range(10))
        with pytest.raises(lm.ChecksumError):
            a.load()
        damage = store.verify()
        assert {error.chunk_idx for error in damage} == (
            {3} if what == "payload" else set(range(31))  # type: ignore[attr-defined]
        )
        if what == "payload":
            np.testing.assert_array_equal(a[:49], A[:49])  # its neighbours are right
            np.testing.assert_array_equal(a[66:], A[66:])


def test_every_flipped_byte_of_a_store_is_found_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "s.lzm"
    a = smooth((40, 30))
    lm.save(path, a=a, chunk_bytes=4096)
    good = path.read_bytes()
    silent = []
    for offset in range(len(good)):
        path.write_bytes(
            good[:offset] + bytes([good[offset] ^ 0x10]) + good[offset + 1 :]
        )
        try:
            with lm.open(path) as store:
                assert np.array_equal(store["a"], a)
            silent.append(offset)
        except lm.FormatError:
            pass
    # Only the padding in front of the commit record is covered by no checksum.
    padding = range(record_end(good), len(good) - RECORD_BYTES)
    assert silent == list(padding)


def record_end(data: bytes) -> int:
    offset, stored = struct.unpack_from("<QI", data, len(data) - RECORD_BYTES + 56)
    return int(offset + stored)


def test_a_file_cut_while_open_raises_and_says_so(path: Path) -> None:
    with lm.open(path) as store:
        a = store["a"]
        assert a[0, 0] == A[0, 0]
        os.truncate(path, places(path)["payload"] + 5)
        with pytest.raises(lm.FormatError, match=r"the file ends too early"):
            a.sum()
        assert a[0, 1] == A[0, 1]


def test_a_read_that_fails_once_is_not_noticed(path: Path) -> None:
    with lm.open(path) as store, failing("read", errno.EIO, count=2):
        np.testing.assert_array_equal(store["a"], A)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_file_server_that_is_gone_raises_and_heals(path: Path, number: int) -> None:
    with lm.open(path) as store:
        a = store["a"]
        with failing("read", number):
            with pytest.raises(OSError, match=os.strerror(number)) as caught:
                a.sum()
            assert isinstance(caught.value, lm.FillError)
            assert caught.value.errno == number
            assert caught.value.chunk_idx is not None
            with pytest.raises(lm.FillError):
                a.load()
        np.testing.assert_array_equal(a, A)


@pytest.mark.needs_uffd
@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOMEM, MemoryError),
        (errno.EINVAL, lm.FillError),
        (errno.ENOENT, lm.FillError),
    ],
)
def test_an_install_that_fails_raises_and_heals(
    path: Path, number: int, kind: type[Exception]
) -> None:
    with lm.open(path) as store:
        a = store["a"]
        # More failures than one fill retries, but not so many that it can't be served.
        with failing("uffd_copy", number, count=6), pytest.raises(kind):
            a.sum()
        np.testing.assert_array_equal(a, A)


@pytest.mark.needs_uffd
def test_an_install_that_must_be_repeated_is_not_noticed(path: Path) -> None:
    with lm.open(path) as store, failing("uffd_copy", errno.EAGAIN, count=5):
        np.testing.assert_array_equal(store["a"], A)
        assert store.stats().engine["eagain"] >= 5


def test_a_missing_file_and_a_folder_are_plain_os_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.lzm"):
        lm.open(tmp_path / "none.lzm")
    with pytest.raises(IsADirectoryError):
        lm.open(tmp_path)


def test_each_code_of_the_engine_has_a_text() -> None:
    codes: list[Any] = [
        getattr(_engine.lib, n) for n in dir(_engine.lib) if n.startswith("LM_E_")
    ]
    assert len(codes) >= 14
    texts = {_engine.strerror(code) for code in codes}
    assert len(texts) == len(codes)
    assert "unknown code" not in texts


def test_a_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="Illegal seek"):
        lm.open(tmp_path / "fifo")
