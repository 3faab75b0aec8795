"""A teacher's logits for the rows of a student's card: joined by identity, computed once, kept in the student's run.

The teacher reads its own inputs with its own card; the student may have another card with other inputs, splits or collections of the same events. Rows meet by
identity (sample name, identity columns, object index).

`teacher_logits.npz` holds the keys with their logits, `teacher_logits.json` (format `hlt-train/teacher-logits`) what they were computed from; those of a second
teacher are `teacher_logits_2`, and so on.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from hlt_train.data.dataset import Dataset, open_dataset
from hlt_train.errors import UsageError
from hlt_train.files import read_arrays, read_document, sha256, write_arrays, write_document
from hlt_train.progress import Progress
from hlt_train.teachers import Teacher, order_of

__all__ = ["SPLITS", "Wanted", "teacher_logits", "wanted_rows"]

FORMAT = "hlt-train/teacher-logits"
SPLITS = ("train", "validation")
STEP = 65_536


class Wanted(NamedTuple):
    """The rows of a student's training and validation splits, one split after the other, each in row-number order.

    Attributes:
        distinct: keys of the distinct identities, as opaque bytes that sort and compare.
        place: int64 `[rows]`, the identity of each row.
        label, weight: `[rows]`, class index and training weight.
        train: rows of the training split.
    """

    distinct: np.ndarray
    place: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    train: int

    def part(self, split: str) -> slice:
        """Where the rows of a split are."""
        return slice(0, self.train) if split == "train" else slice(self.train, None)


def wanted_rows(dataset: Dataset) -> Wanted:
    """Read the identities of a card's rows."""
    keys: list[np.ndarray] = []
    label, weight = [np.zeros(0, np.int32)], [np.zeros(0)]
    for split in SPLITS:
        for rows in dataset.iterate(split, step=STEP):
            keys.append(_opaque(dataset.identity_keys(rows)))
            label.append(rows.label)
            weight.append(rows.weight)
    distinct, place = np.unique(np.concatenate(keys), return_inverse=True) if keys else (np.zeros(0, "V8"), np.zeros(0, np.int64))
    return Wanted(distinct, place, np.concatenate(label), np.concatenate(weight), dataset.size("train"))


def teacher_logits(teacher: Teacher, dataset: Dataset, distinct: np.ndarray, folder: Path | None, stem: str, progress: Progress) -> np.ndarray:
    """float32 `[identities, classes]` in the order of the student's classes, NaN where the teacher's card does not hold an identity.

    Args:
        teacher: whose logits.
        dataset: of the student's card.
        distinct: the wanted identities.
        folder: where they are kept under `stem`, and taken from when they are there and belong to the same teacher and the same identities; None keeps nothing.
        stem: of the files' names.
        progress: where to say how far it is.

    Raises:
        UsageError: other classes or other identity columns.
    """
    order = order_of(teacher, dataset.card)
    found = None if folder is None else _stored(folder / stem, teacher, distinct)
    if found is None:
        progress(f"the teacher's logits for {len(distinct):,} identities")
        found = _compute(teacher, dataset, distinct, progress)[:, order]
        if folder is not None:
            arrays = folder / f"{stem}.npz"
            write_arrays(arrays, {"keys": _bytes(distinct), "logits": found})
            write_document(folder / f"{stem}.json", FORMAT, 1, {**teacher.origin, "identities": len(distinct), "sha256": sha256(arrays)})
    return found


def _opaque(keys: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(keys).view(f"V{keys.dtype.itemsize}")


def _bytes(keys: np.ndarray) -> np.ndarray:
    return keys.view(np.uint8).reshape(len(keys), -1)


def _stored(place: Path, teacher: Teacher, distinct: np.ndarray) -> np.ndarray | None:
    """The logits kept there, or None where there are none of this teacher and these identities."""
    about, file = place.with_suffix(".json"), place.with_suffix(".npz")
    if not about.is_file():
        return None
    document = read_document(about, FORMAT, 1)
    if any(document.get(name) != value for name, value in teacher.origin.items()) or sha256(file) != document["sha256"]:
        return None
    arrays = read_arrays(file)
    return arrays["logits"] if np.array_equal(arrays["keys"], _bytes(distinct)) else None


def _compute(teacher: Teacher, dataset: Dataset, distinct: np.ndarray, progress: Progress) -> np.ndarray:
    """float32 `[identities, classes]` in the teacher's order of classes, NaN where its card does not hold an identity."""
    found = np.full((len(distinct), len(teacher.card.labels.classes)), np.nan, np.float32)
    if teacher.card == dataset.card:
        _fill(teacher, dataset, SPLITS, distinct, found, progress)
        return found
    with open_dataset(teacher.card, training=False) as theirs:
        _fill(teacher, theirs, (*SPLITS, "test"), distinct, found, progress)
    return found


def _fill(teacher: Teacher, dataset: Dataset, splits: tuple[str, ...], distinct: np.ndarray, found: np.ndarray, progress: Progress) -> None:
    """Score the rows whose identity is wanted."""
    total, done = sum(dataset.size(split) for split in splits), 0
    for split in splits:
        for rows in dataset.iterate(split, step=STEP):
            keys = _opaque(dataset.identity_keys(rows))
            if keys.dtype != distinct.dtype:
                then = "give both cards the same `identity`"
                raise UsageError("the teacher's card and the student's have different numbers of identity columns", where="identity", then=then)
            place = np.minimum(np.searchsorted(distinct, keys), len(distinct) - 1)
            wanted = np.flatnonzero(distinct[place] == keys)
            if len(wanted):
                found[place[wanted]] = teacher.network.score(rows.x.take(wanted)).logits
            done += len(rows)
            progress.update(done, total, "the teacher's logits")
