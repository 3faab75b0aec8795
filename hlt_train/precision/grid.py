"""Rounding to integers and what happens beyond a range, in float32: the rules that every number format shares.

All of it is exact: scales are powers of two, nothing is divided, and no rounding adds one half, which would itself round.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["OVERFLOWS", "ROUNDINGS", "Ints", "Overflow", "Round", "exponent_of", "folded", "on_grid", "on_grid_at_once", "power", "rounded"]

Round = Literal["floor", "half_up", "half_even", "stochastic"]
Overflow = Literal["wrap", "sat", "sat_sym"]
ROUNDINGS: tuple[Round, ...] = get_args(Round)
OVERFLOWS: tuple[Overflow, ...] = get_args(Overflow)
Exponents = np.ndarray | jax.Array  # int32
Ints = int | np.ndarray  # one for all, or an int64 array that broadcasts against the values


def power(exponent: Ints | jax.Array) -> jax.Array:
    """2**exponent as float32, exact; integers from -126 to 127."""
    if isinstance(exponent, jax.Array):
        return jax.lax.bitcast_convert_type((exponent.astype(jnp.int32) + 127) << 23, jnp.float32)
    if isinstance(exponent, int):
        return jnp.asarray(math.ldexp(1.0, exponent), jnp.float32)
    return jnp.asarray(np.ldexp(np.float64(1), exponent), jnp.float32)


def exponent_of(x: jax.Array) -> jax.Array:
    """floor(log2 |x|) as int32; -127 for 0 and for subnormal numbers."""
    return ((jax.lax.bitcast_convert_type(jnp.abs(x), jnp.int32)) >> 23) - 127


def folded(key: jax.Array | None, number: int) -> jax.Array | None:
    """A key of its own for part `number`; None (no training) stays None."""
    return None if key is None else jax.random.fold_in(key, number)


def rounded(t: jax.Array, mode: Round, key: jax.Array | None = None) -> jax.Array:
    """T rounded to an integer by the mode; `stochastic` rounds up with the probability of its fraction.

    Args:
        t: float32; exact for every value.
        mode: a rounding; `stochastic` needs a key and is `half_even` without one, as a network is outside of training.
        key: of the random numbers.
    """
    if mode == "half_even" or (mode == "stochastic" and key is None):
        return jnp.round(t)
    low = jnp.floor(t)
    if mode == "floor":
        return low
    if mode == "half_up":
        return low + (t - low >= 0.5)
    assert key is not None
    return low + (jax.random.uniform(key, t.shape) < t - low)


def on_grid(
    x: jax.Array, f: Ints | jax.Array, lo: Ints | jax.Array, hi: Ints | jax.Array, mode: Round, over: Overflow, key: jax.Array | None = None
) -> jax.Array:
    """The fixed-point value n * 2**-f, lo <= n <= hi, that stands for each `x`. key: as in `rounded`."""
    return _overflowed(rounded(x * power(f), mode, key), lo, hi, over) * power(-1 * f)


@partial(jax.jit, static_argnames=("mode", "over"))
def on_grid_at_once(x: jax.Array, f: Exponents, lo: Exponents, hi: Exponents, mode: Round, over: Overflow) -> jax.Array:
    """`on_grid` for numbers that are there: one program for all formats of a shape, where each operation would be one for each format."""
    return on_grid(x, jnp.asarray(f), jnp.asarray(lo), jnp.asarray(hi), mode, over)


def _overflowed(n: jax.Array, lo: Ints | jax.Array, hi: Ints | jax.Array, over: Overflow) -> jax.Array:
    """Integers brought into [lo, hi]: the nearest limit, or modulo the number of values. Saturation is exact for every n, wrap for |n| < 2**24."""
    least, most = (jnp.asarray(v, jnp.float32) for v in (lo, hi))
    if over != "wrap":
        return jnp.clip(n, least, most)
    span = most - least + 1  # a power of two: dividing by it is exact
    rest = n - jnp.floor(n / span) * span
    return jnp.where(rest > most, rest - span, rest)
