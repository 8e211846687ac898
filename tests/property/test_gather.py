# SPDX-License-Identifier: BSD-3-Clause
"""Are the chunks found for an index those that numpy touches, neither more nor less?"""

from __future__ import annotations

import math
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazymem import gather
from lazymem.gather import Layout, taken, touched


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Return where the elements of a view of some object may be."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=9))
    dtype = np.dtype((np.void, draw(st.sampled_from([1, 2, 3, 4, 8, 12, 50]))))
    array = np.empty(shape, dtype, draw(st.sampled_from("CF")))
    start = array.__array_interface__["data"][0]
    if draw(st.booleans()):
        array = array[draw(hnp.basic_indices(shape, min_dims=1))]
    before = draw(st.sampled_from([0, 0, 1, 64]))
    chunk_bytes = 1 << draw(st.integers(3, 9))
    nbytes = before + math.prod(shape) * dtype.itemsize
    return Layout(
        before + array.__array_interface__["data"][0] - start,
        array.shape,
        array.strides,
        array.itemsize,
        chunk_bytes,
        -(-nbytes // chunk_bytes),
    )


def addresses(layout: Layout) -> npt.NDArray[np.int64]:
    """Return where each element is."""
    found = np.full(layout.shape, layout.offset)
    for dim, (length, stride) in enumerate(zip(layout.shape, layout.strides)):
        along = np.arange(length) * stride
        found += along.reshape([-1 if i == dim else 1 for i in range(found.ndim)])
    return found


def chunks_at(starts: Any, layout: Layout) -> list[int]:
    """Return the chunks that hold a byte of the elements there."""
    touched_bytes = np.ravel(starts)[:, None] + np.arange(layout.itemsize)
    return np.unique(touched_bytes // layout.chunk_bytes).tolist()


def numbers_below(length: int, shape: Any) -> st.SearchStrategy[Any]:
    dtypes = [np.int64, np.int32, np.int8][: 3 if length < 100 else 2]
    return st.sampled_from(dtypes).flatmap(
        lambda dtype: hnp.arrays(
            dtype, shape, elements=st.integers(-length, length - 1)
        )
    )


@st.composite
def indices(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    """Return an index that numpy takes, with at least one array in it."""
    together = draw(hnp.array_shapes(min_dims=1, max_dims=2, max_side=6))
    parts: list[Any] = []
    dims = list(shape)
    while dims:
        kind = draw(st.sampled_from(["array", "mask", "slice", "int", "ix", "end"]))
        if kind == "mask":
            count = draw(st.integers(1, len(dims)))
            parts.append(draw(hnp.arrays(bool, tuple(dims[:count]))))
            del dims[:count]
            continue
        if kind == "end":
            break
        length = dims.pop(0)
        if kind == "slice":
            parts.append(draw(st.slices(length)))
        elif kind == "int" and length:
            parts.append(draw(st.integers(-length, length - 1)))
        elif length:
            if kind == "ix":
                axis = draw(st.integers(0, len(together) - 1))
                shape_of = [1] * len(together)
                shape_of[axis] = together[axis]
            else:
                shape_of = list(together)
            parts.append(draw(numbers_below(length, tuple(shape_of))))
        else:
            parts.append(slice(None))
    if draw(st.booleans()):
        if dims and draw(st.booleans()):
            parts.append(...)
            length = dims.pop()
            if length:
                parts.append(draw(numbers_below(length, together)))
        else:
            parts.insert(draw(st.integers(0, len(parts))), None)
    if len(parts) == 1 and draw(st.booleans()):
        return parts[0]
    return tuple(parts)


@settings(max_examples=300, deadline=None)
@given(st.data(), layouts(), st.sampled_from([2, 64, 1 << 15]))
def test_an_index_touches_what_is_found(data: Any, layout: Layout, block: int) -> None:
    index = data.draw(indices(layout.shape))
    try:
        starts = addresses(layout)[index]
    except IndexError:
        starts = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gather, "_BLOCK", block)
        patch.setattr(gather, "_TABLE_MIN", block)
        patch.setattr(gather, "_CHUNKS_AN_INDEX", 64 if block == 64 else 0)
        found = touched(layout, index)
    parts = index if isinstance(index, tuple) else (index,)
    if starts is None or not any(isinstance(part, np.ndarray) for part in parts):
        assert found is None
    elif starts.size == 0:
        assert found is None or found.size == 0
    else:
        assert found is not None
        assert found.tolist() == chunks_at(starts, layout)


@settings(max_examples=100, deadline=None)
@given(st.data(), layouts())
def test_taking_touches_what_is_found(data: Any, layout: Layout) -> None:
    where = addresses(layout)
    axis = data.draw(st.none() | st.integers(-where.ndim, where.ndim - 1))
    length = where.size if axis is None else where.shape[axis]
    if length == 0:
        return
    numbers = data.draw(numbers_below(length, data.draw(hnp.array_shapes(max_side=5))))
    found = taken(layout, numbers, axis)
    if found is not None:
        assert found.tolist() == chunks_at(where.take(numbers, axis), layout)


TABLE = Layout(0, (1000, 300), (2400, 8), 8, 4096, 586)
COLUMNS = Layout(0, (1000, 300), (8, 8000), 8, 4096, 586)
ROWS = np.array([1, -1, 500])
MASK = np.arange(1000) % 400 == 7


@pytest.mark.parametrize("layout", [TABLE, COLUMNS], ids=["C", "F"])
@pytest.mark.parametrize(
    "index",
    [
        ROWS,
        [5, -5],
        np.uint8([200, 100]),
        np.array([3, 4], ">i4"),
        MASK,
        np.s_[ROWS, 5],
        np.s_[ROWS, 10:20],
        np.s_[::-100, ROWS[:2]],
        np.s_[ROWS, [0, 1, -1]],
        np.s_[..., ROWS[:2]],
        np.s_[ROWS, None, ::7],
        np.ix_(range(0, 1000, 3), range(0, 300, 2)),
        np.ix_(ROWS, ROWS[:2]),
        np.s_[MASK, 3],
        np.add.outer(np.arange(1000), np.arange(300)) % 5000 == 0,
    ],
    ids=lambda index: "",
)
def test_common_forms_are_found(layout: Layout, index: Any) -> None:
    found = touched(layout, index)
    assert found is not None
    assert found.dtype == np.int64
    assert found.tolist() == chunks_at(addresses(layout)[index], layout)


@pytest.mark.parametrize(
    "index",
    [
        3,
        np.s_[3:5],
        np.s_[..., 3],
        np.s_[ROWS + 1000],
        np.s_[ROWS - 1000],
        np.s_[ROWS, ROWS],
        np.s_[ROWS, ..., ..., 1],
        np.s_[ROWS, 0, 0],
        np.s_[ROWS, 300],
        np.s_[MASK[:-1]],
        np.s_[ROWS, [1, 2]],
        np.s_[ROWS, 5:5],
        True,
        [],
        [0.5],
        "name",
        ["name"],
    ],
    ids=repr,
)
def test_what_is_not_handled_or_refused_by_numpy_finds_nothing(index: Any) -> None:
    assert touched(TABLE, index) is None


def test_only_the_first_chunks_are_returned() -> None:
    for index in (np.arange(0, 1000, 10), np.s_[np.arange(1000), ::50], ROWS):
        found = touched(TABLE, index)
        assert found is not None
        assert len(found) > 3
        assert np.array_equal(touched(TABLE, index, 3), found[:3])


def test_a_huge_array_costs_no_more_than_the_index() -> None:
    chunks = 1 << 40
    layout = Layout(0, (chunks, 4096), (4096, 1), 1, 4096, chunks)
    index = np.array([1 << 39, 5, 5, -1])
    assert touched(layout, index).tolist() == [5, 1 << 39, chunks - 1]
    rows = layout._replace(shape=(1 << 20, 1 << 32), strides=(1 << 32, 1))
    found = touched(rows, index[1:])
    assert np.array_equal(found, 5 * (1 << 20) + np.arange(gather.CHUNKS_MAX))
