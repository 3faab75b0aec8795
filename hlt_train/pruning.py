"""Pruning in the float warm-up: weights by magnitude and units by norm go gradually; in the student's formats what went has no bits.

After Zhu and Gupta (arXiv:1710.01878, section 3): sparsity grows as s (1 - (1 - t)**3) while t goes from 0 to 1, and masks are made anew every few steps; a
masked weight is 0, stays the smallest, and so never comes back. Every layer has the same sparsity. Units of hidden layers go by the norm of their weights (Li
et al., arXiv:1608.08710, take the sum of magnitudes): the row of weights and the bias become 0, so the unit is 0, and the exported network has none of it
(`hlt_train.dead_units`). Logits are no units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from pydantic import Field, PositiveInt, model_validator

from hlt_train.calibration import dense_layers
from hlt_train.configuration import Configuration
from hlt_train.errors import UsageError
from hlt_train.models._layers import Dense
from hlt_train.precision.config import Precision
from hlt_train.precision.fixed import FixedFormat, bits_of

__all__ = ["Pruning", "pruned", "pruning", "without_bits"]


class Pruning(Configuration):
    """Keys of `pruning`.

    Attributes:
        weights: fraction of the weights of every layer that are 0 in the end.
        units: fraction of the units of every hidden layer that are; their weights count in `weights`.
        begin: share of the warm-up's steps before the first goes.
        end: share of the warm-up's steps after which none goes.
        every: steps between two changes.
    """

    weights: float = Field(0.0, ge=0, lt=1)
    units: float = Field(0.0, ge=0, lt=1)
    begin: float = Field(0.1, ge=0, lt=1)
    end: float = Field(0.7, gt=0, le=1)
    every: PositiveInt = 10

    @model_validator(mode="after")
    def _something(self) -> Pruning:
        if self.weights == self.units == 0:
            raise ValueError("give a fraction of weights or of units, for instance weights: 0.5")
        if self.begin >= self.end:
            raise ValueError(f"it begins at {self.begin:g} of the warm-up and ends at {self.end:g}: too early")
        return self


class _State(NamedTuple):
    """own: of the optimiser; masks: the parameters' pytree, 1 where they are kept."""

    own: Any
    step: jax.Array
    masks: Any


def pruned(inner: optax.GradientTransformation, asked: Pruning, steps: int) -> optax.GradientTransformation:
    """The optimiser of a network's parameters, of which more and more are 0.

    Args:
        inner: of the parameters that are left.
        asked: how much goes, and when.
        steps: of the training.
    """

    def progress(step: jax.Array) -> jax.Array:
        t = jnp.clip((step / steps - asked.begin) / (asked.end - asked.begin), 0, 1)
        return 1 - (1 - t) ** 3

    def init(params: Any) -> _State:
        return _State(inner.init(params), jnp.zeros((), jnp.int32), jax.tree.map(jnp.ones_like, params))

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        assert params is not None
        step = state.step + 1
        masks = jax.lax.cond(step % asked.every == 0, lambda: _masks(params, asked, progress(step)), lambda: state.masks)
        updates, own = inner.update(jax.tree.map(jnp.multiply, gradients, masks), state.own, params)
        # p + (-p) is 0 exactly
        updates = jax.tree.map(lambda u, p, m: jnp.where(m > 0, u, -p), updates, params, masks)
        return updates, _State(own, step, masks)

    return optax.GradientTransformation(init, update)


def _masks(params: Any, asked: Pruning, progress: jax.Array) -> Any:
    """1 for what is kept, by the magnitudes of now."""

    def layer(node: Any) -> Any:
        if not isinstance(node, Dense):
            return jnp.ones_like(node)
        weight = jnp.asarray(node.linear.weight)
        units = jnp.ones(len(weight), bool) if node.activation == "none" else _largest(jnp.sum(weight**2, axis=1), asked.units * progress)
        kept = units[:, None] & _largest(jnp.where(units[:, None], jnp.abs(weight), 0), asked.weights * progress)
        bias = units.astype(weight.dtype)
        return eqx.tree_at(lambda part: (part.linear.weight, part.linear.bias), node, (kept.astype(weight.dtype), bias))

    return jax.tree.map(layer, params, is_leaf=lambda node: isinstance(node, Dense))


def _largest(size: jax.Array, without: jax.Array) -> jax.Array:
    """Which are left without this fraction of the smallest: bool of the shape of `size`."""
    flat = size.ravel()
    gone = jnp.round(without * flat.size).astype(jnp.int32)
    rank = jnp.zeros(flat.size, jnp.int32).at[jnp.argsort(flat, stable=True)].set(jnp.arange(flat.size, dtype=jnp.int32))
    return (rank >= gone).reshape(size.shape)


def pruning(asked: Pruning | None, steps: int) -> Callable[[optax.GradientTransformation], optax.GradientTransformation] | None:
    """What `assemble` takes to make of an optimiser one that prunes; None where nothing is pruned."""
    return None if asked is None else lambda inner: pruned(inner, asked, steps)


def without_bits(precision: Precision, network: Any) -> Precision:
    """Formats in which weights that are 0 have no bits, and neither has the bias of a unit without weights.

    Args:
        precision: concrete formats.
        network: pruned, float.

    Raises:
        UsageError: weights that are not fixed point: they have no format without bits.
    """
    for layer in dense_layers(network):
        kept = np.asarray(layer.linear.weight) != 0
        if kept.all():
            continue
        to = precision.format(layer.name, "weights")
        if not isinstance(to, FixedFormat):
            where = f"precision.layers.{layer.name}.weights"
            raise UsageError(f"'{to}' has no form without bits for the weights that were pruned", where=where, near=("fixed<8,auto>",))
        precision = precision.with_format(layer.name, "weights", _cut(to, kept))
        units = kept.any(axis=1)
        if not units.all():
            precision = precision.with_format(layer.name, "bias", _cut(precision.fixed(layer.name, "bias"), units))
    return precision


def _cut(to: FixedFormat, kept: np.ndarray) -> FixedFormat:
    """The format for the shape of `kept`, without bits elsewhere; there the exponent is the smallest of those kept, so that no sum gets finer."""
    width, f = (np.broadcast_to(np.asarray(v, np.int64), kept.shape) for v in (to.width, to.f))
    least = f.min(where=kept, initial=int(f.max()), axis=-1, keepdims=True)
    width, f = np.where(kept, width, 0), np.where(kept, f, least)
    return replace(to, width=bits_of(width), integer=bits_of(width - f))
