"""What `fit` and `distil` share: the configuration of a training run, its parts made ready, its directory, the loop run to its end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from hlt_train import cluster, devices, following, optimisers, plugins
from hlt_train.augmentation import check_augment
from hlt_train.configuration import Configuration, merge, steps_of
from hlt_train.data import normalise
from hlt_train.data.card import Card
from hlt_train.data.dataset import Dataset
from hlt_train.data.stream import Stream
from hlt_train.errors import HltTrainError, UsageError
from hlt_train.files import read_document, write_text
from hlt_train.fleet import Fleet
from hlt_train.late_normalisation import raw_inputs
from hlt_train.learning import Learning, completed, of_losses
from hlt_train.low_precision import LowPrecision
from hlt_train.precision.config import Precision
from hlt_train.progress import Progress
from hlt_train.race import racing
from hlt_train.record import Plan
from hlt_train.restore import ModelSpec, write_model
from hlt_train.run import Run, constraints
from hlt_train.scoring import write_working_points
from hlt_train.strategies import Setup, Strategy
from hlt_train.task import Task
from hlt_train.training import Trainer
from hlt_train.transports import options as transports
from hlt_train.transports import stragglers
from hlt_train.transports.lockstep import Network
from hlt_train.transports.program import overlapped
from hlt_train.types import Batch, Features, Inputs
from hlt_train.unreliable import by_datagrams
from hlt_train.validation import Losses

__all__ = [
    "Prepared",
    "TrainingConfig",
    "assemble",
    "check_batch",
    "check_names",
    "check_same",
    "check_transport",
    "describe",
    "files",
    "options",
    "plain",
    "row_counts",
    "sum_up",
    "train",
    "worker_count",
]

VALIDATION_ROWS = 4096  # per worker and call


class TrainingConfig(Configuration):
    """What every training run can be told; the keys of `config.yaml`. A plugin is a mapping of `name` and its options."""

    verb: str
    card: Card | None = None  # None: the embedded toy jets, written under the run
    model: dict[str, Any] = Field(default_factory=dict)
    optimizer: dict[str, Any] = Field(default_factory=dict)
    schedule: dict[str, Any] = Field(default_factory=dict)
    strategy: dict[str, Any] = Field(default_factory=dict)
    transport: dict[str, Any] = Field(default_factory=dict)
    learning_rate: PositiveFloat = 0.003
    batch: PositiveInt = 512
    length: str = Field("20epochs", alias="for")
    seed: int = Field(1, ge=0, lt=2**31)
    devices: PositiveInt | None = None
    resident: Literal["auto", "always", "never"] = "auto"
    scan: PositiveInt = 32
    buffer: PositiveInt = 131_072
    checkpoint_every: PositiveInt | None = None
    keep: PositiveInt = 3
    patience: PositiveInt | None = None
    log_every: PositiveInt = 100
    threads: PositiveInt | None = None
    low_precision: dict[str, Any] | None = None  # None: float32
    augment: dict[str, Any] = Field(default_factory=dict)  # transform -> options

    @field_validator("low_precision")
    @classmethod
    def _known(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if value is None else asdict(LowPrecision.from_config(value))

    @field_validator("augment")
    @classmethod
    def _transforms(cls, value: dict[str, Any]) -> dict[str, Any]:
        return check_augment(value)

    @field_validator("optimizer", "schedule", "strategy", "transport")
    @classmethod
    def _named(cls, value: dict[str, Any], info: Any) -> dict[str, Any]:
        names = {"optimizer": "adam", "schedule": "cosine_decay_schedule", "strategy": "sync", "transport": "lockstep"}
        return merge({"name": names[info.field_name]}, value)

    def stored(self) -> dict[str, Any]:
        """As `config.yaml` holds it."""
        return self.model_dump(mode="json", by_alias=True)


class Prepared(NamedTuple):
    """What a training run is made of, before it has a directory."""

    config: TrainingConfig
    dataset: Dataset
    inputs: Inputs
    spec: ModelSpec
    task: Task
    plan: Plan
    strategy: Strategy
    schedule: optax.Schedule
    parent: dict[str, Any] | None


def worker_count(config: TrainingConfig, mesh: Mesh) -> int:
    """N: the devices of lockstep, or the workers of a transport of messages."""
    transport = transports.parse(config.transport)
    return devices.workers(mesh) if isinstance(transport, transports.LockstepOptions) else transport.workers


def check_batch(config: TrainingConfig, mesh: Mesh) -> None:
    """Refuse a batch that the workers cannot share equally."""
    workers = worker_count(config, mesh)
    if config.batch % workers:
        near = [str(b) for b in (config.batch - config.batch % workers, config.batch + workers - config.batch % workers) if b > 0]
        what = "devices" if config.transport["name"] == "lockstep" else "workers"
        raise UsageError(f"--batch {config.batch} cannot be shared equally by --{what} {workers}", near=near, then=f"a batch that is a multiple of the {what}")


def check_names(config: TrainingConfig) -> None:
    """Refuse unknown optimisers, schedules, strategies, options and lengths before any file is read."""
    schedule = optimisers.schedule(config.schedule["name"], config.learning_rate, 1000, options(config.schedule))
    optimisers.optimiser(config.optimizer["name"], schedule, options(config.optimizer))
    plugins.parse_options("strategies", config.strategy["name"], options(config.strategy))
    transport = transports.parse(config.transport).name
    nodes = cluster.parse(None)
    if config.verb != "fit" and (transport != "lockstep" or (nodes is not None and nodes.processes > 1)):
        what = f"transport '{transport}'" if transport != "lockstep" else "HLT_TRAIN_NODES"
        raise UsageError(f"{config.verb} trains on the devices of one process; {what} is for fit", then="leave it out")
    if config.low_precision is not None and (config.strategy["name"] != "sync" or transport != "lockstep"):
        what = f"strategy '{config.strategy['name']}' on transport '{transport}'"
        raise UsageError(f"low precision trains by sync in lockstep, not by {what}", where="low_precision", then="--strategy sync --transport lockstep")
    steps_of(config.length, rows=1, steps_per_epoch=1)


def check_transport(strategy: Strategy, transport: transports.Options, seed: int) -> None:
    """Refuse, before anything is written, what a transport of messages cannot do with a strategy, and straggler models that are none."""
    if isinstance(transport, transports.MessageOptions):
        overlapped(strategy, overlap=transport.overlap)
    if isinstance(transport, transports.MpiOptions):
        racing(strategy, transport)
        by_datagrams(strategy, transport)
    if isinstance(transport, transports.SimulateOptions):
        stragglers.factor(transport.stragglers, seed)


def assemble(
    config: TrainingConfig,
    dataset: Dataset,
    inputs: Inputs,
    spec: ModelSpec,
    params: Any,
    losses: Losses,
    mesh: Mesh,
    parent: dict[str, Any] | None,
    extra: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    learning: Learning | None = None,
    around: Callable[[optax.GradientTransformation], optax.GradientTransformation] | None = None,
) -> Prepared:
    """Streams, schedule, optimiser, strategy and plan.

    Args:
        config: the configuration; the model and the number of devices are filled in.
        dataset: of the card.
        inputs: the normalisation.
        spec: of the network.
        params: initial parameters.
        losses: what is validated, and learnt where there is no `learning`.
        mesh: the devices.
        parent: where the initial parameters come from, for the provenance.
        extra: split -> name -> array aligned by row number, for instance a teacher's logits.
        learning: what is learnt, where that is more.
        around: makes of the network's optimiser another one.
    """
    extra, workers, local = extra or {}, worker_count(config, mesh), devices.workers(mesh)
    rows = inputs if learning is None or not learning.raw else raw_inputs(inputs)
    train = Stream(dataset, "train", rows, batch=config.batch, workers=workers, seed=config.seed, buffer=config.buffer, extra=extra.get("train"))
    whole = VALIDATION_ROWS * local
    validation = Stream(dataset, "validation", inputs, batch=whole, workers=local, seed=config.seed, shuffle=False, extra=extra.get("validation"))
    steps = steps_of(config.length, rows=train.rows, steps_per_epoch=train.steps_per_epoch)
    schedule = optimisers.schedule(config.schedule["name"], config.learning_rate, steps, options(config.schedule))

    low = None if config.low_precision is None else LowPrecision.from_config(config.low_precision)
    mean_weight = float(dataset.mean_weight)

    def own_rule(chosen: optax.GradientTransformation) -> optax.GradientTransformation:
        if following.parts(params):
            chosen = following.optimiser(chosen, Precision.from_config(spec.precision or {}), batch=config.batch)
        return chosen if around is None else around(chosen)

    example = _some(inputs, extra.get("train", {}))
    learnt = completed(learning, low, of_losses(losses, mean_weight), params, example, own=own_rule, batch=config.batch, seed=config.seed)

    def optimiser(rate: optax.Schedule) -> optax.GradientTransformation:
        return learnt.optimiser(optimisers.optimiser(config.optimizer["name"], rate, options(config.optimizer)))

    rule = config.strategy["name"]
    setup = Setup(workers, schedule, optimiser, portions=train.steps_per_epoch * workers)
    strategy = plugins.factory("strategies", rule)(setup, **plugins.parse_options("strategies", rule, options(config.strategy)))
    check_transport(strategy, transports.parse(config.transport), config.seed)
    strategy = learnt.strategy(strategy)
    task = Task(params, losses, train, validation, mean_weight, config.batch, learning=learnt.gradients)
    plan = Plan(
        steps=steps,
        seed=config.seed,
        scan=config.scan,
        resident=config.resident,
        checkpoint_every=config.checkpoint_every,
        keep=config.keep,
        patience=config.patience,
        log_every=config.log_every,
        verb=config.verb,
    )
    transport = transports.parse(config.transport).model_dump(mode="json")
    resolved = config.model_copy(update={"model": {"name": spec.name, **spec.options}, "devices": local, "transport": transport})
    return Prepared(resolved, dataset, inputs, spec, task, plan, strategy, schedule, parent)


def _some(inputs: Inputs, extra: Mapping[str, np.ndarray]) -> Batch:
    """A batch of two rows of zeros, for shapes."""
    groups = {group.name: np.zeros((2, *group.shape), np.float32) for group in inputs.groups}
    counts = {group.name: np.zeros(2, np.int32) for group in inputs.groups if group.length is not None}
    return Batch(Features(groups, counts), np.zeros(2, np.int32), np.zeros(2, np.float32), {k: np.zeros((2, *v.shape[1:]), v.dtype) for k, v in extra.items()})


def describe(ready: Prepared, mesh: Mesh, run: Run, provenance: Mapping[str, Any] | None = None) -> None:
    """Everything in the directory that is known before the first step; `config.yaml` last: with it, it is a run. `provenance`: more of it."""
    normalise.save(run.path / "normalisation.json", ready.inputs)
    write_model(run.path, ready.spec)
    write_text(run.path / "constraints.txt", constraints())
    run.write_provenance({"environment": devices.environment(mesh), "data": plain(ready.dataset.report), "parent": ready.parent, **(provenance or {})})
    run.write_config(ready.config.stored())
    for warning in ready.dataset.warnings:
        run.log(f"warning: {warning}")
    where = f"{worker_count(ready.config, mesh)} worker(s), transport {ready.config.transport['name']}"
    run.log(f"{ready.config.verb}: {ready.plan.steps} steps of {ready.config.batch} rows, {ready.config.strategy['name']} on {where}")


def make_trainer(ready: Prepared, mesh: Mesh, run: Run | None, progress: Progress) -> Trainer | Fleet:
    """The trainer of the configured transport. run: None for a trial that writes nothing."""
    options = transports.parse(ready.config.transport)
    if isinstance(options, transports.SimulateOptions):
        return Fleet(ready.task, ready.plan, ready.strategy, options, ready.dataset, mesh, run, progress, ready.schedule)
    network = Network(**options.model_dump(exclude={"name"})) if isinstance(options, transports.LockstepOptions) else None
    return Trainer(ready.task, ready.plan, ready.strategy, mesh, run, progress, ready.schedule, network)


def train(ready: Prepared, mesh: Mesh, run: Run, progress: Progress, restore: Literal["same", "extended"] | None) -> dict[str, Any]:
    """Train, derive the working points at BEST, and sum up."""
    trainer = make_trainer(ready, mesh, run, progress)
    if restore is not None:
        trainer.restore(extended=restore == "extended")
        run.log(f"resumed at step {trainer.tally.step} of {ready.plan.steps}")
        progress(f"resumed at step {trainer.tally.step} of {ready.plan.steps}")
    summary = trainer.train()
    return sum_up(ready, run, progress, summary, resident=trainer.resident) if cluster.first() else summary


def sum_up(ready: Prepared, run: Run, progress: Progress, summary: dict[str, Any], *, resident: bool) -> dict[str, Any]:
    """The figures of a run that has ended, and the working points at BEST."""
    epochs = [line for line in run.metrics() if line["event"] == "epoch"]
    best = next(line for line in epochs if line["step"] == summary["best"]["step"])
    size = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(following.without_exponents(ready.task.params)))
    figures = {"parameters": size, "rows": row_counts(ready.dataset), "resident": resident}
    points = _working_points(ready, run, progress)
    if (run.path / "transport.json").is_file():
        figures["traffic"] = read_document(run.path / "transport.json", "hlt-train/transport", 1)
        figures["coverage"] = read_document(run.path / "coverage.json", "hlt-train/coverage", 1)
    return {"run": str(run.path), "model": ready.spec.name, **figures, **summary, "validation": best["validation"], "working_points": points}


def _working_points(ready: Prepared, run: Run, progress: Progress) -> list[dict[str, Any]]:
    """The working points of a finished run. What stands in their way (an empty split, a sample without rate) is said; it does not make the run a failure."""
    try:
        content = write_working_points(run.path, ready.dataset, progress=progress)
    except HltTrainError as error:
        run.log(f"no working points: {error.what}")
        progress(f"no working points: {error}")
        return []
    points: list[dict[str, Any]] = [] if content is None else content["points"]
    return points


def check_same(ready: Prepared, mesh: Mesh, run: Run, *, inexact: bool, note: bool = True) -> None:
    """Before a resume or a replay: what the bits depend on is as it was when the run began, or `inexact` says that it need not be. `note`: in the run."""
    old = run.provenance()
    found = devices.differences(old["environment"], devices.environment(mesh))
    if files(plain(ready.dataset.report)) != files(old["data"]):
        found.append("the input files")
    if found and not inexact:
        command = f"{ready.config.verb} --resume" if note else "replay"
        then = f"hlt-train {command} {run.path} --inexact goes on without that promise"
        raise UsageError(f"not bit for bit: {'; '.join(found)} differ{'s' if len(found) == 1 else ''}", where=str(run.path), then=then)
    if note:
        if found:
            run.log(f"resumed --inexact, not bit for bit: {'; '.join(found)}")
        run.write_provenance({})


def options(plugin: dict[str, Any]) -> dict[str, Any]:
    """A plugin's section of the configuration without its name."""
    return {key: value for key, value in plugin.items() if key != "name"}


def row_counts(dataset: Dataset) -> dict[str, int]:
    """Rows of each split."""
    return {split: int(np.sum(counts)) for split, counts in dataset.counts.items()}


def files(report: dict[str, Any]) -> dict[str, Any]:
    """What makes two readings of a card the same: the files, their UUIDs and entries, the rows of each split."""
    return {name: (sample["files"], sample["rows"]) for name, sample in report["samples"].items()}


def plain(report: Any) -> Any:
    """As JSON gives it back, so that a stored report can be compared."""
    return json.loads(json.dumps(report, default=str))
