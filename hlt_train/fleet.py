"""Training by messages under a virtual clock: the simulation is advanced, recorded, validated and saved.

An epoch is over when as many shares are done as it has, whoever did them; a worker that is ahead works on the next one already, one that is behind is still
in the last. What became of each share is in the coverage certificate at the end of the run (`coverage.json`); what each worker did with its time, how stale
the updates were and how fair, in `transport.json`, in the metrics and in `timeline.json`.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from hlt_train import checkpoints
from hlt_train.certificate import certificate, identities
from hlt_train.data.dataset import Dataset
from hlt_train.devices import replicate
from hlt_train.errors import UsageError
from hlt_train.files import write_document
from hlt_train.progress import Progress
from hlt_train.record import Plan, Record, Tally
from hlt_train.run import Run
from hlt_train.shares import Shares
from hlt_train.signals import StopRequest
from hlt_train.sparse_gradient import sparse_gradient
from hlt_train.strategies import Strategy
from hlt_train.task import Task, gradient_of, rows_between, stays
from hlt_train.timeline import Timeline
from hlt_train.transports.account import Coverage, wire_document
from hlt_train.transports.journal import Journals
from hlt_train.transports.options import SimulateOptions, parse_failure
from hlt_train.transports.program import Program, digest, overlapped
from hlt_train.transports.simulate import Failure, Simulation, Timing
from hlt_train.transports.stragglers import factor
from hlt_train.validation import Validator

__all__ = ["RESULTS", "Fleet", "make_program"]

RESULTS = ("transport.json", "coverage.json", "timeline.json")  # written when a run is finished


def make_program(task: Task, strategy: Strategy, batch: Any, *, workers: int, servers: int, seed: int, wire: str) -> tuple[Program, Any]:
    """The strategy compiled for the task's parameters as one vector. Returns the function that makes the network's pytree of a vector, too."""
    vector, unravel = ravel_pytree(jax.tree.map(np.asarray, task.params))
    if vector.dtype != np.float32:
        raise UsageError(f"messages carry float32 parameters; this network has {vector.dtype}")
    gradient = gradient_of(task)

    def of_vector(v: Any, data: Any, key: Any) -> tuple[Any, Any]:
        loss, grads = gradient(unravel(v), data, key)
        return loss, ravel_pytree(grads)[0]

    of_entries = sparse_gradient(task) if strategy.sparse else None
    shards = 1 if strategy.peers else servers
    return Program(strategy, of_entries or of_vector, np.asarray(vector), batch, workers=workers, shards=shards, seed=seed, wire=wire), unravel


class Fleet:
    """Runs a task with a strategy over simulated workers, and writes the run.

    Args:
        run: None for a trial that writes nothing.
        learning_rate: the schedule, for the metrics only.
    """

    def __init__(
        self,
        task: Task,
        plan: Plan,
        strategy: Strategy,
        options: SimulateOptions,
        dataset: Dataset,
        mesh: Mesh,
        run: Run | None,
        progress: Progress,
        learning_rate: optax.Schedule,
    ) -> None:
        self.task, self.plan, self.options, self.mesh, self.dataset = task, plan, options, mesh, dataset
        self.workers = options.workers
        self.resident = stays(task, plan, mesh)
        self.shares = Shares(task.train, self.workers, task.batch, resident=self.resident)
        strategy = overlapped(strategy, overlap=options.overlap)
        first = self.shares((0, 0))
        program, self._unravel = make_program(task, strategy, first, workers=self.workers, servers=options.servers, seed=plan.seed, wire=options.wire)
        self.journals = Journals(None if run is None else run.path)
        self.timeline = Timeline()
        self.coverage = Coverage(task.train.steps_per_epoch, self.workers)
        self.simulation = Simulation(
            program,
            self.shares,
            steps=plan.steps,
            coverage=self.coverage,
            timing=_timing(options, plan.seed),
            failures=tuple(Failure(time, kind, worker, seconds) for kind, worker, time, seconds in map(parse_failure, options.failures)),
            journals=self.journals,
            spans=self.timeline if options.timeline else None,
        )
        self.validate = Validator(task.losses, task.validation, mesh, resident=self.resident)
        self._learning_rate = jax.jit(learning_rate)
        self._every = strategy.every
        self._barrier = strategy.quorum == 0 and not strategy.peers and not options.failures
        self._wire = [0, 0.0]  # bodies that crossed in a narrower number format, the sum of their relative errors
        self.record = Record(plan, task.train.steps_per_epoch, run, progress, self.weights, self._state)

    @property
    def tally(self) -> Tally:
        """The run's figures so far."""
        return self.record.tally

    def weights(self) -> Any:
        """The network's parameters, host arrays."""
        return jax.device_get(self._unravel(self.simulation.params()))

    def _state(self) -> tuple[dict[str, np.ndarray], dict[str, Any], None]:
        document, arrays = self.simulation.take()
        tables = {f"coverage{epoch}": table.copy() for epoch, table in self.coverage.epochs.items()}
        more = {"simulation": document, "coverage": self.coverage.document(), "journals": self.journals.sizes(), "wire": list(self._wire)}
        return {**arrays, **tables}, more, None

    def restore(self, *, extended: bool) -> None:
        """Continue at LAST; before the first checkpoint that is the beginning. `extended`: the run got a later end (or an earlier one)."""
        for name in RESULTS:  # of the end that the run had before
            (self.record.run.path / name).unlink(missing_ok=True)
        document = self.record.restore(extended=extended)
        if document is None:
            self.journals.cut(self.journals.headers())
            return
        arrays = checkpoints.load(self.record.run.path, int(document["step"]), "state")
        tables = {int(name.removeprefix("coverage")): table for name, table in arrays.items() if name.startswith("coverage")}
        self.coverage.restore(tables, document["coverage"])
        self.simulation.put(document["simulation"], arrays, tables)
        self.journals.cut(document["journals"])
        self._wire = document["wire"]
        if self.plan.steps != self.simulation.steps:
            for worker in self.simulation.workers:
                worker.note({"t": worker.t, "length": self.plan.steps})
        if extended and self.plan.steps > self.simulation.steps:
            self.simulation.extend(self.plan.steps)

    def train(self) -> dict[str, Any]:
        """Train to the end of the plan. Returns the figures of the run.

        Raises:
            RunFailed: the loss is not finite.
            Interrupted: a signal came; the state has been saved.
        """
        first, started = self.tally.step, time.monotonic()
        try:
            with StopRequest() as stop:
                while not self.record.over():
                    self._epoch(stop)
            self._end()
            if self.tally.step > first:
                self.record.save()
            self._finish()
        finally:
            self.journals.close()
        self.record.progress.close()
        return {**self.record.summary(time.monotonic() - started), "virtual_seconds": round(self.simulation.now, 6), **self.simulation.account.brief()}

    def _epoch(self, stop: StopRequest) -> None:
        """The rest of the current epoch, or of the run, and the validation at its end."""
        stream, n, tally = self.task.train, self.workers, self.tally
        epoch = tally.step // stream.steps_per_epoch
        end = min((epoch + 1) * stream.steps_per_epoch, self.plan.steps)
        began, start = time.monotonic(), tally.step
        while tally.step < end:
            target = min(end, (tally.step // self.plan.log_every + 1) * self.plan.log_every)
            self.simulation.advance(target * n)
            if target == self.plan.steps:
                self._end()
            elif target == end and self._barrier:
                self.simulation.close_round(end // self._every)
            before = tally.step
            self._settle(target)
            self.record.show(epoch, (tally.step - start) * self.task.batch / max(time.monotonic() - began, 1e-9), f", {self.simulation.now:.4g} s virtual")
            every = self.plan.checkpoint_every
            if tally.step < end and every is not None and tally.step // every > before // every:
                self.simulation.remember()
                self.record.save()
            if tally.step < end and stop.received:  # a dead server does not go back to this one, which an undisturbed run would not have
                self.record.save()
                self.record.leave_if(stop)
        self.simulation.remember()
        self._end_of_epoch(epoch, start, time.monotonic() - began)
        if stop.received and not self.record.over():
            self.record.save()
            self.record.leave_if(stop)

    def _end(self) -> None:
        """No further batch; what is under way arrives. Once more, it does nothing."""
        if self.tally.stopped_early or self.simulation.steps > self.plan.steps:
            self.simulation.stop()
        self.simulation.drain()

    def _settle(self, step: int) -> None:
        """Account for the batches since the last time. The mean loss stands for the steps, however often a share was done (after a death) or not (late)."""
        tally, losses = self.tally, self.simulation.losses
        found = np.asarray(losses, np.float64)
        if not np.isfinite(found).all():
            self.record.diverged(tally.step + 1 + int(np.argmin(np.isfinite(found))) // self.workers)
        rows = rows_between(self.task, tally.step, step)
        if len(found):
            tally.epoch_loss += float(found.mean()) * (step - tally.step)
        errors = self.simulation.program.wire_errors
        self._wire = [self._wire[0] + len(errors), self._wire[1] + sum(errors)]
        errors.clear()
        tally.interval_loss += float(found.sum())
        tally.interval_rows += len(found)
        tally.step = step
        losses.clear()
        if step % self.plan.log_every == 0 and tally.interval_rows:
            line = {"event": "steps", "step": step, "loss": tally.interval_loss / tally.interval_rows, "learning_rate": self._rate(step)}
            self.record.run.metric({**line, "virtual_seconds": round(self.simulation.now, 6), "rows": rows})
            tally.interval_loss, tally.interval_rows = 0.0, 0

    def _rate(self, step: int) -> float:
        return float(self._learning_rate(step - 1))

    def _end_of_epoch(self, epoch: int, start: int, seconds: float) -> None:
        tally, spe = self.tally, self.task.train.steps_per_epoch
        began = time.monotonic()
        rows = rows_between(self.task, epoch * spe, tally.step)
        self.record.end_of_epoch(
            epoch,
            self.validate(replicate(self.weights(), self.mesh)),
            rows=rows,
            loss=tally.epoch_loss * self.task.batch / rows,
            whole=tally.step == (epoch + 1) * spe,
            rate=self._rate(tally.step),
            speed=(float(rows_between(self.task, start, tally.step)), max(seconds, 1e-9)),
            began=began,
            virtual_seconds=round(self.simulation.now, 6),
            **self.simulation.account.brief(),
        )

    def _finish(self) -> None:
        """Write what is known only at the end."""
        run, simulation = self.record.run, self.simulation
        portions = simulation.rule.batch is not None
        covered = certificate(self.coverage, self.shares, identities(self.dataset), self.tally.step, portions=portions)
        write_document(run.path / "coverage.json", "hlt-train/coverage", 1, covered)
        digests = {
            "params": digest(simulation.params()),
            "workers": {str(w.index): digest(w.state) for w in simulation.workers if w.index not in simulation.dead},
            "shards": [digest(s.state) for s in simulation.shards],
        }
        wire = wire_document(self.options.wire, self._wire)
        content = {"transport": "simulate", "virtual_seconds": simulation.now, **simulation.account.document(), "wire": wire, "digests": digests}
        write_document(run.path / "transport.json", "hlt-train/transport", 1, content)
        if self.options.timeline:
            self.timeline.write(run.path / "timeline.json", "virtual")


def _timing(options: SimulateOptions, seed: int) -> Timing:
    names = ("compute", "latency", "bandwidth", "service", "cores", "loss", "reorder", "detection")
    return Timing(factor=factor(options.stragglers, seed), **{name: getattr(options, name) for name in names})
