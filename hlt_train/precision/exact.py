"""Affine maps and means of grid values that are exact: float32 while sums stay below 2**24, int32 above."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from hlt_train.precision.fixed import FixedFormat, power, quantise

__all__ = ["EXACT_FLOAT32", "EXACT_INT32", "affine", "affine_int32", "pool_mean"]

EXACT_FLOAT32 = 2**24  # sums of integers below this are exact in float32, in any order
EXACT_INT32 = 2**30  # below 2**31 with room for the rounding constant


def affine(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
    """X w^T + b over the last axis in float32 (never TF32); w is `[outputs, inputs]`."""
    total: jax.Array = jnp.matmul(x, w.T, precision=jax.lax.Precision.HIGHEST) + b
    return total


def _float(x: jax.Array, w: jax.Array, b: jax.Array, relu: bool, to: FixedFormat | None) -> jax.Array:
    value = affine(x, w, b)
    value = jax.nn.relu(value) if relu else value
    return value if to is None else quantise(value, to)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def affine_int32(x: jax.Array, w: jax.Array, b: jax.Array, f_x: int, f_w: int, relu: bool, to: FixedFormat | None) -> jax.Array:
    """As `affine`, ReLU and `quantise` on values whose sums may exceed 2**24: summed and rounded in int32, gradient of the float form.

    Args:
        x: on the grid 2**-f_x, `[..., inputs]`.
        w: on the grid 2**-f_w, `[outputs, inputs]`.
        b: on the grid 2**-(f_x + f_w).
        f_x: exponent of x.
        f_w: exponent of w.
        relu: apply ReLU.
        to: format of the result; None gives the accumulators as float32, rounded to 24 bits (for a loss only).
    """
    f = f_x + f_w
    integers = [jnp.round(v * power(e)).astype(jnp.int32) for v, e in ((x, f_x), (w, f_w), (b, f))]
    total = jnp.matmul(integers[0], integers[1].T) + integers[2]
    total = jnp.maximum(total, 0) if relu else total
    if to is None:
        return _value(total, f)
    return _value(_requantised(total, f - to.f, to), to.f)


def _requantised(n: jax.Array, drop: int, to: FixedFormat) -> jax.Array:
    """int32 -> int32 with `drop` (-6 to 30) fraction bits fewer, rounded, then brought into the format."""
    if drop > 0:
        n = _divided(n, jnp.int32(2**drop), to.round)
    elif to.over == "wrap":
        n = n << -drop  # bits that leave int32 are above those that wrap away
    else:
        limit = 2 ** (31 + drop) - 1  # what is cut here saturates below all the same
        n = jnp.clip(n, -limit, limit) << -drop
    if to.over != "wrap":
        return jnp.clip(n, to.lo, to.hi)
    rest = n & (2**to.width - 1)
    return jnp.where(rest > to.hi, rest - 2**to.width, rest)


def _value(n: jax.Array, f: int) -> jax.Array:
    value: jax.Array = n.astype(jnp.float32) * power(-f)
    return value


def _divided(n: jax.Array, by: jax.Array, mode: str) -> jax.Array:
    """N / by, an exact rational, rounded to an integer; by > 0."""
    low = jnp.floor_divide(n, by)
    rest = n - low * by
    if mode == "floor":
        return low
    if mode == "half_up":
        return low + (rest >= by - rest)
    return low + ((rest > by - rest) | ((rest == by - rest) & (low % 2 == 1)))


def _int32_forward(
    x: jax.Array, w: jax.Array, b: jax.Array, f_x: int, f_w: int, relu: bool, to: FixedFormat | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    return affine_int32(x, w, b, f_x, f_w, relu, to), (x, w, b)


def _int32_backward(
    _f_x: int, _f_w: int, relu: bool, to: FixedFormat | None, saved: tuple[jax.Array, jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    _, pull = jax.vjp(lambda x, w, b: _float(x, w, b, relu, to), *saved)
    found: tuple[jax.Array, jax.Array, jax.Array] = pull(gradient)
    return found


affine_int32.defvjp(_int32_forward, _int32_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def pool_mean(total: jax.Array, count: jax.Array, f: int, to: FixedFormat) -> jax.Array:
    """The mean total / max(count, 1), one exact rational rounded once to the format.

    Args:
        total: sums on the grid 2**-f, `[n, features]`; total * 2**to.f stays below 2**30.
        count: int32 `[n]`.
        f: exponent of `total`.
        to: format of the result.
    """
    n = jnp.round(total * power(f)).astype(jnp.int32)
    by = jnp.maximum(count, 1)[:, None]
    up = to.f - f
    mean = _divided(n << max(up, 0), by << max(-up, 0), to.round)
    return _value(_requantised(mean, 0, to), to.f)


def _mean_forward(total: jax.Array, count: jax.Array, f: int, to: FixedFormat) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return pool_mean(total, count, f, to), (total, count)


def _mean_backward(_f: int, to: FixedFormat, saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, None]:
    total, count = saved
    _, pull = jax.vjp(lambda t: quantise(t / jnp.maximum(count, 1)[:, None], to), total)
    return pull(gradient)[0], None


pool_mean.defvjp(_mean_forward, _mean_backward)
