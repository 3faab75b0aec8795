"""What is learnt: what every trainer is given.

The loss of a worker's batch of b rows is `sum(w * l) / (b * mean_weight)`: linear in the rows, so that the mean over N workers is the loss of one worker with
N b rows, and the last batch of an epoch, which has fewer rows, counts each of them as much as any other. `mean_weight` is that of the training split.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from hlt_train.data.stream import Stream
from hlt_train.devices import memory
from hlt_train.record import Plan
from hlt_train.strategies import Params
from hlt_train.types import Batch
from hlt_train.validation import Losses

__all__ = ["Task", "gradient_of", "rows_between", "stays", "weighted_mean"]

RESIDENT_SHARE = 0.25


class Task(NamedTuple):
    """What is learnt.

    Attributes:
        params: initial parameters, a pytree of float arrays.
        losses: (params, batch, key or None) -> (loss per row `[n]`, figures per row by name, which validation averages).
        train: the shuffled training stream.
        validation: the validation split in file order.
        mean_weight: mean training weight over the training split.
        batch: rows per step over all workers.
        penalty: added to the loss of a step; a function of the parameters alone.
        learning: (parameters as the strategy has them, batch, key) -> the loss of a step, where that is more than the weighted mean of `losses`.
    """

    params: Params
    losses: Losses
    train: Stream
    validation: Stream
    mean_weight: float
    batch: int
    penalty: Callable[[Params], jax.Array] | None = None
    learning: Callable[[Params, Any, Any], jax.Array] | None = None


def weighted_mean(rows: jax.Array, batch: Batch, mean_weight: float) -> jax.Array:
    """The loss of a worker's batch from the losses of its rows `[n]`."""
    return jnp.sum(batch.weight * rows) / (rows.shape[0] * mean_weight)


def gradient_of(task: Task) -> Callable[[Params, Any, Any], tuple[jax.Array, Params]]:
    """(params, batch, key) -> (loss, grads) of one worker's batch."""

    def plain(params: Params, batch: Any, key: Any) -> jax.Array:
        return weighted_mean(task.losses(params, batch, key)[0], batch, task.mean_weight)

    learning = task.learning or plain

    def gradient(params: Params, batch: Any, key: Any) -> tuple[jax.Array, Params]:
        def loss(p: Params) -> jax.Array:
            found = learning(p, batch, key)
            return found if task.penalty is None else found + task.penalty(p)

        value, grads = jax.value_and_grad(loss)(params)
        return value, grads

    return gradient


def stays(task: Task, plan: Plan, mesh: Mesh) -> bool:
    """Whether the decoded data are kept on the devices."""
    if plan.resident != "auto":
        return plan.resident == "always"
    decoded = task.train.row_bytes * task.train.rows + task.validation.row_bytes * task.validation.rows
    return bool(decoded <= RESIDENT_SHARE * memory(mesh))


def rows_between(task: Task, begin: int, end: int) -> int:
    """Rows of the training data in the steps from `begin` to `end`; the last batch of an epoch has fewer."""
    stream = task.train
    upto = [step // stream.steps_per_epoch * stream.rows + min(step % stream.steps_per_epoch * task.batch, stream.rows) for step in (begin, end)]
    return upto[1] - upto[0]
