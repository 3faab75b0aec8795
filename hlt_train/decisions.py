"""From logits to decisions at the working points of a `working_points.json`: the integer score of an exact graph, the float discriminant of a float one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hlt_train.graph import Graph, score
from hlt_train.trigger.discriminant import Discriminant, discriminant

__all__ = ["decide", "scores", "thresholds"]


def scores(graph: Graph, outputs: np.ndarray, points: Mapping[str, Any]) -> np.ndarray | None:
    """What thresholds cut on, `[n]`: int64, or float64 of a float graph; None where there is neither a score nor a discriminant."""
    if graph.exact:
        return score(graph, outputs) if graph.output.score is not None else None
    if "discriminant" not in points:
        return None
    spec = Discriminant(points["discriminant"]["signal"], points["discriminant"]["background"])
    return discriminant(outputs, points["classes"], spec)


def thresholds(graph: Graph, points: Mapping[str, Any]) -> list[int | None] | list[float | None]:
    """Per working point the integer threshold, or the float one of a float graph; None passes nothing."""
    return [point["integer_threshold" if graph.exact else "threshold"] for point in points["points"]]


def decide(graph: Graph, score: np.ndarray | None, points: Mapping[str, Any], rows: int) -> np.ndarray:
    """Bool `[n_points, rows]`: score >= threshold."""
    found = np.zeros((len(points["points"]), rows), bool)
    for k, threshold in enumerate(thresholds(graph, points)):
        if score is not None and threshold is not None:
            found[k] = score >= threshold
    return found
