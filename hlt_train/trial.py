"""A dry run's trial: compile, take one step, time a dispatch. Writes nothing."""

from __future__ import annotations

import math
import time
from typing import Any

import jax
import numpy as np

from hlt_train.devices import workers
from hlt_train.errors import RunFailed
from hlt_train.training import Trainer

__all__ = ["trial"]


def trial(trainer: Trainer) -> dict[str, Any]:
    """Run one step, then one whole dispatch, of a trainer that has no run directory; its state is spent afterwards.

    Returns: loss of the first step, bytes on one device, residency, seconds of compilation, rows/s and the estimated seconds of the whole plan.
    """
    began = time.monotonic()
    lockstep, feed, stream = trainer.lockstep, trainer.feed, trainer.task.train
    count = min(lockstep.steps, stream.steps_per_epoch)
    portions = feed.portions(0, 0, [count])
    data = next(portions).data
    portions.close()
    analysis = lockstep.compiled(trainer.carry, feed.resident, data).memory_analysis()
    carry, losses = lockstep.dispatch(trainer.carry, feed.resident, data, 1)
    first = float(np.asarray(losses, np.float64).mean(axis=0)[0])
    if not math.isfinite(first):
        raise RunFailed("the loss is not finite at the first step", then="check inputs, weights and --learning-rate")
    ready = time.monotonic()
    carry, losses = lockstep.dispatch(carry, feed.resident, data, count)
    jax.block_until_ready((carry, losses))
    seconds = (time.monotonic() - ready) / count
    return {
        "first_loss": first,
        "parameters": {jax.tree_util.keystr(path): list(np.shape(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(trainer.task.params)},
        "workers": workers(trainer.mesh),
        "rows_per_step": trainer.task.batch,
        "steps_per_epoch": stream.steps_per_epoch,
        "steps": trainer.plan.steps,
        "steps_per_dispatch": lockstep.steps,
        "resident": trainer.resident,
        "decoded_bytes": stream.row_bytes * stream.rows,
        "device_bytes": _bytes(analysis),
        "compile_seconds": round(ready - began, 2),
        "rows_per_s": round(trainer.task.batch / seconds),
        "estimated_seconds": round(seconds * trainer.plan.steps, 1),
    }


def _bytes(analysis: Any) -> int | None:
    """Arguments, results and temporaries of the compiled call on one device; None where the backend does not say."""
    if analysis is None:
        return None
    return int(analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes + analysis.temp_size_in_bytes)
