"""A linear model over hashed calorimeter cells: sparse features, for which lock-free training is meant (Niu, Recht, Re, Wright 2011, "Hogwild!").

An event lists some of very many cells; each adds its value times one row of a table. A gradient is zero outside the rows that the batch touches. `rows` says
which these are and `from_rows` computes the logits from them, so that a transport reads, differentiates and writes touched rows only.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from hlt_train.errors import UsageError
from hlt_train.graph import Graph
from hlt_train.models._layers import GroupInput, check_options, input_of
from hlt_train.models._refusal import NoGraph, no_graph
from hlt_train.precision.config import Precision
from hlt_train.types import Features, Group, Inputs

__all__ = ["SparseLinear", "sparse_linear"]

BUCKETS = 2**31 - 2  # most rows: the number of a row, and one beyond the last, are int32


def sparse_linear(
    inputs: Inputs,
    outputs: int,
    key: jax.Array,
    *,
    buckets: int = 2**16,
    dropout: float = 0.0,
    precision: Precision | None = None,
) -> SparseLinear:
    """Logits = sum over the hits of value * table[hash(cell)], plus a bias. Cells that share a row of the table share their weight.

    Args:
        inputs: groups of hits, any number: constituents of two variables, the cell's number (a whole number up to 2**24, left as it is by the card:
            `{centre: 0, scale: 1, clip: null}`) and the value. Equal numbers in two groups are different cells.
        outputs: number of logits.
        key: not used: the table starts at zero, where a linear model has no better place.
        buckets: rows of the table.
        dropout: fraction of the hits dropped while training.
        precision: refused: the graph has no tables.
    """
    del key
    check_options("sparse_linear", (), "relu", dropout, None)
    if not 1 <= buckets <= BUCKETS:
        raise UsageError(f"sparse_linear: buckets is 1 to {BUCKETS:,}, got {buckets}", then="--set model.buckets=65536")
    for group in inputs.groups:
        _check(group)
    if precision is not None:
        raise _refusal()
    steps = tuple(input_of(group, None) for group in inputs.groups)
    return SparseLinear(jnp.zeros((buckets, outputs)), jnp.zeros(outputs), steps, dropout)


def _check(group: Group) -> None:
    where = f"input group '{group.name}'"
    if group.length is None:
        # A dense part would be touched by every example, and nothing would be sparse any more.
        raise UsageError(
            f"sparse_linear reads lists of cells; '{group.name}' are scalars", where=where, near=("mlp",), then="leave it out of the card's inputs"
        )
    if len(group.variables) != 2:
        found = ", ".join(group.variables)
        raise UsageError(f"sparse_linear needs two variables per hit, the cell's number and its value; '{group.name}' has {found}", where=where)
    if (group.centre[0], group.scale[0], group.lo[0], group.hi[0]) != (0, 1, -np.inf, np.inf):
        raise UsageError(
            f"sparse_linear reads '{group.variables[0]}' as the number of a cell, but the card normalises it",
            where=where,
            then=f"write {group.variables[0]}: {{centre: 0, scale: 1, clip: null}} in the card; the number comes first, then the value",
        )


def _refusal() -> NoGraph:
    return no_graph(
        "sparse_linear",
        "a table that is read by cell number has no node in the graph",
        ("mlp", "deepsets"),
        "hlt-train distil RUN --card STUDENT.yaml, a student on sums over cells",
    )


class SparseLinear(eqx.Module):
    """See `sparse_linear`. `[n, ...]` normalised features -> `[n, outputs]` logits.

    Attributes:
        table: float32 `[buckets, outputs]`.
        bias: float32 `[outputs]`.
    """

    table: jax.Array
    bias: jax.Array
    hits: tuple[GroupInput, ...]
    dropout: float = eqx.field(static=True)

    def __call__(self, x: Features, *, key: jax.Array | None = None) -> jax.Array:
        """Logits of a batch; a key means training (dropout)."""
        gathered = jnp.asarray(self.table).at[self.rows(x)].get(mode="fill", fill_value=0)
        return self.from_rows(gathered, jnp.asarray(self.bias), x, key=key)

    def rows(self, x: Features) -> jax.Array:
        """int32 `[n, k]`: the row of the table that each hit reads.

        Places beyond the count get the row `buckets`, which does not exist: gather with `mode="fill"`, scatter with `mode="drop"`.
        """
        found = []
        for index, step in enumerate(self.hits):
            cell = jnp.rint(jnp.asarray(x.groups[step.name])[..., 0]).astype(jnp.int32)
            found.append(jnp.where(step.mask(x), _bucket(cell, index, self.table.shape[0]), self.table.shape[0]))
        return jnp.concatenate(found, axis=1)

    def from_rows(self, gathered: jax.Array, bias: jax.Array, x: Features, *, key: jax.Array | None = None) -> jax.Array:
        """Logits from the rows that a batch touches: `model(x)` is `from_rows(table[rows(x)], bias, x)`, so that gradients need not pass the table.

        Args:
            gathered: `[n, k, outputs]`, the table's rows at `rows(x)`; whatever stands at places beyond the count is not read.
            bias: `[outputs]`.
            x: normalised features.
            key: means training (dropout).
        """
        value = jnp.concatenate([step(x)[..., 1] for step in self.hits], axis=1)
        if key is not None and self.dropout > 0:
            value = eqx.nn.Dropout(self.dropout)(value, key=key)
        real = jnp.concatenate([step.mask(x) for step in self.hits], axis=1)
        return jnp.einsum("nk,nko->no", value, jnp.where(real[..., None], gathered, 0)) + bias

    def lower(self, inputs: Inputs, names: tuple[str, ...], score: np.ndarray | None) -> Graph:
        """Refused, by name: see `NoGraph`. Arguments as in `MLP.lower`."""
        raise _refusal()


def _bucket(cell: jax.Array, group: int, buckets: int) -> jax.Array:
    """Row of a cell, int32: the finaliser of MurmurHash3 over its number, then the remainder; the group's index keeps equal numbers apart."""
    h = cell.astype(jnp.uint32) ^ jnp.uint32(group * 0x9E3779B9 & 0xFFFFFFFF)
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    row: jax.Array = ((h ^ (h >> 16)) % jnp.uint32(buckets)).astype(jnp.int32)
    return row
