"""Baselines: thresholds found by hand, automatic grids, single variables."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from hlt_train.errors import UsageError
from hlt_train.trigger.reference import best_variable, marked, operand, optimise, signed, with_numbers

CUT = "(ht > {ht}) & ({ b } <= btag4 + 1)"


def test_texts() -> None:
    assert marked(CUT) == "(ht > threshold__ht) & (threshold__b <= btag4 + 1)"
    assert operand(CUT, "ht") == "ht"
    assert operand(CUT, "b") == "btag4 + 1"
    assert with_numbers(CUT, {"ht": 412.25, "b": -0.5}) == "(ht > 412.25) & (-0.5 <= btag4 + 1)"
    with pytest.raises(UsageError, match="not one side of a comparison"):
        operand("ht > 2 * {x}", "x")


def problem(rows: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    is_signal = np.arange(rows) % 2 == 1
    a, b = rng.normal(1.5 * is_signal), rng.normal(1.0 * is_signal)
    return a, b, is_signal * 1.0, np.where(is_signal, 0.0, 1000 / (rows / 2))


def test_automatic_thresholds_come_near_an_exhaustive_search() -> None:
    a, b, signal, hertz = problem()

    def decide(t: Mapping[str, float]) -> np.ndarray:
        return (a > t["a"]) & (b > t["b"])

    found = optimise(decide, {"a": None, "b": None}, {"a": a, "b": b}, signal, hertz, 50.0)
    passed = decide(found.thresholds)
    assert found.rate == pytest.approx(hertz[passed].sum())
    assert found.rate <= 50
    assert found.efficiency == pytest.approx(signal[passed].sum() / signal.sum())
    fine = np.linspace(-3, 4, 150)
    inside = [(signal[decide({"a": x, "b": y})].sum() / signal.sum()) for x in fine for y in fine if hertz[decide({"a": x, "b": y})].sum() <= 50]
    assert found.efficiency > max(inside) - 0.02


def test_no_thresholds_are_tight_enough() -> None:
    a, _, signal, hertz = problem()
    with pytest.raises(UsageError, match="to 5 Hz or below"):
        optimise(lambda t: a > t["a"], {"a": np.array([-10.0, 0.0])}, {}, signal, hertz, 5.0)


def test_too_many_combinations() -> None:
    a, _, signal, hertz = problem(100)
    grids: dict[str, np.ndarray | None] = {name: np.arange(30.0) for name in "abc"}
    with pytest.raises(UsageError, match="27000 combinations"):
        optimise(lambda t: a > t["a"], grids, {}, signal, hertz, 5.0)


def test_best_variable_and_direction() -> None:
    a, b, signal, hertz = problem()
    found = best_variable({"noise": np.zeros(len(a)), "b": b, "minus_a": -a}, signal, hertz, 50.0)
    assert (found.name, found.direction) == ("minus_a", -1)
    assert str(found).startswith("minus_a <= -")
    passed = -a <= -found.threshold
    assert hertz[passed].sum() <= 50
    assert found.efficiency == pytest.approx(signal[passed].sum() / signal.sum())


def test_nan_is_accepted_by_neither_direction() -> None:
    column = np.array([1.0, np.nan, -1.0])
    assert signed(column, 1).tolist() == [1.0, -np.inf, -1.0]
    assert signed(column, -1).tolist() == [-1.0, -np.inf, 1.0]
