"""Training on the grid of dynamic formats: their exponents follow the numbers of their group, and are static when the network is lowered.

After Courbariaux, Bengio, David (arXiv:1412.7024v5, section 5): a group is the weights, the bias or the activations of one layer. Every `every` examples its
range is doubled where more than the rate `overflow` of its numbers lay beyond it, and halved where no more lay beyond half of it (algorithm 1 there).

Where we deviate: the exponents at first come from a float warm-up, by least mean square (`hlt_train.calibration`), where the paper trains once in float32
to find them; and a bias is never finer than the sum that it is added to, which an integer accumulator has as its grid. Constituents that do not exist count
as the zeros that they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hlt_train.models._layers import Dense
from hlt_train.models._pooling import Pooling
from hlt_train.precision.config import Precision
from hlt_train.precision.dynamic import moved
from hlt_train.precision.fixed import FixedFormat
from hlt_train.precision.followed import Exponents

__all__ = ["optimiser", "parts", "reached", "without_exponents"]


class _State(NamedTuple):
    """Of the optimiser: its own, the step, and what the groups counted since the last change, one array for each layer."""

    own: Any
    step: jax.Array
    counts: list[jax.Array]


def parts(model: Any) -> list[Dense | Pooling]:
    """The layers and pools with dynamic formats, in order; `model` may be its parameters alone."""
    return [part for part in _all(model) if part.exponents is not None]


def _all(model: Any) -> list[Dense | Pooling]:
    found = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, Dense | Pooling))
    return [node for node in found if isinstance(node, Dense | Pooling)]


def _formats(part: Dense | Pooling) -> list[tuple[str, FixedFormat]]:
    """(role of `Precision`, format) for each row of its exponents."""
    if isinstance(part, Pooling):
        assert isinstance(part.format, FixedFormat)
        return [("activations", part.format)]
    assert part.formats is not None
    return [("activations" if role == "out" else role, getattr(part.formats, role)) for role in part.formats.moving]


def without_exponents(model: Any) -> Any:
    """The model with None in their place."""
    return jax.tree.map(lambda node: None if isinstance(node, Exponents) else node, model, is_leaf=lambda node: isinstance(node, Exponents))


def reached(model: Any, precision: Precision) -> Precision:
    """The precision with every dynamic format of the model at the integer bits that it has reached, as a fixed-point format."""
    for part in parts(model):
        assert part.exponents is not None
        for (role, to), row in zip(_formats(part), np.asarray(part.exponents.values), strict=True):
            precision = precision.with_format(part.name, role, replace(to, integer=int(row[0]), dynamic=False))
    return precision


def optimiser(inner: optax.GradientTransformation, precision: Precision, *, batch: int) -> optax.GradientTransformation:
    """An optimiser of a network with dynamic formats: `inner` takes the steps of its weights, and the exponents follow what was counted.

    Args:
        inner: of the weights, a list of arrays to it.
        precision: whose `overflow` and `every` are the rule's.
        batch: examples per step.
    """
    period = max(1, round(precision.every / batch))

    def init(params: Any) -> _State:
        weights, exponents = _apart(params)
        return _State(inner.init(weights), jnp.zeros((), jnp.int32), [jnp.zeros_like(e) for e in exponents])

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        assert params is not None
        (slopes, counted), (weights, exponents) = _apart(gradients), _apart(params)
        wanted, own = inner.update(slopes, state.own, weights)
        counts = [total + new for total, new in zip(state.counts, counted, strict=True)]
        due = (state.step + 1) % period == 0
        bits = [jnp.where(due, moved(e[:, 0], c / period, precision.overflow), e[:, 0]) for e, c in zip(exponents, counts, strict=True)]
        bits = _above_sums(params, bits)
        steps = [jnp.zeros_like(e).at[:, 0].set(b - e[:, 0]) for e, b in zip(exponents, bits, strict=True)]
        return _together(params, list(wanted), steps), _State(own, state.step + 1, [jnp.where(due, 0.0, c) for c in counts])

    return optax.GradientTransformation(init, update)


def _apart(params: Any) -> tuple[list[Any], list[Any]]:
    """(weights, values of exponents), each in order."""
    leaves = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, Exponents))
    return [leaf for leaf in leaves if not isinstance(leaf, Exponents)], [leaf.values for leaf in leaves if isinstance(leaf, Exponents)]


def _together(like: Any, weights: list[Any], exponents: list[Any]) -> Any:
    """The inverse of `_apart`."""
    leaves, structure = jax.tree.flatten(like, is_leaf=lambda node: isinstance(node, Exponents))
    first, second = iter(weights), iter(exponents)
    return jax.tree.unflatten(structure, [Exponents(next(second)) if isinstance(leaf, Exponents) else next(first) for leaf in leaves])


def _above_sums(model: Any, bits: Sequence[jax.Array]) -> list[jax.Array]:
    """Integer bits per layer, where a bias would be finer than its sums with as many as give it their step."""
    held = parts(model)
    of_role = {(part.name, role): (to, row) for part, rows in zip(held, bits, strict=True) for (role, to), row in zip(_formats(part), rows, strict=True)}

    def fraction(name: str, role: str) -> jax.Array:
        to, row = of_role[name, role]
        found: jax.Array = jnp.asarray(to.width) - row
        return found

    found = []
    for part, rows in zip(held, bits, strict=True):
        roles = [role for role, _ in _formats(part)]
        if isinstance(part, Dense) and "bias" in roles and part.formats is not None:
            source = part.formats.source
            read = [jnp.float32(f) for f, name in zip(source.f, source.follows, strict=True) if not name]
            read += [fraction(name, "activations") for name in sorted(set(source.follows) - {""})]
            still = np.asarray(part.formats.weights.f)
            weights = fraction(part.name, "weights") if "weights" in roles else jnp.float32(still.max(axis=1).min() if still.ndim else still)
            finest = jnp.max(jnp.stack(read)) + weights
            place = roles.index("bias")
            width = part.formats.bias.width
            assert isinstance(width, int)
            rows = rows.at[place].max(width - finest)
        found.append(rows)
    return found
