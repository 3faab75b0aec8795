"""Small teachers, cards and configurations for tests that distil."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from hlt_train import checkpoints
from hlt_train.configuration import check
from hlt_train.data.card import load_card
from hlt_train.distil import DistilConfig
from hlt_train.files import sha256
from hlt_train.fit import fit
from hlt_train.progress import Progress
from tests import runs

TRIGGER = """trigger:
  discriminant: {signal: [t], background: {g: 1.0, q: 3.0}}
  working_points: {loose: mistag 20%}
"""
SUBSET = "inputs: {hlf: [jet_mass, jet_mult, jet_sumzlogz]}"


def write_card(folder: Path, *, files: int = 4, rows: int = 250) -> Path:
    """As `runs.write_card`, with a top tag against light jets."""
    card = runs.write_card(folder, files=files, rows=rows)
    card.write_text(card.read_text() + TRIGGER)
    return card


def change(card: Path, name: str, *pairs: tuple[str, str]) -> Path:
    """A copy of a card with some text replaced."""
    text = card.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    changed = card.with_name(name)
    changed.write_text(text)
    return changed


def train_teacher(card: Path, path: Path) -> Path:
    """A small teacher that knows something, in `path`."""
    fit(runs.config(card, length="6epochs", learning_rate=0.02, model={"name": "mlp", "widths": [16]}), path, progress=Progress(quiet=True))
    return path


def weights_hash(path: Path, which: str = "LAST") -> str:
    """SHA-256 of the weights of a run's checkpoint."""
    return sha256(path / "checkpoints" / str(checkpoints.pointed(path, which)) / "weights.npz")


def config(teacher: Path, card: Path | None = None, **options: Any) -> DistilConfig:
    """A configuration of a small student; keywords are its keys (`length` for `for`)."""
    content: dict[str, Any] = {"teacher": str(teacher), "model": {"name": "mlp", "widths": [6]}, "batch": 64, "for": options.pop("length", "2epochs")}
    content |= {"lambda": options.pop("share", 1.0), **options}
    if card is not None:
        content["card"] = load_card(card).model_dump(mode="json")
    return check(DistilConfig, content)


class Stopper(Progress):
    """Sends this process SIGTERM, as a batch system would, when the `count`-th report of training comes."""

    def __init__(self, count: int) -> None:
        super().__init__(quiet=True)
        self.left = count

    def update(self, done: int, total: int, text: str) -> None:
        """Counts the reports of training steps."""
        if text.startswith("epoch"):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGTERM)
