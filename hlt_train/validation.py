"""Validation: weighted means over the whole validation split, in batches of one fixed size, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hlt_train.data.stream import Stream
from hlt_train.devices import gathered, mine, parallel, place
from hlt_train.errors import RunFailed
from hlt_train.types import Batch

__all__ = ["Losses", "Validator"]

Params = Any
# (params, batch, key or None) -> loss per row [n] and further per-row figures by name; a key means training
Losses = Callable[[Params, Batch, Any], tuple[jax.Array, dict[str, jax.Array]]]


class Validator:
    """Evaluates parameters on a split.

    Args:
        losses: per-row loss and figures.
        stream: the split in file order (`shuffle=False`).
        mesh: the rows of a batch are shared by its devices.
        resident: keep the batches on the devices after the first pass.
    """

    def __init__(self, losses: Losses, stream: Stream, mesh: Mesh, *, resident: bool) -> None:
        self._stream, self._mesh, self._resident = stream, mesh, resident
        self._kept: list[Any] | None = None
        self._sums = parallel(_weighted_sums(losses), mesh, arguments=2)

    def __call__(self, params: Params) -> dict[str, float]:
        """Weighted means of the loss and of every figure; `params` has one copy per device of this process. Sums run in float64 in the order of the batches."""
        total: dict[str, float] = {}
        for batch in self._batches():
            for name, values in gathered(self._sums(params, batch), self._mesh).items():
                total[name] = total.get(name, 0.0) + float(np.asarray(values, np.float64).sum())
        weight = total.pop("weight")
        total = {"loss": total.pop("loss"), **total}  # devices give names in alphabetical order
        if not weight > 0:
            raise RunFailed(f"the training weights of the validation split sum to {weight:g}", then="check weights and splits in the card")
        return {name: value / weight for name, value in total.items()}

    def _batches(self) -> Iterator[Any]:
        if self._kept is not None:
            yield from self._kept
            return
        kept, here = [], mine(self._mesh)
        for batch, _rows in self._stream.epoch(0):
            placed = place(jax.tree.map(lambda leaf: leaf[here], batch), self._mesh)
            if self._resident:
                kept.append(placed)
            yield placed
        if self._resident:
            self._kept = kept


def _weighted_sums(losses: Losses) -> Callable[[Params, Batch], dict[str, jax.Array]]:
    def sums(params: Params, batch: Batch) -> dict[str, jax.Array]:
        loss, figures = losses(params, batch, None)
        real = batch.weight != 0  # a padding row has weight 0: what it holds must not matter, not even a NaN
        weighted = {name: jnp.where(real, batch.weight * value, 0).sum() for name, value in {"loss": loss, **figures}.items()}
        return {"weight": batch.weight.sum(), **weighted}

    return sums
