"""A line search for the strong Wolfe conditions that is told one evaluation at a time: pure functions of scalars.

Nocedal and Wright 2006, "Numerical optimization", algorithms 3.5 and 3.6 (bracket, then zoom; the next step by cubic interpolation, equation 3.59), turned
inside out so that whoever evaluates the function may take as long as it likes. With phi(t) = f(x + t d), a step t is accepted where

    phi(t) <= phi(0) + c1 t phi'(0) + noise      and      |phi'(t)| <= c2 |phi'(0)|

Deviation: `noise` is four roundings of phi(0). Near a minimum the decrease drowns in the rounding of float32 while the slopes are still good (the approximate
Wolfe conditions of Hager and Zhang 2005 answer the same need); where two values differ by no more than that, the next step is the secant's of the slopes.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from hlt_train.strategies import Array, Bool, Scalar

__all__ = ["Point", "Search", "judge", "start"]

EPSILON = float(jnp.finfo(jnp.float32).eps)  # type: ignore[no-untyped-call]
MOST = 20  # evaluations of one search
GROW = 10.0  # a step that is not long enough becomes 2 to 10 times longer
MARGIN = 0.1  # of a bracket: the next step keeps this distance from both ends


class Point(NamedTuple):
    """t, phi(t), phi'(t): float32 scalars."""

    t: Array
    value: Array
    slope: Array


class Search(NamedTuple):
    """The state of a search.

    Attributes:
        t: the step to evaluate next.
        origin: phi at 0.
        low: the best point so far. high: the other end of the bracket, where `bracketed`.
        evaluations: int32, done so far.
        last: accept the next evaluation, whatever it is: `low` is evaluated again after a search without success.
        lost: no step so far decreased phi, and `evaluations` are used up: try another direction.
    """

    t: Array
    origin: Point
    low: Point
    high: Point
    bracketed: Array
    evaluations: Array
    last: Array
    lost: Array


def start(value: Scalar, slope: Scalar, t: Scalar) -> Search:
    """A new search from phi(0) and phi'(0) whose first step is t."""
    value, slope, t = (jnp.asarray(x, jnp.float32) for x in (value, slope, t))
    origin = Point(jnp.zeros_like(t), value, slope)
    no = jnp.zeros((), jnp.bool_)
    return Search(t, origin, origin, origin, bracketed=no, evaluations=jnp.zeros((), jnp.int32), last=no, lost=no)


def judge(s: Search, value: Scalar, slope: Scalar, c1: float, c2: float) -> tuple[Bool, Search]:
    """Take in phi and phi' at `s.t`: whether this step is accepted, and, if it is not, the search with its next step."""
    point = Point(s.t, value, slope)
    noise = 4 * EPSILON * jnp.abs(s.origin.value)
    finite = jnp.isfinite(value) & jnp.isfinite(slope)
    better = finite & (value <= s.origin.value + c1 * s.t * s.origin.slope + noise) & (value <= s.low.value + noise)
    flat = jnp.abs(slope) <= c2 * jnp.abs(s.origin.slope)

    turned = jnp.where(s.bracketed, slope * (s.high.t - s.low.t) >= 0, slope >= 0)  # the minimum lies between this point and the low one
    low = _choose(better, point, s.low)
    high = _choose(better, _choose(turned, s.low, s.high), point)
    bracketed = s.bracketed | ~better | turned
    evaluations = s.evaluations + 1
    over = evaluations >= MOST

    accept = s.last | (better & (flat | over))
    t = jnp.where(bracketed, _between(low, high, noise), _beyond(s.low, point, noise))
    searching = Search(jnp.where(over, low.t, t), s.origin, low, high, bracketed, evaluations, last=over & (low.t > 0), lost=over & (low.t <= 0))
    return accept, searching


def _choose(condition: Bool, a: Point, b: Point) -> Point:
    return Point(*(jnp.where(condition, x, y) for x, y in zip(a, b, strict=True)))


def _interpolated(a: Point, b: Point, noise: Scalar) -> Array:
    """Where the cubic through both points and slopes is least; NaN where it has no minimum."""
    width = b.t - a.t
    one = a.slope + b.slope - 3 * (a.value - b.value) / (a.t - b.t)
    two = jnp.sign(width) * jnp.sqrt(one * one - a.slope * b.slope)
    cubic = b.t - width * (b.slope + two - one) / (b.slope - a.slope + 2 * two)
    secant = a.t - a.slope * width / (b.slope - a.slope)
    return jnp.where(jnp.abs(a.value - b.value) <= noise, secant, cubic)


def _between(low: Point, high: Point, noise: Scalar) -> Array:
    width = high.t - low.t
    share = (_interpolated(low, high, noise) - low.t) / width
    return low.t + width * jnp.where(jnp.isfinite(share), jnp.clip(share, MARGIN, 1 - MARGIN), MARGIN)


def _beyond(before: Point, point: Point, noise: Scalar) -> Array:
    t = _interpolated(before, point, noise)
    return jnp.where(jnp.isfinite(t), jnp.clip(t, 2 * point.t, GROW * point.t), GROW * point.t)
