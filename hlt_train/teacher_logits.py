"""A teacher's logits for the rows of a student's card: joined by identity, computed once, kept in the student's run.

The teacher reads its own inputs with its own card; the student may have another card with other inputs, splits or collections of the same events. Rows meet by
identity (sample name, identity columns, object index). Rows that the teacher's card does not hold are counted; beyond a fraction they are refused.

`teacher_logits.npz` holds the keys with their logits, `teacher_logits.json` (format `hlt-train/teacher-logits`) what they were computed from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hlt_train import checkpoints
from hlt_train.data.dataset import Dataset, open_dataset
from hlt_train.distillation_loss import LOGITS, MATCHED
from hlt_train.errors import UsageError
from hlt_train.files import read_arrays, read_document, sha256, write_arrays, write_document
from hlt_train.progress import Progress
from hlt_train.restore import Loaded
from hlt_train.scorers import Scorer, scorer
from hlt_train.types import Features

__all__ = ["SPLITS", "SoftTargets", "soft_targets"]

FORMAT = "hlt-train/teacher-logits"
SPLITS = ("train", "validation")
STEP = 65_536


class SoftTargets(NamedTuple):
    """extra: split -> name -> array aligned by row number, for `Stream`. figures: rows, distinct identities, unmatched rows."""

    extra: dict[str, dict[str, np.ndarray]]
    figures: dict[str, Any]


def soft_targets(teacher: Loaded, dataset: Dataset, folder: Path | None, *, most_unmatched: float, progress: Progress) -> SoftTargets:
    """The teacher's logits for the training and validation rows of `dataset`.

    Args:
        teacher: a run at BEST.
        dataset: of the student's card.
        folder: where they are kept, and taken from when they are there and belong to the same teacher and the same identities; None keeps nothing.
        most_unmatched: largest fraction of rows without a teacher's answer.
        progress: where to say how far it is.

    Raises:
        UsageError: other classes, other identity columns, or too many unmatched rows.
    """
    order = _classes(teacher, dataset)
    keys = {split: _keys(dataset, split) for split in SPLITS}
    distinct, place = np.unique(np.concatenate([keys[split] for split in SPLITS]), return_inverse=True)
    origin = _origin(teacher)
    found = None if folder is None else _stored(folder, origin, distinct)
    if found is None:
        progress(f"the teacher's logits for {len(distinct):,} identities")
        found = _compute(teacher, dataset, distinct, progress)[:, order]
        if folder is not None:
            write_arrays(folder / "teacher_logits.npz", {"keys": _bytes(distinct), "logits": found})
            content = {**origin, "identities": len(distinct), "sha256": sha256(folder / "teacher_logits.npz")}
            write_document(folder / "teacher_logits.json", FORMAT, 1, content)
    matched = np.isfinite(found).all(axis=1)
    rows = sum(len(keys[split]) for split in SPLITS)
    unmatched = int((~matched[place]).sum())
    _refuse_unmatched(teacher, dataset, unmatched, rows, most_unmatched)
    extra: dict[str, dict[str, np.ndarray]] = {}
    start = 0
    for split in SPLITS:
        mine = place[start : start + len(keys[split])]
        start += len(mine)
        extra[split] = {LOGITS: np.where(matched[mine, None], found[mine], 0).astype(np.float32), MATCHED: matched[mine].astype(np.float32)}
    return SoftTargets(extra, {"rows": rows, "identities": len(distinct), "unmatched": unmatched})


def _classes(teacher: Loaded, dataset: Dataset) -> list[int]:
    """Positions of the student's classes among the teacher's."""
    theirs, ours = list(teacher.card.labels.classes), list(dataset.card.labels.classes)
    if sorted(theirs) != sorted(ours):
        raise UsageError(
            f"the teacher knows the classes {', '.join(theirs)}, the card has {', '.join(ours)}", where="labels.classes", then="use the same classes"
        )
    return [theirs.index(name) for name in ours]


def _origin(teacher: Loaded) -> dict[str, Any]:
    """What the logits depend on besides the rows: the teacher's weights and inputs."""
    digests = checkpoints.document(teacher.path, teacher.step)["sha256"]
    return {
        "teacher": str(teacher.path.resolve()),
        "step": teacher.step,
        "weights": digests["weights.npz"],
        "normalisation": sha256(teacher.path / "normalisation.json"),
    }


def _keys(dataset: Dataset, split: str) -> np.ndarray:
    """Keys of a split's rows, in row-number order, as opaque bytes that sort and compare."""
    parts = [_opaque(dataset.identity_keys(rows)) for rows in dataset.iterate(split, step=STEP)]
    return np.concatenate(parts) if parts else np.zeros(0, "V8")


def _opaque(keys: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(keys).view(f"V{keys.dtype.itemsize}")


def _bytes(keys: np.ndarray) -> np.ndarray:
    return keys.view(np.uint8).reshape(len(keys), -1)


def _stored(folder: Path, origin: dict[str, Any], distinct: np.ndarray) -> np.ndarray | None:
    """The logits kept in `folder`, or None where there are none of this teacher and these identities."""
    if not (folder / "teacher_logits.json").is_file():
        return None
    document = read_document(folder / "teacher_logits.json", FORMAT, 1)
    if any(document[name] != value for name, value in origin.items()) or sha256(folder / "teacher_logits.npz") != document["sha256"]:
        return None
    arrays = read_arrays(folder / "teacher_logits.npz")
    return arrays["logits"] if np.array_equal(arrays["keys"], _bytes(distinct)) else None


def _compute(teacher: Loaded, dataset: Dataset, distinct: np.ndarray, progress: Progress) -> np.ndarray:
    """float32 `[identities, classes]` in the teacher's order of classes, NaN where its card does not hold an identity."""
    network = scorer(teacher.path)
    found = np.full((len(distinct), len(teacher.card.labels.classes)), np.nan, np.float32)
    if teacher.card == dataset.card:
        _fill(network, dataset, SPLITS, distinct, found, progress)
        return found
    with open_dataset(teacher.card, training=False) as theirs:
        _fill(network, theirs, (*SPLITS, "test"), distinct, found, progress)
    return found


def _fill(network: Scorer, dataset: Dataset, splits: tuple[str, ...], distinct: np.ndarray, found: np.ndarray, progress: Progress) -> None:
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
                found[place[wanted]] = network.score(_take(rows.x, wanted)).logits
            done += len(rows)
            progress.update(done, total, "the teacher's logits")


def _take(x: Features, rows: np.ndarray) -> Features:
    return Features({name: value[rows] for name, value in x.groups.items()}, {name: value[rows] for name, value in x.counts.items()})


def _refuse_unmatched(teacher: Loaded, dataset: Dataset, unmatched: int, rows: int, most: float) -> None:
    if unmatched <= most * rows:
        return
    what = f"{unmatched:,} of {rows:,} rows of card '{dataset.card.name}' are not in the teacher's card '{teacher.card.name}'"
    then = "check samples' names, files and identity of both cards; --max-unmatched FRACTION trains such rows on their labels alone"
    raise UsageError(what, where=str(teacher.path), then=then)
