"""Synchronous SGD with backup workers (Chen, Pan, Monga, Bengio, Jozefowicz 2016, "Revisiting Distributed Synchronous SGD", section 3.1, algorithms 3 and 4).

Every worker's gradient, their exact mean, one optimiser step on the server, the new parameters to everyone. With b backups the update takes the first N - b
gradients of a round and does not wait for the others: a gradient that comes after its round has closed is dropped and counted, and its worker gets the
parameters of the open round. The paper writes N + b workers for N gradients; here `--workers` counts all of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hlt_train.errors import UsageError
from hlt_train.strategies import Answers, Array, Grads, In, Info, Key, Out, Params, Scalar, Setup, Strategy

__all__ = ["sync"]


class Worker(NamedTuple):
    """grads is None except between `step` and `take`: no memory is held for it from one batch to the next."""

    params: Params
    grads: Grads | None


class Server(NamedTuple):
    """params, and the optimiser's state."""

    params: Params
    optimiser: Any


def sync(setup: Setup, *, backups: int = 0) -> Strategy:
    """Exact synchronous SGD with any optax optimiser on the server.

    N workers with batches of b rows take the step of one worker with N b rows, to the rounding of the mean.

    Args:
        setup: the run.
        backups: workers whose gradients a round does not wait for.
    """
    if not 0 <= backups < setup.workers:
        raise UsageError(f"sync: {backups} backups of {setup.workers} workers leave no gradient to wait for", then=f"backups from 0 to {setup.workers - 1}")
    tx = setup.tx()

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
        quorum=-backups,
        combine="each" if backups else "mean",
        late="drop" if backups else "serve",
        order="all",
    )
