"""Rows and their scores, seen as a trigger sees them: as events with rates, or as objects with misidentification probabilities, never Hz."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hlt_train.errors import UsageError
from hlt_train.trigger.bootstrap import Population
from hlt_train.trigger.discriminant import Discriminant
from hlt_train.trigger.events import Grouping, event_scores, group_rows
from hlt_train.trigger.rates import to_hertz

__all__ = ["Setting", "Truth", "View", "population", "truth", "view"]


@dataclass(frozen=True)
class Setting:
    """What a card says of the trigger.

    Attributes:
        classes, samples: in the card's order.
        discriminant: signal and background classes; None where the card tells no signal from background.
        input_rates: sample -> Hz; empty when there are no rates.
        per_object: the examples are objects, not events.
        event_score: how objects make an event decision, or None.
    """

    classes: tuple[str, ...]
    samples: tuple[str, ...]
    discriminant: Discriminant | None
    input_rates: dict[str, float]
    per_object: bool
    event_score: str | None

    @property
    def has_rates(self) -> bool:
        """Whether anything can be said in Hz."""
        return bool(self.input_rates) and (not self.per_object or self.event_score is not None)


class Truth(NamedTuple):
    """A split without any network: what rows are and weigh.

    Attributes:
        label: int32 `[n]`. sample: int32 `[n]`. weight: float64 `[n]`, the rate weight (never the training weight).
        grouping: which rows are one event. taking_part: bool `[n]`, objects that enter the event's score.
        hashes: sample -> BLAKE2b (16 bytes) over identity and object index of its rows, in order: results with equal hashes used the same rows.
    """

    label: np.ndarray
    sample: np.ndarray
    weight: np.ndarray
    grouping: Grouping
    taking_part: np.ndarray
    hashes: dict[str, str]


class View(NamedTuple):
    """Scores with all that statistics need, one entry per event or per object.

    Attributes:
        score: float64 or int64 `[n]`. signal, background: bool `[n]`. weight: float64 `[n]`. sample: int32 `[n]`. event: int64 `[n]`.
        hertz: float64 `[n]`, or None where a rate has no meaning.
        unit: `events` or `objects`.
    """

    score: np.ndarray
    signal: np.ndarray
    background: np.ndarray
    weight: np.ndarray
    sample: np.ndarray
    event: np.ndarray
    hertz: np.ndarray | None
    unit: str


def truth(
    label: np.ndarray,
    sample: np.ndarray,
    weight: np.ndarray,
    identity: np.ndarray,
    index: np.ndarray,
    samples: Sequence[str],
    taking_part: np.ndarray | None = None,
) -> Truth:
    """Columns of a split's rows in order (`identity` int64 `[n, k]`, `index` the object's) -> `Truth`."""
    keys = np.ascontiguousarray(np.concatenate([identity.astype("<i8"), index.astype("<i8")[:, None]], axis=1))
    hashes = {name: hashlib.blake2b(keys[sample == k].tobytes(), digest_size=16).hexdigest() for k, name in enumerate(samples)}
    everything = np.ones(len(label), dtype=bool)
    return Truth(label, sample, weight, group_rows(sample, identity), everything if taking_part is None else taking_part.astype(bool), hashes)


def _members(label: np.ndarray, classes: Sequence[str], side: Mapping[str, float]) -> np.ndarray:
    return np.isin(label, [list(classes).index(name) for name in side])


def view(setting: Setting, rows: Truth, score: np.ndarray, *, events: bool) -> View:
    """Scores `[n]` of a split's rows as objects (`events=False`, or the rows themselves when they are events) or as event decisions.

    An event of object examples is signal when one of its objects is of a signal class, background when none is and one is of a background class.
    """
    spec = setting.discriminant
    if spec is None:
        raise UsageError("the card tells no signal from background", where="trigger.discriminant", then="add discriminant: {signal: [...], background: [...]}")
    signal = _members(rows.label, setting.classes, spec.signal)
    background = _members(rows.label, setting.classes, spec.background)
    event = rows.grouping.event
    if not setting.per_object:
        hertz = to_hertz(rows.weight, rows.sample, setting.samples, setting.input_rates) if setting.input_rates else None
        return View(score, signal, background, rows.weight, rows.sample, event, hertz, "events")
    if not events:
        return View(score, signal, background, rows.weight, rows.sample, event, None, "objects")
    if setting.event_score is None:
        raise UsageError("objects have no rate without an event decision", where="trigger.event_score", then="add event_score: max to the card")
    first, number = rows.grouping.first, len(rows.grouping.first)
    is_signal = np.bincount(event, signal, number) > 0
    is_background = (np.bincount(event, background, number) > 0) & ~is_signal
    weight, sample = rows.weight[first], rows.sample[first]
    hertz = to_hertz(weight, sample, setting.samples, setting.input_rates) if setting.input_rates else None
    decided = event_scores(score, rows.grouping, rows.taking_part, setting.event_score)
    return View(decided, is_signal, is_background, weight, sample, np.arange(number), hertz, "events")


def population(seen: View) -> Population:
    """For the bootstrap: the rate in Hz where there is one, otherwise the mistag (background weights of sum 1)."""
    signal = np.where(seen.signal, seen.weight, 0.0)
    if seen.hertz is not None:
        return Population(signal, seen.hertz, seen.sample, seen.event)
    background = np.where(seen.background, seen.weight, 0.0)
    total = float(background.sum())
    return Population(signal, background / total if total > 0 else background, np.zeros_like(seen.sample), seen.event)
