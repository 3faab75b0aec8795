"""Fixed point whose integer bits follow the values while a student is trained on its grid: `dynamic<W>`.

The exponents of a layer's dynamic formats are one more leaf of the layer, `Exponents`. Its "gradient" is not a gradient but what the quantisers counted
(`hlt_train.precision.dynamic.rates`), so that the mean over workers and devices is the rate over all of them; `hlt_train.following` makes steps of it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hlt_train.precision.dynamic import rates
from hlt_train.precision.fixed import FixedFormat
from hlt_train.precision.formats import Format
from hlt_train.precision.grid import on_grid, power

__all__ = ["Exponents", "exponents_of", "followed", "follows"]


class Exponents(NamedTuple):
    """values: float32 `[formats, 3]`, the integer bits of each dynamic format of a layer in `[:, 0]` and two places that its counts come through."""

    values: Any


def follows(to: Format | None) -> bool:
    """Whether the integer bits of a format move in training."""
    return isinstance(to, FixedFormat) and to.dynamic


def exponents_of(*formats: Format | None) -> Exponents | None:
    """The exponents of those formats that are dynamic, in order, as they are at first; None where none is."""
    found = [[float(to.integer), 0.0, 0.0] for to in formats if isinstance(to, FixedFormat) and to.dynamic and isinstance(to.integer, int)]
    return Exponents(jnp.asarray(found, jnp.float32)) if found else None


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def followed(x: jax.Array, scale: jax.Array, key: jax.Array | None, to: FixedFormat) -> jax.Array:
    """As `quantise`, with the integer bits of `scale`.

    Args:
        x: float32, any shape.
        scale: float32 `[3]`, a row of `Exponents`; its gradient is what was counted.
        key: for stochastic rounding; without one it is half_even.
        to: the format, whose own integer bits do not matter.
    """
    return on_grid(x, _f(scale, to), to.lo, to.hi, to.round, to.over, key)


def _f(scale: jax.Array, to: FixedFormat) -> jax.Array:
    assert isinstance(to.width, int)
    return to.width - scale[0].astype(jnp.int32)


def _forward(x: jax.Array, scale: jax.Array, key: jax.Array | None, to: FixedFormat) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    f = _f(scale, to)
    step, (low, high) = power(-f), to.reach
    counted = rates(x, power(scale[0].astype(jnp.int32) - int(to.signed)))
    return followed(x, scale, key, to), ((x >= low * step) & (x <= high * step), counted)


def _backward(_to: FixedFormat, saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    inside, counted = saved
    return jnp.where(inside, gradient, 0), counted, None


followed.defvjp(_forward, _backward)
