"""Means over rows whose unit is the event."""

from __future__ import annotations

import numpy as np
import pytest

from hlt_train.paired_means import mean

RNG = np.random.default_rng(2)


def test_equal_weights_are_the_textbook() -> None:
    values = RNG.normal(3, 2, 500)
    found = mean(values, np.ones(500), np.arange(500))
    assert found is not None
    assert found["value"] == pytest.approx(values.mean())
    assert found["error"] == pytest.approx(values.std() / np.sqrt(500))


def test_a_row_written_twice_is_not_two_rows() -> None:
    values, weight = RNG.normal(0, 1, 100), RNG.uniform(0.5, 2, 100)
    twice = mean(np.repeat(values, 2), np.repeat(weight, 2), np.repeat(np.arange(100), 2))
    assert twice == pytest.approx(mean(values, weight, np.arange(100)))


def test_the_error_covers() -> None:
    """Events of one to four rows with weights and a common fluctuation: the spread of means over experiments is the stated error."""
    found = []
    for _ in range(400):
        event = np.repeat(np.arange(200), RNG.integers(1, 5, 200))
        values = RNG.normal(0, 1, 200)[event] + RNG.normal(0, 0.5, len(event))
        one = mean(values, RNG.uniform(0, 2, len(event)), event)
        assert one is not None
        found.append((one["value"], one["error"]))
    values, errors = np.array(found).T
    assert values.std() == pytest.approx(errors.mean(), rel=0.12)  # 400 experiments: 3.5 %
    assert abs(values.mean()) < 4 * values.std() / 20


def test_no_weight() -> None:
    assert mean(np.ones(3), np.array([1.0, -1.0, 0.0]), np.arange(3)) is None
