"""Small files, cards and configurations for tests that train."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hlt_train.configuration import check
from hlt_train.data.card import Card, load_card
from hlt_train.datasets.jets import write_jets
from hlt_train.fit import FitConfig

CARD = """
format: hlt-train/card
version: 1
name: small
tree: Jets
example: object
identity: [run, luminosityBlock, event]
samples: {{jets: {{files: ["{folder}/jets_*.root"]}}}}
inputs: {{hlf: [jet_mass, jet_mult, jet_sumzlogz, jet_width, jet_tau21, jet_tau32]}}
labels: {{classes: [g, q, W, Z, t], expression: label}}
splits: {{by: hash, fractions: {{train: 0.7, validation: 0.2, test: 0.1}}}}
"""


def write_card(folder: Path, *, files: int = 4, rows: int = 250) -> Path:
    """A card of six high-level features of toy jets, and its files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        write_jets(folder / f"jets_{number:02}.root", rows, seed=number + 1)
    card = folder / "small.yaml"
    card.write_text(CARD.format(folder=folder))
    return card


def config(card: Path | Card, **options: Any) -> FitConfig:
    """A configuration of a small network; keywords are its keys (`length` for `for`)."""
    content = {"model": {"name": "mlp", "widths": [8]}, "batch": 64, "for": options.pop("length", "3epochs"), "log_every": 5, **options}
    loaded = card if isinstance(card, Card) else load_card(card)
    return check(FitConfig, {**content, "card": loaded.model_dump(mode="json")})


def steady(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of metrics without the times."""
    return [{k: v for k, v in line.items() if k not in ("seconds", "rows_per_s", "validation_seconds")} for line in lines]


def command(*arguments: str | Path) -> list[str]:
    """The program as a real process would be started."""
    return [sys.executable, "-c", "from hlt_train.cli import main; main()", *map(str, arguments)]


def process(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own, with the devices that a user would have."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")} | options.pop("env", {})
    return subprocess.run(command(*arguments), capture_output=True, text=True, env=environment, timeout=300, check=False, **options)
