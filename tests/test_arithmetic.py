"""The integer arithmetic against Python's own integers and fractions, which know no overflow and no rounding."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlt_train.arithmetic import input_step, limits, rational, requantise, rounded_rational
from hlt_train.graph import Fixed, Quant

ROUNDS = ("floor", "half_up", "half_even")
OVERS = ("wrap", "sat", "sat_sym")


def rounded(value: Fraction, rule: str) -> int:
    return {"floor": math.floor, "half_up": lambda v: math.floor(v + Fraction(1, 2)), "half_even": round}[rule](value)


def into_format(n: int, width: int, signed: bool, over: str) -> int:
    if width <= 0:
        return 0
    lo, hi = (-(2 ** (width - 1)), 2 ** (width - 1) - 1) if signed else (0, 2**width - 1)
    if over == "wrap":
        return (n - lo) % 2**width + lo
    if over == "sat_sym" and signed:
        lo = -hi
    return min(max(n, lo), hi)


def reference(n: int, f: int, fmt: tuple[bool, int, int], rule: str, over: str) -> int:
    signed, i, to = fmt
    return into_format(rounded(Fraction(n) * Fraction(2) ** (to - f), rule), int(signed) + i + to, signed, over)


formats = st.tuples(st.booleans(), st.integers(0, 24), st.integers(-8, 24)).map(lambda t: (t[0], t[1] - t[2], t[2]))  # (signed, i, f) of width 0 to 25
numbers = st.one_of(st.integers(-(2**40), 2**40), st.integers(-300, 300))


@given(st.lists(numbers, min_size=1, max_size=20), st.integers(-10, 20), formats, st.sampled_from(ROUNDS), st.sampled_from(OVERS))
def test_requantise_is_the_rounded_fraction_in_the_format(n: list[int], f: int, fmt: tuple[bool, int, int], rule: str, over: str) -> None:
    quant = Quant(Fixed(*fmt), rule, over)  # type: ignore[arg-type]
    # Left shifts are bounded by the graph; here the operand is kept small enough for int64.
    n = [v if fmt[2] - f <= 20 else v % 1000 for v in n]
    found = requantise(np.array(n, np.int64)[:, None], np.array([f], np.int64), quant)
    assert found.ravel().tolist() == [reference(v, f, fmt, rule, over) for v in n]


@pytest.mark.parametrize("rule", ROUNDS)
@pytest.mark.parametrize("over", OVERS)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("width", [1, 2, 3, 8, 17, 24])
def test_every_tie_and_limit_of_every_mode(rule: str, over: str, signed: bool, width: int) -> None:
    shift = 3
    top = 1 << width
    ends = np.unique(np.concatenate([np.arange(-40, 41), *(8 * end + np.arange(-20, 21) for end in (-top, -top // 2, top // 2, top, 3 * top))]))
    fmt = (signed, width - int(signed), 0)
    found = requantise(ends[:, None].astype(np.int64), np.array([shift], np.int64), Quant(Fixed(*fmt), rule, over))  # type: ignore[arg-type]
    assert found.ravel().tolist() == [reference(int(v), shift, fmt, rule, over) for v in ends]


@given(st.data())
def test_per_channel_formats_are_the_channels_one_by_one(data: st.DataObject) -> None:
    n = np.array(data.draw(st.lists(st.lists(st.integers(-(2**30), 2**30), min_size=4, max_size=4), min_size=1, max_size=6)), np.int64)
    f = np.array(data.draw(st.lists(st.integers(-4, 12), min_size=4, max_size=4)), np.int64)
    signed = data.draw(st.booleans())
    i, to = (np.array(data.draw(st.lists(st.integers(0, 9), min_size=4, max_size=4)), np.int64) for _ in range(2))
    rule, over = data.draw(st.sampled_from(ROUNDS)), data.draw(st.sampled_from(OVERS))
    found = requantise(n, f, Quant(Fixed(signed, i, to), rule, over))  # type: ignore[arg-type]
    for k in range(4):
        expected = [reference(int(v), int(f[k]), (signed, int(i[k]), int(to[k])), rule, over) for v in n[:, k]]
        assert found[:, k].tolist() == expected


# ------------------------------------------------------------------------------------------------------------------------------------ minifloats


def step_of(value: Fraction, mantissa: int) -> int:
    """The distance of minifloats at a number: 1 where they are subnormal."""
    step = 1
    while abs(value) >= step << mantissa + 1:
        step *= 2
    return step


def minifloat(value: Fraction, mantissa: int, exponent: int, signed: bool, rule: str) -> int:
    """The integer of smallest steps that stands for a number, by the definition of the format; the two neighbours are found one by one."""
    step = step_of(value, mantissa)
    n = rounded(value / step, rule) * step
    hi = ((2 << mantissa) - 1) << ((1 << exponent) - 2)
    return min(max(n, -hi if signed else 0), hi)


def mini(mantissa: int, exponent: int, signed: bool, rule: str, f: int = 0) -> Quant:
    return Quant(Fixed(signed, mantissa + (1 << exponent) - 1 - f, f), rule, "sat_sym", mantissa)  # type: ignore[arg-type]


MINI = (st.integers(0, 6), st.integers(1, 4), st.booleans(), st.sampled_from(ROUNDS))


@given(st.lists(numbers, min_size=1, max_size=20), st.integers(-10, 30), *MINI)
def test_a_minifloat_is_the_rounded_fraction(n: list[int], shift: int, mantissa: int, exponent: int, signed: bool, rule: str) -> None:
    """Also of numbers whose own exponent is coarser than the smallest step, and of those far below it."""
    n = [v if shift >= 0 else v % 100_000 for v in n]
    found = requantise(np.array(n, np.int64)[:, None], np.array([shift], np.int64), mini(mantissa, exponent, signed, rule))
    assert found.ravel().tolist() == [minifloat(Fraction(v) / Fraction(2) ** shift, mantissa, exponent, signed, rule) for v in n]


@pytest.mark.parametrize("rule", ROUNDS)
@pytest.mark.parametrize(("exponent", "mantissa"), [(2, 1), (3, 2), (4, 3), (1, 0), (2, 0), (3, 0), (5, 2)])
def test_every_tie_and_limit_of_named_minifloats(exponent: int, mantissa: int, rule: str) -> None:
    """All values, the middles between them, and what lies one eighth of the smallest step beside either; subnormal numbers and saturation among them."""
    codes = [m << max(c - 1, 0) for c in range(1 << exponent) for m in range(1 << mantissa, 2 << mantissa) if c] + list(range(1 << mantissa))
    values = sorted({*codes, *(-c for c in codes)})
    eighths = [8 * v + d for v in values for d in (-1, 0, 1)] + [4 * (a + b) + d for a, b in itertools.pairwise(values) for d in (-1, 0, 1)]
    eighths += [9 * values[-1], 20 * values[-1], -9 * values[-1], -100 * values[-1]]
    quant = mini(mantissa, exponent, True, rule)
    found = requantise(np.array(eighths, np.int64)[:, None], np.array([3], np.int64), quant).ravel().tolist()
    assert found == [minifloat(Fraction(v, 8), mantissa, exponent, True, rule) for v in eighths]
    assert set(found) == set(values)
    assert tuple(int(v[0]) for v in limits(quant, 1)) == (values[0], values[-1])


@given(st.integers(-(2**40), 2**40), st.integers(1, 2**20), *MINI)
def test_a_quotient_is_rounded_to_a_minifloat_once(numerator: int, denominator: int, mantissa: int, exponent: int, signed: bool, rule: str) -> None:
    quant = mini(mantissa, exponent, signed, rule)
    quotient = rounded_rational(np.array([[numerator]], np.int64), np.array([[denominator]], np.int64), quant)
    found = requantise(quotient, np.array([0], np.int64), quant)
    assert found.item() == minifloat(Fraction(numerator, denominator), mantissa, exponent, signed, rule)


@given(st.integers(-(2**40), 2**40), st.integers(1, 2**20), st.sampled_from(ROUNDS))
def test_rational_is_the_exactly_rounded_quotient(numerator: int, denominator: int, rule: str) -> None:
    found = rational(np.array([numerator], np.int64), np.array([denominator], np.int64), rule)  # type: ignore[arg-type]
    assert found.tolist() == [rounded(Fraction(numerator, denominator), rule)]


def test_limits_of_named_formats() -> None:
    n = 1
    ends = lambda signed, i, f, over: tuple(int(v[0]) for v in limits(Quant(Fixed(signed, i, f), "floor", over), n))  # noqa: E731
    assert ends(True, 2, 5, "sat") == (-128, 127)  # fixed<8,3>
    assert ends(True, 2, 5, "sat_sym") == (-127, 127)
    assert ends(False, 3, 5, "sat_sym") == (0, 255)  # ufixed<8,3>
    assert ends(True, 0, 0, "wrap") == (-1, 0)  # one bit, the sign
    assert ends(True, 0, 0, "sat_sym") == (0, 0)
    assert ends(False, 2, -2, "sat") == (0, 0)  # no bits: the constant 0
    assert ends(True, -3, 1, "wrap") == (0, 0)


floats = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(st.lists(floats, min_size=1, max_size=30), st.floats(-100, 100, width=32), st.floats(0.0009765625, 1000, width=32))
def test_input_step_one_operation_at_a_time(xs: list[float], centre: float, scale: float) -> None:
    x, lo, hi, nan = np.array(xs, np.float32), -77, 90, 5
    one = lambda v, dtype: np.array([v], dtype)  # noqa: E731
    found = input_step(x[:, None], one(centre, np.float32), one(scale, np.float32), one(lo, np.int64), one(hi, np.int64), one(nan, np.int64))
    for value, n in zip(x, found[:, 0], strict=True):
        if np.isnan(value):
            assert n == nan
            continue
        with np.errstate(over="ignore"):
            t = np.float32(np.float32(value - np.float32(centre)) * np.float32(scale))
        clamped = min(max(float(t), lo), hi)
        assert n == round(Fraction(clamped))  # a float is a fraction: Python rounds its ties to even exactly


def test_input_step_examples() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, np.nan, np.inf, -np.inf, 1e38, -3.4e38, 1e-45, -0.0], np.float32)
    one = np.ones(1)
    n = input_step(x[:, None], np.float32(0 * one), one.astype(np.float32), np.int64(-8 * one), np.int64(7 * one), np.int64(-3 * one))
    assert n.ravel().tolist() == [0, 2, 2, 0, -2, -3, 7, -8, 7, -8, 0, 0]
