# SPDX-License-Identifier: BSD-3-Clause
"""What a user may give to be stored: arrays, and files of the known formats."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lazymem import formats
from lazymem.errors import LazyMemWarning
from lazymem.sources import Source, check_dtype, from_array

if TYPE_CHECKING:
    from contextlib import ExitStack

    from lazymem.formats.contents import Contents


def collect(
    arrays: Any,
    named: Mapping[str, Any],
    only: str | Sequence[str] | None,
    stack: ExitStack,
) -> tuple[dict[str, Source], dict[str, Any]]:
    """Return the sources of what was given to `save`, by name, and files' attributes.

    Parameters
    ----------
    arrays, only
        As `lazymem.save` documents them.
    named : mapping
        The keyword arguments.
    stack : contextlib.ExitStack
        Keeps the files open.
    """
    patterns = [only] if isinstance(only, str) else only
    found: dict[str, Source] = {}
    attrs: dict[str, Any] = {}

    def add(name: str, source: Source) -> None:
        if not name:
            raise ValueError("an object's name must not be empty")
        if name in found:
            raise ValueError(
                f"two objects are named {name!r}; in Python, save(out, {{'a': path}}) "
                "puts 'a/' before the names of a file's objects"
            )
        check_dtype(source.dtype, name)
        found[name] = source

    def add_paths(paths: Sequence[Any]) -> None:
        for path in paths:
            contents = _open_file(path, patterns, stack)
            for name, source in contents.sources.items():
                add(name, source)
            if len(paths) == 1:
                attrs.update(contents.attrs)
            elif contents.attrs:  # those of one file say nothing of another
                attrs[os.path.basename(path)] = contents.attrs

    if isinstance(arrays, Mapping):
        named = {**arrays, **named}
    elif _is_path(arrays):
        add_paths([arrays])
    elif isinstance(arrays, (list, tuple)) and all(map(_is_path, arrays)):
        add_paths(arrays)
    elif arrays is not None:
        add("arr_0", from_value(arrays, "arr_0", stack))
    for name, value in named.items():
        if not isinstance(name, str):
            raise TypeError(f"an object's name must be a str, not {name!r}")
        if not _is_path(value):
            add(name, from_value(value, name, stack))
            continue
        contents = _open_file(value, patterns, stack)
        several = len(contents.sources) > 1
        for inner, source in contents.sources.items():
            add(f"{name}/{inner}" if several else name, source)
        if contents.attrs:
            attrs[name] = contents.attrs
    if patterns and not found:
        raise ValueError(f"no object's name matches {' or '.join(patterns)}")
    return found, attrs


def from_value(value: Any, name: str, stack: ExitStack) -> Source:
    """Take what was given as one array: array_like, or a file that holds one.

    Raises
    ------
    ValueError
        If the file holds another number of arrays.
    """
    if _is_path(value):
        sources = _open_file(value, None, stack).sources
        if len(sources) != 1:
            raise ValueError(
                f"object {name!r}: {value} holds {len(sources)} arrays, not one"
            )
        return next(iter(sources.values()))
    array = value if isinstance(value, np.ndarray) else np.asarray(value)
    check_dtype(array.dtype, name)
    return from_array(array)


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike))


def _open_file(path: Any, only: Sequence[str] | None, stack: ExitStack) -> Contents:
    """Open a file, and say what of it can't be kept."""
    path = os.fspath(path)
    contents = formats.open_file(path, stack).only(only)
    if contents.left_out:
        reasons = "; ".join(f"{what}: {why}" for what, why in contents.left_out.items())
        if not contents.sources and only is None:
            raise ValueError(f"{path}: nothing in it can be stored: {reasons}")
        warnings.warn(f"{path}: left out: {reasons}", LazyMemWarning, stacklevel=5)
    return contents
