"""Normalisation: fitted once on the training split, applied in float32 exactly as docs/numbers.md says, stored with the run.

z = clip((x - centre) * scale, lo, hi), one float32 operation after the other. `auto` is the median and 1 / max(p84 - p50, p50 - p16), of real constituents
only. It is computed on a sample of the training split: all of it where it has at most `SAMPLE` rows, otherwise about `SAMPLE` rows, chosen by a keyed hash of
the row number, so that the choice does not depend on how the files were cut or read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hlt_train.data.dataset import Dataset
from hlt_train.errors import RunFailed, UsageError
from hlt_train.files import read_document, write_document
from hlt_train.types import Features, Group, Inputs

__all__ = ["FORMAT", "SAMPLE", "apply", "fit_normalisation", "load", "save"]

FORMAT = "hlt-train/normalisation"
SAMPLE = 65_536  # rows; the quantiles of the standard normal are then known to 0.005 standard deviations


def fit_normalisation(dataset: Dataset, *, rows: int = SAMPLE, seed: int = 0) -> Inputs:
    """Fit what the card leaves to `auto`, in one pass over the training split and bounded memory.

    A variable without spread gets scale 1 and an entry in `dataset.warnings`.

    Raises:
        UsageError: the training split is empty.
        RunFailed: a variable has no finite value.
    """
    if dataset.size("train") == 0:
        raise UsageError("the training split is empty", then="check 'splits' and the selections in the card")
    card = dataset.card
    automatic = any("auto" in (v.centre, v.scale) for group in card.inputs.values() for v in group.vars.values())
    values = _sample(dataset, rows, seed) if automatic else {}
    groups = []
    for name, group in card.inputs.items():
        centre, scale = [], []
        for k, (variable, options) in enumerate(group.vars.items()):
            middle, width = 0.0, 1.0
            if "auto" in (options.centre, options.scale):
                middle, width = _location(values[name][:, k], variable, name, dataset)
            centre.append(middle if options.centre == "auto" else options.centre)
            scale.append(1.0 / width if options.scale == "auto" else options.scale)
        clip = [v.clip or (-np.inf, np.inf) for v in group.vars.values()]
        groups.append(
            Group(
                name=name,
                variables=tuple(group.vars),
                length=group.length,
                centre=np.array(centre, np.float32),
                scale=np.array(scale, np.float32),
                lo=np.array([c[0] for c in clip], np.float32),
                hi=np.array([c[1] for c in clip], np.float32),
                nan=np.full(len(centre), 0.0 if card.nan == "refuse" else card.nan, np.float32),
                available=group.available,
            )
        )
    return Inputs(tuple(groups), tuple(card.labels.classes))


def _sample(dataset: Dataset, rows: int, seed: int) -> dict[str, np.ndarray]:
    """Group -> float32 `[m, n_vars]`: values of the sampled rows, real constituents only."""
    total = dataset.size("train")
    limit = np.uint64(0xFFFFFFFFFFFFFFFF) if total <= rows else np.uint64(int(rows / total * 2.0**64))
    taken: dict[str, list[np.ndarray]] = {name: [] for name in dataset.card.inputs}
    first = 0
    for part in dataset.iterate("train", columns="training"):
        chosen = np.flatnonzero(_mix(np.arange(first, first + len(part), dtype=np.uint64), seed) <= limit)
        first += len(part)
        for name, x in part.x.groups.items():
            values = x[chosen]
            if name in part.x.counts:
                values = values[np.arange(values.shape[1]) < part.x.counts[name][chosen, None]]
            taken[name].append(values)
    return {name: np.concatenate(parts) for name, parts in taken.items()}


def _mix(numbers: np.ndarray, seed: int) -> np.ndarray:
    """A keyed hash of row numbers (the finaliser of splitmix64), the same on every platform."""
    with np.errstate(over="ignore"):
        z = numbers + np.uint64((seed * 2 + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: np.ndarray = z ^ (z >> np.uint64(31))
    return mixed


def _location(values: np.ndarray, variable: str, group: str, dataset: Dataset) -> tuple[float, float]:
    """Median and the larger half-width of the central 68 % of the finite values."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if not len(finite):
        if dataset.card.inputs[group].length is not None and not len(values):
            dataset.warnings.append(f"group '{group}' has no constituent in the training split: '{variable}' is not normalised")
            return 0.0, 1.0
        raise RunFailed(f"'{variable}' has no finite value in the training split", where=f"group '{group}'", then="remove it from 'inputs' of the card")
    low, middle, high = np.quantile(finite, [0.16, 0.5, 0.84])
    width = float(np.float32(max(high - middle, middle - low)))
    if not (width > 0 and np.isfinite(np.float32(1.0 / width))):
        dataset.warnings.append(f"'{variable}' of group '{group}' is constant ({middle:g} for at least 68 % of the values): scale 1")
        width = 1.0
    return float(middle), width


def apply(inputs: Inputs, x: Features) -> Features:
    """Normalise features: float32 subtract, multiply, clip; NaN becomes the group's `nan`; constituents at index >= count become 0."""
    groups = {}
    for group in inputs.groups:
        z = np.asarray(x.groups[group.name], np.float32) - group.centre
        np.multiply(z, group.scale, out=z)
        np.maximum(z, group.lo, out=z)  # NaN passes through maximum and minimum
        np.minimum(z, group.hi, out=z)
        missing = np.isnan(z)
        if missing.any():
            np.copyto(z, group.nan, where=missing)
        if group.length is not None:
            z *= (np.arange(group.length) < x.counts[group.name][:, None])[..., None]
        groups[group.name] = z
    return Features(groups, dict(x.counts))


def save(path: Path, inputs: Inputs) -> None:
    """Write the normalisation; every float32 is stored in hexadecimal, so that `load` gives the same bits (infinities as text)."""
    groups = [
        {
            "name": g.name,
            "length": g.length,
            "available": g.available,
            "variables": [
                {"name": name, **{key: _text(getattr(g, key)[k]) for key in _FIELDS}, "about": {"centre": _about(g.centre[k]), "scale": _about(g.scale[k])}}
                for k, name in enumerate(g.variables)
            ],
        }
        for g in inputs.groups
    ]
    write_document(path, FORMAT, 1, {"classes": list(inputs.classes), "groups": groups})


def load(path: Path) -> Inputs:
    """Read what `save` wrote."""
    content = read_document(path, FORMAT, 1)
    try:
        groups = tuple(
            Group(
                name=g["name"],
                variables=tuple(v["name"] for v in g["variables"]),
                length=g["length"],
                available=g["available"],
                **{key: np.array([float.fromhex(v[key]) for v in g["variables"]], np.float32) for key in _FIELDS},
            )
            for g in content["groups"]
        )
        return Inputs(groups, tuple(content["classes"]))
    except (KeyError, TypeError, ValueError) as error:
        raise RunFailed(f"damaged normalisation: {error!r}", where=str(path)) from error


_FIELDS = ("centre", "scale", "lo", "hi", "nan")


def _text(value: np.float32) -> str:
    return float(value).hex()


def _about(value: np.float32) -> float:
    return float(f"{float(value):.7g}")
