"""Gradients of learned bits against what they stand for: finite differences of the expected value, and the bits counted one by one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hlt_train.precision.fixed import FixedFormat
from hlt_train.precision.learned import quantise_range, quantise_weight, significant_bits, whole

F32 = np.float32


@pytest.mark.parametrize("mode", ["floor", "half_up", "half_even"])
@pytest.mark.parametrize(("signed", "i", "f"), [(True, 2, 3), (False, 3, 2), (False, -1, 6), (True, -1, 1), (False, -2, 1)])
def test_the_grid_is_that_of_the_format(signed: bool, i: int, f: int, mode: str) -> None:
    """Width 0 included."""
    x = np.random.default_rng(1).normal(0, 6, 4000).astype(F32)
    x[:40] = np.arange(-20, 20) * 2.0**-f / 2
    width = max(i + f, 0) + int(signed) if i + f > 0 else 0
    to = FixedFormat(signed, (width,), (width - f,), mode, "sat")  # type: ignore[arg-type]
    found = quantise_range(jnp.asarray(x), jnp.full(1, f, F32), jnp.full(1, i, F32), signed, mode)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, to.nearest(jnp.asarray(x)))


@pytest.mark.parametrize("f", [1.0, 4.0])
def test_a_fraction_bit_halves_the_expected_error(f: float) -> None:
    """The gradient of sum |x - q| with respect to f against its finite difference: E|x - q| is 2^-f / 4 on x that are spread evenly."""
    x = jnp.asarray(np.random.default_rng(2).uniform(-4, 4, 200_000).astype(F32))

    def error(bits: jax.Array) -> jax.Array:
        return jnp.mean(jnp.abs(x - quantise_weight(x, bits, "half_even")))

    at = jnp.full(1, f, F32)
    slope = float(jax.grad(lambda bits: error(bits).sum())(at)[0])
    # dE/df of 2^-f / 4, and the exact ratio over one bit
    assert slope == pytest.approx(-np.log(2) * 2.0**-f / 4, rel=0.02)
    assert float(error(at + 1)) == pytest.approx(float(error(at)) / 2, rel=0.02)


def test_beyond_the_range_the_limit_moves_with_the_bits() -> None:
    """dq/di, dq/df and dq/dx of values beyond a limit; those inside move no integer bit."""
    x = jnp.array([9.0, -9.0, 1.3], jnp.float32)
    f, i = jnp.full(3, 2.0), jnp.full(3, 1.0)
    high = 2.0**1 - 2.0**-2
    assert quantise_range(x, f, i, True, "half_even").tolist() == [high, -2.0, 1.25]
    to_x, to_f, to_i = jax.grad(lambda *a: quantise_range(*a, True, "half_even").sum(), argnums=(0, 1, 2))(x, f, i)
    assert to_x.tolist() == [0, 0, 1]
    np.testing.assert_allclose(to_i, np.log(2) * np.array([2.0, -2.0, 0]), rtol=1e-6)
    np.testing.assert_allclose(to_f, np.log(2) * np.array([0.25, 0, 1.3 - 1.25]), rtol=1e-5)
    # an unsigned format ends at 0: what is below is no matter of bits
    assert jax.grad(lambda b: quantise_range(x[1:2], f[:1], b, False, "half_even").sum())(i[:1]).tolist() == [0]


def test_shared_bits_get_the_sum() -> None:
    x = jnp.asarray(np.random.default_rng(3).normal(0, 1, (5, 4)).astype(F32))
    own = jax.grad(lambda f: quantise_weight(x, f, "half_even").sum())(jnp.full((5, 4), 2.0))
    for shape, axes in (((5, 1), (1,)), ((1, 1), (0, 1)), ((4,), (0,))):
        shared = jax.grad(lambda f: quantise_weight(x, f, "half_even").sum())(jnp.full(shape, 2.0))
        np.testing.assert_allclose(shared, own.sum(axis=axes, keepdims=len(shape) == 2), rtol=1e-5, atol=1e-6)


def test_whole_bits_stay_within_their_limits() -> None:
    """Beyond a limit a gradient passes only if its step leads back."""
    bits, most = jnp.array([-9.0, 1.4, 7.6, 9.0]), jnp.float32(7)
    assert whole(bits, -4.0, most).tolist() == [-4, 1, 7, 7]
    for gradient, passed in ((1.0, [0, 1, 1, 1]), (-1.0, [-1, -1, 0, 0])):
        assert jax.grad(lambda b, g=gradient: g * whole(b, -4.0, most).sum())(bits).tolist() == passed


def test_significant_bits_one_by_one() -> None:
    numbers = np.arange(-300, 301)

    def counted(n: int) -> int:
        if n == 0:
            return 0
        while n % 2 == 0:
            n //= 2
        return n.bit_length() if n > 0 else (-n - 1).bit_length() + 1

    for f in (-2, 0, 5):
        found = significant_bits(jnp.asarray(np.ldexp(numbers.astype(F32), -f)), jnp.float32(f))
        assert found.tolist() == [counted(int(n)) for n in numbers]
