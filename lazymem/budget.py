# SPDX-License-Identifier: BSD-3-Clause
"""How much memory arrays may have: a limit for a store, or for the process."""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from typing import TYPE_CHECKING

from lazymem import _engine
from lazymem.errors import BudgetError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lazymem.arrays import OpenArrays

Limit = int | str | None
"""Bytes; text such as ``"4 GiB"``; ``"auto"``; or None: no limit."""
Spill = str | os.PathLike[str] | None

LIMIT_MIN = 16 << 20
_AUTO_SHARE = 2
_FULL = 15 / 16
"""Of a limit is what can be filled without making room for it, and for buffers."""
_TEXT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?\s*", re.IGNORECASE)


def limit_bytes(limit: int | str) -> int:
    """Return a limit in bytes.

    Raises
    ------
    ValueError
        If it makes no sense, or is less than 16 MiB.
    """
    if limit == "auto":
        return max(LIMIT_MIN, _engine.memory_available() // _AUTO_SHARE)
    match = _TEXT.fullmatch(limit) if isinstance(limit, str) else None
    if match:
        base = 1024 if match[3] else 1000
        found = int(float(match[1]) * base ** " kmgt".index(match[2].lower() or " "))
    elif isinstance(limit, int) and not isinstance(limit, bool):
        found = limit
    else:
        raise ValueError(
            f"limit must be bytes, a text such as '4 GiB', or 'auto', not {limit!r}"
        )
    if found < LIMIT_MIN:
        raise ValueError(
            f"limit={limit!r} is {found} bytes; it must be 16 MiB or more, for the "
            "chunks that threads read at the same time"
        )
    return found


_lock = threading.Lock()
_default: _engine.BudgetHandle | None = None  # under _lock


def new_budget(limit: Limit, spill: Spill) -> _engine.BudgetHandle | None:
    """Return a budget of a store's own, or None for no limit.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is no such folder for what is spilled.
    """
    folder = spill_folder(spill)
    if not stat.S_ISDIR(os.stat(folder).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "spill must be a folder", folder)
    if limit is None:
        return None
    return _engine.BudgetHandle(limit_bytes(limit), folder)


def spill_folder(spill: Spill) -> str:
    """Return the folder for what has no room: ``/tmp`` is memory on many a system."""
    if spill is not None:
        return os.path.abspath(os.fsdecode(spill))
    asked = os.environ.get("TMPDIR")
    if asked or not os.access("/var/tmp", os.W_OK):
        import tempfile  # not for those who need no limit

        return asked or tempfile.gettempdir()
    return "/var/tmp"


def default_budget() -> _engine.BudgetHandle | None:
    """Return the budget of all stores that have none of their own."""
    return _default


def get_limit() -> int | None:
    """Return what :func:`lazymem.set_limit` has set.

    Returns
    -------
    int or None
        Bytes; None: no limit.
    """
    return _default.stats().limit_bytes if _default else None


def set_default_limit(limit: Limit, arrays: Iterable[OpenArrays]) -> None:
    """Change the default, for stores to come and those that are open."""
    global _default
    nbytes = None if limit is None else limit_bytes(limit)
    with _lock:
        if nbytes is None:
            _default = None
        elif _default is None:
            _default = new_budget(nbytes, None)
        else:
            _default.set_limit(nbytes)
        for opened in arrays:
            with opened.lock:
                opened.follow_default()


def check_fits(nbytes: int, region: _engine.RegionHandle) -> None:
    """Refuse to have more of an array in memory at a time than may be.

    Raises
    ------
    BudgetError
        If it is more than 15/16 of the limit.
    """
    limit = region.limit
    if limit is not None and nbytes > limit * _FULL:
        raise BudgetError(
            f"{region.object.path}, object {region.object.name!r}: {nbytes} bytes are "
            f"more than the memory limit of {limit}; raise store.limit, or take a "
            "part at a time"
        )
