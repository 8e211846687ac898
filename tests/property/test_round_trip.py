# SPDX-License-Identifier: BSD-3-Clause
"""Does any array come back equal, for any dtype, shape, order, codec and chunk size?"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import lazymem as lm
from tests.reference_reader import read

SIMPLE = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    hnp.complex_number_dtypes(endianness="?", sizes=(64, 128)),
    hnp.datetime64_dtypes(),
    hnp.timedelta64_dtypes(),
    hnp.byte_string_dtypes(min_len=1, max_len=9),
    hnp.unicode_string_dtypes(min_len=1, max_len=5),
)
DTYPES = st.one_of(SIMPLE, hnp.nested_dtypes(SIMPLE, max_leaves=5))
OPTIONS = st.fixed_dictionaries(
    {
        "codec": st.sampled_from(["zstd", "lz4", "none"]),
        "chunk_bytes": st.sampled_from([None, 4096, 8192, 1 << 20]),
        "shuffle": st.sampled_from([None, True, False, 5]),
    }
)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """Return arrays of any dtype and layout, of repetitive data."""
    dtype = draw(DTYPES)
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=40))
    nbytes = int(np.prod(shape)) * dtype.itemsize
    seed = draw(st.binary(min_size=1, max_size=64))
    repeat = draw(st.sampled_from([1, 7, 4096]))
    data = np.repeat(np.frombuffer(seed, "u1"), repeat)
    array = np.ndarray(shape, dtype, np.resize(data, max(nbytes, 1)))
    order = draw(st.sampled_from("CFK"))
    array = array.copy(order)
    if array.ndim and draw(st.booleans()):
        array = array[:: draw(st.sampled_from([-1, 2]))]
    return array


def same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


@settings(max_examples=150, deadline=None)
@given(st.lists(arrays(), min_size=1, max_size=3), OPTIONS)
def test_any_array_comes_back_equal(
    given_arrays: list[np.ndarray[Any, Any]], options: dict[str, Any]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.lzm"
        lm.save(path, {str(i): a for i, a in enumerate(given_arrays)}, **options)
        with lm.open(path) as store:
            assert all(same(store[str(i)], a) for i, a in enumerate(given_arrays))
        found, _ = read(path)
        assert all(same(found[str(i)], a) for i, a in enumerate(given_arrays))


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 100_000),
    st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 30_000)), max_size=12),
    st.sampled_from([4096, 16384]),
)
def test_any_blocks_give_their_array(
    n: int, blocks: list[tuple[int, int]], chunk_bytes: int
) -> None:
    expected = np.zeros(n, "u1")
    rng = np.random.default_rng(n)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.lzm"
        with lm.Writer(path, chunk_bytes=chunk_bytes) as writer:
            x = writer.create("x", n, "u1")
            at = 0
            for gap, length in blocks:
                at = min(at + gap, n)
                length = min(length, n - at)
                expected[at : at + length] = rng.integers(0, 9, length)
                x.write(expected[at : at + length], at=at)
                at += length
        with lm.open(path) as store:
            assert same(store["x"], expected)
