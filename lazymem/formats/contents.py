# SPDX-License-Identifier: BSD-3-Clause
"""What is in a file of another format, and what is wrong with it."""

from __future__ import annotations

import enum
import errno
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from lazymem.attrs import DIMS
from lazymem.errors import FormatError, LazyMemError
from lazymem.extras import needs

if TYPE_CHECKING:
    from lazymem.sources import Bytes, Source

_REFUSED = object()


@dataclass
class Contents:
    """What is in a file."""

    path: str
    """The file."""
    sources: dict[str, Source] = field(default_factory=dict)
    """The arrays."""
    attrs: dict[str, Any] = field(default_factory=dict)
    """Attributes of the file, and below ``"group/"`` those of a group."""
    left_out: dict[str, str] = field(default_factory=dict)
    """What a store can't hold, and why."""

    def add(self, name: str, source: Source) -> None:
        """Add an array; errors of reading it will name it.

        Raises
        ------
        FormatError
            If there are two of that name.
        """
        if name in self.sources:
            raise damaged(self.path, name, "there are two of that name")
        read = source.blocks

        def blocks() -> Iterator[Bytes]:
            done = 0
            with using(self.path), naming(self.path, name):
                for block in read():
                    yield block
                    done += block.nbytes
                if done != source.nbytes:
                    raise ValueError(
                        f"it ends after {done} of {source.nbytes} bytes of data"
                    )

        self.sources[name] = replace(source, blocks=blocks)

    def only(self, patterns: Sequence[str] | None) -> Contents:
        """Return the part whose names match one of some patterns, as of a shell."""
        if patterns is None:
            return self

        def matches(name: str) -> bool:
            return any(fnmatchcase(name, pattern) for pattern in patterns)

        sources = {k: v for k, v in self.sources.items() if matches(k)}
        left_out = {
            k: why
            for k, why in self.left_out.items()
            if k.startswith("@") or matches(k.rpartition("@")[0] or k)
        }
        return replace(self, sources=sources, left_out=left_out)

    def add_group(self, name: str, raw: Mapping[str, Any]) -> None:
        """Add the attributes of a group."""
        attrs = self.json_attrs(raw, name)
        if attrs:
            self.attrs[f"{name}/"] = attrs

    def json_attrs(self, raw: Mapping[str, Any], of: str = "") -> dict[str, Any]:
        """Return the attributes that JSON holds; the others are left out, noted."""
        kept = {}
        for key, value in raw.items():
            plain = _plain(value)
            if plain is _REFUSED:
                where = f"{of}@{key}"
                self.left_out[where] = f"an attribute of type {type(value).__name__}"
            else:
                kept[str(key)] = plain
        return kept


def with_dims(
    attrs: Mapping[str, Any], dims: Sequence[str | None] | None
) -> dict[str, Any]:
    """Return attributes with the names of the dimensions, if there are some.

    One without a name among others is called by its number, as in xarray.
    """
    if not dims or not any(dims):
        return dict(attrs)
    return {DIMS: [dim or f"dim_{i}" for i, dim in enumerate(dims)], **attrs}


def by_group(
    attrs: Mapping[str, Any], root: Any, kind: type
) -> list[tuple[Any, dict[str, Any]]]:
    """Return the groups of a file that is written, each with its part of attributes.

    Parameters
    ----------
    attrs : mapping
        Of the store; as `Contents.attrs`.
    root : Any
        The file; its ``get()`` returns what has a name.
    kind : type
        Of groups.
    """
    rest, found = dict(attrs), []
    for key, value in attrs.items():
        if key[-1:] == "/" and key[:-1] and isinstance(value, dict):
            group = root.get(key[:-1])
            if isinstance(group, kind):
                found.append((group, rest.pop(key)))
    return [*found, (root, rest)]


def _plain(value: Any) -> Any:
    """Return what JSON will give back for a value; floats it has not become text."""
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, np.datetime64):
        return str(value)
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufSUO":
        return _plain(value.tolist())
    if isinstance(value, (str, bytes)):
        try:
            text = value if isinstance(value, str) else value.decode()
            text.encode()  # no lone surrogates
        except UnicodeError:
            return _REFUSED
        return text
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return _REFUSED if _REFUSED in items else items
    if isinstance(value, Mapping):
        inner = {str(key): _plain(item) for key, item in value.items()}
        return _REFUSED if _REFUSED in inner.values() else inner
    return _REFUSED


# ---- errors --------------------------------------------------------------------------


def library(name: str, extra: str) -> Any:
    """Import a format's library.

    Raises
    ------
    ImportError
        If it is not installed; says which extra brings it.
    """
    with needs(extra):
        found = import_module(name)
    return found


def damaged(path: str, name: str | None, reason: object) -> FormatError:
    """Return the error of a file, or of an object in it."""
    error = FormatError(f"{_where(path, name)}: {reason}")
    error.path, error.name = path, name
    return error


def _where(path: str, name: str | None) -> str:
    return path if name is None else f"{path}, object {name!r}"


@contextmanager
def naming(path: str, name: str | None = None) -> Iterator[None]:
    """Let what a library raises be a FormatError that says where.

    Errors of the system stay what they are.
    """
    try:
        yield
    except (LazyMemError, ImportError):
        raise
    except MemoryError as exc:
        raise MemoryError(f"{_where(path, name)}: {exc}") from exc
    except Exception as exc:
        if _is_of_system(exc):
            raise
        reason = exc.args[0] if isinstance(exc, KeyError) and exc.args else exc
        raise damaged(path, name, str(reason) or type(exc).__name__) from exc


@contextmanager
def using(path: str) -> Iterator[None]:
    """Let errors of the system name a file, if they name none."""
    try:
        yield
    except OSError as exc:
        if _is_of_system(exc) and exc.filename is None:
            exc.filename = path
        raise


def _is_of_system(exc: Exception) -> bool:
    """Return whether it is the system's: EINVAL is a bad offset in the file."""
    return isinstance(exc, OSError) and exc.errno not in (None, errno.EINVAL)
