"""What specialists are good for: generalist, specialists and ensemble on the same rows, with paired errors.

Rows count by their rate weight, as in `evaluate`. On the rows of a set's own classes a specialist alone is right where its most probable class, the dustbin
among them, is the label.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from hlt_train.combination import active
from hlt_train.data.dataset import Dataset
from hlt_train.ensemble import Ensemble, Specialist, expert
from hlt_train.paired_means import mean
from hlt_train.progress import Progress
from hlt_train.scorers import Scores, scorer
from hlt_train.scoring import score_split
from hlt_train.types import Features

__all__ = ["specialist_figures"]

Figures = dict[str, np.ndarray]


def specialist_figures(ensemble: Ensemble, dataset: Dataset, split: str, *, progress: Progress) -> dict[str, Any]:
    """JSON-able figures on a split: of all rows, and of the rows of each set's classes.

    Figures are `accuracy` and `cross_entropy` (nats, of the label), each a mapping of network (`generalist`, `specialist`, `ensemble`) to value and error;
    `difference` is ensemble - generalist, paired. `active`: the fraction of all rows for which a specialist is asked.
    """
    whole, joined = scorer(ensemble.generalist.path), scorer(ensemble.path)
    own = [dataclasses.replace(whole, score=_alone(specialist)) for specialist in ensemble.specialists]
    scored = score_split([whole, joined, *own], dataset, split, progress=progress)
    truth = scored.truth
    log_p = [scores.logits for scores in scored.scores]
    log_p[0] = log_p[0] - np.logaddexp.reduce(log_p[0], axis=1, keepdims=True)
    everybody = {"generalist": _of(log_p[0], truth.label), "ensemble": _of(log_p[1], truth.label)}
    on = active(log_p[0], [s.members for s in ensemble.specialists], ensemble.top)
    found: dict[str, Any] = {"split": split, "rows": len(truth.label), "all": _means(everybody, truth.weight, truth.grouping.event), "sets": []}
    for specialist, mine, asked in zip(ensemble.specialists, log_p[2:], on.T, strict=True):
        place = np.full(len(dataset.card.labels.classes), len(specialist.members))
        place[list(specialist.members)] = np.arange(len(specialist.members))
        rows = np.isin(truth.label, specialist.members)
        seen = {**everybody, "specialist": _of(mine, place[truth.label])}
        chosen = {name: {key: values[rows] for key, values in each.items()} for name, each in seen.items()}
        figures = _means(chosen, truth.weight[rows], truth.grouping.event[rows])
        total = truth.weight.sum()
        share = float(truth.weight[asked].sum() / total) if total > 0 else None
        found["sets"].append({"classes": list(specialist.run.names[:-1]), "rows": int(rows.sum()), "active": share, **figures})
    return found


def _alone(specialist: Specialist) -> Callable[[Features], Scores]:
    """A specialist as a scorer's function; its classes are its own."""
    return lambda x: Scores(expert(specialist, x).log_p, None)


def _of(log_p: np.ndarray, label: np.ndarray) -> Figures:
    right = log_p.argmax(axis=1) == label
    return {"accuracy": right.astype(np.float64), "cross_entropy": -log_p[np.arange(len(label)), label]}


def _means(networks: dict[str, Figures], weight: np.ndarray, event: np.ndarray) -> dict[str, dict[str, Any]]:
    """Figure -> network, or `difference` -> value and error."""
    found: dict[str, dict[str, Any]] = {}
    for figure in ("accuracy", "cross_entropy"):
        values = {name: each[figure] for name, each in networks.items()}
        values["difference"] = values["ensemble"] - values["generalist"]
        found[figure] = {name: mean(each, weight, event) for name, each in values.items()}
    return found
