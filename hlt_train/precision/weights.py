"""Formats of weights whose product is a shift, a sign or nothing: powers of two, ternary, binary.

    pow2<W,I>      0 and +-2**k; the largest is 2**(I-1), and W bits (sign, code of the exponent, one code for 0) reach 2**(W-1) - 1 exponents below it
    ternary<I>     -2**(I-1), 0, 2**(I-1)
    binary<I>      -2**(I-1), 2**(I-1)

Each takes the nearest value; between two it takes the one farther from 0, binary takes the positive one at 0. They are ordinary integers in a graph
(`docs/numbers.md`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp

from hlt_train.errors import UsageError
from hlt_train.precision.grid import power

__all__ = ["WeightFormat"]


@dataclass(frozen=True)
class WeightFormat:
    """A format of few values.

    Attributes:
        kind: pow2, ternary or binary.
        width: bits of a weight: W, 2, 1.
        integer: I; None = `auto`, not chosen yet.
    """

    kind: Literal["pow2", "ternary", "binary"]
    width: int
    integer: int | None

    @property
    def f(self) -> int:
        """Every value is n * 2**-f with an integer n."""
        if self.integer is None:
            raise UsageError(f"the scale of '{self}' is not chosen yet", then="calibrate the format, or write a number in place of auto")
        return self._below + 1 - self.integer

    @property
    def _below(self) -> int:
        """Exponents below the largest."""
        return (1 << self.width - 1) - 2 if self.kind == "pow2" else 0

    @property
    def hi(self) -> int:
        """The largest n."""
        return 1 << self._below

    @property
    def lo(self) -> int:
        """The smallest n."""
        return -self.hi

    def fitted(self, largest: float) -> WeightFormat:
        """This format with the smallest largest value that is not below `largest` (a tenth of it is let go)."""
        return replace(self, integer=1 + math.ceil(math.log2(largest * 0.9)) if largest > 0 else 1)

    def at(self, f: int) -> WeightFormat:
        """The format whose smallest step is 2**-f."""
        return replace(self, integer=self._below + 1 - f)

    def scaled(self, k: int) -> WeightFormat:
        """The format whose values are 2**k times as large."""
        assert self.integer is not None
        return replace(self, integer=self.integer + k)

    @property
    def reach(self) -> tuple[float, float]:
        """Smallest and largest n, with the half step to the next value beyond, up to which a gradient passes (binary: the values, as in BinaryConnect)."""
        most = {"pow2": 1.5 * self.hi, "ternary": 1.5, "binary": 1.0}[self.kind]
        return -most, most

    def nearest(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """The value of the format that stands for each `x`."""
        del key
        t = x * power(self.f)
        if self.kind == "binary":
            return jnp.where(t >= 0, 1.0, -1.0) * power(-self.f)
        size = jnp.abs(t)
        # Adding half a unit of the exponent to the bits carries into it from 1.5 * 2**k on, which lies halfway between two powers of two.
        bits = jax.lax.bitcast_convert_type(size, jnp.int32)
        up = jax.lax.bitcast_convert_type((bits + 0x400000) & 0x7F800000, jnp.float32)
        n = jnp.where(size < 0.5, 0.0, jnp.clip(up, 1.0, self.hi))
        return jnp.sign(t) * n * power(-self.f)

    def __str__(self) -> str:
        integer = "auto" if self.integer is None else self.integer
        return f"pow2<{self.width},{integer}>" if self.kind == "pow2" else f"{self.kind}<{integer}>"
