"""Successive halving (Jamieson and Talwalkar, arXiv:1502.07943) over the length of training: all candidates a little, the best of them on and on.

Where we deviate: the candidates of the first rung are not drawn at random, each is proposed after the figures of those before it are known; and a later rung
goes on with the float training of the one before, and begins its training on the grid anew (`hlt_train.candidates`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

__all__ = ["best_first", "going_on", "rung_steps"]


def rung_steps(steps: int, rungs: int, factor: int) -> list[int]:
    """Steps of training at the end of each rung, ascending; the last is `steps`. Rungs that would be the same are one.

    >>> rung_steps(900, 3, 3)
    [100, 300, 900]
    """
    return sorted({max(2, math.ceil(steps / factor**k)) for k in range(rungs)})


def best_first(figures: Mapping[int, float]) -> list[int]:
    """Candidates by their figure, the best first; of equals the one that was proposed first."""
    return sorted(figures, key=lambda number: (-figures[number], number))


def going_on(figures: Mapping[int, float], factor: int) -> Sequence[int]:
    """The candidates that go on to the next rung: the best one in `factor`, at least one."""
    return best_first(figures)[: max(1, len(figures) // factor)]
