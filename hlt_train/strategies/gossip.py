"""GoSGD (Blot, Picard, Cord, Thome 2016, "Gossip training for deep learning"), as Theano-MPI ran it.

No server. Worker i holds parameters x_i and a weight a_i = 1/N. After a batch, with probability p, it draws another worker, halves its weight and sends
(x_i, a_i). The receiver takes the mean of both by weight, and the sum of the weights:

    x_j <- (a_j x_j + a_i x_i) / (a_j + a_i),    a_j <- a_j + a_i

Over workers and messages in flight, the sum of a is 1 and gossip leaves the sum of a x unchanged (to rounding). The sender waits for nobody.

Deviations: the local step is any optax optimiser, whose state stays where it is; what is validated and exported is the sum of a_i x_i over the workers, divided
by the sum of their a_i (a message in flight, or a worker that died, is missing in both), where the paper takes any one worker.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hlt_train.errors import UsageError
from hlt_train.strategies import Array, Body, Grads, In, Info, Key, Out, Params, S, Scalar, Setup, Strategy, W

__all__ = ["gossip"]

TINY = 1e-38  # two weights that both were halved away (126 messages sent for none received) meet without 0 / 0


class Worker(NamedTuple):
    """params; optimiser: its state; weight: a, float32; index: int32, who this is."""

    params: Params
    optimiser: Any
    weight: Array
    index: Array


def gossip(setup: Setup, *, p: float = 0.01) -> Strategy:
    """Workers train alone and send their weighted parameters to one another at random.

    Args:
        setup: the run.
        p: probability that a worker sends after a batch.
    """
    if not 0 <= p <= 1:
        raise UsageError(f"gossip: p={p} is no probability", then="p from 0 to 1")
    tx = setup.tx()
    n = setup.workers

    def init_worker(params: Params, info: Info) -> Worker:
        return Worker(params, tx.init(params), jnp.asarray(1 / n, jnp.float32), jnp.asarray(info.index, jnp.int32))

    def step(w: Worker, _loss: Scalar, grads: Grads) -> Worker:
        updates, optimiser = tx.update(grads, w.optimiser, w.params)
        return w._replace(params=optax.apply_updates(w.params, updates), optimiser=optimiser)

    def ask(w: Worker, key: Key) -> tuple[Worker, Out]:
        whether, whom = jax.random.split(key)
        push = (jax.random.uniform(whether) < p) & (n > 1)
        to = (w.index + 1 + jax.random.randint(whom, (), 0, max(n - 1, 1))) % n
        half = w.weight / 2
        return w._replace(weight=jnp.where(push, half, w.weight)), Out((w.params, half), push, fetch=False, to=to)

    def take(w: Worker, body: Body, _message: In) -> Worker:
        params, weight = body
        total = w.weight + weight
        share = weight / jnp.maximum(total, TINY)
        return w._replace(params=jax.tree.map(lambda mine, theirs: mine + share * (theirs - mine), w.params, params), weight=total)

    def parameters(w: W, _s: S) -> Params:
        share = w.weight / jnp.maximum(w.weight.sum(), TINY)
        return jax.tree.map(lambda x: jnp.tensordot(share, x, axes=1, precision="highest"), w.params)

    return Strategy(
        init_worker=init_worker,
        point=lambda w: w.params,
        step=step,
        ask=ask,
        take=take,
        init_server=lambda _params, _info: (),
        serve=None,
        params=parameters,
        peers=True,
    )
