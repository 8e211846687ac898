# SPDX-License-Identifier: BSD-3-Clause
"""The verbs of the ``lazymem`` command.

Data go to stdout, prose and bars to stderr.  What goes wrong is one line, never a
traceback.
"""

from lazymem.cli import completion, content, convert, demo, doctor, history, top
from lazymem.cli.app import cli

__all__ = [
    "cli",
    "completion",
    "content",
    "convert",
    "demo",
    "doctor",
    "history",
    "top",
]
