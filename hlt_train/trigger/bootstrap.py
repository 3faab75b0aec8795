"""Errors by resampling events: each replica gives every event a Poisson(1) multiplicity.

All objects of an event, its signal and its background share one multiplicity, and several scores of the same events share all of them: differences and
ratios between a student and its teacher are therefore paired. The threshold is found anew in every replica, so that its own fluctuation is in the error (at
50 Hz an error of 0.0048 with the threshold, 0.0013 without). Rates are normalised anew too: the input rate is known, the number of simulated events is not
what fluctuates in the experiment.

Everything is vectorised over replicas in chunks of bounded memory, and a function of the seed alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from hlt_train.trigger.thresholds import TOLERANCE

__all__ = ["Population", "Ranking", "Replicas", "multiplicities", "nominal", "rank", "replicate", "resample"]

CELLS = 1_000_000  # replicas x rows handled at once


class Population(NamedTuple):
    """What the statistics know of n rows, whatever a network says of them.

    Attributes:
        signal: float64 `[n]`, weight in the efficiency; 0 for rows that are not signal.
        background: float64 `[n]`, Hz per row before any resampling (or weight of the mistag); 0 for rows that do not count.
        sample: int32 `[n]`, rows of one sample are normalised together.
        event: int64 `[n]`, 0..m-1, which event a row belongs to: the unit of resampling.
    """

    signal: np.ndarray
    background: np.ndarray
    sample: np.ndarray
    event: np.ndarray


class Ranking(NamedTuple):
    """Rows sorted by descending score. order: int64 `[n]`; last: int64 `[m]`, the last position of each group of equal scores."""

    order: np.ndarray
    last: np.ndarray


def rank(scores: np.ndarray) -> Ranking:
    """Sort once, use for every replica."""
    order = np.argsort(scores, kind="stable")[::-1].copy()
    ordered = scores[order]
    return Ranking(order, np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)))


@functools.cache
def _table() -> np.ndarray:
    """Inverse of the Poisson(1) distribution function at 2**16 points (mean and variance right to 1e-4, far below the noise of any number of replicas)."""
    from scipy import stats  # half of the time that a process takes to start, and most processes need no interval

    return stats.poisson.ppf((np.arange(65536) + 0.5) / 65536, 1.0).astype(np.uint8)


def multiplicities(events: int, replicas: int, seed: int, *, rows: int | None = None) -> Iterator[np.ndarray]:
    """Chunks uint8 `[events, b]` of Poisson(1) multiplicities, `replicas` columns in all; `rows` (default `events`) sets the chunk's size.

    Replicas lie along the fast axis: sorting, summing and gathering then move whole cache lines.
    """
    table = _table()
    generator = np.random.Generator(np.random.Philox(seed))
    size = max(8, CELLS // max(1, rows or events))
    for start in range(0, replicas, size):
        yield table[generator.integers(0, 65536, (events, min(size, replicas - start)), dtype=np.uint16)]


def resample(population: Population, replicas: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Chunks of (signal weights, background weights), float64 `[n, b]` each; the background of each sample is scaled to its undisturbed sum."""
    rows = len(population.event)
    names = np.unique(population.sample[population.background != 0])
    sample = np.minimum(np.searchsorted(names, population.sample), len(names) - 1)
    member = (population.sample == names[:, None]) * population.background  # [samples, n]
    for drawn in multiplicities(int(population.event.max()) + 1, replicas, seed, rows=rows):
        times = drawn[population.event].astype(np.float64)
        total = member @ times
        factor = np.divide(member.sum(axis=1, keepdims=True), total, out=np.zeros_like(total), where=total != 0)
        background = times * population.background[:, None]
        if len(names):
            background *= factor if len(names) == 1 else factor[sample]
        times *= population.signal[:, None]
        yield times, background


class Replicas(NamedTuple):
    """Statistics of k scores in b replicas; with b = 1 and nothing resampled, their values.

    Attributes:
        efficiency: `[k, rates, b]`, signal efficiency at each rate, NaN where the signal's weights sum to zero or less.
        rate: `[k, efficiencies, b]`, background rate at each signal efficiency.
        auc: `[k, b]`, area under the curve of signal efficiency against background, ties counted half.
    """

    efficiency: np.ndarray
    rate: np.ndarray
    auc: np.ndarray


def nominal(rankings: Sequence[Ranking], population: Population, rates: Sequence[float], efficiencies: Sequence[float]) -> Replicas:
    """The values themselves, by the very code that makes the replicas."""
    return _statistics(rankings, population.signal[:, None], population.background[:, None], rates, efficiencies)


def replicate(
    rankings: Sequence[Ranking], population: Population, rates: Sequence[float], efficiencies: Sequence[float], *, replicas: int, seed: int
) -> Replicas:
    """Resample `replicas` times; replica j of every score saw the same events (paired)."""
    chunks = [_statistics(rankings, signal, background, rates, efficiencies) for signal, background in resample(population, replicas, seed)]
    return Replicas(*(np.concatenate(parts, axis=-1) for parts in zip(*chunks, strict=True)))


def _statistics(rankings: Sequence[Ranking], signal: np.ndarray, background: np.ndarray, rates: Sequence[float], efficiencies: Sequence[float]) -> Replicas:
    """Weights `[n, b]` -> statistics of each ranking."""
    count = signal.shape[1]
    found = Replicas(np.empty((len(rankings), len(rates), count)), np.empty((len(rankings), len(efficiencies), count)), np.empty((len(rankings), count)))
    column = np.arange(count)
    for k, ranking in enumerate(rankings):
        s, b = _cumulative(signal, ranking), _cumulative(background, ranking)
        total = s[-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            found.auc[k] = 1 - ((s[1:] - s[:-1]) * (b[1:] + b[:-1])).sum(axis=0) / (2 * total * b[-1])
            for j, rate in enumerate(rates):
                accepted = _first_above(b, rate * (1 + TOLERANCE)) - 1
                found.efficiency[k, j] = np.where(total > 0, s[accepted, column] / total, np.nan)
        for j, wanted in enumerate(efficiencies):
            # The largest T with enough efficiency at it and at every lower one: one past the last place where it is short.
            short = _first((s < wanted * total * (1 - TOLERANCE))[::-1])
            found.rate[k, j] = b[np.minimum(len(s) - short, len(s) - 1), column]
    return found


def _first(condition: np.ndarray) -> np.ndarray:
    """Index of the first true entry of each column of `[m, b]`, or m."""
    return np.where(condition.any(axis=0), condition.argmax(axis=0), len(condition))


def _first_above(values: np.ndarray, limit: float) -> np.ndarray:
    """`_first(values > limit)`, looking at the top of the ranking first: at trigger rates that is where the threshold lies."""
    for size in (len(values) // 64, len(values) // 8):
        above = values[:size] > limit
        if size and above.any(axis=0).all():
            found: np.ndarray = above.argmax(axis=0)
            return found
    return _first(values > limit)


def _cumulative(weights: np.ndarray, ranking: Ranking) -> np.ndarray:
    """Weights `[n, b]` -> sums above each distinct score, after a leading row of zeros: `[m + 1, b]`."""
    ordered = np.empty((len(weights) + 1, weights.shape[1]))
    ordered[0] = 0
    np.take(weights, ranking.order, axis=0, out=ordered[1:])
    np.cumsum(ordered, axis=0, out=ordered)
    return ordered if len(ranking.last) == len(weights) else ordered[np.append(0, ranking.last + 1)]
