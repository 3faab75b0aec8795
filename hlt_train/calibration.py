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
from hlt_train.precision.fixed import FixedFormat, parse_format, quantise
from hlt_train.types import Features

__all__ = ["calibrate", "dense_layers", "needs_calibration", "provisional"]

BIAS_ROOM = 2.0
CHUNK = 1 << 16
FEWER_BITS = 4  # integer bits given up at most for a finer step
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
    return any("auto" in text for text in texts)


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
    values += [(name, "activations", value) for name, value in eqx.filter_jit(lambda model, rows: model.trace(rows))(network, x).items()]
    for name, role, value in values:
        asked = precision.format(name, role)
        if asked.integer is None:
            precision = precision.with_format(name, role, nearest_format(asked, np.asarray(value)))
    biases = {layer.name: (precision.format(layer.name, "bias"), np.asarray(layer.linear.bias)) for layer in layers}
    known = precision
    for name, (asked, _) in biases.items():
        if asked.integer is None:
            known = known.with_format(name, "bias", COARSE)
    accumulators = {layer.name: layer.formats.f for layer in dense_layers(build(known)) if layer.formats is not None}
    for name, (asked, bias) in biases.items():
        if asked.integer is None:
            found = asked.fitted(BIAS_ROOM * float(np.abs(bias).max(initial=0)))
            assert found.integer is not None
            coarsest = max(found.integer, asked.width - accumulators[name])
            precision = precision.with_format(name, "bias", replace(found, integer=coarsest))
    return precision


def provisional(precision: Precision) -> Precision:
    """Every `auto` of weights, biases and activations replaced by some number: the widths as asked, to check a network before anything is trained."""

    def fixed(role: str, text: str) -> str:
        if role == "inputs" or "auto" not in text:
            return text
        return text.replace("auto", str(precision_width(text) - PROVISIONAL_F))

    layers = {name: {role: fixed(role, text) for role, text in roles.items()} for name, roles in precision.layers.items()}
    return Precision.from_config({**precision.to_config(), **{role: fixed(role, getattr(precision, role)) for role in ROLES}, "layers": layers})


def precision_width(text: str) -> int:
    """Bits of a format's text."""
    return parse_format(text, round="floor", over="sat").width


def nearest_format(asked: FixedFormat, values: np.ndarray) -> FixedFormat:
    """`asked` with the integer bits that change `values` least; the most integer bits among equals."""
    widest = asked.fitted(float(np.abs(values).max(initial=0)))
    assert widest.integer is not None
    candidates = [replace(widest, integer=widest.integer - fewer) for fewer in range(FEWER_BITS)]
    flat = np.ravel(values).astype(np.float32)
    x = jnp.asarray(np.pad(flat, (0, -len(flat) % CHUNK)))  # zeros are on every grid; few different sizes are compiled
    errors = [float(jnp.sum((quantise(x, to) - x) ** 2)) for to in candidates]
    return candidates[int(np.argmin(errors))]
