"""Convolutions over constituents in their order, one chain of them per group, pooled or flattened, then a network rho over all groups and the scalars."""

from __future__ import annotations

from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from hlt_train.errors import UsageError
from hlt_train.models._layers import Activation, Dense, Grid, GroupInput, check_options, collections_of, dense, grid_after, input_of
from hlt_train.models._lower import Lowering
from hlt_train.models._pooling import pooling
from hlt_train.models.deepsets import Branch, DeepSets, joined_by
from hlt_train.precision.config import Precision
from hlt_train.precision.grid import folded
from hlt_train.types import Features, Group, Inputs

__all__ = ["ConvBranch", "Neighbours", "conv"]


def conv(
    inputs: Inputs,
    outputs: int,
    key: jax.Array,
    *,
    filters: tuple[int, ...] = (32, 32),
    kernel: int = 3,
    stride: int = 1,
    rho: tuple[int, ...] = (64,),
    pool: Literal["sum", "mean", "max", "flatten"] = "sum",
    activation: Activation = "relu",
    dropout: float = 0.0,
    precision: Precision | None = None,
) -> DeepSets:
    """1-D convolutions per constituent group, pooled, joined with the scalars, then rho. Depends on the order of constituents.

    A layer reads, at every `stride`-th constituent, its `kernel` neighbours, the middle one at the constituent itself; neighbours that do not exist are 0.

    Args:
        inputs: at least one group of constituents; any number of them and of scalar groups.
        outputs: number of logits.
        key: random key of the initial weights.
        filters: outputs of the convolutions `<group>_conv_0`, ... of every constituent group.
        kernel: constituents that each output reads.
        stride: of every convolution; with 2, a layer yields half as many positions as it reads.
        rho: layers `rho_0`, ...; the last layer is `logits`.
        pool: over the positions that exist, 0 where there is none (the layer is called `<group>_pool`); or flatten, all of them in order.
        activation: after each hidden layer.
        dropout: fraction dropped after each hidden layer of rho while training.
        precision: formats of a fixed-point student; None: float32.
    """
    check_options("conv", (*filters, *rho), activation, dropout, precision)
    groups = collections_of("conv", inputs)
    if not filters:
        raise UsageError("conv: filters needs at least one layer", then="--set model.filters=[32,32]")
    if precision is not None:
        pools = [] if pool == "flatten" else [f"{g.name}_pool" for g in groups]
        convolutions = [f"{g.name}_conv_{i}" for g in groups for i in range(len(filters))]
        precision.check([*(g.name for g in inputs.groups), *convolutions, *pools, *(f"rho_{i}" for i in range(len(rho))), "logits"])
    branches: list[Branch] = []
    joined: list[tuple[int, Grid | None]] = []
    for index, group in enumerate(inputs.groups):
        step = input_of(group, precision)
        if group.length is None:
            branches.append(Branch(step, (), None))
            joined.append((step.variables, step.grid))
            continue
        windows = _windows(group.name, group.length, kernel, stride, len(filters))
        layers, grid = _convolutions(group.name, step, kernel, filters, activation, jax.random.fold_in(key, index), precision)
        positions = windows[-1].positions
        pooled = None if pool == "flatten" else pooling(group.name, positions, pool, grid, precision)
        branches.append(ConvBranch(step, layers, pooled, windows))
        if pooled is None:
            joined.append((filters[-1] * positions, Grid.joined([grid] * positions)))
        else:
            joined.append((filters[-1], pooled.grid(filters[-1])))
    return joined_by(branches, joined, outputs, jax.random.fold_in(key, len(inputs.groups)), rho, activation, dropout, precision)


def _convolutions(
    group: str, step: GroupInput, kernel: int, filters: tuple[int, ...], activation: Activation, key: jax.Array, precision: Precision | None
) -> tuple[tuple[Dense, ...], Grid | None]:
    """The layers of a group, each over the neighbours that a window puts side by side, and the grid of what the last one yields."""
    layers: list[Dense] = []
    n, grid = step.variables, step.grid
    for i, width in enumerate(filters):
        source = Grid.joined([grid] * kernel)
        layers.append(dense(f"{group}_conv_{i}", kernel * n, width, activation, jax.random.fold_in(key, i), source, precision))
        n, grid = width, grid_after(layers[-1], width)
    return tuple(layers), grid


class Neighbours(NamedTuple):
    """What a convolution reads, as `hlt_train.nodes.Window` has it.

    Attributes:
        kernel, stride, before, after: of the window.
        positions: how many it yields at most.
        step: constituents of the group from one position to the next.
    """

    kernel: int
    stride: int
    before: int
    after: int
    positions: int
    step: int

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[n, length, features]` -> `[n, positions, kernel * features]`; what does not exist must be 0."""
        padded = jnp.pad(x, ((0, 0), (self.before, self.after), (0, 0)))
        last = (self.positions - 1) * self.stride + 1
        return jnp.concatenate([padded[:, k : k + last : self.stride] for k in range(self.kernel)], axis=-1)

    def present(self, counts: jax.Array) -> jax.Array:
        """int32 `[n]`: how many positions exist."""
        return jnp.clip(-(-counts // self.step), 0, self.positions)


def _windows(group: str, length: int, kernel: int, stride: int, layers: int) -> tuple[Neighbours, ...]:
    """One for each layer: a position at every stride-th constituent."""
    if kernel < 1 or stride < 1:
        raise UsageError(f"conv: kernel and stride are at least 1, got {kernel} and {stride}")
    made, step = [], 1
    for layer in range(layers):
        if stride > length or kernel > 2 * length + 1:
            raise UsageError(
                f"conv: layer '{group}_conv_{layer}' reads at most {length} positions, too few for kernel {kernel} and stride {stride}",
                then="use a smaller kernel or stride, or fewer filters",
            )
        positions, before, step = -(-length // stride), (kernel - 1) // 2, step * stride
        after = max((positions - 1) * stride + kernel - length - before, 0)
        made.append(Neighbours(kernel, stride, before, after, positions, step))
        length = positions
    return tuple(made)


class ConvBranch(Branch):
    """What a group of constituents goes through before rho; `phi` are the convolutions, as dense layers over neighbours. No pooling: flattened."""

    windows: tuple[Neighbours, ...] = eqx.field(static=True)

    def __call__(self, x: Features, key: jax.Array | None, tape: dict[str, jax.Array] | None) -> jax.Array:
        """`[n, features]` of this group; a key means training."""
        values, counts = self.input(x), jnp.asarray(x.counts[self.input.name])
        for number, (layer, window) in enumerate(zip(self.phi, self.windows, strict=True)):
            values = window(values)
            count = window.present(counts)
            mask = jnp.arange(window.positions) < count[:, None]
            if tape is not None:
                tape[layer.name] = jnp.where(mask[..., None], layer.accumulate(values), 0)
            values = jnp.where(mask[..., None], layer(values, folded(key, number)), 0)
        if self.pool is None:
            return values.reshape(values.shape[0], -1)
        if tape is not None:
            tape[self.pool.name] = self.pool.accumulate(values, mask, count)
        return self.pool(values, mask, count)

    def lower(self, made: Lowering, group: Group) -> str:
        """A Window before every layer; the name of the last node."""
        last = made.input(self.input, group)
        for layer, window in zip(self.phi, self.windows, strict=True):
            shape = {"kernel": window.kernel, "stride": window.stride, "before": window.before, "after": window.after}
            last = made.dense(layer, made.window(f"{layer.name}_window", last, group.name, **shape))
        return made.flatten(last, group.name) if self.pool is None else made.pool(self.pool, last, group.name)
