# SPDX-License-Identifier: BSD-3-Clause
"""The verb that shows what lazymem is good for."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.filesize import decimal
from tqdm import tqdm

from lazymem import demo
from lazymem.cli.app import cli
from lazymem.cli.options import json_option
from lazymem.cli.show import bars, new_table, print_json, print_table

if TYPE_CHECKING:
    from rich.table import Table


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
@json_option
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
            tqdm(total=demo.steps(rounds), disable=not bars(), leave=False)
        )

        def step(text: str) -> None:
            bar.set_description(text)
            bar.update()

        result = demo.run(folder, rounds, step)
    if as_json:
        print_json(asdict(result))
        return
    for told in result.told:
        click.echo(f"- {told}")
    click.echo(
        f"\n{decimal(result.data_bytes)} of arrays were packed in "
        f"{result.pack_seconds:.2f} s.  Each reader answered in {rounds} fresh "
        "processes, in turns, with the files in the page cache; all answers agree.  "
        "Medians:\n"
    )
    print_table(_demo_table(result))
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
    table = new_table("reader", *numbers, numbers=numbers)
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
