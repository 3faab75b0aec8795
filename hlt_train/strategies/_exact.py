"""Sums of float32 that do not depend on the order of their terms, to the bit, in 13 bytes per entry.

A float32 is an integer times 2**-149. Its binary digits are cut at fixed places into words of 13 bits, the same cuts for every number, and each word is added
as an integer. Of the 22 words that an entry might need, only the three highest are kept: counted from the highest word that any term so far has reached. A
larger term moves the window up and the lowest word is dropped, with all that was ever added to it; no carry ever passes between words. So what is kept at the
end depends on the set of terms alone (Demmel and Nguyen 2013, "Fast reproducible floating-point summation", have the idea; here it is in integers).

A term loses less than 2**-26 of the largest term, so the mean is off by less than 2**-24 of it. Up to 2**18 terms.
A term that is not finite makes the sum NaN, whatever else was added before or after.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hlt_train.strategies import Array

__all__ = ["MOST", "Sum", "added", "mean", "zero"]

BITS = 13  # of a word
WORDS = 3
MASK = (1 << BITS) - 1
MOST = 2**18  # terms: 2**18 words of 13 bits fit into an int32
BROKEN = 127  # `top` of a sum with a term that is not finite


class Sum(NamedTuple):
    """Sums of float32 entries of some shape.

    Attributes:
        top: int8 [...], place of the highest word that is kept; word j has the value 2**(13 j - 149).
        words: three int32 [...], highest first.
    """

    top: Array
    words: tuple[Array, ...]


def zero(like: Array) -> Sum:
    """The sum of no terms, for entries of this shape."""
    return Sum(jnp.full(jnp.shape(like), WORDS - 1, jnp.int8), tuple(jnp.zeros(jnp.shape(like), jnp.int32) for _ in range(WORDS)))


def added(total: Sum, term: Array) -> Sum:
    """The sum with one float32 term more for each entry."""
    bits = jax.lax.bitcast_convert_type(term, jnp.int32)
    exponent = (bits >> 23) & 0xFF
    place = jnp.maximum(exponent - 1, 0)  # the term is whole * 2**place * 2**-149
    whole = (bits & 0x7FFFFF) | jnp.where(exponent > 0, 1 << 23, 0)
    sign = jnp.where(bits < 0, -1, 1)
    reach = jnp.where(exponent == 0xFF, BROKEN, jnp.maximum((place + 23) // BITS, WORDS - 1))
    reach = jnp.where(whole == 0, WORDS - 1, reach)

    old = total.top.astype(jnp.int32)
    top = jnp.maximum(old, reach)
    words = []
    for j in range(WORDS):
        kept = sum(jnp.where(top - old == j - k, total.words[k], 0) for k in range(j + 1))
        shift = BITS * (top - j) - place
        digits = jnp.where(shift >= 0, whole >> jnp.clip(shift, 0, 31), whole << jnp.clip(-shift, 0, BITS)) & MASK
        words.append(kept + sign * digits)
    return Sum(top.astype(jnp.int8), tuple(words))


def mean(total: Sum, terms: int) -> Array:
    """The sum over the number of its terms, float32."""
    top = total.top.astype(jnp.int32)
    high, middle, low = (total.words[j].astype(jnp.float32) / terms for j in range(WORDS))
    value = _scaled(high + (middle * 2.0**-BITS + low * 2.0 ** (-2 * BITS)), BITS * top - 149)
    return jnp.where(top == BROKEN, jnp.nan, value)


def _scaled(x: Array, exponent: Array) -> Array:
    """X * 2**exponent in two steps that float32 can hold, exponents from -252 to 252."""
    half = exponent // 2
    for part in (half, exponent - half):
        x = x * jax.lax.bitcast_convert_type((jnp.clip(part, -126, 126) + 127) << 23, jnp.float32)
    return x
