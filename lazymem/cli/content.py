# SPDX-License-Identifier: BSD-3-Clause
"""Verbs that tell what is in a store, and whether it is intact."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from rich.filesize import decimal
from rich.tree import Tree

import lazymem as lm
from lazymem.cli.app import EXIT_DAMAGED, cli
from lazymem.cli.options import (
    at_option,
    file_argument,
    json_option,
    name_argument,
    open_at,
)
from lazymem.cli.show import (
    bars,
    cells,
    new_table,
    one_line,
    print_facts,
    print_json,
    print_table,
    ratio,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.text import Text

_MOST_ROWS = 100
"""Of objects, shown for a group."""
_MOST_LETTERS = 60
"""Of an attribute's value."""


def _object_json(info: lm.ObjectInfo) -> dict[str, Any]:
    fields = info.to_json()
    del fields["index"]
    return {"name": info.name, "nbytes": info.nbytes, "chunks": info.chunks, **fields}


@cli.command()
@file_argument
@at_option
@json_option
def ls(file: str, at: str | None, as_json: bool) -> None:
    """List the objects of FILE."""
    with open_at(file, at) as store:
        infos = [store.info(name) for name in store]
    if as_json:
        print_json([_object_json(info) for info in infos])
        return
    numbers = ("bytes", "stored", "ratio")
    table = new_table("name", "shape", "dtype", *numbers, "codec", numbers=numbers)
    for info in infos:
        sizes = (
            decimal(info.nbytes),
            decimal(info.stored_bytes),
            ratio(info.nbytes, info.stored_bytes),
        )
        row = cells(info.name, info.shape, info.dtype, *sizes, info.codec)
        table.add_row(*row)
    print_table(table)


@cli.command()
@file_argument
@name_argument
@at_option
@json_option
def info(file: str, name: str | None, at: str | None, as_json: bool) -> None:
    """Show facts about FILE and the tree of its objects, or about its object NAME."""
    with open_at(file, at) as store:
        facts = _object_json(store.info(name)) if name else _store_facts(store)
        tree = None if name or as_json else _tree(store)
    if as_json:
        print_json(facts)
        return
    if tree is not None:
        del facts["attrs"]
    print_facts(facts)
    if tree is not None:
        click.echo()
        print_table(tree)


def _tree(store: lm.Store) -> Tree:
    """Return the objects, with attributes, in the groups that their names make."""
    root = Tree(_text(store.path))
    _add_attrs(root, store.attrs)
    groups, rows = {"": root}, Counter[str]()
    for name in store:
        parent, _, leaf = name.rpartition("/")
        rows[parent] += 1
        if rows[parent] > _MOST_ROWS:
            continue
        info = store.info(name)
        sizes = f"{decimal(info.nbytes)}, {decimal(info.stored_bytes)} stored"
        label = f"{leaf}  {info.shape} {info.dtype}, {sizes}"
        _add_attrs(_group(groups, parent).add(_text(label)), info.attrs)
    for parent, count in rows.items():
        if count > _MOST_ROWS:
            more = f"and {count - _MOST_ROWS} more: lazymem ls shows all"
            _group(groups, parent).add(_text(more))
    return root


def _group(groups: dict[str, Tree], name: str) -> Tree:
    if name not in groups:
        parent, _, leaf = name.rpartition("/")
        groups[name] = _group(groups, parent).add(_text(f"{leaf}/"))
    return groups[name]


def _add_attrs(node: Tree, attrs: Mapping[str, Any]) -> None:
    for key, value in attrs.items():
        text = json.dumps(value, ensure_ascii=False)
        if len(text) > _MOST_LETTERS:
            text = f"{text[:_MOST_LETTERS]}..."
        node.add(_text(f"@{key}: {text}"))


def _text(label: str) -> Text:
    (text,) = cells(label)
    return text


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
@file_argument
@at_option
@click.option(
    "--repair",
    "is_repair",
    is_flag=True,
    help="Let the newest intact state be the last one again; nothing is overwritten.",
)
@json_option
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
        with open_at(file, at) as store:
            objects, torn_bytes = len(store), store.commit.torn_bytes
            damage = store.verify(progress=bars())
            if not damage:
                nbytes = sum(store.info(name).nbytes for name in store)
    except lm.NotAStoreError:
        raise  # not one that can be judged
    except lm.FormatError as exc:
        damage = [exc]
    if as_json:
        places = [_place(one) for one in damage]
        print_json(
            {
                "path": file,
                "objects": objects,
                "torn_bytes": torn_bytes,
                "damage": places,
            }
        )
    else:
        for one in damage:
            click.echo(one_line(one))
        if not damage:
            click.echo(f"{file}: {objects} objects, {decimal(nbytes)}: all intact")
    if damage:
        ctx.exit(EXIT_DAMAGED)


def _repair(file: str, *, as_json: bool) -> None:
    done = lm.repair(file, progress=bars())
    if as_json:
        print_json({"path": file, **asdict(done)})
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
        "message": one_line(exc),
    }
