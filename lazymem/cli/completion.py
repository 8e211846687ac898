# SPDX-License-Identifier: BSD-3-Clause
"""The verb that lets a shell complete what is typed."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from lazymem.cli.app import cli

_WHERE = """\b
Where the shells look for it:
bash  ~/.local/share/bash-completion/completions/lazymem
zsh   _lazymem, in a folder of $fpath
fish  ~/.config/fish/completions/lazymem.fish
"""


@cli.command(epilog=_WHERE)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that lets SHELL complete verbs, options, files and objects."""
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "lazymem", "_LAZYMEM_COMPLETE").source())
