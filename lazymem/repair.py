# SPDX-License-Identifier: BSD-3-Clause
"""Going back to the newest intact state of a damaged store file."""

from __future__ import annotations

import os
from dataclasses import dataclass

from lazymem import _engine, files, history, manifest
from lazymem.errors import FormatError, LazyMemError, LockError, NotAStoreError
from lazymem.progress import Progress, meter

_END = 2**63 - 1


@dataclass(frozen=True)
class RepairInfo:
    """What a repair has found, and done."""

    sequence: int
    """Number of the newest intact commit."""
    name: str | None
    """Its name, if it is a snapshot that has one."""
    damaged: tuple[tuple[int, str], ...]
    """Numbers of the commits after it, newest first, and what is wrong with each."""
    is_repaired: bool
    """Whether the intact state was committed anew: False if it was the last one."""


def repair(path: str | os.PathLike[str], *, progress: Progress = None) -> RepairInfo:
    """Make the newest intact state of a store its last one.

    Parameters
    ----------
    path : str or path-like
        The file.
    progress : bool or callable, optional
        True for a bar, or a function of (bytes done, bytes in all).

    Returns
    -------
    RepairInfo

    Raises
    ------
    FormatError
        If there is no intact state.
    LockError
        If a writer has the store open.
    OSError
        If the file can't be read or written.

    Notes
    -----
    Checks every chunk of the last state, and, where that is damaged, of the one before,
    and so on.  Nothing is overwritten: the state that is found is committed once more,
    at the end of the file.

    Examples
    --------
    >>> import numpy as np, lazymem as lm
    >>> _ = lm.save("intact.lzm", {"x": np.arange(10)})
    >>> lm.repair("intact.lzm").is_repaired
    False
    """
    path = os.fspath(path)
    damaged: list[tuple[int, str]] = []
    before = _END
    while True:
        try:
            state = _engine.StoreHandle.before(path, before)
        except NotAStoreError:
            raise
        except FormatError as exc:
            told = "; ".join(f"commit {number}: {why}" for number, why in damaged)
            error = FormatError(
                f"{path}: no state of the store is intact: {told or exc}"
            )
            error.path = path
            raise error from None
        why = _damage(path, state, progress)
        if why is None:
            break
        damaged.append((int(state.commit.sequence), why))
        before = int(state.commit.offset)
    is_last = not damaged and _is_last(path, state)
    if not is_last:
        _commit_again(path, before)
    content = manifest.decode(state.manifest(), path)
    about = content.get("snapshot") or {}
    return RepairInfo(
        sequence=int(state.commit.sequence),
        name=about.get("name"),
        damaged=tuple(damaged),
        is_repaired=not is_last,
    )


def _is_last(path: str, state: _engine.StoreHandle) -> bool:
    """Return whether this is the state that opening the store gives."""
    try:
        last = _engine.StoreHandle(path)
    except FormatError:
        return False
    return int(last.commit.offset) == int(state.commit.offset)


def _damage(path: str, state: _engine.StoreHandle, progress: Progress) -> str | None:
    """Return what is wrong with a state; None: nothing."""
    try:
        content = manifest.decode(state.manifest(), path)
        infos = [
            manifest.object_info(path, name, entry)
            for name, entry in content["objects"].items()
        ]
        history.read(path, content, state.commit).log()
        total = sum(info.nbytes for info in infos)
        with meter(progress, total, f"verify {os.path.basename(path)}") as m:
            for info in infos:
                if info.nbytes == 0:
                    continue
                obj = _engine.ObjectHandle(
                    state,
                    info.name,
                    info.nbytes,
                    info.chunk_bytes,
                    info.shuffle,
                    info.index,
                )
                job = obj.verify()
                try:
                    job.wait_quietly(m.part(info.nbytes))
                    errors = job.errors(1)
                finally:
                    job.close()
                if errors:
                    return str(errors[0])
    except LazyMemError as exc:
        return str(exc)
    return None


def _commit_again(path: str, before: int) -> None:
    try:
        store = _engine.StoreHandle.before(path, before, is_writable=True)
    except LockError:
        raise files.locked(path) from None
    content = manifest.decode(store.manifest(), path)
    known = history.read(path, content, store.commit)
    parent = history.parent_of(path, content, store.commit)
    writer = _engine.WriterHandle(path, store)
    try:
        writer.commit(
            manifest.encode(
                content["objects"],
                content["attrs"],
                snapshot=None,
                parent=parent,
                history=known.entries,
            )
        )
    finally:
        writer.close()
