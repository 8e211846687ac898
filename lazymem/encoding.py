# SPDX-License-Identifier: BSD-3-Clause
"""How objects are stored: as the user says, and for the rest as a trial finds best.

A trial encodes chunks from all over the data in several ways and takes the smallest.
There is no better predictor: byte shuffle halves one array and doubles the next.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lazymem import _engine

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from lazymem.sources import Bytes

_DEFAULT_LEVEL = {"zstd": 3, "lz4": 1, "none": 0}
_CHUNK_BYTES, _LARGE_CHUNK_BYTES = 128 << 10, 256 << 10
"""Small chunks make random access quick, large ones compress better and scan faster;
``benchmarks/bench_chunks.py`` prints the trade-off. At 128 KiB both are close to their
best. Data that shrink by more than a percent in larger chunks get these; and so do
booleans, which decode in half the time."""
_CHUNK_GAIN = 0.99
_SHUFFLE_GAIN = 0.97
"""A filter must make data smaller than this share to be worth undoing at each fill."""
_TRIAL_SAMPLES = 8
_TRIAL_BYTES_MIN = 4096
"""Below this a trial costs more than it can save."""


@dataclass(frozen=True)
class Encoding:
    """How objects are to be stored.  None: to be found by trial, or by default."""

    codec: str = "zstd"
    level: int | None = None
    chunk_bytes: int | None = None
    shuffle: bool | int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.codec, str):
            raise TypeError(
                "codec must be a str; an array of that name can be saved in a mapping"
            )
        if self.codec not in _engine.CODECS:
            names = ", ".join(map(repr, _engine.CODECS))
            raise ValueError(f"codec must be one of {names}, not {self.codec!r}")
        low, high = {"zstd": (-100, 22), "lz4": (-100, 12), "none": (0, 0)}[self.codec]
        if not low <= self.resolved_level <= high:
            raise ValueError(
                f"level of {self.codec} must be {low} to {high}, not {self.level}"
            )
        size = self.chunk_bytes
        if size is not None and (
            size & (size - 1)
            or not _engine.CHUNK_BYTES_MIN <= size <= _engine.CHUNK_BYTES_MAX
        ):
            raise ValueError(
                "chunk_bytes must be a power of two from "
                f"{_engine.CHUNK_BYTES_MIN} to {_engine.CHUNK_BYTES_MAX}, not {size}"
            )

    @property
    def resolved_level(self) -> int:
        """The level, or the codec's default."""
        return _DEFAULT_LEVEL[self.codec] if self.level is None else self.level


@dataclass(frozen=True)
class Layout:
    """How one object is stored."""

    codec: str
    """``"zstd"``, ``"lz4"`` or ``"none"``."""
    level: int
    """Level of the codec."""
    chunk_bytes: int
    """Bytes that are compressed as one."""
    shuffle: int = 0
    """Element width of the byte shuffle; 0 for none."""
    is_split: bool = True
    """Whether byte planes, and with lz4 every 64 KiB, are compressed on their own."""

    def to_engine(self, nbytes: int) -> Any:
        """Return a ``struct lm_encoding``."""
        return _engine.encoding(
            nbytes,
            self.chunk_bytes,
            self.shuffle,
            self.codec,
            self.level,
            self.is_split,
        )


def default_layout(how: Encoding, dtype: np.dtype[Any]) -> Layout:
    """Return the layout of an object whose data nobody has seen yet."""
    usual = _LARGE_CHUNK_BYTES if dtype.kind == "b" else _CHUNK_BYTES
    shuffle = dtype.itemsize if how.shuffle is True else int(how.shuffle or 0)
    return Layout(
        codec=how.codec,
        level=how.resolved_level,
        chunk_bytes=how.chunk_bytes or usual,
        shuffle=shuffle if shuffle > 1 else 0,
    )


def unseen_layout(how: Encoding, dtype: np.dtype[Any]) -> Layout:
    """Return the layout of an object that is to be filled later, in its memory.

    It stays as it is whatever is written, so it is a bet.  What programs write into
    arrays of numbers is mostly computed: neighbours have their high bytes in common,
    and shuffled they take a tenth to a quarter less.  The bet is lost, by a quarter to
    a half, where few values repeat, as zeros and decimals do; such data are small in
    either case.  Strings and records keep their bytes together.
    """
    layout = default_layout(how, dtype)
    is_bet = how.shuffle is None and how.codec != "none" and dtype.kind in "iufcmM"
    if not is_bet or dtype.itemsize == 1:
        return layout
    return replace(layout, shuffle=_shuffle_widths(dtype)[0])


def choose_layout(
    how: Encoding,
    dtype: np.dtype[Any],
    nbytes: int,
    peek: Callable[[int, int], Bytes],
) -> Layout:
    """Return the layout that makes an object smallest.

    Parameters
    ----------
    how : Encoding
        What is asked for; only the rest is chosen.
    dtype : numpy.dtype
        Type of the elements.
    nbytes : int
        Bytes of data that can be looked at.
    peek : callable
        Returns `count` bytes at an offset: ``peek(offset, count)``.
    """
    layout = default_layout(how, dtype)
    if how.codec == "none":
        return layout
    widths = [] if how.shuffle is not None else _shuffle_widths(dtype)
    if nbytes < _TRIAL_BYTES_MIN:
        return replace(layout, shuffle=widths[0] if widths else layout.shuffle)
    trial = _Trial(nbytes, peek, max(layout.chunk_bytes, _LARGE_CHUNK_BYTES))
    best = min((replace(layout, shuffle=w) for w in widths), key=trial, default=layout)
    if trial(best) < trial(layout) * _SHUFFLE_GAIN:
        layout = best
    layout = min(layout, replace(layout, is_split=False), key=trial)
    large = replace(layout, chunk_bytes=_LARGE_CHUNK_BYTES)
    is_free = how.chunk_bytes is None and nbytes > _CHUNK_BYTES
    if is_free and trial(large) < trial(layout) * _CHUNK_GAIN:
        layout = large
    return layout


def _shuffle_widths(dtype: np.dtype[Any]) -> list[int]:
    """Return the element widths by which a shuffle may pay, likeliest first."""
    widths = []
    if dtype.kind == "c":
        widths.append(dtype.itemsize // 2)
    if dtype.kind == "U":
        widths.append(4)
    widths.append(dtype.itemsize)
    return [w for w in dict.fromkeys(widths) if 1 < w <= _engine.CHUNK_BYTES_MIN]


class _Trial:
    """Bytes that samples of the data take, by layout."""

    def __init__(
        self, nbytes: int, peek: Callable[[int, int], Bytes], sample_bytes: int
    ) -> None:
        count = min(_TRIAL_SAMPLES, -(-nbytes // sample_bytes))
        last = max(0, nbytes - sample_bytes)
        starts = [
            last * i // max(1, count - 1) // sample_bytes * sample_bytes
            for i in range(count)
        ]
        self._samples = [peek(at, sample_bytes) for at in starts]
        self._found: dict[Layout, int] = {}

    def __call__(self, layout: Layout) -> int:
        if layout not in self._found:
            enc, step = layout.to_engine(2**62), layout.chunk_bytes
            self._found[layout] = sum(
                _engine.encoded_bytes(enc, sample[at : at + step])
                for sample in self._samples
                for at in range(0, sample.nbytes, step)
            )
        return self._found[layout]
