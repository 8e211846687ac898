# SPDX-License-Identifier: BSD-3-Clause
"""The verb that lets a shell complete what is typed."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from lazymem.cli.app import cli


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    r"""Print the script that lets SHELL complete verbs, options, files and objects.

    \b
    bash: lazymem completion bash > ~/.local/share/bash-completion/completions/lazymem
    zsh:  lazymem completion zsh > "${fpath[1]}/_lazymem"
    fish: lazymem completion fish > ~/.config/fish/completions/lazymem.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "lazymem", "_LAZYMEM_COMPLETE").source())
