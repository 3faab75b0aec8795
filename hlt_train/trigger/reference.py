"""What a network has to beat: the card's reference cut with its thresholds optimised at the same rate, and the best single variable."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hlt_train.errors import UsageError
from hlt_train.trigger.thresholds import TOLERANCE, at_rate

__all__ = ["Cut", "Variable", "best_variable", "marked", "operand", "optimise", "placeholder", "signed", "with_numbers"]

POINTS = 24  # per threshold and pass
COMBINATIONS = 20_000
_NAME = re.compile(r"\{\s*([A-Za-z_]\w*)\s*\}")

Decide = Callable[[Mapping[str, float]], np.ndarray]


class Cut(NamedTuple):
    """An optimised cut: its thresholds, and the rate and efficiency there on the events that it was optimised with."""

    thresholds: dict[str, float]
    rate: float
    efficiency: float


def placeholder(threshold: str) -> str:
    """The name that stands for `{threshold}` in `marked`."""
    return f"threshold__{threshold}"


def marked(cut: str) -> str:
    """A cut as an expression whose thresholds are names: parsed once, evaluated with any thresholds.

    >>> marked("ht > {ht}")
    'ht > threshold__ht'
    """
    return _NAME.sub(lambda match: placeholder(match[1]), cut)


def with_numbers(cut: str, thresholds: Mapping[str, float]) -> str:
    """The cut as a person would write it, thresholds to six digits."""
    return _NAME.sub(lambda match: f"{thresholds[match[1]]:.6g}", cut)


def operand(cut: str, threshold: str) -> str:
    """The expression that `{threshold}` is compared with in `cut`: what an automatic grid takes its quantiles of.

    >>> operand("(ht > {ht}) & (btag4 + 1 > {b})", "b")
    'btag4 + 1'
    """
    wanted = placeholder(threshold)
    for node in ast.walk(ast.parse(marked(cut), mode="eval")):
        if isinstance(node, ast.Compare) and len(node.comparators) == 1:
            sides = [ast.unparse(node.left), ast.unparse(node.comparators[0])]
            if wanted in sides:
                return sides[1 - sides.index(wanted)]
    raise UsageError(
        f"threshold '{{{threshold}}}' is not one side of a comparison, so its grid cannot be automatic",
        where="trigger.reference.thresholds",
        then=f"list the values to try: thresholds: {{{threshold}: [...]}}",
    )


def optimise(
    decide: Decide, grids: Mapping[str, np.ndarray | None], values: Mapping[str, np.ndarray], signal: np.ndarray, hertz: np.ndarray, rate: float
) -> Cut:
    """The thresholds of highest signal efficiency among those whose rate does not exceed `rate`.

    Args:
        decide: thresholds -> bool `[n]`, which events the cut accepts.
        grids: name -> the values to try, or None: quantiles of `values[name]` over the signal, and a second, finer pass around the best.
        values: name -> float64 `[n]`, what an automatic threshold is compared with.
        signal: float64 `[n]`, weight in the efficiency, 0 for the rest.
        hertz: float64 `[n]`, weight in the rate.
        rate: Hz.
    """
    levels = {name: np.linspace(0, 1, POINTS) for name, grid in grids.items() if grid is None}
    automatic = {name: np.sort(values[name][(signal != 0) & np.isfinite(values[name])]) for name in levels}
    best = _scan(decide, _grid(grids, automatic, levels), signal, hertz, rate)
    if levels and best is not None:
        width = 1 / (POINTS - 1)
        for name, level in levels.items():
            at = float(level[np.argmin(np.abs(_quantile(automatic[name], level) - best.thresholds[name]))])
            levels[name] = np.clip(np.linspace(at - width, at + width, POINTS), 0, 1)
        finer = _scan(decide, _grid(grids, automatic, levels), signal, hertz, rate)
        best = finer if finer is not None and finer.efficiency > best.efficiency else best
    if best is None:
        raise UsageError(
            f"no thresholds of the reference cut bring its rate to {rate:g} Hz or below",
            where="trigger.reference",
            then="widen the grids of trigger.reference.thresholds",
        )
    return best


def _quantile(ordered: np.ndarray, levels: np.ndarray) -> np.ndarray:
    return np.quantile(ordered, levels) if len(ordered) else np.zeros(1)


def _grid(grids: Mapping[str, np.ndarray | None], automatic: Mapping[str, np.ndarray], levels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = {name: np.unique(_quantile(automatic[name], levels[name]) if grid is None else grid) for name, grid in grids.items()}
    if (total := int(np.prod([len(g) for g in found.values()]))) > COMBINATIONS:
        raise UsageError(f"the reference cut has {total} combinations of thresholds, more than {COMBINATIONS}", where="trigger.reference.thresholds")
    return found


def _scan(decide: Decide, grid: Mapping[str, np.ndarray], signal: np.ndarray, hertz: np.ndarray, rate: float) -> Cut | None:
    total = float(signal.sum())
    best: Cut | None = None
    for point in itertools.product(*grid.values()):
        thresholds = dict(zip(grid, map(float, point), strict=True))
        passed = decide(thresholds)
        found = float(hertz[passed].sum())
        efficiency = float(signal[passed].sum()) / total
        if found <= rate * (1 + TOLERANCE) and (best is None or efficiency > best.efficiency):
            best = Cut(thresholds, found, efficiency)
    return best


class Variable(NamedTuple):
    """A cut on one variable: accept `signed(column, direction) >= threshold`, direction +1 (high values) or -1 (low values)."""

    name: str
    direction: int
    threshold: float
    efficiency: float

    def __str__(self) -> str:
        return f"{self.name} {'>=' if self.direction > 0 else '<='} {self.direction * self.threshold:.6g}"


def signed(column: np.ndarray, direction: int) -> np.ndarray:
    """A variable as a score, float64: high values first or low values first; NaN is accepted by no threshold."""
    score = direction * np.asarray(column, dtype=np.float64)
    return np.where(np.isnan(score), -np.inf, score)


def best_variable(columns: Mapping[str, np.ndarray], signal: np.ndarray, hertz: np.ndarray, rate: float, *, among: Sequence[int] = (1, -1)) -> Variable:
    """The variable and direction of highest signal efficiency at `rate`, by the threshold rule of the networks."""
    total = float(signal.sum())
    found = []
    for name, column in columns.items():
        for direction in among:
            score = signed(column, direction)
            threshold = float(at_rate(score, hertz, rate))
            found.append(Variable(name, direction, threshold, float(signal[score >= threshold].sum()) / total))
    return max(found, key=lambda v: v.efficiency)
