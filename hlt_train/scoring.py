"""A split of a data set reduced to scores: streamed once, features dropped, with the truth that trigger statistics need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hlt_train.data.card import Card
from hlt_train.data.dataset import Dataset
from hlt_train.data.expressions import parse
from hlt_train.errors import UsageError
from hlt_train.progress import Progress
from hlt_train.scorers import Scorer, Scores, discriminant_of, scorer
from hlt_train.trigger import working_points
from hlt_train.trigger.views import Setting, Truth, truth
from hlt_train.trigger.working_points import Request
from hlt_train.types import Features

__all__ = ["Scored", "requests_of", "score_split", "setting_of", "take", "write_working_points"]

STEP = 65_536
EXAMPLES = 512  # rows kept with their features, for latency


class Scored(NamedTuple):
    """A split after scoring.

    Attributes:
        truth: labels, samples, rate weights, events.
        scores: one per scorer.
        columns: name -> `[n]`, what the reference cut and the single variables read.
        keys: structured `[n]`, identity and object index, for joins across cards.
        examples: raw features of the first rows.
    """

    truth: Truth
    scores: list[Scores]
    columns: dict[str, np.ndarray]
    keys: np.ndarray
    examples: Features


def setting_of(card: Card, input_rates: Mapping[str, float] | None = None) -> Setting:
    """What a card says of the trigger; `input_rates` (sample -> Hz) replaces or adds normalisations."""
    trigger = card.trigger
    rates = {} if trigger is None else {name: rate.input_rate for name, rate in trigger.rate.items()}
    return Setting(
        classes=tuple(card.labels.classes),
        samples=tuple(card.samples),
        discriminant=discriminant_of(card),
        input_rates={**rates, **(input_rates or {})},
        per_object=card.example != "event",
        event_score=None if trigger is None else trigger.event_score,
    )


def requests_of(card: Card) -> dict[str, Request]:
    """The card's working points."""
    points = {} if card.trigger is None else card.trigger.working_points
    return {name: Request(point.kind, point.value, str(point)) for name, point in points.items()}


def score_split(scorers: Sequence[Scorer], dataset: Dataset, split: str, *, progress: Progress) -> Scored:
    """Stream a split through every scorer; memory grows by the scores and the columns of the truth only."""
    total = dataset.size(split)
    if total == 0:
        raise UsageError(f"the {split} split has no rows", where=f"card '{dataset.card.name}'", then="look at 'splits' in the card with `hlt-train inspect`")
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("label", "sample", "rate_weight", "identity", "object", "keys")}
    variables: dict[str, list[np.ndarray]] = {}
    outputs: list[list[Scores]] = [[] for _ in scorers]
    examples: Features | None = None
    done = 0
    for rows in dataset.iterate(split, step=STEP):
        for found, network in zip(outputs, scorers, strict=True):
            found.append(network.score(rows.x))
        for name in ("label", "sample", "rate_weight", "identity", "object"):
            columns[name].append(getattr(rows, name))
        columns["keys"].append(dataset.identity_keys(rows))
        for name, values in rows.reference.items():
            variables.setdefault(name, []).append(values)
        if examples is None:
            examples = _first(rows.x, EXAMPLES)
        done += len(rows.label)
        progress.update(done, total, f"scoring the {split} split")
    assert examples is not None  # total > 0
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    reference = {name: np.concatenate(parts) for name, parts in variables.items()}
    samples, part = tuple(dataset.card.samples), _part(dataset.card, reference)
    rows_truth = truth(joined["label"], joined["sample"], joined["rate_weight"], joined["identity"], joined["object"], samples, part)
    return Scored(rows_truth, [_joined(found) for found in outputs], reference, joined["keys"], examples)


def _part(card: Card, columns: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Which objects take part in the event's decision."""
    if card.trigger is None or card.trigger.objects is None:
        return None
    return np.asarray(parse(card.trigger.objects).evaluate(columns)).astype(bool)


def _first(x: Features, count: int) -> Features:
    return Features({k: v[:count].copy() for k, v in x.groups.items()}, {k: v[:count].copy() for k, v in x.counts.items()})


def _joined(parts: Sequence[Scores]) -> Scores:
    score = None if parts[0].score is None else np.concatenate([part.score for part in parts if part.score is not None])
    return Scores(np.concatenate([part.logits for part in parts]), score)


def take(scored: Scored, rows: np.ndarray, samples: Sequence[str]) -> Scored:
    """Some rows (int64 `[m]`) of a scored split, in that order."""
    old = scored.truth
    names = [name for name in scored.keys.dtype.fields or () if name.startswith("identity")]
    identity = np.stack([scored.keys[name][rows] for name in names], axis=1).astype(np.int64)
    new = truth(old.label[rows], old.sample[rows], old.weight[rows], identity, scored.keys["object"][rows], samples, old.taking_part[rows])
    scores = [Scores(s.logits[rows], None if s.score is None else s.score[rows]) for s in scored.scores]
    return Scored(new, scores, {name: column[rows] for name, column in scored.columns.items()}, scored.keys[rows], scored.examples)


def write_working_points(run: Path, dataset: Dataset, *, progress: Progress, seed: int = 0) -> dict[str, Any] | None:
    """Derive the working points of a run at BEST and write `working_points.json`; returns its content.

    None, and a line of progress that says why, where there is no discriminant or the validation or test split is empty.
    """
    network = scorer(run)
    setting = setting_of(dataset.card)
    if setting.discriminant is None:
        progress("no working points: the card has more than two classes and no trigger.discriminant")
        return None
    empty = [split for split in ("validation", "test") if dataset.size(split) == 0]
    if empty:
        progress(f"no working points: the {empty[0]} split is empty")
        return None
    pairs = []
    for split in ("validation", "test"):
        scored = score_split([network], dataset, split, progress=progress)
        score = scored.scores[0].score
        if score is None:
            progress("no working points: the network has logits but no integer discriminant")
            return None
        pairs.append((scored.truth, score))
    requests = requests_of(dataset.card)
    content = {"network": network.which, **working_points.derive(requests, setting, pairs[0], pairs[1], exponent=network.exponent, seed=seed)}
    working_points.write(run / working_points.FILE, content)
    return content
