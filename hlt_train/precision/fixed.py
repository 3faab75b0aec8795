"""Fixed-point formats and their straight-through quantiser.

`fixed<W,I>` and `ufixed<W,I>` are read as ap_fixed: W bits in all, of which I (with the sign bit) before the binary point; I may be negative or exceed W.
The grid is n * 2**-(W-I). Rounding and overflow are always explicit: `fixed<8,2>,half_even,sat`.

A quantiser returns the grid value itself (never `x + stop_gradient(q - x)`, which leaves the grid where x is large), scales are powers of two, nothing is
divided by a constant: on a grid whose sums stay below 2**24, float32 then computes what the integers compute (`docs/numbers.md`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from hlt_train.errors import UsageError, nearest

__all__ = ["MAX_WIDTH", "OVERFLOWS", "ROUNDINGS", "FixedFormat", "parse_format", "power", "quantise"]

Round = Literal["floor", "half_up", "half_even"]
Overflow = Literal["wrap", "sat", "sat_sym"]
ROUNDINGS: tuple[Round, ...] = get_args(Round)
OVERFLOWS: tuple[Overflow, ...] = get_args(Overflow)
MAX_WIDTH = 24  # a float32 holds every integer of 24 bits
MIN_EXPONENT = -126  # below it float32 is subnormal, which XLA flushes to zero

_TEXT = re.compile(r"\s*(?P<kind>u?fixed)\s*<\s*(?P<width>\d+)\s*,\s*(?P<integer>auto|[+-]?\d+)\s*>\s*(?P<modes>(?:,\s*\w+\s*)*)")


@dataclass(frozen=True)
class FixedFormat:
    """A fixed-point format with its rounding and overflow.

    Attributes:
        signed: `fixed` (two's complement) or `ufixed`.
        width: W, bits in all; 1 to 24.
        integer: I, bits before the binary point with the sign bit; None = `auto`, not chosen yet.
        round: floor (TRN), half_up (RND) or half_even (RND_CONV).
        over: wrap, sat or sat_sym (the most negative integer is not used).
    """

    signed: bool
    width: int
    integer: int | None
    round: Round
    over: Overflow

    @property
    def f(self) -> int:
        """Fraction bits: the value of the integer n is n * 2**-f."""
        if self.integer is None:
            raise UsageError(f"the integer bits of '{self}' are not chosen yet", then="calibrate the format, or write a number in place of auto")
        return self.width - self.integer

    @property
    def lo(self) -> int:
        """Smallest integer n."""
        if not self.signed:
            return 0
        return -(1 << self.width - 1) + int(self.over == "sat_sym")

    @property
    def hi(self) -> int:
        """Largest integer n."""
        return (1 << self.width - int(self.signed)) - 1

    def fitted(self, largest: float) -> FixedFormat:
        """This format with the fewest integer bits that hold +-`largest` without saturation (a tenth of a step beyond the last point is let go)."""
        integer = int(self.signed)
        top = self.hi if self.hi > 0 else 1
        if largest > 0:
            while top * 2.0 ** (integer - self.width) < largest * (1 - 0.1 / top):
                integer += 1
            while top * 2.0 ** (integer - 1 - self.width) >= largest * (1 - 0.1 / top) and self.width - integer < -MIN_EXPONENT:
                integer -= 1
        return replace(self, integer=integer)

    def __str__(self) -> str:
        return f"{'' if self.signed else 'u'}fixed<{self.width},{'auto' if self.integer is None else self.integer}>,{self.round},{self.over}"


def parse_format(text: str, *, round: Round | None = None, over: Overflow | None = None) -> FixedFormat:
    """Read `fixed<W,I>,ROUND,OVER`. `round` and `over` stand for modes that the text leaves out; without them a missing mode is refused: none is assumed."""
    found = _TEXT.fullmatch(text)
    if found is None:
        raise UsageError(f"'{text}' is not a number format", near=nearest(text, ("fixed<8,2>", "ufixed<8,3>")), then="write fixed<W,I>,half_even,sat")
    for mode in (part.strip() for part in found["modes"].split(",") if part.strip()):
        if mode in ROUNDINGS:
            round = mode
        elif mode in OVERFLOWS:
            over = mode
        else:
            known = ROUNDINGS + OVERFLOWS
            raise UsageError(f"'{mode}' is neither a rounding nor an overflow mode", where=text, near=nearest(mode, known) or known)
    if round is None or over is None:
        missing, choices = ("rounding", ROUNDINGS) if round is None else ("overflow", OVERFLOWS)
        raise UsageError(f"the {missing} of '{text}' is not given, and none is assumed", near=choices, then=f"for instance {text.strip()},half_even,sat")
    width = int(found["width"])
    signed = found["kind"] == "fixed"
    if not 1 <= width <= MAX_WIDTH:
        raise UsageError(f"a format has 1 to {MAX_WIDTH} bits, '{text}' has {width}", then="float32 training cannot hold wider integers")
    if over == "sat_sym" and not signed:
        raise UsageError(f"'{text}': an unsigned format has no symmetric saturation", near=("sat", "wrap"))
    integer = None if found["integer"] == "auto" else int(found["integer"])
    if integer is not None and integer - width < MIN_EXPONENT:
        raise UsageError(f"the step of '{text}' is 2^{integer - width}, below 2^{MIN_EXPONENT}", then="float32 flushes such values to zero")
    if integer is not None and integer > -MIN_EXPONENT:
        raise UsageError(f"the largest value of '{text}' is beyond float32", then="use fewer integer bits")
    return FixedFormat(signed, width, integer, round, over)


def power(exponent: int) -> jax.Array:
    """2**exponent as a float32 scalar."""
    return jnp.asarray(math.ldexp(1.0, exponent), jnp.float32)


def _rounded(t: jax.Array, mode: str) -> jax.Array:
    """T rounded to an integer; exact for every float32 (never t + 0.5, which itself rounds)."""
    if mode == "half_even":
        return jnp.round(t)
    low = jnp.floor(t)
    return low if mode == "floor" else low + (t - low >= 0.5)


def _overflowed(n: jax.Array, to: FixedFormat) -> jax.Array:
    """Integers brought into the format; exact for |n| < 2**24, saturation for every n."""
    if to.over != "wrap":
        return jnp.clip(n, to.lo, to.hi)
    span = power(to.width)
    rest = n - jnp.floor(n * power(-to.width)) * span
    return jnp.where(rest > to.hi, rest - span, rest)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def quantise(x: jax.Array, to: FixedFormat) -> jax.Array:
    """The grid value of `x`, float32; its gradient is 1 inside the range of the format and 0 outside (straight-through with clipping).

    Args:
        x: float32, any shape.
        to: a format without `auto`.
    """
    grid: jax.Array = _overflowed(_rounded(x * power(to.f), to.round), to) * power(-to.f)
    return grid


def _forward(x: jax.Array, to: FixedFormat) -> tuple[jax.Array, jax.Array]:
    step = math.ldexp(1.0, -to.f)
    inside = (x >= (to.lo - 0.5) * step) & (x <= (to.hi + 0.5) * step)
    return quantise(x, to), inside


def _backward(_to: FixedFormat, inside: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    return (jnp.where(inside, gradient, 0),)


quantise.defvjp(_forward, _backward)
