"""Which parameters each example touches: the hypergraph of a model and its data, for `hlt_train.sparsity`.

A model with `rows` (see `sparse_linear`) says so itself: the rows of its table, and all of its other parameters. Of any other model, an example touches the
parameters in which its loss has a gradient that is not zero: zeros that pad a short list touch no weight of a first layer, and units that are switched off
none of theirs.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hlt_train.restore import parameters, with_params
from hlt_train.sparsity import Edges, edges
from hlt_train.types import Features

__all__ = ["MOST", "rows_at_most", "touched"]

MOST = 2**24  # pairs of an example and a parameter held at once
EXAMPLES = 2048  # whose gradients are taken, at most
STEP = 256  # of them at once, at most


def rows_at_most(model: eqx.Module, wanted: int) -> int:
    """How many examples are looked at: `wanted`, fewer where each has a gradient in many parameters."""
    size = _size(model)
    return wanted if hasattr(model, "rows") else max(1, min(wanted, EXAMPLES, MOST // size))


def touched(model: eqx.Module, x: Features, label: np.ndarray) -> Edges:
    """The edges of examples.

    Args:
        model: a network.
        x: normalised features of `[n]` examples.
        label: int32 `[n]`; the gradient is that of the cross-entropy.

    Returns:
        `n` edges over all parameters, numbered leaf by leaf in the order of `jax.tree.leaves`.
    """
    return _structural(model, x) if hasattr(model, "rows") else _measured(model, x, label)


def _size(model: eqx.Module) -> int:
    return sum(int(leaf.size) for leaf in jax.tree.leaves(parameters(model)))


def _structural(model: Any, x: Features) -> Edges:
    """From `rows`: every output of a touched row of `table`, and all of the rest."""
    rows = np.asarray(model.rows(x))
    n, (buckets, outputs) = len(rows), model.table.shape
    leaves = jax.tree.leaves_with_path(parameters(model))
    sizes = [int(leaf.size) for _, leaf in leaves]
    (place,) = (k for k, (path, _) in enumerate(leaves) if jax.tree_util.keystr(path) == ".table")
    first = np.cumsum([0, *sizes])
    owner, slot = np.nonzero(rows < buckets)
    of_table = first[place] + rows[owner, slot].astype(np.int64)[:, None] * outputs + np.arange(outputs)
    others = np.concatenate([np.arange(first[k], first[k + 1]) for k in range(len(sizes)) if k != place] or [np.zeros(0, np.int64)])
    owners = np.concatenate([np.repeat(owner, outputs), np.repeat(np.arange(n), len(others))])
    return edges(owners, np.concatenate([of_table.ravel(), np.tile(others, n)]), n, int(first[-1]))


def _measured(model: eqx.Module, x: Features, label: np.ndarray) -> Edges:
    """From the gradient of every example."""
    params = parameters(model)
    size, n = _size(model), len(label)
    step = max(1, min(STEP, MOST // size))

    def support(features: Features, target: jax.Array) -> jax.Array:
        def loss(p: Any) -> jax.Array:
            one = jax.tree.map(lambda leaf: leaf[None], features)
            logits = with_params(model, p)(one)  # type: ignore[operator]
            total: jax.Array = optax.softmax_cross_entropy_with_integer_labels(logits, target[None]).sum()
            return total

        gradient = jax.grad(loss)(params)
        found: jax.Array = jnp.concatenate([(leaf != 0).ravel() for leaf in jax.tree.leaves(gradient)])
        return found

    every = jax.jit(jax.vmap(support))
    owners, vertices = [], []
    for begin in range(0, n, step):
        stop = min(begin + step, n)
        place = np.minimum(np.arange(begin, begin + step), n - 1)  # one shape, one compilation
        part = x.take(place)
        owner, vertex = np.nonzero(np.asarray(every(part, label[place]))[: stop - begin])
        owners.append(owner + begin)
        vertices.append(vertex)
    return edges(np.concatenate(owners), np.concatenate(vertices), n, size)
