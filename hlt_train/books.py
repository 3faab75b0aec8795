"""The clerk's books: what became of every share and message, the losses, the metrics and the validations of a run by processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from hlt_train.record import Record
from hlt_train.strategies import Params
from hlt_train.transports._mpi_shards import FATES
from hlt_train.transports.account import APPLIED, GATED, LATE, Account, Coverage
from hlt_train.transports.dealing import Deal, Share, Source
from hlt_train.transports.post import Parcel
from hlt_train.transports.program import Program
from hlt_train.transports.protocol import from_json

__all__ = ["Books", "Work"]


class Work(NamedTuple):
    """What is trained, as processes need it.

    Attributes:
        program: the strategy.
        data: share -> batch.
        steps, steps_per_epoch: of each worker.
        rows: (first step, last step) -> rows of the training data between them.
        batch: rows of a step, over all workers.
        weights: vector -> the network's parameters.
        validate: vector -> figures, `loss` among them.
        rate: step -> learning rate, for the metrics.
        finish: (coverage, step) -> the certificate.
        plan: see `task.Plan`.
    """

    program: Program
    data: Callable[[Share], Any]
    steps: int
    steps_per_epoch: int
    rows: Callable[[int, int], int]
    batch: int
    weights: Callable[[np.ndarray], Params]
    validate: Callable[[np.ndarray], dict[str, float]]
    rate: Callable[[int], float]
    finish: Callable[[Coverage, int], dict[str, Any]]
    plan: Any

    @property
    def holds(self) -> bool:
        """Whether nobody begins an epoch before the verdict on the one before: a barrier that may stop early."""
        return self.plan.patience is not None and self.program.strategy.quorum == 0


class Books:
    """Counts what workers and shards report.

    Attributes:
        record: metrics, checkpoints, early stopping.
        t: batches of each worker.
        barrier: all workers do the same steps together, so that a step means the same for all.
        ended_epoch: epochs that have been validated.
        heard: when something last moved.
        spans: those of the latest reports: (worker, kind, begin, end).
    """

    def __init__(self, work: Work, record: Record) -> None:
        self.work, self.record, self.program, self.rule, self.n = work, record, work.program, work.program.strategy, work.program.workers
        self.coverage = Coverage(work.steps_per_epoch, self.n)
        self.account = Account(self.n)
        self.t = dict.fromkeys(range(self.n), 0)
        self.barrier = self.rule.quorum == 0 and self.rule.batch is None and not self.rule.peers
        self.ended_epoch = 0
        self.heard = time.monotonic()
        self.latest: dict[int, float] = {}  # worker -> when its batches last grew
        self.spans: list[tuple[int, str, float, float]] = []
        self.wire = [0, 0.0]  # bodies that crossed in a narrower number format, the sum of their relative errors
        self.losses: dict[int, list[float]] = {k: [] for k in range(self.n)}  # of each worker, those that no line of metrics has yet
        self._epoch_start = 0
        self._epoch_began = self._began = time.monotonic()

    # What workers and shards report.

    def on_report(self, parcel: Parcel, worker: int) -> None:
        """A worker's."""
        content = from_json(parcel.payload)
        losses = content["losses"]
        if losses or content["t"] > self.t[worker]:
            self.heard = self.latest[worker] = time.monotonic()
        self.t[worker] = max(self.t[worker], content["t"])
        if not np.isfinite(losses).all():
            self.record.diverged(max(1, content["t"] - len(losses) + 1 + int(np.argmin(np.isfinite(losses)))))
        self.losses[worker] += losses
        self.account.batches[worker] += len(losses)
        for name in ("compute", "waiting", "messages", "bytes"):
            getattr(self.account, name)[worker] += content[name]
        self.wire = [self.wire[0] + len(content["wire"]), self.wire[1] + sum(content["wire"])]
        for step, owner, why in content["lost"]:
            self.coverage.mark((step, owner), GATED if why == "gated" else LATE)
            (self.account.gated if why == "gated" else self.account.late)[worker] += 1
        for step, owner in content["applied"]:
            self.account.applied[worker] += 1
            self.coverage.mark((step, owner), APPLIED)
        self.spans += [(worker, kind, begin, end) for kind, begin, end in content["spans"]]

    def on_fates(self, parcel: Parcel) -> None:
        """What shard 0 did with messages."""
        self.heard = time.monotonic()
        numbers = parcel.payload.view(np.int64).tolist()
        place = 0
        while place < len(numbers):
            source, _sequence, code, staleness, count = numbers[place : place + 5]
            place += 5
            fate = FATES[code]
            if fate == "applied":
                self.account.applied[source] += 1
                self.account.stale(source, staleness)
            elif fate == "late":
                self.account.late[source] += 1
            for step, owner in zip(numbers[place : place + 2 * count : 2], numbers[place + 1 : place + 2 * count : 2], strict=True):
                if fate != "fetched":
                    self.coverage.mark((step, owner), APPLIED if fate == "applied" else LATE)
            place += 2 * count

    def remaining(self, deal: Deal) -> tuple[Deal, list[Share]]:
        """Of what a dead worker had to do when the session began: (all of it from some share on, and shares before that) of which nothing became."""
        rest, kept = Deal(deal.document()), deal.document()
        unfinished: list[Share] = []
        passed: list[Share] = []
        while (share := rest.peek()) is not None:
            if not self.coverage.is_open(share):
                unfinished, passed = [*unfinished, *passed], []
                rest.pop()
                kept = rest.document()
            else:
                passed.append(share)
                rest.pop()
                if len(passed) > self.program.workers * self.work.steps_per_epoch:  # nothing closed for so long: the rest is open
                    break
        return Deal([Source(*line) for line in kept]), unfinished

    def note_redealt(self, deal: Deal, shares: list[Share]) -> int:
        """All of `deal` and `shares` go to other workers. Returns how many that are."""
        rest, found = Deal(deal.document()), list(shares)
        while (share := rest.pop()) is not None:
            found.append(share)
        for share in found:
            self.coverage.note_redealt(share)
        return len(found)

    # Steps and epochs.

    def done(self) -> int:
        """Shares that are closed, over all epochs."""
        return sum(int((table != 0).sum()) for table in self.coverage.epochs.values())

    def reached(self, alive: set[int]) -> int:
        """The last step that is complete."""
        found = min(self.t[k] for k in alive) if self.barrier and len(alive) == self.n else self.done() // self.n
        return min(found, self.work.steps)

    def settle_to(self, step: int) -> None:
        """Account for the losses up to a step, at most to the end of the epoch, with a line of metrics per interval."""
        plan, tally = self.work.plan, self.record.tally
        end = min((self.ended_epoch + 1) * self.work.steps_per_epoch, self.work.steps)
        while (to := min((tally.step // plan.log_every + 1) * plan.log_every, end)) <= step and to > tally.step:
            self._settle(to)

    def settle_all(self, step: int) -> None:
        """As `settle_to`, and between two lines of metrics too."""
        self.settle_to(step)
        if step > self.record.tally.step:
            self._settle(step)

    def _settle(self, step: int) -> None:
        """Exactly the losses of the steps of a barrier, in the order of the workers; all that have been reported of other rules."""
        tally, plan = self.record.tally, self.work.plan
        if self.barrier:  # step by step: the sums do not depend on where a run was interrupted
            for i in range(step - tally.step):
                total = sum(self.losses[k][i] for k in range(self.n))
                tally.epoch_loss += total / self.n
                tally.interval_loss += total
            for k in range(self.n):
                del self.losses[k][: step - tally.step]
            tally.interval_rows += self.n * (step - tally.step)
        else:
            found = [loss for k in range(self.n) for loss in self.losses[k]]
            tally.epoch_loss += float(np.mean(found)) * (step - tally.step) if found else 0.0
            tally.interval_loss += float(np.sum(found))
            tally.interval_rows += len(found)
            self.losses = {k: [] for k in range(self.n)}
        tally.step = step
        if step % plan.log_every == 0 and tally.interval_rows:
            line = {"event": "steps", "step": step, "loss": tally.interval_loss / tally.interval_rows, "learning_rate": self.work.rate(step)}
            self.record.run.metric(line)
            tally.interval_loss, tally.interval_rows = 0.0, 0

    def at_end_of_epoch(self) -> bool:
        """Whether the epoch is complete and has not been validated."""
        spe = self.work.steps_per_epoch
        return self.record.tally.step >= min((self.ended_epoch + 1) * spe, self.work.steps) and self.ended_epoch * spe < self.work.steps

    def end_epoch(self, vector: np.ndarray) -> None:
        """Validate, and decide on stopping early."""
        tally, spe, epoch = self.record.tally, self.work.steps_per_epoch, self.ended_epoch
        began = time.monotonic()
        rows = self.work.rows(min(epoch * spe, tally.step), tally.step)
        figures = self.work.validate(vector)
        self.record.end_of_epoch(
            epoch,
            figures,
            rows=rows,
            loss=tally.epoch_loss * self.work.batch / max(rows, 1),
            whole=tally.step == (epoch + 1) * spe,
            rate=self.work.rate(tally.step),
            speed=(self.work.rows(min(self._epoch_start, tally.step), tally.step), max(began - self._epoch_began, 1e-9)),
            began=began,
            saving=False,
            **self.short(),
        )
        self.ended_epoch += int(tally.step >= (epoch + 1) * spe)
        self._epoch_start, self._epoch_began = tally.step, began
        self.heard = time.monotonic()

    def show(self) -> None:
        """How far the run is."""
        step = self.record.tally.step
        self.record.show(self.ended_epoch, self.work.rows(min(self._epoch_start, step), step) / max(time.monotonic() - self._epoch_began, 1e-9))

    def short(self) -> dict[str, Any]:
        """The figures of the messages that a line of metrics holds: none of a barrier, where they are the same in every epoch but for the time they take."""
        return {} if self.barrier else self.account.brief()

    # Checkpoints.

    def arrays(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps."""
        found = {f"coverage{epoch}": table.copy() for epoch, table in self.coverage.epochs.items()}
        found |= {f"account-{name}": value.copy() for name, value in self.account.arrays().items()}
        return found | {f"losses{k}": np.array(losses, np.float64) for k, losses in self.losses.items()}

    def document(self) -> dict[str, Any]:
        """What a checkpoint's document keeps."""
        return {"coverage": self.coverage.document(), "ended_epoch": self.ended_epoch, "t": [self.t[k] for k in range(self.n)], "wire": list(self.wire)}

    def restore(self, arrays: dict[str, np.ndarray], document: dict[str, Any], before: Coverage | None) -> int:
        """Go to a checkpoint. before: the coverage that a session had which ended in a recovery. Returns how many applied shares are lost."""
        tables = {int(name.removeprefix("coverage")): table for name, table in arrays.items() if name.startswith("coverage")}
        lost = 0
        if before is None:
            self.coverage.restore(tables, document["coverage"])
        else:
            self.coverage = before
            lost = before.roll_back({epoch: np.array(table) for epoch, table in tables.items()})
        self.account.restore({name.removeprefix("account-"): value for name, value in arrays.items() if name.startswith("account-")})
        self.losses = {k: arrays[f"losses{k}"].tolist() for k in range(self.n)}
        self.t = dict(enumerate(document["t"]))
        self.wire = list(document["wire"])
        self.ended_epoch = int(document["ended_epoch"])
        self._epoch_start = self.record.tally.step
        return lost
