"""What a student is trained from: the configuration of `distil`, and the teachers, card, normalisation and logits that all students of a command share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import equinox as eqx
import numpy as np
from jax.sharding import Mesh
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from hlt_train.budget import Budget
from hlt_train.calibration import needs_calibration, provisional
from hlt_train.combination import Mean
from hlt_train.configuration import merge
from hlt_train.data import normalise
from hlt_train.data.card import Card
from hlt_train.data.dataset import Dataset, open_dataset
from hlt_train.distillation_loss import LOGITS, MATCHED, Head, Matching, Soft, head_of, student_losses
from hlt_train.errors import UsageError
from hlt_train.hints import HINT, Hints
from hlt_train.latency_table import check_table
from hlt_train.precision.config import Precision
from hlt_train.preparation import TrainingConfig, check_batch, check_names
from hlt_train.progress import Progress
from hlt_train.pruning import Pruning
from hlt_train.rate_objective import RateObjective, rate_rows
from hlt_train.restore import ModelSpec, outline
from hlt_train.scorers import Scorer, discriminant_of
from hlt_train.search_space import Search
from hlt_train.soft_targets import soft_targets
from hlt_train.student import training_only
from hlt_train.teachers import Teacher, joint, open_teacher
from hlt_train.types import Inputs
from hlt_train.validation import Losses
from hlt_train.width_config import Widths

__all__ = ["DistilConfig", "Study", "alone", "check_config", "float_form", "losses_of", "open_study", "precision_of", "spec_of", "undecided", "without"]

DISCRIMINANT = "discriminant"


class DistilConfig(TrainingConfig):
    """Everything that `distil` can be told; the keys of `config.yaml`."""

    verb: Literal["distil"] = "distil"
    teacher: str | list[str]
    teacher_card: Card | list[Card | None] | None = None  # how each teacher reads its own inputs; None: the card of its run
    teacher_weights: list[PositiveFloat] | None = None  # None: all the same
    mean: Mean = "geometric"  # of several teachers
    learning_rate: PositiveFloat = 0.01
    precision: dict[str, Any] | None = Field(default_factory=dict)  # None: a float student
    temperature: PositiveFloat = 2.0
    share: float = Field(0.5, ge=0, le=1, alias="lambda")
    matching: Matching = "soft"
    hints: dict[str, Any] | None = None  # None: none
    objective: dict[str, Any] | None = None  # None: the loss alone
    warmup: float = Field(0.5, ge=0, lt=1)
    pruning: Pruning | None = None  # None: nothing is pruned
    widths: Widths | None = None  # None: the bits of the formats are not learned
    fine_tune: PositiveFloat = 1.0  # factor of the learning rate after the warm-up
    max_unmatched: NonNegativeFloat = 0.01
    allow_offline: bool = False
    seeds: PositiveInt | None = None
    lr_scan: list[PositiveFloat] | None = None
    budget: Budget | None = None
    search: Search | None = None  # None: the one student of `model`

    @field_validator("model")
    @classmethod
    def _student(cls, value: dict[str, Any]) -> dict[str, Any]:
        return merge({"name": "mlp", "widths": [32, 32]}, value) if value.get("name", "mlp") == "mlp" else value

    @model_validator(mode="after")
    def _one_each(self) -> DistilConfig:
        for name, given in (("teacher_card", self.teacher_card), ("teacher_weights", self.teacher_weights)):
            if isinstance(given, list) and len(given) != len(self.teachers):
                raise ValueError(f"{name} has {len(given)} entries for {len(self.teachers)} teachers")
        if not self.teachers:
            raise ValueError("a student needs a teacher")
        return self

    @property
    def teachers(self) -> list[str]:
        """One or more."""
        return [self.teacher] if isinstance(self.teacher, str) else self.teacher

    @property
    def teacher_cards(self) -> list[Card | None]:
        """Of each teacher, None for that of its run."""
        return self.teacher_card if isinstance(self.teacher_card, list) else [self.teacher_card] * len(self.teachers)

    @property
    def weights(self) -> list[float]:
        """Of each teacher."""
        return [1.0] * len(self.teachers) if self.teacher_weights is None else self.teacher_weights

    @field_validator("hints")
    @classmethod
    def _hints(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if value is None else asdict(Hints.from_config(value))

    @field_validator("objective")
    @classmethod
    def _objective(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if value is None else {"name": "rate", **asdict(RateObjective.from_config(value))}

    @field_validator("precision")
    @classmethod
    def _complete(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if value is None else Precision.from_config(value).to_config()


class Study(NamedTuple):
    """What all students of one command share.

    Attributes:
        dataset: of the student's card, open.
        spec: of the student, its formats as they were asked for.
        classes: number of classes.
        head: of the discriminant output, None where the logits suffice.
        extra: columns for the streams: the teachers' logits where a student listens to them, the rate weights of an objective.
        figures: what is to be reported of the teachers and their logits.
    """

    config: DistilConfig
    teachers: tuple[Teacher, ...]
    dataset: Dataset
    inputs: Inputs
    spec: ModelSpec
    classes: int
    head: Head | None
    extra: Mapping[str, Mapping[str, np.ndarray]]
    figures: dict[str, Any]
    mesh: Mesh

    @property
    def teacher(self) -> Scorer:
        """All teachers as one, of rows that each of them can read."""
        return joint(self.teachers, self.config.weights, self.config.mean, self.dataset.card)


def alone(study: Study) -> Study:
    """The same study without anything of the teacher's."""
    config = study.config.model_copy(update={"share": 0.0, "hints": None})
    return study._replace(config=config, extra=without(study.extra, LOGITS, MATCHED, HINT))


def without(extra: Mapping[str, Mapping[str, np.ndarray]], *names: str) -> dict[str, dict[str, np.ndarray]]:
    """The columns of the streams but these."""
    return {split: {name: column for name, column in columns.items() if name not in names} for split, columns in extra.items()}


def check_config(config: DistilConfig, mesh: Mesh) -> None:
    """What can be refused before anything is read."""
    check_batch(config, mesh)
    check_names(config)
    if config.lr_scan is not None and config.seeds is None:
        raise UsageError("--lr-scan compares learning rates of a comparison", then="add --seeds N, or give --learning-rate")
    if (config.hints is not None or config.objective is not None) and config.strategy["name"] != "sync":
        where = "hints" if config.hints is not None else "objective"
        raise UsageError(
            f"what is learnt beside the network is learnt by sync, not by strategy '{config.strategy['name']}'", where=where, then="--set strategy.name=sync"
        )
    _check_budget(config)
    precision = None if config.precision is None else Precision.from_config(config.precision)
    if precision is not None and precision.moves:
        _check_dynamic(config)
    if precision is not None and needs_calibration(precision) and config.warmup == 0:
        raise UsageError(
            "formats with dynamic<W> or auto need a float warm-up",
            where="warmup",
            then="--set warmup=0.5, or formats such as fixed<8,2> and ufixed<8,3>",
        )
    if config.pruning is not None and (config.precision is None or config.warmup == 0 or config.strategy["name"] != "sync"):
        what = "a fixed-point student is pruned, by sync, in its float warm-up"
        raise UsageError(what, where="pruning", then="--set warmup=0.5 --set strategy.name=sync, and formats in place of precision=null")
    if config.widths is not None:
        _check_widths(config, config.widths)
    for section in (config.budget, config.widths):
        if section is not None:
            check_table(section.latency_table, section.isa)


def _check_widths(config: DistilConfig, widths: Widths) -> None:
    """Learned bits need a float network to begin with, steps after them, and the plain optimiser."""
    if config.precision is None:
        raise UsageError("a float student has no bits to learn", where="widths", then="leave out the section widths, or precision=null")
    if not 0 < config.warmup < 1 - widths.share:
        what = f"a float warm-up comes before and training on the grid after: warmup {config.warmup:g} and share {widths.share:g} leave no steps for them"
        raise UsageError(what, where="widths.share", then="--set warmup=0.4 --set widths.share=0.3")
    if config.strategy["name"] != "sync" or config.low_precision is not None:
        what = "in low precision" if config.low_precision is not None else f"by strategy '{config.strategy['name']}'"
        raise UsageError(f"bits are learned by sync in float32, not {what}", where="widths", then="--set strategy.name=sync")
    if Precision.from_config(config.precision).moves:
        raise UsageError("bits are learned of fixed-point formats, not of dynamic ones", where="precision", then="formats such as fixed<8,auto>")


def _check_dynamic(config: DistilConfig) -> None:
    """What is counted travels beside the gradients, to one optimiser, in full."""
    wire = config.transport.get("wire", "float32")
    said = {
        f"strategy '{config.strategy['name']}'": config.strategy["name"] != "sync",
        "low_precision": config.low_precision is not None,
        f"messages in {wire}": wire != "float32",
        "an objective": config.objective is not None,  # it runs the network once more, and what is counted would count twice
    }
    for what, so in said.items():
        if so:
            raise UsageError(f"dynamic formats are trained by sync in float32, not with {what}", where="precision", then="formats such as fixed<8,auto>")


def _check_budget(config: DistilConfig) -> None:
    if config.search is not None and config.budget is None:
        raise UsageError("a search needs a budget to stay within", where="search", then="for instance --budget-network 100ns")
    if config.budget is not None and config.precision is None:
        raise UsageError("a budget is kept by fixed-point students", where="precision", then="leave precision=null out")
    if config.budget is not None and config.seeds is not None:
        raise UsageError(
            "--seeds compares students of one kind, a budget looks for one", where="seeds", then="a search first, then --seeds with the model it found"
        )


def open_study(config: DistilConfig, mesh: Mesh, folder: Path | None, progress: Progress, inputs: Inputs | None = None) -> Study:
    """Teachers, card, normalisation and the teachers' logits, which are kept in `folder`; `inputs`: those of a resumed run."""
    teachers = tuple(open_teacher(Path(path), own) for path, own in zip(config.teachers, config.teacher_cards, strict=True))
    card = teachers[0].card if config.card is None else config.card
    paths = [str(teacher.path) for teacher in teachers]
    config = config.model_copy(update={"card": card, "teacher": paths[0] if isinstance(config.teacher, str) else paths})
    _refuse_offline(card, allowed=config.allow_offline)
    spec, head = spec_of(config, card)
    progress("opening the files")
    dataset = open_dataset(card, threads=config.threads)
    try:
        for warning in dataset.warnings:
            progress(f"warning: {warning}")
        if inputs is None:
            inputs = normalise.fit_normalisation(dataset)
        _try_formats(spec, inputs, compared=config.seeds is not None)
        figures: dict[str, Any] = teachers[0].about if len(teachers) == 1 else {"mean": config.mean, "teachers": [teacher.about for teacher in teachers]}
        extra: Mapping[str, Mapping[str, np.ndarray]] = {}
        if config.share > 0:
            options: dict[str, Any] = {"weights": config.weights, "how": config.mean, "most_unmatched": config.max_unmatched}
            extra, figures = soft_targets(teachers, dataset, folder, **options, progress=progress)
        if config.objective is not None:
            rates = rate_rows(dataset, config.objective["working_point"])
            extra = {**extra, "train": {**extra.get("train", {}), **rates}}
    except BaseException:
        dataset.close()
        raise
    return Study(config, teachers, dataset, inputs, spec, len(card.labels.classes), head, extra, figures, mesh)


def _try_formats(spec: ModelSpec, inputs: Inputs, *, compared: bool) -> None:
    """Refuse options and formats that the network cannot have, before the first step; those for training only, where students are `compared`."""
    precision = precision_of(spec)
    network = outline(spec if precision is None else spec._replace(precision=provisional(precision).to_config()), inputs)
    if compared and precision is not None and (why := training_only(network, inputs, spec.outputs)) is not None:
        raise UsageError(f"students are compared as the integers they are, and {why}", where="precision", then="formats of fewer bits, or no --seeds")


def _refuse_offline(card: Card, *, allowed: bool) -> None:
    offline = [name for name, group in card.inputs.items() if group.available == "offline"]
    if offline and not allowed:
        then = "a --card with online inputs, or --allow-offline for a study"
        raise UsageError(f"a trigger does not have the offline inputs {', '.join(offline)}", where=f"card '{card.name}', inputs.{offline[0]}", then=then)


def spec_of(config: DistilConfig, card: Card) -> tuple[ModelSpec, Head | None]:
    """Outputs and score: a fixed-point student of one signal and one background class cuts on a difference of logits, otherwise on one more output."""
    classes = tuple(card.labels.classes)
    spec = ModelSpec.of({**config.model, "precision": config.precision}, classes)
    sides = discriminant_of(card)
    if config.precision is None or sides is None:
        return spec, None
    if len(sides.signal) == len(sides.background) == 1:
        return spec._replace(score=tuple(int(c in sides.signal) - int(c in sides.background) for c in classes)), None
    if DISCRIMINANT in classes:
        raise UsageError(f"a class cannot be called '{DISCRIMINANT}': that is the student's extra output", where="labels.classes")
    head = head_of(classes, sides.signal, sides.background)
    return spec._replace(outputs=(*classes, DISCRIMINANT), score=(*(0 for _ in classes), 1)), head


def precision_of(spec: ModelSpec) -> Precision | None:
    """The formats of a network, None for a float one."""
    return None if spec.precision is None else Precision.from_config(spec.precision)


def undecided(spec: ModelSpec) -> bool:
    """Whether some format still says `auto`."""
    precision = precision_of(spec)
    return precision is not None and needs_calibration(precision)


def float_form(spec: ModelSpec) -> ModelSpec:
    """The same network without formats."""
    return spec._replace(precision=None, score=None)


def losses_of(study: Study, network: eqx.Module) -> Losses:
    """The loss of one of its networks."""
    config = study.config
    soft = Soft(config.temperature, config.share, config.matching) if config.share > 0 else None
    return student_losses(network, study.classes, soft, study.head)
