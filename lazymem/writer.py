# SPDX-License-Identifier: BSD-3-Clause
"""Writing a store file: :func:`save` in one go, :class:`Writer` block by block."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lazymem import _engine, files, manifest, sources
from lazymem.encoding import Encoding, Layout, choose_layout, default_layout
from lazymem.manifest import ObjectInfo
from lazymem.progress import Meter, Progress, meter
from lazymem.sources import Bytes, Source, as_bytes

if TYPE_CHECKING:
    from types import TracebackType

    import numpy.typing as npt


class ObjectWriter:
    """An object of a :class:`Writer`, written block by block."""

    def __init__(
        self,
        writer: _engine.WriterHandle,
        info: ObjectInfo,
        how: Encoding,
        source: Source | None,
    ) -> None:
        self._writer, self._info, self._how = writer, info, how
        self._layout: Layout | None = None
        self._handle: Any = None
        self._end = 0
        if source is not None and source.peek is not None:
            self._choose(source.peek, info.nbytes)

    @property
    def name(self) -> str:
        """Name in the store."""
        return self._info.name

    def write(self, block: npt.ArrayLike, at: int | None = None) -> None:
        """Append a block.

        Parameters
        ----------
        block : array_like
            Converted to the object's dtype.  Its shape is the object's in all axes but
            the slowest (the first for order C, the last for order F), or without it for
            one item.
        at : int, optional
            Index of the block along the slowest axis; default: after the last block.

        Raises
        ------
        ValueError
            If the block has the wrong shape, lies outside the object, or before the end
            of what was written.

        Notes
        -----
        What is never written is zero, and costs nothing.
        """
        info = self._info
        data = np.asarray(block, info.dtype)
        if info.order == "F":
            data = data.T
        shape = info.shape if info.order == "C" else info.shape[::-1]
        item_shape = shape[1:]
        if data.shape != item_shape and data.shape[1:] != item_shape:
            raise ValueError(
                f"object {info.name!r}: a block of shape {np.shape(block)} does not "
                f"fit an object of shape {info.shape}, order {info.order}"
            )
        item_bytes = math.prod(item_shape) * info.dtype.itemsize
        offset = self._end if at is None else at * item_bytes
        if offset < self._end or offset + data.nbytes > info.nbytes:
            raise ValueError(
                f"object {info.name!r}: a block at index {at} must lie at or after "
                f"{self._end // item_bytes if item_bytes else 0} and end by "
                f"{shape[0] if shape else 1}: blocks are written in ascending order"
            )
        if data.nbytes:
            self.write_bytes(offset, as_bytes(np.ascontiguousarray(data)))

    def write_bytes(
        self, offset: int, block: Bytes, tick: _engine.Tick | None = None
    ) -> None:
        """Append raw bytes.

        Parameters
        ----------
        offset : int
            Where they belong in the object, in bytes.
        block : ndarray
            Shape ``(n,)``, uint8.
        tick : callable, optional
            Called now and then with the steps done and the steps in all.
        """
        handle = self._begin(block)
        self._writer.write(handle, offset, block, tick)
        self._end = offset + block.nbytes

    def _write_all(self, source: Source, m: Meter) -> None:
        """Append all bytes of a source."""
        offset = 0
        for block in source.blocks() if source.nbytes else ():
            self.write_bytes(offset, block, m.part(block.nbytes))
            offset += block.nbytes

    def _begin(self, block: Bytes | None) -> Any:
        if self._handle is None:
            if self._layout is None and block is not None:
                self._choose(lambda at, n: block[at : at + n], block.nbytes)
            self._handle = self._writer.begin(
                self._resolved_layout.to_engine(self._info.nbytes)
            )
        return self._handle

    def _choose(self, peek: Any, nbytes: int) -> None:
        self._layout = choose_layout(self._how, self._info.dtype, nbytes, peek)

    @property
    def _resolved_layout(self) -> Layout:
        return self._layout or default_layout(self._how, self._info.dtype)

    def _finish(self) -> ObjectInfo:
        """Store what is left of the object; return all that is to be known of it."""
        layout = self._resolved_layout
        self._info = replace(
            self._info,
            chunk_bytes=layout.chunk_bytes,
            shuffle=layout.shuffle,
            is_split=layout.is_split,
        )
        if self._info.nbytes == 0:
            return self._info
        handle, self._handle = self._begin(None), None
        written = self._writer.end(handle)
        return replace(
            self._info,
            index=written.root,
            stored_bytes=written.stored_bytes,
        )

    def _discard(self) -> None:
        """Give the object up, if it is not finished."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            with suppress(Exception):
                self._writer.end(handle)


def empty_source(
    name: str, shape: int | tuple[int, ...], dtype: npt.DTypeLike, order: str
) -> Source:
    """Return the source of an object that nothing is known of but its form.

    Raises
    ------
    TypeError
        If the dtype can't be stored.
    """
    extents = (shape,) if isinstance(shape, int) else tuple(int(n) for n in shape)
    source = Source(extents, np.dtype(dtype), order, lambda: iter(()))
    sources.check_dtype(source.dtype, name)
    return source


def describe(
    name: str, source: Source, layout: Layout, attrs: Mapping[str, Any] | None
) -> ObjectInfo:
    """Return what a store is to know of a new object, all zero so far.

    Raises
    ------
    ValueError, TypeError
        If the name, the form or the attributes can't be stored.
    """
    if not isinstance(name, str):
        raise TypeError(f"an object's name must be a str, not {name!r}")
    if not name:
        raise ValueError("an object's name must not be empty")
    name.encode("utf-8")  # lone surrogates have no place in a file
    if source.order not in ("C", "F"):
        raise ValueError(f"order must be 'C' or 'F', not {source.order!r}")
    if any(n < 0 for n in source.shape) or source.nbytes >= 2**63:
        raise ValueError(f"object {name!r}: shape {source.shape} can't be stored")
    return ObjectInfo(
        name=name,
        shape=source.shape,
        dtype=source.dtype,
        order=source.order,
        chunk_bytes=layout.chunk_bytes,
        codec=layout.codec,
        level=layout.level,
        shuffle=layout.shuffle,
        index=None,
        stored_bytes=0,
        attrs=manifest.check_attrs(attrs, f"object {name!r}"),
        is_split=layout.is_split,
    )


class Writer:
    """A new store file, written block by block.

    The file appears under its name, complete and durable, when the writer is closed
    without an exception; until then, and after a crash, what was there before stays as
    it was.

    Parameters
    ----------
    path : str or path-like
        The file; replaced if it exists.
    codec : {"zstd", "lz4", "none"}, optional
        For objects that don't say otherwise.
    level : int, optional
        Level of the codec: zstd -100 to 22 (default 3), lz4 1 (default) or 2 to 12 for
        the slow, dense compressor, below 0 for more speed.
    chunk_bytes : int, optional
        Power of two from 4096 to 16777216; default by trial, 128 or 256 KiB.
    shuffle : bool or int, optional
        Byte shuffle by element (or by that many bytes); default: by trial.
    attrs : mapping, optional
        JSON attributes of the store.

    Attributes
    ----------
    file_bytes : int
        Length of the file in bytes, once the writer is closed.

    Raises
    ------
    OSError
        If there is a folder of that name, or no file can be made beside it.
    LockError
        If a writer has the file open that is there.

    Examples
    --------
    >>> import numpy as np, lazymem as lm
    >>> with lm.Writer("blocks.lzm") as w:
    ...     x = w.create("x", shape=(1_000_000, 1000), dtype="f4")
    ...     x.write(np.ones((10, 1000)), at=500_000)
    >>> with lm.open("blocks.lzm") as store:
    ...     print(store["x"][499_999:500_001, 0])
    [0. 1.]
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        codec: str = "zstd",
        level: int | None = None,
        chunk_bytes: int | None = None,
        shuffle: bool | int | None = None,
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        self._encoding = Encoding(codec, level, chunk_bytes, shuffle)
        self._attrs = manifest.check_attrs(attrs, "the store")
        self._path = files.resolve(path)
        files.check_unlocked(self._path)
        self._temporary = files.temporary_name(self._path)
        self._handle = _engine.WriterHandle(self._path, self._temporary)
        self._objects: dict[str, ObjectWriter] = {}
        self._done: dict[str, ObjectInfo] = {}
        self._closed = False
        self.file_bytes = 0

    def create(
        self,
        name: str,
        shape: int | tuple[int, ...],
        dtype: npt.DTypeLike,
        *,
        order: str = "C",
        attrs: Mapping[str, Any] | None = None,
        **encoding: Any,
    ) -> ObjectWriter:
        """Begin an object.

        Parameters
        ----------
        name : str
            Its key in the store.
        shape : int or tuple of int
            Its shape.
        dtype : dtype_like
            Its type; no Python objects.
        order : {"C", "F"}, optional
            Layout.
        attrs : mapping, optional
            JSON attributes.
        **encoding
            ``codec``, ``level``, ``chunk_bytes``, ``shuffle``, as for the writer.

        Returns
        -------
        ObjectWriter
            Takes the blocks.

        Raises
        ------
        ValueError
            If the name is taken, the shape can't be stored, or the writer is closed.
        TypeError
            If the dtype holds Python objects, or attributes are no JSON.
        """
        source = empty_source(name, shape, dtype, order)
        return self._create(name, source, attrs, **encoding)

    def _create(
        self,
        name: str,
        source: Source,
        attrs: Mapping[str, Any] | None,
        **encoding: Any,
    ) -> ObjectWriter:
        self._check_open()
        if name in self._objects or name in self._done:
            raise ValueError(f"object {name!r}: names must be unique")
        how = self._encoding
        if encoding.get("codec", how.codec) != how.codec:
            how = replace(how, level=None)
        if encoding:
            how = replace(how, **encoding)
        info = describe(name, source, default_layout(how, source.dtype), attrs)
        obj = ObjectWriter(self._handle, info, how, source)
        self._objects[name] = obj
        return obj

    def _add(self, name: str, source: Source, m: Meter) -> None:
        """Write a whole object."""
        self._create(name, source, source.attrs)._write_all(source, m)
        self._finish(name)

    def _finish(self, name: str) -> None:
        self._done[name] = self._objects.pop(name)._finish()

    def close(self) -> None:
        """Complete the file and put it in its place.  Closing twice is allowed.

        Raises
        ------
        OSError
            If the file can't be written; what was there before stays.
        LockError
            If a writer has what is there open.
        """
        if self._closed:
            return
        try:
            order = [*self._done, *self._objects]
            for name in list(self._objects):
                self._finish(name)
            objects = {name: self._done[name] for name in order}
            entries = {name: info.to_json() for name, info in objects.items()}
            commit = self._handle.commit(manifest.encode(entries, self._attrs))
            self.file_bytes = int(commit.file_bytes)
            self._handle.close()
            files.replace(self._temporary, self._path)
        except BaseException:
            self.discard()
            raise
        self._closed = True

    def discard(self) -> None:
        """Give the file up; what was under its name stays."""
        if self._closed:
            return
        self._closed = True
        for obj in self._objects.values():
            obj._discard()
        self._handle.close()
        with suppress(FileNotFoundError):
            os.unlink(self._temporary)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"{self._path}: the writer is closed")

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def save(
    path: str | os.PathLike[str],
    arrays: Any = None,
    /,
    *,
    codec: str = "zstd",
    level: int | None = None,
    chunk_bytes: int | None = None,
    shuffle: bool | int | None = None,
    attrs: Mapping[str, Any] | None = None,
    progress: Progress = None,
    only: str | Sequence[str] | None = None,
    **named: npt.ArrayLike | os.PathLike[str],
) -> int:
    """Save arrays to a store file.

    Parameters
    ----------
    path : str or path-like
        The file; replaced if it exists, all at once when the new one is complete.
    arrays : mapping, array_like, or path(s), optional
        A mapping from names to arrays; or one array, which is named ``arr_0``; or the
        path of a file, or a list of paths.  Files may be ``.npy``, ``.npz``, HDF5,
        Zarr, safetensors, Parquet, Arrow or TIFF; objects are named as in them, or by
        the stem of a file whose array has no name.  Values of a mapping may be paths as
        well; the objects of a file that holds several are then ``name/object``.
    codec : {"zstd", "lz4", "none"}, optional
        zstd is smaller, lz4 quicker to read and write.
    level : int, optional
        Level of the codec: zstd -100 to 22 (default 3), lz4 1 (default) or 2 to 12 for
        the slow, dense compressor, below 0 for more speed.
    chunk_bytes : int, optional
        Power of two from 4096 to 16777216: what is compressed and filled as one.
        Default by trial, 128 or 256 KiB.
    shuffle : bool or int, optional
        Byte shuffle by element (or by that many bytes); default: by trial on the data.
    attrs : mapping, optional
        JSON attributes of the store.
    progress : bool or callable, optional
        True for a bar, or a function of (bytes done, bytes in all).
    only : str or sequence of str, optional
        Of files: the objects whose names match one of these patterns, as of a shell.
    **named : array_like or path-like
        More arrays by name.

    Returns
    -------
    int
        Length of the file in bytes.

    Raises
    ------
    TypeError
        If an array's dtype holds Python objects.
    FormatError
        If a file is damaged, of no known format, or holds nulls where its values can't.
    ImportError
        If a format's library is not installed; says what to install.
    OSError
        If the file can't be written; what was there before stays.
    LockError
        If a writer has the file open that is there.

    Notes
    -----
    Uses all cores, and memory for a few blocks, however large the arrays: memory maps
    and files are read piece by piece.  A save that is interrupted leaves the old file,
    or none.

    Attributes of files and of the arrays in them are kept, those of the file as the
    store's; names of dimensions as the attribute ``_dims``.  A LazyMemWarning lists
    what a store can't hold, such as columns of text.

    Examples
    --------
    >>> import numpy as np, lazymem as lm
    >>> nbytes = lm.save("two.lzm", {"a": np.arange(10)}, b=np.zeros((3, 4)))
    >>> sorted(lm.open("two.lzm"))
    ['a', 'b']
    """
    for name in named:
        if isinstance(arrays, Mapping) and name in arrays:
            raise ValueError(f"two objects are named {name!r}")
    from lazymem import inputs  # not for those who only read

    with ExitStack() as stack:
        found, file_attrs = inputs.collect(arrays, named, only, stack)
        total = sum(source.nbytes for source in found.values())
        m = stack.enter_context(
            meter(progress, total, f"save {os.path.basename(os.fspath(path))}")
        )
        writer = stack.enter_context(
            Writer(
                path,
                codec=codec,
                level=level,
                chunk_bytes=chunk_bytes,
                shuffle=shuffle,
                attrs={**file_attrs, **manifest.check_attrs(attrs, "the store")},
            )
        )
        for name, source in found.items():
            writer._add(name, source, m)
    return writer.file_bytes
