# SPDX-License-Identifier: BSD-3-Clause
"""Compressed array stores that open in O(1) as real numpy arrays."""

from lazymem._version import __version__
from lazymem.array import LazyArray
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
from lazymem.manifest import ObjectInfo
from lazymem.stats import Commit, RegionStats, Residency, StoreStats
from lazymem.store import Store, open
from lazymem.writer import ObjectWriter, Writer, save

__all__ = [
    "BudgetError",
    "ChecksumError",
    "ClosedError",
    "Commit",
    "FillError",
    "FormatError",
    "HugePagesError",
    "LazyArray",
    "LazyMemError",
    "LazyMemWarning",
    "LockError",
    "NotAStoreError",
    "ObjectInfo",
    "ObjectNotFoundError",
    "ObjectWriter",
    "RegionStats",
    "Residency",
    "SnapshotNotFoundError",
    "Store",
    "StoreStats",
    "UnsavedChangesError",
    "UnsupportedKernelError",
    "Writer",
    "__version__",
    "open",
    "save",
]
