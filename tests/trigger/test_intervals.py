"""Intervals: known values, names, and their coverage in 2,000 pseudo-experiments each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hlt_train.trigger.intervals import FEW, Interval, clopper_pearson, effective, efficiency, garwood, rate

EXPERIMENTS = 2000


def test_known_values() -> None:
    low, high = clopper_pearson(0, 10, 0.9)
    assert (float(low), float(high)) == (0.0, pytest.approx(1 - 0.05 ** (1 / 10)))
    low, high = clopper_pearson(10, 10, 0.9)
    assert (float(low), float(high)) == (pytest.approx(0.05 ** (1 / 10)), 1.0)
    low, high = garwood(0, 0.683)
    assert (float(low), float(high)) == (0.0, pytest.approx(-np.log(0.1585)))
    np.testing.assert_allclose(garwood(3, 0.6826894921), (1.3673, 5.9182), atol=1e-3)  # the 3 -1.63 +2.92 of every table


def test_effective() -> None:
    assert effective(np.full(7, 0.3)) == pytest.approx(7)
    assert effective(np.array([2.0, 1.0])) == pytest.approx(9 / 5)
    assert effective(np.zeros(0)) == 0.0


def test_the_method_follows_the_weights() -> None:
    passed = np.array([True, False] * 50)
    assert efficiency(passed, np.full(100, 2.0)).method == "Clopper-Pearson"
    assert efficiency(passed, np.linspace(1, 2, 100)).method == "Clopper-Pearson at n_eff (approximate)"
    assert efficiency(passed, np.where(np.arange(100) == 3, -1.0, 1.0)).method == "bootstrap over events (negative weights)"
    assert efficiency(passed[:0], np.zeros(0)).method == "no events"
    assert rate(np.full(30, 0.4)).method == "sqrt(sum w^2)"
    assert rate(np.full(20, 0.4)).method == "Garwood scaled by sum w^2 / sum w"
    assert rate(np.array([1.0, -0.5, 1.0])).method == "bootstrap over events (negative weights)"
    assert rate(np.zeros(0), one=0.4) == Interval(0.0, 0.0, pytest.approx(0.4 * -np.log(0.1585)), "Garwood")


def test_equal_weights_do_not_depend_on_their_size() -> None:
    passed = np.arange(300) % 7 == 0
    assert efficiency(passed, np.full(300, 0.1))[1:3] == efficiency(passed, np.ones(300))[1:3]


def test_objects_of_an_event_are_resampled_together() -> None:
    rng = np.random.default_rng(3)
    weights = np.where(rng.random(400) < 0.1, -1.0, 1.0)
    passed = rng.random(400) < 0.5
    four = [np.repeat(column, 4) for column in (passed, weights, np.arange(400))]
    alone, together = efficiency(passed, weights), efficiency(four[0], four[1], event=four[2])
    assert (together.low, together.high) == (pytest.approx(alone.low), pytest.approx(alone.high))
    apart = efficiency(four[0], four[1])
    assert apart.high - apart.low < 0.7 * (alone.high - alone.low)


def test_document_round_trip() -> None:
    interval = Interval(float("nan"), 0.0, 1.0, "no events")
    content = interval.document(unit="Hz")
    assert content == {"value": None, "low": 0.0, "high": 1.0, "method": "no events", "unit": "Hz"}
    assert Interval.read(content)[1:] == interval[1:]


Weights = Callable[[np.random.Generator, int], np.ndarray]


def equal(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.ones(n)


def unequal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.lognormal(0.0, 0.6, n)


def signed(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.where(rng.random(n) < 0.13, -1.0, 1.0) * rng.lognormal(0.0, 0.3, n)


def check(covered: int, n_eff: float, *, discrete: bool = False) -> None:
    coverage = covered / EXPERIMENTS
    assert coverage >= 0.66
    if n_eff >= 100:
        assert coverage <= (0.76 if discrete else 0.72)
    else:
        assert n_eff < FEW  # the contract speaks of few and of many


@pytest.mark.parametrize(("n", "p"), [(5, 0.3), (20, 0.5), (20, 0.05), (200, 0.3), (400, 0.1), (1000, 0.05)])
def test_coverage_clopper_pearson(n: int, p: float) -> None:
    low, high = clopper_pearson(np.random.default_rng(n).binomial(n, p, EXPERIMENTS), n)
    check(int(((low <= p) & (p <= high)).sum()), n, discrete=True)


@pytest.mark.parametrize(
    ("weights", "n", "p"), [(unequal, 25, 0.3), (unequal, 30, 0.1), (unequal, 600, 0.3), (signed, 25, 0.3), (signed, 35, 0.1), (signed, 400, 0.3)]
)
def test_coverage_efficiency(weights: Weights, n: int, p: float) -> None:
    rng = np.random.default_rng(n)
    covered, sizes = 0, []
    for experiment in range(EXPERIMENTS):
        w = weights(rng, n)
        found = efficiency(rng.random(n) < p, w, seed=experiment)
        covered += found.low <= p <= found.high
        sizes.append(effective(w))
    check(covered, float(np.median(sizes)), discrete=weights is unequal)


@pytest.mark.parametrize(
    ("weights", "mean", "true"),
    [(equal, 3, 1.0), (equal, 15, 1.0), (equal, 300, 1.0), (unequal, 6, 1.197217), (unequal, 400, 1.197217), (signed, 10, 0.774), (signed, 400, 0.774)],
)
def test_coverage_rate(weights: Weights, mean: int, true: float) -> None:
    rng = np.random.default_rng(mean)
    expected = mean * {equal: 1.0, unequal: np.exp(0.18), signed: 0.74 * np.exp(0.045)}[weights]
    assert expected == pytest.approx(mean * true, rel=1e-3)
    covered, sizes = 0, []
    for experiment in range(EXPERIMENTS):
        w = weights(rng, int(rng.poisson(mean)))
        found = rate(w, one=1.0, seed=experiment)
        covered += found.low <= expected <= found.high
        sizes.append(effective(w))
    check(covered, float(np.median(sizes)))
