# SPDX-License-Identifier: BSD-3-Clause
"""Compressed array stores that open in O(1) as real numpy arrays."""

from lazymem._version import __version__
from lazymem.array import LazyArray, Pin
from lazymem.arrays import set_limit
from lazymem.attrs import Attrs
from lazymem.budget import get_limit
from lazymem.diff import Diff, ObjectDiff
from lazymem.errors import (
    BudgetError,
    ChecksumError,
    ClosedError,
    FillError,
    FormatError,
    HugePagesError,
    LazyMemError,
    LazyMemWarning,
    LockError,
    NotAStoreError,
    ObjectNotFoundError,
    SnapshotNotFoundError,
    UnsavedChangesError,
    UnsupportedKernelError,
)
from lazymem.history import FlushInfo, RestoreInfo, SnapshotInfo
from lazymem.manifest import ObjectInfo
from lazymem.repair import RepairInfo, repair
from lazymem.stats import (
    BudgetStats,
    Commit,
    RegionStats,
    Residency,
    StoreStats,
    WarmStats,
)
from lazymem.store import Store, open
from lazymem.writer import ObjectWriter, Writer, save

__all__ = [
    "Attrs",
    "BudgetError",
    "BudgetStats",
    "ChecksumError",
    "ClosedError",
    "Commit",
    "Diff",
    "FillError",
    "FlushInfo",
    "FormatError",
    "HugePagesError",
    "LazyArray",
    "LazyMemError",
    "LazyMemWarning",
    "LockError",
    "NotAStoreError",
    "ObjectDiff",
    "ObjectInfo",
    "ObjectNotFoundError",
    "ObjectWriter",
    "Pin",
    "RegionStats",
    "RepairInfo",
    "Residency",
    "RestoreInfo",
    "SnapshotInfo",
    "SnapshotNotFoundError",
    "Store",
    "StoreStats",
    "UnsavedChangesError",
    "UnsupportedKernelError",
    "WarmStats",
    "Writer",
    "__version__",
    "get_limit",
    "open",
    "repair",
    "save",
    "set_limit",
]


def load_ipython_extension(shell: object) -> None:
    """Give an IPython shell the magics of ``%load_ext lazymem``."""
    from lazymem import ipython

    ipython.register(shell)  # type: ignore[arg-type, unused-ignore]


def unload_ipython_extension(shell: object) -> None:
    """Close the stores that the magics have open."""
    from lazymem import ipython

    ipython.unregister(shell)  # type: ignore[arg-type, unused-ignore]
