"""Pooling over the real constituents of a group: sum, max or mean, float or exact on a fixed-point grid."""

from __future__ import annotations

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from hlt_train.models._layers import Grid
from hlt_train.precision.config import Precision
from hlt_train.precision.exact import EXACT_FLOAT32, EXACT_INT32, pool_mean
from hlt_train.precision.fixed import FixedFormat
from hlt_train.precision.followed import Exponents, exponents_of, followed
from hlt_train.precision.formats import NumberFormat, quantise

__all__ = ["Pooling", "pooling"]


class Pooling(eqx.Module):
    """`[n, length, features]` -> `[n, features]` over the constituents with index < count; 0 for count 0.

    Attributes:
        name: of the layer, `<group>_pool`.
        format: of the result (fixed point); the sum, maximum or mean itself is exact.
        source_f: exponent of what is pooled.
        whole: a mean is the exact rational rounded once, as its sums and quotients fit; otherwise float32 comes near it, and the golden model has it exactly.
    """

    name: str = eqx.field(static=True)
    kind: Literal["sum", "max", "mean"] = eqx.field(static=True)
    format: NumberFormat | None = eqx.field(static=True)
    source_f: int = eqx.field(static=True)
    whole: bool = eqx.field(static=True)
    exponents: Exponents | None

    def __call__(self, x: jax.Array, mask: jax.Array, count: jax.Array) -> jax.Array:
        """x: `[n, length, features]`; mask: bool `[n, length]`; count: int32 `[n]`, within 0 and length."""
        if self.kind == "mean" and self.format is not None and self.whole and self.exponents is None:
            return pool_mean(self._total(x, mask), count, self.source_f, self.format)
        value = self.accumulate(x, mask, count)
        if self.exponents is not None and isinstance(self.format, FixedFormat):
            return followed(value, self.exponents.values[0], None, self.format)
        return value if self.format is None else quantise(value, self.format)

    def grid(self, features: int) -> Grid | None:
        """What its features can be; None for a float network."""
        return None if self.format is None else Grid.of(self.format, features, self.name)

    def accumulate(self, x: jax.Array, mask: jax.Array, count: jax.Array) -> jax.Array:
        """The float32 value before the loss of bits."""
        if self.kind == "sum":
            return self._total(x, mask)
        if self.kind == "mean":
            return self._total(x, mask) / jnp.maximum(count, 1).astype(jnp.float32)[:, None]
        largest = jnp.max(jnp.where(mask[..., None], x, -jnp.inf), axis=1)
        return jnp.where((count > 0)[:, None], largest, 0)

    @staticmethod
    def _total(x: jax.Array, mask: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(mask[..., None], x, 0), axis=1)


def pooling(group: str, length: int, kind: Literal["sum", "max", "mean"], source: Grid | None, precision: Precision | None) -> Pooling:
    """The pooling of a group of at most `length` constituents; with `precision` it is on a grid."""
    name = f"{group}_pool"
    if precision is None or source is None:
        return Pooling(name, kind, None, 0, whole=True, exponents=None)
    to = precision.activation(name)
    f = max(source.f)
    top = max(t << (f - own) for t, own in zip(source.top, source.f, strict=True))
    up = np.asarray(to.f - f)
    quotient = max(max(length * top, 1) * 2.0 ** up.max(initial=0), length * 2.0 ** -up.min(initial=0))
    return Pooling(name, kind, to, f, whole=bool(length * top < EXACT_FLOAT32 and quotient < EXACT_INT32), exponents=exponents_of(to))
