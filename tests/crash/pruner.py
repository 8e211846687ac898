# SPDX-License-Identifier: BSD-3-Clause
"""The engine's pruning, of a store whose snapshots are all kept."""

from __future__ import annotations

from functools import partial
from typing import Any

import lazymem as lm
from lazymem import _engine, manifest
from lazymem._engine import ffi, lib


def prune(store: lm.Store) -> None:
    """Give back the space of what no state of a store refers to."""
    writer = store._workspace._writer  # type: ignore[union-attr]
    out, error = ffi.new("lm_prune **"), ffi.new("struct lm_error *")
    writer.check(lib.lm_prune_begin(writer.pointer, out, error), error)
    offsets = {info.offset for info in store.log()}
    for offset in {*offsets, int(store._workspace.commit.offset)}:  # type: ignore[union-attr]
        _keep(store, out[0], offset)
    freed = ffi.new("uint64_t *")
    writer.check(lib.lm_prune_end(out[0], 1, freed, error), error)


def _keep(store: lm.Store, pointer: Any, offset: int) -> None:
    error = ffi.new("struct lm_error *")
    state = _engine.StoreHandle.__new__(_engine.StoreHandle)
    state._open(store.path, partial(lib.lm_prune_open, pointer, offset))
    content = manifest.decode(state.manifest(), store.path)
    for name, entry in content["objects"].items():
        info = manifest.object_info(store.path, name, entry)
        obj = _engine.ObjectHandle(
            state, name, info.nbytes, info.chunk_bytes, info.shuffle, info.index
        )
        assert lib.lm_prune_keep(pointer, obj.pointer, ffi.NULL, error) == 0
