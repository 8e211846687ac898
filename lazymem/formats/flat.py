# SPDX-License-Identifier: BSD-3-Clause
"""Arrays whose bytes lie in a file as they are, one after the other."""

from __future__ import annotations

import math
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from lazymem import sources
from lazymem.sources import Bytes, Source

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator


def file_source(
    file: IO[bytes],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    order: str = "C",
    *,
    can_peek: bool = True,
    start: int | None = None,
    attrs: dict[str, Any] | None = None,
) -> Source:
    """Take the bytes of an open file from `start` on, by default where it stands."""
    nbytes = math.prod(shape) * dtype.itemsize
    peek = None
    if can_peek:
        first = file.tell() if start is None else start

        def peek(at: int, count: int) -> Bytes:
            file.seek(first + at)
            return np.frombuffer(file.read(count), np.uint8)

    def blocks() -> Iterator[Bytes]:
        if can_peek:
            file.seek(first)
        buffer = np.empty(min(nbytes, sources.BLOCK_BYTES), np.uint8)
        done = 0
        while done < nbytes:
            want = buffer.data[: min(sources.BLOCK_BYTES, nbytes - done)]
            got = _read(file, want)
            yield buffer[:got]
            done += got
            if got < len(want):
                return

    return Source(shape, dtype, order, blocks, peek, attrs or {})


def _read(file: IO[bytes], want: memoryview) -> int:
    """Read as much as there is, which at the file's end is less."""
    got = 0
    while got < len(want):
        count = cast("io.BufferedIOBase", file).readinto(want[got:])
        if not count:
            break
        got += count
    return got
