"""The record of a training run, whatever carries its messages: figures, validation, checkpoints, early stopping, signals.

A trainer (`training.py`: devices in lockstep; `fleet.py`: workers that send messages) does the steps; what it has to say goes through here. A checkpoint holds
the trainer's state, the `Tally`, and where the metrics and logs stood.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from hlt_train import checkpoints, cluster
from hlt_train.checkpoints import Snapshot
from hlt_train.cluster import Asked
from hlt_train.errors import Hopeless, Interrupted
from hlt_train.progress import Progress
from hlt_train.run import Run
from hlt_train.strategies import Params

__all__ = ["BREATH", "Plan", "Record", "Tally"]

BREATH = 5.0  # seconds between checkpoints when no interval is asked for


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


class Record:
    """What a run writes and decides at the ends of its epochs.

    Args:
        plan: how long and how.
        steps_per_epoch: of the training data.
        run: None for a trial that writes nothing.
        progress: where to say how far it is.
        weights: the parameters to validate, as the network's pytree of host arrays.
        state: (trainer's arrays, more of the checkpoint's document, a folder of states that others wrote).
    """

    def __init__(
        self,
        plan: Plan,
        steps_per_epoch: int,
        run: Run | None,
        progress: Progress,
        weights: Callable[[], Params],
        state: Callable[[], tuple[Any, dict[str, Any], Path | None]],
    ) -> None:
        self.plan, self.steps_per_epoch, self.progress = plan, steps_per_epoch, progress
        self._run, self._weights, self._state = run, weights, state
        self.tally = Tally()
        self._best: Snapshot | None = None  # better than the one on disk, not written yet
        self._saved = time.monotonic()
        self._last: int | None = None  # the step of LAST
        self._speeds: list[tuple[float, float]] = []  # (rows, seconds) of this process's epochs

    @property
    def run(self) -> Run:
        """The run that is written."""
        assert self._run is not None, "a trial run writes nothing"
        return self._run

    def restore(self, *, extended: bool) -> dict[str, Any] | None:
        """Go to LAST: pointers, metrics and tally. Returns the checkpoint's document; None before the first checkpoint.

        `extended`: the run got a later end, so early stopping starts to count anew.
        """
        path = self.run.path
        step = checkpoints.pointed(path, "LAST")
        if step is None:
            self.run.cut_metrics(0)
            return None
        self._last = step
        document = checkpoints.document(path, step)
        self.tally = Tally(**document["tally"])
        if extended:
            self.tally.stale, self.tally.stopped_early = 0, False
        if cluster.first():
            checkpoints.drop_after(path, step)
            if self.tally.best_step is not None:
                checkpoints.point(path, "BEST", self.tally.best_step)
        self.run.cut_metrics(document["metrics_bytes"])
        return document

    def over(self) -> bool:
        """Whether nothing is left to do."""
        return self.tally.step >= self.plan.steps or self.tally.stopped_early

    def summary(self, seconds: float) -> dict[str, Any]:
        """The figures of the run."""
        return {
            "steps": self.tally.step,
            "epochs": self.tally.step / self.steps_per_epoch,
            "best": {"step": self.tally.best_step, "loss": self.tally.best},
            "stopped": "patience" if self.tally.stopped_early else "complete",
            "seconds": round(seconds, 3),
            "rows_per_s": self._speed(),
        }

    def _speed(self) -> float | None:
        """Training rows/s after the first epoch of this process, which holds the compilation; of that one where there is no other; None without any."""
        counted = self._speeds[1:] or self._speeds
        return round(sum(rows for rows, _ in counted) / sum(seconds for _, seconds in counted), 1) if counted else None

    def end_of_epoch(
        self,
        epoch: int,
        figures: dict[str, float],
        *,
        rows: int,
        loss: float,
        whole: bool,
        rate: float,
        speed: tuple[float, float],
        began: float,
        saving: bool = True,
        **more: Any,
    ) -> None:
        """A validation has been done: decide whether it is the best, write the line, and save when it is time.

        Args:
            epoch: its number, from 0.
            figures: of the validation.
            rows: training rows of this epoch so far.
            loss: mean training loss of this epoch.
            whole: the epoch is complete.
            rate: learning rate of its last step.
            speed: (rows, seconds) of this process in this epoch.
            began: `time.monotonic()` when the validation began.
            saving: write a checkpoint when it is time; otherwise the caller does.
            more: further keys of the line.
        """
        tally = self.tally
        self._speeds.append(speed)
        found = figures["loss"]
        if not math.isfinite(found):
            self.diverged(tally.step)
        best = tally.best is None or found < tally.best
        line = {
            "event": "epoch",
            "epoch": epoch + 1,
            "step": tally.step,
            "rows": rows,
            "loss": loss,
            "validation": figures,
            "learning_rate": rate,
            "best": best,
            "seconds": round(speed[1], 6),
            "rows_per_s": round(speed[0] / speed[1], 1),
            "validation_seconds": round(time.monotonic() - began, 6),
            **more,
        }
        self.run.metric(line)
        if whole:
            tally.epoch_loss = 0.0
        tally.stale = 0 if best else tally.stale + 1
        if best:
            tally.best, tally.best_step = found, tally.step
        tally.stopped_early = self.plan.patience is not None and tally.stale >= self.plan.patience
        if best:
            self._best = self.snapshot()
        text = ", ".join(f"{name} {value:.5g}" for name, value in figures.items())
        self.run.log(f"epoch {epoch + 1} step {tally.step}: loss {line['loss']:.5g}, validation {text}{' (best)' if best else ''}")
        every = self.plan.checkpoint_every
        if not saving:
            return
        if (every is not None and tally.step % every == 0) or (every is None and cluster.agreed(time.monotonic() - self._saved > BREATH)):
            self.save()

    def snapshot(self) -> Snapshot:
        """The present state on the host. Weights that are not finite are a divergence, and are never saved."""
        weights = self._weights()
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights)):
            self.diverged(self.tally.step)
        state, more, actors = self._state()
        document = {
            "step": self.tally.step,
            "epoch": self.tally.step // self.steps_per_epoch,
            "seed": self.plan.seed,
            "tally": asdict(self.tally),
            "metrics_bytes": self.run.metrics_size(),
            **more,
        }
        return Snapshot(weights, state, document, actors)

    def save(self) -> None:
        """Write the best state if it is not on disk yet, and the present one; move LAST, then BEST; remove what is no longer kept.

        All processes of a run take part in the snapshot; the first one writes it.
        """
        path, step = self.run.path, self.tally.step
        best = self._best if self._best is not None and self._best.document["step"] != step else None
        last = self.snapshot() if self._last != step else None
        self._best, self._last = None, step
        if cluster.first():
            if best is not None:
                checkpoints.save(path, best)
            if last is not None:
                checkpoints.save(path, last)
                checkpoints.point(path, "LAST", step)
            if self.tally.best_step is not None:
                checkpoints.point(path, "BEST", self.tally.best_step)
            checkpoints.prune(path, self.plan.keep)
        self._saved = time.monotonic()

    def leave_if(self, stop: Asked) -> None:
        """Leave when a signal has come; the state has been saved."""
        if stop.received:
            self.progress.close()
            self.run.log(f"{stop.received}: saved at step {self.tally.step}")
            what = f"{stop.received}: saved at step {self.tally.step} of {self.plan.steps}"
            raise Interrupted(what, then=f"hlt-train {self.plan.verb} --resume {self.run.path}")

    def diverged(self, step: int) -> NoReturn:
        """Fail, after a better state that was still waiting to be written has been."""
        where, kept = "", "nothing was saved"
        if self._run is not None:
            path = self._run.path
            if self._best is not None and cluster.first():
                good = int(self._best.document["step"])
                checkpoints.save(path, self._best)
                checkpoints.point(path, "LAST", good)
                checkpoints.point(path, "BEST", good)
            last = checkpoints.pointed(path, "LAST")
            where, kept = str(path), f"the last good checkpoint is step {last}" if last is not None else "there was no checkpoint yet"
            self._run.log(f"diverged at step {step}; {kept}")
        self.progress.close()
        epoch = (step - 1) // self.steps_per_epoch + 1
        raise Hopeless(
            f"the loss is not finite at step {step} (epoch {epoch}); {kept}", where=where, then="a lower --learning-rate; --init-from RUN starts at its BEST"
        )

    def show(self, epoch: int, rate: float, more: str = "") -> None:
        """How far the run is."""
        best = "" if self.tally.best is None else f", best validation loss {self.tally.best:.4g}"
        self.progress.update(self.tally.step, self.plan.steps, f"epoch {epoch + 1}, {rate:,.0f} rows/s{more}{best}")
