"""The graph of a student that does not exist yet: its shape and its formats with made-up weights, for costs that must be known before training."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import numpy as np

from hlt_train.calibration import COARSE, provisional
from hlt_train.graph import Graph
from hlt_train.models._layers import Dense
from hlt_train.precision.config import Precision
from hlt_train.precision.formats import Format
from hlt_train.restore import ModelSpec, outline
from hlt_train.types import Inputs

__all__ = ["specimen"]

LARGEST = {"weights": 1.0, "activations": 4.0}  # what a format holds where it may choose
SPREAD = 0.35  # standard deviation of the made-up weights over the largest that their format holds: about that of a fitted format


def specimen(spec: ModelSpec, inputs: Inputs, seed: int = 0) -> Graph:
    """A graph with the shape and the formats of `spec`, `auto` ones at some scale. Depends on nothing else, so that a search finds the same costs again.

    Raises:
        UsageError: the network or its formats cannot be.
    """
    assert spec.precision is not None, "a fixed-point student"
    settled = spec._replace(precision=_settled(Precision.from_config(spec.precision)).to_config())
    rng = np.random.default_rng(seed)

    def filled(layer: Any) -> Any:
        if not isinstance(layer, Dense):
            return layer
        assert layer.formats is not None
        weight = _drawn(rng, np.asarray(layer.linear.weight).shape, layer.formats.weights)
        bias = _drawn(rng, np.asarray(layer.linear.bias).shape, layer.formats.bias)
        return eqx.tree_at(lambda one: (one.linear.weight, one.linear.bias), layer, (weight, bias))

    network: Any = jax.tree.map(filled, outline(settled, inputs), is_leaf=lambda node: isinstance(node, Dense))
    score = None if settled.score is None else np.array(settled.score, np.int64)
    graph: Graph = network.lower(inputs, settled.outputs, score)
    return graph


def _settled(precision: Precision) -> Precision:
    """Every `auto` at the scale of a network that has learnt: what is smaller would leave nothing but zeros of few bits."""
    return provisional(precision, lambda role, asked: COARSE if role == "bias" else asked.fitted(LARGEST[role]))


def _drawn(rng: np.random.Generator, shape: tuple[int, ...], to: Format) -> np.ndarray:
    low, high = to.reach
    step = np.ldexp(1.0, -np.asarray(to.f))
    drawn: np.ndarray = np.clip(rng.normal(0, SPREAD * np.asarray(high), shape), low, high).astype(np.float32) * step.astype(np.float32)
    return drawn
