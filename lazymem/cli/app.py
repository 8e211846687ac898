# SPDX-License-Identifier: BSD-3-Clause
"""The command itself: what goes wrong is one line and an exit code."""

from __future__ import annotations

import errno
import warnings
import zipfile
import zlib
from subprocess import CalledProcessError
from typing import Any

import click

import lazymem as lm
from lazymem.cli.show import one_line

EXIT_DAMAGED = 3
_EXIT_INTERRUPTED = 130
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
_NEXT_STEPS = (
    (lm.NotAStoreError, "'lazymem pack' makes a store of another file"),
    (lm.ChecksumError, "'lazymem verify' lists all that is damaged"),
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
                steps = (step for kind, step in _NEXT_STEPS if isinstance(exc, kind))
                text = "; ".join([one_line(exc), *steps])
                raise click.ClickException(text) from exc
            except OSError as exc:
                if exc.errno == errno.EPIPE:
                    raise  # the reader of stdout has gone: click knows
                raise click.ClickException(one_line(exc)) from exc


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"Warning: {one_line(Warning(str(message)))}", err=True)


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 all is well; 1 an error; 2 wrong usage; "
    "3 verify found damage; 130 interrupted.",
)
@click.version_option(lm.__version__, prog_name="lazymem")
def cli() -> None:
    """Compressed array stores that open at once as numpy arrays."""
