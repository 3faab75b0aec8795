"""The quantiser of dynamic formats: the values of fixed point at the exponent that it is given, a gradient that passes straight through, and what it counts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlt_train.errors import UsageError
from hlt_train.precision.config import Precision
from hlt_train.precision.fixed import FixedFormat
from hlt_train.precision.followed import exponents_of, followed
from hlt_train.precision.formats import parse_format, quantise

FORMATS = st.tuples(st.booleans(), st.integers(2, 24), st.integers(-20, 20), st.sampled_from(["floor", "half_up", "half_even"]))


@given(FORMATS, st.integers(-20, 20), st.integers(0, 2**32 - 1))
def test_the_values_are_those_of_fixed_point_wherever_it_stands(asked: tuple[bool, int, int, str], integer: int, seed: int) -> None:
    signed, width, first, round = asked
    to = FixedFormat(signed, width, first, round, "sat", dynamic=True)  # type: ignore[arg-type]
    still = FixedFormat(signed, width, integer, round, "sat")  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    ties = np.ldexp(rng.integers(-(2**width), 2**width, 100) + 0.5, integer - width)
    x = jnp.asarray(np.concatenate([np.ldexp(rng.normal(0, 1, 200), integer), ties]), jnp.float32)
    found, pull = jax.vjp(lambda v, s: followed(v, s, None, to), x, jnp.asarray([integer, 0, 0], jnp.float32))
    np.testing.assert_array_equal(found, quantise(x, still))
    slope, counted = pull(jnp.ones_like(x))
    np.testing.assert_array_equal(slope, jax.grad(lambda v: quantise(v, still).sum())(x))
    size, top = np.abs(np.asarray(x, np.float64)), 2.0 ** (integer - int(signed))
    np.testing.assert_allclose(counted[:2], [(size >= top).mean(), (size >= top / 2).mean()], rtol=1e-6)


@pytest.mark.parametrize("text", ["dynamic<8,2>,half_even", "udynamic<5,-3>,floor", "dynamic<24,auto>,stochastic"])
def test_text_comes_back(text: str) -> None:
    to = parse_format(text)
    assert str(to) == text
    assert parse_format(str(to)) == to
    assert isinstance(to, FixedFormat)
    assert (to.dynamic, to.over) == (True, "sat")


def test_a_number_to_begin_with_may_be_left_out() -> None:
    assert parse_format("dynamic<8>", round="floor", over="wrap") == parse_format("dynamic<8,auto>,floor")
    assert exponents_of(parse_format("fixed<8,2>,floor,sat"), None) is None
    found = exponents_of(parse_format("dynamic<8,2>,floor"), parse_format("fixed<8,2>,floor,sat"), parse_format("udynamic<4,-1>,floor"))
    assert found is not None
    np.testing.assert_array_equal(found.values, [[2, 0, 0], [-1, 0, 0]])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dynamic<8>", "the rounding"),
        ("dynamic<1>,floor", "2 to 24 bits"),
        ("dynamic<auto>,floor", "2 to 24 bits"),
        ("dynamic<8,99>,floor", "60 before the point"),
        ("dynamic<8,2>,floor,wrap", "takes no 'wrap'"),
        ("dynamic<8>,floor,per_channel", "takes no 'channel'"),
        ("dynamic<[8,8]>,floor", "single numbers"),
        ("dynamc<8>,floor", "not a number format"),
    ],
)
def test_refusals(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_format(text)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("config", "says"), [({"inputs": "dynamic<8,2>"}, "does not move"), ({"every": 0}, "a number of examples"), ({"overflow": 1}, "below 1")]
)
def test_a_precision_refuses(config: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Precision.from_config(config)
