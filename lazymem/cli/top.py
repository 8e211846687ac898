# SPDX-License-Identifier: BSD-3-Clause
"""The verb that shows what running processes do."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click
from rich.filesize import decimal
from rich.live import Live

from lazymem import top
from lazymem.cli.app import cli
from lazymem.cli.options import json_option
from lazymem.cli.show import cells, new_table, print_json, print_table

if TYPE_CHECKING:
    from rich.table import Table

_HINT = "start it with LAZYMEM_TOP=1 in its environment"


@cli.command("top")
@click.argument("pid", type=int, required=False)
@click.option("--once", is_flag=True, help="Print the table once, and end.")
@json_option
def top_verb(pid: int | None, once: bool, as_json: bool) -> None:
    """Show the counters of your processes, or of each store of process PID.

    A process shows itself if LAZYMEM_TOP=1 is in its environment.  Ctrl-C ends it.
    """
    samples = _samples(pid)
    if pid is not None and not samples:
        raise click.ClickException(f"process {pid} shows no counters: {_HINT}")
    if as_json:
        print_json(samples)
        return
    if once or not sys.stdout.isatty():
        if not samples:
            click.echo(f"No process of yours shows counters: {_HINT}", err=True)
        print_table(_table(samples, pid))
        return
    with suppress(KeyboardInterrupt), Live(screen=True, auto_refresh=False) as live:
        while pid is None or samples:
            live.update(_table(samples, pid), refresh=True)
            time.sleep(top.INTERVAL_S)
            samples = _samples(pid)


def _samples(pid: int | None) -> list[dict[str, Any]]:
    return [sample for sample in top.samples() if pid in (None, sample["pid"])]


def _table(samples: list[dict[str, Any]], pid: int | None) -> Table:
    """Return a row for each process; or, of one, for each store."""
    numbers = ("arrays", "resident", "dirty", "faults/s", "filled/s", "failures")
    if pid is None:
        table = new_table(
            "pid", "stores", *numbers, "command", numbers=("pid", "stores", *numbers)
        )
        for sample in samples:
            stores = sample["stores"]
            row = (sample["pid"], len(stores), *_sums(stores), sample["command"])
            table.add_row(*cells(*row))
        return table
    table = new_table("store", "mode", *numbers, numbers=numbers)
    for sample in samples:
        for store in sample["stores"]:
            table.add_row(*cells(store["path"], store["mode"], *_sums([store])))
    return table


def _sums(stores: list[dict[str, Any]]) -> tuple[object, ...]:
    def total(name: str) -> Any:
        return sum(store[name] for store in stores)

    return (
        total("arrays"),
        decimal(total("bytes_resident")),
        decimal(total("bytes_dirty")),
        round(total("faults_per_s")),
        decimal(round(total("bytes_filled_per_s"))),
        total("failures"),
    )
