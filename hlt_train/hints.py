"""Hints: a hidden layer of the student learns to predict a hidden layer of the teacher (Romero et al., "FitNets", arXiv:1412.6550, section 2.2).

The student's layer v is mapped by a regressor r onto the teacher's layer u, and both are trained on |u - r(v)|^2 / 2, here its mean over the units of u, so
that its weight does not depend on how many there are. r is linear, as is all that is needed between dense layers (the paper's is convolutional, and applies
the teacher's nonlinearity). It travels beside the network (`hlt_train.beside`) and is forgotten with the training.

`first` is the paper's schedule: for that share of the steps the hint is all that is learnt, then it is not learnt any more unless `weight` says so. With
`first: 0` the hint is a term of the loss from the first step to the last, with a constant weight.

The layers are those that `trace` of a model names, with one vector per row; by default the middle one of each network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from hlt_train.beside import Companion, counted, reported, trained
from hlt_train.errors import UsageError, nearest, refuse_unknown
from hlt_train.types import Features, Inputs

__all__ = ["HINT", "REGRESSOR", "STEPS", "Hint", "Hints", "hidden_layers", "layer_of"]

HINT = "teacher_hidden"  # name in Batch.extra: float32 [n, units]
REGRESSOR, STEPS = "hint", "hint_steps"  # names of companions


@dataclass(frozen=True)
class Hints:
    """The section `hints` of a configuration.

    Attributes:
        student, teacher: names of layers; None: the middle one.
        weight: of the hint beside the loss of the answers.
        first: share of the steps, at the beginning, that learn the hint alone.
        cached: the teacher's layer is computed once for every training row and kept in memory (its units, 4 bytes each, per row); False: anew in every step,
            as for augmented batches.
    """

    student: str | None = None
    teacher: str | None = None
    weight: float = 1.0
    first: float = 0.0
    cached: bool = True

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Hints:
        """Refuses what does not exist with the nearest that does. With `first` and no `weight` that is 0, the paper's schedule."""
        refuse_unknown("hints", config, [f.name for f in fields(cls)])
        given: dict[str, Any] = {f.name: f.default for f in fields(cls)} | {"weight": 0.0 if config.get("first") else 1.0} | dict(config)
        for key in ("student", "teacher"):
            if given[key] is not None and not isinstance(given[key], str):
                raise UsageError(f"a layer has a name, got {given[key]!r}", where=f"hints.{key}")
        weight, first = given["weight"], given["first"]
        if not isinstance(given["cached"], bool):
            raise UsageError(f"cached is true or false, got {given['cached']!r}", where="hints.cached")
        if not isinstance(weight, int | float) or not isinstance(first, int | float) or weight < 0 or not 0 <= first < 1:
            raise UsageError(f"weight is at least 0 and first a share below 1, got {weight!r} and {first!r}", where="hints")
        if weight == 0 and first == 0:
            raise UsageError("weight 0 and first 0 leave no hint to learn", where="hints", then="--set hints.weight=1 or --set hints.first=0.25, or no hints")
        return cls(given["student"], given["teacher"], float(weight), float(first), given["cached"])


def hidden_layers(model: eqx.Module, inputs: Inputs, whose: str) -> dict[str, int]:
    """Layer -> units, of the layers with one vector per row, in order. whose: for the error where there are none."""
    if not hasattr(model, "trace"):
        raise UsageError(f"the {whose} shows no hidden layers", where="hints", near=("mlp", "deepsets", "conv"), then="no hints with this one")
    groups = {g.name: jax.ShapeDtypeStruct((2, *g.shape), jnp.float32) for g in inputs.groups}
    counts = {g.name: jax.ShapeDtypeStruct((2,), jnp.int32) for g in inputs.groups if g.length is not None}
    # Keys of a mapping come back from a transformation in alphabetical order; the order of the layers is that in which they are traced.
    order: list[str] = []

    def traced(x: Features) -> dict[str, jax.Array]:
        found: dict[str, jax.Array] = model.trace(x)
        order.extend(found)
        return found

    shapes = eqx.filter_eval_shape(traced, Features(groups, counts))
    found = {name: int(shapes[name].shape[1]) for name in order if len(shapes[name].shape) == 2}
    if not found:
        raise UsageError(f"the {whose} has no hidden layer with one vector per row", where="hints", then="a network with hidden layers, or no hints")
    return found


def layer_of(wanted: str | None, layers: Mapping[str, int], whose: str) -> str:
    """The layer of that name, or the middle one."""
    names = tuple(layers)
    if wanted is None:
        return names[len(names) // 2]
    if wanted not in layers:
        what = f"the {whose} has no hidden layer '{wanted}' with one vector per row"
        raise UsageError(what, where=f"hints.{whose}", near=nearest(wanted, names) or names, then=f"one of: {', '.join(names)}")
    return wanted


@dataclass(frozen=True)
class Hint:
    """One student's hint, resolved.

    Attributes:
        layer, units: of the student. hidden: units of the teacher's layer.
        weight: of the hint, after its own steps.
        first: steps that learn nothing else.
    """

    layer: str
    units: int
    hidden: int
    weight: float
    first: int

    def companions(self, key: jax.Array) -> dict[str, Companion]:
        """The regressor, `weight [hidden, units]` and `bias [hidden]`, and the steps done."""
        bound = 1 / np.sqrt(self.units)
        weight = jax.random.uniform(key, (self.hidden, self.units), minval=-bound, maxval=bound)
        return {REGRESSOR: trained({"weight": weight, "bias": jnp.zeros(self.hidden)}), STEPS: counted(0.0)}

    def rows(self, network: Any, others: Mapping[str, Any], x: Features, hidden: jax.Array) -> jax.Array:
        """|u - r(v)|^2 / 2 per row, over the mean of the teacher's units `hidden [n, units]`."""
        guess = network.trace(x)[self.layer] @ others[REGRESSOR]["weight"].T + others[REGRESSOR]["bias"]
        return 0.5 * jnp.mean((hidden - guess) ** 2, axis=-1)

    def joined(self, rows: jax.Array, hint: jax.Array, others: Mapping[str, Any]) -> jax.Array:
        """The loss per row: of the answers (`rows`) and of the hint, as the schedule wants them at this step."""
        both = rows + self.weight * hint
        return jnp.where(others[STEPS] < self.first, hint, both) if self.first else both

    def counts(self, others: Mapping[str, Any]) -> jax.Array:
        """0; counts a step."""
        return reported(others[STEPS], 1.0)
