"""Gradient energy matching (Hermans, Louppe 2018, "Gradient Energy Matching for Distributed Asynchronous Gradient Descent", algorithm 1).

However many workers there are, together they shall move the server as one SGD with momentum would. A worker keeps the momentum m of that process as its proxy,
looks how far the server went since it last looked, and scales its own step to what is missing, element by element:

    d <- -eta g(s)                                        the gradient at what the worker has
    m <- mu m + d
    theta <- fetch()
    pi <- (kappa |m| - |theta - s|) / (|d| + epsilon)     clipped to [0, clip]
    commit(pi d)                                          server: theta <- theta + pi d, plain addition, which may run lock-free
    s <- theta + pi d

Two asks: one fetches, one commits. eta is the run's learning rate at the worker's own step; the run's optimiser is not used.
State m is the worker's and is not exchanged; the server has none.

Where the paper contradicts itself: equation 21 has in theta - s the updates of the n - 1 *other* workers, but line 8 of the algorithm, s <- theta, leaves the
worker's own last commit in it, so that a lone worker brakes on its own step. Here, as in the equation, s is what the worker knows, its own commit included (it
is also where the authors' code takes the gradient): one worker's steps then have exactly the size |m|, where the clip allows it.

s starts at the initial parameters, so that a worker's first theta - s is what the others did before its first step (the authors' code zeroes s, and then pulls
once before it begins: the same). The clip at 5 is the code's, the paper has none.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hlt_train.strategies import Array, Bool, Grads, In, Info, Int, Key, Out, Params, Scalar, Setup, Strategy
from hlt_train.strategies._parts import add, scaled, select, within, zeros

__all__ = ["gem"]


class Worker(NamedTuple):
    """params: s, and between the asks theta; momentum: m; delta: d, and between the asks pi d; batches done, int32; whether the next ask commits."""

    params: Params
    momentum: Params
    delta: Params
    step: Int
    commits: Bool


def gem(setup: Setup, *, kappa: float = 1.0, mu: float = 0.9, epsilon: float = 1e-16, clip: float = 5.0) -> Strategy:
    """Asynchronous SGD whose workers together move like one SGD with momentum.

    Args:
        setup: the run.
        kappa: amplification of the proxy; the paper finds 2 good.
        mu: momentum of the process that the workers imitate.
        epsilon: beside |d| in the denominator.
        clip: largest pi.
    """
    within("gem", "kappa", kappa, 0)
    within("gem", "mu", mu, 0, 1)
    within("gem", "epsilon", epsilon, 0)
    within("gem", "clip", clip, 0)

    def init_worker(params: Params, _info: Info) -> Worker:
        return Worker(params, zeros(params), zeros(params), jnp.int32(0), jnp.asarray(False))

    def step(w: Worker, _loss: Scalar, grads: Grads) -> Worker:
        delta = scaled(-setup.rate(w.step), grads)
        return w._replace(momentum=add(scaled(mu, w.momentum), delta), delta=delta, step=w.step + 1)

    def ask(w: Worker, _key: Key) -> tuple[Worker, Out]:
        after = select(w.commits, add(w.params, w.delta), w.params)
        return w._replace(params=after, commits=~w.commits), Out(w.delta, push=w.commits, fetch=~w.commits)

    def take(w: Worker, theta: Params, _message: In) -> Worker:
        def matched(m: Array, now: Array, s: Array, d: Array) -> Array:
            return jnp.clip((kappa * jnp.abs(m) - jnp.abs(now - s)) / (jnp.abs(d) + epsilon), 0, clip) * d

        return w._replace(params=theta, delta=jax.tree.map(matched, w.momentum, theta, w.params, w.delta))

    return Strategy(
        init_worker=init_worker,
        point=lambda w: w.params,
        step=step,
        ask=ask,
        take=take,
        init_server=lambda params, _info: params,
        serve=None,
        params=lambda _w, s: s,
        asks=2,
    )
