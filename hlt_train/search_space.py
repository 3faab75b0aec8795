"""What a search over students varies: family, widths, depth, constituents read, formats, and any other option of the configuration.

search:
trials: 16                      # candidates that are trained
families: [mlp, deepsets]       # default: mlp, and deepsets and conv where there are constituents
widths: [4, 8, 16, 32]          # of every layer
depth: [1, 2, 3]                # hidden layers; of deepsets and conv: before the pooling, with one after it
constituents: {jets: [4, 10]}   # how many are read; default: each quarter of the card's length
weights: [4, 6, 8]              # bits, or formats such as ternary<auto>; one choice per layer
activations: [4, 6, 8]
inputs: [8, 10]                 # bits; the integer bits are those of precision.inputs
options: {temperature: [1, 2]}  # any other key of the configuration, and its values
rungs: 3                        # lengths of training: the whole, 1/factor, 1/factor^2, ...
factor: 3                       # one candidate in so many goes on to the next

A proposal is a pure function of the choices: `propose(space, inputs, choose)` asks `choose(name, values)` for each in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

from hlt_train.budget import Budget
from hlt_train.errors import UsageError, nearest
from hlt_train.precision.config import Precision

__all__ = ["FAMILIES", "Choose", "Proposal", "Search", "Space", "propose", "shape_of", "space_of"]

FAMILIES = ("mlp", "deepsets", "conv")
BITS = (3, 4, 5, 6, 8)
Choose = Callable[[str, Sequence[Any]], Any]


class Search(BaseModel):
    """The `search` section of a configuration; None where the card and the budget decide."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    trials: PositiveInt = 16
    families: list[str] | None = None
    widths: list[PositiveInt] = Field([4, 8, 12, 16, 24, 32, 48, 64], min_length=1)
    depth: list[PositiveInt] = Field([1, 2, 3], min_length=1)
    constituents: dict[str, list[PositiveInt]] | None = None
    weights: list[PositiveInt | str] | None = None
    activations: list[PositiveInt | str] | None = None
    inputs: list[PositiveInt] | None = None
    options: dict[str, list[Any]] = Field(default_factory=dict)
    rungs: PositiveInt = 3
    factor: int = Field(3, ge=2)

    @field_validator("families")
    @classmethod
    def _known(cls, value: list[str] | None) -> list[str] | None:
        for name in value or ():
            if name not in FAMILIES:
                raise ValueError(f"no family is called '{name}'; nearest: {', '.join(nearest(name, FAMILIES) or FAMILIES)}")
        return value

    @field_validator("families", "weights", "activations", "inputs", "options")
    @classmethod
    def _some(cls, value: Any) -> Any:
        if value == [] or (isinstance(value, dict) and any(not one for one in value.values())):
            raise ValueError("a list of choices cannot be empty")
        return value


class Space(NamedTuple):
    """The search of one card: nothing is left open.

    Attributes:
        lengths: group of constituents -> numbers read, ascending.
        weights, activations: formats.
        inputs: formats of the inputs.
    """

    families: tuple[str, ...]
    widths: tuple[int, ...]
    depth: tuple[int, ...]
    lengths: dict[str, tuple[int, ...]]
    weights: tuple[str, ...]
    activations: tuple[str, ...]
    inputs: tuple[str, ...]
    options: dict[str, tuple[Any, ...]]


class Proposal(NamedTuple):
    """A student that might be trained. model, precision: sections of the configuration; options: dotted key -> value; lengths: group -> constituents read."""

    model: dict[str, Any]
    precision: dict[str, Any]
    options: dict[str, Any]
    lengths: dict[str, int]

    def __str__(self) -> str:  # as a person would call it
        name, *shapes = self.model.values()
        text = " ".join([name, *("-".join(map(str, shape)) for shape in shapes)])
        read = ", ".join(f"{n} {group}" for group, n in self.lengths.items())
        return text + (f" of {read}" if read else "") + "".join(f", {key} {value}" for key, value in self.options.items())


def space_of(search: Search, groups: Mapping[str, int | None], budget: Budget, precision: Mapping[str, Any]) -> Space:
    """What is varied for a card.

    Args:
        search: as asked.
        groups: input group -> the card's length, None for scalars.
        budget: where logic or bits are limited, formats are varied; a processor's time depends on them too little.
        precision: the configuration's; what it says of inputs gives their integer bits.
    """
    collections = {name: length for name, length in groups.items() if length is not None}
    families = tuple(search.families or (FAMILIES if collections else FAMILIES[:1]))
    if not collections and (alone := [name for name in families if name != "mlp"]):
        raise UsageError(f"the family {alone[0]} reads constituents, and the card has none", where="search.families", near=("mlp",))
    lengths = {name: tuple(sorted({-(-length * k // 4) for k in (1, 2, 3, 4)})) for name, length in collections.items()}
    for name, asked in (search.constituents or {}).items():
        if name not in collections:
            raise UsageError(f"the card has no constituents '{name}'", where="search.constituents", near=nearest(name, collections) or tuple(collections))
        if max(asked) > collections[name]:
            what = f"the card gives {collections[name]} of '{name}', not {max(asked)}"
            raise UsageError(what, where=f"search.constituents.{name}", then="a --card with a greater length")
        lengths[name] = tuple(sorted(set(asked)))
    base = Precision.from_config(precision)
    bits: Sequence[Any] = BITS if budget.logic or budget.bits is not None else ()
    integer = base.fixed("", "inputs").integer
    made = {
        "weights": tuple(_format(b, "fixed<{},auto>") for b in search.weights or bits) or (base.weights,),
        "activations": tuple(_format(b, "ufixed<{},auto>") for b in search.activations or bits) or (base.activations,),
        "inputs": tuple(_format(b, f"fixed<{{}},{integer}>") for b in search.inputs or ()) or (base.inputs,),
    }
    for role, formats in made.items():
        for text in formats:
            Precision.from_config({**precision, role: text})
    options = {key: tuple(values) for key, values in search.options.items()}
    return Space(families, tuple(sorted(set(search.widths))), tuple(sorted(set(search.depth))), lengths, options=options, **made)


def _format(choice: int | str, form: str) -> str:
    return choice if isinstance(choice, str) else form.format(choice)


def shape_of(family: str, widths: Sequence[int], after: Sequence[int]) -> dict[str, Any]:
    """Options of a model: widths of its layers, for constituents those before the pooling; `after` it, where there is one."""
    before, rest = list(widths), list(after)
    shapes: dict[str, dict[str, Any]] = {"mlp": {"widths": before}, "deepsets": {"phi": before, "rho": rest}, "conv": {"filters": before, "rho": rest}}
    return shapes[family]


def propose(space: Space, choose: Choose) -> Proposal:
    """One student; `choose(name, values)` picks one of several values, and is not asked where there is one."""

    def pick(name: str, values: Sequence[Any]) -> Any:
        return values[0] if len(values) == 1 else choose(name, values)

    family = pick("family", space.families)
    lengths = {group: int(pick(f"constituents_{group}", choices)) for group, choices in space.lengths.items()}
    depth = pick(f"{family}_depth", space.depth)
    widths = [pick(f"{family}_width_{k}", space.widths) for k in range(depth)]
    after = [] if family == "mlp" else [pick(f"{family}_rho", space.widths)]
    word = {"deepsets": "phi", "conv": "conv"}.get(family, "")
    hidden = [f"dense_{k}" for k in range(depth)] if family == "mlp" else [f"{g}_{word}_{k}" for g in space.lengths for k in range(depth)] + ["rho_0"]
    layers: dict[str, dict[str, str]] = {}
    for name in [*hidden, "logits"]:
        layers[name] = {"weights": pick(f"weights_{name}", space.weights)}
        if name != "logits":
            layers[name]["activations"] = pick(f"activations_{name}", space.activations)
    precision = {"inputs": pick("inputs", space.inputs), "layers": layers}
    options = {key: pick(key, values) for key, values in space.options.items()}
    return Proposal({"name": family, **shape_of(family, widths, after)}, precision, options, lengths)
