"""The data card: YAML checked by pydantic, in the vocabulary of weaver's cards where the meaning is the same.

A card says which files and trees, what one example is, its identity, inputs, labels, weights, splits, and the trigger's definitions. `docs/physics.md` gives
the meaning of each. Unknown keys are refused with the nearest one; every expression is parsed when the card is loaded (`trigger_card.py` holds the
trigger's section).
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import Field, field_validator, model_validator

from hlt_train.data.document import explain, parse_yaml
from hlt_train.data.trigger_card import Strict, Text, Trigger
from hlt_train.errors import UsageError, nearest

__all__ = ["SPLITS", "Card", "Group", "Labels", "Sample", "Splits", "Variable", "Weights", "load_card"]

SPLITS = ("train", "validation", "test")


class Sample(Strict):
    """One named process: its files (paths or globs) and an optional selection per entry."""

    files: list[str] = Field(default_factory=list)
    selection: Text | None = None

    @field_validator("files", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class Variable(Strict):
    """How one input is normalised: z = clip((x - centre) * scale). `auto`: median and 1 / max(p84 - p50, p50 - p16) over the training split.

    `pad` is the raw value stored for absent constituents; a network never sees it (they become 0 after normalisation and are masked by their count).
    """

    centre: float | Literal["auto"] = "auto"
    scale: float | Literal["auto"] = "auto"
    clip: tuple[float, float] | None = (-5.0, 5.0)
    pad: float = 0.0

    @field_validator("clip")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError(f"clip needs [low, high] with low < high, got {list(value)}")
        return value


class Group(Strict):
    """A group of inputs: scalars (no `length`), or constituents cut or padded to `length`."""

    length: int | None = Field(default=None, ge=1, le=100_000)
    pad_mode: Literal["constant"] = "constant"
    available: Literal["online", "offline"] = "online"
    vars: dict[str, Variable] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"vars": value} if isinstance(value, list) else value

    @field_validator("vars", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        if isinstance(value, list):
            if len(set(map(str, value))) != len(value):
                raise ValueError("a variable is listed twice")
            return {str(name): {} for name in value}
        if isinstance(value, dict):
            return {str(name): {} if options is None else options for name, options in value.items()}
        return value


class Labels(Strict):
    """The classes, and where a row's class comes from: its sample (same name, or a mapping) or an integer expression 0 .. C-1."""

    classes: list[str] = Field(min_length=2)
    by: Literal["sample"] | dict[str, str] | None = None
    expression: Text | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Labels:
        if self.by is not None and self.expression is not None:
            raise ValueError("give either 'by' or 'expression', not both")
        if self.by is None and self.expression is None:
            self.by = "sample"
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class is listed twice")
        return self


class Weights(Strict):
    """The training weight: it enters only the loss and early stopping, never a rate.

    `balance` scales each class so that all have the same sum over the training split. `negative`: keep; abs; drop (weight 0 in the loss); error.
    """

    expression: Text = "1"
    balance: bool = False
    negative: Literal["keep", "abs", "drop", "error"] = "keep"


class Splits(Strict):
    """How entries are dealt to train, validation and test: by a hash of the identity, by an expression each, or by file."""

    by: Literal["hash", "expression", "files"] = "hash"
    fractions: dict[Literal["train", "validation", "test"], float] | None = None
    train: Text | list[str] | None = None
    validation: Text | list[str] | None = None
    test: Text | list[str] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Splits:
        given = {name: value for name in SPLITS if (value := getattr(self, name)) is not None}
        if self.by == "hash":
            if given:
                raise ValueError(f"'by: hash' takes 'fractions', not '{next(iter(given))}'")
            if self.fractions is None:
                self.fractions = {"train": 0.6, "validation": 0.1, "test": 0.3}
            if any(f < 0 for f in self.fractions.values()) or not 0 < sum(self.fractions.values()) <= 1 + 1e-9:
                raise ValueError("fractions must be >= 0 and sum to at most 1")
            return self
        if self.fractions is not None:
            raise ValueError(f"'by: {self.by}' takes an entry per split, not 'fractions'")
        if not given:
            raise ValueError(f"'by: {self.by}' needs at least one of {', '.join(SPLITS)}")
        for name, value in given.items():
            if self.by == "files" and isinstance(value, str):
                setattr(self, name, [value])
            if self.by == "expression" and not isinstance(value, str):
                raise ValueError(f"'by: expression' takes an expression for '{name}', not a list")
        return self


class Card(Strict):
    """A data card. Paths of files are absolute once loaded from a file, so that a stored card means the same files."""

    format: Literal["hlt-train/card"] = "hlt-train/card"
    version: Literal[1] = 1
    name: str = "card"
    description: str = ""
    tree: str | None = None
    example: str = "event"
    identity: list[Text] = Field(default=["run", "luminosityBlock", "event"], min_length=1)
    selection: Text | None = None
    object_selection: Text | None = None
    samples: dict[str, Sample] = Field(min_length=1)
    new_variables: dict[str, Text] = Field(default_factory=dict)
    inputs: dict[str, Group] = Field(min_length=1)
    nan: Literal["refuse"] | float = "refuse"
    labels: Labels
    weights: Weights = Weights()
    splits: Splits = Splits()
    observers: list[str] = Field(default_factory=list)
    trigger: Trigger | None = None

    @property
    def collection(self) -> str | None:
        """The collection whose objects are the examples, or None when an entry is one example."""
        return None if self.example in ("event", "object") else self.example

    @model_validator(mode="after")
    def _together(self) -> Card:
        self._check_labels()
        if self.object_selection is not None and self.collection is None:
            raise ValueError(f"object_selection needs 'example: <Collection>', not 'example: {self.example}'; use 'selection'")
        if self.trigger is not None:
            self.trigger.check(tuple(self.labels.classes), tuple(self.samples), per_object=self.example != "event")
        return self

    def _check_labels(self) -> None:
        if self.labels.by is None:
            return
        mapping = {name: name for name in self.samples} if self.labels.by == "sample" else self.labels.by
        for sample in self.samples:
            if sample not in mapping:
                raise ValueError(f"labels.by gives no class for sample '{sample}'")
        for sample, label in mapping.items():
            if sample not in self.samples:
                raise ValueError(f"labels.by names '{sample}', which is not a sample; samples: {', '.join(self.samples)}")
            if label not in self.labels.classes:
                hint = f"; write 'by: {{{sample}: <class>}}'" if self.labels.by == "sample" else ""
                raise ValueError(f"sample '{sample}' has class '{label}', which is not in labels.classes ({', '.join(self.labels.classes)}){hint}")
        for label in self.labels.classes:
            if label not in mapping.values():
                raise ValueError(f"class '{label}' has no sample")


def load_card(source: str | Path) -> Card:
    """Load a card from a YAML file, or by the name of an embedded one (`toy_jets`, `toy_events`).

    Paths of files are taken relative to the card's folder (to the current folder for an embedded card).

    Raises:
        UsageError: no such card; not YAML; a key or value that the card does not know, with its path, line and nearest key.
    """
    path = Path(source)
    if path.is_file():
        try:
            text = path.read_text()
        except UnicodeDecodeError as error:
            raise UsageError("a card is YAML text; this is not text", where=str(path), then=f"hlt-train inspect {path}") from error
        card = _parse(text, str(path))
        return _absolute(card, path.resolve().parent)
    folder = importlib.resources.files("hlt_train.datasets")
    embedded = sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))
    if str(source) in embedded:
        return _parse((folder / f"{source}.yaml").read_text(), f"{source} (embedded card)")
    beside = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    raise UsageError(f"no card file and no embedded card is called '{source}'", near=nearest(str(source), [*embedded, *beside]) or embedded)


def _parse(text: str, where: str) -> Card:
    content, lines = parse_yaml(text, where)
    if not isinstance(content, dict):
        raise UsageError(f"a card is a mapping of keys, found {type(content).__name__}", where=where)
    try:
        return Card.model_validate(content)
    except pydantic.ValidationError as error:
        raise explain(error, Card, lines, where) from error


def _absolute(card: Card, folder: Path) -> Card:
    def absolute(pattern: str) -> str:
        return pattern if "://" in pattern else str(folder / Path(pattern).expanduser())

    for sample in card.samples.values():
        sample.files = [absolute(pattern) for pattern in sample.files]
    for name in SPLITS:
        value = getattr(card.splits, name)
        if isinstance(value, list):
            setattr(card.splits, name, [absolute(pattern) for pattern in value])
    return card
