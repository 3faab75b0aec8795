"""Candidates for a front, kept while bits are learned: parameters with what the training forward says of them.

That is cheap, and enough to drop at once what another beats; which of the others are points of the front, and what they are worth, is said by the golden
evaluator when all are known (`hlt_train.widths`). A candidate is on disk before the checkpoint of its epoch, so that a run that was killed has the same ones.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from hlt_train import checkpoints
from hlt_train.checkpoints import Snapshot

__all__ = ["Candidate", "Candidates", "pareto", "thinned"]


@dataclass(frozen=True)
class Candidate:
    """A student on the way.

    Attributes:
        step: of the training that it is from.
        beta: the weight of the relative cost at that step.
        cost: in the unit of the front.
        cross_entropy: on validation rows.
    """

    step: int
    beta: float
    cost: float
    cross_entropy: float


C = TypeVar("C", bound=Candidate)


def pareto(points: Sequence[C]) -> list[C]:
    """Those that no other beats in cost or loss without losing in the other, by rising cost; of equal ones the earliest."""
    found: list[C] = []
    for point in sorted(points, key=lambda p: (p.cost, p.cross_entropy, p.step)):
        if not found or point.cross_entropy < found[-1].cross_entropy:
            found.append(point)
    return found


def thinned(front: Sequence[C], keep: int, always: C) -> list[C]:
    """At most `keep` points (two at least): the ends, `always`, and others far apart in the logarithm of the cost."""
    kept = list(front)
    place = [math.log(max(point.cost, 1e-30)) for point in kept]
    while len(kept) > max(keep, 2):
        inner = [k for k in range(1, len(kept) - 1) if kept[k] != always]
        if not inner:
            break
        least = min(inner, key=lambda k: (place[k + 1] - place[k - 1], k))
        del kept[least], place[least]
    return kept


class Candidates:
    """Those in `folder`, which stay a front by the figures of the training forward.

    Args:
        folder: of its own.
        step: of the training; what a process that was killed left beyond it is removed, and comes again.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._folder = folder
        if (folder / "checkpoints").is_dir():
            checkpoints.drop_after(folder, step)
        self.all = [_read(checkpoints.document(folder, one)) for one in checkpoints.steps(folder)]

    def add(self, candidate: Candidate, params: Any) -> bool:
        """Keep it unless another beats it, and drop what it beats. Returns whether it is kept."""
        kept = pareto([*self.all, candidate])
        if candidate in kept:
            checkpoints.save(self._folder, Snapshot(params, {}, asdict(candidate)))
        for gone in set(self.all) - set(kept):
            shutil.rmtree(self._folder / "checkpoints" / str(gone.step))
        self.all = kept
        return candidate in kept

    def parameters(self, candidate: Candidate, like: Any) -> Any:
        """Its parameters; like: a pytree of their shapes."""
        arrays = checkpoints.load(self._folder, candidate.step, "weights")
        return checkpoints.to_tree(arrays, like, where=str(self._folder / "checkpoints" / str(candidate.step)))


def _read(document: dict[str, Any]) -> Candidate:
    return Candidate(**{name: document[name] for name in Candidate.__dataclass_fields__})
