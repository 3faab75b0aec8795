"""Runs by processes on a small problem without ROOT files: what each rank of a test runs (`launch(["tests/processes.py", JOBS], ranks)`).

All that a test can signal or kill is started by `tests/ranks.py`. What a rank has compiled the ranks of later launches find again.

A file holds a list of jobs, done one after the other by the same processes: they start once, and compile a rule once. Then they share out the replays, which
must have the thread pool of the recording. The problem is a regression by a network of two layers, wide enough for XLA to use more than one thread: with
another size of the pool (NPROC) the bits are others.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from hlt_train import devices, plugins
from hlt_train.books import Work
from hlt_train.casting import processes, shards_of
from hlt_train.crew import Ranks
from hlt_train.files import write_text
from hlt_train.progress import Progress
from hlt_train.record import Plan
from hlt_train.run import Run
from hlt_train.strategies import Setup, Strategy
from hlt_train.transports.dealing import deals
from hlt_train.transports.journal import file_of, read
from hlt_train.transports.mpi import capacity
from hlt_train.transports.options import MpiOptions
from hlt_train.transports.post import Post
from hlt_train.transports.program import Program, digest, overlapped
from hlt_train.transports.protocol import WORDS, Mail
from hlt_train.transports.replay import Replay

ROWS, INPUTS = 256, 64


class Job(NamedTuple):
    """One run."""

    rule: str
    run: str
    options: dict[str, Any] = {}  # noqa: RUF012 - never changed
    workers: int = 2
    servers: int = 1
    steps: int = 40
    per_epoch: int = 20
    rate: float = 0.05
    width: int = 256
    overlap: bool = False
    wire: str = "float32"
    exchange: str = "server"
    seed: int = 3
    pause: float = 0.0  # seconds that a batch takes besides
    uneven: bool = False  # worker k takes k times as long
    late: list[Any] = []  # noqa: RUF012 - [worker, seconds] that it takes to begin
    checkpoint_every: int | None = None
    patience: int | None = None
    with_ft: bool = False
    respawn: int = 0
    watchdog: float = 60.0
    kill: list[Any] = []  # noqa: RUF012 - [rank, batch or serve, signal]
    raises: list[int] = []  # noqa: RUF012 - [worker, batch]
    extended: bool = False
    replay: bool = False  # when all jobs are done, into `replay.json`


def network(width: int) -> tuple[np.ndarray, Any]:
    rng = np.random.default_rng(1)
    params = {
        "a": (rng.normal(size=(INPUTS, width)) / np.sqrt(INPUTS)).astype(np.float32),
        "b": np.zeros(width, np.float32),
        "c": (rng.normal(size=width) / np.sqrt(width)).astype(np.float32),
    }
    vector, unravel = ravel_pytree(params)
    return np.asarray(vector), unravel


def rows(share: tuple[int, int], per_epoch: int, workers: int) -> tuple[np.ndarray, np.ndarray]:
    """The data of a share: the same rows in every epoch."""
    step, owner = share
    if owner < 0:
        step, owner = divmod(step, workers)
    x = np.random.default_rng([step % per_epoch, owner]).normal(size=(ROWS, INPUTS)).astype(np.float32)
    return x, np.sin(x @ np.linspace(-1, 1, INPUTS).astype(np.float32))


def made(job: Job) -> Program:
    """The program of a job; those that differ in nothing else share one."""
    same = ("rule", "options", "workers", "servers", "per_epoch", "rate", "width", "overlap", "wire", "exchange", "seed")
    return _made(json.dumps({name: getattr(job, name) for name in same}))


@functools.cache
def _made(content: str) -> Program:
    return make_program(Job(run="", **json.loads(content)))


def rule_of(job: Job) -> Strategy:
    """The rule of a job, without its program."""
    setup = Setup(job.workers, optax.constant_schedule(job.rate), optax.sgd, portions=job.per_epoch * job.workers)
    return overlapped(plugins.factory("strategies", job.rule)(setup, **plugins.parse_options("strategies", job.rule, job.options)), overlap=job.overlap)


def make_program(job: Job) -> Program:
    vector, unravel = network(job.width)

    def loss(v: Any, batch: Any) -> Any:
        p = unravel(v)
        x, y = batch
        return jnp.mean((jnp.tanh(x @ p["a"] + p["b"]) @ p["c"] - y) ** 2)

    strategy = rule_of(job)
    return Program(
        strategy,
        lambda v, batch, _key: jax.value_and_grad(loss)(v, batch),
        vector,
        rows((0, 0), job.per_epoch, job.workers),
        workers=job.workers,
        shards=1 if strategy.peers else shards_of(options(job)),
        seed=job.seed,
        wire=job.wire,
    )


def make_work(job: Job, rank: int) -> Work:
    program = made(job)
    _, unravel = network(job.width)
    counted = [0]

    def data(share: tuple[int, int]) -> Any:
        counted[0] += 1
        if job.kill and job.kill[0] == rank and counted[0] == job.kill[1]:
            os.kill(os.getpid(), getattr(signal, job.kill[2]))
        if job.raises and job.raises[0] == share[1] and counted[0] == job.raises[1]:
            raise ValueError("this batch is bad")
        if job.late and counted[0] == 1 and share[1] == job.late[0]:
            time.sleep(job.late[1])
        if job.pause:
            time.sleep(job.pause * (1 + share[1] if job.uneven and share[1] >= 0 else 1))
        return rows(share, job.per_epoch, job.workers)

    def validate(vector: np.ndarray) -> dict[str, float]:
        p = unravel(jnp.asarray(vector))
        x, y = rows((10**6, 0), 10**9, 1)
        return {"loss": float(jnp.mean((jnp.tanh(x @ p["a"] + p["b"]) @ p["c"] - y) ** 2))}

    def finish(coverage: Any, step: int) -> dict[str, Any]:
        return {"epochs": [{"classes": coverage.counts(e), **coverage.extras(e)} for e in range(-(-step // job.per_epoch))]}

    batch = ROWS * job.workers
    plan = Plan(steps=job.steps, seed=job.seed, log_every=10, checkpoint_every=job.checkpoint_every, patience=job.patience)
    return Work(
        program,
        data,
        job.steps,
        job.per_epoch,
        lambda a, b: (b - a) * batch,
        batch,
        lambda v: jax.device_get(unravel(v)),
        validate,
        lambda _s: job.rate,
        finish,
        plan,
    )


def options(job: Job) -> MpiOptions:
    names = ("workers", "servers", "wire", "overlap", "exchange", "with_ft", "respawn", "watchdog")
    return MpiOptions(name="mpi", report_every=0.2, **{name: getattr(job, name) for name in names})


def opened(path: Path) -> Run:
    if (path / "config.yaml").exists():
        return Run.open(path)
    path.mkdir(parents=True, exist_ok=True)
    run = Run(path)
    run.write_config({"verb": "test"})
    return run


def ranks_of(job: Job) -> int:
    return processes(options(job), peers=rule_of(job).peers)


def replayed(job: Job) -> dict[str, Any]:
    """The digests of a replay of a job's run, as `transport.json` holds them."""
    import hashlib

    path, program = Path(job.run), made(job)
    shards = 0 if program.strategy.peers else program.shards
    again = Replay(
        program,
        lambda share: rows(share, job.per_epoch, job.workers),
        deals(job.workers, job.steps, program.strategy.warm),
        {k: read(file_of(path, "worker", k)) for k in range(job.workers)},
        [read(file_of(path, "shard", k)) for k in range(shards)],
        job.steps * job.workers,
    )
    again.run()
    living = [int(k) for k in json.loads((path / "transport.json").read_text())["digests"]["workers"]]
    return {
        "params": hashlib.sha256(np.ascontiguousarray(again.params(living)).tobytes()).hexdigest(),
        "workers": {str(k): digest(again.workers[k].state) for k in living},
        "shards": [digest(s.state) for s in again.shards],
    }


def main() -> None:
    devices.prepare(1)  # compiled programs are kept by the size of the thread pool
    jobs = [Job(**content) for content in json.loads(Path(sys.argv[1]).read_text())]
    post = Post(max(capacity(made(job)) for job in jobs), words=WORDS)
    mail = Mail(post)
    for number, job in enumerate(jobs):
        work = make_work(job, post.rank)
        path = Path(job.run)
        respawn = [sys.argv[0], *sys.argv[1:]]
        ranks = Ranks(mail, work, options(job), path, lambda p=path: opened(p), Progress(quiet=True), respawn, first=1000 * number)
        try:
            result = ranks.train(extended=job.extended)
        except BaseException:
            ranks.leave(failed=True)
            raise
        if result is not None and ranks.run is not None:
            ranks.run.__exit__(None, None, None)
    for number, job in enumerate(jobs):
        if job.replay and post.alive[number % len(post.alive)] == post.rank:
            write_text(Path(job.run) / "replay.json", json.dumps(replayed(job)))
    post.close(300.0)


if __name__ == "__main__":
    main()
