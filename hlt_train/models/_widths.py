"""Parts of a network whose number formats are learned, for any model that is made of `_layers` and `_pooling`.

`learning` replaces the parts of a network by forms of them that hold their bits beside their weights, as float leaves; `Learned` is the whole. What a layer
costs depends on the bits of what it reads, and models alone know what reads what: so bits travel through the network in place of its values, once per step,
and each layer notes what arrives (`_noted`). No model has to say twice how it is wired.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from hlt_train import devices
from hlt_train.errors import UsageError
from hlt_train.models._layers import ACTIVATIONS, Dense, Grid, GroupInput, LayerFormats, check_formats, input_of
from hlt_train.models._pooling import Pooling, pooling
from hlt_train.precision.config import Precision
from hlt_train.precision.exact import affine
from hlt_train.precision.fixed import FixedFormat, bits_of, numbers
from hlt_train.precision.grid import Round, power
from hlt_train.precision.learned import quantise_range, quantise_weight, signed_digits, significant_bits, whole
from hlt_train.types import Features, Inputs

__all__ = ["Granularity", "LayerWidths", "Learned", "LearnedDense", "learning"]

Granularity = Literal["tensor", "channel", "element"]
LEAST = -16.0  # fraction or integer bits
ROOM = 2.0  # integer bits of activations above those that they begin with, at most
BIAS_ROOM = 2.0  # of a bias after the bits were learned
BIAS_F = 12  # fraction bits of a bias: no finer, and no finer than the sums that it is added to
SHIFT = 64.0  # what exponents travel with, so that 0 means nothing


class Range(eqx.Module):
    """Bits of activations or of inputs, per feature or for all.

    Attributes:
        f, i: float32 `[features]` or `[1]`: fraction bits, and integer bits without the sign.
        most_f, most_i: int32, their upper limits.
    """

    f: jax.Array
    i: jax.Array
    most_f: jax.Array
    most_i: jax.Array
    signed: bool = eqx.field(static=True)
    mode: Round = eqx.field(static=True)

    @classmethod
    def of(cls, to: FixedFormat, features: int, granularity: Granularity) -> Range:
        """Begins as the format `to`."""
        assert to.integer is not None
        f = np.broadcast_to(np.asarray(to.f, np.float32), features)
        i = np.broadcast_to(np.asarray(numbers(to.integer), np.float32) - float(to.signed), features)
        if granularity == "tensor":
            f, i = f.max(keepdims=True), i.max(keepdims=True)
        assert to.round != "stochastic"
        return cls(jnp.asarray(f), jnp.asarray(i), jnp.asarray(f, jnp.int32), jnp.asarray(i + ROOM, jnp.int32), to.signed, to.round)

    @property
    def whole(self) -> tuple[jax.Array, jax.Array]:
        """(f, i) as whole numbers."""
        return whole(self.f, LEAST, self.most_f.astype(jnp.float32)), whole(self.i, LEAST, self.most_i.astype(jnp.float32))

    @property
    def width(self) -> jax.Array:
        """Bits with the sign, float32; 0 for a feature that is constantly 0."""
        f, i = self.whole
        alive = jax.lax.stop_gradient(f + i > 0)
        return jnp.where(alive, f + i + float(self.signed), 0)

    @property
    def exponents(self) -> jax.Array:
        """Fraction bits as the format will have them: those of a dead feature stay within those of the others."""
        f, i = (jax.lax.stop_gradient(bits) for bits in self.whole)
        return _within(f, f + i > 0)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., features]` on its grid."""
        f, i = self.whole
        return quantise_range(x, f, i, self.signed, self.mode)

    @property
    def top(self) -> jax.Array:
        """Largest magnitude of its integers, float32."""
        width = self.width - float(self.signed)
        return jnp.where(self.width > 0, jnp.exp2(width) - float(not self.signed), 0)

    @property
    def now(self) -> tuple[jax.Array, jax.Array]:
        """(width, exponents): what `format` needs."""
        return self.width, self.exponents

    def format(self, now: tuple[jax.Array, jax.Array], features: int) -> FixedFormat:
        """The format of `now`."""
        width, f = (np.broadcast_to(np.asarray(v, np.int64), features) for v in now)
        return FixedFormat(self.signed, bits_of(width), bits_of(width - f), self.mode, "sat")


def _within(f: jax.Array, alive: jax.Array, axis: int | None = None) -> jax.Array:
    """Exponents in which those of dead features are the smallest of the living (0 without any): no sum gets finer for them."""
    least = jnp.min(jnp.where(alive, f, jnp.inf), axis=axis, keepdims=True)
    return jnp.where(alive, f, jnp.where(jnp.isfinite(least), least, 0))


class LearnedInput(GroupInput):
    """The first grid with learned bits; `clip`: float32 `[2, variables]`, the card's."""

    bits: Range
    clip: tuple[tuple[float, ...], tuple[float, ...]] = eqx.field(static=True)

    def __call__(self, x: Features) -> jax.Array:
        """As `GroupInput`."""
        values = jnp.asarray(x.groups[self.name])
        f, _ = self.bits.whole
        up, down = (jax.lax.stop_gradient(power(k * f)) for k in (1, -1))
        low, high = jnp.asarray(self.clip[0], jnp.float32), jnp.asarray(self.clip[1], jnp.float32)
        inside = jnp.clip(self.bits(values), jnp.ceil(low * up) * down, jnp.floor(high * up) * down)
        return inside if self.length is None else jnp.where(self.mask(x)[..., None], inside, 0)


class LearnedPooling(Pooling):
    """A pooling whose result has learned bits."""

    bits: Range

    def __call__(self, x: jax.Array, mask: jax.Array, count: jax.Array) -> jax.Array:
        """As `Pooling`; a mean is rounded once more by float32."""
        return self.bits(self.accumulate(x, mask, count))


class LearnedDense(Dense):
    """A dense layer with learned bits.

    Attributes:
        f: float32 `[outputs, inputs]`, `[outputs, 1]` or `[1, 1]`: fraction bits of the weights; a weight takes the integer bits that it needs.
        most: int32, their upper limit.
        kept: bool `[outputs, inputs]`: a weight that is not kept is 0.
        out: of the activations; None for logits, which end in their accumulators.
        source: largest exponent of what it reads; set for the length of a call (`Learned`).
    """

    f: jax.Array
    most: jax.Array
    kept: jax.Array
    out: Range | None
    source: jax.Array | None
    mode: Round = eqx.field(static=True)

    def parameters(self, key: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Weights and bias on their grids."""
        del key
        assert self.linear.bias is not None
        return self.weight, quantise_weight(jnp.asarray(self.linear.bias), self.bias_f, self.mode)

    @property
    def whole(self) -> jax.Array:
        """Fraction bits as whole numbers, float32 as `f`."""
        return whole(self.f, LEAST, self.most.astype(jnp.float32))

    @property
    def weight(self) -> jax.Array:
        """`[outputs, inputs]` on its grid."""
        return jnp.where(self.kept, quantise_weight(jnp.asarray(self.linear.weight), self.whole, self.mode), 0)

    @property
    def weight_bits(self) -> jax.Array:
        """Of each weight as its product costs them; one less for each fraction bit less."""
        f, q = self.whole, jax.lax.stop_gradient(self.weight)
        counted = significant_bits(q, jax.lax.stop_gradient(f))
        return jnp.where(q != 0, counted + (f - jax.lax.stop_gradient(f)), 0)

    @property
    def weight_digits(self) -> jax.Array:
        """Signed digits of each weight; a fraction bit is worth a third of one, the mean over all integers."""
        f, q = self.whole, jax.lax.stop_gradient(self.weight)
        counted = signed_digits(q, jax.lax.stop_gradient(f))
        return jnp.where(q != 0, counted + (f - jax.lax.stop_gradient(f)) / 3, 0)

    @property
    def fractions(self) -> jax.Array:
        """`[outputs, inputs]`, as the format will have them."""
        f = jax.lax.stop_gradient(jnp.broadcast_to(self.whole, self.linear.weight.shape))
        return _within(f, jax.lax.stop_gradient(self.weight) != 0, axis=1)

    @property
    def bias_f(self) -> jax.Array:
        """`[outputs]`: fraction bits of the bias."""
        assert self.source is not None
        return jnp.minimum(self.source + jnp.max(self.fractions, axis=1), BIAS_F)

    def quantised(self, value: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """On the grid of its activations."""
        del key
        return value if self.out is None else self.out(value)

    def accumulate(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """As `Dense`."""
        w, b = self.parameters(key)
        return ACTIVATIONS[self.activation](affine(x, w, b))

    @property
    def now(self) -> _Now:
        """What `formats_of` needs."""
        return _Now(self.weight, self.fractions, self.whole, self.bias_f, jnp.asarray(self.linear.bias), None if self.out is None else self.out.now)

    def formats_of(self, now: _Now) -> dict[str, FixedFormat]:
        """Role -> format: of weights the fewest bits that hold them, of the bias with room to grow."""
        f = np.asarray(now.exponents, np.int64)
        integers = np.ldexp(np.asarray(now.weight, np.float64), f).astype(np.int64)
        need = np.array([int(n).bit_length() for n in np.maximum(integers, -integers - 1).ravel()], np.int64).reshape(integers.shape) + 1
        need = np.where(integers == 0, 0, need)
        if self.f.shape != integers.shape:  # one width for an output, or for all
            shared = (len(integers), 1)
            axis = (0, 1) if self.f.shape[0] == 1 else (1,)
            need = np.broadcast_to(need.max(axis=axis, keepdims=True), shared)
            f = np.broadcast_to(np.asarray(now.whole, np.int64), shared) if len(axis) == 2 else f.max(axis=1, keepdims=True)
        bias, bias_f = np.asarray(now.bias, np.float64), np.asarray(now.bias_f, np.int64)
        integer = np.maximum(np.ceil(np.log2(np.maximum(BIAS_ROOM * np.abs(bias), 2.0**-BIAS_F))).astype(np.int64) + 1, 1 - bias_f)
        found = {"weights": FixedFormat(True, bits_of(need), bits_of(need - f), self.mode, "sat")}
        found["bias"] = FixedFormat(True, bits_of(integer + bias_f), bits_of(integer), self.mode, "sat")
        if self.out is not None:
            assert now.out is not None
            found["activations"] = self.out.format(now.out, len(integers))
        return found


class _Now(NamedTuple):
    """A layer's arrays, as `LearnedDense` names them; `out`: those of its activations."""

    weight: jax.Array
    exponents: jax.Array
    whole: jax.Array
    bias_f: jax.Array
    bias: jax.Array
    out: tuple[jax.Array, jax.Array] | None


class LayerWidths(NamedTuple):
    """What a layer's products cost: `[outputs, inputs]` bits of weights, `[inputs]` bits of what it reads, and at how many positions it is used."""

    weights: jax.Array
    source: jax.Array
    positions: int


class Learned(eqx.Module):
    """A network whose parts have learned bits.

    Attributes:
        network: the model, its parts replaced.
        groups: (name, length, variables) of its inputs.
    """

    network: Any
    groups: tuple[tuple[str, int | None, int], ...] = eqx.field(static=True)

    def __call__(self, x: Features, *, key: jax.Array | None = None) -> jax.Array:
        """Logits of a batch."""
        logits: jax.Array = self.settled()(x, key=key)
        return logits

    def parts(self) -> dict[str, Any]:
        """Layers, poolings and inputs by name."""
        return {part.name: part for part in _parts(self.network, (LearnedDense, LearnedPooling, LearnedInput))}

    def widths(self) -> dict[str, LayerWidths]:
        """Layer -> what its products cost; differentiable with respect to the bits."""
        arrived = _noted(self.network, self.probe(), lambda bits: bits.width)
        found = {}
        for layer in _parts(self.network, LearnedDense):
            source = arrived[layer.name]
            flat = source.reshape(-1, source.shape[-1])
            found[layer.name] = LayerWidths(layer.weight_bits, jnp.max(flat, axis=0), len(flat))
        return found

    def bit_operations(self) -> jax.Array:
        """The sum over all multiplications of weight bits times activation bits; the count of `hlt_train.cost` where activations fill their formats."""
        parts = [w.positions * jnp.sum(w.weights @ w.source) for w in self.widths().values()]
        return jnp.sum(jnp.stack(parts))

    def _formats(self, now: _Everything) -> dict[str, dict[str, FixedFormat]]:
        """Part -> role -> the format that it has now."""
        found = {layer.name: layer.formats_of(now.layers[layer.name]) for layer in _parts(self.network, LearnedDense)}
        for part in _parts(self.network, LearnedPooling):
            found[part.name] = {"activations": part.bits.format(now.others[part.name], now.arrived[part.name].features)}
        return found | {step.name: {"inputs": step.bits.format(now.others[step.name], step.variables)} for step in _parts(self.network, LearnedInput)}

    def fixed(self, inputs: Inputs, asked: Precision) -> tuple[Any, Precision]:
        """(the fixed-point network with the same weights, `asked` with its formats).

        It is what `hlt_train.restore.build_model` makes of these formats, without the making of a network anew; what the clip leaves out of the range of an
        input is not taken off the bounds of sums.

        Raises:
            UsageError: sums that cannot be held.
        """
        now = _all_now(self)
        formats = self._formats(now)
        for name, roles in formats.items():
            for role, to in roles.items():
                asked = asked.with_format(name, role, to)
        groups = {group.name: group for group in inputs.groups}

        def change(part: Any) -> Any:
            if isinstance(part, GroupInput):
                return input_of(groups[part.name], asked)
            arrived = now.arrived[part.name]
            if isinstance(part, Pooling):
                return pooling(part.name.removesuffix("_pool"), arrived.positions, part.kind, arrived.grid, asked)
            own = formats[part.name]
            made = LayerFormats(own["weights"], own["bias"], own.get("activations"), arrived.grid)
            check_formats(part.name, made)
            return Dense(part.linear, part.name, part.activation, made, None)

        return _replaced(self.network, change), asked

    def settled(self) -> Any:
        """The network in which every layer knows the exponents of what it reads."""
        arrived = _noted(self.network, self.probe(), lambda bits: bits.exponents + SHIFT)
        return _replaced(self.network, lambda part: _with_source(part, arrived[part.name]) if isinstance(part, LearnedDense) else part)

    def probe(self) -> Features:
        """One full event."""
        groups = {name: np.zeros((1, n) if length is None else (1, length, n), np.float32) for name, length, n in self.groups}
        return Features(groups, {name: np.full(1, length, np.int32) for name, length, _ in self.groups if length is not None})


class _Arrived(NamedTuple):
    """What arrives at a part: exponents (`SHIFT` added) and largest integers of its sources, `[1, ..., features]`."""

    f: jax.Array
    top: jax.Array

    @property
    def features(self) -> int:
        return int(self.f.shape[-1])

    @property
    def positions(self) -> int:
        return int(self.f.shape[1]) if self.f.ndim == 3 else 1

    @property
    def grid(self) -> Grid:
        """Where a neighbour is missing there is 0: the largest over all positions holds."""
        f, top = (np.asarray(v).reshape(-1, self.features).max(axis=0) for v in self)
        return Grid(tuple((f - SHIFT).astype(int).tolist()), tuple(top.astype(int).tolist()), ("",) * self.features)


class _Everything(NamedTuple):
    """By name: arrays of layers; (width, exponents) of poolings and inputs; what arrives at layers and poolings."""

    layers: dict[str, _Now]
    others: dict[str, tuple[jax.Array, jax.Array]]
    arrived: dict[str, _Arrived]


@devices.once
def _all_now(learned: Learned) -> _Everything:
    """One program: there are many small arrays."""
    network, probe = learned.network, learned.probe()
    f, top = (_noted(network, probe, what, pools=True) for what in (lambda bits: bits.exponents + SHIFT, lambda bits: bits.top))
    layers = {layer.name: layer.now for layer in _parts(learned.settled(), LearnedDense)}
    others = {part.name: part.bits.now for part in _parts(network, (LearnedPooling, LearnedInput))}
    return _Everything(layers, others, {name: _Arrived(f[name], top[name]) for name in f})


def _with_source(layer: LearnedDense, arrived: jax.Array) -> LearnedDense:
    source = jax.lax.stop_gradient(jnp.max(arrived)) - SHIFT
    told: LearnedDense = eqx.tree_at(lambda part: part.source, layer, source, is_leaf=lambda leaf: leaf is None)
    return told


class _NotedDense(Dense):
    """Notes what arrives and passes on `value`, `[outputs]` or `[1]`."""

    value: jax.Array
    notes: dict[str, jax.Array] = eqx.field(static=True)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        del key
        self.notes[self.name] = x
        return jnp.broadcast_to(self.value, (*x.shape[:-1], self.linear.weight.shape[0]))


class _NotedInput(GroupInput):
    value: jax.Array

    def __call__(self, x: Features) -> jax.Array:
        return jnp.broadcast_to(self.value, x.groups[self.name].shape)


class _NotedPooling(Pooling):
    value: jax.Array
    notes: dict[str, jax.Array] = eqx.field(static=True)

    def __call__(self, x: jax.Array, mask: jax.Array, count: jax.Array) -> jax.Array:
        del mask, count
        self.notes[self.name] = x
        return jnp.broadcast_to(self.value, (x.shape[0], x.shape[-1]))


def _noted(network: Any, probe: Features, what: Callable[[Range], jax.Array], *, pools: bool = False) -> dict[str, jax.Array]:
    """What of the bits of its sources arrives at each layer (and pooling): layer -> `[1, ..., inputs]`."""
    notes: dict[str, jax.Array] = {}
    pooled: dict[str, jax.Array] = notes if pools else {}

    def noting(part: Any) -> Any:
        if isinstance(part, LearnedDense):
            value = jnp.zeros(1) if part.out is None else what(part.out)
            return _NotedDense(part.linear, part.name, part.activation, None, None, value, notes)
        if isinstance(part, LearnedInput):
            return _NotedInput(part.name, part.variables, part.length, None, (), (), what(part.bits))
        if isinstance(part, LearnedPooling):
            return _NotedPooling(part.name, part.kind, None, 0, True, None, what(part.bits), pooled)
        return part

    _replaced(network, noting)(probe)
    return notes


def _is_part(node: Any) -> bool:
    return isinstance(node, Dense | GroupInput | Pooling)


def _replaced(network: Any, change: Callable[[Any], Any]) -> Any:
    return jax.tree.map(lambda node: change(node) if _is_part(node) else node, network, is_leaf=_is_part)


def _parts(network: Any, kind: Any) -> list[Any]:
    return [node for node in jax.tree.leaves(network, is_leaf=_is_part) if isinstance(node, kind)]


def learning(network: Any, fixed: Any, inputs: Inputs, weights: Granularity, activations: Granularity, *, pruned: bool) -> Learned:
    """The network with learned bits that begin as those of its fixed-point form.

    Args:
        network: float, with the weights to go on from.
        fixed: the same network with concrete formats; its weights do not matter.
        inputs: its normalisation.
        weights: which weights share their bits; `channel` is one output of a layer.
        activations: which activations and input variables do; `channel` and `element` are the same.
        pruned: weights that are 0 remain so.

    Raises:
        UsageError: formats that have no widths to learn.
    """
    formats = {part.name: part for part in _parts(fixed, (Dense, GroupInput, Pooling))}
    clips = {group.name: (tuple(map(float, group.lo)), tuple(map(float, group.hi))) for group in inputs.groups}
    features = {layer.name: layer.linear.weight.shape[0] for layer in _parts(network, Dense)}
    shapes = eqx.filter_eval_shape(lambda model, x: model.trace(x), network, _rows(inputs))
    features |= {name: shape.shape[-1] for name, shape in shapes.items()}

    def change(part: Any) -> Any:
        own = formats[part.name]
        if isinstance(part, Dense):
            outputs, n = part.linear.weight.shape
            to = _checked(own.formats.weights, part.name, "weights")
            f = np.broadcast_to(np.asarray(to.f, np.float32), (outputs, n))
            axes: dict[str, Any] = {"tensor": (0, 1), "channel": (1,), "element": ()}
            f = f.max(axis=axes[weights], keepdims=True) if axes[weights] else f
            out = own.formats.out
            bits = None if out is None else Range.of(_checked(out, part.name, "activations"), outputs, activations)
            kept = jnp.asarray(np.asarray(part.linear.weight) != 0) if pruned else jnp.ones((outputs, n), bool)
            assert to.round != "stochastic"
            return LearnedDense(part.linear, part.name, part.activation, None, None, jnp.asarray(f), jnp.asarray(f, jnp.int32), kept, bits, None, to.round)
        if isinstance(part, GroupInput):
            bits = Range.of(_checked(own.format, part.name, "inputs"), part.variables, activations)
            return LearnedInput(part.name, part.variables, part.length, None, (), (), bits, clips[part.name])
        bits = Range.of(_checked(own.format, part.name, "activations"), features[part.name], activations)
        return LearnedPooling(part.name, part.kind, None, 0, True, None, bits)

    return Learned(_replaced(network, change), tuple((g.name, g.length, len(g.variables)) for g in inputs.groups))


def _rows(inputs: Inputs) -> Features:
    groups = {g.name: np.zeros((1, *g.shape), np.float32) for g in inputs.groups}
    return Features(groups, {g.name: np.zeros(1, np.int32) for g in inputs.groups if g.length is not None})


def _checked(to: Any, layer: str, role: str) -> FixedFormat:
    where = f"precision.layers.{layer}.{role}"
    if not isinstance(to, FixedFormat):
        raise UsageError(f"'{to}' has no width to learn", where=where, near=("fixed<8,auto>",), then="or leave out the section widths")
    if to.round == "stochastic" or to.over == "wrap":
        what = to.round if to.round == "stochastic" else to.over
        raise UsageError(f"widths are learned with saturation and one rounding, '{to}' says {what}", where=where, near=("half_even", "sat"))
    return to
