"""What a network has to beat, from the card: the reference cut and the best single variable, with thresholds from validation and figures from test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hlt_train.data.card import Card
from hlt_train.data.expressions import parse
from hlt_train.trigger.reference import best_variable, marked, operand, optimise, placeholder, signed, with_numbers
from hlt_train.trigger.views import Setting, View, population
from hlt_train.trigger.working_points import Request, at_threshold

__all__ = ["Sight", "baselines"]

Columns = Mapping[str, np.ndarray]


class Sight(NamedTuple):
    """A split without a network: its rows (the view's score is not used) and the columns that cuts read, `[n]` each."""

    view: View
    columns: Columns


def baselines(card: Card, setting: Setting, requests: Sequence[Request], validation: Sight, test: Sight) -> list[dict[str, Any]]:
    """One row per baseline and request: name, the cut in words, rate, efficiency and mistag on test at the thresholds found on validation."""
    trigger = card.trigger
    found: list[dict[str, Any]] = []
    if trigger is None:
        return found
    people = population(validation.view)
    for request in requests:
        if trigger.reference is not None:
            thresholds = _thresholds(card, request.value, validation)
            passed = _decide(trigger.reference.cut, test.columns, thresholds)
            text = with_numbers(trigger.reference.cut, thresholds)
            figures = at_threshold(passed, test.view, setting)
            found.append({"name": "reference cut", "request": request.text, "cut": text, "thresholds": thresholds, **figures})
        if trigger.variables:
            chosen = {name: validation.columns[name] for name in trigger.variables}
            best = best_variable(chosen, people.signal, people.background, request.value)
            passed = signed(test.columns[best.name], best.direction) >= best.threshold
            found.append({"name": "best single variable", "request": request.text, "cut": str(best), **at_threshold(passed, test.view, setting)})
    return found


def _decide(cut: str, columns: Columns, thresholds: Mapping[str, float]) -> np.ndarray:
    numbers = {placeholder(name): value for name, value in thresholds.items()}
    return np.asarray(parse(marked(cut)).evaluate({**columns, **numbers})).astype(bool)


def _thresholds(card: Card, rate: float, validation: Sight) -> dict[str, float]:
    assert card.trigger is not None
    reference = card.trigger.reference
    assert reference is not None
    grids = {name: None if grid == "auto" else np.array(grid, np.float64) for name, grid in reference.thresholds.items()}
    values = {
        name: np.asarray(parse(operand(reference.cut, name)).evaluate(validation.columns), dtype=np.float64) for name, grid in grids.items() if grid is None
    }
    expression = parse(marked(reference.cut))
    people = population(validation.view)
    counting = (people.signal != 0) | (people.background != 0)
    columns = {name: np.asarray(column)[counting] for name, column in validation.columns.items()}

    def decide(thresholds: Mapping[str, float]) -> np.ndarray:
        numbers = {placeholder(name): value for name, value in thresholds.items()}
        return np.asarray(expression.evaluate({**columns, **numbers})).astype(bool)

    kept = {name: value[counting] for name, value in values.items()}
    return optimise(decide, grids, kept, people.signal[counting], people.background[counting], rate).thresholds
