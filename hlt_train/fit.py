"""`fit`: train a teacher on a data card; `resume` continues it, `dry_run` tries it.

The order of things: the configuration is checked, the files are opened, counted and split, the inputs are normalised on the training split, the run directory
is written, the training loop runs (`hlt_train.training`). Everything that cannot work is found before the first step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from hlt_train import checkpoints, cluster, devices
from hlt_train.augmentation import augmented
from hlt_train.configuration import check, merge
from hlt_train.data import normalise
from hlt_train.data.card import Card, load_card
from hlt_train.data.dataset import Dataset, open_dataset
from hlt_train.errors import UsageError
from hlt_train.files import check_new
from hlt_train.learning import of_losses
from hlt_train.preparation import Prepared, TrainingConfig, assemble, check_batch, check_names, check_same, describe, row_counts, train
from hlt_train.progress import Progress
from hlt_train.restore import Loaded, ModelSpec, build_model, load_run, parameters
from hlt_train.run import Follower, Run, read_config
from hlt_train.sparse_gradient import LossOfLogits
from hlt_train.training import Trainer
from hlt_train.transports import options as transports
from hlt_train.trial import trial, trial_by_messages
from hlt_train.types import Batch, Inputs
from hlt_train.validation import Losses

__all__ = ["FitConfig", "cross_entropy", "dry_run", "fit", "prepare", "resume"]

TOY, TOY_ROWS, TOY_SEED = "toy_jets", 40_000, 1


class FitConfig(TrainingConfig):
    """Everything that `fit` can be told; the keys of `config.yaml`."""

    verb: Literal["fit"] = "fit"
    init_from: str | None = None


def cross_entropy(model: eqx.Module) -> Losses:
    """Softmax cross-entropy per row, and whether the row is classified correctly; a key switches dropout on."""
    static = eqx.filter(model, eqx.is_inexact_array, inverse=True)

    def rows(logits: jax.Array, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.label)
        return loss, {"accuracy": (jnp.argmax(logits, axis=-1) == batch.label).astype(jnp.float32)}

    return LossOfLogits(lambda params: eqx.combine(params, static), rows)


def fit(config: FitConfig, path: Path, *, progress: Progress) -> dict[str, Any]:
    """Train a new run in `path`. Returns its figures; raises `Interrupted` after saving when a signal comes.

    The transport mpi has its own way in: `processes.py`. Of several processes (`cluster.py`) all must call this; the figures are the first one's.
    """
    devices.prepare(config.devices, inline=config.transport["name"] == "simulate")
    mesh = devices.mesh(config.devices)
    check_new(path, option="--run")
    with cluster.guard(str(path)):
        cluster.together("the run is new")
        return (_fit_toy if config.card is None else _fit)(config, path, mesh, progress)


def _fit(config: FitConfig, path: Path, mesh: Mesh, progress: Progress) -> dict[str, Any]:
    ready = prepare(config, mesh, progress)  # before the directory: what fails here leaves nothing behind
    with ready.dataset, Run.create(path) if cluster.first() else Follower(path) as run:
        if cluster.first():
            describe(ready, mesh, run)
        return train(ready, mesh, run, progress, restore=None)


def _fit_toy(config: FitConfig, path: Path, mesh: Mesh, progress: Progress) -> dict[str, Any]:
    """As `fit`, with the toy file in the run."""
    with Run.create(path) if cluster.first() else Follower(path) as run:
        try:
            ready = prepare(config.model_copy(update={"card": _write_toy(run.path / "data", progress)}), mesh, progress)
            if cluster.first():
                describe(ready, mesh, run)
        except BaseException:
            run.discard()
            raise
        with ready.dataset:
            return train(ready, mesh, run, progress, restore=None)


def resume(path: Path, *, length: str | None = None, inexact: bool = False, devices_now: int | None = None, progress: Progress) -> dict[str, Any]:
    """Continue a run at its LAST checkpoint, to its end or to a later one (`length`). Bit for bit, or refused unless `inexact`.

    `devices_now`: on so many devices; None: as many as before. On others the server of the strategy goes on, and workers begin anew at its parameters.
    """
    with cluster.guard(str(path)), Run.open(path) if cluster.first() else Follower(path) as run:
        stored = read_config(run.path)
        if stored.get("verb") != "fit":
            raise UsageError(f"this run was made by '{stored.get('verb')}'", where=str(run.path), then=f"hlt-train {stored.get('verb')} --resume {path}")
        changed = {**({} if length is None else {"for": length}), **({} if devices_now is None else {"devices": devices_now})}
        config = check(FitConfig, merge(stored, changed), where=str(run.path / "config.yaml"))
        if config.transport["name"] == "mpi":
            raise UsageError("a run by processes is resumed by processes", where=str(run.path), then=f"hlt-train fit --resume {path}")
        old = run.provenance()
        devices.prepare(config.devices, old["environment"]["nproc"], inline=config.transport["name"] == "simulate")
        mesh = devices.mesh(config.devices)
        ready = prepare(config, mesh, progress, inputs=normalise.load(run.path / "normalisation.json"))
        with ready.dataset:
            check_same(ready, mesh, run, inexact=inexact)
            run.write_config(ready.config.stored())
            return train(ready, mesh, run, progress, restore="same" if length is None else "extended")


def dry_run(config: FitConfig, scratch: Path, *, progress: Progress) -> dict[str, Any]:
    """Open the files, compile, run one step; `scratch` is a folder for the toy file when there is no card. Writes no run."""
    devices.prepare(config.devices, inline=config.transport["name"] == "simulate")
    mesh = devices.mesh(config.devices)
    if config.card is None:
        config = config.model_copy(update={"card": _write_toy(scratch, progress)})
    ready = prepare(config, mesh, progress)
    groups = {g.name: list(g.shape) for g in ready.inputs.groups}
    with ready.dataset:
        options = transports.parse(config.transport)
        if isinstance(options, transports.LockstepOptions):
            tried = trial(Trainer(ready.task, ready.plan, ready.strategy, mesh, None, progress, ready.schedule))
        else:
            tried = trial_by_messages(ready, options, mesh)
    return {"inputs": groups, "outputs": list(ready.spec.outputs), "rows": row_counts(ready.dataset), **tried}


def prepare(config: FitConfig, mesh: Mesh, progress: Progress, inputs: Inputs | None = None) -> Prepared:
    """Open the data and build the task; `inputs`: those of a resumed run."""
    check_batch(config, mesh)
    assert config.card is not None
    card = config.card
    parent = None if config.init_from is None or inputs is not None else load_run(Path(config.init_from))
    model = merge({"name": "mlp"} if parent is None else {"name": parent.spec.name, **parent.spec.options}, config.model)
    spec = ModelSpec.of(model, card.labels.classes)
    check_names(config)
    progress("opening the files")
    dataset = open_dataset(card, threads=config.threads)
    try:
        return _learn(config, dataset, spec, parent, inputs, mesh, progress)
    except BaseException:
        dataset.close()
        raise


def _learn(config: FitConfig, dataset: Dataset, spec: ModelSpec, parent: Loaded | None, inputs: Inputs | None, mesh: Mesh, progress: Progress) -> Prepared:
    """Inputs, network and initial parameters of an opened dataset, and all that is built from them."""
    for warning in dataset.warnings:
        progress(f"warning: {warning}")
    if inputs is None:
        inputs = normalise.fit_normalisation(dataset) if parent is None else _inherited(parent.inputs, dataset.card)
    network = build_model(spec, inputs, config.seed)
    params = parameters(network)
    if parent is not None:
        params = checkpoints.to_tree(checkpoints.to_arrays(parameters(parent.model)), params, where=str(parent.path))
    origin = None if parent is None else {"path": str(parent.path.resolve()), "step": parent.step, "which": parent.which}
    losses = cross_entropy(network)
    learning = augmented(config.augment, inputs, of_losses(losses, float(dataset.mean_weight)))
    return assemble(config, dataset, inputs, spec, params, losses, mesh, origin, learning=learning)


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
    if cluster.first():
        write_jets(file, TOY_ROWS, TOY_SEED)
    cluster.together("the toy file is written")
    card = load_card(TOY)
    for sample in card.samples.values():
        sample.files = [str(file)]
    return card
