# SPDX-License-Identifier: BSD-3-Clause
"""Folders in which a user's running processes meet."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path


def folders() -> list[Path]:
    """Return where files may be; a program may lack the variable that others have."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    own = Path(f"/dev/shm/lazymem-{os.getuid()}")
    return [Path(runtime, "lazymem"), own] if runtime else [own]


def make_own(folder: Path) -> bool:
    """Return whether a folder can be had for this user alone."""
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
    return is_own(folder)


def is_own(folder: Path) -> bool:
    """Return whether a folder is there, and this user's alone."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.getuid()
        and not found.st_mode & 0o077
    )
