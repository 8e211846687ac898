# SPDX-License-Identifier: BSD-3-Clause
"""The ``lazymem`` command, also run by ``python -m lazymem``."""

from __future__ import annotations

import sys

_EXTRA = ("click", "rich", "tqdm")


def main() -> int:
    """Run the command; returns its exit code."""
    try:
        from lazymem.cli import cli
    except ModuleNotFoundError as exc:
        package = (exc.name or "").partition(".")[0]
        if package not in _EXTRA:
            raise
        print(
            f"lazymem: the command needs {package}: pip install 'lazymem[cli]'",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        return 130
    return int(cli(prog_name="lazymem") or 0)


if __name__ == "__main__":
    sys.exit(main())
