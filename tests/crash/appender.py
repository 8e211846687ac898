# SPDX-License-Identifier: BSD-3-Clause
"""The engine's appending to a store file, bare: no history, no arrays in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lazymem import _engine, manifest
from lazymem._engine import ffi, lib
from lazymem.encoding import Encoding, default_layout
from lazymem.manifest import ObjectInfo


class _Handle(_engine.WriterHandle):
    def __init__(self, path: str, pointer: Any) -> None:
        self.path, self._pointer = path, pointer


class Appender:
    """A store file that is open for writing."""

    def __init__(self, path: Path) -> None:
        out, error = ffi.new("lm_store **"), ffi.new("struct lm_error *")
        commit = ffi.new("struct lm_commit *")
        code = lib.lm_store_open_write(os.fsencode(path), out, commit, error)
        _check(code, path)
        self._store = out[0]
        text = ffi.new("char[]", commit.manifest_bytes)
        _check(lib.lm_store_manifest(self._store, text, error), path)
        found = manifest.decode(bytes(ffi.buffer(text, commit.manifest_bytes)), "")
        self._objects = {
            name: manifest.object_info("", name, entry)
            for name, entry in found["objects"].items()
        }
        out = ffi.new("lm_writer **")
        _check(lib.lm_writer_open(self._store, out, error), path)
        self._writer = _Handle(str(path), out[0])

    def put(self, name: str, array: npt.NDArray[Any], chunk_bytes: int) -> None:
        """Append an object, or another one of the same name."""
        layout = default_layout(Encoding(chunk_bytes=chunk_bytes), array.dtype)
        obj = self._writer.begin(layout.to_engine(array.nbytes))
        try:
            self._writer.write(obj, 0, array.view(np.uint8))
        finally:
            written = self._writer.end(obj)
        self._objects[name] = ObjectInfo(
            name=name,
            shape=array.shape,
            dtype=array.dtype,
            order="C",
            chunk_bytes=layout.chunk_bytes,
            codec=layout.codec,
            level=layout.level,
            shuffle=layout.shuffle,
            index=_engine.root(written.root),
            stored_bytes=int(written.stored_bytes),
            attrs={},
        )

    def delete(self, name: str) -> None:
        """Leave an object out of what is committed next."""
        self._objects.pop(name, None)

    def commit(self) -> None:
        """Make what was done count."""
        self._writer.commit(manifest.encode(self._objects, {}))

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
        lib.lm_store_close(self._store)


def _check(code: int, path: Path) -> None:
    if code < 0:
        raise OSError(-code, os.strerror(-code), os.fspath(path))
