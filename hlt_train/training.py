"""The training loop, shared by every verb that trains: dispatches, metrics, validation, checkpoints, early stopping, resume, signals.

The loss of a worker's batch of b rows is `sum(w * l) / (b * mean_weight)`: linear in the rows, so that the mean over N workers is the loss of one worker with
N b rows, and the last batch of an epoch, which has fewer rows, counts each of them as much as any other. `mean_weight` is that of the training split.

Everything that a later step depends on is in the carry on the devices, in the step number, or in the `Tally`; a checkpoint holds the three, and a resumed run
gives the same bits. Validation, metrics and the ends of dispatches touch none of them.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from hlt_train import checkpoints
from hlt_train.checkpoints import Snapshot
from hlt_train.data.stream import Stream
from hlt_train.devices import memory
from hlt_train.errors import Interrupted, RunFailed
from hlt_train.feed import Resident, Streamed, edges, portion_steps
from hlt_train.progress import Progress
from hlt_train.run import Run
from hlt_train.signals import StopRequest
from hlt_train.strategies import Params, Strategy
from hlt_train.transports.lockstep import Carry, Lockstep
from hlt_train.validation import Losses, Validator

__all__ = ["Plan", "Tally", "Task", "Trainer"]

BREATH = 5.0  # seconds between checkpoints when no interval is asked for
RESIDENT_SHARE = 0.25


class Task(NamedTuple):
    """What is learnt.

    Attributes:
        params: initial parameters, a pytree of float arrays.
        losses: (params, batch, key or None) -> (loss per row `[n]`, figures per row by name, which validation averages).
        train: the shuffled training stream.
        validation: the validation split in file order.
        mean_weight: mean training weight over the training split.
        batch: rows per step over all workers.
        penalty: added to the loss of a step; a function of the parameters alone.
    """

    params: Params
    losses: Losses
    train: Stream
    validation: Stream
    mean_weight: float
    batch: int
    penalty: Callable[[Params], jax.Array] | None = None


class Plan(NamedTuple):
    """How long and how. steps: of the whole run. resident: auto | always | never. checkpoint_every: steps; None: at the ends of epochs, not too often."""

    steps: int
    seed: int
    scan: int = 32
    resident: str = "auto"
    checkpoint_every: int | None = None
    keep: int = 3
    patience: int | None = None
    log_every: int = 100
    verb: str = "fit"


@dataclass
class Tally:
    """Figures that a checkpoint keeps. Sums of per-step losses run in float64 in the order of the steps."""

    step: int = 0
    epoch_loss: float = 0.0
    interval_loss: float = 0.0
    interval_rows: int = 0
    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    stopped_early: bool = False


class Trainer:
    """Runs a task with a strategy over the devices of a mesh, and writes the run.

    Args:
        run: None for a trial that writes nothing.
        learning_rate: the schedule, for the metrics only.
    """

    def __init__(self, task: Task, plan: Plan, strategy: Strategy, mesh: Mesh, run: Run | None, progress: Progress, learning_rate: optax.Schedule) -> None:
        self.task, self.plan, self.mesh, self.progress = task, plan, mesh, progress
        self._run = run
        self._learning_rate = jax.jit(learning_rate)
        self._rates: dict[int, float] = {}  # learning rate of the steps of this epoch that are written
        self.resident = self._stays()
        steps = portion_steps(plan.scan, task.batch, task.train.row_bytes, task.train.steps_per_epoch)
        self.feed: Resident | Streamed = (Resident if self.resident else Streamed)(task.train, mesh, steps, task.batch)
        self.lockstep = Lockstep(strategy, mesh, self._gradient, self.feed.select, seed=plan.seed, steps=steps)
        self.validate = Validator(task.losses, task.validation, mesh, resident=self.resident)
        self.carry: Carry = self.lockstep.init(task.params)
        self.tally = Tally()
        self._best: Snapshot | None = None  # better than the one on disk, not written yet
        self._saved = time.monotonic()
        self._noted = False
        self._speeds: list[tuple[float, float]] = []  # (rows, seconds) of this process's epochs

    def _stays(self) -> bool:
        """Whether the decoded data are kept on the devices."""
        if self.plan.resident != "auto":
            return self.plan.resident == "always"
        decoded = self.task.train.row_bytes * self.task.train.rows + self.task.validation.row_bytes * self.task.validation.rows
        return bool(decoded <= RESIDENT_SHARE * memory(self.mesh))

    def _gradient(self, params: Params, batch: Any, key: Any) -> tuple[jax.Array, Params]:
        def loss(p: Params) -> jax.Array:
            rows, _figures = self.task.losses(p, batch, key)
            mean = jnp.sum(batch.weight * rows) / (rows.shape[0] * self.task.mean_weight)
            return mean if self.task.penalty is None else mean + self.task.penalty(p)

        value, grads = jax.value_and_grad(loss)(params)
        return value, grads

    @property
    def run(self) -> Run:
        """The run that is written."""
        assert self._run is not None, "a trial run writes nothing"
        return self._run

    def restore(self, *, extended: bool) -> None:
        """Continue at LAST; before the first checkpoint that is the beginning. `extended`: the run got a later end, so early stopping starts to count anew."""
        path = self.run.path
        step = checkpoints.pointed(path, "LAST")
        if step is None:
            self.run.cut_metrics(0)
            return
        document = checkpoints.document(path, step)
        state = checkpoints.to_tree(checkpoints.load(path, step, "state"), self.lockstep.host(self.carry), where=str(path / "checkpoints" / str(step)))
        self.carry = self.lockstep.restore(self.carry, state)
        self.tally = Tally(**document["tally"])
        if extended:
            self.tally.stale, self.tally.stopped_early = 0, False
        checkpoints.drop_after(path, step)
        if self.tally.best_step is not None:
            checkpoints.point(path, "BEST", self.tally.best_step)
        self.run.cut_metrics(document["metrics_bytes"])

    def train(self) -> dict[str, Any]:
        """Train to the end of the plan. Returns the figures of the run.

        Raises:
            RunFailed: the loss is not finite.
            Interrupted: a signal came; the state has been saved.
        """
        first = self.tally.step
        started = time.monotonic()
        with StopRequest() as stop:
            while not self._over():
                self._epoch(stop)
        if self.tally.step > first:
            self._save()
        self.progress.close()
        seconds = time.monotonic() - started
        return {
            "steps": self.tally.step,
            "epochs": self.tally.step / self.task.train.steps_per_epoch,
            "best": {"step": self.tally.best_step, "loss": self.tally.best},
            "stopped": "patience" if self.tally.stopped_early else "complete",
            "seconds": round(seconds, 3),
            "rows_per_s": self._speed(),
        }

    def _speed(self) -> float | None:
        """Training rows/s after the first epoch of this process, which holds the compilation; of that one where there is no other; None without any."""
        counted = self._speeds[1:] or self._speeds
        return round(sum(rows for rows, _ in counted) / sum(seconds for _, seconds in counted), 1) if counted else None

    def _epoch(self, stop: StopRequest) -> None:
        """The rest of the current epoch, or of the run, and the validation at its end. One dispatch is in flight while the one before it is accounted for."""
        per_epoch, every = self.task.train.steps_per_epoch, self.plan.checkpoint_every
        start = step = self.tally.step
        epoch, within = divmod(start, per_epoch)
        sizes = edges(start, min((epoch + 1) * per_epoch, self.plan.steps), self.lockstep.steps, every)
        # Now, with the device idle: asked for during a dispatch, a rate would wait for its end.
        written = {s for s in range(start + 1, start + sum(sizes) + 1) if s % self.plan.log_every == 0} | {start + sum(sizes)}
        self._rates = {s: float(self._learning_rate(s - 1)) for s in written}
        began = time.monotonic()
        flying: tuple[int, jax.Array] | None = None
        with contextlib.closing(self.feed.portions(epoch, within, sizes)) as portions:
            for number, portion in enumerate(portions, 1):
                self._note_start(epoch, within)
                self.carry, losses = self.lockstep.dispatch(self.carry, self.feed.resident, portion.data, portion.steps)
                if flying is not None:
                    self._settle(*flying)
                flying = (portion.steps, losses)
                step += portion.steps
                due = every is not None and step % every == 0
                if number == len(sizes) or due or stop.received:
                    self._settle(*flying)
                    flying = None
                if number < len(sizes):
                    if due or stop.received:
                        self._save()
                    self._leave_if(stop)
                self._show(epoch, (self.tally.step - start) * self.task.batch / max(time.monotonic() - began, 1e-9))
        self._end_of_epoch(epoch, time.monotonic() - began, self.tally.step - start)
        if stop.received and not self._over():
            self._save()
            self._leave_if(stop)

    def _over(self) -> bool:
        return self.tally.step >= self.plan.steps or self.tally.stopped_early

    def _note_start(self, epoch: int, within: int) -> None:
        """Log once what had to be decoded before the first batch: after a resume, the clusters of the block in which it fell."""
        if not self._noted:
            self._noted = True
            self.run.log(f"first batch: epoch {epoch + 1} step {within} of it, clusters decoded so far: {sorted(set(self.feed.decoded_first))}")

    def _settle(self, steps: int, losses: jax.Array) -> None:
        """Account for a dispatch that has been launched: waits for its losses."""
        found = np.asarray(losses, np.float64).mean(axis=0)[:steps]
        tally, stream, batch = self.tally, self.task.train, self.task.batch
        if not np.isfinite(found).all():
            self._diverged(tally.step + int(np.argmin(np.isfinite(found))) + 1)
        for loss in found.tolist():
            within = tally.step % stream.steps_per_epoch
            tally.step += 1
            tally.epoch_loss += loss
            tally.interval_loss += loss
            tally.interval_rows += min(batch, stream.rows - within * batch)
            if tally.step % self.plan.log_every == 0:
                mean = tally.interval_loss * batch / tally.interval_rows
                self.run.metric({"event": "steps", "step": tally.step, "loss": mean, "learning_rate": self._rates[tally.step]})
                tally.interval_loss, tally.interval_rows = 0.0, 0

    def _end_of_epoch(self, epoch: int, seconds: float, steps: int) -> None:
        tally, stream, batch = self.tally, self.task.train, self.task.batch
        within = tally.step - epoch * stream.steps_per_epoch
        rows = min(within * batch, stream.rows)
        self._speeds.append((steps * rows / within, max(seconds, 1e-9)))
        began = time.monotonic()
        figures = self.validate(self.lockstep.params(self.carry))
        loss = figures["loss"]
        if not math.isfinite(loss):
            self._diverged(tally.step)
        best = tally.best is None or loss < tally.best
        line = {
            "event": "epoch",
            "epoch": epoch + 1,
            "step": tally.step,
            "rows": rows,
            "loss": tally.epoch_loss * batch / rows,
            "validation": figures,
            "learning_rate": self._rates[tally.step],
            "best": best,
            "seconds": round(seconds, 6),
            "rows_per_s": round(self._speeds[-1][0] / self._speeds[-1][1], 1),
            "validation_seconds": round(time.monotonic() - began, 6),
        }
        self.run.metric(line)
        if within == stream.steps_per_epoch:
            tally.epoch_loss = 0.0
        tally.stale = 0 if best else tally.stale + 1
        if best:
            tally.best, tally.best_step = loss, tally.step
        tally.stopped_early = self.plan.patience is not None and tally.stale >= self.plan.patience
        if best:
            self._best = self._snapshot()
        text = ", ".join(f"{name} {value:.5g}" for name, value in figures.items())
        self.run.log(f"epoch {epoch + 1} step {tally.step}: loss {line['loss']:.5g}, validation {text}{' (best)' if best else ''}")
        every = self.plan.checkpoint_every
        if (every is not None and tally.step % every == 0) or (every is None and time.monotonic() - self._saved > BREATH):
            self._save()

    def _snapshot(self) -> Snapshot:
        """The present state on the host. Weights that are not finite are a divergence, and are never saved."""
        weights = jax.device_get(jax.tree.map(lambda leaf: leaf[0], self.lockstep.params(self.carry)))
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights)):
            self._diverged(self.tally.step)
        document = {
            "step": self.tally.step,
            "epoch": self.tally.step // self.task.train.steps_per_epoch,
            "seed": self.plan.seed,
            "tally": asdict(self.tally),
            "metrics_bytes": self.run.metrics_size(),
        }
        return Snapshot(weights, self.lockstep.host(self.carry), document)

    def _save(self) -> None:
        """Write the best state if it is not on disk yet, and the present one; move LAST, then BEST; remove what is no longer kept."""
        path, step = self.run.path, self.tally.step
        if self._best is not None and self._best.document["step"] != step:
            checkpoints.save(path, self._best)
        self._best = None
        if checkpoints.pointed(path, "LAST") != step:
            checkpoints.save(path, self._snapshot())
            checkpoints.point(path, "LAST", step)
        if self.tally.best_step is not None:
            checkpoints.point(path, "BEST", self.tally.best_step)
        checkpoints.prune(path, self.plan.keep)
        self._saved = time.monotonic()

    def _leave_if(self, stop: StopRequest) -> None:
        if stop.received:
            self.progress.close()
            self.run.log(f"{stop.received}: saved at step {self.tally.step}")
            what = f"{stop.received}: saved at step {self.tally.step} of {self.plan.steps}"
            raise Interrupted(what, then=f"hlt-train {self.plan.verb} --resume {self.run.path}")

    def _diverged(self, step: int) -> NoReturn:
        """Fail, after a better state that was still waiting to be written has been."""
        where, kept = "", "nothing was saved"
        if self._run is not None:
            path = self._run.path
            if self._best is not None:
                good = int(self._best.document["step"])
                checkpoints.save(path, self._best)
                checkpoints.point(path, "LAST", good)
                checkpoints.point(path, "BEST", good)
            last = checkpoints.pointed(path, "LAST")
            where, kept = str(path), f"the last good checkpoint is step {last}" if last is not None else "there was no checkpoint yet"
            self._run.log(f"diverged at step {step}; {kept}")
        self.progress.close()
        epoch = (step - 1) // self.task.train.steps_per_epoch + 1
        raise RunFailed(
            f"the loss is not finite at step {step} (epoch {epoch}); {kept}", where=where, then="a lower --learning-rate; --init-from RUN starts at its BEST"
        )

    def _show(self, epoch: int, rate: float) -> None:
        best = "" if self.tally.best is None else f", best validation loss {self.tally.best:.4g}"
        self.progress.update(self.tally.step, self.plan.steps, f"epoch {epoch + 1}, {rate:,.0f} rows/s{best}")
