"""A dry run's trial: compile, take one step, time a dispatch. Writes nothing."""

from __future__ import annotations

import math
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from hlt_train.casting import shards_of
from hlt_train.devices import cores, workers
from hlt_train.errors import RunFailed
from hlt_train.fleet import make_program
from hlt_train.preparation import Prepared
from hlt_train.shares import Shares
from hlt_train.task import stays
from hlt_train.training import Trainer
from hlt_train.transports.account import Coverage
from hlt_train.transports.options import MpiOptions, SimulateOptions
from hlt_train.transports.program import overlapped
from hlt_train.transports.simulate import Simulation, Timing

__all__ = ["trial", "trial_by_messages"]


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


def trial_by_messages(ready: Prepared, options: SimulateOptions | MpiOptions, mesh: Mesh) -> dict[str, Any]:
    """As `trial`, for workers that send messages: one step of each in this process, with the exchanges that belong to it."""
    began = time.monotonic()
    task, plan, n = ready.task, ready.plan, options.workers
    resident = stays(task, plan, mesh)
    shares = Shares(task.train, n, task.batch, resident=resident)
    servers = shards_of(options) if isinstance(options, MpiOptions) else options.servers
    strategy = overlapped(ready.strategy, overlap=options.overlap)
    program, _ = make_program(task, strategy, shares((0, 0)), workers=n, servers=servers, seed=plan.seed, wire=options.wire)
    simulation = Simulation(program, shares, steps=1, coverage=Coverage(task.train.steps_per_epoch, n), timing=Timing())
    simulation.advance(n)
    simulation.drain()
    first = float(np.mean(simulation.losses))
    if not math.isfinite(first):
        raise RunFailed("the loss is not finite at the first step", then="check inputs, weights and --learning-rate")
    ready_at = time.monotonic()
    batch, state = shares((0, 0)), program.worker(0)
    for t in range(10):
        state, _loss = program.compute(state, batch, 0, t)
    at_once = min(n, cores()) if isinstance(options, MpiOptions) else 1  # workers that compute at the same time on this machine
    seconds = (time.monotonic() - ready_at) / 10 * n / at_once
    return {
        "first_loss": first,
        "parameters": {jax.tree_util.keystr(path): list(np.shape(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(task.params)},
        "workers": n,
        "rows_per_step": task.batch,
        "steps_per_epoch": task.train.steps_per_epoch,
        "steps": plan.steps,
        "steps_per_dispatch": 1,
        "resident": resident,
        "decoded_bytes": task.train.row_bytes * task.train.rows,
        "device_bytes": None,
        "compile_seconds": round(ready_at - began, 2),
        "rows_per_s": round(task.batch / seconds),
        "estimated_seconds": round(seconds * plan.steps, 1),
    }


def _bytes(analysis: Any) -> int | None:
    """Arguments, results and temporaries of the compiled call on one device; None where the backend does not say."""
    if analysis is None:
        return None
    return int(analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes + analysis.temp_size_in_bytes)
