"""An ensemble of a generalist and its specialists, opened and asked: the distribution that all active ones agree on best (`hlt_train.combination`)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax

from hlt_train import checkpoints
from hlt_train.combination import Expert, active, combine
from hlt_train.data.card import Card
from hlt_train.dustbin import DUSTBIN
from hlt_train.ensemble_document import FILE, Part, read
from hlt_train.errors import RunFailed
from hlt_train.restore import Loaded, load_run, predict_rows
from hlt_train.run import read_config
from hlt_train.types import Features

__all__ = ["Ensemble", "Specialist", "expert", "generalist_log_p", "log_probabilities", "open_ensemble", "part_of"]


class Specialist(NamedTuple):
    """run: outputs are the set's classes and the dustbin. members: indices of the classes. correction: of the dustbin's logit."""

    run: Loaded
    members: tuple[int, ...]
    correction: float


class Ensemble(NamedTuple):
    """See `ensemble_document`. card: the generalist's, with the files that the specialists were trained on."""

    path: Path
    card: Card
    generalist: Loaded
    specialists: tuple[Specialist, ...]
    top: int


def open_ensemble(path: Path) -> Ensemble:
    """Open an ensemble's directory.

    Raises:
        RunFailed: a part is missing, damaged, or not the network that the ensemble was made of.
        UsageError: no ensemble.
    """
    generalist, specialists, top = read(path)
    whole = _loaded(path, generalist, generalist.classes)
    order = {name: k for k, name in enumerate(whole.names)}
    parts = [Specialist(_loaded(path, s, (*s.classes, DUSTBIN)), tuple(order[name] for name in s.classes), s.correction) for s in specialists]
    return Ensemble(path, Card.model_validate(read_config(path)["card"]), whole, tuple(parts), top)


def _loaded(path: Path, part: Part, outputs: tuple[str, ...]) -> Loaded:
    where = str(path / part.run)
    if not (path / part.run / "config.yaml").is_file():
        raise RunFailed(f"the ensemble has lost {part.run}", where=where, then="put it back, or make the ensemble again")
    run = load_run(path / part.run)
    if (run.step, _weights(run)) != (part.step, part.weights) or run.names != outputs:
        what = f"{part.run} at step {run.step:,} is not the network that the ensemble was made of"
        raise RunFailed(what, where=str(path / FILE), then="hlt-train specialists GENERALIST_RUN --run DIR makes a new one")
    return run


def part_of(run: Loaded, folder: Path, classes: tuple[str, ...], correction: float) -> Part:
    """How `ensemble.json` of `folder` names a run below it."""
    return Part(run.path.relative_to(folder).as_posix(), run.step, _weights(run), classes, correction)


def _weights(run: Loaded) -> str:
    return str(checkpoints.document(run.path, run.step)["sha256"]["weights.npz"])


def generalist_log_p(ensemble: Ensemble, x: Features) -> np.ndarray:
    """Logarithms of the generalist's probabilities, float64 `[n, classes]`, of raw features."""
    return _log_p(predict_rows(ensemble.generalist, x))


def _log_p(logits: np.ndarray) -> np.ndarray:
    return np.asarray(log_softmax(logits.astype(np.float64), axis=1))


def expert(specialist: Specialist, x: Features) -> Expert:
    """What a specialist says of raw features, its dustbin corrected."""
    logits = predict_rows(specialist.run, x).astype(np.float64)
    logits[:, -1] += specialist.correction
    return Expert(specialist.members, _log_p(logits))


def log_probabilities(ensemble: Ensemble, x: Features) -> np.ndarray:
    """Logarithms of the ensemble's probabilities, float64 `[n, classes]`, of raw features. A specialist is asked only about the rows for which it is active."""
    log_p = generalist_log_p(ensemble, x)
    on = active(log_p, [s.members for s in ensemble.specialists], ensemble.top)
    experts = []
    for specialist, rows in zip(ensemble.specialists, on.T, strict=True):
        found = np.zeros((len(log_p), len(specialist.members) + 1))
        found[rows] = expert(specialist, x.take(rows)).log_p
        experts.append(Expert(specialist.members, found))
    return combine(log_p, experts, on)
