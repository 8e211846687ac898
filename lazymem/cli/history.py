# SPDX-License-Identifier: BSD-3-Clause
"""Verbs for the history of a store, and for its space."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

import click
from rich.filesize import decimal

import lazymem as lm
from lazymem.cli.app import cli
from lazymem.cli.options import file_argument, find_snapshot, json_option
from lazymem.cli.show import (
    bars,
    cells,
    new_table,
    print_json,
    print_table,
    printable,
)

_MOST_RUNS = 8
"""Of rows that differ, told for an object."""


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
@file_argument
@json_option
def log(file: str, as_json: bool) -> None:
    """List the snapshots of FILE, oldest first."""
    with lm.open(file) as store:
        entries = store.log()
    if as_json:
        print_json([_snapshot_json(entry) for entry in entries])
        return
    numbers = ("number", "parent", "chunks", "bytes")
    table = new_table(
        "number", "name", "time", *numbers[1:], "message", numbers=numbers
    )
    for entry in entries:
        table.add_row(
            *cells(
                entry.sequence,
                "-" if entry.name is None else entry.name,
                entry.time.isoformat(" ", "seconds"),
                "-" if entry.parent is None else entry.parent,
                entry.chunks,
                decimal(entry.bytes_written),
                entry.message,
            )
        )
    print_table(table)


@cli.command()
@file_argument
@click.argument("a")
@click.argument("b", required=False)
@json_option
def diff(file: str, a: str, b: str | None, as_json: bool) -> None:
    """Tell what differs in FILE from snapshot A to B, by default to the last state."""
    with lm.open(file) as store:
        later = None if b is None else find_snapshot(store, b)
        found = store.diff(find_snapshot(store, a), later)
    if as_json:
        print_json(asdict(found))
        return
    if found.attrs:
        click.echo("attributes of the store")
    for sign, names in (("-", found.removed), ("+", found.added)):
        for name in names:
            click.echo(f"{sign} {printable(name)}")
    for name, how in found.changed.items():
        click.echo(f"~ {printable(name)}: {_told(how)}")


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
@file_argument
@_snapshot_argument
@json_option
def restore(file: str, snapshot: str, as_json: bool) -> None:
    """Go back to SNAPSHOT: it becomes the last state of FILE.

    Nothing is lost: a last state that is no snapshot is made one first.
    """
    with lm.open(file, "r+") as store:
        found = find_snapshot(store, snapshot)
        entries = store.log()
        if not entries or entries[-1].sequence != store.commit.sequence:
            store.snapshot(message=f"before going back to {snapshot}")
        restored = store.restore(found).snapshot
        sequence = store.flush().sequence
    if as_json:
        print_json({"restored": _snapshot_json(restored), "sequence": sequence})
    else:
        click.echo(f"{file}: shows snapshot {restored.sequence} again")


@cli.command("delete-snapshot")
@file_argument
@_snapshot_argument
@json_option
def delete_snapshot(file: str, snapshot: str, as_json: bool) -> None:
    """Forget SNAPSHOT of FILE; its other states stay as they are."""
    with lm.open(file, "r+") as store:
        store.delete_snapshot(find_snapshot(store, snapshot))
        entries = store.log()
    if as_json:
        print_json([_snapshot_json(entry) for entry in entries])
    else:
        click.echo(f"{file}: {len(entries)} snapshots are left")


@cli.command()
@file_argument
@json_option
def prune(file: str, as_json: bool) -> None:
    """Give back the space of what no snapshot of FILE needs any more."""
    with lm.open(file, "r+") as store:
        freed = store.prune()
    if as_json:
        print_json({"path": file, "freed_bytes": freed})
    else:
        click.echo(f"{file}: {decimal(freed)} given back")


@cli.command()
@file_argument
@click.option("--codec", type=click.Choice(["zstd", "lz4", "none"]))
@click.option("--level", type=int, help="Of the codec; either encodes all anew.")
@json_option
def compact(file: str, codec: str | None, level: int | None, as_json: bool) -> None:
    """Copy FILE, with its snapshots, without what nobody needs; it takes its place."""
    before = os.path.getsize(file)
    with lm.open(file, "r+") as store:
        store.compact(codec=codec, level=level, progress=bars())
    after = os.path.getsize(file)
    if as_json:
        print_json({"path": file, "before_bytes": before, "after_bytes": after})
    else:
        click.echo(f"{file}: {decimal(before)} before, {decimal(after)} now")
