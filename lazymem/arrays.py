# SPDX-License-Identifier: BSD-3-Clause
"""The arrays that a store has given out, and how their memory is opened."""

from __future__ import annotations

import errno
import os
import sys
import threading
import warnings
import weakref
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from lazymem import _engine
from lazymem.array import LazyArray, bind
from lazymem.budget import (
    Limit,
    Spill,
    default_budget,
    limit_bytes,
    new_budget,
    set_default_limit,
)
from lazymem.errors import HugePagesError, LazyMemWarning, UnsupportedKernelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lazymem.manifest import ObjectInfo
    from lazymem.shared import SharedMemory

Mode = Literal["r", "c", "r+"]
OnError = Literal["raise", "sigbus"]
Pages = Literal["2M", "1G", "auto"] | None

_PRUNE_MIN = 64


class OpenArrays:
    """The arrays of a store that are open, by name.

    Its methods are called with `lock` held, which guards as well what the store may
    change of its contents.

    Parameters
    ----------
    mode : {"r", "c", "r+"}
        What may be done to their memory.  In the others than ``"r"`` all arrays are
        kept: what was written is nowhere else.
    on_error, pages, spill
        As :func:`lazymem.open` documents them.
    budget : BudgetHandle, optional
        What bounds their memory, if not the process's budget.
    join : callable, optional
        Returns the memory that they share with other processes', which nothing bounds.
    """

    def __init__(
        self,
        mode: Mode,
        on_error: OnError,
        pages: Pages,
        budget: _engine.BudgetHandle | None,
        spill: Spill,
        join: Callable[[], SharedMemory] | None = None,
    ) -> None:
        self.lock = threading.Lock()
        self.mode = mode
        self._on_error, self._pages = on_error, pages
        self._spill = spill
        self._own_budget = budget
        self._join = join
        self._shared: SharedMemory | None = None
        self._open: dict[str, weakref.ref[LazyArray]] = {}
        # A plain view of an array can outlive it.
        self._regions: list[weakref.ref[_engine.RegionHandle]] = []
        self._prune_at = _PRUNE_MIN
        self._kept: dict[str, LazyArray] = {}
        _all[id(self)] = weakref.ref(self, partial(_all.pop, id(self)))

    def get(self, name: str) -> LazyArray | None:
        """Return the array of that name, if it is open."""
        reference = self._open.get(name)
        return reference() if reference else None

    def open(self, info: ObjectInfo, obj: _engine.ObjectHandle | None) -> LazyArray:
        """Make the array of an object; it has no handle if it is empty."""
        array = self._make(info, obj)
        self._open[info.name] = weakref.ref(array)
        if self.mode != "r":
            self._kept[info.name] = array
        return array

    @property
    def is_shared(self) -> bool:
        """Whether their memory is other processes', too, or is to be."""
        return bool(self._join or self._shared)

    @property
    def budget(self) -> _engine.BudgetHandle | None:
        """What bounds their memory: the store's own budget, or the process's."""
        return None if self.is_shared else self._own_budget or default_budget()

    def set_limit(self, limit: Limit) -> None:
        """Give the store another limit of its own, or none."""
        nbytes = None if limit is None else limit_bytes(limit)
        if self.is_shared and nbytes is not None:
            raise ValueError(
                "a store that was opened with shared=True has no limit: its memory is "
                "other processes', too"
            )
        if self._own_budget is None and nbytes is not None:
            unfit = [r.object.name for r in self.regions() if not r.can_be_limited]
            if unfit:
                raise ValueError(
                    f"array {unfit[0]!r} is of mode 'c', and was opened without a "
                    "limit: what was written to it is not known; open the store with "
                    "limit="
                )
        if nbytes is not None and self._own_budget is not None:
            self._own_budget.set_limit(nbytes)
            return
        self._own_budget = new_budget(nbytes, self._spill)
        self.follow_default()

    def follow_default(self) -> None:
        """Put the memory under the budget that bounds it now."""
        for region in self.regions():
            if region.can_be_limited and region.budget is not self.budget:
                region.set_budget(self.budget)

    def release(self, name: str, reason: str) -> None:
        """Free an array's memory; whoever touches it is told the reason."""
        array = self.get(name)
        self._open.pop(name, None)
        self._kept.pop(name, None)
        region = array._binding.region if array is not None and array._binding else None
        if region is not None:
            region.object.gone = reason
            region.release()

    def release_all(self) -> None:
        """Free the memory of all arrays."""
        self._kept.clear()
        self._shared = self._join = None  # regions hold what they need
        for region in self.regions():
            region.release()

    def regions(self) -> list[_engine.RegionHandle]:
        """Return the memory of all arrays that are looked at."""
        found = (reference() for reference in self._regions)
        return [region for region in found if region is not None]

    def tracked(self) -> dict[str, _engine.RegionHandle]:
        """Return the memory whose changes a snapshot may hold, by name."""
        found = ((name, array._binding) for name, array in self._kept.items())
        return {
            name: binding.region
            for name, binding in found
            if binding and binding.region and binding.region.is_tracked
        }

    def kept(self) -> dict[str, LazyArray]:
        """Return the arrays that are kept, by name."""
        return dict(self._kept)

    def is_held(self, name: str) -> bool:
        """Return whether somebody else looks at the memory of a kept array."""
        kept, plain = self._kept, 2  # who has it in any case, and getrefcount()
        # A view refers to the array, or, if it is a plain one, to the array's base.
        return name in kept and (
            sys.getrefcount(kept[name]) > plain
            or sys.getrefcount(kept[name].base) > plain
        )

    def _prune(self) -> None:
        """Forget arrays that are gone: a store of many is walked through."""
        arrays = self._open.items()
        self._open = {name: found for name, found in arrays if found() is not None}
        self._regions = [found for found in self._regions if found() is not None]
        self._prune_at = max(_PRUNE_MIN, 2 * len(self._regions))

    def _make(self, info: ObjectInfo, obj: _engine.ObjectHandle | None) -> LazyArray:
        if obj is None:
            array = bind(info, bytearray(1), None)
            array.flags.writeable = self.mode != "r"
            return array
        try:
            region = self._open_region(obj)
        except UnsupportedKernelError as exc:
            if _engine.has_pager():
                raise  # it is what was asked for that this kernel can't do
            _warn_fallback(exc, self.mode)
            array = bind(info, _load_whole(obj), None)
            # In mode "r+" nothing would see what is written.
            array.flags.writeable = self.mode == "c"
            return array
        self._regions.append(weakref.ref(region))
        if len(self._regions) >= self._prune_at:
            self._prune()
        user_mode_only = _warn_user_mode_only()
        memory = region.memory()
        if self.mode == "r":
            memory = memory.toreadonly()
        return bind(info, memory, region, user_mode_only=user_mode_only)

    def _open_region(self, obj: _engine.ObjectHandle) -> _engine.RegionHandle:
        pages = "2M" if self._pages == "auto" else self._pages
        place = self._place(obj.name)
        bound = self.budget  # where nothing is shared there is one
        try:
            return _engine.RegionHandle(
                obj,
                self._on_error,
                is_writable=self.mode != "r",
                is_tracked=self.mode == "r+" or (self.mode == "c" and bool(bound)),
                pages=pages,
                budget=bound,
                shared=place,
            )
        except (HugePagesError, UnsupportedKernelError) as exc:
            if (
                place
                and isinstance(exc, UnsupportedKernelError)
                and _engine.has_pager()
            ):
                _warn_alone(exc, stacklevel=6)
                self._shared = None
                return self._open_region(obj)
            if self._pages != "auto" or not _engine.has_pager():
                raise
            warnings.warn(f"{exc}; here they are used", LazyMemWarning, stacklevel=5)
            self._pages = None
        return self._open_region(obj)

    def _place(self, name: str) -> _engine.SharedPlace | None:
        """Return where an array has memory that is not this process's alone."""
        if self._join:
            try:
                self._shared = self._join()
            except OSError as exc:
                _warn_alone(exc, stacklevel=7)
            self._join = None
        return self._shared.place(name) if self._shared else None


_all: dict[int, weakref.ref[OpenArrays]] = {}


def _living() -> list[OpenArrays]:
    found = (reference() for reference in list(_all.values()))
    return [arrays for arrays in found if arrays is not None]


def set_limit(limit: Limit) -> None:
    """Bound the memory of the arrays of all stores that have no limit of their own.

    Those that were opened with ``shared=True`` are not bound.

    Parameters
    ----------
    limit : int, str or None
        Bytes; a text such as ``"4 GiB"``; ``"auto"``: half of the memory available;
        or None: no limit.  What is in memory beyond it is dropped at once.

    Raises
    ------
    ValueError
        If the limit makes no sense, or is less than 16 MiB.

    Notes
    -----
    Stores of mode ``"c"`` that were opened before are not bound: nobody knows what was
    written to their arrays.  See :func:`lazymem.open` for what a limit means.
    """
    set_default_limit(limit, _living())


def open_regions() -> list[_engine.RegionHandle]:
    """Return the memory of all stores' arrays that is looked at."""
    return [region for arrays in _living() for region in arrays.regions()]


def _after_fork() -> None:
    """Let a child use its stores, whoever held their locks in the parent.

    What it writes is its own: nobody but the parent may append to the file.
    """
    for arrays in _living():
        arrays.lock = threading.Lock()
        if arrays.mode == "r+":
            arrays.mode = "c"


os.register_at_fork(after_in_child=_after_fork)


def _load_whole(obj: _engine.ObjectHandle) -> memoryview:
    try:
        memory = np.empty(obj.nbytes, np.uint8)
    except MemoryError as exc:
        raise MemoryError(
            f"{obj.path}, object {obj.name!r}: {exc}; without userfaultfd an array is "
            "loaded whole ('lazymem doctor' tells how to allow it)"
        ) from None
    obj.read(0, memory.data).wait()
    return memory.data


def _warn_fallback(reason: UnsupportedKernelError, mode: Mode) -> None:
    info = _engine.uffd_probe()
    number = info.user_errno or info.api_errno
    why = errno.errorcode.get(number, str(number)) if number else str(reason)
    cost = " and can't be written to, only replaced" if mode == "r+" else ""
    warnings.warn(
        f"arrays are loaded whole at first access{cost}: userfaultfd is not available "
        f"({why}); 'lazymem doctor' tells how to allow it",
        LazyMemWarning,
        stacklevel=5,
    )


def _warn_alone(reason: Exception, stacklevel: int) -> None:
    warnings.warn(
        f"shared=True: this process has memory of its own: {reason}",
        LazyMemWarning,
        stacklevel,
    )


_user_mode_only: bool | None = None


def _warn_user_mode_only() -> bool:
    """Return whether only user-mode faults are served, and say so the first time."""
    global _user_mode_only
    if _user_mode_only is None:
        _user_mode_only = _engine.user_mode_only()
        if _user_mode_only:
            warnings.warn(
                "this process may serve page faults of user code only: system calls on "
                "memory not yet filled (write(), send(), ...) fail with EFAULT; load() "
                "the array first, or see 'lazymem doctor'",
                LazyMemWarning,
                stacklevel=5,
            )
    return _user_mode_only
