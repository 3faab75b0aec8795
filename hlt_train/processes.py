"""`fit` by processes: start them, or be one of them.

The command is the same everywhere: alone it starts `mpiexec` on this machine with itself as every rank; under `mpirun` or `srun` of a site it is a rank.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hlt_train import devices
from hlt_train.books import Work
from hlt_train.casting import check_exchange, processes, shards_of
from hlt_train.certificate import certificate, identities
from hlt_train.configuration import check, merge
from hlt_train.crew import Ranks, open_post
from hlt_train.data import normalise
from hlt_train.errors import HltTrainError, Interrupted, RunFailed, UsageError
from hlt_train.files import check_new
from hlt_train.fit import FitConfig, prepare
from hlt_train.fleet import make_program
from hlt_train.preparation import Prepared, check_names, check_same, describe, sum_up
from hlt_train.progress import Progress
from hlt_train.race import RaceRanks, owners_of, racing
from hlt_train.run import Run, read_config
from hlt_train.shares import Shares, spread_rows
from hlt_train.strategies import Setup, Strategy
from hlt_train.task import rows_between, stays
from hlt_train.transports import options as transports
from hlt_train.transports.launch import Ended, launch, launched
from hlt_train.transports.program import overlapped
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


def resume_by_processes(
    path: Path, argv: Sequence[str], *, length: str | None = None, workers: int | None = None, inexact: bool = False, progress: Progress
) -> dict[str, Any] | None:
    """Continue a run at its LAST checkpoint, to its end or to a later one. workers: fewer than it had; they share what was the others'."""
    stored = read_config(path)
    config = check(FitConfig, merge(stored, {} if length is None else {"for": length}), where=str(path / "config.yaml"))
    options = transports.parse(config.transport)
    assert isinstance(options, transports.MpiOptions)
    if workers is not None and not 1 <= workers <= options.workers:
        raise UsageError(f"this run has {options.workers} workers, and cannot go on with {workers}", where=str(path), then="--workers N, not more")
    if launched() is None:
        count = _count(options, _rule(config))
        _launch(config, argv, ranks=count if workers is None else count - options.workers + workers)
        return None
    return _train(config, path, argv, progress, stored=path, inexact=inexact, extended=length is not None)


def _launch(config: FitConfig, argv: Sequence[str], *, ranks: int | None = None) -> None:
    """Check what can be checked here, start the ranks and wait for them. What goes wrong in several of them is said once.

    Raises:
        HltTrainError: the run failed; one that was interrupted has said so itself.
    """
    if config.card is None:
        raise UsageError(
            "a run by processes needs a CARD: the ranks read its files", then="hlt-train toy jets.root; hlt-train fit toy_jets --files jets=jets.root ..."
        )
    options = transports.parse(config.transport)
    assert isinstance(options, transports.MpiOptions)
    _check(config, options)
    ended = launch(argv, ranks or _count(options, _rule(config)), fault_tolerant=options.with_ft, nproc=options.nproc)
    if ended.code == Interrupted.exit_code:
        raise SystemExit(ended.code)
    if ended.code:
        raise _relayed(ended)


def _relayed(ended: Ended) -> HltTrainError:
    """The error of a launch: what its ranks said, each thing once."""
    said: dict[str, list[int]] = {}
    for rank, text in ended.errors.items():
        said.setdefault(text, []).append(rank)
    said = {text: ranks for text, ranks in said.items() if not text.startswith("exit code")}
    said = {text: ranks for text, ranks in said.items() if not any(text != other and text.splitlines()[0] in other for other in said)}
    if not said and not ended.killed and ended.first is None:
        return RunFailed(f"{len(ended.errors)} processes ended with exit code {ended.code} and said nothing", then="what they printed is above")
    if not said:
        first = ended.killed[:1] if ended.first is None else (ended.first,)
        what = f"a process was killed: rank {', '.join(map(str, first))}; without fault tolerance that ends the others"
        return RunFailed(what, then="--with-ft survives that; hlt-train fit --resume RUN continues from the last checkpoint")
    error: HltTrainError = {UsageError.exit_code: UsageError}.get(ended.code, RunFailed)("\n".join(said))
    return error


def _check(config: FitConfig, options: transports.MpiOptions) -> None:
    """Refuse what cannot work before anything is started."""
    check_names(config)
    strategy = _rule(config)
    check_exchange(config.strategy["name"], strategy, options)
    if config.batch % options.workers:
        near = [str(b) for b in (config.batch - config.batch % options.workers, config.batch + options.workers - config.batch % options.workers) if b > 0]
        raise UsageError(f"--batch {config.batch} cannot be shared equally by --workers {options.workers}", near=near, then="a multiple of the workers")
    if config.batch // options.workers % options.devices:
        what = f"a worker's {config.batch // options.workers} rows of --batch {config.batch} cannot be shared equally by its {options.devices} devices"
        raise UsageError(what, then=f"a batch that is a multiple of {options.workers * options.devices}")


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
        wanted = _count(options, work.program.strategy) - (0 if stored is None else options.workers - 1)  # a resumed run may have fewer workers
        if place[1] < wanted:
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
            ranks.leave(failed=sys.exc_info()[0] is not None)


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

    def weights(vector: np.ndarray) -> Any:
        return jax.device_get(unravel(vector))

    return Work(
        program=program,
        data=spread_rows(shares, options.devices) if options.devices > 1 else shares,
        steps=plan.steps,
        steps_per_epoch=task.train.steps_per_epoch,
        rows=partial(rows_between, task),
        batch=task.batch,
        weights=weights,
        validate=lambda vector: validator(devices.replicate(weights(vector), mesh)),
        rate=lambda step: float(rate(step - 1)),
        finish=lambda coverage, step: certificate(coverage, shares, identities(ready.dataset), step, portions=strategy.batch is not None),
        plan=plan,
    )
