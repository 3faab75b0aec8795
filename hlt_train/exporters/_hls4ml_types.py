"""Fixed-point types as hls4ml spells them, the smallest that hold given integers exactly."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

__all__ = ["Type", "reduced", "spanning", "union"]


class Type(NamedTuple):
    """`ap_fixed<width, integer>` or `ap_ufixed<width, integer>`; integer counts the sign bit."""

    signed: bool
    width: int
    integer: int

    @property
    def f(self) -> int:
        """Bits below the binary point; may be negative."""
        return self.width - self.integer

    def __str__(self) -> str:
        return f"{'' if self.signed else 'u'}fixed<{self.width},{self.integer}>"

    @property
    def cpp(self) -> str:
        """As C++ spells it."""
        return f"ap_{self}"


def spanning(lo: np.ndarray, hi: np.ndarray, f: np.ndarray) -> Type:
    """The smallest type that holds every integer from lo to hi at exponents f (arrays of one shape), zero included."""
    top = int(f.max(initial=0)) if f.size == 0 else int(f.max())
    least = min([int(n) << (top - int(e)) for n, e in zip(lo.ravel(), f.ravel(), strict=True)], default=0)
    most = max([int(n) << (top - int(e)) for n, e in zip(hi.ravel(), f.ravel(), strict=True)], default=0)
    return _holding(min(least, 0), max(most, 0), top)


def reduced(n: np.ndarray, f: np.ndarray) -> Type:
    """The smallest type that holds the constants n * 2**-f (arrays of one shape) without their trailing zero bits."""
    pairs = [(int(value), int(exponent)) for value, exponent in zip(n.ravel(), f.ravel(), strict=True) if value]
    if not pairs:
        return Type(False, 1, 1)
    top = max(exponent - ((value & -value).bit_length() - 1) for value, exponent in pairs)
    scaled = [value << (top - exponent) if top >= exponent else value >> (exponent - top) for value, exponent in pairs]
    return _holding(min(0, *scaled), max(0, *scaled), top)


def union(types: Iterable[Type]) -> Type:
    """The smallest type that holds all values of the given ones."""
    types = tuple(types)
    signed = any(t.signed for t in types)
    integer = max(t.integer + int(signed and not t.signed) for t in types)
    return Type(signed, integer + max(t.f for t in types), integer)


def _holding(least: int, most: int, f: int) -> Type:
    signed = least < 0
    width = max(max(most.bit_length(), (~least).bit_length() if signed else 0) + int(signed), 1)
    return Type(signed, width, width - f)
