# SPDX-License-Identifier: BSD-3-Clause
"""The manifest of a store: JSON in the file, :class:`ObjectInfo` in Python.

Nothing in a manifest is believed before it is checked: the checksum says that the bytes
are those that were written, not who wrote them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from lazymem._engine import (
    CHUNK_BYTES_MAX,
    CHUNK_BYTES_MIN,
    CODECS,
    PAGE_PATCH,
    PAGE_PLAIN,
    ObjectHandle,
    StoreHandle,
)
from lazymem._version import __version__
from lazymem.errors import FormatError

_NBYTES_MAX = 2**63 - 1
_NDIM_MAX = 64
_LAZY_BYTES = 65536
"""Shorter manifests are parsed at once, in a fraction of a millisecond."""
_LOOKUPS_MAX = 64
"""Entries of a long one that are found one by one."""


@dataclass(frozen=True)
class ObjectInfo:
    """What a store knows of an object without touching its data."""

    name: str
    """Its key in the store."""
    shape: tuple[int, ...]
    """Its shape."""
    dtype: np.dtype[Any]
    """Its data type."""
    order: str
    """``"C"`` or ``"F"``."""
    chunk_bytes: int
    """Bytes that are compressed, read and filled as one."""
    codec: str
    """``"zstd"``, ``"lz4"`` or ``"none"``."""
    level: int
    """Level of the codec."""
    shuffle: int
    """Element width of the byte shuffle in bytes; 0 for none."""
    index: tuple[int, int, int, int] | None
    """Offset, length, checksum and kind of the root index page; None: all zero."""
    stored_bytes: int
    """Bytes of the compressed chunks."""
    attrs: Mapping[str, Any]
    """The user's attributes."""
    is_split: bool = True
    """Whether byte planes, and with lz4 every 64 KiB, are compressed on their own."""

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.nbytes // self.chunk_bytes)

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's entry."""
        return {
            "dtype": np.lib.format.dtype_to_descr(self.dtype),
            "shape": list(self.shape),
            "order": self.order,
            "chunk_bytes": self.chunk_bytes,
            "codec": self.codec,
            "level": self.level,
            "shuffle": self.shuffle,
            "index": index_to_json(self.index),
            "stored_bytes": self.stored_bytes,
            "attrs": dict(self.attrs),
            **({} if self.is_split else {"split": False}),
        }


def check_attrs(attrs: Mapping[str, Any] | None, of: str) -> dict[str, Any]:
    """Return `attrs` as JSON will give them back.

    Raises
    ------
    TypeError
        If they are no JSON object.
    """
    if attrs is None:
        return {}
    if not isinstance(attrs, Mapping) or not all(isinstance(key, str) for key in attrs):
        raise TypeError(f"attrs of {of} must be a mapping with str keys")
    try:
        copy: dict[str, Any] = json.loads(json.dumps(dict(attrs), allow_nan=False))
    except (TypeError, ValueError) as exc:
        raise TypeError(f"attrs of {of} must be JSON: {exc}") from None
    return copy


def encode(
    objects: Mapping[str, Any], attrs: Mapping[str, Any], **history: Any
) -> bytes:
    """Return the manifest of a store.

    Parameters
    ----------
    objects : mapping
        The entry of each object, as :meth:`ObjectInfo.to_json` makes it.
    attrs : mapping
        The store's attributes.
    **history
        What :mod:`lazymem.history` has to say.
    """
    manifest = {
        "writer": f"lazymem {__version__}",
        **history,
        "attrs": dict(attrs),
        "objects": {},
    }
    head = _to_json(manifest).removesuffix("}}")
    lines = ",".join(
        f"\n{_to_json(name)}:{_to_json(objects[name])}" for name in objects
    )
    return f"{head}{lines}\n}}}}".encode()


_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def decode(data: bytes, path: str, *, lazily: bool = False) -> dict[str, Any]:
    """Parse a manifest; its objects are checked one by one when they are opened.

    Parameters
    ----------
    data : bytes
        The manifest.
    path : str
        Whose it is.
    lazily : bool, optional
        Whether to parse the entries of many objects one by one when they are used;
        then they can't be changed.

    Raises
    ------
    FormatError
        If it is no manifest.
    """
    if lazily and len(data) >= _LAZY_BYTES and data.endswith(b"\n}}"):
        head, _, _ = data.partition(b"\n")
        with suppress(ValueError, FormatError):
            manifest = decode(head + b"}}", path)
            if list(manifest)[-1] == "objects" and not manifest["objects"]:
                return {**manifest, "objects": Entries(data[len(head) :], path)}
    try:
        manifest = json.loads(str(data, "utf-8"))
    except (ValueError, RecursionError) as exc:
        raise _error(path, None, f"the manifest is no JSON: {exc}") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("objects"), dict):
        raise _error(path, None, "the manifest lists no objects")
    if not isinstance(manifest.setdefault("attrs", {}), dict):
        raise _error(path, None, "the manifest's attrs are no object")
    return manifest


class Entries(Mapping[str, Any]):
    """The entries of many objects, in their JSON, where each begins a line.

    A line break can't be part of a JSON string, so where one precedes a name and a
    colon there is the entry.  Whoever wants more than a few gets all of them parsed.

    Parameters
    ----------
    lines : bytes
        What follows ``"objects":{`` in a manifest, as the format lays it out.
    path : str
        Whose it is.
    """

    def __init__(self, lines: bytes, path: str) -> None:
        self._lines, self._path = lines, path
        self._found: dict[str, Any] = {}
        self._is_complete = False

    def __getitem__(self, name: str) -> Any:
        if name not in self._found and not self._is_complete:
            if len(self._found) < _LOOKUPS_MAX and isinstance(name, str):
                self._look_up(name)
            if name not in self._found:
                self._parse_all()  # another writer may have escaped more in the name
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        self._parse_all()
        return iter(self._found)

    def __len__(self) -> int:
        return self._lines.count(b"\n") - 1

    def _look_up(self, name: str) -> None:
        key = f"\n{_to_json(name)}:".encode()
        start = self._lines.find(key)
        if start >= 0:
            start += len(key)
            line = self._lines[start : self._lines.index(b"\n", start)]
            self._found[name] = self._parse(line.removesuffix(b","))

    def _parse_all(self) -> None:
        if not self._is_complete:
            self._found = self._parse(b"{" + self._lines.removesuffix(b"}"))
            self._is_complete = True

    def _parse(self, text: bytes) -> Any:
        try:
            return json.loads(str(text, "utf-8"))
        except (ValueError, RecursionError) as exc:
            reason = f"the manifest is no JSON: {exc}"
            raise _error(self._path, None, reason) from None


def object_info(path: str, name: str, entry: Any) -> ObjectInfo:
    """Check the manifest's entry of an object.

    Raises
    ------
    FormatError
        If a field is missing or makes no sense.
    """
    try:
        info = ObjectInfo(
            name=name,
            shape=_shape(entry["shape"]),
            dtype=read_dtype(entry["dtype"]),
            order=_one_of(entry["order"], ("C", "F")),
            chunk_bytes=_integer(entry["chunk_bytes"]),
            codec=_one_of(entry["codec"], tuple(CODECS)),
            level=int(entry["level"]),
            shuffle=_integer(entry["shuffle"]),
            index=_index(entry["index"]),
            stored_bytes=_integer(entry["stored_bytes"]),
            attrs=_mapping(entry["attrs"]),
            is_split=_boolean(entry.get("split", True)),
        )
        _check(info)
    except (KeyError, TypeError, ValueError, RecursionError) as exc:
        reason = f"no {exc}" if isinstance(exc, KeyError) else str(exc)
        raise _error(path, name, f"bad entry in the manifest: {reason}") from None
    return info


def open_object(store: StoreHandle, info: ObjectInfo) -> ObjectHandle:
    """Open the chunks of an object, which has some."""
    return ObjectHandle(
        store, info.name, info.nbytes, info.chunk_bytes, info.shuffle, info.index
    )


def _error(path: str, name: str | None, text: str) -> FormatError:
    where = path if name is None else f"{path}, object {name!r}"
    error = FormatError(f"{where}: {text}")
    error.path, error.name = path, name
    return error


def _check(info: ObjectInfo) -> None:
    if info.dtype.hasobject:
        raise ValueError(f"dtype {info.dtype} holds Python objects")
    nbytes = info.nbytes
    if nbytes > _NBYTES_MAX:
        raise ValueError(f"{nbytes} bytes are more than 2**63 - 1")
    is_power_of_two = info.chunk_bytes & (info.chunk_bytes - 1) == 0
    if not (CHUNK_BYTES_MIN <= info.chunk_bytes <= CHUNK_BYTES_MAX and is_power_of_two):
        raise ValueError(f"chunk_bytes is {info.chunk_bytes}")
    if info.shuffle > info.chunk_bytes:
        raise ValueError(f"shuffle is {info.shuffle}")
    if nbytes == 0 and info.index is not None:
        raise ValueError("an empty object has an index")


def _integer(value: Any) -> int:
    if type(value) is not int or value < 0 or value > _NBYTES_MAX:
        raise ValueError(f"{value!r} is no length")
    return value


def _boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > _NDIM_MAX:
        raise ValueError(f"{value!r} is no shape")
    return tuple(_integer(n) for n in value)


def read_dtype(descr: Any) -> np.dtype[Any]:
    """Undo ``dtype_to_descr``: JSON has no tuples."""
    if isinstance(descr, str):
        return np.dtype(descr)
    if not isinstance(descr, list):
        raise ValueError(f"{descr!r} is no dtype")
    return np.lib.format.descr_to_dtype([_field(field) for field in descr])


def _field(field: Any) -> tuple[Any, ...]:
    name, dtype, *shape = field
    if isinstance(name, list):
        name = tuple(name)
    if isinstance(dtype, list):
        dtype = [_field(inner) for inner in dtype]
    return (name, dtype, *(tuple(extents) for extents in shape))


def _one_of(value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{value!r} is none of {', '.join(choices)}")
    return str(value)


def _index(value: Any) -> tuple[int, int, int, int] | None:
    if value is None:
        return None
    offset, stored_bytes, crc, *kinds = (_integer(n) for n in value)
    if offset == 0 or stored_bytes >= 2**32 or crc >= 2**32 or len(kinds) > 1:
        raise ValueError(f"{value!r} is no index")
    kind = kinds[0] if kinds else PAGE_PLAIN
    if kind not in (PAGE_PLAIN, PAGE_PATCH):
        raise ValueError(f"{value!r} is an index of another kind")
    return offset, stored_bytes, crc, kind


def index_to_json(index: tuple[int, int, int, int] | None) -> list[int] | None:
    """Return the manifest's way to say where an index is."""
    if index is None:
        return None
    return list(index if index[3] != PAGE_PLAIN else index[:3])


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is no JSON object")
    return value
