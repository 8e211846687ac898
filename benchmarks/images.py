# SPDX-License-Identifier: BSD-3-Clause
"""Images of file systems that compress, made from one array and mounted by root.

They are mounted in a mount namespace of the process's own, and so are gone when it has
ended, however it ended; a loop device goes with what is mounted from it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import MIB

Array = np.ndarray[Any, Any]

_FILE = "x.npy"
_CLONE_NEWNS = 0x20000
_LEVEL = 3
_BTRFS_OWN_BYTES = 768 * MIB
"""What is asked for besides the data; the image is a sparse file."""


class UnavailableError(RuntimeError):
    """A file system that this machine can't make or mount."""


@dataclass(frozen=True)
class Kind:
    """A file system."""

    name: str
    tool: str
    """The program that makes an image."""
    make: Callable[[Path, Array], None]

    def missing(self) -> str:
        """Return why it can't be used here; empty if it can, as far as is known."""
        if os.geteuid() != 0:
            return "only root may mount"
        return "" if shutil.which(self.tool) else f"{self.tool} is not installed"

    def mount(self, image: Path) -> Path:
        """Mount an image read-only; return the path of the array's file."""
        return _mount(image, self.name, "ro")


def unmount(image: Path) -> None:
    """Unmount an image.  No file of it may be mapped any more."""
    _command("umount", _folder(image))


def _folder(image: Path) -> Path:
    return image.with_name(f"{image.name}.mounted")


def _mount(image: Path, kind: str, options: str) -> Path:
    _keep_mounts_private()
    folder = _folder(image)
    folder.mkdir(exist_ok=True)
    _command("mount", "-t", kind, "-o", f"loop,{options}", image, folder)
    return folder / _FILE


@functools.cache
def _keep_mounts_private() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        raise UnavailableError(f"unshare: {os.strerror(ctypes.get_errno())}")
    _command("mount", "--make-rprivate", "/")


def _command(*words: Any) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["failed"]
        raise UnavailableError(f"{words[0]}: {said[0]}")


def _make_from_folder(image: Path, array: Array, *words: Any) -> None:
    """Run a program that packs a folder; ``{}`` stands for the folder."""
    folder = image.with_name(f"{image.name}.packed")
    folder.mkdir()
    try:
        np.save(folder / _FILE, array)
        _command(*[folder if word == "{}" else word for word in words])
    finally:
        shutil.rmtree(folder)


def _make_erofs(image: Path, array: Array, codec: str, cluster_bytes: int) -> None:
    options = ("--quiet", f"-z{codec}", f"-C{cluster_bytes}")
    _make_from_folder(image, array, "mkfs.erofs", *options, image, "{}")


def _make_squashfs(image: Path, array: Array) -> None:
    codec = ("-comp", "zstd", "-Xcompression-level", str(_LEVEL), "-b", "128K")
    options = ("-noappend", "-no-progress", "-quiet")
    _make_from_folder(image, array, "mksquashfs", "{}", image, *options, *codec)


def _make_btrfs(image: Path, array: Array) -> None:
    with image.open("wb") as file:
        file.truncate(array.nbytes + _BTRFS_OWN_BYTES)
    _command("mkfs.btrfs", "-q", "-m", "single", image)
    path = _mount(image, "btrfs", f"compress-force=zstd:{_LEVEL}")
    try:
        # np.save would reserve the space first, and btrfs compresses no reserved space.
        header = np.lib.format.header_data_from_array_1_0(array)
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            view = memoryview(array).cast("B")
            for i in range(0, len(view), MIB):
                file.write(view[i : i + MIB])
    finally:
        unmount(image)


EROFS_LZ4 = Kind(
    "erofs",
    "mkfs.erofs",
    functools.partial(_make_erofs, codec="lz4", cluster_bytes=64 << 10),
)
EROFS_ZSTD = Kind(
    "erofs",
    "mkfs.erofs",
    functools.partial(
        _make_erofs, codec=f"zstd,level={_LEVEL}", cluster_bytes=MIB >> 2
    ),
)
SQUASHFS = Kind("squashfs", "mksquashfs", _make_squashfs)
BTRFS = Kind("btrfs", "mkfs.btrfs", _make_btrfs)
