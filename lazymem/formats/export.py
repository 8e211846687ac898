# SPDX-License-Identifier: BSD-3-Clause
"""Objects of a store as files of another format, each complete or not there."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from lazymem import _engine, files
from lazymem.formats import hdf5, npy, npz, zarr
from lazymem.formats.contents import using
from lazymem.progress import Meter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import lazymem as lm

    Write = Callable[[str, lm.Store, list[lm.ObjectInfo], Meter], None]

_WRITERS: dict[str, Write] = {
    ".npz": npz.write,
    ".h5": hdf5.write,
    ".hdf5": hdf5.write,
    ".zarr": zarr.write,
}


def export(
    target: Path,
    store: lm.Store,
    infos: list[lm.ObjectInfo],
    m: Meter,
    *,
    may_replace: bool,
) -> list[Path]:
    """Write objects to a new file or folder, or each to a ``.npy`` file of a folder.

    Parameters
    ----------
    target : Path
        Its suffix says which format; without one of those it is the folder.
    store : Store
        Where they are; their arrays are not touched.
    infos : list of ObjectInfo
        The objects.
    m : Meter
        Is told of the bytes that are written.
    may_replace : bool
        Whether files that exist may be replaced.

    Returns
    -------
    list of Path
        The file of each object.

    Raises
    ------
    ValueError
        If an object's name is no path inside the target.
    FileExistsError
        If there is one.
    FormatError, FillError
        If an object can't be read, or has no place in the format.
    """
    for info in infos:
        parts = info.name.split("/")
        if {"", ".", ".."} & set(parts) or "\0" in info.name:
            raise _no_path(target, info.name)
    write = _WRITERS.get(target.suffix.lower())
    if write is not None:
        if target.is_dir():
            raise FileExistsError(f"{target} exists: remove it, or take another name")
        _check_free([target], may_replace=may_replace)
        with _new(target, may_replace=may_replace) as temporary:
            _run(write, temporary, store, infos, m)
        return [target] * len(infos)
    paths = [_inside(target, info.name) for info in infos]
    _check_free(paths, may_replace=may_replace)
    for info, path in zip(infos, paths, strict=True):
        with _new(path, may_replace=may_replace) as temporary:
            npy.write(temporary, store, info, m)
    return paths


class _Stoppable(Meter):
    """Ends the work that reports its steps, when it is told to."""

    def __init__(self, m: Meter) -> None:
        self._m, self.is_stopped = m, False

    def part(self, nbytes: int) -> Callable[[int, int], None]:
        if self.is_stopped:
            raise KeyboardInterrupt
        return self._m.part(nbytes)


def _run(
    write: Write, path: str, store: lm.Store, infos: list[lm.ObjectInfo], m: Meter
) -> None:
    """Write in a thread of its own: Ctrl-C meets no library half-way."""
    stoppable = _Stoppable(m)
    with ThreadPoolExecutor(1) as thread:
        job = thread.submit(write, path, store, infos, stoppable)
        try:
            job.result()
        except BaseException:
            stoppable.is_stopped = True
            raise


def _inside(folder: Path, name: str) -> Path:
    path = folder / f"{PurePosixPath(name)}.npy"
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise _no_path(folder, name)
    return path


def _no_path(target: Path, name: str) -> ValueError:
    return ValueError(
        f"object {name!r}: its name is no path inside {target}; "
        "open the store from Python to save it under another"
    )


def _check_free(paths: list[Path], *, may_replace: bool) -> None:
    taken = [path for path in paths if os.path.lexists(path)]
    if taken and not may_replace:
        more = f", and {len(taken) - 1} more" if len(taken) > 1 else ""
        raise FileExistsError(f"{taken[0]} exists: --force replaces it{more}")


@contextmanager
def _new(path: Path, *, may_replace: bool) -> Iterator[str]:
    """Give a name for a file or folder, which is to take its place when complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = files.temporary_name(str(path))
    try:
        with using(str(path)):
            yield temporary
        is_folder = os.path.isdir(temporary)
        _sync(temporary)
        if is_folder or may_replace:
            os.replace(temporary, path)
            _engine.sync_folder(str(path))
        else:
            files.place(temporary, str(path))
    except BaseException:
        if os.path.isdir(temporary):
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            Path(temporary).unlink(missing_ok=True)
        raise


def _sync(path: str) -> None:
    """Bring a file, or all below a folder, to the disk."""
    for folder, _, names in os.walk(path):
        for name in (*names, "."):
            _sync_one(os.path.join(folder, name))
    if not os.path.isdir(path):
        _sync_one(path)


def _sync_one(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
