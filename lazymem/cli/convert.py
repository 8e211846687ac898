# SPDX-License-Identifier: BSD-3-Clause
"""Verbs that pack and unpack."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.filesize import decimal

import lazymem as lm
from lazymem import _engine, formats
from lazymem.cli.app import cli
from lazymem.cli.options import (
    at_option,
    byte_count,
    file_argument,
    json_option,
    names_argument,
    open_at,
)
from lazymem.cli.show import bars, one_line, print_facts, print_json, printable, ratio
from lazymem.formats.export import export
from lazymem.progress import meter
from lazymem.sources import check_dtype


def _extents(
    _: click.Context, __: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """Read a shape, as in 100,200."""
    if value is None:
        return None
    try:
        shape = tuple(int(text) for text in value.split(",") if text)
        if min(shape, default=0) >= 0:
            return shape
    except ValueError:
        pass
    raise click.BadParameter(f"{value!r} is no shape: try 100,200")


def _dtype(
    _: click.Context, __: click.Parameter, value: str | None
) -> np.dtype[Any] | None:
    """Read a dtype, as in f4."""
    if value is None:
        return None
    try:
        dtype = np.dtype(value)
        check_dtype(dtype, "SRC")
    except (TypeError, ValueError) as exc:
        raise click.BadParameter(str(exc)) from None
    return dtype


def _raw(
    path: str, dtype: np.dtype[Any], shape: tuple[int, ...] | None, offset: int
) -> np.ndarray[Any, Any]:
    """Map a file of raw binary, all of it.

    Raises
    ------
    ValueError
        If its length is not that of the array.
    """
    nbytes = os.path.getsize(path) - offset
    if shape is None:
        shape = (nbytes // max(1, dtype.itemsize),)
    expected = math.prod(shape) * dtype.itemsize
    if nbytes != expected or nbytes < 0:
        raise ValueError(
            f"{path}: {nbytes} bytes of data, but {shape} of {dtype.str} take "
            f"{expected}"
        )
    if nbytes == 0:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", offset, shape)


@cli.command()
@click.argument("out", type=click.Path())
@click.argument("src", type=click.Path(), nargs=-1, required=True)
@click.option(
    "--codec",
    type=click.Choice(list(_engine.CODECS)),
    default="zstd",
    show_default=True,
    help="zstd is smaller, lz4 quicker.",
)
@click.option(
    "--level", type=int, help="Level of the codec: zstd -100 to 22, lz4 -100 to 12."
)
@click.option(
    "--chunk",
    "chunk_bytes",
    metavar="BYTES",
    callback=byte_count,
    help="What is compressed and filled as one: a power of two from 4K to 16M.",
)
@click.option(
    "--shuffle/--no-shuffle",
    default=None,
    help="Byte shuffle by element.  Default: by trial on the data.",
)
@click.option(
    "--only",
    metavar="PATTERN",
    multiple=True,
    help="Take only the objects whose names match, as in a shell; may be repeated.",
)
@click.option(
    "--dtype",
    callback=_dtype,
    help="SRC is raw binary of this type, such as f4 or >i2.",
)
@click.option("--shape", callback=_extents, help="Of raw binary, as in 100,200.")
@click.option(
    "--offset", type=click.IntRange(0), default=0, help="Bytes before raw binary."
)
@json_option
def pack(
    out: str,
    src: tuple[str, ...],
    codec: str,
    level: int | None,
    chunk_bytes: int | None,
    shuffle: bool | None,
    only: tuple[str, ...],
    dtype: np.dtype[Any] | None,
    shape: tuple[int, ...] | None,
    offset: int,
    as_json: bool,
) -> None:
    """Pack files SRC... into the store OUT.

    SRC may be .npy, .npz, HDF5, Zarr, safetensors, Parquet, Arrow and TIFF, each read
    piece by piece; with --dtype raw binary.  OUT is replaced if it exists, all at once
    when the new store is complete.
    """
    if formats.of_suffix(out):
        raise click.UsageError(f"OUT comes first, and {out} does not look like a store")
    if dtype is None and (shape is not None or offset):
        raise click.UsageError("--shape and --offset are for raw binary: add --dtype")
    arrays: Any = list(src)
    if dtype is not None:
        arrays = {Path(path).stem: _raw(path, dtype, shape, offset) for path in src}
        if len(arrays) < len(src):
            raise click.UsageError("two of SRC have one name, but for their suffixes")
    start = time.perf_counter()
    try:
        file_bytes = lm.save(
            out,
            arrays,
            codec=codec,
            level=level,
            chunk_bytes=chunk_bytes,
            shuffle=shuffle,
            only=only or None,
            progress=bars(),
        )
    except TypeError as exc:  # a dtype that can't be stored
        raise click.ClickException(one_line(exc)) from exc
    seconds = time.perf_counter() - start
    with lm.open(out) as store:
        nbytes = sum(store.info(name).nbytes for name in store)
        objects = len(store)
    if as_json:
        print_json(
            {
                "path": out,
                "objects": objects,
                "nbytes": nbytes,
                "file_bytes": file_bytes,
                "seconds": seconds,
            }
        )
        return
    print_facts(
        {
            "store": out,
            "objects": objects,
            "bytes": decimal(nbytes),
            "file": decimal(file_bytes),
            "ratio": ratio(nbytes, file_bytes),
            "seconds": f"{seconds:.2f}",
        }
    )


@cli.command()
@file_argument
@names_argument
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path),
    default=".",
    show_default=True,
    help="A folder for .npy files, made if missing; or a new .npz, .h5 or .zarr.",
)
@click.option("--force", is_flag=True, help="Replace files that exist.")
@at_option
@json_option
def unpack(
    file: str,
    names: tuple[str, ...],
    target: Path,
    force: bool,
    at: str | None,
    as_json: bool,
) -> None:
    """Write the objects NAMES of FILE, by default all, as files of another format.

    An object's name may have slashes, which make folders, or groups.
    """
    with open_at(file, at) as store:
        infos = [store.info(name) for name in dict.fromkeys(names or store)]
        total = sum(info.nbytes for info in infos)
        with meter(bars(), total, f"unpack {os.path.basename(file)}") as m:
            paths = export(target, store, infos, m, may_replace=force)
    if as_json:
        print_json({i.name: str(p) for i, p in zip(infos, paths, strict=True)})
    else:
        for path in dict.fromkeys(paths):
            click.echo(printable(str(path)))
