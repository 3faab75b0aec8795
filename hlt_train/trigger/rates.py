"""From rate weights to Hz: each sample's weights are scaled so that all its events together make its input rate; a rate is the sum over samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hlt_train.errors import UsageError, nearest
from hlt_train.trigger.intervals import Interval, effective, rate

__all__ = ["per_sample", "rate_of", "to_hertz"]

FEW_PASSING = 10
DOMINANT = 0.1  # share of the rate that one event may have


def to_hertz(weight: np.ndarray, sample: np.ndarray, names: Sequence[str], input_rates: Mapping[str, float]) -> np.ndarray:
    """Rate weights `[n]` of all events of a split -> Hz per event, float64 `[n]`; 0 for samples that are not in the sum.

    Args:
        weight: rate weight per event, of every event that the selection keeps (not only of those that pass a cut).
        sample: int32 `[n]`, index into `names`.
        names: the card's samples.
        input_rates: sample -> Hz.
    """
    hertz = np.zeros(len(weight), dtype=np.float64)
    for name, input_rate in input_rates.items():
        if name not in names:
            raise UsageError(f"no sample is called '{name}'", where="trigger.rate", near=nearest(name, names) or tuple(names))
        mine = sample == list(names).index(name)
        total = float(weight[mine].sum())
        if not total > 0:
            why = "it has no events here" if not mine.any() else f"its rate weights sum to {total:g}"
            raise UsageError(f"sample '{name}' cannot be normalised to its input rate: {why}", where="trigger.rate", then="check the selection and rate_weight")
        hertz[mine] = weight[mine] * (input_rate / total)
    return hertz


def rate_of(passed: np.ndarray, hertz: np.ndarray) -> Interval:
    """The rate [Hz] of the events that pass, with its error; `passed` bool `[n]`, `hertz` from `to_hertz`."""
    counting = hertz != 0
    one = float(np.square(hertz).sum() / np.abs(hertz).sum()) if counting.any() else 0.0
    return rate(hertz[passed & counting], one=one)


def per_sample(passed: np.ndarray, hertz: np.ndarray, sample: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """One row per sample of the rate: N, n_eff, weight per event [Hz], what passes, its share of the rate, and what makes that share doubtful."""
    whole = float(hertz[passed].sum())
    rows: list[dict[str, Any]] = []
    for index in np.unique(sample[hertz != 0]):
        mine = sample == index
        weights, passing = hertz[mine], hertz[mine & passed]
        share = float(passing.sum()) / whole if whole > 0 else 0.0
        flags = []
        if len(passing) < FEW_PASSING:
            flags.append(f"only {len(passing)} events pass")
        if len(passing) and float(passing.max()) > DOMINANT * whole:
            flags.append(f"one event is {100 * float(passing.max()) / whole:.0f} % of the rate" if whole > 0 else "the rate is not positive")
        row = {"sample": names[int(index)], "events": len(weights), "n_eff": effective(weights), "weight_per_event_hz": float(weights.mean())}
        rows.append({**row, "passing": len(passing), "rate_hz": float(passing.sum()), "share": share, "flags": flags})
    return rows
