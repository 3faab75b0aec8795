"""Jagged columns taken apart and padded, against awkward's own padding."""

from __future__ import annotations

from typing import Any

import awkward as ak
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlt_train.data.ragged import pad, ragged

LISTS = st.lists(st.lists(st.floats(-100, 100, width=32), max_size=6), min_size=1, max_size=12)


def awkward_pad(array: ak.Array, length: int, fill: float) -> np.ndarray:
    clipped = ak.pad_none(array, length, axis=1, clip=True)
    return np.asarray(ak.to_numpy(ak.fill_none(clipped, fill)))


@given(LISTS, st.integers(1, 5))
def test_pad_equals_awkward(lists: list[list[float]], length: int) -> None:
    array = ak.values_astype(ak.Array([*lists, [1.0]])[:-1], np.float32)
    taken = ragged(array)
    offsets = taken.offsets[0]
    counts = np.minimum(np.diff(offsets), length)
    x = pad([taken.content, taken.content * 2], offsets[:-1], counts, length, [-1.0, 7.0])
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x[..., 0], awkward_pad(array, length, -1.0))
    np.testing.assert_array_equal(x[..., 1], awkward_pad(array * 2, length, 7.0))


@pytest.mark.parametrize(
    ("array", "depth"),
    [
        (np.arange(3.0), 0),
        (np.arange(6.0).reshape(3, 2), 1),
        (ak.Array([[1.0, 2.0], [], [3.0]]), 1),
        (ak.Array([[[1.0], []], [], [[2.0, 3.0]]]), 2),
        (ak.Array([[1.0, 2.0], [], [3.0]])[[2, 0, 1]], 1),
        (ak.Array([[1.0, 2.0], [], [3.0]])[1:], 1),
        (ak.to_regular(ak.Array([[1.0, 2.0], [3.0, 4.0]])), 1),
    ],
)
def test_ragged_takes_apart(array: Any, depth: int) -> None:
    taken = ragged(array)
    assert taken.depth == depth
    value = ak.Array(ak.contents.NumpyArray(taken.content))
    for offsets in reversed(taken.offsets):
        value = ak.unflatten(value, np.diff(offsets))
    assert value.to_list() == array.tolist()


@pytest.mark.parametrize("array", [ak.Array(["a", "bc"]), ak.Array([{"a": 1}]), ak.Array([1.0, None])])
def test_ragged_refuses_what_is_not_numbers(array: ak.Array) -> None:
    with pytest.raises(TypeError, match="not numbers"):
        ragged(array)


def test_overflow_to_float32_is_infinite_without_a_warning() -> None:
    x = pad([np.array([1e300])], np.array([0]), np.array([1]), 2, [0.0])
    assert x.tolist() == [[[np.inf], [0.0]]]
