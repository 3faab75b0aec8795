"""What became of the data and of the messages: the coverage of an epoch, and what each worker did with its time.

Every share of an epoch ends in exactly one class:
- applied: its gradient was consumed once (by the server, or folded into a worker's own parameters by a rule without server);
- late: its gradient came after the round had closed, or was never computed because the round closed without its worker;
- gated: its worker decided not to send it;
- held: it waited in its worker for a push that did not come before the end of the run;
- open: not done yet; none is left when a run is complete.
Besides, `duplicates` counts results that came once more and were discarded, `redealt` the shares that went to another worker after a death, and `lost` those
that were applied, then lost with a server that died after its last checkpoint: they are dealt once more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["CLASSES", "Account", "Coverage", "wire_document"]

CLASSES = ("open", "applied", "late", "gated", "held")
OPEN, APPLIED, LATE, GATED, HELD = range(len(CLASSES))
EXTRAS = ("duplicates", "redealt", "lost")
BINS = 64


class Coverage:
    """The class of every share of the epochs so far.

    Args:
        steps_per_epoch: of the stream.
        workers: owners of shares.
    """

    def __init__(self, steps_per_epoch: int, workers: int) -> None:
        self.steps_per_epoch, self.workers = steps_per_epoch, workers
        self.epochs: dict[int, np.ndarray] = {}  # epoch -> uint8 [steps, workers]
        self.duplicates: Counter[int] = Counter()
        self.redealt: Counter[int] = Counter()
        self.lost: Counter[int] = Counter()

    def _place(self, share: tuple[int, int]) -> tuple[int, int, int]:
        step, owner = share
        if owner < 0:  # a portion handed out by the server: its number counts through the rounds
            step, owner = divmod(step, self.workers)
        epoch, within = divmod(step, self.steps_per_epoch)
        return epoch, within, owner

    def mark(self, share: tuple[int, int], code: int) -> bool:
        """Put an open share into its class. False: it was in one already (a duplicate)."""
        epoch, within, owner = self._place(share)
        table = self.epochs.setdefault(epoch, np.zeros((self.steps_per_epoch, self.workers), np.uint8))
        if table[within, owner] != OPEN:
            self.duplicates[epoch] += 1
            return False
        table[within, owner] = code
        return True

    def reopen(self, share: tuple[int, int]) -> None:
        """A share that was held at the end of the run is open again: the run goes on."""
        epoch, within, owner = self._place(share)
        if epoch in self.epochs and self.epochs[epoch][within, owner] == HELD:
            self.epochs[epoch][within, owner] = OPEN

    def is_open(self, share: tuple[int, int]) -> bool:
        """Whether nothing has become of a share yet."""
        epoch, within, owner = self._place(share)
        return epoch not in self.epochs or bool(self.epochs[epoch][within, owner] == OPEN)

    def note_redealt(self, share: tuple[int, int]) -> None:
        """A share goes to another worker."""
        self.redealt[self._place(share)[0]] += 1

    def roll_back(self, earlier: dict[int, np.ndarray]) -> int:
        """Go back to the tables of a checkpoint: what was applied since was lost with a server, and is open again. Returns how many shares that were."""
        total = 0
        for epoch, table in self.epochs.items():
            before = earlier.get(epoch, np.zeros_like(table))
            count = int(((table == APPLIED) & (before == OPEN)).sum())
            self.lost[epoch] += count
            total += count
        self.epochs = {epoch: table.copy() for epoch, table in earlier.items()}
        return total

    def counts(self, epoch: int) -> dict[str, int]:
        """Shares by class."""
        table = self.epochs.get(epoch, np.zeros((self.steps_per_epoch, self.workers), np.uint8))
        found = np.bincount(table.ravel(), minlength=len(CLASSES))
        return {name: int(found[code]) for code, name in enumerate(CLASSES)}

    def shares(self, epoch: int, code: int) -> np.ndarray:
        """int64 `[k, 2]`: (step, owner) of the shares of a class."""
        table = self.epochs.get(epoch)
        if table is None:
            return np.zeros((0, 2), np.int64)
        found: np.ndarray = np.argwhere(table == code) + np.array([epoch * self.steps_per_epoch, 0])
        return found

    def extras(self, epoch: int) -> dict[str, int]:
        """What happened besides: duplicates, redealt, lost."""
        return {name: int(getattr(self, name)[epoch]) for name in EXTRAS}

    def document(self) -> dict[str, dict[str, int]]:
        """JSON-able part of the state; the tables are arrays."""
        return {name: {str(k): int(v) for k, v in getattr(self, name).items()} for name in EXTRAS}

    def restore(self, tables: dict[int, np.ndarray], document: dict[str, dict[str, int]]) -> None:
        """Set the state: a checkpoint's."""
        self.epochs = {epoch: np.array(table) for epoch, table in tables.items()}
        for name in EXTRAS:
            setattr(self, name, Counter({int(k): v for k, v in document[name].items()}))


class Account:
    """Counters of a run by messages, by worker."""

    def __init__(self, workers: int) -> None:
        self.batches = np.zeros(workers, np.int64)
        self.applied = np.zeros(workers, np.int64)
        self.late = np.zeros(workers, np.int64)
        self.gated = np.zeros(workers, np.int64)
        self.messages = np.zeros(workers, np.int64)
        self.bytes = np.zeros(workers, np.int64)
        self.lost_datagrams = np.zeros(workers, np.int64)
        self.compute = np.zeros(workers)
        self.waiting = np.zeros(workers)
        self.staleness = np.zeros((workers, BINS), np.int64)

    def stale(self, worker: int, staleness: int) -> None:
        """Count the staleness of an applied push; the last bin holds what is beyond."""
        self.staleness[worker, min(max(staleness, 0), BINS - 1)] += 1

    def fairness(self) -> float:
        """Jain's index of the applied pushes: 1 when every worker had the same number, 1/N when one had all."""
        x = self.applied.astype(np.float64)
        return float(x.sum() ** 2 / (len(x) * (x**2).sum())) if x.any() else 1.0

    def brief(self) -> dict[str, Any]:
        """The figures that a line of metrics holds."""
        stale = self.document()["staleness"]["mean"]
        counted = {"late": int(self.late.sum()), "gated": int(self.gated.sum()), "bytes": int(self.bytes.sum())}
        return {"staleness": stale, **counted, "fairness": round(self.fairness(), 6)}

    def arrays(self) -> dict[str, np.ndarray]:
        """All counters."""
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `arrays`."""
        for name, value in arrays.items():
            setattr(self, name, np.array(value))

    def document(self) -> dict[str, Any]:
        """JSON-able summary."""
        counted = self.staleness.sum(axis=0)
        total = int(counted.sum())
        return {
            "batches": self.batches.tolist(),
            "applied": self.applied.tolist(),
            "late": self.late.tolist(),
            "gated": self.gated.tolist(),
            "messages": self.messages.tolist(),
            "bytes": self.bytes.tolist(),
            "lost_datagrams": self.lost_datagrams.tolist(),
            "seconds": {"compute": np.round(self.compute, 6).tolist(), "waiting": np.round(self.waiting, 6).tolist()},
            "staleness": {"histogram": counted.tolist(), "mean": float((counted * np.arange(BINS)).sum() / total) if total else None},
            "fairness": round(self.fairness(), 6),
        }


def wire_document(format: str, coded: Sequence[Any]) -> dict[str, Any]:
    """What a narrower number format cost. coded: (messages in it, the sum of their relative errors)."""
    messages, errors = coded
    return {"format": format, "messages": messages, "relative_error": errors / messages if messages else 0.0}
