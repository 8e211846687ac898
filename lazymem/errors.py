# SPDX-License-Identifier: BSD-3-Clause
"""The exceptions of lazymem.

Each is a :class:`LazyMemError` and also the built-in that fits it, so code that knows
only built-in exceptions handles them well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "BudgetError",
    "ChecksumError",
    "ClosedError",
    "FillError",
    "FormatError",
    "HugePagesError",
    "LazyMemError",
    "LazyMemWarning",
    "LockError",
    "NotAStoreError",
    "ObjectNotFoundError",
    "SnapshotNotFoundError",
    "UnsavedChangesError",
    "UnsupportedKernelError",
]


class LazyMemError(Exception):
    """Base of all errors of lazymem.

    Attributes
    ----------
    code : int
        The engine's code; 0 where the error did not come from the engine.
    path : str or None
        The store file.
    name : str or None
        The object in it.
    chunk_idx : int or None
        The chunk of the object.
    offset : int or None
        Where in the file, in bytes.
    expected, found : int or None
        What was compared: checksums, lengths, numbers; the message says which.
    """

    code: int = 0
    path: str | None = None
    name: str | None = None
    chunk_idx: int | None = None
    offset: int | None = None
    expected: int | None = None
    found: int | None = None

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    def as_raiser(self, on_raise: Callable[[], object]) -> type[LazyMemError]:
        """Return a subclass of the exception's class that is made without arguments.

        The interpreter raises exceptions in another thread by class only, and makes the
        instance there.  The instance looks like this exception in all respects.

        Parameters
        ----------
        on_raise : callable
            Called, without arguments, when the instance is made.
        """
        cls = type(self)
        _, (_, args, state) = self.__reduce__()

        def init(instance: LazyMemError) -> None:
            on_raise()
            instance._restore(args, state)

        names = {
            "__init__": init,
            "__module__": cls.__module__,
            "__doc__": cls.__doc__,
            "__reduce__": lambda instance: (_rebuild, (cls, args, state)),
        }
        return type(cls.__name__, (cls,), names)

    def __reduce__(self) -> tuple[Any, ...]:
        """Tell pickle all that there is to know, for a worker's caller to hear it."""
        state = dict(self.__dict__)
        if isinstance(self, OSError):
            state |= {"errno": self.errno, "strerror": self.strerror}
        return _rebuild, (type(self), self.args, state)

    def _restore(self, args: tuple[Any, ...], state: dict[str, Any]) -> None:
        self.args = args
        for name, value in state.items():
            setattr(self, name, value)


def _rebuild(
    cls: type[LazyMemError], args: tuple[Any, ...], state: dict[str, Any]
) -> LazyMemError:
    error = cls()
    error._restore(args, state)
    return error


class FormatError(LazyMemError, ValueError):
    """The file is damaged, or says what makes no sense."""


class NotAStoreError(FormatError):
    """The file is not a store, or is of a later version than this lazymem reads."""


class ChecksumError(FormatError):
    """Bytes of the file do not match their checksum."""


class FillError(LazyMemError, OSError):
    """A chunk could not be read, or its memory was taken away from outside."""


class ClosedError(LazyMemError, ValueError):
    """The store was closed, and a memory of it was used."""


class UnsupportedKernelError(LazyMemError, OSError):
    """The kernel, or this process's rights, lack something that was asked for."""


class BudgetError(LazyMemError, MemoryError):
    """There was no memory for a chunk."""


class HugePagesError(LazyMemError, MemoryError):
    """The system's pool has too few huge pages for an array."""


class ObjectNotFoundError(LazyMemError, KeyError):
    """The store has no object of that name."""


class LockError(LazyMemError, OSError):
    """Another writer has the store open.

    Attributes
    ----------
    pid : int or None
        The process that has it open, where that can be found out.
    """

    pid: int | None = None


class SnapshotNotFoundError(LazyMemError, KeyError):
    """The store has no snapshot of that name."""


class UnsavedChangesError(LazyMemError, ValueError):
    """Changes that no snapshot holds would be lost."""


class LazyMemWarning(RuntimeWarning):
    """Something works less well here than it could; the text says why."""
