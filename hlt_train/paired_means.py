"""Weighted means over rows of several networks, and their differences on the same rows, with errors.

The rows of one event fluctuate together, so that the unit is the event: the error of a mean is that of a ratio of sums over events, linearised,
`sqrt(sum_e (sum_{rows of e} w (v - mean))^2) / sum w`. A difference is the mean of the differences, and its error is paired.
"""

from __future__ import annotations

import numpy as np

__all__ = ["mean"]


def mean(values: np.ndarray, weight: np.ndarray, event: np.ndarray) -> dict[str, float] | None:
    """The value and error of a weighted mean; None where the weights do not sum to more than zero.

    Args:
        values: float `[n]`.
        weight: float64 `[n]`.
        event: int64 `[n]`, 0..m-1, which event a row belongs to.
    """
    total = float(weight.sum())
    if not total > 0:
        return None
    value = float(weight @ values / total)
    scatter = np.bincount(event, weight * (values - value))
    return {"value": value, "error": float(np.sqrt(scatter @ scatter) / total)}
