"""Fixed-point formats.

`fixed<W,I>` and `ufixed<W,I>` are read as ap_fixed: W bits in all, of which I (with the sign bit) before the binary point; I may be negative or exceed W.
The grid is n * 2**-(W-I). W and I are numbers for a whole tensor, or nested lists that broadcast against it: `fixed<8,[[2],[1]]>` for the weights of two
outputs. W = 0 is the constant 0. `dynamic<W>` and `udynamic<W>` are fixed point whose I follows the values in training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import numpy as np

from hlt_train.errors import UsageError
from hlt_train.precision.grid import Ints, Overflow, Round, on_grid, on_grid_at_once

__all__ = ["MAX_WIDTH", "MIN_EXPONENT", "Bits", "FixedFormat", "Per", "bits_of", "numbers"]

MAX_WIDTH = 24  # a float32 holds every integer of 24 bits
MIN_EXPONENT = -126  # below it float32 is subnormal, which XLA flushes to zero
Bits = int | tuple[Any, ...]  # one number of bits, or nested tuples of them that broadcast against the values
Per = Literal["tensor", "channel", "element"]


def numbers(bits: Bits) -> Ints:
    """Nested tuples as an int64 array; a number stays one."""
    return bits if isinstance(bits, int) else np.array(bits, np.int64)


def bits_of(array: Ints) -> Bits:
    """The inverse of `numbers`: hashable."""
    return _tuples(np.asarray(array).tolist())


def _tuples(nested: Any) -> Bits:
    if not isinstance(nested, list):
        return int(nested)
    return tuple(map(_tuples, nested)) if nested and isinstance(nested[0], list) else tuple(nested)


@dataclass(frozen=True)
class FixedFormat:
    """A fixed-point format with its rounding and overflow.

    Attributes:
        signed: `fixed` (two's complement) or `ufixed`.
        width: W, bits in all; 0 to 24.
        integer: I, bits before the binary point with the sign bit; None = `auto`, not chosen yet.
        round: floor (TRN), half_up (RND), half_even (RND_CONV), or stochastic in training and half_even elsewhere.
        over: wrap, sat or sat_sym (the most negative integer is not used).
        per: what `auto` is chosen for: the tensor, each channel (output of a layer), or each element.
        dynamic: the integer bits are those at first, and follow the values in training (`hlt_train.precision.followed`); one number for the tensor.
    """

    signed: bool
    width: Bits
    integer: Bits | None
    round: Round
    over: Overflow
    per: Per = "tensor"
    dynamic: bool = False

    @property
    def f(self) -> Ints:
        """Fraction bits: the value of the integer n is n * 2**-f."""
        if self.integer is None:
            raise UsageError(f"the integer bits of '{self}' are not chosen yet", then="calibrate the format, or write a number in place of auto")
        return numbers(self.width) - numbers(self.integer)

    @property
    def lo(self) -> Ints:
        """Smallest integer n."""
        return _plain(np.where(self.signed & (self._top > 0), -self._top + int(self.over == "sat_sym"), 0))

    @property
    def hi(self) -> Ints:
        """Largest integer n."""
        return _plain(np.maximum(self._top - 1, 0))

    @property
    def _top(self) -> np.ndarray:
        width = np.asarray(self.width, np.int64)
        return np.where(width > 0, np.left_shift(1, np.maximum(width - int(self.signed), 0)), 0)

    def fitted(self, largest: float | np.ndarray) -> FixedFormat:
        """This format with the fewest integer bits that hold +-`largest` without saturation (a tenth of a step beyond the last point is let go).

        An array gives integer bits of its shape.
        """
        width, reach = np.broadcast_arrays(np.asarray(self.width, np.int64), np.asarray(largest, np.float64))
        hi = np.broadcast_to(np.asarray(self.hi), width.shape)
        top = np.maximum(hi, 1)
        wanted = np.maximum(reach * (1 - 0.1 / top), np.finfo(np.float64).tiny)
        integer = width + np.ceil(np.log2(wanted) - np.log2(top)).astype(np.int64)
        for step in (-1, 1):  # the logarithm may be off by one near a power of two
            lower = top * np.ldexp(1.0, integer + min(step, 0) - width)
            integer = integer + np.where(lower >= wanted if step < 0 else lower < wanted, step, 0)
        integer = np.where(reach > 0, np.maximum(integer, width + MIN_EXPONENT), int(self.signed))
        return replace(self, integer=bits_of(_plain(integer)))

    def at(self, f: int) -> FixedFormat:
        """The format with `f` fraction bits."""
        return replace(self, integer=bits_of(numbers(self.width) - f))

    def scaled(self, k: int) -> FixedFormat:
        """The format whose values are 2**k times as large."""
        assert self.integer is not None
        return replace(self, integer=bits_of(numbers(self.integer) + k))

    @property
    def reach(self) -> tuple[float | np.ndarray, float | np.ndarray]:
        """Smallest and largest n, with half a step beyond, up to which a gradient passes."""
        return self.lo - 0.5, self.hi + 0.5

    def nearest(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """The value of the format that stands for each `x`."""
        if key is None and not isinstance(x, jax.core.Tracer):
            f, lo, hi = (np.asarray(v, np.int32) for v in (self.f, self.lo, self.hi))
            found: jax.Array = on_grid_at_once(x, f, lo, hi, self.round, self.over)
            return found
        return on_grid(x, self.f, self.lo, self.hi, self.round, self.over, key)

    def __str__(self) -> str:
        integer = "auto" if self.integer is None else _text(self.integer)
        if self.dynamic:
            return f"{'' if self.signed else 'u'}dynamic<{_text(self.width)},{integer}>,{self.round}"
        per = f",per_{self.per}" if self.per != "tensor" and self.integer is None else ""
        return f"{'' if self.signed else 'u'}fixed<{_text(self.width)},{integer}>,{self.round},{self.over}{per}"


def _plain(array: Any) -> Ints:
    """An int where there is one number."""
    found: np.ndarray = np.asarray(array)
    return found if found.ndim else int(found)


def _text(bits: Bits) -> str:
    return str(bits) if isinstance(bits, int) else f"[{','.join(_text(b) for b in bits)}]"
