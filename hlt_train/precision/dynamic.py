"""Dynamic fixed point (Courbariaux, Bengio, David, "Training deep neural networks with low precision multiplications", arXiv:1412.7024v5, section 5).

The numbers of a group share one exponent, which follows them: when more than a given rate of them lies beyond the range, the range is doubled; when not more
would lie beyond half the range, it is halved (algorithm 1 there, and every 10,000 examples). The exponent is written as the integer bits I of `fixed<W,I>`.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from hlt_train.precision.grid import Round, exponent_of, on_grid, power

__all__ = ["REACH", "DynamicFormat", "holding", "moved", "rates"]

REACH = 60  # integer bits stay within +-60: scales are normal float32


@dataclass(frozen=True)
class DynamicFormat:
    """W bits, signed, saturating; the integer bits are an argument of everything. round: as in `FixedFormat`."""

    width: int
    round: Round

    @property
    def hi(self) -> int:
        """The largest integer n of n * 2**(I - W); the smallest is -hi - 1."""
        return (1 << self.width - 1) - 1

    def nearest(self, x: jax.Array, integer: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """The value of the format that stands for each `x` when the group has `integer` integer bits (float32, a whole number)."""
        return on_grid(x, self.width - integer.astype(jnp.int32), -self.hi - 1, self.hi, self.round, "sat", key)

    def rates(self, x: jax.Array, integer: jax.Array) -> jax.Array:
        """`rates` of the group."""
        return rates(x, power(integer.astype(jnp.int32) - 1))

    def __str__(self) -> str:
        return f"dynamic<{self.width}>"


def rates(x: jax.Array, top: jax.Array) -> jax.Array:
    """float32 [3]: the fraction of `x` beyond a range that ends at `top`, the fraction beyond half of it, and the fewest signed integer bits for all of `x`."""
    size = jnp.abs(x)
    return jnp.stack([jnp.mean(size >= top, dtype=jnp.float32), jnp.mean(size >= 0.5 * top, dtype=jnp.float32), holding(x)])


def holding(x: jax.Array) -> jax.Array:
    """The fewest integer bits (float32, a whole number) that hold all of `x`; -60 where all are 0."""
    return jnp.clip(exponent_of(jnp.max(jnp.abs(x), initial=0.0)) + 2, -REACH, REACH).astype(jnp.float32)


def moved(integer: jax.Array, rates: jax.Array, most: float) -> jax.Array:
    """The integer bits after a period with these mean rates (`[..., 3]`): one more, one fewer, or the same."""
    step = jnp.where(rates[..., 0] > most, 1.0, jnp.where(rates[..., 1] <= most, -1.0, 0.0))
    return jnp.clip(integer + step, -REACH, REACH)
