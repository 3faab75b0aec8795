"""Thresholds on the score's own grid.

The threshold at rate R is the smallest T such that rate(score >= T') <= R for every T' >= T: with negative weights a rate is not monotonic in T, and a
threshold whose tighter neighbour exceeds R would be a trap. There is no interpolation and no breaking of ties. The grid of an integer score is the
integers; the grid of a float score is its distinct values, over all events given (those that do not enter the rate have weight 0).

Sums of floats are compared with a relative tolerance of 1e-12, so that a rate of exactly R counts as R in whatever order it was summed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hlt_train.errors import UsageError

__all__ = ["TOLERANCE", "Steps", "at_efficiency", "at_rate", "distinct_rates", "first_above", "steps"]

TOLERANCE = 1e-12


class Steps(NamedTuple):
    """A rate as a function of the threshold: it changes only at the distinct scores.

    Attributes:
        value: the distinct scores, **descending**, `[m]`.
        rate: sum of the weights of score >= value, float64 `[m]`.
        rows: number of rows with score >= value, int64 `[m]`.
    """

    value: np.ndarray
    rate: np.ndarray
    rows: np.ndarray


def steps(scores: np.ndarray, weights: np.ndarray) -> Steps:
    """Scores `[n]` (int64 or float64, no NaN) and weights `[n]` -> `Steps`. O(n log n)."""
    if len(scores) == 0:
        raise UsageError("a threshold needs at least one event", then="look at the selection and the splits of the card")
    if scores.dtype.kind == "f" and np.isnan(scores).any():
        raise UsageError(f"{int(np.isnan(scores).sum())} scores are NaN", then="look at the inputs with `hlt-train inspect`")
    order = np.argsort(scores, kind="stable")[::-1]
    ordered = scores[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    return Steps(ordered[last], np.cumsum(weights[order], dtype=np.float64)[last], last.astype(np.int64) + 1)


def _next_above(value: np.generic) -> np.generic:
    """The smallest number of the same type above `value`."""
    if isinstance(value, np.integer):
        return type(value)(int(value) + 1)
    return np.nextafter(value, type(value)(np.inf))  # type: ignore[no-any-return]


def at_rate(scores: np.ndarray, weights: np.ndarray, rate: float) -> np.generic:
    """The threshold at `rate` (in the unit of the weights' sum), of the scores' type.

    When even the highest score exceeds the rate, the answer lies just above it and accepts nothing that was seen; when everything fits, it is the lowest
    score seen.
    """
    curve = steps(scores, weights)
    accepted = first_above(curve.rate, rate)
    found: np.generic
    if accepted == 0:
        found = _next_above(curve.value[0])
    elif accepted < len(curve.value) and scores.dtype.kind in "iu":
        found = _next_above(curve.value[accepted])  # every integer above the failing score passes, also where no event sits
    else:
        found = curve.value[accepted - 1]
    return found


def first_above(rates: np.ndarray, rate: float) -> int:
    """Index of the first of `rates` above `rate`, or their number."""
    above = rates > rate * (1 + TOLERANCE)
    return int(np.argmax(above)) if above.any() else len(rates)


def at_efficiency(scores: np.ndarray, weights: np.ndarray, efficiency: float) -> np.generic:
    """The largest T of the grid such that efficiency(score >= T') >= `efficiency` for every T' <= T (efficiency = accepted over total weight)."""
    curve = steps(scores, weights)
    total = float(curve.rate[-1])
    if not total > 0:
        raise UsageError("the weights of the signal sum to zero or less: no efficiency can be defined", where="trigger.rate_weight")
    enough = curve.rate >= efficiency * total * (1 - TOLERANCE)
    # The last entry (accept everything) is always enough; walk up from there while it stays so.
    short = np.flatnonzero(~enough)
    found: np.generic = curve.value[int(short[-1]) + 1 if len(short) else 0]
    return found


def distinct_rates(scores: np.ndarray, weights: np.ndarray, low: float, high: float) -> int:
    """How many different rates in [low, high] the score offers: few for a coarse fixed-point score."""
    rates = steps(scores, weights).rate
    inside = np.sort(rates[(rates >= low) & (rates <= high)])
    if len(inside) == 0:
        return 0
    return 1 + int(np.count_nonzero(np.diff(inside) > TOLERANCE * max(abs(high), 1e-300)))
