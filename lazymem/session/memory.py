# SPDX-License-Identifier: BSD-3-Clause
"""Where the arrays of values are kept: which memory is one object of the store.

    arrays --by address--> what is the store's own: a reference to the object
                     '---> pieces, of arrays that overlap --> an object each

Two arrays that share memory are parts of one object, and share memory when they are
restored.  Of an object that is there already only the chunks that differ are written.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from lazymem import _engine, manifest
from lazymem.array import address_of
from lazymem.reference import Part
from lazymem.sources import as_bytes

try:
    from numpy.lib.array_utils import byte_bounds
except ImportError:  # numpy 1
    from numpy import byte_bounds  # type: ignore[attr-defined,no-redef]

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence

    from lazymem import Store
    from lazymem._engine import RegionHandle
    from lazymem.manifest import ObjectInfo
    from lazymem.session.document import Array, Leaf, Node

OWNED = {"lazymem.session": 1}
"""Attributes of the objects that are ours: others are never written to."""
_BLOCK_BYTES = 32 << 20
"""Compared at once: a multiple of any chunk."""
_PUT_SHARE = 4
"""An object of which more than this part differs is stored anew: quicker, on all cores,
and without its memory."""


@dataclass
class _Piece:
    """Arrays that overlap, from the lowest byte to the highest."""

    low: int
    high: int
    first: int
    leaves: list[Leaf]

    def whole(self) -> tuple[Array, str]:
        """Return the array that is to be stored, and what it is to be called."""
        nbytes = self.high - self.low
        forms = {_form(leaf.array) for leaf in self.leaves}
        for leaf in self.leaves:
            array = leaf.array
            is_all = array.nbytes == nbytes and (
                array.flags.c_contiguous or array.flags.f_contiguous
            )
            if is_all or (len(forms) == 1 and array.nbytes <= nbytes):
                return array, leaf.where
        memory = (ctypes.c_ubyte * nbytes).from_address(self.low)
        dtype = self.leaves[0].array.dtype
        starts = [address_of(leaf.array) - self.low for leaf in self.leaves]
        is_uniform = all(leaf.array.dtype == dtype for leaf in self.leaves)
        if not is_uniform or any(n % dtype.itemsize for n in (nbytes, *starts)):
            dtype = np.dtype(np.uint8)
        return np.frombuffer(memoryview(memory), dtype), self.leaves[0].where


def place(store: Store, leaves: Sequence[Leaf], in_use: Container[str]) -> list[str]:
    """Have all arrays in the store, and enter where they are.

    Parameters
    ----------
    store : Store
        Open for writing.
    leaves : sequence of Leaf
        The arrays.
    in_use : container of str
        Objects that are not to be written to.

    Returns
    -------
    list of str
        Objects of whose array some chunks were written, and are in memory.
    """
    ours = _tracked(store)
    others = [leaf for leaf in leaves if not _is_found(leaf, store, ours)]
    taken = {leaf.ref["object"] for leaf in leaves if "object" in leaf.ref}
    written = []
    for piece in _pieces(others):
        array, where = piece.whole()
        key = _free_key(store, where, lambda key: key in taken or key in in_use)
        taken.add(key)
        for leaf in piece.leaves:
            leaf.ref["object"] = key
            if _form(leaf.array) != _form(array):
                leaf.ref |= _part(leaf.array, address_of(leaf.array) - piece.low)
        for leaf in piece.leaves:
            _load(leaf)
        if _write(store, key, array):
            written.append(key)
    return written


def fetch(store: Store, ref: Node) -> Array:
    """Return the array that a reference tells of.

    Raises
    ------
    ObjectNotFoundError, ValueError
        If there is no such object, or the array lies outside of it.
    """
    if "dtype" not in ref:
        return store[ref["object"]]
    dtype, shape = manifest.read_dtype(ref["dtype"]), tuple(ref["shape"])
    if dtype.hasobject:
        raise ValueError(f"dtype {dtype} holds Python objects")
    if "object" not in ref:
        if math.prod(shape) * dtype.itemsize:
            raise ValueError(f"an array of shape {shape} has no object")
        return np.empty(shape, dtype)
    array = store[ref["object"]]
    part = Part(ref["object"], ref["offset"], shape, tuple(ref["strides"]), dtype)
    return array._part(part, array._bound().keeper)


# ---- memory that is the store's ------------------------------------------------------


def _tracked(store: Store) -> dict[str, RegionHandle]:
    with store._arrays.lock:
        return store._arrays.tracked()


def _is_found(leaf: Leaf, store: Store, ours: dict[str, RegionHandle]) -> bool:
    """Enter where an array is, if it needs no place: it is the store's, or empty."""
    array, region = leaf.array, leaf.region
    if array.nbytes == 0:
        descr = np.lib.format.dtype_to_descr(array.dtype)
        leaf.ref |= {"shape": list(array.shape), "dtype": descr}
    elif region is not None and ours.get(region.object.name) is region:
        leaf.ref["object"] = region.object.name
        if store._arrays.get(region.object.name) is not array:
            leaf.ref |= _part(array, address_of(array) - region.address)
    else:
        return False
    leaf.is_tracked = True
    return True


def _form(array: Array) -> tuple[Any, ...]:
    """Return what makes two views one."""
    return address_of(array), array.shape, array.strides, array.dtype


def _part(array: Array, offset: int) -> Node:
    return {
        "offset": offset,
        "shape": list(array.shape),
        "strides": list(array.strides),
        "dtype": np.lib.format.dtype_to_descr(array.dtype),
    }


# ---- other memory --------------------------------------------------------------------


def _pieces(leaves: list[Leaf]) -> list[_Piece]:
    """Return arrays that share memory as one piece, in the order of the first ones."""
    pieces: list[_Piece] = []
    spans = [(*byte_bounds(leaf.array), i) for i, leaf in enumerate(leaves)]
    for low, high, i in sorted(spans):
        if pieces and low < pieces[-1].high:
            piece = pieces[-1]
            piece.high, piece.first = max(piece.high, high), min(piece.first, i)
            piece.leaves.append(leaves[i])
        else:
            pieces.append(_Piece(low, high, i, [leaves[i]]))
    return sorted(pieces, key=lambda piece: piece.first)


def _free_key(store: Store, where: str, is_taken: Callable[[str], bool]) -> str:
    """Return the name of an object that may be written, as like `where` as can be."""
    name = where.encode("utf-8", "replace").decode()
    keys = (f"{name}~{n}" if n else name for n in count())
    return next(
        key
        for key in keys
        if not is_taken(key) and (key not in store or is_disposable(store, key))
    )


def is_disposable(store: Store, key: str) -> bool:
    """Return whether an object was made here, and nobody looks at its memory."""
    with store._arrays.lock:
        is_held = store._arrays.is_held(key)
    return not is_held and OWNED.keys() <= store.info(key).attrs.keys()


def _load(leaf: Leaf) -> None:
    """Fill what is another store's: what can't be read is not to be stored."""
    if leaf.region is not None:
        low, high = byte_bounds(leaf.array)
        leaf.region.prefetch(low - leaf.region.address, high - low).wait()


def _write(store: Store, key: str, array: Array) -> bool:
    """Have the bytes of an array in an object; return whether through its memory."""
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        array = np.ascontiguousarray(np.asarray(array))
    changed = _changed_chunks(store, key, array) if key in store else None
    if changed == []:
        return False
    if changed is None or not _engine.has_pager():
        store.put(key, array, attrs=OWNED)
        return False
    target, step = store[key], store.info(key).chunk_bytes
    memory, flat = _flat(np.asarray(target)), _flat(array)

    def copy() -> None:
        for chunk in changed:
            part = slice(chunk * step, (chunk + 1) * step)
            memory[part] = flat[part]

    target._checked(copy)
    return True


def _flat(array: Array) -> Array:
    """Return the bytes of a contiguous array, in its order."""
    array = np.asarray(array)
    return as_bytes(array if array.flags.c_contiguous else array.T)


def _changed_chunks(store: Store, key: str, array: Array) -> list[int] | None:
    """Return the chunks of an object that differ; None: it is to be stored anew."""
    info = store.info(key)
    order = "C" if array.flags.c_contiguous else "F"
    if (info.shape, info.dtype, info.order) != (array.shape, array.dtype, order):
        return None
    held = _tracked(store).get(key)
    if held is not None and held.dirty():
        return None  # the file does not have what the memory has
    changed: list[int] = []
    flat, step = _flat(array), info.chunk_bytes
    for at, stored in _stored_blocks(store, info):
        block = flat[at : at + len(stored)]
        whole = len(stored) // step * step
        rows = (whole // step, step // 8)
        differ = stored[:whole].view("u8") != block[:whole].view("u8")
        found = np.flatnonzero(differ.reshape(rows).any(axis=1)).tolist()
        if not np.array_equal(stored[whole:], block[whole:]):
            found.append(whole // step)
        changed += [at // step + n for n in found]
        if len(changed) > info.chunks // _PUT_SHARE + 1:
            return None
    return changed


def _stored_blocks(store: Store, info: ObjectInfo) -> Iterator[tuple[int, Array]]:
    """Yield what the file has of an object, block by block, and where each begins.

    The next one is decoded while the caller looks at one.
    """
    obj = manifest.open_object(store._handle, info)
    starts = range(0, info.nbytes, _BLOCK_BYTES)
    buffers = [np.empty(min(_BLOCK_BYTES, info.nbytes), np.uint8) for _ in range(2)]
    blocks = [(at, buffers[i % 2][: info.nbytes - at]) for i, at in enumerate(starts)]
    job = obj.read(0, blocks[0][1].data)
    try:
        for i, (at, block) in enumerate(blocks):
            job.wait()
            if i + 1 < len(blocks):
                following, buffer = blocks[i + 1]
                job = obj.read(following, buffer.data)
            yield at, block
    finally:
        job.close()
