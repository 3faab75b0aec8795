"""Accumulated gradient normalisation (Hermans, Spanakis, Moeckel 2017, "Accumulated Gradient Normalization", section 3; ADAG in dist-keras).

A worker does `window` (the paper's lambda) steps of its own and commits their mean, not their sum: a commit has the size of one step however long the worker
explored. Then it pulls.

    worker    x <- x + u,  total <- total + u      u: the optimiser's update, -eta g for plain SGD
    every window batches: commit (1 / window) total,  x <- pull()
    server    x~ <- x~ + commit                    plain addition, which may run lock-free

Optimiser state: the workers'; it is not exchanged. The server has none. `window=1` with plain SGD is `downpour`.

The paper has plain SGD for u. A last window that the end of the run cuts short is divided by the batches that it had.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from hlt_train.strategies import Grads, In, Info, Int, Key, Out, Params, Scalar, Setup, Strategy
from hlt_train.strategies._parts import add, scaled, within, zeros

__all__ = ["agn"]


class Worker(NamedTuple):
    """params; the updates since the last commit, summed; their number, int32; the optimiser's state."""

    params: Params
    total: Params
    count: Int
    optimiser: Any


def agn(setup: Setup, *, window: int = 5) -> Strategy:
    """Asynchronous SGD that commits the mean of several local steps.

    Args:
        setup: the run.
        window: lambda, local steps per commit.
    """
    within("agn", "window", window, 1)
    tx = setup.tx()

    def init_worker(params: Params, _info: Info) -> Worker:
        return Worker(params, zeros(params), jnp.int32(0), tx.init(params))

    def step(w: Worker, _loss: Scalar, grads: Grads) -> Worker:
        updates, optimiser = tx.update(grads, w.optimiser, w.params)
        return Worker(add(w.params, updates), add(w.total, updates), w.count + 1, optimiser)

    def ask(w: Worker, _key: Key) -> tuple[Worker, Out]:
        commit = scaled(1 / jnp.maximum(w.count, 1), w.total)
        return w._replace(total=zeros(w.total), count=jnp.int32(0)), Out(commit, push=True, fetch=True)

    def take(w: Worker, params: Params, _message: In) -> Worker:
        return w._replace(params=params)

    return Strategy(
        init_worker=init_worker,
        point=lambda w: w.params,
        step=step,
        ask=ask,
        take=take,
        init_server=lambda params, _info: params,
        serve=None,
        params=lambda _w, s: s,
        every=window,
    )
