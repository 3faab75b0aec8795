"""What gradients are taken of, where that is more than the loss that is validated: terms with companions of their own, and batches changed before use.

`Learning` is what a verb asks for; `completed` makes of it, with training in low precision where that is wanted, the function of a `Task`, the strategy's
optimiser and the strategy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from hlt_train import low_precision
from hlt_train.beside import Beside, Companion, accompanied, optimiser
from hlt_train.low_precision import SCALES, LowPrecision
from hlt_train.strategies import Strategy
from hlt_train.task import weighted_mean
from hlt_train.types import Batch
from hlt_train.validation import Losses

__all__ = ["Learning", "Whole", "completed", "of_losses"]

PREPARATION = 0xA06  # folded into a step's key
Loss = Callable[[Beside, Batch, Any], jax.Array]
Prepare = Callable[[Batch, Any], Batch]
Rule = Callable[[optax.GradientTransformation], optax.GradientTransformation]


class Learning(NamedTuple):
    """What is learnt.

    Attributes:
        loss: (`Beside`, prepared batch, key) -> the loss of a step of one worker, a mean over its rows.
        companions: what travels beside the network, by name.
        prepare: (batch, key) -> batch, before anything is computed from it; nothing that it computes is trained, or in low precision.
        raw: `prepare` wants the features as they are in the file, and normalises them itself.
    """

    loss: Loss
    companions: Mapping[str, Companion] = {}
    prepare: Prepare | None = None
    raw: bool = False


def of_losses(losses: Losses, mean_weight: float) -> Loss:
    """The weighted mean of losses per row, of a network alone."""
    return lambda params, batch, key: weighted_mean(losses(params.network, batch, key)[0], batch, mean_weight)


class Whole(NamedTuple):
    """Everything that training needs to know of a `Learning`.

    Attributes:
        gradients: for `Task.learning`; None: the weighted mean of the validated losses.
        optimiser: from the one that the user chose.
        strategy: from the rule made with it.
    """

    gradients: Callable[[Any, Batch, Any], jax.Array] | None
    optimiser: Rule
    strategy: Callable[[Strategy], Strategy]


def completed(
    learning: Learning | None, low: LowPrecision | None, plain: Loss, params: Any, example: Batch, *, own: Rule = lambda chosen: chosen, batch: int, seed: int
) -> Whole:
    """Put together what is learnt and the arithmetic of training.

    Args:
        learning: None: `plain`.
        low: None: float32.
        plain: the validated loss.
        params: of the network, for their shapes.
        example: a small batch as the stream gives them, for its shapes.
        own: the network's optimiser from the one that the user chose.
        batch: rows per step over all workers.
        seed: of stochastic rounding.
    """
    if learning is None and low is None:
        return Whole(None, own, lambda rule: rule)
    wanted = learning or Learning(plain)
    loss, companions, prepare = wanted.loss, dict(wanted.companions), wanted.prepare
    if low is not None:
        ready = example if prepare is None else prepare(example, jax.random.key(0))
        start = Beside(params, {name: companion.start for name, companion in companions.items()})
        companions[SCALES] = low_precision.scales(low, loss, start, ready, batch=batch)
        loss = low_precision.learning(low, loss)

    def gradients(whole: Any, batch: Batch, key: Any) -> jax.Array:
        if prepare is not None:
            # A key of its own: the network's is the one it would have had without.
            batch = prepare(batch, jax.random.fold_in(key, PREPARATION))
        return loss(whole if companions else Beside(whole, {}), batch, key)

    def optimised(chosen: optax.GradientTransformation) -> optax.GradientTransformation:
        network = own(chosen) if low is None else low_precision.storage(low, own(chosen), batch=batch, seed=seed)
        return optimiser(network, {name: companion.optimiser(chosen) for name, companion in companions.items()}) if companions else network

    return Whole(gradients, optimised, lambda rule: accompanied(rule, companions) if companions else rule)
