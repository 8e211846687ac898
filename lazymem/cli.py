# SPDX-License-Identifier: BSD-3-Clause
"""The verbs of the ``lazymem`` command.

Data go to stdout, prose and bars to stderr.  What goes wrong is one line, never a
traceback.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from subprocess import CalledProcessError
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

import lazymem as lm
from lazymem import _engine, demo, doctor
from lazymem.progress import Meter, meter

if TYPE_CHECKING:
    from collections.abc import Mapping

_EXIT_DAMAGED = 3
_EXIT_INTERRUPTED = 130
_BLOCK_BYTES = 64 << 20
_MOST_RUNS = 8
"""Of rows that differ, told for an object."""
_WIDE = 10_000
"""Columns of a table that nobody looks at in a terminal: nothing is cut off."""
_FAILURES = (
    lm.LazyMemError,
    ValueError,
    ImportError,
    MemoryError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    CalledProcessError,
)


class _Verbs(click.Group):
    """Turns exceptions into one line and an exit code, and warnings into one line."""

    def invoke(self, ctx: click.Context) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("default", lm.LazyMemWarning)
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt:
                ctx.exit(_EXIT_INTERRUPTED)
            except _FAILURES as exc:
                raise click.ClickException(_one_line(exc)) from exc
            except OSError as exc:
                if exc.errno == errno.EPIPE:
                    raise  # the reader of stdout has gone: click knows
                raise click.ClickException(_one_line(exc)) from exc


def _one_line(exc: BaseException) -> str:
    text = str(exc) or type(exc).__name__
    if isinstance(exc, OSError) and exc.strerror and exc.filename:
        text = f"{os.fsdecode(exc.filename)}: {exc.strerror}"
    return _printable(" ".join(text.split()))


def _printable(text: str) -> str:
    """Escape what could steer a terminal: names in a file are anybody's."""
    return text if text.isprintable() else repr(text)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"Warning: {_one_line(Warning(str(message)))}", err=True)


def _byte_count(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    """Read a number of bytes, as in 65536, 64K or 1M."""
    if value is None:
        return None
    digits = value.upper().removesuffix("B").removesuffix("I")
    shift = {"K": 10, "M": 20}.get(digits[-1:], 0)
    try:
        return int(digits[:-1] if shift else digits) << shift
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is no number of bytes: try 65536, 64K or 1M"
        ) from None


def _bars() -> bool:
    return sys.stderr.isatty()


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def _print_table(table: Table) -> None:
    width = None if sys.stdout.isatty() else _WIDE
    Console(width=width, highlight=False).print(table)


def _table(*columns: str, numbers: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        justify = "right" if column in numbers else "left"
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table


def _cells(*values: object) -> list[Text]:
    """Show text as it is, without markup."""
    return [Text(_printable(str(value))) for value in values]


def _print_facts(facts: Mapping[str, object]) -> None:
    table = _table("fact", "value")
    table.show_header = False
    for name, value in facts.items():
        table.add_row(*_cells(name, "-" if value is None else value))
    _print_table(table)


def _ratio(nbytes: int, stored_bytes: int) -> str:
    return f"{nbytes / stored_bytes:.1f}" if stored_bytes else "-"


_file_argument = click.argument("file", type=click.Path())
_at_option = click.option(
    "--at",
    metavar="SNAPSHOT",
    help="An earlier state: a snapshot's name or number, as log lists them.",
)
_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, for programs."
)


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 all is well; 1 an error; 2 wrong usage; "
    "3 verify found damage; 130 interrupted.",
)
@click.version_option(lm.__version__, prog_name="lazymem")
def cli() -> None:
    """Compressed array stores that open at once as numpy arrays."""


# ---- pack and unpack -----------------------------------------------------------------


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
    callback=_byte_count,
    help="What is compressed and filled as one: a power of two from 4K to 16M.",
)
@click.option(
    "--shuffle/--no-shuffle",
    default=None,
    help="Byte shuffle by element.  Default: by trial on the data.",
)
@_json_option
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
            progress=_bars(),
        )
    except TypeError as exc:  # a dtype that can't be stored
        raise click.ClickException(_one_line(exc)) from exc
    seconds = time.perf_counter() - start
    with lm.open(out) as store:
        nbytes = sum(store.info(name).nbytes for name in store)
        objects = len(store)
    if as_json:
        _print_json(
            {
                "path": out,
                "objects": objects,
                "nbytes": nbytes,
                "file_bytes": file_bytes,
                "seconds": seconds,
            }
        )
        return
    _print_facts(
        {
            "store": out,
            "objects": objects,
            "bytes": decimal(nbytes),
            "file": decimal(file_bytes),
            "ratio": _ratio(nbytes, file_bytes),
            "seconds": f"{seconds:.2f}",
        }
    )


@cli.command()
@_file_argument
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
@_at_option
@_json_option
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
    with _open(file, at) as store:
        infos = [store.info(name) for name in dict.fromkeys(names or store)]
        targets = [_target(folder, info.name) for info in infos]
        taken = [path for path in targets if os.path.lexists(path)]
        if taken and not force:
            raise FileExistsError(
                f"{taken[0]} exists: --force replaces it"
                + (f", and {len(taken) - 1} more" if len(taken) > 1 else "")
            )
        total = sum(info.nbytes for info in infos)
        with meter(_bars(), total, f"unpack {os.path.basename(file)}") as m:
            for info, path in zip(infos, targets, strict=True):
                _unpack_object(store, info, path, m)
    if as_json:
        _print_json({i.name: str(p) for i, p in zip(infos, targets, strict=True)})
    else:
        for path in targets:
            click.echo(_printable(str(path)))


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


# ---- what is in a store --------------------------------------------------------------


def _open(file: str, at: str | None) -> lm.Store:
    if at is None:
        return lm.open(file)
    with lm.open(file) as store:
        found = _snapshot(store, at)
    return lm.open(file, at=found)


def _snapshot(store: lm.Store, text: str) -> str | int:
    """Take a snapshot's name; where none has it, a number."""
    is_name = any(entry.name == text for entry in store.log())
    return int(text) if text.isdecimal() and not is_name else text


def _object_json(info: lm.ObjectInfo) -> dict[str, Any]:
    fields = info.to_json()
    del fields["index"]
    return {"name": info.name, "nbytes": info.nbytes, "chunks": info.chunks, **fields}


@cli.command()
@_file_argument
@_at_option
@_json_option
def ls(file: str, at: str | None, as_json: bool) -> None:
    """List the objects of FILE."""
    with _open(file, at) as store:
        infos = [store.info(name) for name in store]
    if as_json:
        _print_json([_object_json(info) for info in infos])
        return
    numbers = ("bytes", "stored", "ratio")
    table = _table("name", "shape", "dtype", *numbers, "codec", numbers=numbers)
    for info in infos:
        sizes = (
            decimal(info.nbytes),
            decimal(info.stored_bytes),
            _ratio(info.nbytes, info.stored_bytes),
        )
        row = _cells(info.name, info.shape, info.dtype, *sizes, info.codec)
        table.add_row(*row)
    _print_table(table)


@cli.command()
@_file_argument
@click.argument("name", required=False)
@_at_option
@_json_option
def info(file: str, name: str | None, at: str | None, as_json: bool) -> None:
    """Show facts about FILE, or about its object NAME."""
    with _open(file, at) as store:
        facts = _object_json(store.info(name)) if name else _store_facts(store)
    if as_json:
        _print_json(facts)
    else:
        _print_facts(facts)


def _store_facts(store: lm.Store) -> dict[str, Any]:
    commit = store.commit
    return {
        "path": store.path,
        "file_bytes": commit.file_bytes,
        "objects": len(store),
        "store_id": commit.store_id,
        "committed": commit.time.isoformat(),
        "sequence": commit.sequence,
        "snapshots": len(store.log()),
        "torn_bytes": commit.torn_bytes,
        "writer": commit.writer,
        "attrs": dict(store.attrs),
    }


@cli.command()
@_file_argument
@_at_option
@click.option(
    "--repair",
    "is_repair",
    is_flag=True,
    help="Let the newest intact state be the last one again; nothing is overwritten.",
)
@_json_option
@click.pass_context
def verify(
    ctx: click.Context, file: str, at: str | None, is_repair: bool, as_json: bool
) -> None:
    """Check every checksum of FILE and decode every chunk.

    Prints a line for each damaged place, and then ends with exit code 3.
    """
    if is_repair:
        if at is not None:
            raise click.UsageError("--repair finds the state itself: leave --at out")
        _repair(file, as_json=as_json)
        return
    objects = nbytes = torn_bytes = 0
    damage: list[Exception]
    try:
        with _open(file, at) as store:
            objects, torn_bytes = len(store), store.commit.torn_bytes
            damage = store.verify(progress=_bars())
            if not damage:
                nbytes = sum(store.info(name).nbytes for name in store)
    except lm.NotAStoreError:
        raise  # not one that can be judged
    except lm.FormatError as exc:
        damage = [exc]
    if as_json:
        places = [_place(one) for one in damage]
        _print_json(
            {
                "path": file,
                "objects": objects,
                "torn_bytes": torn_bytes,
                "damage": places,
            }
        )
    else:
        for one in damage:
            click.echo(_one_line(one))
        if not damage:
            click.echo(f"{file}: {objects} objects, {decimal(nbytes)}: all intact")
    if damage:
        ctx.exit(_EXIT_DAMAGED)


def _repair(file: str, *, as_json: bool) -> None:
    done = lm.repair(file, progress=_bars())
    if as_json:
        _print_json({"path": file, **asdict(done)})
        return
    for number, why in done.damaged:
        click.echo(f"commit {number}: {why}")
    name = "" if done.name is None else f", {done.name}"
    state = f"commit {done.sequence}{name}"
    if done.is_repaired:
        click.echo(f"{file}: {state} is intact, and is the last state again")
    else:
        click.echo(f"{file}: the last state, {state}, is intact")


def _name(exc: Exception) -> str | None:
    return getattr(exc, "name", None)


def _place(exc: Exception) -> dict[str, Any]:
    return {
        "object": _name(exc),
        "chunk": getattr(exc, "chunk_idx", None),
        "offset": getattr(exc, "offset", None),
        "error": type(exc).__name__,
        "message": _one_line(exc),
    }


# ---- history -------------------------------------------------------------------------

_snapshot_argument = click.argument("snapshot")


def _snapshot_json(entry: lm.SnapshotInfo) -> dict[str, Any]:
    return {
        "sequence": entry.sequence,
        "name": entry.name,
        "time": entry.time.isoformat(),
        "parent": entry.parent,
        "chunks": entry.chunks,
        "bytes_written": entry.bytes_written,
        "message": entry.message,
    }


@cli.command()
@_file_argument
@_json_option
def log(file: str, as_json: bool) -> None:
    """List the snapshots of FILE, oldest first."""
    with lm.open(file) as store:
        entries = store.log()
    if as_json:
        _print_json([_snapshot_json(entry) for entry in entries])
        return
    numbers = ("number", "parent", "chunks", "bytes")
    table = _table("number", "name", "time", *numbers[1:], "message", numbers=numbers)
    for entry in entries:
        table.add_row(
            *_cells(
                entry.sequence,
                "-" if entry.name is None else entry.name,
                entry.time.isoformat(" ", "seconds"),
                "-" if entry.parent is None else entry.parent,
                entry.chunks,
                decimal(entry.bytes_written),
                entry.message,
            )
        )
    _print_table(table)


@cli.command()
@_file_argument
@click.argument("a")
@click.argument("b", required=False)
@_json_option
def diff(file: str, a: str, b: str | None, as_json: bool) -> None:
    """Tell what differs in FILE from snapshot A to B, by default to the last state."""
    with lm.open(file) as store:
        later = None if b is None else _snapshot(store, b)
        found = store.diff(_snapshot(store, a), later)
    if as_json:
        _print_json(asdict(found))
        return
    if found.attrs:
        click.echo("attributes of the store")
    for sign, names in (("-", found.removed), ("+", found.added)):
        for name in names:
            click.echo(f"{sign} {_printable(name)}")
    for name, how in found.changed.items():
        click.echo(f"~ {_printable(name)}: {_told(how)}")


def _told(how: lm.ObjectDiff) -> str:
    parts = ["shape, dtype or order"] if how.is_reshaped else []
    if how.attrs:
        parts.append("attributes")
    if how.chunks:
        runs = [f"{i}" if i + 1 == end else f"{i}:{end}" for i, end in how.ranges]
        if len(runs) > _MOST_RUNS:
            runs[_MOST_RUNS:] = [f"and {len(runs) - _MOST_RUNS} more"]
        where = "" if how.axis is None else f", axis {how.axis} at {', '.join(runs)}"
        parts.append(f"{how.chunks} chunk{'s' if how.chunks > 1 else ''}{where}")
    return "; ".join(parts)


@cli.command()
@_file_argument
@_snapshot_argument
@_json_option
def restore(file: str, snapshot: str, as_json: bool) -> None:
    """Go back to SNAPSHOT: it becomes the last state of FILE.

    Nothing is lost: a last state that is no snapshot is made one first.
    """
    with lm.open(file, "r+") as store:
        found = _snapshot(store, snapshot)
        entries = store.log()
        if not entries or entries[-1].sequence != store.commit.sequence:
            store.snapshot(message=f"before going back to {snapshot}")
        restored = store.restore(found).snapshot
        sequence = store.flush().sequence
    if as_json:
        _print_json({"restored": _snapshot_json(restored), "sequence": sequence})
    else:
        click.echo(f"{file}: shows snapshot {restored.sequence} again")


@cli.command("delete-snapshot")
@_file_argument
@_snapshot_argument
@_json_option
def delete_snapshot(file: str, snapshot: str, as_json: bool) -> None:
    """Forget SNAPSHOT of FILE; its other states stay as they are."""
    with lm.open(file, "r+") as store:
        store.delete_snapshot(_snapshot(store, snapshot))
        entries = store.log()
    if as_json:
        _print_json([_snapshot_json(entry) for entry in entries])
    else:
        click.echo(f"{file}: {len(entries)} snapshots are left")


@cli.command()
@_file_argument
@_json_option
def prune(file: str, as_json: bool) -> None:
    """Give back the space of what no snapshot of FILE needs any more."""
    with lm.open(file, "r+") as store:
        freed = store.prune()
    if as_json:
        _print_json({"path": file, "freed_bytes": freed})
    else:
        click.echo(f"{file}: {decimal(freed)} given back")


@cli.command()
@_file_argument
@click.option("--codec", type=click.Choice(["zstd", "lz4", "none"]))
@click.option("--level", type=int, help="Of the codec; either encodes all anew.")
@_json_option
def compact(file: str, codec: str | None, level: int | None, as_json: bool) -> None:
    """Copy FILE, with its snapshots, without what nobody needs; it takes its place."""
    before = os.path.getsize(file)
    with lm.open(file, "r+") as store:
        store.compact(codec=codec, level=level, progress=_bars())
    after = os.path.getsize(file)
    if as_json:
        _print_json({"path": file, "before_bytes": before, "after_bytes": after})
    else:
        click.echo(f"{file}: {decimal(before)} before, {decimal(after)} now")


# ---- doctor --------------------------------------------------------------------------

_MODES = {
    "full": "arrays fill on first touch, by code and by system calls alike",
    "user-mode only": "arrays fill on first touch by code; system calls (write, send, "
    "...) on memory not yet filled fail with EFAULT: load() the array first",
    "whole-object load": "nothing can fill an array on first touch: it is loaded whole "
    "when it is taken from its store",
}


@cli.command("doctor")
@_json_option
def doctor_verb(as_json: bool) -> None:
    """Tell what this machine allows, and how to make it allow more."""
    machine = doctor.examine()
    fixes = doctor.advise(machine)
    if as_json:
        _print_json(
            {"machine": asdict(machine), "fixes": [asdict(fix) for fix in fixes]}
        )
        return
    _print_facts(_machine_facts(machine))
    for fix in fixes:
        click.echo(f"\n{fix.what} is not available: {fix.why}.")
        if fix.lines:
            click.echo("Any of these allows it:" if fix.lines[1:] else "To allow it:")
        for line in fix.lines:
            click.echo(f"    {line}")
    click.echo(f"\nlazymem works in mode {machine.mode}: {_MODES[machine.mode]}.")


def _machine_facts(machine: doctor.Machine) -> dict[str, object]:
    ways = (machine.device, machine.system_call, machine.user_mode)
    memlock = machine.memlock_bytes
    return {
        "lazymem": f"{machine.lazymem}, Python {machine.python}",
        "kernel": f"Linux {machine.kernel}, {machine.architecture}",
        "cores": machine.cores,
        "page": _kib(machine.page_bytes),
        **{way.name: f"no: {way.error}" if way.error else "yes" for way in ways},
        **({"API": machine.handshake_error} if machine.handshake_error else {}),
        **{f"  {key}": _yes(has) for key, has in machine.features.items()},
        "LAZYMEM_MASK": machine.mask or None,
        "vm.unprivileged_userfaultfd": machine.unprivileged_userfaultfd,
        "CAP_SYS_PTRACE": _yes(machine.sys_ptrace),
        "seccomp": {None: None, 0: "no filter", 1: "strict", 2: "a filter is in force"}[
            machine.seccomp
        ],
        "container": machine.container or "none seen",
        "transparent huge pages": machine.thp,
        **{
            f"huge pages of {_kib(pool.page_bytes)}": (
                f"{pool.pages}, {pool.pages_free} free"
            )
            for pool in machine.huge_pools
        },
        "locked memory": "unlimited" if memlock is None else _kib(memlock),
        "vm.overcommit_memory": machine.overcommit,
        "vm.max_map_count": machine.max_map_count,
        **{
            codec.name: f"{codec.version}, {codec.library}" if codec.version else "none"
            for codec in machine.codecs
        },
    }


def _kib(nbytes: int) -> str:
    return f"{nbytes >> 10} KiB"


def _yes(has: bool | None) -> str | None:
    return None if has is None else "yes" if has else "no"


# ---- demo ----------------------------------------------------------------------------


@cli.command("demo")
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="An empty or new folder for the files, about 1.1 GB, which are kept.  "
    "Default: a temporary one, removed at the end.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="How often each reader answers all questions.",
)
@_json_option
def demo_verb(folder: Path | None, rounds: int, as_json: bool) -> None:
    """Put questions about the Earth and the planets to lazymem and to numpy.load.

    Real data, 989 MB: a land mask of the Earth and the ephemeris JPL DE405.
    """
    demo.find_data()
    with ExitStack() as stack:
        if folder is None:
            temporary = tempfile.TemporaryDirectory(prefix="lazymem-demo-")
            folder = Path(stack.enter_context(temporary))
        folder.mkdir(parents=True, exist_ok=True)
        bar = stack.enter_context(
            tqdm(total=demo.steps(rounds), disable=not _bars(), leave=False)
        )

        def step(text: str) -> None:
            bar.set_description(text)
            bar.update()

        result = demo.run(folder, rounds, step)
    if as_json:
        _print_json(asdict(result))
        return
    for told in result.told:
        click.echo(f"- {told}")
    click.echo(
        f"\n{decimal(result.data_bytes)} of arrays were packed in "
        f"{result.pack_seconds:.2f} s.  Each reader answered in {rounds} fresh "
        "processes, in turns, with the files in the page cache; all answers agree.  "
        "Medians:\n"
    )
    _print_table(_demo_table(result))
    click.echo(
        "\nTimes start after the imports; memory is what the process has gained since "
        "then, pages of mapped files included."
    )


def _demo_table(result: demo.Result) -> Table:
    numbers = (
        "files\nMB",
        "open\nms",
        "first\nanswer\nms",
        f"{len(demo.QUESTIONS)}\nanswers\nms",
        "memory\nMB",
        "count of\nall cells\nms",
        "memory\nMB",
    )
    table = _table("reader", *numbers, numbers=numbers)
    for row in result.rows:
        median = row.median
        table.add_row(
            row.reader,
            _scaled(row.file_bytes, 1e-6),
            _scaled(median.open_seconds, 1e3),
            _scaled(median.first_seconds, 1e3),
            _scaled(median.questions_seconds, 1e3),
            _scaled(median.questions_rss_bytes, 1e-6),
            _scaled(median.count_seconds, 1e3),
            _scaled(median.count_rss_bytes, 1e-6),
        )
    return table


def _scaled(value: float, factor: float) -> str:
    return f"{value * factor:.1f}"
