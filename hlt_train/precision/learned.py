"""Fixed-point formats whose bits are learned: quantisers with a gradient for the bits, and the bits that a value takes.

Fraction bits f and integer bits i (without the sign) are float32, used as the nearest integers; the grid is that of `FixedFormat`. After Sun et al.
(arXiv:2405.00645, section III): the rounding error of a value halves with one more fraction bit, d|x - q| / df = -ln 2 |x - q|, so dq/df = ln 2 (x - q).
Integer bits of activations are learned too, where the paper follows ranges: beyond the range q = 2**i - 2**-f, so dq/di = ln 2 2**i and dq/df = ln 2 2**-f.
Weights have no integer bits to learn: each takes those that it needs.

Bits that several values share get the sum of their gradients. Through the rounding to whole bits the gradient passes straight.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp

from hlt_train.precision.grid import Round, exponent_of, power, rounded

__all__ = ["quantise_range", "quantise_weight", "signed_digits", "significant_bits", "whole"]

LN2 = math.log(2)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def whole(bits: jax.Array, least: float, most: jax.Array) -> jax.Array:
    """Bits as whole numbers from `least` to `most`, float32. The gradient passes straight, but for a part that would lead farther out of these limits."""
    return jnp.clip(jnp.round(bits), least, most)


def _whole_ahead(bits: jax.Array, least: float, most: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return jnp.clip(jnp.round(bits), least, most), (bits, most)


def _whole_back(least: float, saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, None]:
    bits, most = saved
    outwards = ((bits <= least) & (gradient > 0)) | ((bits >= most) & (gradient < 0))  # a step goes against the gradient
    return jnp.where(outwards, 0, gradient), None


whole.defvjp(_whole_ahead, _whole_back)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def quantise_weight(x: jax.Array, f: jax.Array, mode: Round) -> jax.Array:
    """The multiple of 2**-f for each `x`; no value is out of range.

    Args:
        x: float32.
        f: whole numbers as float32, of a shape that broadcasts against x.
        mode: the rounding.
    """
    return rounded(x * power(f), mode) * power(-f)


def _weight_ahead(x: jax.Array, f: jax.Array, mode: Round) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    q = quantise_weight(x, f, mode)
    return q, (x - q, f)


def _weight_back(_mode: Round, saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    error, f = saved
    return gradient, _summed(LN2 * error * gradient, f)


quantise_weight.defvjp(_weight_ahead, _weight_back)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def quantise_range(x: jax.Array, f: jax.Array, i: jax.Array, signed: bool, mode: Round) -> jax.Array:
    """The value of the format with f fraction and i integer bits for each `x`; beyond its range the nearest limit, and 0 without any bits.

    Args:
        x: float32.
        f: whole numbers as float32, of a shape that broadcasts against x.
        i: likewise; the sign bit of a signed format is not among them.
        signed: whether values below 0 exist.
        mode: the rounding.
    """
    return _in_range(x, f, i, signed, mode)


def _limits(f: jax.Array, i: jax.Array, signed: bool) -> tuple[jax.Array, jax.Array]:
    """Smallest and largest integer."""
    top = jnp.where(f + i > 0, power(jnp.maximum(f + i, 0)), 0)
    return (-top if signed else jnp.zeros_like(top)), jnp.maximum(top - 1, 0)


def _in_range(x: jax.Array, f: jax.Array, i: jax.Array, signed: bool, mode: Round) -> jax.Array:
    low, high = _limits(f, i, signed)
    return jnp.clip(rounded(x * power(f), mode), low, high) * power(-f)


def _range_ahead(x: jax.Array, f: jax.Array, i: jax.Array, signed: bool, mode: Round) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _in_range(x, f, i, signed, mode), (x, f, i)


def _range_back(signed: bool, mode: Round, saved: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, ...]:
    x, f, i = saved
    (low, high), t = _limits(f, i, signed), x * power(f)
    above, below = t > high + 0.5, t < low - 0.5
    inside = ~(above | below)
    to_f = jnp.where(inside, x - _in_range(x, f, i, signed, mode), jnp.where(above, power(-f), 0))
    to_i = jnp.where(above, power(i), jnp.where(below & signed, -power(i), 0))
    return jnp.where(inside, gradient, 0), _summed(LN2 * to_f * gradient, f), _summed(LN2 * to_i * gradient, i)


quantise_range.defvjp(_range_ahead, _range_back)


def _summed(gradient: jax.Array, like: jax.Array) -> jax.Array:
    """The gradient of something that was broadcast."""
    extra = gradient.ndim - like.ndim
    shared = tuple(range(extra)) + tuple(extra + axis for axis, n in enumerate(like.shape) if n == 1 and gradient.shape[extra + axis] != 1)
    return jnp.sum(gradient, axis=shared).reshape(like.shape)


def significant_bits(q: jax.Array, f: jax.Array) -> jax.Array:
    """The bits of multiples q of 2**-f as `hlt_train.cost` counts them, float32: from the highest to the lowest that is set, one more for a sign; 0 for 0."""
    n = jnp.round(q * power(f)).astype(jnp.int32)
    odd = jax.lax.div(n, jnp.maximum(n & -n, 1)).astype(jnp.float32)  # nothing is left over
    size = jnp.where(odd > 0, odd, -odd - 1)
    return jnp.where(size >= 1, exponent_of(size) + 1, 0).astype(jnp.float32) + (odd < 0)


def signed_digits(q: jax.Array, f: jax.Array) -> jax.Array:
    """Digits other than 0 in the canonical signed form of multiples q of 2**-f, float32, as `hlt_train.lut_surrogate` counts them."""
    n = jnp.abs(jnp.round(q * power(f)).astype(jnp.int32))
    return jax.lax.population_count(n ^ (3 * n)).astype(jnp.float32)
