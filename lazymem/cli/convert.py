# SPDX-License-Identifier: BSD-3-Clause
"""Verbs that pack and unpack."""

from __future__ import annotations

import os
import secrets
import time
from contextlib import suppress
from pathlib import Path, PurePosixPath

import click
import numpy as np
from rich.filesize import decimal

import lazymem as lm
from lazymem import _engine
from lazymem.cli.app import cli
from lazymem.cli.options import (
    at_option,
    byte_count,
    file_argument,
    json_option,
    open_at,
)
from lazymem.cli.show import bars, one_line, print_facts, print_json, printable, ratio
from lazymem.progress import Meter, meter


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
@json_option
def pack(
    out: str,
    src: tuple[str, ...],
    codec: str,
    level: int | None,
    chunk_bytes: int | None,
    shuffle: bool | None,
    as_json: bool,
) -> None:
    """Pack .npy and .npz files SRC... into the store OUT.

    OUT is replaced if it exists, all at once when the new store is complete.
    """
    if out.endswith((".npy", ".npz")):
        raise click.UsageError(f"OUT comes first, and {out} does not look like a store")
    start = time.perf_counter()
    try:
        file_bytes = lm.save(
            out,
            list(src),
            codec=codec,
            level=level,
            chunk_bytes=chunk_bytes,
            shuffle=shuffle,
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
@click.argument("names", nargs=-1)
@click.option(
    "--to",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=".",
    show_default=True,
    help="The folder to write to; made if missing.",
)
@click.option("--force", is_flag=True, help="Replace files that exist.")
@at_option
@json_option
def unpack(
    file: str,
    names: tuple[str, ...],
    folder: Path,
    force: bool,
    at: str | None,
    as_json: bool,
) -> None:
    """Write the objects NAMES of FILE, by default all, as .npy files.

    An object's name may have slashes, which make folders.
    """
    with open_at(file, at) as store:
        infos = [store.info(name) for name in dict.fromkeys(names or store)]
        targets = [_target(folder, info.name) for info in infos]
        taken = [path for path in targets if os.path.lexists(path)]
        if taken and not force:
            raise FileExistsError(
                f"{taken[0]} exists: --force replaces it"
                + (f", and {len(taken) - 1} more" if len(taken) > 1 else "")
            )
        total = sum(info.nbytes for info in infos)
        with meter(bars(), total, f"unpack {os.path.basename(file)}") as m:
            for info, path in zip(infos, targets, strict=True):
                _unpack_object(store, info, path, m)
    if as_json:
        print_json({i.name: str(p) for i, p in zip(infos, targets, strict=True)})
    else:
        for path in targets:
            click.echo(printable(str(path)))


def _target(folder: Path, name: str) -> Path:
    """Return the file of an object, which is inside `folder` whatever the name is.

    Raises
    ------
    ValueError
        If the name leads out of the folder.
    """
    parts = name.split("/")
    inside = not {"", ".", ".."} & set(parts) and "\0" not in name
    path = folder / f"{PurePosixPath(*parts)}.npy"
    if not inside or not path.parent.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"object {name!r}: its name is no path inside {folder}; "
            "open the store from Python to save it under another"
        )
    return path


def _unpack_object(store: lm.Store, info: lm.ObjectInfo, path: Path, m: Meter) -> None:
    """Decode an object block by block into a new file, and put it in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(6)}.tmp")
    try:
        mapped = np.lib.format.open_memmap(
            temporary,
            mode="w+",
            dtype=info.dtype,
            shape=info.shape,
            fortran_order=info.order == "F",
        )
        start = mapped.offset
        del mapped
        with temporary.open("r+b") as out:
            out.seek(start)
            for block in store.blocks(info.name):
                out.write(block)
                m.part(len(block))(1, 1)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
