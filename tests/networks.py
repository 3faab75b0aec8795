"""A small trigger problem for tests of evaluation: files, a card, a float run and a fixed-point run, made once per session."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hlt_train.configuration import check
from hlt_train.data.card import Card
from hlt_train.data.dataset import open_dataset
from hlt_train.fit import FitConfig, fit
from hlt_train.progress import Progress
from hlt_train.scoring import write_working_points
from tests.rootfiles import write_tree

QUIET = Progress(quiet=True)
ROWS = 6000
PRECISION = {"weights": "fixed<6,2>", "bias": "fixed<6,2>", "activations": "ufixed<6,3>", "inputs": "fixed<6,3>"}


class Problem(NamedTuple):
    """folder: everything is below it; card; float_run and fixed_run have working points."""

    folder: Path
    card: Card
    float_run: Path
    fixed_run: Path


def columns(rows: int = ROWS, seed: int = 0, *, label: bool = True) -> dict[str, np.ndarray]:
    """Two variables that tell label 1 from 0, identity, a training weight and a rate weight, both unequal."""
    rng = np.random.default_rng(seed)
    truth = (np.arange(rows) % 2).astype(np.int32)
    found = {
        "run": np.full(rows, 1 + seed, np.uint32),
        "luminosityBlock": np.ones(rows, np.uint32),
        "event": np.arange(rows, dtype=np.uint64),
        "x": rng.normal(10 + 3 * truth, 2).astype(np.float32),
        "y": rng.exponential(3 + 4 * truth).astype(np.float32),
        "nPU": rng.poisson(50, rows).astype(np.int32),
        "label": truth,
        "train_weight": rng.uniform(0.5, 1.5, rows).astype(np.float32),
        "rate_weight": rng.uniform(0.5, 1.5, rows),
    }
    return found if label else {name: values for name, values in found.items() if name not in ("label", "train_weight", "rate_weight")}


def content(file: Path, **changes: Any) -> dict[str, Any]:
    """The card's document."""
    return {
        "name": "problem",
        "samples": {"hh": {"files": [str(file)], "selection": "label == 1"}, "qcd": {"files": [str(file)], "selection": "label == 0"}},
        "inputs": {"event": ["x", "y"]},
        "labels": {"classes": ["qcd", "hh"], "by": "sample"},
        "weights": {"expression": "train_weight"},
        "splits": {"by": "hash", "fractions": {"train": 0.4, "validation": 0.2, "test": 0.4}},
        "observers": ["nPU"],
        "trigger": {
            "discriminant": {"signal": ["hh"], "background": ["qcd"]},
            "rate": {"qcd": {"input_rate": "8 kHz"}},
            "rate_weight": "rate_weight",
            "working_points": {"tight": "200 Hz", "loose": "1 kHz", "wide": "eff 90%"},
            "reference": {"cut": "(x > {x}) & (y > {y})", "thresholds": {"x": "auto", "y": [0.0, 1.0, 2.0, 4.0, 8.0]}},
            "variables": ["x", "y"],
        },
    } | changes


def config(card: Card, *, length: str = "4epochs", **model: Any) -> FitConfig:
    """A small network, a few epochs."""
    settings = {"model": {"name": "mlp", "widths": [8], **model}, "batch": 128, "for": length, "learning_rate": 0.02}
    return check(FitConfig, {**settings, "card": card.model_dump(mode="json")})


def train(card: Card, path: Path, *, length: str = "4epochs", **model: Any) -> Path:
    """A run with working points."""
    fit(config(card, length=length, **model), path, progress=QUIET)
    if "precision" in model:  # a network fitted in fixed point from the start cuts on the difference of its two logits
        document = json.loads((path / "model.json").read_text())
        (path / "model.json").write_text(json.dumps({**document, "score": [-1, 1]}))
        with open_dataset(card) as dataset:
            write_working_points(path, dataset, progress=QUIET)
    return path


@functools.cache
def problem() -> Problem:
    """Made at the first call; the folder lives as long as the process."""
    folder = Path(_FOLDER.name)
    file = write_tree(folder / "events.root", columns(), basket=1000)
    card = Card.model_validate(content(file))
    return Problem(folder, card, train(card, folder / "float"), train(card, folder / "fixed", precision=PRECISION))


_FOLDER = tempfile.TemporaryDirectory(prefix="hlt-train-tests-", ignore_cleanup_errors=True)
