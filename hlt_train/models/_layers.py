"""The parts that models share: the input step, dense layers and pooling, each float or on a fixed-point grid.

A part with formats computes in float32 what the integers compute: weights and biases are quantised where they are used, sums stay exact below 2**24 (above,
the layer runs in int32), and every loss of bits is one `quantise`. Its `grid` says what its outputs can be, so that the next part can bound its sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from hlt_train.errors import UsageError, nearest
from hlt_train.graph import Fixed, input_node
from hlt_train.precision.config import Precision
from hlt_train.precision.exact import EXACT_FLOAT32, EXACT_INT32, affine, affine_int32
from hlt_train.precision.fixed import FixedFormat, quantise
from hlt_train.types import Features, Group

__all__ = ["ACTIVATIONS", "Activation", "Dense", "Grid", "GroupInput", "LayerFormats", "chain", "check_options", "dense", "fixed_of", "input_of", "run"]

Activation = Literal["none", "relu", "tanh", "gelu", "silu"]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "none": lambda x: x,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
}


class Grid(NamedTuple):
    """What the features of a value can be: feature j is n * 2**-f[j] with |n| <= top[j]."""

    f: tuple[int, ...]
    top: tuple[int, ...]

    @classmethod
    def of(cls, to: FixedFormat, features: int) -> Grid:
        """`features` features of one format."""
        return cls((to.f,) * features, (max(-to.lo, to.hi),) * features)


class GroupInput(eqx.Module):
    """The first step of a network for one input group: constituents beyond the count become 0, then (fixed point) the first grid.

    Attributes:
        format: None for a float network.
        lo, hi: per variable, the limits of the integers: the card's clip within the format, rounded inwards.
    """

    name: str = eqx.field(static=True)
    variables: int = eqx.field(static=True)
    length: int | None = eqx.field(static=True)
    format: FixedFormat | None = eqx.field(static=True)
    lo: tuple[int, ...] = eqx.field(static=True)
    hi: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, x: Features) -> jax.Array:
        """Normalised features -> `[n, variables]` or `[n, length, variables]`."""
        values = jnp.asarray(x.groups[self.name])
        if self.length is not None:
            values = jnp.where(self.mask(x)[..., None], values, 0)
        if self.format is None:
            return values
        step = math.ldexp(1.0, -self.format.f)
        lo, hi = (jnp.asarray([n * step for n in limits], jnp.float32) for limits in (self.lo, self.hi))
        inside = jnp.clip(quantise(values, self.format), lo, hi)
        return inside if self.length is None else jnp.where(self.mask(x)[..., None], inside, 0)

    def mask(self, x: Features) -> jax.Array:
        """Bool `[n, length]`: which constituents are real."""
        real: jax.Array = jnp.arange(self.length) < jnp.asarray(x.counts[self.name])[:, None]
        return real

    def count(self, x: Features) -> jax.Array:
        """int32 `[n]`: how many constituents are read."""
        return jnp.clip(jnp.asarray(x.counts[self.name]), 0, self.length)

    @property
    def features(self) -> int:
        """Features of one row, constituents flattened."""
        return self.variables * (1 if self.length is None else self.length)

    @property
    def grid(self) -> Grid | None:
        """Of one constituent (or of the scalars)."""
        if self.format is None:
            return None
        return Grid((self.format.f,) * self.variables, tuple(max(abs(a), abs(b)) for a, b in zip(self.lo, self.hi, strict=True)))


def input_of(group: Group, precision: Precision | None) -> GroupInput:
    """The input step of a group; `auto` becomes the fewest integer bits that hold the card's clip."""
    n = len(group.variables)
    if precision is None:
        return GroupInput(group.name, n, group.length, None, (), ())
    to = precision.format(group.name, "inputs")
    if to.integer is None:
        limits = [abs(float(v)) for v in (*group.lo, *group.hi)]
        if any(v == float("inf") for v in limits):
            raise UsageError(f"the range of '{group.name}' is not known: an input has no clip", then="give clip in the card, or a format without auto")
        to = to.fitted(max(limits))
    node = input_node(group.name, group, fixed_of(to))
    return GroupInput(group.name, n, group.length, to, tuple(int(v) for v in node.lo), tuple(int(v) for v in node.hi))


def fixed_of(to: FixedFormat) -> Fixed:
    """The graph's form of a format, without its modes."""
    return Fixed(to.signed, to.width - to.f - int(to.signed), to.f)


@dataclass(frozen=True)
class LayerFormats:
    """Formats of one dense layer.

    Attributes:
        weights, bias: formats without `auto`.
        out: of the output, None for a layer that ends in its accumulators (the logits).
        source: what the layer reads.
    """

    weights: FixedFormat
    bias: FixedFormat
    out: FixedFormat | None
    source: Grid

    @property
    def source_f(self) -> int:
        """The exponent to which all inputs are aligned."""
        return max(self.source.f)

    @property
    def f(self) -> int:
        """Exponent of the accumulators."""
        return self.source_f + self.weights.f

    @property
    def bound(self) -> int:
        """No |accumulator| and no partial sum exceeds this, in units of 2**-f, whatever the weights."""
        inputs = sum(top << (self.source_f - f) for f, top in zip(self.source.f, self.source.top, strict=True))
        return inputs * max(-self.weights.lo, self.weights.hi) + (max(-self.bias.lo, self.bias.hi) << max(0, self.f - self.bias.f))


class Dense(eqx.Module):
    """A dense layer with its activation, over the last axis; float, or fixed point when it has `formats`."""

    linear: eqx.nn.Linear
    name: str = eqx.field(static=True)
    activation: Activation = eqx.field(static=True)
    formats: LayerFormats | None = eqx.field(static=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., inputs]` -> `[..., outputs]`, on the grid of `formats.out`."""
        return self.quantised(self.accumulate(x)) if self.formats is None or self.formats.bound < EXACT_FLOAT32 else self._wide(x)

    def accumulate(self, x: jax.Array) -> jax.Array:
        """The value before the loss of bits: float32, after the activation."""
        w, b = self.parameters()
        return ACTIVATIONS[self.activation](affine(x, w, b))

    def quantised(self, value: jax.Array) -> jax.Array:
        """What `accumulate` gave, on the output's grid."""
        return value if self.formats is None or self.formats.out is None else quantise(value, self.formats.out)

    def parameters(self) -> tuple[jax.Array, jax.Array]:
        """Weights `[outputs, inputs]` and bias as the layer uses them."""
        assert self.linear.bias is not None
        weight, bias = jnp.asarray(self.linear.weight), jnp.asarray(self.linear.bias)
        return (weight, bias) if self.formats is None else (quantise(weight, self.formats.weights), quantise(bias, self.formats.bias))

    def _wide(self, x: jax.Array) -> jax.Array:
        assert self.formats is not None
        w, b = self.parameters()
        return affine_int32(x, w, b, self.formats.source_f, self.formats.weights.f, self.activation == "relu", self.formats.out)


def dense(
    name: str, inputs: int, outputs: int, activation: Activation, key: jax.Array, source: Grid | None, precision: Precision | None, *, last: bool = False
) -> Dense:
    """A dense layer; with `precision` its formats are checked against what it reads."""
    linear = eqx.nn.Linear(inputs, outputs, key=key)
    if precision is None or source is None:
        return Dense(linear, name, activation, None)
    formats = LayerFormats(precision.format(name, "weights"), precision.format(name, "bias"), None if last else precision.format(name, "activations"), source)
    _check_formats(name, formats)
    return Dense(linear, name, activation, formats)


def _check_formats(name: str, formats: LayerFormats) -> None:
    where = f"precision.layers.{name}"
    if formats.bias.f > formats.f:
        raise UsageError(
            f"the bias of '{name}' ({formats.bias}) is finer than its accumulators (2^-{formats.f}): it would leave their grid",
            where=where,
            then=f"use at most {formats.f} fraction bits for bias",
        )
    if not -100 < formats.f < 100:
        raise UsageError(f"the accumulators of '{name}' have steps of 2^{-formats.f}, beyond float32", where=where, then="use fewer fraction bits")
    if formats.bound >= EXACT_INT32:
        raise UsageError(
            f"the sums of '{name}' can reach {formats.bound}, beyond int32", where=where, then="use fewer bits for weights or activations, or fewer inputs"
        )
    if formats.out is not None and formats.bound >= EXACT_FLOAT32 and not -6 <= formats.f - formats.out.f <= 30:
        raise UsageError(
            f"the outputs of '{name}' ({formats.out}) are too far from its accumulators (steps of 2^-{formats.f}) for int32",
            where=where,
            then="choose fraction bits nearer to those of the sums",
        )


def chain(
    prefix: str, inputs: int, widths: tuple[int, ...], activation: Activation, key: jax.Array, source: Grid | None, precision: Precision | None
) -> tuple[Dense, ...]:
    """Hidden layers `prefix_0`, `prefix_1`, ... of the given widths."""
    layers: list[Dense] = []
    for index, width in enumerate(widths):
        layer = dense(f"{prefix}_{index}", inputs, width, activation, jax.random.fold_in(key, index), source, precision)
        source = None if layer.formats is None or layer.formats.out is None else Grid.of(layer.formats.out, width)
        inputs = width
        layers.append(layer)
    return tuple(layers)


def run(layers: tuple[Dense, ...], x: jax.Array, *, dropout: float, key: jax.Array | None, tape: dict[str, jax.Array] | None) -> jax.Array:
    """Layers in order. With a key, dropout after each (training); with a tape, the values before each loss of bits are noted by layer name."""
    for index, layer in enumerate(layers):
        if tape is not None:
            tape[layer.name] = layer.accumulate(x)
        x = layer(x)
        if key is not None and dropout > 0:
            x = eqx.nn.Dropout(dropout)(x, key=jax.random.fold_in(key, index))
    return x


def check_options(model: str, widths: tuple[int, ...], activation: str, dropout: float, precision: Precision | None) -> None:
    """Refuse what no network can have, and what a fixed-point one cannot."""
    if any(w < 1 for w in widths):
        raise UsageError(f"{model}: a width is at least 1, got {list(widths)}")
    if not 0 <= dropout < 1:
        raise UsageError(f"{model}: dropout is a fraction in [0, 1), got {dropout}")
    if activation not in ACTIVATIONS:
        raise UsageError(f"{model}: no activation is called '{activation}'", near=nearest(activation, ACTIVATIONS) or tuple(ACTIVATIONS))
    if precision is not None and activation != "relu":
        raise UsageError(f"{model}: a fixed-point student uses relu, '{activation}' has no integer form", near=("relu",), then="--set model.activation=relu")
    if precision is not None and dropout > 0:
        raise UsageError(f"{model}: dropout would take a fixed-point student off its grid", then="--set model.dropout=0")
