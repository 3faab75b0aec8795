"""Periodic averaging of parameters (Zinkevich et al. 2010, "Parallelized Stochastic Gradient Descent"; McDonald et al. 2010, iterative parameter mixing).

Every worker trains by itself; every `period` batches all of them meet, and each goes on from the mean of their parameters. Also known as local SGD.

    worker    x_i <- x_i + u      u: the optimiser's update for its own gradient
    barrier   x_i <- (1 / N) sum_j x_j

Optimiser state: the workers'; it is not averaged. The server keeps the last mean, which is what is validated and exported. With `period=1` and plain SGD it
is `sync`, to rounding; with momentum or Adam it is not, for the workers' states then differ.

Zinkevich et al. average once, at the end, and McDonald et al. once per epoch: both are this rule with a long period.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax

from hlt_train.strategies import Answers, Array, Grads, In, Key, Out, Params, Scalar, Setup, Strategy
from hlt_train.strategies._parts import answer_all, select, within

__all__ = ["average"]


class Worker(NamedTuple):
    """params, and the optimiser's state."""

    params: Params
    optimiser: Any


def average(setup: Setup, *, period: int = 10) -> Strategy:
    """Independent workers that start again from their mean every `period` batches.

    Args:
        setup: the run.
        period: batches between means.
    """
    within("average", "period", period, 1)
    tx = setup.tx()

    def step(w: Worker, _loss: Scalar, grads: Grads) -> Worker:
        updates, optimiser = tx.update(grads, w.optimiser, w.params)
        return Worker(optax.apply_updates(w.params, updates), optimiser)

    def ask(w: Worker, _key: Key) -> tuple[Worker, Out]:
        return w, Out(w.params, push=True, fetch=True)

    def take(w: Worker, params: Params, _message: In) -> Worker:
        return w._replace(params=params)

    def serve(s: Params, messages: In, _measured: Array) -> tuple[Params, Answers]:
        mean = select(messages.push.any(), jax.tree.map(lambda x: x.mean(axis=0), messages.body), s)
        return mean, answer_all(mean, messages)

    return Strategy(
        init_worker=lambda params, _info: Worker(params, tx.init(params)),
        point=lambda w: w.params,
        step=step,
        ask=ask,
        take=take,
        init_server=lambda params, _info: params,
        serve=serve,
        params=lambda _w, s: s,
        quorum=0,
        combine="mean",
        order="all",
        every=period,
    )
