"""Rates: normalisation to the input rate, sums over samples, and what is flagged."""

from __future__ import annotations

import numpy as np
import pytest

from hlt_train.errors import UsageError
from hlt_train.trigger.rates import per_sample, rate_of, to_hertz

NAMES = ("qcd", "hh", "minbias")


def test_each_sample_makes_its_own_input_rate() -> None:
    rng = np.random.default_rng(0)
    sample = rng.integers(0, 3, 500).astype(np.int32)
    weight = np.where(rng.random(500) < 0.1, -1.0, 1.0) * rng.uniform(1, 2, 500)
    hertz = to_hertz(weight, sample, NAMES, {"qcd": 8000.0, "minbias": 500.0})
    assert hertz[sample == 0].sum() == pytest.approx(8000)
    assert hertz[sample == 2].sum() == pytest.approx(500)
    assert (hertz[sample == 1] == 0).all()
    assert np.ptp(hertz[sample == 0] / weight[sample == 0]) < 1e-9
    passed = rng.random(500) < 0.5
    assert rate_of(passed, hertz).value == pytest.approx(hertz[passed].sum())


def test_the_error_of_a_rate_is_that_of_its_events() -> None:
    hertz = np.full(1000, 8.0)
    some = np.arange(1000) < 100
    found = rate_of(some, hertz)
    assert (found.value, found.low, found.high) == (800.0, 720.0, 880.0)
    few = rate_of(np.arange(1000) < 4, hertz)
    assert few.high - few.value > few.value - few.low > 0
    none = rate_of(np.zeros(1000, bool), hertz)
    assert none.value == none.low == 0.0
    assert none.high == pytest.approx(8.0 * -np.log(0.1585))


def test_per_sample() -> None:
    sample = np.repeat([0, 2], [900, 20]).astype(np.int32)
    hertz = to_hertz(np.ones(920), sample, NAMES, {"qcd": 900.0, "minbias": 2000.0})
    passed = (np.arange(920) < 50) | (np.arange(920) == 919)
    rows = {row["sample"]: row for row in per_sample(passed, hertz, sample, NAMES)}
    assert rows["qcd"] | {"flags": []} == {
        "sample": "qcd", "events": 900, "n_eff": pytest.approx(900), "weight_per_event_hz": pytest.approx(1), "passing": 50, "rate_hz": pytest.approx(50),
        "share": pytest.approx(50 / 150), "flags": [],
    }  # fmt: skip
    assert rows["qcd"]["flags"] == []
    assert rows["minbias"]["flags"] == ["only 1 events pass", "one event is 67 % of the rate"]


def test_a_sample_that_cannot_be_normalised() -> None:
    sample = np.zeros(3, np.int32)
    with pytest.raises(UsageError, match="'hh' cannot be normalised to its input rate: it has no events here"):
        to_hertz(np.ones(3), sample, NAMES, {"hh": 1.0})
    with pytest.raises(UsageError, match="its rate weights sum to -1"):
        to_hertz(np.array([1.0, 1.0, -3.0]), sample, NAMES, {"qcd": 1.0})
    with pytest.raises(UsageError, match="no sample is called 'qdc'"):
        to_hertz(np.ones(3), sample, NAMES, {"qdc": 1.0})
