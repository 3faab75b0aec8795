"""Affine maps and means of grid values that are exact: float32 while sums stay below 2**24, int32 above."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from hlt_train.precision.fixed import Bits, FixedFormat, numbers
from hlt_train.precision.formats import NumberFormat, quantise
from hlt_train.precision.grid import Ints, Round, power
from hlt_train.precision.minifloat import MiniFormat

__all__ = ["EXACT_FLOAT32", "EXACT_INT32", "affine", "affine_int32", "pool_mean"]

EXACT_FLOAT32 = 2**24  # sums of integers below this are exact in float32, in any order
EXACT_INT32 = 2**30  # below 2**31 with room for the rounding constant


def affine(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
    """X w^T + b over the last axis in float32 (never TF32); w is `[outputs, inputs]`."""
    total: jax.Array = jnp.matmul(x, w.T, precision=jax.lax.Precision.HIGHEST) + b
    return total


def _float(x: jax.Array, w: jax.Array, b: jax.Array, relu: bool, to: NumberFormat | None) -> jax.Array:
    value = affine(x, w, b)
    value = jax.nn.relu(value) if relu else value
    return value if to is None else quantise(value, to)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def affine_int32(x: jax.Array, w: jax.Array, b: jax.Array, f_x: int, f: Bits, relu: bool, to: NumberFormat | None) -> jax.Array:
    """As `affine`, ReLU and `quantise` on values whose sums may exceed 2**24: summed and rounded in int32, gradient of the float form.

    Args:
        x: on the grid 2**-f_x, `[..., inputs]`.
        w: row o on the grid 2**-(f[o] - f_x), `[outputs, inputs]`.
        b: on the grid 2**-f, `[outputs]`.
        f_x: exponent of x.
        f: exponent of the sums, one for all or one per output.
        relu: apply ReLU.
        to: format of the result; None gives the accumulators as float32, rounded to 24 bits (for a loss only).
    """
    total_f = numbers(f)
    of_w = total_f - f_x if isinstance(total_f, int) else (total_f - f_x)[:, None]
    integers = [jnp.round(v * power(e)).astype(jnp.int32) for v, e in ((x, f_x), (w, of_w), (b, total_f))]
    total = jnp.matmul(integers[0], integers[1].T) + integers[2]
    total = jnp.maximum(total, 0) if relu else total
    if to is None:
        return _value(total, total_f)
    if isinstance(to, MiniFormat):
        return _minifloat(total, jnp.ones_like(total), total_f - to.f, to)
    return _value(_requantised(total, total_f - to.f, to), to.f)


def _requantised(n: jax.Array, drop: Ints, to: FixedFormat) -> jax.Array:
    """int32 -> int32 with `drop` (-6 to 30; one number, or one per feature) fraction bits fewer, rounded, then brought into the format."""
    right, left = np.maximum(drop, 0), np.maximum(-1 * drop, 0)
    if right.any():
        n = _divided(n, jnp.asarray(np.left_shift(1, right), jnp.int32), to.round)
    if left.any() and to.over != "wrap":  # with wrap, bits that leave int32 are above those that wrap away
        limit = np.right_shift(2**31 - 1, left)
        n = jnp.clip(n, -limit, limit)  # what is cut here saturates below all the same
    n = n << jnp.asarray(left, jnp.int32)
    lo, hi = (jnp.asarray(v, jnp.int32) for v in (to.lo, to.hi))
    if to.over != "wrap":
        return jnp.clip(n, lo, hi)
    rest = n & (hi - lo)
    return jnp.where(rest > hi, rest - (hi - lo + 1), rest)


def _minifloat(n: jax.Array, by: jax.Array, shift: Ints, to: MiniFormat) -> jax.Array:
    """The minifloat that the exact rational n / by * 2**-shift of the smallest steps stands for, rounded once.

    Args:
        n: int32, below 2**30.
        by: int32 > 0, below 2**30; a power of two where `shift` is not 0.
        shift: at most 30.
        to: the format.
    """
    size = jnp.abs(n) // by
    below = jnp.clip(31 - jax.lax.clz(size) - shift - to.mantissa, 0, (1 << to.exponent) - 2)  # bits below the mantissa; beyond the format it saturates
    right = shift + below
    # A number of more significant bits than the mantissa has is rounded here; any other is exact, so float32 may shift it to the left.
    near = _divided(n, by << jnp.maximum(right, 0), to.round).astype(jnp.float32) * power(jnp.maximum(-right, 0) + below)
    return jnp.clip(near, float(to.lo), float(to.hi)) * power(-to.f)


def _value(n: jax.Array, f: Ints) -> jax.Array:
    value: jax.Array = n.astype(jnp.float32) * power(-1 * f)
    return value


def _divided(n: jax.Array, by: jax.Array, mode: Round) -> jax.Array:
    """N / by, an exact rational, rounded to an integer; by > 0."""
    low = jnp.floor_divide(n, by)
    rest = n - low * by
    if mode == "floor":
        return low
    if mode == "half_up":
        return low + (rest >= by - rest)
    return low + ((rest > by - rest) | ((rest == by - rest) & (low % 2 == 1)))


def _int32_forward(
    x: jax.Array, w: jax.Array, b: jax.Array, f_x: int, f: Bits, relu: bool, to: NumberFormat | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    return affine_int32(x, w, b, f_x, f, relu, to), (x, w, b)


def _int32_backward(
    _f_x: int, _f: Bits, relu: bool, to: NumberFormat | None, saved: tuple[jax.Array, jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    _, pull = jax.vjp(lambda x, w, b: _float(x, w, b, relu, to), *saved)
    found: tuple[jax.Array, jax.Array, jax.Array] = pull(gradient)
    return found


affine_int32.defvjp(_int32_forward, _int32_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def pool_mean(total: jax.Array, count: jax.Array, f: int, to: NumberFormat) -> jax.Array:
    """The mean total / max(count, 1), one exact rational rounded once to the format.

    Args:
        total: sums on the grid 2**-f, `[n, features]`; total * 2**to.f stays below 2**30.
        count: int32 `[n]`.
        f: exponent of `total`.
        to: format of the result.
    """
    n = jnp.round(total * power(f)).astype(jnp.int32)
    by = jnp.maximum(count, 1)[:, None]
    up = np.asarray(to.f - f)
    if isinstance(to, MiniFormat):
        return _minifloat(n << jnp.asarray(np.maximum(up, 0), jnp.int32), by << jnp.asarray(np.maximum(-up, 0), jnp.int32), 0, to)
    mean = _divided(n << jnp.asarray(np.maximum(up, 0), jnp.int32), by << jnp.asarray(np.maximum(-up, 0), jnp.int32), to.round)
    return _value(_requantised(mean, 0, to), to.f)


def _mean_forward(total: jax.Array, count: jax.Array, f: int, to: NumberFormat) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return pool_mean(total, count, f, to), (total, count)


def _mean_backward(_f: int, to: FixedFormat, saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, None]:
    total, count = saved
    _, pull = jax.vjp(lambda t: quantise(t / jnp.maximum(count, 1)[:, None], to), total)
    return pull(gradient)[0], None


pool_mean.defvjp(_mean_forward, _mean_backward)
