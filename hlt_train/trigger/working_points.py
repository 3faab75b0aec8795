"""Working points: thresholds from the validation split, rates and efficiencies with errors from the test split, as one document.

`working_points.json` (format `hlt-train/working-points`, version 1) lies in a run and in every export of it:

    points   name, request, kind, value, `integer_threshold` (null for a float score) and `threshold` (physical: integer * 2**-exponent), `rate` [Hz] or null,
             `efficiency`, `mistag` (each value, low, high, method), `background_events` that the threshold rests on, `flags`, `samples`
    table    threshold -> rate and efficiency, for whoever wants another working point
    splits   per split: rows, and per sample the hash of the rows used
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hlt_train.errors import UsageError
from hlt_train.files import read_document, write_document
from hlt_train.trigger.intervals import efficiency
from hlt_train.trigger.rates import per_sample, rate_of
from hlt_train.trigger.thresholds import at_efficiency, at_rate, distinct_rates, steps
from hlt_train.trigger.views import Setting, Truth, View, view

__all__ = ["FILE", "FORMAT", "VERSION", "Request", "at_threshold", "decisions", "derive", "physical", "read", "threshold_for", "write"]

FORMAT, VERSION, FILE = "hlt-train/working-points", 1, "working_points.json"
FEW_BACKGROUND = 10
TABLE = 64


class Request(NamedTuple):
    """What is asked of a threshold. kind: `rate` (value in Hz), `mistag` or `eff` (value a fraction). text: as it is written, `50 Hz`."""

    kind: str
    value: float
    text: str


def threshold_for(request: Request, seen: View) -> tuple[np.generic, int]:
    """The threshold of `request` on `seen`, and the number of background events (of the rate, or of the background classes) above it."""
    if request.kind == "rate":
        if seen.hertz is None:
            raise UsageError(
                f"'{request.text}' asks for a rate, but {seen.unit} have none here",
                then="give trigger.rate (or --input-rate), and trigger.event_score for objects",
            )
        counting, threshold = seen.hertz != 0, at_rate(seen.score, seen.hertz, request.value)
    elif request.kind == "mistag":
        counting, weights = seen.background, np.where(seen.background, seen.weight, 0.0)
        if not weights.sum() > 0:
            raise UsageError(f"'{request.text}' asks for a mistag, but there is no background", where="trigger.discriminant.background")
        threshold = at_rate(seen.score, weights / weights.sum(), request.value)
    else:
        if not seen.signal.any():
            raise UsageError(f"'{request.text}' asks for an efficiency, but there is no signal", where="trigger.discriminant.signal")
        counting = seen.background if seen.hertz is None else seen.hertz != 0
        threshold = at_efficiency(seen.score[seen.signal], seen.weight[seen.signal], request.value)
    return threshold, int(np.count_nonzero(counting & (seen.score >= threshold)))


def at_threshold(passed: np.ndarray, seen: View, setting: Setting, *, seed: int = 0) -> dict[str, Any]:
    """Rate, efficiency and mistag of a decision (bool `[n]`), each with its interval and its denominator in words."""
    found: dict[str, Any] = {"rate": None}
    if seen.hertz is not None:
        found["rate"] = rate_of(passed, seen.hertz).document(unit="Hz")
        found["samples"] = per_sample(passed, seen.hertz, seen.sample, setting.samples)
    spec = setting.discriminant
    assert spec is not None  # a view exists only with one
    for name, side, classes in (("efficiency", seen.signal, spec.signal), ("mistag", seen.background, spec.background)):
        interval = efficiency(passed[side], seen.weight[side], event=seen.event[side], seed=seed)
        found[name] = interval.document(denominator=f"{int(side.sum())} {seen.unit} of class {', '.join(classes)}")
    return found


def physical(threshold: np.generic, exponent: int | None) -> float:
    """A threshold in units of the discriminant: integer * 2**-exponent, or the float itself."""
    value = float(threshold) * 2.0 ** -(exponent or 0)
    return float(np.nan_to_num(value))  # JSON has no infinities


def derive(
    requests: Mapping[str, Request],
    setting: Setting,
    validation: tuple[Truth, np.ndarray],
    test: tuple[Truth, np.ndarray],
    *,
    exponent: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The document's content.

    Args:
        requests: name -> request.
        setting: the card's trigger.
        validation: that split's rows and their scores `[n]`; int64 scores give integer thresholds.
        test: the same of the test split.
        exponent: a score of n means n * 2**-exponent; None for a float score.
        seed: of the bootstrap, where one is needed.
    """
    points = []
    for name, request in requests.items():
        events = setting.has_rates and (request.kind == "rate" or not setting.per_object)
        seen, tested = (view(setting, rows, score, events=events) for rows, score in (validation, test))
        threshold, above = threshold_for(request, seen)
        result = at_threshold(tested.score >= threshold, tested, setting, seed=seed)
        flags = [f"the threshold rests on {above} background {seen.unit}"] if above < FEW_BACKGROUND else []
        flags += [f"{row['sample']}: {flag}" for row in result.get("samples", []) for flag in row["flags"]]
        integer = int(threshold) if seen.score.dtype.kind in "iu" else None
        head = {"name": name, "request": request.text, "kind": request.kind, "value": request.value, "unit": seen.unit}
        points.append({**head, "integer_threshold": integer, "threshold": physical(threshold, exponent), **result, "background_events": above, "flags": flags})
    tested = view(setting, *test, events=setting.has_rates)
    return {
        "classes": list(setting.classes),
        "discriminant": None if setting.discriminant is None else setting.discriminant.document(),
        "event_score": setting.event_score,
        "input_rates_hz": dict(setting.input_rates),
        "integer": tested.score.dtype.kind in "iu",
        "exponent": exponent,
        "points": points,
        "table": table(tested, exponent),
        "splits": {name: {"rows": len(rows.label), "hashes": rows.hashes} for name, (rows, _) in (("validation", validation), ("test", test))},
    }


def table(seen: View, exponent: int | None) -> dict[str, Any]:
    """Score -> rate (Hz; for objects the mistag) and efficiency on the test split: at most 64 thresholds, spaced by equal factors of the rate."""
    weights = seen.hertz if seen.hertz is not None else np.where(seen.background, seen.weight, 0.0) / max(float(seen.weight[seen.background].sum()), 1e-300)
    curve, kept = steps(seen.score, weights), steps(seen.score, np.where(seen.signal, seen.weight, 0.0))
    positive = np.flatnonzero(curve.rate > 0)
    rows: list[dict[str, Any]] = []
    if len(positive):
        targets = np.geomspace(float(curve.rate[positive[0]]), float(curve.rate[positive].max()), TABLE)
        chosen = np.unique(np.minimum(np.searchsorted(np.maximum.accumulate(curve.rate), targets * (1 - 1e-9)), len(curve.rate) - 1))
        total = float(kept.rate[-1])
        for k in chosen:
            value = curve.value[k]
            row: dict[str, Any] = {"integer_threshold": int(value) if seen.score.dtype.kind in "iu" else None, "threshold": physical(value, exponent)}
            rows.append({**row, "rate": float(curve.rate[k]), "efficiency": float(kept.rate[k]) / total if total > 0 else None})
    unit = "Hz" if seen.hertz is not None else "mistag"
    low, high = (rows[0]["rate"], rows[-1]["rate"]) if rows else (0.0, 0.0)
    return {"unit": unit, "split": "test", "distinct_rates": distinct_rates(seen.score, weights, low, high), "rows": rows}


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write `working_points.json`."""
    write_document(path, FORMAT, VERSION, content)


def read(path: Path) -> dict[str, Any]:
    """Read `working_points.json`."""
    return read_document(path, FORMAT, VERSION)


def decisions(score: np.ndarray, points: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Working points of a document -> bool `[n]` each: an integer score cuts on the integer threshold, a float score on the physical one."""
    integer = score.dtype.kind in "iu"
    found = {}
    for point in points:
        if integer and point["integer_threshold"] is None:
            raise UsageError(f"working point '{point['name']}' has no integer threshold", where="working_points.json")
        found[str(point["name"])] = score >= (point["integer_threshold"] if integer else point["threshold"])
    return found
