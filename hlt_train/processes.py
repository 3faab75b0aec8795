"""`fit` by processes: start them, or be one of them.

The command is the same everywhere: alone it starts `mpiexec` on this machine with itself as every rank; under `mpirun` or `srun` of a site it is a rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hlt_train import devices
from hlt_train.books import Work
from hlt_train.casting import processes, shards_of
from hlt_train.certificate import certificate, identities
from hlt_train.configuration import check, merge
from hlt_train.crew import Ranks, open_post
from hlt_train.data import normalise
from hlt_train.errors import RunFailed, UsageError
from hlt_train.files import check_new
from hlt_train.fit import FitConfig, prepare
from hlt_train.fleet import make_program, overlapped
from hlt_train.preparation import Prepared, check_same, describe, sum_up
from hlt_train.progress import Progress
from hlt_train.race import RaceRanks, owners_of, racing
from hlt_train.run import Run, read_config
from hlt_train.shares import Shares
from hlt_train.strategies import Setup, Strategy
from hlt_train.task import stays
from hlt_train.transports import options as transports
from hlt_train.transports.launch import launch, launched
from hlt_train.transports.protocol import Mail
from hlt_train.unreliable import DatagramRanks, by_datagrams
from hlt_train.validation import Validator

__all__ = ["fit_by_processes", "resume_by_processes"]


def fit_by_processes(config: FitConfig, path: Path, argv: Sequence[str], *, progress: Progress) -> dict[str, Any] | None:
    """Train a new run in `path`. Returns its figures where the clerk is, None on other ranks and in the process that only started them."""
    if launched() is None:
        check_new(path, option="--run")
        _launch(config, argv)
        return None
    return _train(config, path, argv, progress, stored=None, inexact=False, extended=False)


def resume_by_processes(path: Path, argv: Sequence[str], *, length: str | None = None, inexact: bool = False, progress: Progress) -> dict[str, Any] | None:
    """Continue a run at its LAST checkpoint, to its end or to a later one."""
    stored = read_config(path)
    config = check(FitConfig, merge(stored, {} if length is None else {"for": length}), where=str(path / "config.yaml"))
    if launched() is None:
        _launch(config, argv)
        return None
    return _train(config, path, argv, progress, stored=path, inexact=inexact, extended=length is not None)


def _launch(config: FitConfig, argv: Sequence[str]) -> None:
    """Start the ranks and wait for them; their own errors are on stderr already."""
    if config.card is None:
        raise UsageError(
            "a run by processes needs a CARD: the ranks read its files", then="hlt-train toy jets.root; hlt-train fit toy_jets --files jets=jets.root ..."
        )
    options = transports.parse(config.transport)
    assert isinstance(options, transports.MpiOptions)
    ended = launch(argv, _count(options, _rule(config)), fault_tolerant=options.with_ft, nproc=options.nproc)
    if ended.code:
        if ended.killed and not ended.errors:
            raise RunFailed(f"processes were killed: {ended.text}", then="--with-ft survives that; --resume continues from the last checkpoint")
        raise SystemExit(ended.code)


def _count(options: transports.MpiOptions, strategy: Strategy) -> int:
    """How many processes a run has."""
    if racing(strategy, options):
        return processes(options, peers=True) + owners_of(options)
    return processes(options, peers=strategy.peers)


def _rule(config: FitConfig) -> Strategy:
    """The strategy, for its properties."""
    import optax

    from hlt_train import plugins
    from hlt_train.preparation import options as of

    rule = config.strategy["name"]
    options = transports.parse(config.transport)
    assert isinstance(options, transports.MpiOptions)
    setup = Setup(options.workers, optax.constant_schedule(config.learning_rate), optax.sgd)
    made: Strategy = plugins.factory("strategies", rule)(setup, **plugins.parse_options("strategies", rule, of(config.strategy)))
    return made


def _train(
    config: FitConfig, path: Path, argv: Sequence[str], progress: Progress, *, stored: Path | None, inexact: bool, extended: bool
) -> dict[str, Any] | None:
    place = launched()
    assert place is not None
    quiet = Progress(quiet=progress.quiet or place[0] != 0)
    options = transports.parse(config.transport)
    assert isinstance(options, transports.MpiOptions)
    devices.prepare(options.devices)
    mesh = devices.mesh(1)
    known = None if stored is None else normalise.load(stored / "normalisation.json")
    ready = prepare(config, mesh, quiet, inputs=known)
    with ready.dataset:
        work = _work(ready, options, mesh)
        if place[1] < (wanted := _count(options, work.program.strategy)):
            raise UsageError(
                f"this run needs {wanted} processes, there are {place[1]}", then=f"mpirun -n {wanted} hlt-train fit ..., or fewer --workers or --servers"
            )
        post = open_post(work)

        def opened() -> Run:
            if stored is not None or (path / "config.yaml").is_file():
                run = Run.open(path)
                if stored is not None:
                    check_same(ready, mesh, run, inexact=inexact)
                    run.write_config(ready.config.stored())
                return run
            run = Run.create(path)
            describe(ready, mesh, run)
            return run

        rule = work.program.strategy
        kind = RaceRanks if racing(rule, options) else DatagramRanks if by_datagrams(rule, options) else Ranks
        ranks = kind(Mail(post), work, options, path.resolve(), opened, progress, list(argv))
        try:
            summary = ranks.train(extended=extended)
            if summary is None or ranks.run is None:
                return None
            return sum_up(ready, ranks.run, quiet, summary, resident=True)
        finally:
            if ranks.run is not None:
                ranks.run.__exit__(None, None, None)
            quiet.close()
            post.close(60.0)


def _work(ready: Prepared, options: transports.MpiOptions, mesh: Any) -> Work:
    """What is trained, as the ranks need it."""
    task, plan = ready.task, ready.plan
    resident = stays(task, plan, mesh)
    shares = Shares(task.train, options.workers, task.batch, resident=resident)
    strategy = overlapped(ready.strategy, overlap=options.overlap)
    servers = shards_of(options)
    program, unravel = make_program(task, strategy, shares((0, 0)), workers=options.workers, servers=servers, seed=plan.seed, wire=options.wire)
    validator = Validator(task.losses, task.validation, mesh, resident=resident)
    rate = jax.jit(ready.schedule)
    stream = task.train

    def rows(begin: int, end: int) -> int:
        spe = stream.steps_per_epoch
        upto = [step // spe * stream.rows + min(step % spe * task.batch, stream.rows) for step in (begin, end)]
        return upto[1] - upto[0]

    def weights(vector: np.ndarray) -> Any:
        return jax.device_get(unravel(vector))

    return Work(
        program=program,
        data=shares,
        steps=plan.steps,
        steps_per_epoch=stream.steps_per_epoch,
        rows=rows,
        batch=task.batch,
        weights=weights,
        validate=lambda vector: validator(devices.replicate(weights(vector), mesh)),
        rate=lambda step: float(rate(step - 1)),
        finish=lambda coverage, step: certificate(coverage, shares, identities(ready.dataset), step),
        plan=plan,
    )
