"""Pooling over the real constituents of a group: sum, max or mean, float or exact on a fixed-point grid."""

from __future__ import annotations

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from hlt_train.errors import UsageError
from hlt_train.models._layers import Grid
from hlt_train.precision.config import Precision
from hlt_train.precision.exact import EXACT_FLOAT32, EXACT_INT32, pool_mean
from hlt_train.precision.fixed import FixedFormat
from hlt_train.precision.formats import quantise

__all__ = ["Pooling", "pooling"]


class Pooling(eqx.Module):
    """`[n, length, features]` -> `[n, features]` over the constituents with index < count; 0 for count 0.

    Attributes:
        name: of the layer, `<group>_pool`.
        format: of the result (fixed point); the sum, maximum or mean itself is exact.
        source_f: exponent of what is pooled.
    """

    name: str = eqx.field(static=True)
    kind: Literal["sum", "max", "mean"] = eqx.field(static=True)
    format: FixedFormat | None = eqx.field(static=True)
    source_f: int = eqx.field(static=True)

    def __call__(self, x: jax.Array, mask: jax.Array, count: jax.Array) -> jax.Array:
        """x: `[n, length, features]`; mask: bool `[n, length]`; count: int32 `[n]`, within 0 and length."""
        if self.kind == "mean" and self.format is not None:
            return pool_mean(self._total(x, mask), count, self.source_f, self.format)
        value = self.accumulate(x, mask, count)
        return value if self.format is None else quantise(value, self.format)

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
    """The pooling of a group of at most `length` constituents; with `precision` its sums are checked to be exact."""
    name = f"{group}_pool"
    if precision is None or source is None:
        return Pooling(name, kind, None, 0)
    to = precision.fixed(name, "activations")
    f = max(source.f)
    top = max(t << (f - own) for t, own in zip(source.top, source.f, strict=True))
    where, then = f"precision.layers.{group}_phi", "use fewer bits for the last activations of phi"
    if kind != "max" and length * top >= EXACT_FLOAT32:
        raise UsageError(f"the sum over '{group}' can reach {length * top}, beyond what float32 holds exactly", where=where, then=then)
    up = np.asarray(to.f - f)
    if kind == "mean" and max(max(length * top, 1) * 2.0 ** up.max(initial=0), length * 2.0 ** -up.min(initial=0)) >= EXACT_INT32:
        raise UsageError(f"the mean over '{group}' needs more than 30 bits", where=where, then=f"{then}, or --set model.pool=sum")
    return Pooling(name, kind, to, f)
