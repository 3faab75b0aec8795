"""Dynamic fixed point: its grid is that of fixed point, its counts are those of the paper, and the exponent follows them."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlt_train.precision.dynamic import REACH, DynamicFormat, moved
from hlt_train.precision.fixed import FixedFormat
from hlt_train.precision.formats import quantise


@given(st.integers(2, 24), st.integers(-30, 30), st.sampled_from(["floor", "half_up", "half_even"]), st.integers(0, 2**32 - 1))
def test_the_grid_is_that_of_fixed_point(width: int, integer: int, round: str, seed: int) -> None:
    x = jnp.asarray(np.ldexp(np.random.default_rng(seed).normal(0, 1, 200), integer), jnp.float32)
    want = quantise(x, FixedFormat(True, width, integer, round, "sat"))  # type: ignore[arg-type]
    found = DynamicFormat(width, round).nearest(x, jnp.float32(integer))  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, want)


def test_counts_and_the_fewest_integer_bits() -> None:
    to = DynamicFormat(8, "half_even")
    x = jnp.asarray([0.1, -0.3, 0.5, 0.9, -1.0, 1.5, 2.0, -5.0])  # with I = 2 the range is -2 to 2, half of it -1 to 1
    np.testing.assert_allclose(to.rates(x, jnp.float32(2)), [2 / 8, 4 / 8, 4])
    assert float(to.rates(jnp.zeros(3), jnp.float32(2))[2]) == -REACH
    for integer in (-3, 0, 5):
        assert float(to.rates(jnp.asarray([1.99 * 2.0 ** (integer - 2)]), jnp.float32(0))[2]) == integer


@pytest.mark.parametrize(("beyond", "beyond_half", "step"), [(0.01, 0.5, 1), (0.0, 0.5, 0), (0.0, 0.0, -1), (1e-4, 1e-4, -1), (1.1e-4, 0.0, 1)])
def test_the_exponent_moves_by_the_rule(beyond: float, beyond_half: float, step: int) -> None:
    assert float(moved(jnp.float32(3), jnp.asarray([beyond, beyond_half, 0.0]), 1e-4)) == 3 + step
    assert float(moved(jnp.float32(REACH), jnp.asarray([1.0, 1.0, 0.0]), 1e-4)) == REACH
