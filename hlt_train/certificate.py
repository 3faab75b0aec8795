"""The coverage certificate of a run by messages: what became of every entry, epoch by epoch, each class with a hash of its identities.

The hash of a set of rows is BLAKE2b (16 bytes) over their identity hashes (`data.identity`), each followed by the object index, as little-endian 64-bit
integers in ascending order: it depends on which entries they are and how often, not on order or dealing. The hashes of all classes together can therefore be
compared with those of the split, which the certificate states too.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from hlt_train.data.dataset import Dataset
from hlt_train.data.identity import identity_hashes
from hlt_train.shares import Shares
from hlt_train.transports.account import CLASSES, Coverage

__all__ = ["certificate", "identities", "set_hash"]

FORMAT = "hlt-train/coverage"


def identities(dataset: Dataset, split: str = "train") -> np.ndarray:
    """uint64 `[rows, 2]`: identity hash and object index of every row of a split, by row number."""
    names = tuple(dataset.card.samples)
    parts = []
    for rows in dataset.iterate(split):
        found = np.zeros((len(rows), 2), np.uint64)
        for k, name in enumerate(names):
            chosen = rows.sample == k
            if chosen.any():
                found[chosen, 0] = identity_hashes(name, rows.identity[chosen])
        found[:, 1] = rows.object.astype(np.uint64)
        parts.append(found)
    return np.concatenate(parts)


def set_hash(rows: np.ndarray) -> str:
    """Hexadecimal hash of a set of identities `[n, 2]` (see the module)."""
    order = np.lexsort((rows[:, 1], rows[:, 0]))
    return hashlib.blake2b(np.ascontiguousarray(rows[order], "<u8").tobytes(), digest_size=16).hexdigest()


def certificate(coverage: Coverage, shares: Shares, identity: np.ndarray, steps: int, *, portions: bool = False) -> dict[str, Any]:
    """The document: for each epoch of a run of `steps` steps, rows, shares and hash by class; `complete` says that the classes add up to the epoch.

    Args:
        coverage: of the run.
        shares: the data.
        identity: uint64 `[rows, 2]` (see `identities`).
        steps: of the run.
        portions: the server handed the data out: an epoch is a round over the same portions.
    """
    epochs = []
    spe = coverage.steps_per_epoch

    def rows_of(step: int, owner: int) -> np.ndarray:
        return shares.rows((step * coverage.workers + owner, -1) if portions else (step, owner))

    for epoch in range(-(-steps // spe)):
        last = min(spe, steps - epoch * spe)
        classes: dict[str, Any] = {}
        for code, name in enumerate(CLASSES):
            found = [(int(step), int(owner)) for step, owner in coverage.shares(epoch, code) if step - epoch * spe < last]
            rows = np.concatenate([np.zeros(0, np.int64), *(rows_of(*share) for share in found)])
            classes[name] = {"shares": len(found), "rows": len(rows), "hash": set_hash(identity[rows])}
        dealt = np.concatenate([rows_of(epoch * spe + step, owner) for step in range(last) for owner in range(coverage.workers)])
        total = sum(entry["rows"] for entry in classes.values())
        epochs.append(
            {
                "epoch": epoch + 1,
                "rows": len(dealt),
                "hash": set_hash(identity[dealt]),
                "complete": total == len(dealt) and classes["open"]["rows"] == 0,
                "classes": classes,
                **coverage.extras(epoch),
            }
        )
    return {"split": {"rows": len(identity), "hash": set_hash(identity)}, "epochs": epochs}
