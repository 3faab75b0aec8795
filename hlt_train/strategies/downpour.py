"""Downpour SGD (Dean et al. 2012, "Large Scale Distributed Deep Networks", section 4.1 and appendix, algorithm 1.1).

Asynchronous in two ways: workers do not wait for one another, and the shards of the server know nothing of one another. A worker steps by itself on every
batch, pushes the sum of its gradients every `n_push` batches and fetches the parameters every `n_fetch`.

    worker    acc += g,  x -= local rate(t) g;   t % n_push == 0: push(acc), acc = 0;   t % n_fetch == 0: x = fetch()
    server    x = x + update(acc), by any optimiser

Optimiser state: the server's (per shard). The worker's own step is plain SGD and has none; with n_fetch=1 it is overwritten before it is used.

Where this differs from the paper. Its algorithm pushes at steps 0, n_push, 2 n_push, ..., so that the first push holds one gradient; here every push holds
n_push of them. Its three threads (push, fetch, compute) are one exchange, which a transport may overlap with the computation. Adagrad is the paper's server:
choose it as the optimiser with initial_accumulator_value=0 and eps=0 (optax: 0.1 and 1e-7). Its gamma is then "perhaps an order of magnitude" above a good
fixed rate (section 4.1), too much for the worker's plain steps: that is what `local` is for. An optimiser that looks at more than one element
(lamb, a global norm) sees the elements of its shard.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hlt_train.strategies import Answers, Array, Grads, In, Info, Int, Key, Out, Params, Scalar, Setup, Strategy
from hlt_train.strategies._parts import add, answer_all, scaled, select, subtract, within, zeros

__all__ = ["downpour"]


class Worker(NamedTuple):
    """params; the gradients since the last push, summed; batches done, int32."""

    params: Params
    accumulated: Grads
    step: Int


class Server(NamedTuple):
    """params, and the optimiser's state."""

    params: Params
    optimiser: Any


def downpour(setup: Setup, *, n_push: int = 1, n_fetch: int = 1, local: float = 1.0, warm_start: int = 0) -> Strategy:
    """Asynchronous SGD on a sharded parameter server.

    One worker with n_push = n_fetch = 1 is the serial optimiser.

    Args:
        setup: the run.
        n_push: batches of a worker between pushes of its accumulated gradient.
        n_fetch: batches of a worker between fetches of the parameters.
        local: the worker's own steps have `local` times the learning rate; 0: it stays where it fetched.
        warm_start: first steps that one worker does alone.
    """
    within("downpour", "n_push", n_push, 1)
    within("downpour", "n_fetch", n_fetch, 1)
    within("downpour", "local", local, 0)
    within("downpour", "warm_start", warm_start, 0)
    tx = setup.tx(updates_per_step=setup.workers / n_push)
    every = math.gcd(n_push, n_fetch)

    def init_worker(params: Params, _info: Info) -> Worker:
        return Worker(params, zeros(params), jnp.int32(0))

    def step(w: Worker, _loss: Scalar, grads: Grads) -> Worker:
        params = subtract(w.params, scaled(local * setup.rate(w.step), grads))
        return Worker(params, add(w.accumulated, grads), w.step + 1)

    def ask(w: Worker, _key: Key) -> tuple[Worker, Out]:
        # An exchange between the regular ones is the transport's last: what is left goes out.
        push = (w.step % n_push == 0) | (w.step % every != 0)
        return w._replace(accumulated=select(push, zeros(w.accumulated), w.accumulated)), Out(w.accumulated, push, w.step % n_fetch == 0)

    def take(w: Worker, params: Params, _message: In) -> Worker:
        return w._replace(params=params)

    def init_server(params: Params, _info: Info) -> Server:
        return Server(params, tx.init(params))

    def serve(s: Server, messages: In, _measured: Array) -> tuple[Server, Answers]:
        grads = jax.tree.map(lambda leaf: leaf[0], messages.body)
        updates, optimiser = tx.update(grads, s.optimiser, s.params)
        s = select(messages.push[0], Server(optax.apply_updates(s.params, updates), optimiser), s)
        return s, answer_all(s.params, messages)

    return Strategy(
        init_worker=init_worker,
        point=lambda w: w.params,
        step=step,
        ask=ask,
        take=take,
        init_server=init_server,
        serve=serve,
        params=lambda _w, s: s.params,
        every=every,
        warm=warm_start,
    )
