"""The parts that models share: the input step, dense layers and pooling, each float or on a fixed-point grid.

A part with formats computes in float32 what the integers compute: weights and biases are quantised where they are used, sums stay exact below 2**24 (above,
the layer runs in int32), and every loss of bits is one `quantise`. Its `grid` says what its outputs can be, so that the next part can bound its sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from hlt_train.errors import UsageError, nearest
from hlt_train.graph import Fixed, input_node
from hlt_train.precision.config import Precision
from hlt_train.precision.exact import EXACT_FLOAT32, EXACT_INT32, affine, affine_int32
from hlt_train.precision.fixed import FixedFormat, bits_of, numbers
from hlt_train.precision.followed import Exponents, exponents_of, followed, follows
from hlt_train.precision.formats import Format, NumberFormat, quantise
from hlt_train.precision.grid import Ints, folded, power
from hlt_train.precision.minifloat import MiniFormat
from hlt_train.types import Features, Group, Inputs

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Dense",
    "Grid",
    "GroupInput",
    "LayerFormats",
    "chain",
    "check_formats",
    "check_options",
    "collections_of",
    "dense",
    "fixed_of",
    "grid_after",
    "input_of",
    "run",
]

Role = Literal["weights", "bias", "out"]
FARTHEST = (-6, 30)  # fraction bits that int32 may take from a sum
Activation = Literal["none", "relu", "tanh", "gelu", "silu"]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "none": lambda x: x,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
}


class Grid(NamedTuple):
    """What the features of a value can be: feature j is n * 2**-f[j] with |n| <= top[j].

    follows: per feature the layer whose dynamic format it has, "" for a format that does not move; f is then the exponent at first.
    """

    f: tuple[int, ...]
    top: tuple[int, ...]
    follows: tuple[str, ...]

    @classmethod
    def of(cls, to: NumberFormat, features: int, name: str = "") -> Grid:
        """`features` features of one format, that of layer `name`."""
        still = (name if follows(to) else "",) * features
        if isinstance(to, MiniFormat):  # its integers may be wider than int64
            return cls((to.f,) * features, (to.hi,) * features, still)
        f, top = (np.broadcast_to(np.asarray(v, np.int64), features).tolist() for v in (to.f, np.maximum(-1 * to.lo, to.hi)))
        return cls(tuple(f), tuple(top), still)

    @classmethod
    def joined(cls, grids: Sequence[Grid | None]) -> Grid | None:
        """Of features side by side; None where none of them has a grid."""
        found = [grid for grid in grids if grid is not None]
        return cls(*(tuple(v for grid in found for v in grid[k]) for k in range(3))) if found else None  # type: ignore[arg-type]


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
        step = power(-1 * self.format.f)
        lo, hi = (jnp.asarray(limits, jnp.float32) * step for limits in (self.lo, self.hi))
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
        return Grid.of(self.format, self.variables)._replace(top=tuple(max(abs(a), abs(b)) for a, b in zip(self.lo, self.hi, strict=True)))


def input_of(group: Group, precision: Precision | None) -> GroupInput:
    """The input step of a group; `auto` becomes the fewest integer bits that hold the card's clip."""
    n = len(group.variables)
    if precision is None:
        return GroupInput(group.name, n, group.length, None, (), ())
    to = precision.fixed(group.name, "inputs")
    if np.ndim(to.width) > 1 or np.ndim(to.integer or 0) > 1 or np.size(to.width) not in (1, n) or np.size(to.integer or 0) not in (1, n):
        raise UsageError(f"'{group.name}' has {n} variables, its format {to} does not fit them", where=f"precision.layers.{group.name}.inputs")
    if to.integer is None:
        limits = np.maximum(np.abs(group.lo), np.abs(group.hi)).astype(np.float64)
        if np.isinf(limits).any():
            raise UsageError(f"the range of '{group.name}' is not known: an input has no clip", then="give clip in the card, or a format without auto")
        to = to.fitted(float(limits.max()) if to.per == "tensor" else limits)
    node = input_node(group.name, group, fixed_of(to))
    return GroupInput(group.name, n, group.length, to, tuple(int(v) for v in node.lo), tuple(int(v) for v in node.hi))


def fixed_of(to: FixedFormat) -> Fixed:
    """The graph's form of a format, without its modes."""
    return Fixed(to.signed, numbers(to.width) - to.f - int(to.signed), to.f)


@dataclass(frozen=True)
class LayerFormats:
    """Formats of one dense layer.

    Attributes:
        weights, bias: formats without `auto`.
        out: of the output, None for a layer that ends in its accumulators (the logits).
        source: what the layer reads.
    """

    weights: Format
    bias: FixedFormat
    out: NumberFormat | None
    source: Grid

    @property
    def source_f(self) -> int:
        """The exponent to which all inputs are aligned."""
        return max(self.source.f)

    @property
    def moving(self) -> tuple[Role, ...]:
        """Those that are dynamic, in the order of the layer's `Exponents`."""
        roles: tuple[Role, ...] = get_args(Role)
        return tuple(role for role in roles if follows(getattr(self, role)))

    @property
    def f(self) -> Ints:
        """Exponent of the accumulators: one, or one per output, that of its finest weight."""
        finest = self.weights.f
        return self.source_f + (finest if isinstance(finest, int) else finest.max(axis=1))

    @property
    def bound(self) -> float:
        """No |accumulator| and no partial sum exceeds this, in units of 2**-f, whatever the weights."""
        inputs = np.ldexp(np.array(self.source.top, np.float64), self.source_f - np.array(self.source.f))
        f = np.atleast_1d(self.f).astype(np.int64)
        up = (f - self.source_f)[:, None] - np.asarray(self.weights.f)
        largest = np.asarray(np.maximum(-1 * self.weights.lo, self.weights.hi), np.float64)
        weights = np.ldexp(largest, np.minimum(up, 1000))
        bias = np.ldexp(np.maximum(-1 * self.bias.lo, self.bias.hi).astype(np.float64), np.maximum(0, f - self.bias.f))
        return float((np.broadcast_to(weights, (len(f), len(inputs))) @ inputs + bias).max())

    @property
    def in_int32(self) -> bool:
        """Whether the layer is computed in int32: float32 is exact below that, and beyond it the best there is."""
        if not EXACT_FLOAT32 <= self.bound < EXACT_INT32:
            return False
        drop = 0 if self.out is None else np.asarray(self.f - self.out.f)
        return bool(np.min(drop) >= FARTHEST[0] and np.max(drop) <= FARTHEST[1])

    @property
    def stochastic(self) -> bool:
        """Whether something is rounded at random while training."""
        return any(to is not None and getattr(to, "round", "") == "stochastic" for to in (self.weights, self.bias, self.out))


class Dense(eqx.Module):
    """A dense layer with its activation, over the last axis; float, or fixed point when it has `formats`, whose dynamic ones have their `exponents`."""

    linear: eqx.nn.Linear
    name: str = eqx.field(static=True)
    activation: Activation = eqx.field(static=True)
    formats: LayerFormats | None = eqx.field(static=True)
    exponents: Exponents | None

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """`[..., inputs]` -> `[..., outputs]`, on the grid of `formats.out`. A key means training: what is rounded at random uses it."""
        if self.formats is not None and self.exponents is None and self.formats.in_int32 and not (key is not None and self.formats.stochastic):
            return self._wide(x)
        return self.quantised(self.accumulate(x, key), key)

    def accumulate(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """The value before the loss of bits: float32, after the activation."""
        w, b = self.parameters(key)
        return ACTIVATIONS[self.activation](affine(x, w, b))

    def quantised(self, value: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """What `accumulate` gave, on the output's grid."""
        return value if self.formats is None or self.formats.out is None else self._brought("out", value, folded(key, 0))

    def parameters(self, key: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Weights `[outputs, inputs]` and bias as the layer uses them."""
        assert self.linear.bias is not None
        weight, bias = jnp.asarray(self.linear.weight), jnp.asarray(self.linear.bias)
        if self.formats is None:
            return weight, bias
        return self._brought("weights", weight, folded(key, 1)), self._brought("bias", bias, folded(key, 2))

    def _brought(self, role: Role, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """`x` in one of the layer's formats."""
        assert self.formats is not None
        to = getattr(self.formats, role)
        if self.exponents is None or not follows(to):
            return quantise(x, to, key)
        return followed(x, self.exponents.values[self.formats.moving.index(role)], key, to)

    def _wide(self, x: jax.Array) -> jax.Array:
        assert self.formats is not None
        w, b = self.parameters()
        return affine_int32(x, w, b, self.formats.source_f, bits_of(self.formats.f), self.activation == "relu", self.formats.out)


def dense(
    name: str, inputs: int, outputs: int, activation: Activation, key: jax.Array, source: Grid | None, precision: Precision | None, *, last: bool = False
) -> Dense:
    """A dense layer; with `precision` its formats are checked against what it reads."""
    linear = eqx.nn.Linear(inputs, outputs, key=key)
    if precision is None or source is None:
        return Dense(linear, name, activation, None, None)
    formats = LayerFormats(precision.format(name, "weights"), precision.fixed(name, "bias"), None if last else precision.activation(name), source)
    _check_shapes(name, formats, inputs, outputs)
    check_formats(name, formats)
    return Dense(linear, name, activation, formats, exponents_of(formats.weights, formats.bias, formats.out))


def _check_shapes(name: str, formats: LayerFormats, inputs: int, outputs: int) -> None:
    """Formats given by lists fit the layer: weights `[outputs, 1]` or `[outputs, inputs]`, bias and activations `[outputs]`."""
    allowed: dict[str, tuple[tuple[int, ...], ...]] = {"weights": ((outputs, 1), (outputs, inputs)), "bias": ((outputs,),), "activations": ((outputs,),)}
    for role, to in zip(allowed, (formats.weights, formats.bias, formats.out), strict=True):
        if isinstance(to, FixedFormat) and to.integer is not None and np.ndim(to.f) and np.shape(to.f) not in allowed[role]:
            shapes = " or ".join(str(list(shape)) for shape in allowed[role])
            raise UsageError(f"the {role} of '{name}' take a list of shape {shapes}, found {list(np.shape(to.f))}", where=f"precision.layers.{name}.{role}")


def grid_after(layer: Dense, width: int) -> Grid | None:
    """What the `width` outputs of a layer can be; None for a float layer."""
    formats = layer.formats
    return None if formats is None or formats.out is None else Grid.of(formats.out, width, layer.name)


def check_formats(name: str, formats: LayerFormats) -> None:
    """Refuse sums that a layer cannot compute exactly."""
    where = f"precision.layers.{name}"
    least = int(np.min(formats.f - formats.bias.f))
    if least < 0:
        raise UsageError(
            f"the bias of '{name}' ({formats.bias}) is finer than its accumulators (2^-{_some(formats.f)}): it would leave their grid",
            where=where,
            then=f"use at most {_some(formats.f)} fraction bits for bias",
        )
    if np.abs(formats.f).max() >= 100:
        raise UsageError(f"the accumulators of '{name}' have steps of 2^-{_some(formats.f)}, beyond float32", where=where, then="use fewer fraction bits")


def _some(f: Ints) -> str:
    """An exponent, or the smallest and largest of several."""
    low, high = int(np.min(f)), int(np.max(f))
    return str(low) if low == high else f"{low}..{high}"


def chain(
    prefix: str, inputs: int, widths: tuple[int, ...], activation: Activation, key: jax.Array, source: Grid | None, precision: Precision | None
) -> tuple[Dense, ...]:
    """Hidden layers `prefix_0`, `prefix_1`, ... of the given widths."""
    layers: list[Dense] = []
    for index, width in enumerate(widths):
        layer = dense(f"{prefix}_{index}", inputs, width, activation, jax.random.fold_in(key, index), source, precision)
        source = grid_after(layer, width)
        inputs = width
        layers.append(layer)
    return tuple(layers)


def run(layers: tuple[Dense, ...], x: jax.Array, *, dropout: float, key: jax.Array | None, tape: dict[str, jax.Array] | None) -> jax.Array:
    """Layers in order. With a key, dropout after each (training); with a tape, the values before each loss of bits are noted by layer name."""
    for index, layer in enumerate(layers):
        if tape is not None:
            tape[layer.name] = layer.accumulate(x)
        own = folded(key, index)
        x = layer(x, own)
        if own is not None and dropout > 0:
            x = eqx.nn.Dropout(dropout)(x, key=own)
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


def collections_of(model: str, inputs: Inputs) -> list[Group]:
    """The groups of constituents; a model that reads them refuses inputs without any."""
    groups = [g for g in inputs.groups if g.length is not None]
    if not groups:
        raise UsageError(
            f"{model} needs a group of constituents (an input with `length`); '{', '.join(g.name for g in inputs.groups)}' are scalars", then="--model mlp"
        )
    return groups
