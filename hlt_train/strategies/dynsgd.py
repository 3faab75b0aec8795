"""Staleness-aware asynchronous SGD (Zhang, Gupta, Lian, Liu 2015, "Staleness-aware Async-SGD for Distributed Deep Learning", section 3), alias DynSGD.

A gradient that was taken tau updates ago counts 1 / (tau + 1). With `softsync=n` the n-softsync protocol of the same paper: the server waits for
c = floor(N / n) gradients and applies their mean, each divided by its own tau + 1. (Fewer than c, when no more workers are left, are a mean of fewer.)

    x <- x + update( (1 / c) sum_k g_k / (tau_k + 1) )         update(g) = -eta g for plain SGD

Optimiser state: the server's (per shard). With plain SGD this is the paper's eta / tau rule; an optimiser that divides by the gradient's own size (Adam,
Adagrad) takes back most of a division that is the same for all gradients.

Where this differs from the paper. It divides by tau where tau > 0; here by tau + 1 throughout (so did the code of Odena 2016), which is continuous at tau = 0
and half as large at tau = 1. tau counts updates of the server. A worker waits until its gradient is applied (as in Odena's
description of the protocol), which for n = 1 is a barrier; the paper's own learners go on with the parameters that they have. With equal
workers served in turn, tau is N - 1 and the rate eta / N: safe and slow, see `gem`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hlt_train.strategies import Answers, Array, Grads, In, Info, Key, Out, Params, Scalar, Setup, Strategy
from hlt_train.strategies._parts import answer_all, select, within, zeros

__all__ = ["dynsgd"]


class Worker(NamedTuple):
    """params, and the gradient of the last batch."""

    params: Params
    grads: Grads


class Server(NamedTuple):
    """params, and the optimiser's state."""

    params: Params
    optimiser: Any


def dynsgd(setup: Setup, *, softsync: int = 0) -> Strategy:
    """Asynchronous SGD whose gradients count less the staler they are.

    Args:
        setup: the run.
        softsync: n of n-softsync, from 1 (an update per N gradients) to N (an update per gradient); 0: N.
    """
    within("dynsgd", "softsync", softsync, 0, setup.workers)
    gradients = setup.workers // (softsync or setup.workers)  # c, gradients per update
    tx = setup.tx(updates_per_step=setup.workers / gradients)

    def step(w: Worker, _loss: Scalar, grads: Grads) -> Worker:
        return w._replace(grads=grads)

    def ask(w: Worker, _key: Key) -> tuple[Worker, Out]:
        return w, Out(w.grads, push=True, fetch=True)

    def take(w: Worker, params: Params, _message: In) -> Worker:
        return w._replace(params=params)

    def init_server(params: Params, _info: Info) -> Server:
        return Server(params, tx.init(params))

    def serve(s: Server, messages: In, _measured: Array) -> tuple[Server, Answers]:
        def modulated(g: Array) -> Array:
            def along(heads: Array) -> Array:
                return heads.reshape((-1,) + (1,) * (g.ndim - 1))

            counts = jnp.where(along(messages.push), g / along(messages.staleness + 1), 0)
            return counts.sum(axis=0) / jnp.maximum(messages.push.sum(), 1)

        updates, optimiser = tx.update(jax.tree.map(modulated, messages.body), s.optimiser, s.params)
        s = select(messages.push.any(), Server(optax.apply_updates(s.params, updates), optimiser), s)
        return s, answer_all(s.params, messages)

    return Strategy(
        init_worker=lambda params, _info: Worker(params, zeros(params)),
        point=lambda w: w.params,
        step=step,
        ask=ask,
        take=take,
        init_server=init_server,
        serve=serve,
        params=lambda _w, s: s.params,
        quorum=gradients,
        order="all" if gradients > 1 else "each",
    )
