# SPDX-License-Identifier: BSD-3-Clause
"""Arguments and options that verbs share, and what they stand for."""

from __future__ import annotations

from contextlib import suppress

import click

import lazymem as lm


def _object_names(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of an object of the file that was typed before."""
    with suppress(lm.LazyMemError, OSError), lm.open(ctx.params["file"]) as store:
        return [name for name in store if name.startswith(incomplete)]
    return []


name_argument = click.argument("name", required=False, shell_complete=_object_names)
names_argument = click.argument("names", nargs=-1, shell_complete=_object_names)
file_argument = click.argument("file", type=click.Path())
at_option = click.option(
    "--at",
    metavar="SNAPSHOT",
    help="An earlier state: a snapshot's name or number, as log lists them.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, for programs."
)


def byte_count(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
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


def open_at(file: str, at: str | None) -> lm.Store:
    """Open a store, perhaps an earlier state of it, as ``--at`` says."""
    if at is None:
        return lm.open(file)
    with lm.open(file) as store:
        found = find_snapshot(store, at)
    return lm.open(file, at=found)


def find_snapshot(store: lm.Store, text: str) -> str | int:
    """Take a snapshot's name; where none has it, a number."""
    is_name = any(entry.name == text for entry in store.log())
    return int(text) if text.isdecimal() and not is_name else text
