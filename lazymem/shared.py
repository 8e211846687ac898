# SPDX-License-Identifier: BSD-3-Clause
"""Memory that processes share: whose it is, and what lies where in it.

Who opens a state of a store with ``shared=True`` looks for a process that has done so
before, and takes that one's file in memory; else he makes one.  They meet in a small
file that names the processes and their descriptors, and is read under a lock.  A file
in memory has no name, so it goes with the last process that has it, however that ends.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from lazymem import _engine, manifest, runtime
from lazymem.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_NBYTES_MIN = 1 << 20
"""Smaller objects are not worth a mapping of their own, of 65,530 that there may be."""
_NBYTES_MAX = 1 << 47
_ALIGN = 65536
"""The largest page of any machine."""
_HEADER_BYTES = 64
_LOCK_S = 2.0
_LEAVE_S = 0.1


class SharedMemory:
    """The memory of a state of a store, as all processes of a user have it.

    Parameters
    ----------
    path : str
        The store's file, for errors.
    state : tuple
        What tells the state from all others.
    objects : mapping
        The entries of its manifest.

    Raises
    ------
    OSError
        If there is no place to meet, or no such memory.
    """

    def __init__(
        self, path: str, state: tuple[Any, ...], objects: Mapping[str, Any]
    ) -> None:
        _check_overcommit()
        self._places, states_bytes, nbytes = _lay_out(path, objects)
        token = hashlib.sha256(repr((state, self._places)).encode()).digest()
        file = _folder() / f"{token.hex()[:32]}.shared"
        with _locked(file, _LOCK_S) as meeting:
            owners = _read(meeting)
            fd = _find(owners, token, nbytes)
            if fd is None:
                _sweep(file.parent)
                owners, fd = _living(owners), _make(token, nbytes)
            try:
                self._handle = _engine.SharedHandle(fd, states_bytes)
                self.me = _Owner(os.getpid(), fd, os.fstat(fd).st_ino)
                _write(meeting, [*owners, self.me])
            except BaseException as exc:
                os.close(fd)
                if isinstance(exc, OSError) and exc.filename is None:
                    exc.filename = str(file)
                raise
        weakref.finalize(self, _leave, file, self.me)

    def place(self, name: str) -> _engine.SharedPlace | None:
        """Return where an object is; None for a small one."""
        found = self._places.get(name)
        return _engine.SharedPlace(self, self._handle, *found) if found else None


def _lay_out(
    path: str, objects: Mapping[str, Any]
) -> tuple[dict[str, tuple[int, int]], int, int]:
    """Return of each object where it and its states are, and how long all that is."""
    infos = []
    for name in objects:
        with suppress(FormatError):  # whoever opens the object is told
            info = manifest.object_info(path, name, objects[name])
            if info.nbytes >= _NBYTES_MIN:
                infos.append(info)
    states_bytes = _round_up(_HEADER_BYTES + sum(info.chunks for info in infos))
    places = {}
    states, offset = _HEADER_BYTES, states_bytes
    for info in infos:
        places[info.name] = (offset, states)
        states += info.chunks
        offset += _round_up(info.nbytes)
    if offset > _NBYTES_MAX:
        raise OSError(errno.ENOMEM, f"{offset} bytes are more than addresses reach")
    return places, states_bytes, offset


def _round_up(nbytes: int) -> int:
    return -(-nbytes // _ALIGN) * _ALIGN


def _check_overcommit() -> None:
    """Refuse memory that is counted page by page, and may run out at any touch."""
    with suppress(FileNotFoundError), open("/proc/sys/vm/overcommit_memory") as file:
        if file.read().strip() == "2":
            raise OSError(errno.ENOMEM, "vm.overcommit_memory=2 counts each page of it")


# ---- where they meet -----------------------------------------------------------------


class _Owner(NamedTuple):
    """A process that has the memory."""

    pid: int
    fd: int
    inode: int
    """Of the memory: numbers of processes and descriptors are used again."""


def _folder() -> Path:
    # First the one that does not depend on a variable.
    for folder in reversed(runtime.folders()):
        if runtime.make_own(folder):
            return folder
    raise OSError("there is no folder of this user alone, in /dev/shm, to meet in")


@contextmanager
def _locked(path: Path, seconds: float) -> Iterator[int]:
    """Open a file that the last process removes, and keep others away from it."""
    deadline = time.monotonic() + seconds
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        fd = os.open(path, flags, 0o600)
        try:
            if _lock(fd, path):
                yield fd
                return
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # a child of another thread may have it, too
            os.close(fd)
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path}: another process has it locked")
        time.sleep(0.001)


def _lock(fd: int, path: Path) -> bool:
    with suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(fd), path.stat())
    return False


def _read(meeting: int) -> list[_Owner]:
    text = os.pread(meeting, 1 << 20, 0).decode("ascii", "replace")
    owners = []
    for line in text.splitlines():
        with suppress(ValueError, TypeError):
            owners.append(_Owner(*map(int, line.split())))
    return owners


def _living(owners: list[_Owner]) -> list[_Owner]:
    return [owner for owner in owners if os.path.exists(f"/proc/{owner.pid}")]


def _write(meeting: int, owners: list[_Owner]) -> None:
    text = "".join(f"{owner.pid} {owner.fd} {owner.inode}\n" for owner in owners)
    os.ftruncate(meeting, os.pwrite(meeting, text.encode(), 0))


def _leave(file: Path, me: _Owner) -> None:
    """Let others look elsewhere; a child does not speak for its parent."""
    with suppress(OSError):  # the program may have closed it
        if os.fstat(me.fd).st_ino == me.inode and _is_memory(f"/proc/self/fd/{me.fd}"):
            os.close(me.fd)
    if me.pid != os.getpid():
        return
    with suppress(OSError), _locked(file, _LEAVE_S) as meeting:
        others = [owner for owner in _living(_read(meeting)) if owner != me]
        _write(meeting, others)
        if not others:
            file.unlink()


def _sweep(folder: Path) -> None:
    """Remove the files of processes that could not do it themselves."""
    for file in folder.glob("*.shared"):
        with suppress(OSError), _locked(file, 0) as meeting:  # not our own
            if not _living(_read(meeting)):
                file.unlink()


# ---- the memory ----------------------------------------------------------------------


def _make(token: bytes, nbytes: int) -> int:
    fd = _engine.make_shared(nbytes)
    try:
        os.pwrite(fd, token, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_memory(link: str) -> bool:
    return os.readlink(link).startswith("/memfd:lazymem")


def _find(owners: list[_Owner], token: bytes, nbytes: int) -> int | None:
    """Return a descriptor of the memory that one of the processes has."""
    for owner in owners:
        link = f"/proc/{owner.pid}/fd/{owner.fd}"
        with suppress(OSError):  # it has ended, or is not to be looked at
            if not _is_memory(link):
                continue
            with open(link, "r+b", buffering=0) as file:
                if _is_it(file.fileno(), owner, token, nbytes):
                    return os.dup(file.fileno())
    return None


def _is_it(fd: int, owner: _Owner, token: bytes, nbytes: int) -> bool:
    found = os.fstat(fd)
    return (
        (found.st_ino, found.st_size) == (owner.inode, nbytes)
        and found.st_uid == os.geteuid()
        and os.pread(fd, len(token), 0) == token
    )
