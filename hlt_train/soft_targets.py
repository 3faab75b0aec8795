"""The soft targets of a student's rows: the logits of its teachers, joined by identity and made one, with figures of each teacher and of all together.

A row that one teacher's card does not hold learns from those that know it, with their weights; a row that none knows learns from its label alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hlt_train.answers import weighted_answers
from hlt_train.combination import Mean, mean_of
from hlt_train.data.dataset import Dataset
from hlt_train.distillation_loss import LOGITS, MATCHED
from hlt_train.errors import UsageError
from hlt_train.progress import Progress
from hlt_train.teacher_logits import SPLITS, Wanted, teacher_logits, wanted_rows
from hlt_train.teachers import Teacher

__all__ = ["SoftTargets", "soft_targets"]


class SoftTargets(NamedTuple):
    """What students learn from.

    Attributes:
        extra: split -> name -> array aligned by row number, for `Stream`.
        figures: rows, distinct identities, unmatched rows; cross-entropy and accuracy on the student's validation rows, by training weight; the same of each
            of several teachers under `teachers`.
    """

    extra: dict[str, dict[str, np.ndarray]]
    figures: dict[str, Any]


def soft_targets(
    teachers: Sequence[Teacher],
    dataset: Dataset,
    folder: Path | None,
    *,
    weights: Sequence[float],
    how: Mean,
    most_unmatched: float,
    progress: Progress,
) -> SoftTargets:
    """The teachers' logits for the training and validation rows of `dataset`.

    Args:
        teachers: one or more.
        dataset: of the student's card.
        folder: where each teacher's logits are kept, and taken from; None keeps nothing.
        weights: of the teachers, above 0.
        how: the mean of several teachers.
        most_unmatched: largest fraction of rows without a teacher's answer, of each teacher.
        progress: where to say how far it is.

    Raises:
        UsageError: other classes, other identity columns, or too many unmatched rows.
    """
    wanted = wanted_rows(dataset)
    logits, known, each = [], [], []
    for number, teacher in enumerate(teachers):
        stem = "teacher_logits" if number == 0 else f"teacher_logits_{number + 1}"
        found = teacher_logits(teacher, dataset, wanted.distinct, folder, stem, progress)
        matched = np.isfinite(found).all(axis=1)
        unmatched = int((~matched[wanted.place]).sum())
        _refuse_unmatched(teacher, dataset, unmatched, len(wanted.place), most_unmatched)
        logits.append(np.where(matched[:, None], found, np.float32(0)))
        known.append(matched)
        each.append({**teacher.about, "weight": float(weights[number]), "unmatched": unmatched, **_figures(found, matched, wanted)})
    anyone = np.any(known, axis=0)
    whole = logits[0] if len(teachers) == 1 else _joined(np.stack(logits), np.array(weights)[:, None] * np.array(known), anyone, how)
    counts = {"rows": len(wanted.place), "identities": len(wanted.distinct), "unmatched": int((~anyone[wanted.place]).sum())}
    if len(teachers) == 1:
        figures = {**teachers[0].about, **counts, **_figures(whole, anyone, wanted)}
    else:
        figures = {"mean": how, **counts, **_figures(whole, anyone, wanted), "teachers": each}
    extra = {}
    for split in SPLITS:
        mine = wanted.place[wanted.part(split)]
        extra[split] = {LOGITS: whole[mine], MATCHED: anyone[mine].astype(np.float32)}
    return SoftTargets(extra, figures)


def _joined(logits: np.ndarray, weights: np.ndarray, anyone: np.ndarray, how: Mean) -> np.ndarray:
    """float32 `[identities, classes]`, 0 where nobody knows an identity."""
    found = np.zeros(logits.shape[1:], np.float32)
    found[anyone] = mean_of(logits[:, anyone], weights[:, anyone], how)
    return found


def _figures(logits: np.ndarray, matched: np.ndarray, wanted: Wanted) -> dict[str, float | None]:
    """Cross-entropy and accuracy of the validation rows that are known; None where their weights do not sum to more than 0."""
    part = wanted.part("validation")
    rows = matched[wanted.place[part]]
    loss, right, total = weighted_answers(logits[wanted.place[part]][rows], wanted.label[part][rows], wanted.weight[part][rows])
    return {"cross_entropy": loss / total, "accuracy": right / total} if total > 0 else {"cross_entropy": None, "accuracy": None}


def _refuse_unmatched(teacher: Teacher, dataset: Dataset, unmatched: int, rows: int, most: float) -> None:
    if unmatched <= most * rows:
        return
    what = f"{unmatched:,} of {rows:,} rows of card '{dataset.card.name}' are not in the teacher's card '{teacher.card.name}'"
    then = "check samples' names, files and identity of both cards; --max-unmatched FRACTION trains such rows without this teacher"
    raise UsageError(what, where=str(teacher.path), then=then)
