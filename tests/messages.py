"""A convex problem for rules that send messages: least squares on vectors of six numbers, under the virtual clock. Compiled programs are shared."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hlt_train import plugins
from hlt_train.strategies import Setup, Strategy
from hlt_train.transports.account import Coverage
from hlt_train.transports.dealing import Share, deals
from hlt_train.transports.journal import Journals, file_of, read
from hlt_train.transports.program import Program, digest
from hlt_train.transports.replay import Replay
from hlt_train.transports.simulate import Failure, Simulation, Timing
from hlt_train.transports.stragglers import factor

TRUTH = np.array([1.0, -2.0, 3.0, 0.5, -1.5, 1.0], np.float32)  # the last one belongs to a column of ones
ROWS = 16  # of a share
PER_EPOCH = 6  # steps
PORTIONS = 2  # per worker, of rules whose server hands them out: an epoch of such a rule has two steps
CALM = Timing(latency=0.0)
# Batches of very different lengths, and messages that are under way as long as a batch takes.
ROUGH = Timing(compute=0.02, factor=factor("lognormal:0.6", 3), latency=0.015)


def gradient(vector: Any, batch: Any, _key: Any) -> Any:
    x, y = batch
    return jax.value_and_grad(lambda v: jnp.mean((x @ v - y) ** 2))(vector)


@functools.cache
def _rows(step: int, owner: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng([step, owner + 1]).normal(size=(ROWS, len(TRUTH))).astype(np.float32)
    x[:, -1] = 1
    return x, x @ TRUTH


def data(workers: int) -> Any:
    """share -> batch."""

    def batch(share: Share) -> tuple[np.ndarray, np.ndarray]:
        step, owner = share
        return _rows(step, owner) if owner >= 0 else _rows(step % (PORTIONS * workers), -1)

    return batch


def strategy(name: str, workers: int, rate: float = 0.05, **options: Any) -> Strategy:
    setup = Setup(workers, optax.constant_schedule(rate), optax.sgd, portions=PORTIONS * workers)
    made: Strategy = plugins.factory("strategies", name)(setup, **options)
    return made


@functools.cache
def _program(name: str, workers: int, shards: int, wire: str, rate: float, options: tuple[tuple[str, Any], ...]) -> Program:
    rule = strategy(name, workers, rate, **dict(options))
    return Program(rule, gradient, np.zeros(len(TRUTH), np.float32), _rows(0, 0), workers=workers, shards=1 if rule.peers else shards, seed=7, wire=wire)


def program(name: str, workers: int = 3, shards: int = 1, *, wire: str = "float32", rate: float = 0.05, overlap: bool = False, **options: Any) -> Program:
    """A program, compiled once for all tests."""
    made = copy.copy(_program(name, workers, shards, wire, rate, tuple(sorted(options.items()))))
    made.wire_errors = []
    if overlap:
        made.strategy = made.strategy._replace(wait=False)
    return made


def simulation(
    made: Program, steps: int = 30, *, timing: Timing = ROUGH, failures: tuple[Failure, ...] = (), run: Path | None = None, spans: Any = None
) -> Simulation:
    per = PORTIONS if made.strategy.batch is not None else PER_EPOCH
    return Simulation(
        made,
        data(made.workers),
        steps=steps,
        coverage=Coverage(per, made.workers),
        timing=timing,
        failures=failures,
        journals=Journals(run),
        spans=spans,
    )


def finish(simulated: Simulation) -> Simulation:
    """To the end."""
    try:
        simulated.advance(simulated.steps * simulated.program.workers)
        simulated.drain()
    finally:
        simulated.journals.close()
    return simulated


def outcome(simulated: Simulation) -> dict[str, Any]:
    """All that two runs must have in common to be the same."""
    return {
        "workers": [digest(w.state) for w in simulated.workers],
        "shards": [digest(s.state) for s in simulated.shards],
        "params": simulated.params().tobytes(),
        "now": simulated.now,
        "done": simulated.done,
        "account": {name: array.tolist() for name, array in simulated.account.arrays().items()},
        "coverage": {epoch: table.tolist() for epoch, table in simulated.coverage.epochs.items()},
        "extras": simulated.coverage.document(),
    }


def counts(simulated: Simulation) -> dict[str, int]:
    """Shares by class, over all epochs."""
    total: dict[str, int] = {}
    for epoch in simulated.coverage.epochs:
        for name, count in simulated.coverage.counts(epoch).items():
            total[name] = total.get(name, 0) + count
    return total


def logs(run: Path, made: Program) -> tuple[dict[int, list[Any]], list[list[Any]]]:
    """Those of the workers and of the shards."""
    shards = 0 if made.strategy.peers else made.shards
    return {k: read(file_of(run, "worker", k)) for k in range(made.workers)}, [read(file_of(run, "shard", k)) for k in range(shards)]


def replayed(run: Path, made: Program, steps: int) -> Replay:
    again = Replay(made, data(made.workers), deals(made.workers, steps, made.strategy.warm), *logs(run, made), 2**62)
    again.run()
    return again


def check_replay(simulated: Simulation, run: Path, steps: int) -> None:
    """Every actor that lives ends where the recording ended, to the bit."""
    again = replayed(run, simulated.program, steps)
    living = [w.index for w in simulated.workers if w.index not in simulated.dead]
    assert [digest(again.workers[k].state) for k in living] == [digest(simulated.workers[k].state) for k in living]
    assert [digest(s.state) for s in again.shards] == [digest(s.state) for s in simulated.shards]
    assert again.params(living).tobytes() == simulated.params().tobytes()
