"""`fit`: train a teacher on a data card; `resume` continues it, `dry_run` tries it.

The order of things: the configuration is checked, the files are opened, counted and split, the inputs are normalised on the training split, the run directory
is written, the training loop runs (`hlt_train.training`). Everything that cannot work is found before the first step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from hlt_train import checkpoints, devices, optimisers, plugins
from hlt_train.configuration import Configuration, check, merge, steps_of
from hlt_train.data import normalise
from hlt_train.data.card import Card, load_card
from hlt_train.data.dataset import Dataset, open_dataset
from hlt_train.data.stream import Stream
from hlt_train.errors import UsageError
from hlt_train.files import check_new, write_text
from hlt_train.progress import Progress
from hlt_train.restore import ModelSpec, build_model, load_run, parameters, write_model
from hlt_train.run import Run, constraints, read_config
from hlt_train.strategies import Strategy
from hlt_train.training import Plan, Task, Trainer
from hlt_train.trial import trial
from hlt_train.types import Batch, Inputs
from hlt_train.validation import Losses

__all__ = ["FitConfig", "cross_entropy", "dry_run", "fit", "resume"]

VALIDATION_ROWS = 4096  # per worker and call
TOY, TOY_ROWS, TOY_SEED = "toy_jets", 40_000, 1


class FitConfig(Configuration):
    """Everything that `fit` can be told; the keys of `config.yaml`. A plugin is a mapping of `name` and its options."""

    verb: Literal["fit"] = "fit"
    card: Card | None = None  # None: the embedded toy jets, written under the run
    model: dict[str, Any] = Field(default_factory=dict)
    optimizer: dict[str, Any] = Field(default_factory=dict)
    schedule: dict[str, Any] = Field(default_factory=dict)
    strategy: dict[str, Any] = Field(default_factory=dict)
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
    init_from: str | None = None

    @field_validator("optimizer", "schedule", "strategy")
    @classmethod
    def _named(cls, value: dict[str, Any], info: Any) -> dict[str, Any]:
        names = {"optimizer": "adam", "schedule": "cosine_decay_schedule", "strategy": "sync"}
        return merge({"name": names[info.field_name]}, value)

    def stored(self) -> dict[str, Any]:
        """As `config.yaml` holds it."""
        return self.model_dump(mode="json", by_alias=True)


class Prepared(NamedTuple):
    """What a training run is made of, before it has a directory."""

    config: FitConfig
    dataset: Dataset
    inputs: Inputs
    spec: ModelSpec
    task: Task
    plan: Plan
    strategy: Strategy
    schedule: optax.Schedule
    parent: dict[str, Any] | None


def cross_entropy(model: eqx.Module) -> Losses:
    """Softmax cross-entropy per row, and whether the row is classified correctly; a key switches dropout on."""
    static = eqx.filter(model, eqx.is_inexact_array, inverse=True)

    def losses(params: Any, batch: Batch, key: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        network: Any = eqx.combine(params, static)
        logits = network(batch.x, key=key)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.label)
        return loss, {"accuracy": (jnp.argmax(logits, axis=-1) == batch.label).astype(jnp.float32)}

    return losses


def fit(config: FitConfig, path: Path, *, progress: Progress) -> dict[str, Any]:
    """Train a new run in `path`. Returns its figures; raises `Interrupted` after saving when a signal comes."""
    devices.prepare(config.devices)
    mesh = devices.mesh(config.devices)
    check_new(path, option="--run")
    if config.card is None:
        return _fit_toy(config, path, mesh, progress)
    ready = _prepare(config, mesh, progress)  # before the directory: what fails here leaves nothing behind
    with Run.create(path) as run:
        _describe(ready, mesh, run)
        return _train(ready, mesh, run, progress, restore=None)


def _fit_toy(config: FitConfig, path: Path, mesh: Mesh, progress: Progress) -> dict[str, Any]:
    """As `fit`, with the toy file in the run."""
    with Run.create(path) as run:
        try:
            ready = _prepare(config.model_copy(update={"card": _write_toy(run.path / "data", progress)}), mesh, progress)
            _describe(ready, mesh, run)
        except BaseException:
            run.discard()
            raise
        return _train(ready, mesh, run, progress, restore=None)


def _describe(ready: Prepared, mesh: Mesh, run: Run) -> None:
    """Everything in the directory that is known before the first step; `config.yaml` last: with it, it is a run."""
    normalise.save(run.path / "normalisation.json", ready.inputs)
    write_model(run.path, ready.spec)
    write_text(run.path / "constraints.txt", constraints())
    run.write_provenance({"environment": devices.environment(mesh), "data": _plain(ready.dataset.report), "parent": ready.parent})
    run.write_config(ready.config.stored())
    for warning in ready.dataset.warnings:
        run.log(f"warning: {warning}")
    run.log(f"fit: {ready.plan.steps} steps of {ready.config.batch} rows on {devices.workers(mesh)} device(s)")


def resume(path: Path, *, length: str | None = None, inexact: bool = False, progress: Progress) -> dict[str, Any]:
    """Continue a run at its LAST checkpoint, to its end or to a later one (`length`). Bit for bit, or refused unless `inexact`."""
    with Run.open(path) as run:
        stored = read_config(run.path)
        if stored.get("verb") != "fit":
            raise UsageError(f"this run was made by '{stored.get('verb')}'", where=str(run.path), then=f"hlt-train {stored.get('verb')} --resume {path}")
        config = check(FitConfig, merge(stored, {} if length is None else {"for": length}), where=str(run.path / "config.yaml"))
        old = run.provenance()
        devices.prepare(config.devices, old["environment"]["nproc"])
        mesh = devices.mesh(config.devices)
        ready = _prepare(config, mesh, progress, inputs=normalise.load(run.path / "normalisation.json"))
        found = devices.differences(old["environment"], devices.environment(mesh))
        if _files(_plain(ready.dataset.report)) != _files(old["data"]):
            found.append("the input files")
        if found:
            if not inexact:
                then = f"hlt-train fit --resume {path} --inexact goes on without that promise"
                raise UsageError(f"not bit for bit: {'; '.join(found)} differ{'s' if len(found) == 1 else ''}", where=str(run.path), then=then)
            run.log(f"resumed --inexact, not bit for bit: {'; '.join(found)}")
        run.write_provenance({})
        run.write_config(ready.config.stored())
        return _train(ready, mesh, run, progress, restore="extended" if length is not None else "same")


def dry_run(config: FitConfig, scratch: Path, *, progress: Progress) -> dict[str, Any]:
    """Open the files, compile, run one step; `scratch` is a folder for the toy file when there is no card. Writes no run."""
    devices.prepare(config.devices)
    mesh = devices.mesh(config.devices)
    if config.card is None:
        config = config.model_copy(update={"card": _write_toy(scratch, progress)})
    ready = _prepare(config, mesh, progress)
    groups = {g.name: list(g.shape) for g in ready.inputs.groups}
    with ready.dataset:
        trainer = Trainer(ready.task, ready.plan, ready.strategy, mesh, None, progress, ready.schedule)
        tried = trial(trainer)
    return {"inputs": groups, "outputs": list(ready.spec.outputs), "rows": _row_counts(ready.dataset), **tried}


def _prepare(config: FitConfig, mesh: Mesh, progress: Progress, inputs: Inputs | None = None) -> Prepared:
    """Open the data and build the task; `inputs`: those of a resumed run."""
    workers = devices.workers(mesh)
    if config.batch % workers:
        near = [str(b) for b in (config.batch - config.batch % workers, config.batch + workers - config.batch % workers) if b > 0]
        raise UsageError(f"--batch {config.batch} cannot be shared equally by --devices {workers}", near=near, then="a batch that is a multiple of the devices")
    assert config.card is not None
    card = config.card
    parent = None if config.init_from is None or inputs is not None else load_run(Path(config.init_from))
    model = merge({"name": "mlp"} if parent is None else {"name": parent.spec.name, **parent.spec.options}, config.model)
    spec = ModelSpec.of(model, card.labels.classes)
    _check_names(config)
    progress("opening the files")
    dataset = open_dataset(card, threads=config.threads)
    for warning in dataset.warnings:
        progress(f"warning: {warning}")
    if inputs is None:
        inputs = normalise.fit_normalisation(dataset) if parent is None else _inherited(parent.inputs, card)
    network = build_model(spec, inputs, config.seed)
    params = parameters(network)
    if parent is not None:
        params = checkpoints.to_tree(checkpoints.to_arrays(parameters(parent.model)), params, where=str(parent.path))
    train = Stream(dataset, "train", inputs, batch=config.batch, workers=workers, seed=config.seed, buffer=config.buffer)
    whole = VALIDATION_ROWS * workers
    validation = Stream(dataset, "validation", inputs, batch=whole, workers=workers, seed=config.seed, shuffle=False)
    steps = steps_of(config.length, rows=train.rows, steps_per_epoch=train.steps_per_epoch)
    schedule = optimisers.schedule(config.schedule["name"], config.learning_rate, steps, _options(config.schedule))
    tx = optimisers.optimiser(config.optimizer["name"], schedule, _options(config.optimizer))
    rule = config.strategy["name"]
    strategy = plugins.factory("strategies", rule)(tx, **plugins.parse_options("strategies", rule, _options(config.strategy)))
    task = Task(params, cross_entropy(network), train, validation, float(dataset.mean_weight), config.batch)
    plan = Plan(
        steps=steps,
        seed=config.seed,
        scan=config.scan,
        resident=config.resident,
        checkpoint_every=config.checkpoint_every,
        keep=config.keep,
        patience=config.patience,
        log_every=config.log_every,
    )
    origin = None if parent is None else {"path": str(parent.path.resolve()), "step": parent.step, "which": parent.which}
    resolved = config.model_copy(update={"model": {"name": spec.name, **spec.options}, "devices": workers})
    return Prepared(resolved, dataset, inputs, spec, task, plan, strategy, schedule, origin)


def _check_names(config: FitConfig) -> None:
    """Refuse unknown optimisers, schedules, strategies, options and lengths before any file is read."""
    schedule = optimisers.schedule(config.schedule["name"], config.learning_rate, 1000, _options(config.schedule))
    optimisers.optimiser(config.optimizer["name"], schedule, _options(config.optimizer))
    plugins.parse_options("strategies", config.strategy["name"], _options(config.strategy))
    steps_of(config.length, rows=1, steps_per_epoch=1)


def _train(ready: Prepared, mesh: Mesh, run: Run, progress: Progress, restore: Literal["same", "extended"] | None) -> dict[str, Any]:
    """Train, then close the data."""
    with ready.dataset:
        trainer = Trainer(ready.task, ready.plan, ready.strategy, mesh, run, progress, ready.schedule)
        return _run(trainer, ready, run, progress, restore)


def _run(trainer: Trainer, ready: Prepared, run: Run, progress: Progress, restore: Literal["same", "extended"] | None) -> dict[str, Any]:
    if restore is not None:
        trainer.restore(extended=restore == "extended")
        run.log(f"resumed at step {trainer.tally.step} of {ready.plan.steps}")
        progress(f"resumed at step {trainer.tally.step} of {ready.plan.steps}")
    summary = trainer.train()
    epochs = [line for line in run.metrics() if line["event"] == "epoch"]
    best = next(line for line in epochs if line["step"] == summary["best"]["step"])
    size = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(ready.task.params))
    figures = {"parameters": size, "rows": _row_counts(ready.dataset), "resident": trainer.resident}
    return {"run": str(run.path), "model": ready.spec.name, **figures, **summary, "validation": best["validation"]}


def _options(plugin: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plugin.items() if key != "name"}


def _inherited(inputs: Inputs, card: Card) -> Inputs:
    """The parent's inputs: its weights mean them. The card must have the same ones."""
    here = {name: (tuple(group.vars), group.length) for name, group in card.inputs.items()}
    there = {g.name: (g.variables, g.length) for g in inputs.groups}
    if here != there:
        raise UsageError(f"--init-from needs the inputs of its run, {there}; the card has {here}")
    if len(card.labels.classes) != len(inputs.classes):
        raise UsageError(f"--init-from needs a card with {len(inputs.classes)} classes; this one has {len(card.labels.classes)}")
    return Inputs(inputs.groups, tuple(card.labels.classes))


def _write_toy(folder: Path, progress: Progress) -> Card:
    """The embedded card of toy jets, and its file written to `folder`."""
    from hlt_train.datasets.jets import write_jets

    progress(f"no card: {TOY_ROWS:,} toy jets, seed {TOY_SEED}, in {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder.resolve() / f"{TOY}.root"
    write_jets(file, TOY_ROWS, TOY_SEED)
    card = load_card(TOY)
    for sample in card.samples.values():
        sample.files = [str(file)]
    return card


def _row_counts(dataset: Dataset) -> dict[str, int]:
    return {split: int(np.sum(counts)) for split, counts in dataset.counts.items()}


def _files(report: dict[str, Any]) -> dict[str, Any]:
    """What makes two readings of a card the same: the files, their UUIDs and entries, the rows of each split."""
    return {name: (sample["files"], sample["rows"]) for name, sample in report["samples"].items()}


def _plain(report: Any) -> Any:
    """As JSON gives it back, so that a stored report can be compared."""
    return json.loads(json.dumps(report, default=str))
