"""The integer arithmetic of the golden model, one function per rule of `docs/numbers.md`, on int64 arrays whose last axis is the features.

Nothing here checks for overflow of int64: `hlt_train.graph.evaluate` bounds the operands first, `hlt_train.proof` bounds them for every input.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hlt_train.nodes import Overflow, Quant, Round

__all__ = ["dropped", "input_step", "limits", "overflow", "rational", "requantise", "rounded", "rounded_rational", "shift_round"]

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


def limits(quant: Quant, n: int) -> tuple[Int64, Int64]:
    """Smallest and largest integer of the format under its overflow rule, int64 `[n]` each. sat_sym drops the most negative one; width 0 gives 0, 0.

    The largest of a mantissa of M bits has its M + 1 highest bits set and no other.
    """
    width = np.broadcast_to(quant.to.width, n)
    bits = np.maximum(width - int(quant.to.signed), 0)
    magnitude = np.left_shift(np.int64(1), bits)
    hi = np.where(width > 0, magnitude - 1, 0)
    if quant.mantissa is not None:
        below = np.maximum(bits - quant.mantissa - 1, 0)
        hi = hi >> below << below
    lo = np.where((width > 0) & quant.to.signed, -magnitude, 0)
    return (-hi if quant.over == "sat_sym" and quant.to.signed else lo), hi


def shift_round(n: Int64, shift: Int64, round: Round) -> Int64:
    """Shift integers: n * 2**-shift, exact for shift <= 0, rounded by the rule otherwise. shift: int64, broadcast against n."""
    right = np.maximum(shift, 0)
    if (shift < 0).any():
        n = np.left_shift(n, np.maximum(-shift, 0))
    half: Int64 = np.left_shift(np.int64(1), right) >> 1
    if round == "half_up":
        n = np.add(n, half)
    elif round == "half_even":
        # Adding one less than half carries only beyond a tie; an odd quotient adds the one back.
        odd = np.right_shift(n, right)
        odd &= (right > 0).astype(np.int64)
        odd += np.maximum(half - 1, 0)
        odd += n
        n = odd
    return np.right_shift(n, right)


def _highest(size: Int64) -> Int64:
    """The position of the highest bit of each integer from 0 to 2**62, -1 for 0."""
    upper = size >> 31  # each half is exact in float64
    exponent: Int64 = np.where(upper > 0, np.frexp(upper)[1] + 31, np.frexp(size & 0x7FFF_FFFF)[1]).astype(np.int64)
    return exponent - 1


def dropped(n: Int64, shift: Int64 | int, mantissa: int | None) -> Int64:
    """How many bits of n * 2**-shift lie before the binary point and below a mantissa (None: fixed point, none of them): int64 of the shape of n."""
    if mantissa is None:
        return np.zeros(n.shape, np.int64)
    found: Int64 = np.maximum(_highest(np.abs(n)) - shift - mantissa, 0)
    return found


def rounded(n: Int64, shift: Int64, quant: Quant) -> Int64:
    """Integers of the grid of `quant` from those `shift` bits finer (shift < 0: coarser): rounded to the grid, or to the mantissa, before any overflow."""
    if quant.mantissa is None:
        return shift_round(n, shift, quant.round)
    below = dropped(n, shift, quant.mantissa)
    return np.left_shift(shift_round(n, shift + below, quant.round), below)


def overflow(n: Int64, lo: Int64, hi: Int64, over: Overflow) -> Int64:
    """Bring n into [lo, hi]: modulo its 2**W values for wrap, to the nearest limit otherwise."""
    if over == "wrap":
        wrapped: Int64 = ((n - lo) & (hi - lo)) + lo
        return wrapped
    return np.clip(n, lo, hi)


def requantise(n: Int64, f: Int64, quant: Quant) -> Int64:
    """Integers at exponent f -> integers of the format of `quant`: shift, round, overflow."""
    lo, hi = limits(quant, n.shape[-1])
    return overflow(rounded(n, np.asarray(f - quant.to.f), quant), lo, hi, quant.over)


def rational(numerator: Int64, denominator: Int64, round: Round) -> Int64:
    """The exactly rounded numerator / denominator (> 0). Needs 2 |numerator| + denominator < 2**63."""
    if round == "floor":
        return numerator // denominator
    up: Int64 = (2 * numerator + denominator) // (2 * denominator)
    if round == "half_up":
        return up
    tie: npt.NDArray[np.bool_] = 2 * numerator + denominator == up * 2 * denominator
    odd: Int64 = (up & 1) * tie
    return up - odd


def rounded_rational(numerator: Int64, denominator: Int64, quant: Quant) -> Int64:
    """As `rational`, rounded once: to an integer, or to the mantissa of `quant`. Needs 3 |numerator| + 2 denominator < 2**63."""
    if quant.mantissa is None:
        return rational(numerator, denominator, quant.round)
    below = dropped(np.abs(numerator) // denominator, 0, quant.mantissa)
    return np.left_shift(rational(numerator, np.left_shift(denominator, below), quant.round), below)


def input_step(x: Float32, centre: Float32, scale: Float32, lo: Int64, hi: Int64, nan: Int64) -> Int64:
    """float32 x -> int64, the first grid: fl32(fl32(x - centre) * scale), clamp, round half to even; NaN -> nan. `scale` is fl32(scale * 2**f)."""
    with np.errstate(over="ignore"):  # a finite x may reach inf here, which the clamp is for
        t = (x - centre) * scale
    assert t.dtype == np.float32
    missing = np.isnan(x)
    t = np.clip(np.where(missing, np.float32(0), t), lo.astype(np.float32), hi.astype(np.float32))
    integers: Int64 = np.where(missing, nan, np.rint(t).astype(np.int64))
    return integers
