"""One number from many logits: D = log(sum_s f_s p_s / sum_b f_b p_b), over signal classes s and background classes b with fractions f.

In terms of logits l it is the difference of two log-sum-exps, because the softmax normalisation cancels:

    D = logsumexp_s(l_s + log f_s) - logsumexp_b(l_b + log f_b)

so that one signal and one background class give exactly l_s - l_b. Everyone who needs D (evaluation, golden vectors, exports of float networks) calls this
function; the loss of a distilled discriminant uses the same formula.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from hlt_train.errors import UsageError, nearest

__all__ = ["Discriminant", "discriminant"]


@dataclass(frozen=True)
class Discriminant:
    """Signal and background classes with their fractions, each side normalised to 1. Classes in neither do not take part."""

    signal: dict[str, float]
    background: dict[str, float]

    @classmethod
    def of(cls, signal: Mapping[str, float] | Sequence[str], background: Mapping[str, float] | Sequence[str], classes: Sequence[str]) -> Discriminant:
        """From a card: mappings class -> fraction, or plain lists (equal fractions). Unknown, repeated or empty sides are refused."""
        sides = [_side(name, given, classes) for name, given in (("signal", signal), ("background", background))]
        if both := sides[0].keys() & sides[1].keys():
            raise UsageError(f"class '{min(both)}' is both signal and background", where="trigger.discriminant")
        return cls(*sides)

    def document(self) -> dict[str, dict[str, float]]:
        """For JSON."""
        return {"signal": dict(self.signal), "background": dict(self.background)}


def _side(side: str, given: Mapping[str, float] | Sequence[str], classes: Sequence[str]) -> dict[str, float]:
    where = f"trigger.discriminant.{side}"
    fractions = {k: float(v) for k, v in given.items()} if isinstance(given, Mapping) else dict.fromkeys(given, 1.0)
    if not fractions:
        raise UsageError("it names no class", where=where, then=f"classes: {', '.join(classes)}")
    for name, fraction in fractions.items():
        if name not in classes:
            raise UsageError(f"no class is called '{name}'", where=where, near=nearest(name, classes) or tuple(classes))
        if not (np.isfinite(fraction) and fraction > 0):
            raise UsageError(f"the fraction of class '{name}' must be above zero, got {fraction}", where=where)
    total = sum(fractions.values())
    return {name: fraction / total for name, fraction in fractions.items()}


def discriminant(logits: np.ndarray, classes: Sequence[str], spec: Discriminant) -> np.ndarray:
    """Logits `[n, n_classes]` -> D, float64 `[n]`, in units of the natural logarithm. Computed in float64 whatever the logits' type."""
    x = np.asarray(logits, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] < len(classes):
        raise UsageError(f"expected logits of shape [n, {len(classes)}], got {list(x.shape)}")
    signal, background = (_side_logsumexp(x, classes, side) for side in (spec.signal, spec.background))
    found: np.ndarray = signal - background
    return found


def _side_logsumexp(x: np.ndarray, classes: Sequence[str], fractions: Mapping[str, float]) -> np.ndarray:
    columns = [list(classes).index(name) for name in fractions]
    if len(columns) == 1:  # the fraction is 1: no arithmetic at all, so that integers stay integers
        alone: np.ndarray = x[:, columns[0]]
        return alone
    summed: np.ndarray = np.asarray(logsumexp(x[:, columns] + np.log(list(fractions.values())), axis=1))
    return summed
