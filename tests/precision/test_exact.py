from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlt_train.arithmetic import overflow, rational, requantise, rounded_rational, shift_round
from hlt_train.models._lower import quant_of
from hlt_train.precision.exact import affine, affine_int32, pool_mean
from hlt_train.precision.fixed import FixedFormat
from hlt_train.precision.formats import parse_format, quantise
from hlt_train.precision.minifloat import MiniFormat

MODES = st.tuples(st.sampled_from(["floor", "half_up", "half_even"]), st.sampled_from(["wrap", "sat", "sat_sym"]))


@given(MODES, st.integers(-6, 20), st.booleans(), st.integers(0, 2**32 - 1))
def test_int32_where_float32_would_round(modes: tuple[str, str], drop: int, relu: bool, seed: int) -> None:
    """12-bit weights on 12-bit activations: sums beyond 2**24 that float32 does not hold."""
    rng = np.random.default_rng(seed)
    x, w, b = rng.integers(-2048, 2048, (60, 100)), rng.integers(-2048, 2048, (7, 100)), rng.integers(-(2**20), 2**20, 7)
    f_x, f_w = 8, 9
    to = FixedFormat(True, 14, 14 - (f_x + f_w - drop), *modes)  # type: ignore[arg-type]
    total = x @ w.T + b
    assert np.abs(total).max() > 2**24
    total = np.maximum(total, 0) if relu else total
    want = overflow(shift_round(total, np.array(drop), to.round), np.array(to.lo), np.array(to.hi), to.over)
    arrays = [np.ldexp(v.astype(np.float64), -e).astype(np.float32) for v, e in ((x, f_x), (w, f_w), (b, f_x + f_w))]
    found = jax.jit(affine_int32, static_argnums=(3, 4, 5, 6))(*arrays, f_x, f_x + f_w, relu, to)
    np.testing.assert_array_equal(np.ldexp(np.asarray(found, np.float64), to.f), want)


MINI = st.tuples(st.integers(1, 5), st.integers(0, 8), st.sampled_from(["floor", "half_up", "half_even"]))


@given(MINI, st.integers(-20, 20), st.integers(0, 2**32 - 1))
def test_int32_to_minifloats(mini: tuple[int, int, str], drop: int, seed: int) -> None:
    """Sums of any size, the smallest step of the format coarser and finer than theirs."""
    rng = np.random.default_rng(seed)
    x, w, b = rng.integers(-2048, 2048, (60, 100)), rng.integers(-2048, 2048, (7, 100)), rng.integers(-(2**20), 2**20, 7)
    x[:30] >>= rng.integers(0, 12, (30, 1))  # small sums too
    x[:3], f_x, f_w = 0, 8, 9
    b[:3] = rng.integers(-20, 20, 3)
    to = MiniFormat(*mini[:2], 0, mini[2]).at(f_x + f_w - drop)  # type: ignore[arg-type]
    total = x @ w.T + b
    want = requantise(total, np.full(7, f_x + f_w), quant_of(to))
    arrays = [jnp.asarray(np.ldexp(v.astype(np.float64), -e), jnp.float32) for v, e in ((x, f_x), (w, f_w), (b, f_x + f_w))]
    found = affine_int32(*arrays, f_x, f_x + f_w, False, to)
    np.testing.assert_array_equal(np.ldexp(np.asarray(found, np.float64), to.f), want)


@given(MINI, st.integers(-4, 10), st.integers(0, 2**32 - 1))
def test_a_mean_is_rounded_to_a_minifloat_once(mini: tuple[int, int, str], gain: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    total, count, f = rng.integers(-(2**16), 2**16, (300, 4)), rng.integers(0, 65, 300), 5
    to = MiniFormat(*mini[:2], 0, mini[2]).at(f + gain)  # type: ignore[arg-type]
    quotient = rounded_rational(total << max(gain, 0), np.maximum(count, 1)[:, None] << max(-gain, 0), quant_of(to))
    want = requantise(quotient, np.full(4, to.f), quant_of(to))
    found = pool_mean(jnp.asarray(np.ldexp(total.astype(np.float64), -f), jnp.float32), jnp.asarray(count, jnp.int32), f, to)
    np.testing.assert_array_equal(np.ldexp(np.asarray(found, np.float64), to.f), want)


def test_int32_has_the_gradient_of_the_float_form() -> None:
    to = parse_format("fixed<8,3>,half_even,sat")
    x, w, b = (jnp.round(jax.random.normal(jax.random.key(i), s) * 16) / 16 for i, s in enumerate(((20, 5), (3, 5), (3,))))

    def wide(*arrays: jax.Array) -> jax.Array:
        return (affine_int32(*arrays, 4, 8, True, to) ** 2).sum()

    def plain(*arrays: jax.Array) -> jax.Array:
        return (quantise(jax.nn.relu(affine(*arrays)), to) ** 2).sum()

    assert wide(x, w, b) == plain(x, w, b)
    for found, want in zip(jax.grad(wide, (0, 1, 2))(x, w, b), jax.grad(plain, (0, 1, 2))(x, w, b), strict=True):
        np.testing.assert_array_equal(found, want)


@given(MODES, st.integers(-4, 10), st.integers(0, 2**32 - 1))
def test_mean_is_one_exact_rational(modes: tuple[str, str], gain: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    total, count = rng.integers(-(2**16), 2**16, (300, 4)), rng.integers(0, 65, 300)
    f = 5
    to = FixedFormat(True, 12, 12 - (f + gain), *modes)  # type: ignore[arg-type]
    quotient = rational(total << max(gain, 0), np.maximum(count, 1)[:, None] << max(-gain, 0), to.round)
    want = overflow(quotient, np.array(to.lo), np.array(to.hi), to.over)
    found = jax.jit(pool_mean, static_argnums=(2, 3))(np.ldexp(total.astype(np.float64), -f).astype(np.float32), count.astype(np.int32), f, to)
    np.testing.assert_array_equal(np.ldexp(np.asarray(found, np.float64), to.f), want)


def test_mean_gradient() -> None:
    to = parse_format("fixed<12,6>,half_even,sat")
    found = jax.grad(lambda t: pool_mean(t, jnp.asarray([4, 0], jnp.int32), 5, to).sum())(jnp.asarray([[8.0, 1000.0], [3.0, 0.0]]))
    np.testing.assert_allclose(found, [[0.25, 0.0], [1.0, 1.0]])


@pytest.mark.parametrize("bits", [8, 12])
def test_below_the_bound_float32_is_exact_in_any_order(bits: int) -> None:
    """8x8 bits stay below 2**24 here and every order of summation agrees; 12x12 bits do not, which is what the bound is for."""
    rng = np.random.default_rng(3)
    top = 2 ** (bits - 1)
    x, w = rng.integers(-top, top, (200, 256)), rng.integers(-top, top, (16, 256))
    found = np.asarray(affine(jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32), jnp.zeros(16)))
    assert np.array_equal(found.astype(np.int64), x @ w.T) == (256 * top * top <= 2**24)
