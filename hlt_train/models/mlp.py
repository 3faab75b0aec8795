"""A multilayer perceptron over all inputs: scalars, and constituents flattened with zeros beyond the count."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from hlt_train.graph import Graph
from hlt_train.models._layers import Activation, Dense, Grid, GroupInput, chain, check_options, dense, input_of, run
from hlt_train.models._lower import Lowering
from hlt_train.precision.config import Precision
from hlt_train.precision.grid import folded
from hlt_train.types import Features, Inputs

__all__ = ["MLP", "mlp"]


def mlp(
    inputs: Inputs,
    outputs: int,
    key: jax.Array,
    *,
    widths: tuple[int, ...] = (64, 32, 32),
    activation: Activation = "relu",
    dropout: float = 0.0,
    precision: Precision | None = None,
) -> MLP:
    """Multilayer perceptron; constituents are flattened, in order, with zeros beyond their count.

    Args:
        inputs: groups of scalars and of constituents, any number.
        outputs: number of logits.
        key: random key of the initial weights.
        widths: hidden layers `dense_0`, `dense_1`, ...; the last layer is `logits`.
        activation: after each hidden layer.
        dropout: fraction dropped after each hidden layer while training.
        precision: formats of a fixed-point student; None: float32.
    """
    check_options("mlp", widths, activation, dropout, precision)
    names = (*(g.name for g in inputs.groups), *(f"dense_{i}" for i in range(len(widths))), "logits")
    if precision is not None:
        precision.check(names)
    steps = tuple(input_of(group, precision) for group in inputs.groups)
    features = sum(step.features for step in steps)
    source = _flat_grid(steps)
    hidden = chain("dense", features, widths, activation, key, source, precision)
    if hidden and hidden[-1].formats is not None and hidden[-1].formats.out is not None:
        source = Grid.of(hidden[-1].formats.out, widths[-1])
    last = dense("logits", widths[-1] if widths else features, outputs, "none", jax.random.fold_in(key, len(widths)), source, precision, last=True)
    return MLP(steps, (*hidden, last), dropout)


def _flat_grid(steps: tuple[GroupInput, ...]) -> Grid | None:
    return Grid.joined([step.grid for step in steps for _ in range(step.length or 1)])


class MLP(eqx.Module):
    """See `mlp`. `[n, ...]` normalised features -> `[n, outputs]` logits."""

    inputs: tuple[GroupInput, ...]
    layers: tuple[Dense, ...]
    dropout: float = eqx.field(static=True)

    def __call__(self, x: Features, *, key: jax.Array | None = None) -> jax.Array:
        """Logits of a batch; a key means training (dropout)."""
        return self._forward(x, key, None)

    def trace(self, x: Features) -> dict[str, jax.Array]:
        """Layer name -> values before its loss of bits, for calibration and saturation."""
        tape: dict[str, jax.Array] = {}
        self._forward(x, None, tape)
        return tape

    def _forward(self, x: Features, key: jax.Array | None, tape: dict[str, jax.Array] | None) -> jax.Array:
        parts = [step(x) for step in self.inputs]
        flat = jnp.concatenate([part.reshape(part.shape[0], step.features) for part, step in zip(parts, self.inputs, strict=True)], axis=-1)
        hidden = run(self.layers[:-1], flat, dropout=self.dropout, key=key, tape=tape)
        return self.layers[-1](hidden, folded(key, len(self.layers) - 1))

    def lower(self, inputs: Inputs, names: tuple[str, ...], score: np.ndarray | None) -> Graph:
        """The graph of this network, its normalisation included.

        Args:
            inputs: what the network was built with.
            names: of the outputs.
            score: int64 `[outputs]`, the integer combination of logits to cut on; None for float networks.
        """
        made = Lowering()
        parts = []
        for step, group in zip(self.inputs, inputs.groups, strict=True):
            part = made.input(step, group)
            parts.append(part if group.length is None else made.flatten(part, group.name))
        last = made.concat("features", parts)
        for layer in self.layers:
            last = made.dense(layer, last)
        return made.output(last, names, score)
