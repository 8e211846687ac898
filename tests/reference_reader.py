# SPDX-License-Identifier: BSD-3-Clause
"""An independent reader of the lazymem store file, version 1, as in FORMAT.md."""

import json
import math
import struct
from pathlib import Path

import lz4.block
import numpy as np
import zstandard

ERRORS = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
ERRORS += (struct.error, lz4.block.LZ4BlockError, zstandard.ZstdError)
SEALED = 0x48674BC7  # the CRC of any bytes that end with their own CRC
ZSTD = zstandard.ZstdDecompressor()
RECORD = struct.Struct("<QIIIB47s")  # from the offset of the manifest on
ENTRY = struct.Struct("<QIIBB6s")
BITS = np.arange(32, dtype=np.uint32)
TABLE = np.arange(256, dtype=np.uint32)  # CRC of each byte, from 0 and not inverted
for _ in range(8):
    TABLE = TABLE >> 1 ^ (TABLE & 1) * np.uint32(0x82F63B78)


class FormatError(ValueError):
    """The file is not a valid store file of version 1."""


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise FormatError(message)


def crc32c(data: bytes) -> int:
    # Rows of 256 bytes run side by side, and with them the 32 unit vectors, over zeros:
    # these become the map that moves a CRC on by one row, used to join rows in pairs.
    def move(crcs: np.ndarray) -> np.ndarray:
        return np.bitwise_xor.reduce((crcs[:, None] >> BITS & 1) * shift, axis=1)

    rows = np.frombuffer(data, np.uint8)[: len(data) // 256 * 256].reshape(-1, 256)
    state = np.pad(np.uint32(1) << BITS, (0, max(1, len(rows))))
    state[32] = 0xFFFFFFFF
    for column in np.pad(rows, ((32, 0), (0, 0))).T if len(rows) else ():
        state = TABLE[(state ^ column) & 255] ^ state >> 8
    shift, crcs = state[:32], state[32:]
    while len(crcs) > 1:
        crcs = np.pad(crcs, (len(crcs) % 2, 0))
        crcs, shift = move(crcs[::2]) ^ crcs[1::2], move(shift)
    for byte in data[rows.size :]:
        crcs = TABLE[(crcs ^ byte) & 255] ^ crcs >> 8
    return int(~crcs[0])


def _load(log: bytes, at: int, stored: int, crc: int, codec: int, size: int) -> bytes:
    """Check and decode bytes of the log, which ends where the commit record starts."""
    _check(64 <= at <= len(log) - stored, f"the bytes at {at} are out of bounds")
    data = log[at : at + stored]
    _check(crc32c(data) == crc, f"wrong CRC of the bytes at {at}")
    _check(codec in (0, 1, 2), f"unknown codec {codec}")
    if codec == 1:
        data = lz4.block.decompress(data, uncompressed_size=size)
    elif codec == 2:
        _check(zstandard.frame_content_size(data) in (size, -1), "wrong zstd frame")
        data = ZSTD.decompress(data, max_output_size=size, allow_extra_data=False)
    _check(len(data) == size, f"wrong length of the bytes at {at}")
    return data


def _page(log: bytes, entry: tuple, n: int, kinds: tuple = (0, 3)) -> np.ndarray:
    """Read an index page of n entries: a plain one, a patch of one, or zeros."""
    _, stored, _, kind, shuffled, zeros = entry
    _check(kind in kinds and not any((shuffled, *zeros)), "wrong entry of a page")
    if not any(entry[:4]):
        return np.zeros(n, "V24")
    if kind == 0:
        return np.frombuffer(_load(log, *entry[:3], stored < 24 * n, 24 * n), "V24")
    patch = _load(log, *entry[:3], 0, stored)
    page = _page(log, ENTRY.unpack_from(patch), n, kinds=(0,)).copy()
    slots, entries = map(list, zip(*struct.iter_unpack("<H24s", patch[24:])))
    _check(slots == sorted({*slots}), "the slots of a patch do not ascend")
    page[slots] = np.array(entries, "V24")
    return page


def _fill(out: np.ndarray, log: bytes, entry: tuple, level: int, fields: dict) -> None:
    """Fill zeros with what an index entry describes: a page, or at level 0 a chunk."""
    start, stored, crc, codec, shuffled, zeros = entry
    if not any((*entry[:5], *zeros)):
        return
    if level:
        span = fields["chunk_bytes"] * 1024 ** (level - 1)
        parts = [out[i : i + span] for i in range(0, len(out), span)]
        for part, child in zip(parts, ENTRY.iter_unpack(_page(log, entry, len(parts)))):
            _fill(part, log, child, level - 1, fields)
        return
    width = fields["shuffle"] if shuffled else 1
    is_sound = shuffled < 2 and width > 0 and stored <= len(out) and not any(zeros)
    _check(is_sound, "wrong entry of a chunk")
    out[:] = np.frombuffer(_load(log, start, stored, crc, codec, len(out)), np.uint8)
    whole = out[: len(out) // width * width]
    whole[:] = whole.reshape(width, -1).T.flatten()


def _descr(value: str | list) -> str | list:
    """Turn the lists of a dtype in JSON into the tuples of the npy format."""
    if isinstance(value, str):
        return value
    pairs = [(tuple(n) if isinstance(n, list) else n, rest) for n, *rest in value]
    return [(n, _descr(kind), *map(tuple, shape)) for n, (kind, *shape) in pairs]


def _array(log: bytes, fields: dict) -> np.ndarray:
    dtype = np.lib.format.descr_to_dtype(_descr(fields["dtype"]))
    shape, order, chunk = fields["shape"], fields["order"], fields["chunk_bytes"]
    _check(all(type(n) is int and n >= 0 for n in shape), "wrong shape")
    _check(order in ("C", "F") and not dtype.hasobject, "wrong order, or objects")
    _check(chunk in [2**k for k in range(12, 25)], "wrong chunk_bytes")
    length = math.prod(shape) * dtype.itemsize
    _check(length < 2**63 and 0 <= fields["shuffle"] <= chunk, "wrong length, shuffle")
    out = np.zeros(length, np.uint8)
    if (root := fields["index"]) is not None:
        level = next(d for d in range(1, 7) if chunk * 1024**d >= length)
        _check(length > 0 and any(root[:3]) and len(root) < 5, "wrong index")
        _fill(out, log, (*(*root, 0, 0)[:5], b""), level, fields)
    return np.ndarray(shape, dtype, out, order=order)


def read(path: str | Path) -> tuple[dict[str, np.ndarray], dict]:
    """Read all arrays of a store file's last state, by name, and its manifest."""
    file = Path(path).read_bytes()
    try:
        version, zero, store, _, zeros = struct.unpack_from("<II16sQ20s", file, 8)
        _check(file.startswith(b"\x89LZM\r\n\x1a\n"), "not a store file")
        _check(crc32c(file[:64]) == SEALED, "damaged superblock")
        _check(version == 1, f"version {version}, not 1")
        _check(not any((zero, *zeros)), "more than zeros in the superblock")
        for end in range((len(file) - 128) // 64 * 64, 0, -64):
            key = b"LZMCOMMT" + store + end.to_bytes(8, "little")
            if file.startswith(key, end) and crc32c(file[end : end + 128]) == SEALED:
                break
        else:
            raise FormatError("no valid commit record")
        start, stored, size, crc, codec, zeros = RECORD.unpack_from(file, end + 56)
        _check(codec < 2 and size <= 255 * stored and not any(zeros), "wrong record")
        text = _load(log := file[:end], start, stored, crc, codec, size).decode()
        manifest = json.loads(text, parse_constant=int)  # int refuses NaN
        arrays = {k: _array(log, fields) for k, fields in manifest["objects"].items()}
    except ERRORS as error:
        raise FormatError(f"{path}: {error}") from error
    return arrays, manifest
