"""Changes of an export directory that its selftest must notice, as far as targets share them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from hlt_train.graph import Graph, evaluate, score
from hlt_train.vectors import vectors

__all__ = ["move_threshold", "noticed_threshold"]


def noticed_threshold(graph: Graph, n: int, gap: int = 1) -> int:
    """A threshold that is a score of the n vectors which an export compares, as is the integer `gap` below: moved by that much it changes a decision."""
    found = np.unique(score(graph, evaluate(graph, vectors(graph, n=n).x)))
    both = found[np.isin(found - gap, found)]
    assert len(both), f"no two scores differ by {gap}"
    return int(both[len(both) // 2])


def move_threshold(directory: Path, step: int, point: int = 0) -> None:
    """Move the integer threshold of a working point, by its place in working_points.json."""
    path = directory / "working_points.json"
    document = json.loads(path.read_text())
    document["points"][point]["integer_threshold"] += step
    path.write_text(json.dumps(document))
