"""The area under the curve of signal efficiency against background: weighted, ties counted half."""

from __future__ import annotations

import numpy as np

from hlt_train.trigger.thresholds import steps

__all__ = ["auc"]


def auc(scores: np.ndarray, signal: np.ndarray, weights: np.ndarray) -> float:
    """Probability that a signal event scores above a background event; NaN where either side's weights sum to zero.

    Args:
        scores: `[n]`, int64 or float64.
        signal: bool `[n]`; the rest is background.
        weights: float64 `[n]`, negative ones allowed.
    """
    s = steps(scores, np.where(signal, weights, 0.0)).rate
    b = steps(scores, np.where(signal, 0.0, weights)).rate
    if s[-1] == 0 or b[-1] == 0:
        return float("nan")
    s, b = np.append(0.0, s), np.append(0.0, b)
    return float(1 - (np.diff(s) * (b[1:] + b[:-1])).sum() / (2 * s[-1] * b[-1]))
