"""The topology classifier of mpi_learn: an LSTM over a list of particles, then a dense layer; padded particles are skipped.

The benchmark of arXiv:1712.05878, in Keras Masking -> LSTM(observables) -> Dense(classes): 3,024 parameters for 19 observables and 3 classes. Nguyen et al.
(arXiv:1807.00083) join 14 high-level features to the LSTM's last state: `scalars`.
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
from hlt_train.types import Features, Inputs

__all__ = ["Topology", "topology"]


def topology(
    inputs: Inputs,
    outputs: int,
    key: jax.Array,
    *,
    width: int | None = None,
    scalars: bool = False,
    dropout: float = 0.0,
    precision: Precision | None = None,
) -> Topology:
    """An LSTM per group of constituents, read in order, then a dense layer over the last states. Constituents beyond the count are skipped.

    The forget gates start with a bias of 1, as in Keras.

    Args:
        inputs: at least one group of constituents; any number of them and of scalar groups.
        outputs: number of logits.
        key: random key of the initial weights.
        width: of the state of each LSTM; None: the number of variables of its group.
        scalars: join the scalar groups to the last states; otherwise they are not used.
        dropout: fraction of the last states dropped while training.
        precision: refused: an LSTM has no integer form.
    """
    check_options("topology", () if width is None else (width,), "relu", dropout, None)
    groups = [g for g in inputs.groups if g.length is not None]
    if not groups:
        raise UsageError(
            f"topology needs a group of constituents (an input with `length`); '{', '.join(g.name for g in inputs.groups)}' are scalars", then="--model mlp"
        )
    if precision is not None:
        raise _refusal()
    branches = []
    for index, group in enumerate(groups):
        n = len(group.variables)
        branches.append(Recurrent(input_of(group, None), _cell(n, n if width is None else width, jax.random.fold_in(key, index))))
    joined = tuple(input_of(group, None) for group in inputs.groups if group.length is None) if scalars else ()
    features = sum(branch.cell.hidden_size for branch in branches) + sum(step.variables for step in joined)
    return Topology(tuple(branches), joined, eqx.nn.Linear(features, outputs, key=jax.random.fold_in(key, len(groups))), dropout)


def _cell(inputs: int, width: int, key: jax.Array) -> eqx.nn.LSTMCell:
    cell = eqx.nn.LSTMCell(inputs, width, key=key)
    bias = jnp.zeros(4 * width).at[width : 2 * width].set(1.0)  # the second quarter is the forget gate's: a long list is not forgotten from the start
    made: eqx.nn.LSTMCell = eqx.tree_at(lambda c: c.bias, cell, bias)
    return made


def _refusal() -> NoGraph:
    return no_graph("topology", "an LSTM has no node in the graph and no integer form", ("deepsets", "mlp"))


class Recurrent(eqx.Module):
    """An LSTM over one group of constituents."""

    input: GroupInput
    cell: eqx.nn.LSTMCell

    def __call__(self, x: Features) -> jax.Array:
        """`[n, width]`: the state after the last real constituent, 0 where there is none."""
        values, mask = self.input(x), self.input.mask(x)
        state = jnp.zeros((values.shape[0], self.cell.hidden_size), values.dtype)

        def step(carry: tuple[jax.Array, jax.Array], place: tuple[jax.Array, jax.Array]) -> tuple[tuple[jax.Array, jax.Array], None]:
            value, real = place
            h, c = jax.vmap(self.cell)(value, carry)
            return (jnp.where(real[:, None], h, carry[0]), jnp.where(real[:, None], c, carry[1])), None

        (last, _), _ = jax.lax.scan(step, (state, state), (jnp.swapaxes(values, 0, 1), mask.T))
        return last


class Topology(eqx.Module):
    """See `topology`. `[n, ...]` normalised features -> `[n, outputs]` logits."""

    branches: tuple[Recurrent, ...]
    scalars: tuple[GroupInput, ...]
    logits: eqx.nn.Linear
    dropout: float = eqx.field(static=True)

    def __call__(self, x: Features, *, key: jax.Array | None = None) -> jax.Array:
        """Logits of a batch; a key means training (dropout)."""
        state = jnp.concatenate([branch(x) for branch in self.branches], axis=-1)
        if key is not None and self.dropout > 0:
            state = eqx.nn.Dropout(self.dropout)(state, key=key)
        joined = jnp.concatenate([state, *(step(x) for step in self.scalars)], axis=-1)
        found: jax.Array = jax.vmap(self.logits)(joined)
        return found

    def lower(self, inputs: Inputs, names: tuple[str, ...], score: np.ndarray | None) -> Graph:
        """Refused, by name: see `NoGraph`. Arguments as in `MLP.lower`."""
        raise _refusal()
