"""`auto` formats become concrete: integer bits chosen from the ranges that a trained float network reaches.

For each weight, bias and activation that asks for `auto`, the number of integer bits is the one whose rounding and saturation change the values least (mean
square); rare outliers saturate when that buys a finer step for everything else. A bias has few values that all matter: its format holds twice the largest, and
is never finer than the accumulators it is added to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from hlt_train.models._layers import Dense
from hlt_train.precision.config import ROLES, Precision
from hlt_train.precision.fixed import FixedFormat, bits_of, numbers
from hlt_train.precision.formats import Format, parse_format, quantise
from hlt_train.precision.minifloat import MiniFormat
from hlt_train.types import Features

__all__ = ["COARSE", "calibrate", "dense_layers", "needs_calibration", "provisional"]

ROOM = 2.0  # of a bias, and of a weight with a format of its own: few values, each of which matters and moves
CHUNK = 1 << 16
FEWER_BITS = 4  # integer bits given up at most for a finer step
SPREAD = 4  # integer bits of a channel below those of its tensor, at most
PROVISIONAL_F = 6  # fraction bits: those of the default inputs
COARSE = FixedFormat(signed=True, width=2, integer=2, round="half_even", over="sat")  # stands for a bias whose format is not chosen yet: never too fine
Build = Callable[[Precision | None], eqx.Module]


def dense_layers(model: eqx.Module) -> list[Dense]:
    """The dense layers of a network, in order."""
    found = jax.tree_util.tree_leaves(model, is_leaf=lambda node: isinstance(node, Dense))
    return [node for node in found if isinstance(node, Dense)]


def needs_calibration(precision: Precision) -> bool:
    """Whether some weight, bias or activation format is `auto` (inputs take theirs from the card's clips)."""
    texts = [precision.weights, precision.bias, precision.activations]
    texts += [text for roles in precision.layers.values() for role, text in roles.items() if role != "inputs"]
    return any(is_auto(parse_format(text, round=precision.round, over=precision.over)) for text in texts)


def calibrate(build: Build, network: Any, precision: Precision, x: Features) -> Precision:
    """The precision with every `auto` of weights, biases and activations replaced.

    Args:
        build: makes the student with a precision, or the float network with None; weights do not matter.
        network: the trained float network.
        precision: what was asked for.
        x: normalised features of some thousand training rows.
    """
    layers = dense_layers(network)
    values: list[tuple[str, str, Any]] = [(layer.name, "weights", layer.linear.weight) for layer in layers]
    values += [(name, "activations", value) for name, value in traced(network, x).items()]
    for name, role, value in values:
        asked = precision.format(name, role)
        if is_auto(asked):
            precision = precision.with_format(name, role, nearest_format(asked, np.asarray(value), role))
    biases = {layer.name: (precision.fixed(layer.name, "bias"), np.asarray(layer.linear.bias)) for layer in layers}
    known = precision
    for name, (asked, _) in biases.items():
        if asked.integer is None:
            known = known.with_format(name, "bias", COARSE)
    accumulators = {layer.name: layer.formats.f for layer in dense_layers(build(known)) if layer.formats is not None}
    for name, (asked, bias) in biases.items():
        if asked.integer is None:
            found = asked.fitted(ROOM * (float(np.abs(bias).max(initial=0)) if asked.per == "tensor" else np.abs(bias)))
            assert found.integer is not None
            coarsest = np.maximum(numbers(found.integer), numbers(asked.width) - (np.min(accumulators[name]) if asked.per == "tensor" else accumulators[name]))
            precision = precision.with_format(name, "bias", replace(found, integer=bits_of(np.asarray(coarsest))))
    return precision


@eqx.filter_jit
def traced(network: Any, x: Features) -> dict[str, jax.Array]:
    """Layer name -> values before its loss of bits; x: normalised features."""
    found: dict[str, jax.Array] = network.trace(x)
    return found


def provisional(precision: Precision, chosen: Callable[[str, Format], Format] = lambda _role, asked: asked.at(PROVISIONAL_F)) -> Precision:
    """Every `auto` of weights, biases and activations replaced, by default with some number, nothing dynamic: to look at a network before it is trained.

    Args:
        precision: what was asked for.
        chosen: (role, format with `auto`) -> the format in its place.
    """

    def fixed(role: str, text: str) -> str:
        asked = parse_format(text, round=precision.round, over=precision.over)
        if role == "inputs":
            return text
        found = chosen(role, asked) if is_auto(asked) else asked
        return str(replace(found, dynamic=False) if isinstance(found, FixedFormat) else found)

    layers = {name: {role: fixed(role, text) for role, text in roles.items()} for name, roles in precision.layers.items()}
    return Precision.from_config({**precision.to_config(), **{role: fixed(role, getattr(precision, role)) for role in ROLES}, "layers": layers})


def is_auto(asked: Format) -> bool:
    """Whether something of the format is still to be chosen."""
    return asked.bias is None if isinstance(asked, MiniFormat) else asked.integer is None


def nearest_format(asked: Format, values: np.ndarray, role: str) -> Format:
    """`asked` at the scale that changes `values` least; the coarsest among equals.

    Args:
        asked: with `auto`. Formats per channel get one scale per row of a matrix, or per entry of the last axis of activations.
        values: weights `[outputs, inputs]`, or activations `[..., features]`.
        role: weights or activations.
    """
    values = np.asarray(values, np.float32)
    if isinstance(asked, FixedFormat) and asked.per != "tensor":
        return _nearest_of_each(asked, values, role)
    widest = asked.fitted(float(np.abs(values).max(initial=0)))
    candidates = [widest.scaled(-fewer) for fewer in range(FEWER_BITS)]
    flat = np.ravel(values)
    x = jnp.asarray(np.pad(flat, (0, -len(flat) % CHUNK)))  # few different sizes are compiled
    errors = [float(jnp.sum((quantise(x, to) - x)[: len(flat)] ** 2)) for to in candidates]
    return candidates[int(np.argmin(errors))]


def _nearest_of_each(asked: FixedFormat, values: np.ndarray, role: str) -> FixedFormat:
    """Integer bits of the shape `[outputs, 1]` (weights per channel), `[outputs, inputs]` (per element), or `[features]`."""
    if role == "weights":
        axes: tuple[int, ...] = (1,) if asked.per == "channel" else ()
        widest = asked.fitted(np.abs(values).max(axis=axes, keepdims=True) if axes else ROOM * np.abs(values))
    else:
        axes = tuple(range(values.ndim - 1))
        widest = asked.fitted(np.abs(values).max(axis=axes, initial=0))
    whole = asked.fitted(float(np.abs(values).max(initial=0)))
    assert widest.integer is not None
    assert whole.integer is not None
    # A channel with very small values would set the step of every sum it enters, and the width of every accumulator.
    widest = replace(widest, integer=bits_of(np.maximum(numbers(widest.integer), np.max(numbers(whole.integer)) - SPREAD)))
    if not axes:
        return widest  # a weight beyond its range learns nothing more: each has room to grow, and none saturates for a finer step
    candidates = [widest.scaled(-fewer) for fewer in range(FEWER_BITS)]
    errors = [np.sum((np.asarray(quantise(jnp.asarray(values), to)) - values) ** 2, axis=axes, keepdims=role == "weights") for to in candidates]
    assert widest.integer is not None
    return replace(widest, integer=bits_of(numbers(widest.integer) - np.argmin(errors, axis=0)))
