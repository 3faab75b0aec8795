"""Gradients of models that read a few rows of a large table: with respect to the rows that a batch touches, never to the table.

For a model with `rows` and `from_rows` (`models.sparse_linear`), and a strategy that takes a `Sparse` (Hogwild: Niu, Recht, Re, Wright 2011, "Hogwild!",
section 2: the gradient of an example is zero outside the few variables it reads). The entries of a batch are, in this order: those of the rows of its hits,
`width` numbers each, as often as they are hit; then every other parameter of the network, which each batch touches. Places that are padding have the index n,
one beyond the vector of all parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from hlt_train.errors import UsageError
from hlt_train.strategies import Sparse
from hlt_train.task import Task
from hlt_train.types import Batch

__all__ = ["LossOfLogits", "SparseGradient", "sparse_gradient"]

Params = Any
LARGEST = 2**31 - 2  # entries of a vector: the index of an entry, and one beyond the last, are int32


@dataclass(frozen=True, eq=False)
class LossOfLogits:
    """Losses (`validation.Losses`) of a network's logits, taken apart, so that the logits may be computed in another way than from all parameters.

    Attributes:
        network: parameters -> the network.
        rows: (logits, batch) -> (loss per row, figures per row by name).
    """

    network: Callable[[Params], Any]
    rows: Callable[[jax.Array, Batch], tuple[jax.Array, dict[str, jax.Array]]]

    def __call__(self, params: Params, batch: Batch, key: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `validation.Losses`."""
        return self.rows(self.network(params)(batch.x, key=key), batch)


@dataclass(frozen=True, eq=False)
class SparseGradient:
    """(vector, batch, key) -> (loss, `Sparse`), and its two halves: what a batch reads, and the gradient at that.

    Attributes:
        task: what is learnt.
        n: entries of the vector.
        offset: where the table begins in it.
        buckets, width: of the table.
        others: (begin, end) of each run of entries that every batch touches.
    """

    task: Task
    n: int
    offset: int
    buckets: int
    width: int
    others: tuple[tuple[int, int], ...]

    def rows(self, batch: Batch) -> jax.Array:
        """int32 `[hits]`: the rows of the table that the hits of a batch read, `buckets` at padding."""
        return self._network(None).rows(batch.x).reshape(-1)  # type: ignore[no-any-return]

    def index(self, batch: Batch) -> jax.Array:
        """int32 `[m]`: the entries of the vector that a batch reads and changes."""
        rows = self.rows(batch)
        entries = jnp.where(rows[:, None] < self.buckets, self.offset + rows[:, None] * self.width + jnp.arange(self.width, dtype=jnp.int32), self.n)
        return jnp.concatenate([entries.reshape(-1), *(jnp.arange(begin, end, dtype=jnp.int32) for begin, end in self.others)])

    def at(self, seen: Any, batch: Batch, key: Any) -> tuple[jax.Array, jax.Array]:
        """The loss of a batch, and its derivative with respect to each of the entries `seen` `[m]`, which stand at `index(batch)`."""
        task, dense = self.task, sum(end - begin for begin, end in self.others)
        assert isinstance(task.losses, LossOfLogits)
        losses = task.losses

        def loss(seen: jax.Array) -> jax.Array:
            cut = seen.shape[0] - dense
            network = self._network(seen[cut:])
            gathered = seen[:cut].reshape(batch.label.shape[0], -1, self.width)
            found, _figures = losses.rows(network.from_rows(gathered, network.bias, batch.x, key=key), batch)
            return jnp.sum(batch.weight * found) / (found.shape[0] * task.mean_weight)

        value, slope = jax.value_and_grad(loss)(jnp.asarray(seen))
        return value, slope

    def __call__(self, vector: Any, batch: Batch, key: Any) -> tuple[jax.Array, Sparse]:
        """Loss and gradient, as `Program` wants them."""
        index = self.index(batch)
        loss, value = self.at(jnp.asarray(vector).at[index].get(mode="fill", fill_value=0), batch, key)
        return loss, Sparse(index, value)

    def _network(self, others: jax.Array | None) -> Any:
        """The network without its table, of which there is the shape only; others: the numbers of all other parameters, None: their shapes, too."""
        assert isinstance(self.task.losses, LossOfLogits)
        leaves, structure = jax.tree.flatten(self.task.params)
        made: list[Any] = []
        place = begin = 0
        for leaf in leaves:
            size = int(np.size(leaf))
            if begin == self.offset or others is None:
                made.append(jax.ShapeDtypeStruct(np.shape(leaf), jnp.float32))
            else:
                made.append(others[place : place + size].reshape(np.shape(leaf)))
                place += size
            begin += size
        return self.task.losses.network(jax.tree.unflatten(structure, made))


def sparse_gradient(task: Task) -> SparseGradient | None:
    """The gradient of a task whose network reads rows of a table.

    None for any other network, and where more is learnt than the losses of rows: such a gradient is dense.

    Raises:
        UsageError: the table is too large for the index of an entry.
    """
    if not isinstance(task.losses, LossOfLogits) or task.penalty is not None or task.learning is not None:
        return None
    network = task.losses.network(task.params)
    if not (hasattr(network, "rows") and hasattr(network, "from_rows")):
        return None
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), np.asarray(leaf).dtype), task.params)
    marked = eqx.tree_at(lambda p: p.table, shapes, "table")
    leaves = jax.tree.leaves(marked)
    where = next(k for k, leaf in enumerate(leaves) if isinstance(leaf, str))
    sizes = [int(np.size(leaf)) for leaf in jax.tree.leaves(task.params)]
    begins = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    n = begins[-1]
    if n > LARGEST:
        raise UsageError(f"a sparse gradient numbers at most {LARGEST:,} parameters; this network has {n:,}", then="fewer --set model.buckets=")
    buckets, width = np.shape(jax.tree.leaves(task.params)[where])
    around = ((0, begins[where]), (begins[where + 1], n))
    return SparseGradient(task, n, begins[where], buckets, width, tuple((begin, end) for begin, end in around if begin < end))
