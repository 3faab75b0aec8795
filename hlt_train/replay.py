"""`replay`: a run by messages computed once more from the logs of its actors, in one process and without a clock, and compared bit for bit.

What the run's workers and shards consumed, and in which order, is all that their states depend on; the logs hold just that. The replay builds the same
compiled functions, with the XLA thread pool of the recording, and feeds them from the logs. Every actor's final state must have the recorded hash.

A race on shared parameters (`race.py`) has no order to replay and is refused. `serial` does the batches of any run that has no server one after the other and
tells how far from that the run came out: those of a race in the order in which they were complete; those of peers in turns, each message arriving at once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hlt_train import checkpoints, devices, optimisers, race
from hlt_train.casting import shards_of
from hlt_train.configuration import check
from hlt_train.data import normalise
from hlt_train.errors import RunFailed, UsageError
from hlt_train.files import read_arrays, read_document
from hlt_train.fit import FitConfig, prepare
from hlt_train.fleet import make_program
from hlt_train.preparation import Prepared, check_same
from hlt_train.preparation import options as options_of
from hlt_train.progress import Progress
from hlt_train.run import Run, read_config
from hlt_train.shares import Shares, spread_rows
from hlt_train.task import stays
from hlt_train.transports import options as transports
from hlt_train.transports.actors import Worker
from hlt_train.transports.dealing import Deal, deals
from hlt_train.transports.journal import file_of, read
from hlt_train.transports.mpi import actor_file, load_actor
from hlt_train.transports.program import Program, digest, overlapped
from hlt_train.transports.replay import Replay

__all__ = ["replay"]


def replay(path: Path, *, inexact: bool = False, serial: bool = False, progress: Progress) -> dict[str, Any]:
    """Replay a finished run; `serial`: one batch after the other, with the deviation of the run from that.

    Raises:
        UsageError: the run has no logs to replay, no order, or is not finished; or what the bits depend on is not as it was, and not `inexact`.
        RunFailed: the logs do not fit together, or a state differs.
    """
    with Run.open(path) as run:
        config = check(FitConfig, read_config(run.path), where=str(run.path / "config.yaml"))
        options = transports.parse(config.transport)
        if isinstance(options, transports.LockstepOptions):
            raise UsageError(
                "a lockstep run has no messages to replay: it is deterministic",
                where=str(run.path),
                then=f"hlt-train fit --config {path}/config.yaml --run NEW",
            )
        if not (run.path / "transport.json").is_file():
            raise UsageError("the run is not finished", where=str(run.path), then=f"hlt-train fit --resume {path}")
        recorded = read_document(run.path / "transport.json", "hlt-train/transport", 1)
        if "race" in recorded and not serial:
            raise UsageError(
                "the workers of this run raced on shared parameters: there is no order that could be replayed",
                where=str(run.path),
                then=f"hlt-train replay {path} --serial does its batches one after the other and prints the deviation",
            )
        environment = run.provenance()["environment"]
        own = options.devices if isinstance(options, transports.MpiOptions) else 1  # devices of each worker
        devices.prepare(max(own, config.devices or 1), environment["nproc"])
        mesh = devices.mesh(config.devices)
        ready = prepare(config, mesh, progress, inputs=normalise.load(run.path / "normalisation.json"))
        with ready.dataset:
            check_same(ready, mesh, run, inexact=inexact, note=False)
            shares = Shares(ready.task.train, options.workers, config.batch, resident=stays(ready.task, ready.plan, mesh))
            strategy = overlapped(ready.strategy, overlap=options.overlap)
            servers = shards_of(options) if isinstance(options, transports.MpiOptions) else options.servers
            program, _ = make_program(
                ready.task,
                strategy,
                shares((0, 0)),
                workers=options.workers,
                servers=servers,
                seed=config.seed,
                wire=options.wire,
            )
            shards = 0 if strategy.peers else servers
            steps = ready.plan.steps
            if serial:
                return _serial(run.path, recorded, program, shares, steps)
            workers = {k: read(file_of(run.path, "worker", k)) for k in range(options.workers)}
            _check_length(workers[0], ready, str(run.path))
            again = Replay(
                program,
                spread_rows(shares, own) if own > 1 else shares,
                deals(options.workers, steps, strategy.warm),
                workers,
                [read(file_of(run.path, "shard", k)) for k in range(shards)],
                int(np.iinfo(np.int64).max),  # where portions are handed out the logs say which
            )
            began = time.monotonic()
            try:
                again.run()
            except RunFailed as error:
                raise RunFailed(error.what, where=error.where or str(run.path), then=error.then) from error
    return _compared(again, recorded["digests"], str(run.path), time.monotonic() - began)


def _check_length(log: Sequence[Any], ready: Prepared, where: str) -> None:
    """Refuse a run whose length was changed on the way where its learning rate follows the length: earlier batches had another one.

    Args:
        log: of worker 0.
        ready: the run as it is now.
        where: its directory.
    """
    lengths = {ready.plan.steps}
    for line in (line for line in log if isinstance(line, dict)):
        lengths |= {max(source[2] for source in line["deal"])} if line.get("deal") and "t" not in line and "joins" not in line else set()
        lengths |= {line["length"]} if "length" in line else set()
    config = ready.config
    steps = np.unique(np.linspace(0, max(lengths), 1000).astype(np.int32))
    rates = []
    for length in sorted(lengths):
        rate = optimisers.schedule(config.schedule["name"], config.learning_rate, length, options_of(config.schedule))
        rates.append(np.broadcast_to(np.asarray(rate(steps)), steps.shape))
    if any((rate != rates[0]).any() for rate in rates):
        what = f"the length of this run was changed on the way ({', '.join(map(str, sorted(lengths)))} steps), and with it the learning rate of its schedule"
        raise UsageError(what, where=where, then="replay a run of one length, or one with --schedule constant")


def _serial(path: Path, recorded: Mapping[str, Any], program: Program, data: Any, steps: int) -> dict[str, Any]:
    """The batches one after the other, and the deviation of the run from that."""
    began = time.monotonic()
    step = checkpoints.pointed(path, "LAST")
    logs = {k: read(file_of(path, "worker", k)) for k in range(program.workers)}
    folder = path / "checkpoints" / str(step) / "actors"
    if "race" in recorded:
        found = race.serial(program, data, logs, read_arrays(folder / race.PARAMETERS)["parameters"])
    elif program.strategy.peers:
        workers = [Worker(program, k, Deal([])) for k in range(program.workers) if actor_file(folder, "worker", k).is_file()]
        if not workers:
            raise UsageError("the last states of the workers are not in the run's last checkpoint", where=str(path), then="a run of --transport mpi has them")
        for worker in workers:
            load_actor(folder, "worker", worker.index, worker)
        found = race.in_turns(program, data, steps, program.params([w.state for w in workers], []))
    else:
        raise UsageError("a run with a server is replayed in the order of its server", where=str(path), then=f"hlt-train replay {path}")
    del found["vector"]
    return {"run": str(path), "serial": True, **found, "seconds": time.monotonic() - began}


def _compared(again: Replay, digests: Mapping[str, Any], where: str, seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = {
        "params": digest(again.params(map(int, digests["workers"]))),
        "workers": {str(k): digest(w.state) for k, w in again.workers.items()},
        "shards": [digest(s.state) for s in again.shards],
    }
    differing = [f"worker {k}" for k, value in digests["workers"].items() if found["workers"][k] != value]
    differing += [f"shard {k}" for k, value in enumerate(digests["shards"]) if found["shards"][k] != value]
    differing += ["the parameters"] if found["params"] != digests["params"] else []
    if differing:
        raise RunFailed(f"the replay differs from the recording: {', '.join(differing)}", where=where, then="the logs or the recording have been changed since")
    batches = sum(len(losses) for losses in again.losses.values())
    return {
        "run": where,
        "equal": True,
        "params": found["params"],
        "actors": len(digests["workers"]) + len(digests["shards"]),
        "batches": batches,
        "seconds": seconds,
    }
