"""Two arms of students on the same events: values per seed, and the difference paired over seeds and over events.

The figure is signal efficiency at the card's first working point (a rate, or a mistag for objects); a working point that is an efficiency gives the background
rejection there. Seeds fluctuate and events fluctuate: the error of a mean over seeds is the spread of its values over sqrt(seeds), the error from events is
that of a bootstrap in which all students, and the teacher, see the same events and find their thresholds anew. Both are printed; the whole is their quadratic
sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hlt_train.data.card import Card
from hlt_train.errors import UsageError
from hlt_train.progress import Progress
from hlt_train.scorers import Scorer, scorer
from hlt_train.scoring import requests_of, score_split, setting_of
from hlt_train.study import Study
from hlt_train.trigger.bootstrap import Population, Replicas, nominal, rank, replicate
from hlt_train.trigger.views import population, view
from hlt_train.trigger.working_points import Request

__all__ = ["Comparison", "best_on_validation", "compare_runs", "figure_name", "figures_at", "paired", "request_of", "teacher_on"]

Comparison = dict[str, Any]
REPLICAS = 200
DEFAULT = Request("eff", 0.5, "eff 50%")


def compare_runs(alone: Sequence[Path], distilled: Sequence[Path], study: Study, progress: Progress) -> Comparison:
    """The comparison on the test split; with the teacher, or all teachers as one, where it reads the same inputs."""
    students = [scorer(path) for path in (*alone, *distilled)]
    teacher = teacher_on(study)
    networks = [*students, *([] if teacher is None else [teacher])]
    values, replicas, request = figures_at(networks, study, "test", progress, replicas=REPLICAS)
    n = len(alone)
    arms = {"alone": slice(0, n), "distilled": slice(n, 2 * n)}
    rows = {arm: _arm(values[part], replicas[part]) for arm, part in arms.items()}
    difference = paired(values[n : 2 * n] - values[:n], replicas[n : 2 * n] - replicas[:n])
    result: Comparison = {
        "teacher": None,
        "ratio": None,
        "request": request.text,
        "figure": figure_name(request),
        "split": "test",
        "seeds": n,
        "arms": rows,
        "difference": difference,
    }
    if len(networks) > 2 * n:
        result["teacher"] = {"value": float(values[-1]), "events_error": float(np.std(replicas[-1], ddof=1))}
    if len(networks) > 2 * n and values[-1] > 0 and (replicas[-1] > 0).all():
        result["ratio"] = {arm: paired(values[part] / values[-1], replicas[part] / replicas[-1]) for arm, part in arms.items()}
    return result


def best_on_validation(runs: Sequence[Path], study: Study, progress: Progress) -> int:
    """Index of the run that is best on the validation split at the working point; the first of equals."""
    if len(runs) == 1:
        return 0
    values, _, _ = figures_at([scorer(path) for path in runs], study, "validation", progress, replicas=0)
    return int(np.argmax(values))


def paired(per_seed: np.ndarray, per_replica: np.ndarray) -> dict[str, Any]:
    """Mean over seeds of a paired quantity.

    Args:
        per_seed: `[seeds]`.
        per_replica: `[seeds, replicas]`, the same quantity in replicas of the events.

    Returns:
        value, seeds_error (None for a single seed), events_error, error (both), significance = value / error, and low, high: 95 % interval.
    """
    seeds = len(per_seed)
    value = float(per_seed.mean())
    over_seeds = float(np.std(per_seed, ddof=1) / math.sqrt(seeds)) if seeds > 1 else None
    over_events = float(np.std(per_replica.mean(axis=0), ddof=1))
    error = math.hypot(over_seeds or 0.0, over_events)
    width = 1.96 * error
    figures = {"value": value, "seeds_error": over_seeds, "events_error": over_events, "error": error}
    return {**figures, "significance": value / error if error > 0 else None, "low": value - width, "high": value + width, "per_seed": per_seed.tolist()}


def _arm(values: np.ndarray, replicas: np.ndarray) -> dict[str, Any]:
    figures = paired(values, replicas)
    del figures["significance"]
    return figures


def figures_at(networks: Sequence[Scorer], study: Study, split: str, progress: Progress, *, replicas: int) -> tuple[np.ndarray, np.ndarray, Request]:
    """Values `[networks]` at the card's working point, their replicas `[networks, replicas]`, and the working point."""
    card = study.dataset.card
    setting, request = setting_of(card), request_of(card)
    scored = score_split(networks, study.dataset, split, progress=progress)
    rankings, whole = [], None
    for scores in scored.scores:
        assert scores.score is not None  # the card has a discriminant
        seen = view(setting, scored.truth, scores.score, events=setting.has_rates and (request.kind == "rate" or not setting.per_object))
        rankings.append(rank(seen.score))
        whole = population(seen if request.kind == "rate" else seen._replace(hertz=None))
    assert whole is not None
    rates, efficiencies = ([], [request.value]) if request.kind == "eff" else ([request.value], [])
    values = _figure(nominal(rankings, whole, rates, efficiencies), request)[:, 0]
    if not replicas:
        return values, np.zeros((len(networks), 0)), request
    progress(f"bootstrap: {replicas} replicas of {len(whole.event):,} rows")
    return values, _replicas(rankings, whole, rates, efficiencies, request, replicas), request


def _replicas(rankings: list[Any], whole: Population, rates: list[float], efficiencies: list[float], request: Request, count: int) -> np.ndarray:
    return _figure(replicate(rankings, whole, rates, efficiencies, replicas=count, seed=0), request)


def _figure(found: Replicas, request: Request) -> np.ndarray:
    """`[networks, b]`: efficiency, or rejection = 1 / mistag."""
    if request.kind != "eff":
        return found.efficiency[:, 0]
    if not (found.rate > 0).all():
        what = f"no background passes at {request.text}: the rejection is beyond what these events can measure"
        raise UsageError(what, where="trigger.working_points", then="a first working point with a mistag or a rate, or more events")
    rejection: np.ndarray = 1 / found.rate[:, 0]
    return rejection


def request_of(card: Card) -> Request:
    """The working point at which networks of a card are compared: its first."""
    return next(iter(requests_of(card).values()), DEFAULT)


def figure_name(request: Request) -> str:
    """What is compared there, in words."""
    return "background rejection" if request.kind == "eff" else "signal efficiency"


def teacher_on(study: Study) -> Scorer | None:
    """The teacher, or all teachers as one, where each can be given the rows of the study's card."""
    there = {g.name: (g.variables, g.length) for g in study.inputs.groups}
    groups = [group for teacher in study.teachers for group in teacher.network.inputs.groups]
    return study.teacher if all(there.get(g.name) == (g.variables, g.length) for g in groups) else None
