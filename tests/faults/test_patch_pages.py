# SPDX-License-Identifier: BSD-3-Clause
"""Do the engine and the independent reader agree on patch pages, sound and forged?"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazymem as lm
from tests import reference_reader
from tests.reference_reader import crc32c

CHUNK = 4096
CHUNKS = 1100  # a leaf of 1024 entries, one of 76, and a root of two
ZERO = bytes(24)
KIND_AT = 16  # in an entry
Pairs = list[tuple[int, bytes]]


class File:
    """A store file, put together by hand from what FORMAT.md says."""

    def __init__(self) -> None:
        head = struct.pack("<8sII16sQ20x", b"\x89LZM\r\n\x1a\n", 1, 0, b"i" * 16, 1)
        self.data = bytearray(head + struct.pack("<I", crc32c(head)))

    def add(self, payload: bytes, kind: int = 0) -> bytes:
        """Append bytes, and return an entry that describes them."""
        fields = len(self.data), len(payload), crc32c(payload), kind
        self.data += payload
        return struct.pack("<QIIB7x", *fields)

    def add_patch(self, base: bytes, pairs: Pairs) -> bytes:
        packed = [struct.pack("<H", slot) + entry for slot, entry in pairs]
        return self.add(base + b"".join(packed), kind=3)

    def commit(self, root: bytes, path: Path) -> Path:
        fields: dict[str, Any] = {"dtype": "|u1", "shape": [CHUNKS * CHUNK]}
        fields |= {"order": "C", "chunk_bytes": CHUNK, "codec": "none", "level": 0}
        fields |= {"shuffle": 0, "stored_bytes": 0, "attrs": {}}
        *index, kind = struct.unpack("<QIIB7x", root)
        fields["index"] = [*index, kind] if kind else index
        text = json.dumps({"writer": "", "attrs": {}, "objects": {"a": fields}})
        offset, size, crc, _ = struct.unpack("<QIIB7x", self.add(text.encode()))
        self.data += bytes(-len(self.data) % 64)
        start = len(self.data)
        record = struct.pack("<8s16sQQQQ", b"LZMCOMMT", b"i" * 16, start, 1, 0, 1)
        record += struct.pack("<QIIIB47x", offset, size, size, crc, 0)
        self.data += record + struct.pack("<I", crc32c(record))
        path.write_bytes(self.data)
        return path


def make(
    path: Path,
    change_pairs: Callable[[Pairs], Pairs] = lambda pairs: pairs,
    change_base: Callable[[bytes], bytes] = lambda base: base,
    change_entry: Callable[[bytes], bytes] = lambda entry: entry,
) -> tuple[Path, np.ndarray[Any, Any]]:
    """Write a file of patches at both levels; the changes are to the second leaf."""
    file = File()
    payloads = [file.add(bytes([i]) * CHUNK) for i in range(6)]
    first = file.add_patch(ZERO, [(1000, payloads[1])])
    base = file.add(b"".join(payloads[2:4]) + bytes(74 * 24))
    pairs = [(1, payloads[4]), (2, payloads[5]), (75, payloads[1])]
    second = file.add_patch(change_base(base), change_pairs(pairs))
    root = file.add_patch(file.add(first + ZERO), [(1, change_entry(second))])
    chunks = np.zeros((CHUNKS, CHUNK), "u1")
    chunks[[1000, 1024, 1025, 1026, 1099]] = np.array([[1], [2], [4], [5], [1]])
    return file.commit(root, path), chunks.reshape(-1)


def test_both_readers_read_patches(tmp_path: Path) -> None:
    path, expected = make(tmp_path / "s.lzm")
    arrays, _ = reference_reader.read(path)
    assert np.array_equal(arrays["a"], expected)
    with lm.open(path) as store:
        assert store.verify() == []
        assert np.array_equal(np.asarray(store["a"].load()), expected)


def patched(at: int, byte: int) -> Callable[[bytes], bytes]:
    return lambda entry: entry[:at] + bytes([byte]) + entry[at + 1 :]


FORGED: dict[str, dict[str, Any]] = {
    "no pairs": {"change_pairs": lambda pairs: []},
    "a slot twice": {"change_pairs": lambda pairs: [pairs[0], *pairs]},
    "slots that descend": {"change_pairs": lambda pairs: pairs[::-1]},
    "a slot behind the page": {"change_pairs": lambda pairs: [(76, pairs[0][1])]},
    "half a pair": {"change_pairs": lambda pairs: [*pairs[:2], (75, bytes(11))]},
    "a base that is a patch": {"change_base": patched(KIND_AT, 3)},
    "a base with a codec": {"change_base": patched(KIND_AT, 1)},
    "a base with a filter": {"change_base": patched(KIND_AT + 1, 1)},
    "a base with more than zeros": {"change_base": patched(20, 1)},
    "a base out of bounds": {"change_base": patched(6, 1)},
    "a base with a wrong checksum": {
        "change_base": lambda base: patched(12, base[12] ^ 1)(base)
    },
    "a kind that does not exist": {"change_entry": patched(KIND_AT, 4)},
    "a patch with a filter": {"change_entry": patched(KIND_AT + 1, 1)},
    "a patch with more than zeros": {"change_entry": patched(23, 1)},
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED.keys())
def test_both_readers_refuse_a_forged_patch(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    path, _ = make(tmp_path / "s.lzm", **change)
    with pytest.raises(reference_reader.FormatError):
        reference_reader.read(path)
    with lm.open(path) as store:
        assert len(store.verify()) > 0
