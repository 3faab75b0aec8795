from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlt_train.arithmetic import overflow, shift_round
from hlt_train.errors import UsageError
from hlt_train.graph import Quant
from hlt_train.models._layers import fixed_of
from hlt_train.precision.fixed import FixedFormat
from hlt_train.precision.formats import parse_format, quantise

FORMATS = st.builds(
    FixedFormat,
    signed=st.booleans(),
    width=st.integers(1, 24),
    integer=st.integers(-30, 40),
    round=st.sampled_from(["floor", "half_up", "half_even"]),
    over=st.sampled_from(["wrap", "sat"]),
)


@given(FORMATS, st.integers(0, 2**32 - 1))
def test_the_quantiser_is_the_integer_rule(to: FixedFormat, seed: int) -> None:
    """Integers of up to 24 bits at a finer or coarser exponent, ties and negative numbers among them: shift, round, overflow as the golden model does."""
    rng = np.random.default_rng(seed)
    shift = int(rng.integers(-12, 20))
    n = np.concatenate([rng.integers(-(2**23), 2**23, 200), rng.integers(-40, 40, 200), (rng.integers(-50, 50, 50) * 2 + 1) * 2 ** max(shift - 1, 0)])
    x = np.ldexp(n.astype(np.float64), -(to.f + shift)).astype(np.float32)
    quant = Quant(fixed_of(to), to.round, to.over)
    want = overflow(shift_round(n, np.array(shift), quant.round), np.array(to.lo), np.array(to.hi), quant.over)
    found = np.asarray(jax.jit(quantise, static_argnums=1)(x, to)).astype(np.float64)
    np.testing.assert_array_equal(np.ldexp(found, to.f), want)


@pytest.mark.parametrize("round", ["floor", "half_up", "half_even"])
def test_no_float_defeats_the_rounding(round: str) -> None:
    """Values one ulp from a tie, where adding one half would itself round."""
    to = parse_format(f"fixed<20,12>,{round},sat")
    ties = (np.arange(-300, 300) + 0.5).astype(np.float32) / 256
    x = np.concatenate([ties, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf)), np.float32([-1e-30, 1e-30, 0])])
    t = x.astype(np.float64) * 256
    want = {"floor": np.floor(t), "half_up": np.floor(t + 0.5), "half_even": np.rint(t)}[round]
    np.testing.assert_array_equal(np.asarray(quantise(jnp.asarray(x), to)).astype(np.float64) * 256, want)


def test_beyond_the_range() -> None:
    x = jnp.asarray([1e30, -1e30, jnp.inf, -jnp.inf, 2.0, -2.0])
    np.testing.assert_array_equal(quantise(x, parse_format("fixed<4,1>,floor,sat")), [0.875, -1, 0.875, -1, 0.875, -1])
    np.testing.assert_array_equal(quantise(x, parse_format("fixed<4,1>,floor,sat_sym")), [0.875, -0.875, 0.875, -0.875, 0.875, -0.875])
    np.testing.assert_array_equal(quantise(x[4:], parse_format("fixed<4,1>,floor,wrap")), [0, 0])
    np.testing.assert_array_equal(quantise(jnp.asarray([0.999, -0.001, 1.0]), parse_format("fixed<4,1>,floor,wrap")), [0.875, -0.125, -1.0])


def test_gradient_is_straight_through_with_clipping() -> None:
    to = parse_format("fixed<4,1>,half_even,sat")
    x = jnp.asarray([-5.0, -1.06, -1.0, 0.3, 0.9, 0.93, 0.95, 5.0])
    found = jax.grad(lambda v: quantise(v, to).sum())(x)
    np.testing.assert_array_equal(found, [0, 1, 1, 1, 1, 1, 0, 0])


def test_the_naive_straight_through_leaves_the_grid() -> None:
    """Why a quantiser must return the grid value: the textbook form is wrong where x is large, and NaN for inf."""
    to = parse_format("fixed<8,2>,half_even,sat")
    x = jnp.asarray([1e9, -3e7, 0.1, 1.3, jnp.inf])
    naive = x + jax.lax.stop_gradient(quantise(x, to) - x)
    assert not np.array_equal(naive, quantise(x, to))
    assert np.isnan(naive[-1])
    assert np.isfinite(quantise(x, to)).all()


@pytest.mark.parametrize(
    ("text", "f", "lo", "hi"),
    [
        ("fixed<8,2>,half_even,sat", 6, -128, 127),
        (" ufixed< 8 , 3 >, floor , wrap", 5, 0, 255),
        ("fixed<6,-5>,half_up,sat_sym", 11, -31, 31),
        ("ufixed<3,7>,half_up,sat", -4, 0, 7),
        ("fixed<1,1>,floor,sat", 0, -1, 0),
    ],
)
def test_reads_ap_fixed(text: str, f: int, lo: int, hi: int) -> None:
    """W counts all bits, I those before the point, the sign bit among them."""
    to = parse_format(text)
    assert (to.f, to.lo, to.hi) == (f, lo, hi)
    assert parse_format(str(to)) == to


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fixed<8,2>", "the rounding of 'fixed<8,2>' is not given"),
        ("fixed<8,2>,floor", "the overflow"),
        ("fixd<8,2>,floor,sat", "nearest: fixed<8,2>"),
        ("fixed<8,2>,half_evn,sat", "nearest: half_even"),
        ("fixed<25,2>,floor,sat", "1 to 24 bits"),
        ("fixed<0,0>,floor,sat", "1 to 24 bits"),
        ("fixed<8,-119>,floor,sat", "below 2^-126"),
        ("fixed<8,200>,floor,sat", "beyond float32"),
        ("ufixed<8,2>,floor,sat_sym", "symmetric"),
    ],
)
def test_refusals(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_format(text)
    assert says in str(caught.value)


def test_auto_has_no_grid_yet() -> None:
    to = parse_format("fixed<8,auto>", round="half_even", over="sat")
    assert str(to) == "fixed<8,auto>,half_even,sat"
    with pytest.raises(UsageError, match="not chosen yet"):
        _ = to.f


@given(st.booleans(), st.integers(2, 16), st.floats(1e-6, 1e6))
def test_fitted_holds_the_range_with_the_fewest_bits(signed: bool, width: int, largest: float) -> None:
    to = FixedFormat(signed, width, None, "half_even", "sat").fitted(largest)
    assert to.hi * 2.0**-to.f >= largest * (1 - 0.11 / to.hi)
    assert to.hi * 2.0 ** -(to.f + 1) < largest
