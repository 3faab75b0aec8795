"""Thresholds against their definition, by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlt_train.errors import UsageError
from hlt_train.trigger.thresholds import at_efficiency, at_rate, distinct_rates, steps

scores = st.lists(st.integers(-6, 6), min_size=1, max_size=30)
weights = st.lists(st.integers(-2, 5), min_size=30, max_size=30)  # whole numbers: sums are exact
budget = st.integers(0, 40)


def rate(values: np.ndarray, weight: np.ndarray, threshold: float) -> float:
    return float(weight[values >= threshold].sum())


@given(scores, weights, budget)
def test_integer_grid_is_all_integers(values: list[int], weight: list[int], allowed: int) -> None:
    x, w = np.array(values, dtype=np.int64), np.array(weight[: len(values)], dtype=np.float64)
    grid = range(min(values), max(values) + 2)
    good = [t for t in grid if all(rate(x, w, u) <= allowed for u in grid if u >= t)]
    found = at_rate(x, w, float(allowed))
    assert isinstance(found, np.int64)
    assert int(found) == min(good)


@given(scores, weights, budget)
def test_float_grid_is_the_distinct_values(values: list[int], weight: list[int], allowed: int) -> None:
    x, w = np.array(values, dtype=np.float64) / 3, np.array(weight[: len(values)], dtype=np.float64)
    grid = [*sorted(set(x)), float(np.nextafter(x.max(), np.inf))]
    good = [t for t in grid if all(rate(x, w, u) <= allowed for u in grid if u >= t)]
    assert float(at_rate(x, w, float(allowed))) == min(good)


@given(scores, weights, st.integers(1, 20))
def test_efficiency_by_brute_force(values: list[int], weight: list[int], twentieths: int) -> None:
    x, w = np.array(values, dtype=np.int64), np.array(weight[: len(values)], dtype=np.float64)
    if w.sum() <= 0:
        with pytest.raises(UsageError, match="zero or less"):
            at_efficiency(x, w, 0.5)
        return
    grid = range(min(values), max(values) + 2)
    enough = [t for t in grid if all(20 * rate(x, w, u) >= twentieths * w.sum() for u in grid if u <= t)]
    assert int(at_efficiency(x, w, twentieths / 20)) == max(enough)


def test_negative_weights_make_a_looser_threshold_no_trap() -> None:
    # rate(>= 2) = 3 exceeds 2 although rate(>= 1) = 1 would fit again: the definition stops above 2.
    assert at_rate(np.array([3, 2, 1]), np.array([1.0, 2.0, -2.0]), 2.0) == 3


def test_ties_are_never_broken() -> None:
    x = np.array([5, 5, 5, 1])
    assert at_rate(x, np.ones(4), 2.0) == 6  # the three at 5 stand or fall together
    assert at_rate(x, np.ones(4), 3.0) == 2  # on the grid of integers, not on that of the values seen
    assert at_rate(x.astype(np.float64), np.ones(4), 3.0) == 5.0


def test_a_rate_of_exactly_the_limit_fits_in_any_order_of_summation() -> None:
    weight = np.full(20_000, 8000.0 / 20_000)
    x = np.random.default_rng(0).permutation(20_000)
    assert np.count_nonzero(x >= at_rate(x, weight, 50.0)) == 125


def test_events_without_weight_refine_a_float_grid_only() -> None:
    x, w = np.array([3.0, 2.5, 2.0]), np.array([1.0, 0.0, 1.0])
    assert at_rate(x, w, 1.0) == 2.5
    assert at_rate(x[[0, 2]], w[[0, 2]], 1.0) == 3.0


def test_steps_counts_rows() -> None:
    curve = steps(np.array([1.0, 2.0, 2.0]), np.array([1.0, 2.0, 4.0]))
    assert curve.value.tolist() == [2.0, 1.0]
    assert curve.rate.tolist() == [6.0, 7.0]
    assert curve.rows.tolist() == [2, 3]


def test_refusals() -> None:
    with pytest.raises(UsageError, match="at least one event"):
        steps(np.zeros(0), np.zeros(0))
    with pytest.raises(UsageError, match="1 scores are NaN"):
        at_rate(np.array([1.0, np.nan]), np.ones(2), 1.0)


def test_distinct_rates() -> None:
    x, w = np.array([4, 3, 3, 2, 1]), np.ones(5)
    assert distinct_rates(x, w, 1.0, 4.0) == 3  # rates 1, 3, 4
    assert distinct_rates(x, w, 1.5, 2.5) == 0
    assert distinct_rates(np.array([2, 1, 0]), np.array([1.0, 0.0, 1.0]), 0.0, 5.0) == 2  # a step without weight is no other rate
