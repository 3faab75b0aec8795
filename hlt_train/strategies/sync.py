"""Synchronous SGD: every worker's gradient, their exact mean, one optimiser step on the server, the new parameters to everyone."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hlt_train.strategies import Answers, Array, Grads, In, Info, Key, Out, Params, Scalar, Strategy

__all__ = ["sync"]


class Worker(NamedTuple):
    """grads is None except between `step` and `take`: no memory is held for it from one batch to the next."""

    params: Params
    grads: Grads | None


class Server(NamedTuple):
    """params, and the optimiser's state."""

    params: Params
    optimiser: Any


def sync(tx: optax.GradientTransformation) -> Strategy:
    """Exact synchronous SGD with any optax optimiser on the server.

    N workers with batches of b rows take the step of one worker with N b rows, to the rounding of the mean.
    """

    def init_worker(params: Params, _info: Info) -> Worker:
        return Worker(params, None)

    def step(w: Worker, _loss: Scalar, grads: Grads) -> Worker:
        return w._replace(grads=grads)

    def ask(w: Worker, _key: Key) -> tuple[Worker, Out]:
        return w, Out(w.grads, push=True, fetch=True)

    def take(_w: Worker, params: Params, _message: In) -> Worker:
        return Worker(params, None)

    def init_server(params: Params, _info: Info) -> Server:
        return Server(params, tx.init(params))

    def serve(s: Server, messages: In, _measured: Array) -> tuple[Server, Answers]:
        mean = jax.tree.map(lambda g: g.mean(axis=0), messages.body)
        updates, optimiser = tx.update(mean, s.optimiser, s.params)
        params = optax.apply_updates(s.params, updates)
        answers = jax.tree.map(lambda p: jnp.broadcast_to(p, (jnp.shape(messages.source)[0], *p.shape)), params)
        return Server(params, optimiser), answers

    return Strategy(
        init_worker=init_worker,
        point=lambda w: w.params,
        step=step,
        ask=ask,
        take=take,
        init_server=init_server,
        serve=serve,
        params=lambda _w, s: s.params,
        quorum=0,
        combine="mean",
        order="all",
    )
