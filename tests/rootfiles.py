"""ROOT files and cards for the tests of reading: small, seeded, made with uproot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import uproot

from hlt_train.data.card import Card


def write_tree(path: Path, columns: Mapping[str, Any], *, tree: str = "Events", basket: int = 1_000_000, compression: Any = None) -> Path:
    """Write a TTree with `basket` entries per basket; jagged columns become branches with a counter."""
    entries = len(next(iter(columns.values())))
    with uproot.recreate(path, compression=compression or uproot.ZLIB(1)) as file:
        types = {name: column.dtype if isinstance(column, np.ndarray) else str(ak.type(column).content) for name, column in columns.items()}
        target = file.mktree(tree, types)
        for start in range(0, entries, basket):
            target.extend({name: column[start : start + basket] for name, column in columns.items()})
    return path


def event_columns(n: int, seed: int = 0, *, first: int = 0, classes: int = 2) -> dict[str, Any]:
    """Scalars `x y`, lists `part_pt part_eta` of 0 to 6 elements, identity, label, weight."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 7, n)
    total = int(counts.sum())
    return {
        "run": np.ones(n, np.uint32),
        "luminosityBlock": np.full(n, 7, np.uint32),
        "event": np.arange(first, first + n, dtype=np.uint64),
        "x": rng.normal(10, 2, n).astype(np.float32),
        "y": rng.exponential(3, n),
        "label": (np.arange(n) % classes).astype(np.int32),
        "weight": np.ones(n, np.float32),
        "part": ak.zip(
            {
                "pt": ak.unflatten(rng.exponential(5, total).astype(np.float32), counts),
                "eta": ak.unflatten(rng.normal(0, 1, total).astype(np.float32), counts),
            }
        ),
    }


def card_content(files: list[str] | str, **changes: Any) -> dict[str, Any]:
    """The document of a card for `event_columns`; `changes` replace its keys."""
    return {
        "samples": {"all": {"files": files}},
        "inputs": {"event": ["x", "y"], "parts": {"length": 4, "vars": ["part_pt", "part_eta"]}},
        "labels": {"classes": ["a", "b"], "expression": "label"},
        "weights": {"expression": "weight"},
        "splits": {"by": "hash", "fractions": {"train": 0.6, "validation": 0.2, "test": 0.2}},
    } | changes


def card(files: list[Path] | Path, **changes: Any) -> Card:
    """As `card_content`, checked."""
    return Card.model_validate(card_content([str(f) for f in files] if isinstance(files, list) else str(files), **changes))
