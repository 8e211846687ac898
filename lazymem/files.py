# SPDX-License-Identifier: BSD-3-Clause
"""Store files on the disk: how a new one takes its place, and who writes to one."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from lazymem import _engine
from lazymem.errors import LockError

if TYPE_CHECKING:
    from collections.abc import Iterator

_TRIES = 100
"""How often a file may be replaced by others while it is being locked."""
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def resolve(path: str | os.PathLike[str]) -> str:
    """Return where a file is to be written, through symbolic links.

    Raises
    ------
    IsADirectoryError
        If there is a folder.
    """
    resolved = os.path.realpath(os.fspath(path))
    if os.path.isdir(resolved):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), resolved)
    return resolved


def temporary_name(path: str) -> str:
    """Return a name beside `path` for a file that is not complete."""
    return f"{path}.{os.urandom(6).hex()}.tmp"


def replace(temporary: str, path: str) -> None:
    """Put a complete file in its place, durably; what was there is gone.

    Raises
    ------
    LockError
        If a writer has what is there open: it would write to a file without a name.
    """
    with _locked(path):
        take_place(temporary, path)


def take_place(temporary: str, path: str) -> None:
    """Put a complete file in the place of one of which the caller is the writer."""
    with suppress(FileNotFoundError):
        os.chmod(temporary, os.stat(path).st_mode & 0o7777)
    os.replace(temporary, path)
    _engine.sync_folder(path)


def place(temporary: str, path: str) -> None:
    """Put a complete file where there is none, durably.

    Raises
    ------
    FileExistsError
        If there is one.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise file_exists(path) from None
    except OSError as exc:
        # Without hard links nobody can tell who was first.
        if exc.errno not in _NO_LINKS:
            raise
        if os.path.lexists(path):
            raise file_exists(path) from None
        os.rename(temporary, path)
    else:
        os.unlink(temporary)
    try:
        _engine.sync_folder(path)
    except OSError:
        os.unlink(path)  # a later sync of the folder may not cover it any more
        raise


def file_exists(path: str) -> FileExistsError:
    """Return the error of a file that is not to be replaced."""
    return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)


# ---- who writes ----------------------------------------------------------------------


def check_unlocked(path: str) -> None:
    """Raise LockError if a writer has the file open."""
    with _locked(path):
        pass


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Keep writers away from the file, if there is one."""
    fd = _lock(path)
    try:
        yield
    finally:
        if fd is not None:
            os.close(fd)


def _lock(path: str) -> int | None:
    for _ in range(_TRIES):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, PermissionError):
            return None  # who may not read it may still replace it, as others do
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(path)):
                    return fd
        except BlockingIOError:
            os.close(fd)
            raise locked(path) from None
        except OSError:
            return fd  # a file system without locks has no writers that hold one
        os.close(fd)
    raise locked(path)


def has_writer(path: str) -> bool:
    """Return whether a process that this one can see writes to a file now."""
    return _lock_holder(path) is not None


def locked(path: str) -> LockError:
    """Return the error of a file that another writer has open, saying who."""
    pid = _lock_holder(path)
    if pid is None:
        who = "another process"
    elif pid == os.getpid():
        who = "this process"
    else:
        who = f"process {pid} ({command(pid)})"
    error = LockError(
        f"{path}: {who} has it open for writing, which one may at a time; open it "
        "for reading, or wait until the other has closed it"
    )
    error.path, error.pid = path, pid
    return error


def _lock_holder(path: str) -> int | None:
    """Return the process that locked a file, as far as this one may know."""
    try:
        found = os.stat(path)
        with open("/proc/locks", encoding="ascii") as lines:
            table = [line.split() for line in lines]
    except OSError:
        return None
    device = found.st_dev
    place = f"{os.major(device):02x}:{os.minor(device):02x}:{found.st_ino}"
    for words in table:
        if "FLOCK" in words and "WRITE" in words and place in words:
            pid = int(words[words.index("WRITE") + 1])
            return pid if pid > 0 else None
    return None


def command(pid: int) -> str:
    """Return the command line of a process, or what is known instead."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().rstrip(b"\0").split(b"\0")
    except OSError:
        return "which has ended; a child of it holds on"
    line = " ".join(os.fsdecode(word) for word in words)
    return line if len(line) <= 80 else f"{line[:77]}..."
