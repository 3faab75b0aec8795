"""DeepSets: one network phi per constituent group, pooled over the real constituents, then a network rho over the pools and the scalars."""

from __future__ import annotations

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from hlt_train.errors import UsageError
from hlt_train.graph import Graph
from hlt_train.models._layers import Activation, Dense, Grid, GroupInput, chain, check_options, collections_of, dense, grid_after, input_of, run
from hlt_train.models._lower import Lowering
from hlt_train.models._pooling import Pooling, pooling
from hlt_train.precision.config import Precision
from hlt_train.precision.grid import folded
from hlt_train.types import Features, Group, Inputs

__all__ = ["DeepSets", "deepsets"]


def deepsets(
    inputs: Inputs,
    outputs: int,
    key: jax.Array,
    *,
    phi: tuple[int, ...] = (64, 64),
    rho: tuple[int, ...] = (64,),
    pool: Literal["sum", "mean", "max"] = "sum",
    activation: Activation = "relu",
    dropout: float = 0.0,
    precision: Precision | None = None,
) -> DeepSets:
    """DeepSets: phi per constituent group, pooled, joined with the scalars, then rho. Does not depend on the order of constituents.

    Args:
        inputs: at least one group of constituents; any number of them and of scalar groups.
        outputs: number of logits.
        key: random key of the initial weights.
        phi: layers `<group>_phi_0`, ... of every constituent group.
        rho: layers `rho_0`, ...; the last layer is `logits`.
        pool: over the real constituents; 0 where there is none. The layer is called `<group>_pool`.
        activation: after each hidden layer.
        dropout: fraction dropped after each hidden layer of rho while training.
        precision: formats of a fixed-point student; None: float32.
    """
    check_options("deepsets", (*phi, *rho), activation, dropout, precision)
    groups = collections_of("deepsets", inputs)
    if not phi:
        raise UsageError("deepsets: phi needs at least one layer", then="--set model.phi=[64,64]")
    names = [g.name for g in inputs.groups] + [f"{g.name}_phi_{i}" for g in groups for i in range(len(phi))] + [f"{g.name}_pool" for g in groups]
    if precision is not None:
        precision.check([*names, *(f"rho_{i}" for i in range(len(rho))), "logits"])
    branches: list[Branch] = []
    joined: list[tuple[int, Grid | None]] = []
    for index, group in enumerate(inputs.groups):
        step = input_of(group, precision)
        if group.length is None:
            branches.append(Branch(step, (), None))
            joined.append((step.variables, step.grid))
            continue
        layers = chain(f"{group.name}_phi", step.variables, phi, activation, jax.random.fold_in(key, index), step.grid, precision)
        pooled = pooling(group.name, group.length, pool, grid_after(layers[-1], phi[-1]), precision)
        branches.append(Branch(step, layers, pooled))
        joined.append((phi[-1], pooled.grid(phi[-1])))
    return joined_by(branches, joined, outputs, jax.random.fold_in(key, len(inputs.groups)), rho, activation, dropout, precision)


def joined_by(
    branches: list[Branch],
    joined: list[tuple[int, Grid | None]],
    outputs: int,
    key: jax.Array,
    rho: tuple[int, ...],
    activation: Activation,
    dropout: float,
    precision: Precision | None,
) -> DeepSets:
    """The network of branches that yield so many features on such grids, and the layers `rho_0`, ... and `logits` over all of them."""
    features = sum(n for n, _ in joined)
    source = Grid.joined([grid for _, grid in joined])
    hidden = chain("rho", features, rho, activation, key, source, precision)
    source = grid_after(hidden[-1], rho[-1]) if hidden else source
    last = dense("logits", rho[-1] if rho else features, outputs, "none", jax.random.fold_in(key, len(rho)), source, precision, last=True)
    return DeepSets(tuple(branches), (*hidden, last), dropout)


class Branch(eqx.Module):
    """What one input group goes through before rho; a group of scalars has no layers and no pooling."""

    input: GroupInput
    phi: tuple[Dense, ...]
    pool: Pooling | None

    def __call__(self, x: Features, key: jax.Array | None, tape: dict[str, jax.Array] | None) -> jax.Array:
        """`[n, features]` of this group; a key means training."""
        values = self.input(x)
        if self.pool is None:
            return values
        mask, count = self.input.mask(x), self.input.count(x)
        own: dict[str, jax.Array] | None = None if tape is None else {}
        values = run(self.phi, values, dropout=0.0, key=key, tape=own)
        if tape is not None and own is not None:
            tape |= {name: jnp.where(mask[..., None], value, 0) for name, value in own.items()}
            tape[self.pool.name] = self.pool.accumulate(values, mask, count)
        return self.pool(values, mask, count)

    def lower(self, made: Lowering, group: Group) -> str:
        """Its nodes; the name of the last."""
        last = made.input(self.input, group)
        for layer in self.phi:
            last = made.dense(layer, last)
        return last if self.pool is None else made.pool(self.pool, last, group.name)


class DeepSets(eqx.Module):
    """See `deepsets`. `[n, ...]` normalised features -> `[n, outputs]` logits."""

    branches: tuple[Branch, ...]
    rho: tuple[Dense, ...]
    dropout: float = eqx.field(static=True)

    def __call__(self, x: Features, *, key: jax.Array | None = None) -> jax.Array:
        """Logits of a batch; a key means training (dropout)."""
        return self._forward(x, key, None)

    def trace(self, x: Features) -> dict[str, jax.Array]:
        """Layer name -> values before its loss of bits (0 beyond the count), for calibration and saturation."""
        tape: dict[str, jax.Array] = {}
        self._forward(x, None, tape)
        return tape

    def _forward(self, x: Features, key: jax.Array | None, tape: dict[str, jax.Array] | None) -> jax.Array:
        joined = jnp.concatenate([branch(x, folded(key, len(self.rho) + k), tape) for k, branch in enumerate(self.branches)], axis=-1)
        hidden = run(self.rho[:-1], joined, dropout=self.dropout, key=key, tape=tape)
        return self.rho[-1](hidden, folded(key, len(self.rho) - 1))

    def lower(self, inputs: Inputs, names: tuple[str, ...], score: np.ndarray | None) -> Graph:
        """The graph of this network, its normalisation included; arguments as in `MLP.lower`."""
        made = Lowering()
        joined = [branch.lower(made, group) for branch, group in zip(self.branches, inputs.groups, strict=True)]
        last = made.concat("features", joined)
        for layer in self.rho:
            last = made.dense(layer, last)
        return made.output(last, names, score)
