"""How well logits answer the labels of rows, by training weight: sums, so that a split can be read in parts."""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax

__all__ = ["weighted_answers"]


def weighted_answers(logits: np.ndarray, label: np.ndarray, weight: np.ndarray) -> tuple[float, float, float]:
    """(sum of weight * cross-entropy, sum of the weights of the rows whose most probable class is the label, sum of the weights).

    Args:
        logits: `[n, classes]`, read in float64.
        label: class indices, `[n]`.
        weight: `[n]`.
    """
    chosen = log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(label)), label]
    return -float(weight @ chosen), float(weight @ (logits.argmax(axis=1) == label)), float(weight.sum())
