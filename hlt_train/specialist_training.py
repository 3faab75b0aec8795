"""One specialist: the generalist's network on a set of confusable classes and a dustbin, begun with the generalist's weights, trained as a run of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jax.sharding import Mesh
from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from hlt_train import checkpoints
from hlt_train.data.dataset import Dataset
from hlt_train.distillation_loss import Soft
from hlt_train.dustbin import DUSTBIN, merged, specialist_losses
from hlt_train.errors import UsageError
from hlt_train.files import write_document
from hlt_train.preparation import Prepared, TrainingConfig, assemble
from hlt_train.progress import Progress
from hlt_train.restore import Loaded, ModelSpec, outline, parameters
from hlt_train.stage import stage
from hlt_train.training import Trainer
from hlt_train.types import Inputs

__all__ = ["Shared", "SpecialistsConfig", "output_axes", "prepare_specialist", "specialist_folder", "train_specialist"]

DONE = "specialist.json"


class SpecialistsConfig(TrainingConfig):
    """Everything that `specialists` can be told; the keys of `config.yaml`. Each specialist's run has it too, with the verb `specialist` and its one set."""

    verb: Literal["specialists", "specialist"] = "specialists"
    generalist: str
    learning_rate: PositiveFloat = 0.001
    length: str = Field("5epochs", alias="for")  # of each specialist
    count: PositiveInt | None = None  # None: as many sets of two classes or more as there are
    size: PositiveInt | None = None
    sets: list[list[str]] | None = None  # in place of those that are found
    top: PositiveInt = 1
    temperature: PositiveFloat = 2.0
    share: float = Field(0.0, ge=0, le=1, alias="lambda")

    @field_validator("model")
    @classmethod
    def _inherited(cls, value: dict[str, Any], info: Any) -> dict[str, Any]:
        if value and info.data.get("verb") == "specialists":
            raise ValueError("specialists have the network of their generalist")
        return value


class Shared(NamedTuple):
    """What all specialists of a command share. sets: as in `sets.json`; mean: the generalist's mean probabilities; extra: its logits, where they are learnt."""

    config: SpecialistsConfig
    generalist: Loaded
    dataset: Dataset
    sets: list[dict[str, Any]]
    mean: np.ndarray
    extra: dict[str, dict[str, np.ndarray]]
    mesh: Mesh


def specialist_folder(ensemble: Path, k: int) -> Path:
    """Where specialist k (from 0) of an ensemble is."""
    return ensemble / "specialists" / str(k + 1)


def prepare_specialist(shared: Shared, k: int) -> Prepared:
    """One specialist before its first step: the generalist's weights, its set's loss."""
    config, generalist, own = shared.config, shared.generalist, shared.sets[k]
    classes = generalist.card.labels.classes
    members = [classes.index(name) for name in own["classes"]]
    spec = generalist.spec._replace(outputs=(*own["classes"], DUSTBIN))
    arrays = checkpoints.to_arrays(parameters(generalist.model))
    start = merged(arrays, output_axes(generalist.spec, generalist.inputs), members, shared.mean, own["share"])
    network = outline(spec, generalist.inputs)
    params = checkpoints.to_tree(start, parameters(network), where=str(generalist.path))
    soft = None if config.share == 0 else Soft(config.temperature, config.share)
    losses = specialist_losses(network, len(classes), members, own["share"], soft)
    mine = config.model_copy(update={"verb": "specialist", "seed": config.seed + k, "sets": [own["classes"]], "count": None, "size": None})
    parent = {"path": str(generalist.path), "step": generalist.step, "which": generalist.which}
    return assemble(mine, shared.dataset, generalist.inputs, spec, params, losses, shared.mesh, parent, shared.extra)


def output_axes(spec: ModelSpec, inputs: Inputs) -> dict[str, int]:
    """Name -> axis of the parameters that grow with the number of outputs: the output layer, whatever the architecture.

    Raises:
        UsageError: a parameter depends on it in another way.
    """
    sizes = [checkpoints.to_arrays(parameters(outline(spec._replace(outputs=(*spec.outputs, *more)), inputs))) for more in ((), ("more",))]
    found: dict[str, int] = {}
    for name, now in sizes[0].items():
        then = sizes[1][name].shape
        axes = [axis for axis, (a, b) in enumerate(zip(now.shape, then, strict=True)) if (a, b) != (a, a)]
        if len(axes) > 1 or any(now.shape[axis] != len(spec.outputs) for axis in axes):
            what = f"'{name}' has shape {now.shape} with {len(spec.outputs)} outputs and {then} with one more: a specialist cannot take it over"
            raise UsageError(what, where=f"model {spec.name}", then="a generalist of another model")
        if axes:
            found[name] = axes[0]
    return found


def train_specialist(shared: Shared, k: int, folder: Path, progress: Progress) -> None:
    """Train one specialist in `folder` to its end, or the rest of it; nothing where it is finished."""
    own = shared.sets[k]
    if (folder / DONE).is_file():
        return
    progress(f"specialist {k + 1} of {len(shared.sets)}: {', '.join(own['classes'])}")
    ready = prepare_specialist(shared, k)
    with stage(ready, folder, shared.mesh) as (mine, again):
        trainer = Trainer(ready.task, ready.plan, ready.strategy, shared.mesh, mine, progress, ready.schedule)
        if again:
            trainer.restore(extended=False)
            progress(f"resumed at step {trainer.tally.step} of {ready.plan.steps}")
        summary = trainer.train()
    content = {**own, "steps": summary["steps"], "best": summary["best"]}
    write_document(folder / DONE, "hlt-train/specialist", 1, content)
