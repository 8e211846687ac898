# SPDX-License-Identifier: BSD-3-Clause
"""How facts look on a terminal, and for programs."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.tree import Tree

_WIDE = 10_000
"""Columns of a table that nobody looks at in a terminal: nothing is cut off."""


def one_line(exc: BaseException) -> str:
    """Tell what went wrong, and with which file."""
    text = str(exc) or type(exc).__name__
    if isinstance(exc, OSError) and exc.strerror and exc.filename:
        text = f"{os.fsdecode(exc.filename)}: {exc.strerror}"
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """Escape what could steer a terminal: names in a file are anybody's."""
    return text if text.isprintable() else repr(text)


def bars() -> bool:
    """Return whether somebody would see a bar of progress."""
    return sys.stderr.isatty()


def print_json(value: Any) -> None:
    """Print for programs."""
    click.echo(json.dumps(value, indent=2))


def print_table(table: Table | Tree) -> None:
    """Print a table or a tree, whole where it is not for a terminal."""
    width = None if sys.stdout.isatty() else _WIDE
    Console(width=width, highlight=False).print(table)


def new_table(*columns: str, numbers: tuple[str, ...] = ()) -> Table:
    """Return an empty table; the columns named in `numbers` are set to the right."""
    table = Table(box=None, pad_edge=False)
    for column in columns:
        justify = "right" if column in numbers else "left"
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table


def cells(*values: object) -> list[Text]:
    """Show text as it is, without markup."""
    return [Text(printable(str(value))) for value in values]


def print_facts(facts: Mapping[str, object]) -> None:
    """Print names and values, one a line."""
    table = new_table("fact", "value")
    table.show_header = False
    for name, value in facts.items():
        table.add_row(*cells(name, "-" if value is None else value))
    print_table(table)


def ratio(nbytes: int, stored_bytes: int) -> str:
    """Tell how much smaller the stored form is."""
    return f"{nbytes / stored_bytes:.1f}" if stored_bytes else "-"
