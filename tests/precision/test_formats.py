"""Every kind of format: its values, the nearest one, its text, its gradient; formats per channel and per element; stochastic rounding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlt_train.arithmetic import overflow, shift_round
from hlt_train.errors import UsageError
from hlt_train.precision.fixed import FixedFormat, bits_of
from hlt_train.precision.formats import Format, brief, parse_format, quantise
from hlt_train.precision.minifloat import MiniFormat
from hlt_train.precision.weights import WeightFormat

MINIFLOATS = st.builds(
    MiniFormat,
    exponent=st.integers(1, 5),
    mantissa=st.integers(0, 6),
    bias=st.integers(-20, 60),
    round=st.sampled_from(["floor", "half_up", "half_even"]),
)
FEW = st.one_of(
    st.builds(WeightFormat, kind=st.just("pow2"), width=st.integers(2, 5), integer=st.integers(-30, 30)),
    st.builds(WeightFormat, kind=st.just("ternary"), width=st.just(2), integer=st.integers(-30, 30)),
    st.builds(WeightFormat, kind=st.just("binary"), width=st.just(1), integer=st.integers(-30, 30)),
)


def minifloats(to: MiniFormat) -> np.ndarray:
    """Every non-negative value from its definition, as integers n of n * 2**-f, ascending."""
    codes = np.arange(1 << to.exponent)[:, None]
    m = np.arange(1 << to.mantissa)[None, :]
    subnormal = np.broadcast_to(m, (len(codes), m.size))
    normal = ((1 << to.mantissa) + m) * 2 ** np.maximum(codes - 1, 0)
    return np.where(codes == 0, subnormal, normal).ravel()


def between(values: np.ndarray) -> np.ndarray:
    """The values, the middles between neighbours, numbers one ulp on either side of both, and numbers beyond both ends; float32."""
    middles = (values[1:] + values[:-1]) / 2
    points = np.concatenate([values, middles, values * 1.3, [values[-1] * 1.01, values[-1] * 50, -values[-1] * 50]]).astype(np.float32)
    return np.concatenate([points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(-np.inf))])


@given(MINIFLOATS)
def test_a_minifloat_takes_the_value_that_its_rounding_names(to: MiniFormat) -> None:
    """An oracle that knows nothing but the list of values: the neighbours of each number and, between them, the rounding."""
    positive = minifloats(to)
    values = np.concatenate([-positive[:0:-1], positive]).astype(np.float64)
    t = between(values).astype(np.float64)
    place = np.clip(np.searchsorted(values, t, side="right") - 1, 0, len(values) - 2)
    low, high = values[place], values[place + 1]
    fraction = (np.clip(t, values[0], values[-1]) - low) / (high - low)
    odd = (np.abs(place - (len(positive) - 1)) % 2) == 1  # codes count up from 0, so a value's last bit is that of its place
    if to.mantissa == 0:  # there is no last bit: the larger of two numbers, but 0 before the smallest
        odd = (low > 0) | (high == 0)
    up = {"floor": fraction == 1, "half_up": fraction >= 0.5, "half_even": (fraction > 0.5) | ((fraction == 0.5) & odd)}[to.round]
    found = np.asarray(quantise(jnp.asarray(np.ldexp(t, -to.f), jnp.float32), to), np.float64)
    np.testing.assert_array_equal(np.ldexp(found, to.f), np.where(up, high, low))
    assert (int(positive[-1]), -int(positive[-1])) == (to.hi, to.lo)


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("minifloat<2,1>,half_even", ml_dtypes.float4_e2m1fn),
        ("minifloat<2,3>,half_even", ml_dtypes.float6_e2m3fn),
        ("minifloat<3,2>,half_even", ml_dtypes.float6_e3m2fn),
        ("minifloat<4,3>,half_even", ml_dtypes.float8_e4m3fn),
        ("minifloat<5,2>,half_even", ml_dtypes.float8_e5m2),
        ("minifloat<3,4>,half_even", ml_dtypes.float8_e3m4),
    ],
)
def test_as_another_implementation_rounds(text: str, peer: type) -> None:
    """Below the codes that OCP and IEEE spend on NaN and infinities, which are numbers here."""
    to = parse_format(text)
    top = float(ml_dtypes.finfo(peer).max)
    x = np.concatenate([np.random.default_rng(1).uniform(-top, top, 20_000), between(minifloats(to) * 2.0**-to.f)]).astype(np.float32)
    x = x[np.abs(x) <= top]
    np.testing.assert_array_equal(np.asarray(quantise(jnp.asarray(x), to)), x.astype(peer).astype(np.float32))


@given(FEW)
def test_few_values_take_the_nearest(to: WeightFormat) -> None:
    values = {"pow2": [0, *(2**k for k in range(2 ** (to.width - 1) - 1))], "ternary": [0, 1], "binary": [1]}[to.kind]
    both = np.unique(np.concatenate([values, np.negative(values)])).astype(np.float64)
    t = between(both).astype(np.float64)
    distance = np.abs(t[:, None] - both[None, :])
    # Of two that are equally near the one farther from 0; of +-1 the positive one at 0.
    order = distance - 1e-9 * np.abs(both) * (distance == distance.min(axis=1, keepdims=True)) - 1e-12 * (both > 0)
    want = both[np.argmin(order, axis=1)]
    found = np.asarray(quantise(jnp.asarray(np.ldexp(t, -to.f), jnp.float32), to), np.float64)
    np.testing.assert_array_equal(np.ldexp(found, to.f), want)
    assert (both.min(), both.max()) == (to.lo, to.hi)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["wrap", "sat", "sat_sym"]), st.sampled_from(["floor", "half_up", "half_even"]))
def test_formats_of_every_element_are_the_integer_rule(seed: int, over: str, round: str) -> None:
    """Widths from 0 (the constant 0) to 24 and integer bits of every sign, one for each entry of a matrix, one for each row, and for each column."""
    rng = np.random.default_rng(seed)
    for shape in ((5, 7), (5, 1), (7,)):
        width = rng.integers(0, 25, shape)
        to = FixedFormat(True, bits_of(width), bits_of(rng.integers(-8, 12, shape)), round, over)  # type: ignore[arg-type]
        n = rng.integers(-(2**23), 2**23, (40, 5, 7)) >> rng.integers(0, 23, (40, 5, 7))
        x = np.ldexp(n.astype(np.float64), -np.asarray(to.f) - 4).astype(np.float32)  # four bits below the grid: a quarter of them ties and near them
        lo, hi = (np.broadcast_to(v, (5, 7)) for v in (to.lo, to.hi))
        want = np.where(np.broadcast_to(width, (5, 7)) == 0, 0, overflow(shift_round(n, np.array(4), to.round), lo, hi, to.over))
        found = np.asarray(quantise(jnp.asarray(x), to), np.float64)
        np.testing.assert_array_equal(np.ldexp(found, np.broadcast_to(np.asarray(to.f), (5, 7))), want)


@given(st.one_of(MINIFLOATS, FEW))
def test_values_are_fixed_points_and_text_comes_back(to: Format) -> None:
    assert parse_format(str(to)) == to
    x = jnp.asarray(np.random.default_rng(0).normal(0, 2.0**-to.f * to.hi, 300), jnp.float32)
    once = quantise(x, to)
    np.testing.assert_array_equal(quantise(once, to), once)
    np.testing.assert_array_equal(np.asarray(quantise(x * 8, to.scaled(3))), np.asarray(once) * 8)
    assert to.at(5).f == 5


@given(st.one_of(MINIFLOATS, FEW), st.floats(1e-4, 1e4))
def test_fitted_reaches_the_largest_and_not_four_times_it(to: Format, largest: float) -> None:
    top = float(np.ldexp(to.fitted(largest).hi, -int(to.fitted(largest).f)))
    assert largest * 0.8 <= top < largest * 4


@pytest.mark.parametrize(
    "text", ["fixed<4,1>,half_even,sat", "minifloat<2,1,1>,half_even", "pow2<3,1>", "ternary<1>", "binary<1>", "fixed<[[4],[3]],[[1],[2]]>,floor,sat"]
)
def test_gradients_pass_inside_and_not_outside(text: str) -> None:
    to = parse_format(text)
    edge = np.broadcast_to(np.ldexp(np.asarray(to.reach[1], np.float64), -np.asarray(to.f)), (2, 1))
    x = jnp.asarray(edge * np.array([[-30, 0.1, 0.999, 1.001, 30]]), jnp.float32)
    np.testing.assert_array_equal(jax.grad(lambda v: quantise(v, to).sum())(x), np.broadcast_to([0, 1, 1, 0, 0], (2, 5)))


@pytest.mark.parametrize("text", ["fixed<6,2>,stochastic,sat", "minifloat<3,2,3>,stochastic"])
def test_stochastic_rounding_is_right_on_average(text: str) -> None:
    """With a key: one of the two neighbours, with the probability that makes the mean the number itself, five standard errors; without one: half_even."""
    to = parse_format(text)
    x = jnp.linspace(-1.9, 1.9, 41)
    drawn = np.asarray(jax.vmap(lambda key: quantise(x, to, key))(jax.random.split(jax.random.key(3), 4000)), np.float64)
    low = np.asarray(quantise(x, parse_format(text.replace("stochastic", "floor"))))
    high = -np.asarray(quantise(-x, parse_format(text.replace("stochastic", "floor"))))
    assert ((drawn == low) | (drawn == high)).all()
    deviation = (drawn.mean(axis=0) - np.asarray(x, np.float64)) / np.maximum((high - low) / np.sqrt(4 * 4000), 1e-12)
    assert np.abs(deviation[high > low]).max() < 5
    np.testing.assert_array_equal(quantise(x, to), quantise(x, parse_format(text.replace("stochastic", "half_even"))))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("minifloat<4,3>", "the rounding"),
        ("minifloat<4,3>,half_even,sat", "takes no 'sat'"),
        ("minifloat<0,3>,floor", "1 to 7 exponent bits"),
        ("minifloat<5,2,200>,floor", "float32 does not have"),
        ("minifloat<4>,floor", "exponent bits and mantissa bits"),
        ("ternary<1>,floor", "takes no 'floor'"),
        ("pow2<9,1>", "2 to 5 bits"),
        ("pow2<[3,3],1>", "single numbers"),
        ("fixed<8,2.5>,floor,sat", "integers, or auto"),
        ("fixed<8>,floor,sat", "its bits in all"),
        ("fixed<[8,[7]],2>,floor,sat", "integers, or auto"),
        ("fixed<[8,7],[1,2,3]>,floor,sat", "different shapes"),
    ],
)
def test_refusals(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_format(text)
    assert says in str(caught.value)


def test_a_table_shows_the_range_of_a_list() -> None:
    assert brief("ufixed<8,[2,-3,1]>,half_even,sat") == "ufixed<8,-3..2 (3)>"
    assert brief("fixed<[[8],[7]],[[1],[0]]>,floor,sat") == "fixed<7..8 (2),0..1 (2)>"
    assert brief("pow2<4,-1>") == "pow2<4,-1>"
