"""Intervals of 68.3 %: which one applies, and by what name it is reported (`docs/physics.md`).

Efficiencies: Clopper-Pearson for equal weights; Clopper-Pearson at n_eff = (sum w)^2 / sum w^2 for unequal ones ("approximate"); a bootstrap over events as
soon as one weight is negative. Rates: sqrt(sum w^2) from n_eff = 25 passing events on, below that Garwood's Poisson interval scaled by
sum w^2 / sum w. A bootstrap of few events is too short (none at all if nothing passed), so below n_eff = 25 it is widened to what n_eff events would give.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from hlt_train.trigger.bootstrap import multiplicities

__all__ = ["FEW", "LEVEL", "Interval", "clopper_pearson", "effective", "efficiency", "garwood", "percentile", "rate"]

LEVEL = 0.683
FEW = 25.0  # effective events below which a Gaussian error is not used
REPLICAS = 400


class Interval(NamedTuple):
    """A number with the ends of its 68.3 % interval, and how they were found."""

    value: float
    low: float
    high: float
    method: str

    def document(self, **more: Any) -> dict[str, Any]:
        """For JSON, with further keys. Numbers that are not finite become None."""
        numbers = {k: (float(v) if np.isfinite(v) else None) for k, v in (("value", self.value), ("low", self.low), ("high", self.high))}
        return {**numbers, "method": self.method, **more}

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Interval:
        """From `document`."""
        numbers = [float("nan") if content[k] is None else float(content[k]) for k in ("value", "low", "high")]
        return cls(numbers[0], numbers[1], numbers[2], str(content["method"]))


def effective(weights: np.ndarray) -> float:
    """n_eff = (sum w)^2 / sum w^2, the number of equal weights with the same relative error; 0 for no events."""
    squares = float(np.square(weights).sum())
    return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0


def clopper_pearson(passed: Any, total: Any, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the Clopper-Pearson interval; numbers or arrays, not necessarily integers. [0, 1] for total = 0."""
    from scipy import stats  # half of the time that a process takes to start, and most processes need no interval

    k, n = np.broadcast_arrays(np.asarray(passed, dtype=np.float64), np.asarray(total, dtype=np.float64))
    tail = (1 - level) / 2
    k = np.clip(k, 0, n)
    with np.errstate(invalid="ignore"):
        low = np.where(k > 0, stats.beta.ppf(tail, np.maximum(k, 1e-300), n - k + 1), 0.0)
        high = np.where(k < n, stats.beta.ppf(1 - tail, k + 1, np.maximum(n - k, 1e-300)), 1.0)
    return low, high


def garwood(count: Any, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Ends of Garwood's interval of a Poisson mean; numbers or arrays, not necessarily integers."""
    from scipy import stats  # half of the time that a process takes to start, and most processes need no interval

    n = np.asarray(count, dtype=np.float64)
    tail = (1 - level) / 2
    low = np.where(n > 0, stats.chi2.ppf(tail, 2 * np.maximum(n, 1e-300)) / 2, 0.0)
    return low, np.asarray(stats.chi2.ppf(1 - tail, 2 * n + 2) / 2)


def percentile(replicas: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Ends of the central part of a bootstrap's replicas; those that are NaN (no signal drawn) do not count."""
    finite = replicas[np.isfinite(replicas)]
    if len(finite) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def efficiency(passed: np.ndarray, weights: np.ndarray, *, event: np.ndarray | None = None, seed: int = 0) -> Interval:
    """Weighted fraction of rows that passed (bool `[n]`), with its interval; `event` `[n]` says which rows are resampled together."""
    total = float(weights.sum())
    if len(weights) == 0 or not total > 0:
        return Interval(float("nan"), 0.0, 1.0, "no events")
    value = float(weights[passed].sum()) / total
    if weights.min() < 0:
        return _bootstrapped(value, passed, weights, event, seed)
    equal = bool(weights.min() == weights.max())
    n = float(len(weights)) if equal else effective(weights)
    low, high = clopper_pearson(float(np.count_nonzero(passed)) if equal else value * n, n)
    return Interval(value, float(low), float(high), "Clopper-Pearson" if equal else "Clopper-Pearson at n_eff (approximate)")


def _bootstrapped(value: float, passed: np.ndarray, weights: np.ndarray, event: np.ndarray | None, seed: int) -> Interval:
    if event is None:
        units, events = np.arange(len(weights)), len(weights)
    else:
        units = np.unique(event, return_inverse=True)[1]
        events = int(units.max()) + 1
    each = np.stack([np.bincount(units, weights * passed, events), np.bincount(units, weights, events)])
    sums = np.concatenate([each @ drawn for drawn in multiplicities(events, REPLICAS, seed)], axis=1)
    low, high = percentile(np.divide(sums[0], sums[1], out=np.full(sums.shape[1], np.nan), where=sums[1] > 0))
    n = effective(weights)
    if n < FEW:
        wide = clopper_pearson(np.clip(value, 0, 1) * n, n)
        low, high = np.fmin(low, wide[0]), np.fmax(high, wide[1])
    return Interval(value, float(low), float(high), "bootstrap over events (negative weights)")


def rate(passing: np.ndarray, *, one: float = 0.0, seed: int = 0) -> Interval:
    """Sum of the weights [Hz] of the events that passed, with its interval; `one` is the weight of an event where none passed."""
    value, squares = float(passing.sum()), float(np.square(passing).sum())
    if squares == 0.0:
        return Interval(0.0, 0.0, float(garwood(0.0)[1]) * one, "Garwood")
    n = effective(passing)
    if n >= FEW:
        error = squares**0.5
        return Interval(value, value - error, value + error, "sqrt(sum w^2)")
    if passing.min() < 0:
        return _signed(value, passing, seed)
    low, high = (float(end) * squares / value for end in garwood(n))
    return Interval(value, low, high, "Garwood scaled by sum w^2 / sum w")


def _signed(value: float, passing: np.ndarray, seed: int) -> Interval:
    """Few events, some of negative weight: a bootstrap, no shorter than Garwood's errors of the positive and of the negative part in quadrature."""
    sums = np.concatenate([passing @ drawn for drawn in multiplicities(len(passing), REPLICAS, seed)])
    low, high = percentile(sums)
    down, up = 0.0, 0.0
    mean = float(np.square(passing).sum() / np.abs(passing).sum())
    for part, positive in ((passing[passing > 0], True), (-passing[passing < 0], False)):
        scale = float(np.square(part).sum() / part.sum()) if len(part) else mean
        ends = garwood(effective(part))
        shorter, longer = (effective(part) - float(ends[0])) * scale, (float(ends[1]) - effective(part)) * scale
        down, up = (np.hypot(down, shorter), np.hypot(up, longer)) if positive else (np.hypot(down, longer), np.hypot(up, shorter))
    return Interval(value, float(min(low, value - down)), float(max(high, value + up)), "bootstrap over events (negative weights)")
