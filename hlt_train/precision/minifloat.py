"""Minifloat formats: sign, E exponent bits, M mantissa bits, subnormal numbers, and no code spent on infinities or NaN.

The value of exponent code c and mantissa m is +-(1 + m 2**-M) 2**(c - B) for c >= 1, and +-m 2**(1 - B - M) for c = 0. B is IEEE's bias 2**(E-1) - 1 unless
given. E2M1, E2M3 and E3M2 are those of the OCP formats for microscaling (v1.0, 5.3); E4M3 reaches 480 here (OCP's keeps one code for NaN and reaches 448),
E5M2 reaches 114688 (57344). Beyond the largest number every format saturates.

Every value is an integer times 2**-(B + M - 1), which is how a student of small formats is lowered to integers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from hlt_train.errors import UsageError
from hlt_train.precision.grid import Round, exponent_of, power, rounded

__all__ = ["MiniFormat"]


@dataclass(frozen=True)
class MiniFormat:
    """A minifloat format with its rounding; it saturates.

    Attributes:
        exponent: E, 1 to 7 bits.
        mantissa: M, 0 to 23 bits.
        bias: B; None = `auto`, not chosen yet.
        round: as in `FixedFormat`, to multiples of the step at the number; half_even with M = 0 takes the larger of two that are equally near, and 0.
    """

    exponent: int
    mantissa: int
    bias: int | None
    round: Round

    @property
    def width(self) -> int:
        """Bits, the sign among them."""
        return 1 + self.exponent + self.mantissa

    @property
    def f(self) -> int:
        """Every value is n * 2**-f with an integer n."""
        if self.bias is None:
            raise UsageError(f"the bias of '{self}' is not chosen yet", then="calibrate the format, or write a number in place of auto")
        return self.bias + self.mantissa - 1

    @property
    def hi(self) -> int:
        """The largest n."""
        return ((2 << self.mantissa) - 1) << ((1 << self.exponent) - 2)

    @property
    def lo(self) -> int:
        """The smallest n."""
        return -self.hi

    def fitted(self, largest: float) -> MiniFormat:
        """This format with the largest bias, so the finest step, that holds +-`largest` (a tenth of a step beyond the last value is let go)."""
        if largest <= 0:
            return replace(self, bias=(1 << self.exponent - 1) - 1)
        step = 1 << ((1 << self.exponent) - 2)
        f = int(np.floor(np.log2((self.hi + 0.1 * step) / largest)))
        return replace(self, bias=min(f, 126) + 1 - self.mantissa)

    def at(self, f: int) -> MiniFormat:
        """The format whose finest step is 2**-f."""
        return replace(self, bias=f + 1 - self.mantissa)

    def scaled(self, k: int) -> MiniFormat:
        """The format whose values are 2**k times as large."""
        assert self.bias is not None
        return replace(self, bias=self.bias - k)

    @property
    def reach(self) -> tuple[float, float]:
        """Smallest and largest n, with half a step beyond, up to which a gradient passes."""
        most = self.hi + 0.5 * (1 << (1 << self.exponent) - 2)
        return -most, most

    def nearest(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """The value of the format that stands for each `x`."""
        t = x * power(self.f)
        drop = jnp.clip(exponent_of(t) - self.mantissa, 0, (1 << self.exponent) - 2)  # bits below the mantissa; subnormal numbers keep the smallest step
        n = rounded(t * power(-drop), self.round, key) * power(drop)
        return jnp.clip(n, float(self.lo), float(self.hi)) * power(-self.f)

    def __str__(self) -> str:
        return f"minifloat<{self.exponent},{self.mantissa},{'auto' if self.bias is None else self.bias}>,{self.round}"
