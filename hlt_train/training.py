"""The training loop over devices in lockstep, shared by every verb that trains: dispatches, metrics, the ends of epochs, resume.

Everything that a later step depends on is in the carry on the devices, in the step number, or in the `Tally`; a checkpoint holds the three, and a resumed run
gives the same bits. Validation, metrics and the ends of dispatches touch none of them.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from hlt_train import checkpoints
from hlt_train.cluster import Agreed
from hlt_train.feed import edges, make_feed, portion_steps
from hlt_train.progress import Progress
from hlt_train.record import Plan, Record, Tally
from hlt_train.run import Run
from hlt_train.signals import StopRequest
from hlt_train.strategies import Params, Strategy
from hlt_train.task import Task, gradient_of, stays
from hlt_train.transports._lockstep_staff import fitting, staff
from hlt_train.transports.lockstep import Carry, Lockstep, Network
from hlt_train.validation import Validator

__all__ = ["Trainer"]


class Trainer:
    """Runs a task with a strategy over the devices of a mesh, and writes the run.

    Args:
        run: None for a trial that writes nothing.
        learning_rate: the schedule, for the metrics only.
        network: how messages travel.
    """

    def __init__(
        self,
        task: Task,
        plan: Plan,
        strategy: Strategy,
        mesh: Mesh,
        run: Run | None,
        progress: Progress,
        learning_rate: optax.Schedule,
        network: Network | None = None,
    ) -> None:
        self.task, self.plan, self.mesh = task, plan, mesh
        self._learning_rate = jax.jit(learning_rate)
        self._rates: dict[int, float] = {}  # learning rate of the steps of this epoch that are written
        numbered = strategy.batch is not None
        self.resident = numbered or stays(task, plan, mesh)
        steps = portion_steps(plan.scan, task.batch, task.train.row_bytes, task.train.steps_per_epoch)
        self.feed = make_feed(task.train, mesh, steps, task.batch, resident=plan.resident, fits=self.resident, numbered=numbered)
        self.lockstep = Lockstep(strategy, mesh, gradient_of(task), self.feed.select, seed=plan.seed, steps=steps, network=network)
        self.validate = Validator(task.losses, task.validation, mesh, resident=self.resident)
        self.carry: Carry = self.lockstep.init(task.params)
        self.record = Record(plan, task.train.steps_per_epoch, run, progress, self._weights, lambda: (self.lockstep.host(self.carry), {}, None))
        self._noted = False

    @property
    def tally(self) -> Tally:
        """The run's figures so far."""
        return self.record.tally

    def _weights(self) -> Params:
        weights: Params = jax.device_get(jax.tree.map(lambda leaf: leaf[0], self.lockstep.params(self.carry)))
        return weights

    def restore(self, *, extended: bool) -> None:
        """Continue at LAST; before the first checkpoint that is the beginning. `extended`: the run got a later end."""
        document = self.record.restore(extended=extended)
        if document is not None:
            path, step = self.record.run.path, int(document["step"])
            where = str(path / "checkpoints" / str(step))
            stored = checkpoints.load(path, step, "state")
            fresh = self.lockstep.host(self.carry)
            arrays = checkpoints.to_arrays(fresh)
            if staff(stored) not in {None, staff(arrays)}:  # fewer or more devices than then
                self.carry = self.lockstep.init(checkpoints.to_tree(checkpoints.load(path, step, "weights"), self.task.params, where=where))
                arrays = checkpoints.to_arrays(self.lockstep.host(self.carry))
            self.carry = self.lockstep.restore(self.carry, checkpoints.to_tree(fitting(stored, arrays), fresh, where=where))

    def train(self) -> dict[str, Any]:
        """Train to the end of the plan. Returns the figures of the run.

        Raises:
            RunFailed: the loss is not finite.
            Interrupted: a signal came; the state has been saved.
        """
        first = self.tally.step
        started = time.monotonic()
        with StopRequest() as request:
            stop = Agreed(request, self.mesh)
            while not self.record.over():
                self._epoch(stop)
        if self.tally.step > first:
            self.record.save()
        self.record.progress.close()
        return self.record.summary(time.monotonic() - started)

    def _epoch(self, stop: Agreed) -> None:
        """The rest of the current epoch, or of the run, and the validation at its end. One dispatch is in flight while the one before it is accounted for."""
        per_epoch, every = self.task.train.steps_per_epoch, self.plan.checkpoint_every
        start = step = self.tally.step
        epoch, within = divmod(start, per_epoch)
        sizes = edges(start, min((epoch + 1) * per_epoch, self.plan.steps), self.lockstep.steps, every)
        # Now, with the device idle: asked for during a dispatch, a rate would wait for its end.
        written = {s for s in range(start + 1, start + sum(sizes) + 1) if s % self.plan.log_every == 0} | {start + sum(sizes)}
        self._rates = {s: float(self._learning_rate(s - 1)) for s in written}
        began = time.monotonic()
        flying: tuple[int, jax.Array, Any] | None = None
        with contextlib.closing(self.feed.portions(epoch, within, sizes)) as portions:
            for number, portion in enumerate(portions, 1):
                self._note_start(epoch, within)
                self.carry, losses = self.lockstep.dispatch(self.carry, self.feed.resident, portion.data, portion.steps)
                asked = stop.ask()
                if flying is not None:
                    stop.learn(self._settle(*flying))
                flying = (portion.steps, losses, asked)
                step += portion.steps
                due = every is not None and step % every == 0
                if number == len(sizes) or due or stop.received:
                    stop.learn(self._settle(*flying))
                    flying = None
                if number < len(sizes):
                    if due or stop.received:
                        self.record.save()
                    self.record.leave_if(stop)
                self.record.show(epoch, (self.tally.step - start) * self.task.batch / max(time.monotonic() - began, 1e-9))
        self._end_of_epoch(epoch, time.monotonic() - began, self.tally.step - start)
        if stop.received and not self.record.over():
            self.record.save()
            self.record.leave_if(stop)

    def _note_start(self, epoch: int, within: int) -> None:
        """Log once what had to be decoded before the first batch: after a resume, the clusters of the block in which it fell."""
        if not self._noted:
            self._noted = True
            self.record.run.log(f"first batch: epoch {epoch + 1} step {within} of it, clusters decoded so far: {sorted(set(self.feed.decoded_first))}")

    def _settle(self, steps: int, losses: jax.Array, asked: Any) -> Any:
        """Account for a dispatch that has been launched: waits for its losses. Returns `asked`, what the processes said with it."""
        found = np.asarray(losses, np.float64).mean(axis=0)[:steps]
        tally, stream, batch = self.tally, self.task.train, self.task.batch
        if not np.isfinite(found).all():
            self.record.diverged(tally.step + int(np.argmin(np.isfinite(found))) + 1)
        for loss in found.tolist():
            within = tally.step % stream.steps_per_epoch
            tally.step += 1
            tally.epoch_loss += loss
            tally.interval_loss += loss
            tally.interval_rows += min(batch, stream.rows - within * batch)
            if tally.step % self.plan.log_every == 0:
                mean = tally.interval_loss * batch / tally.interval_rows
                self.record.run.metric({"event": "steps", "step": tally.step, "loss": mean, "learning_rate": self._rates[tally.step]})
                tally.interval_loss, tally.interval_rows = 0.0, 0
        return asked

    def _validated(self, figures: dict[str, float]) -> None:
        """For trainers that have a use for the figures of an epoch, before they are recorded."""

    def _end_of_epoch(self, epoch: int, seconds: float, steps: int) -> None:
        tally, stream, batch = self.tally, self.task.train, self.task.batch
        within = tally.step - epoch * stream.steps_per_epoch
        rows = min(within * batch, stream.rows)
        began = time.monotonic()
        figures = self.validate(self.lockstep.params(self.carry))
        self._validated(figures)
        self.record.end_of_epoch(
            epoch,
            figures,
            rows=rows,
            loss=tally.epoch_loss * batch / rows,
            whole=within == stream.steps_per_epoch,
            rate=self._rates[tally.step],
            speed=(steps * rows / within, max(seconds, 1e-9)),
            began=began,
            **self.lockstep.report(self.carry),
        )
