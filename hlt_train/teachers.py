"""What can teach: a run at BEST, or an ensemble of specialists; several of them are one teacher whose distribution is their mean.

Means are of distributions at temperature 1, so that several teachers have one set of logits, `log mean p`, which is softened like one teacher's. The geometric
mean is the same whether distributions are softened before or after; the arithmetic one is not: at T > 1 ours is `softmax(log(mean p) / T)`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hlt_train import checkpoints
from hlt_train.combination import Mean, mean_of
from hlt_train.data.card import Card
from hlt_train.ensemble_document import FILE, is_ensemble, read
from hlt_train.errors import UsageError
from hlt_train.files import sha256
from hlt_train.restore import Loaded, load_run
from hlt_train.scorers import Scorer, Scores, discriminant_of, scorer
from hlt_train.trigger.discriminant import discriminant
from hlt_train.types import Features

__all__ = ["Teacher", "joint", "open_teacher", "order_of"]


class Teacher(NamedTuple):
    """One teacher.

    Attributes:
        path: its directory, resolved.
        card: how it reads its inputs.
        network: gives its logits.
        run: the run itself, at BEST; None of an ensemble.
        origin: what its logits depend on besides the rows, JSON-able: a cache of them is valid while it is the same.
    """

    path: Path
    card: Card
    network: Scorer
    run: Loaded | None
    origin: Mapping[str, Any]

    @property
    def about(self) -> dict[str, Any]:
        """For reports."""
        step, which = (None, self.network.which) if self.run is None else (self.run.step, self.run.which)
        return {"path": str(self.path), "step": step, "which": which, "classes": list(self.card.labels.classes)}


def open_teacher(path: Path, card: Card | None = None) -> Teacher:
    """Open a run or an ensemble; card: in place of its own."""
    path = path.resolve()
    network, run, inputs = scorer(path), None, path
    origin: dict[str, Any] = {"teacher": str(path)}
    if is_ensemble(path):
        origin["ensemble"] = sha256(path / FILE)  # it names the weights of every part, and has been compared with them
        inputs = path / read(path)[0].run
    else:
        run = load_run(path)
        origin |= {"step": run.step, "weights": checkpoints.document(path, run.step)["sha256"]["weights.npz"]}
    origin["normalisation"] = sha256(inputs / "normalisation.json")
    return Teacher(path, network.card if card is None else card, network, run, origin)


def order_of(teacher: Teacher, card: Card) -> list[int]:
    """Positions of the card's classes among the teacher's; they meet by name."""
    theirs, ours = list(teacher.card.labels.classes), list(card.labels.classes)
    if sorted(theirs) != sorted(ours):
        what = f"the teacher knows the classes {', '.join(theirs)}, the card has {', '.join(ours)}"
        raise UsageError(what, where=f"labels.classes, {teacher.path}", then="use the same classes")
    return [theirs.index(name) for name in ours]


def joint(teachers: Sequence[Teacher], weights: Sequence[float], how: Mean, card: Card) -> Scorer:
    """All teachers as one scorer of rows that each of them can read, in the card's order of classes."""
    first = teachers[0].network
    if len(teachers) == 1:
        return first
    orders, sides = [order_of(teacher, card) for teacher in teachers], discriminant_of(card)

    def score(x: Features) -> Scores:
        logits = np.stack([teacher.network.score(x).logits[:, order] for teacher, order in zip(teachers, orders, strict=True)])
        log_p = mean_of(logits, np.outer(weights, np.ones(logits.shape[1])), how)
        return Scores(log_p, None if sides is None else discriminant(log_p, card.labels.classes, sides))

    size = sum(teacher.network.parameters for teacher in teachers)
    name = ", ".join(str(teacher.path) for teacher in teachers)
    return dataclasses.replace(first, name=name, which=f"{how} mean", card=card, exponent=None, parameters=size, points=None, score=score)
