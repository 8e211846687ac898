# SPDX-License-Identifier: BSD-3-Clause
"""Columns of tables, as Parquet, Arrow IPC and Feather keep them, by pyarrow.

A column of numbers or times is an array, and so is one of lists of equal length, with
two axes.  Its batches are read one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lazymem.formats.contents import Contents, library, naming
from lazymem.sources import Source, as_bytes

if TYPE_CHECKING:
    from contextlib import ExitStack

    from lazymem.sources import Bytes

Batches = Callable[[int], Iterator[Any]]
"""Returns the arrays of a column, one after the other."""

_BATCH_ROWS = 1 << 20
_OF_ARROW = (b"ARROW:schema", b"PARQUET:field_id")


def open_file(path: str, stack: ExitStack) -> Contents:
    """Open a table; its columns are named as in it.

    Notes
    -----
    A null is NaN in floats and NaT in dates, which have such a value; in other columns
    it is an error of reading the column, which tells how many there are.
    """
    pa = library("pyarrow", "arrow")
    contents = Contents(path)
    with naming(path):
        with open(path, "rb") as file:
            is_parquet = file.read(4) == b"PAR1"
        schema, rows, batches = (_parquet if is_parquet else _ipc)(pa, path, stack)
        contents.attrs = _attrs(contents, schema.metadata, "")
        for i, column in enumerate(schema):
            name, kind = column.name, column.type
            attrs = _attrs(contents, column.metadata, name)
            shape: tuple[int, ...] = (rows,)
            if pa.types.is_fixed_size_list(kind):
                shape, kind = (rows, kind.list_size), kind.value_type
            dtype = _dtype(pa, kind)
            if dtype is None:
                contents.left_out[name] = f"a column of type {column.type}"
                continue
            if pa.types.is_timestamp(kind) and kind.tz:
                attrs["timezone"] = kind.tz
            read = partial(_blocks, pa, batches, i, dtype)
            contents.add(name, Source(shape, dtype, "C", read, attrs=attrs))
    return contents


def _attrs(contents: Contents, metadata: Any, of: str) -> dict[str, Any]:
    pairs = {k: v for k, v in (metadata or {}).items() if k not in _OF_ARROW}
    return contents.json_attrs(
        {k.decode(errors="backslashreplace"): v for k, v in pairs.items()}, of
    )


def _dtype(pa: Any, kind: Any) -> np.dtype[Any] | None:
    """Return the dtype of a column's values; None if there is none."""
    code = None
    if pa.types.is_boolean(kind):
        code = "?"
    elif pa.types.is_integer(kind):
        sign = "u" if pa.types.is_unsigned_integer(kind) else "i"
        code = f"{sign}{kind.bit_width // 8}"
    elif pa.types.is_floating(kind):
        code = f"f{kind.bit_width // 8}"
    elif pa.types.is_timestamp(kind):
        code = f"M8[{kind.unit}]"
    elif pa.types.is_date(kind):
        code = "M8[D]" if pa.types.is_date32(kind) else "M8[ms]"
    elif pa.types.is_duration(kind):
        code = f"m8[{kind.unit}]"
    return None if code is None else np.dtype(code)


def _blocks(
    pa: Any, batches: Batches, column: int, dtype: np.dtype[Any]
) -> Iterator[Bytes]:
    found = batches(column)
    for array in found:
        array.validate()  # of hostile files: no buffer is shorter than it should be
        values = array
        if pa.types.is_fixed_size_list(array.type):
            _refuse_nulls(array, found, "lists")
            values = array.flatten()
        if dtype.kind not in "fmM":
            _refuse_nulls(values, found, f"{dtype}")
        data = values.to_numpy(zero_copy_only=False)
        yield as_bytes(np.ascontiguousarray(data, dtype))


def _refuse_nulls(values: Any, rest: Iterator[Any], what: str) -> None:
    if values.null_count:
        nulls = values.null_count + sum(array.null_count for array in rest)
        raise ValueError(
            f"the column has {nulls} nulls, which {what} can't hold: fill them, or "
            "store them as another column"
        )


def _parquet(pa: Any, path: str, stack: ExitStack) -> tuple[Any, int, Batches]:
    parquet = library("pyarrow.parquet", "arrow")
    file = stack.enter_context(parquet.ParquetFile(path, pre_buffer=False))
    names = file.schema_arrow.names

    def batches(column: int) -> Iterator[Any]:
        name = names[column]
        for batch in file.iter_batches(_BATCH_ROWS, columns=[name]):
            # "a" brings "a.b" as well, of a struct or not.
            yield batch.column(batch.schema.names.index(name))

    return file.schema_arrow, file.metadata.num_rows, batches


def _ipc(pa: Any, path: str, stack: ExitStack) -> tuple[Any, int, Batches]:
    ipc = library("pyarrow.ipc", "arrow")
    memory = stack.enter_context(pa.memory_map(path))
    is_file = memory.read(6) == b"ARROW1"

    def read(columns: list[int]) -> Iterator[Any]:
        options = ipc.IpcReadOptions(included_fields=columns)
        memory.seek(0)
        if not is_file:
            yield from ipc.open_stream(memory, options=options)
            return
        reader = ipc.open_file(memory, options=options)
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)

    def batches(column: int) -> Iterator[Any]:
        for batch in read([column]):
            yield batch.column(0)

    memory.seek(0)
    schema = (ipc.open_file if is_file else ipc.open_stream)(memory).schema
    rows = sum(batch.num_rows for batch in read([0])) if len(schema) else 0
    return schema, rows, batches
