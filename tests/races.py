"""Races and runs by datagrams on small problems without ROOT files: what each rank of a test runs (`launch(["tests/races.py", JOBS], ranks)`).

A file holds a list of jobs, done one after the other by the same processes: {"job": fields of `processes.Job`, "mpi": more options of the transport,
"cells": a sparse problem instead of the dense one, "replay": replay it here, where XLA has as many threads as it had}.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from hlt_train import devices, plugins
from hlt_train.books import Work
from hlt_train.fit import cross_entropy
from hlt_train.models.sparse_linear import sparse_linear
from hlt_train.progress import Progress
from hlt_train.race import RaceRanks
from hlt_train.restore import parameters
from hlt_train.sparse_gradient import sparse_gradient
from hlt_train.strategies import Setup
from hlt_train.task import Task
from hlt_train.transports.mpi import capacity
from hlt_train.transports.options import MpiOptions
from hlt_train.transports.post import Post
from hlt_train.transports.program import Program
from hlt_train.transports.protocol import WORDS, Mail
from hlt_train.types import Batch
from hlt_train.unreliable import DatagramRanks
from tests import processes
from tests.students import cells, normalised, raw_cells

DESCRIBED = cells(("calo", 6), classes=2)
ROWS, BUCKETS = 16, 997
MADE: dict[Any, Program] = {}


@functools.cache
def task() -> Task:
    network = sparse_linear(DESCRIBED, 2, jax.random.key(0), buckets=BUCKETS)
    return Task(parameters(network), cross_entropy(network), None, None, 1.0, ROWS)  # type: ignore[arg-type]


def hits(step: int, owner: int) -> Batch:
    """Signal where the cells of even number hold more than those of odd number."""
    rng = np.random.default_rng([step, owner])
    x = normalised(DESCRIBED, raw_cells(rng, DESCRIBED, ROWS, garbage=0.0))
    cell, value = x.groups["calo"][..., 0].astype(int) % 100, x.groups["calo"][..., 1]
    x.groups["calo"][..., 0] = cell
    score = np.where(np.arange(6) < x.counts["calo"][:, None], np.where(cell % 2, -value, value), 0).sum(axis=1)
    return Batch(x, (score > 0).astype(np.int32), np.ones(ROWS, np.float32), {})


def program_of_cells(job: processes.Job) -> Program:
    gradient = sparse_gradient(task())
    assert gradient is not None
    vector, _ = ravel_pytree(task().params)
    setup = Setup(job.workers, optax.constant_schedule(job.rate), optax.sgd, portions=job.per_epoch * job.workers)
    strategy = plugins.factory("strategies", job.rule)(setup)
    return Program(strategy, gradient, np.asarray(vector), hits(0, 0), workers=job.workers, seed=job.seed)


def program_of(content: dict[str, Any]) -> Program:
    """The program, made and compiled once for all jobs that differ in nothing that is compiled."""
    job = processes.Job(**content["job"])
    key = (job.rule, json.dumps(job.options), job.rate, job.seed, job.workers, bool(content.get("cells")))
    if key not in MADE:
        MADE[key] = program_of_cells(job) if content.get("cells") else processes.make_program(job)
    return MADE[key]


def data_of(content: dict[str, Any]) -> Any:
    job = processes.Job(**content["job"])
    if content.get("cells"):
        return lambda share: hits(share[0] % job.per_epoch, share[1])
    return lambda share: processes.rows(share, job.per_epoch, job.workers)


def work_of(content: dict[str, Any], rank: int) -> Work:
    job = processes.Job(**content["job"])
    program = program_of(content)
    work = processes.make_work(job, rank)._replace(program=program)
    if not content.get("cells"):
        return work
    losses, held_out = task().losses, hits(10**6, 0)
    _, unravel = ravel_pytree(task().params)

    def validate(vector: np.ndarray) -> dict[str, float]:
        return {"loss": float(losses(unravel(jax.numpy.asarray(vector)), held_out, None)[0].mean())}

    return work._replace(data=data_of(content), weights=lambda v: jax.device_get(unravel(v)), validate=validate)


def options_of(content: dict[str, Any]) -> MpiOptions:
    return MpiOptions(**{**processes.options(processes.Job(**content["job"])).model_dump(), **content.get("mpi", {})})


def main() -> None:
    devices.prepare(1)
    jobs = json.loads(Path(sys.argv[1]).read_text())
    post = Post(max(capacity(program_of(content)) for content in jobs), words=WORDS)
    mail = Mail(post)
    for number, content in enumerate(jobs):
        path, options = Path(content["job"]["run"]), options_of(content)
        kind = DatagramRanks if options.datagrams == "udp" else RaceRanks
        work = work_of(content, post.rank)
        ranks = kind(mail, work, options, path, lambda p=path: processes.opened(p), Progress(quiet=True), first=1000 * number)
        result = ranks.train(extended=content["job"].get("extended", False))
        if result is not None and ranks.run is not None:
            ranks.run.log(json.dumps(result))
            ranks.run.__exit__(None, None, None)
        if content.get("replay") and post.rank == 0:
            (path / "replay.json").write_text(json.dumps(processes.replayed(processes.Job(**content["job"]))))
    post.close(60.0)


if __name__ == "__main__":
    main()
