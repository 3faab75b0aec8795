"""States as JSON and arrays, there and back, through real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlt_train.files import read_arrays, write_arrays
from hlt_train.transports.actors import Reply
from hlt_train.transports.freeze import freeze, thaw
from hlt_train.transports.program import Message

SCALAR = st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5))
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.integers(0, 9), st.text(max_size=3), st.tuples(st.integers(0, 9), st.integers(0, 9))), inner, max_size=3),
    ),
    max_leaves=12,
)


@given(value=VALUE)
def test_round_trip(value: Any) -> None:
    arrays: dict[str, np.ndarray] = {}
    found = thaw(json.loads(json.dumps(freeze(value, arrays))), arrays)
    assert found == value
    assert type(found) is type(value)
    assert not arrays


def test_messages_and_arrays_through_a_file(tmp_path: Path) -> None:
    parts = [(np.arange(3, dtype=np.float32), np.array([1.5, -2], ml_dtypes.bfloat16)), (np.int8([1, 2]), np.array(7, np.int32))]
    message = Message(1, 2, 3, -1, True, False, np.array([4, 5]), ((0, 1), (7, -1)), parts)
    value = {(1, 2): message, "reply": Reply(0, 1, 2, 3, parts[0]), "jax": jnp.ones(2, jnp.bfloat16), "scalar": np.int64(3)}
    arrays: dict[str, np.ndarray] = {}
    document = json.loads(json.dumps(freeze(value, arrays)))
    write_arrays(tmp_path / "a.npz", arrays)
    found = thaw(document, read_arrays(tmp_path / "a.npz"))
    again = found[1, 2]
    assert isinstance(again, Message)
    assert isinstance(found["reply"], Reply)
    assert again[:6] == message[:6]
    assert again.shares == message.shares
    assert again.clock.tolist() == [4, 5]
    for mine, theirs in zip(sum(again.parts, ()), sum(parts, ()), strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        assert mine.tobytes() == theirs.tobytes()
    assert found["jax"].dtype == jnp.bfloat16
    assert found["scalar"].shape == ()


def test_a_frozen_array_does_not_go_on_counting() -> None:
    counter, arrays = np.zeros(2, np.int64), {}
    document = freeze(counter, arrays)
    counter += 1
    assert thaw(document, arrays).tolist() == [0, 0]


def test_sets_come_back_sorted_and_strangers_are_refused() -> None:
    assert thaw(freeze({3, 1, 2}, {}), {}) == [1, 2, 3]
    with pytest.raises(TypeError, match="cannot freeze object"):
        freeze([object()], {})
