"""Faster asynchronous SGD, FASGD, and its bandwidth-aware form, B-FASGD (Odena 2016, "Faster Asynchronous SGD", sections 2.2 and 2.3).

The server divides each element of a gradient by a running estimate v of its standard deviation, and by its staleness:

    std    n <- gamma n + (1 - gamma) g^2,  b <- gamma b + (1 - gamma) g,  v <- beta v + (1 - beta) sqrt(n - b^2 + eps),  v = 1 at first
           x <- x - rate / (v (tau + 1)) g
    abs    v <- gamma v + (1 - gamma) |g|,  v = 0 at first
           x <- x - rate / ((v + eps) (tau + 1)) g

A worker that could push (or fetch) does so with probability 1 / (1 + c / (vbar + eps)), c being c_push or c_fetch and vbar the mean of v as the worker last saw
it: where gradients change little, little is sent. For a push that is not made the server applies that worker's last pushed gradient again, from a cache
of N gradients (only where c_push > 0).

Optimiser state: n, b and v, the server's (per shard). The run's optimiser is not used; `rate` is the run's learning rate, at the server's updates / N. vbar
goes whole with an answer, so with several shards it is shard 0's: the mean over the first slice of the parameters.

Where the paper contradicts itself, and what is done here. Its equation for v has 1 / sqrt(n - b^2 + eps), its text calls v "a moving average of gradient
standard deviation" by which the rate is divided, and the gate needs a v that is large where gradients scatter: `std` follows the text. The author's code
keeps a mean of |g| instead: `abs` (he divides by v + 1e-3 and has 1e-4 in the gate; here both are eps). The equation divides by tau, which is 0 for a fresh
gradient, his code by tau + 1, as here. A fetch that is not made leaves the worker where it is; its parameters keep their old clock (in his code they get the
new one). When neither push nor fetch passes its gate nothing reaches the server, which then applies nothing. A worker's first push passes always, as in his
code. tau of a gradient that is applied again grows with the gradients that were pushed since.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from hlt_train.strategies import Answers, Array, Bool, Grads, In, Info, Int, Key, Out, Params, PyTree, Scalar, Setup, Strategy
from hlt_train.strategies._parts import answer_all, select, within, zeros

__all__ = ["fasgd"]


class Worker(NamedTuple):
    """params; the gradient of the last batch; vbar, float32, as of the last fetch; whether the worker has pushed before."""

    params: Params
    grads: Grads
    vbar: Scalar
    pushed: Bool


class Cache(NamedTuple):
    """The last gradient of every worker, a leading axis of N on each leaf; int32 `[N]`, the pushes that its sender had seen."""

    grads: Grads
    seen: Array


class Server(NamedTuple):
    """params; n, b (zeros in the variant abs) and v, shaped like them; pushes served and updates made, int32; the cache, () if c_push is 0."""

    params: Params
    n: PyTree
    b: PyTree
    v: PyTree
    pushes: Int
    updates: Int
    cache: PyTree


def fasgd(
    setup: Setup,
    *,
    variant: Literal["std", "abs"] = "std",
    gamma: float = 0.9,
    beta: float = 0.9,
    eps: float = 1e-4,
    c_push: float = 0.0,
    c_fetch: float = 0.0,
) -> Strategy:
    """Asynchronous SGD that divides by the gradients' standard deviation and staleness.

    Args:
        setup: the run.
        variant: what v estimates: "std", the standard deviation (the paper's text), or "abs", the mean size (the author's code).
        gamma: decay of the means of g and g^2, or of |g|.
        beta: decay of v in "std"; 1 freezes it at 1.
        eps: beside the variance, or beside v, and in the gates.
        c_push: gate of the pushes; 0: always.
        c_fetch: gate of the fetches; 0: always.
    """
    for option, value in (("gamma", gamma), ("beta", beta)):
        within("fasgd", option, value, 0, 1)
    for option, value in (("eps", eps), ("c_push", c_push), ("c_fetch", c_fetch)):
        within("fasgd", option, value, 0)

    def init_worker(params: Params, _info: Info) -> Worker:
        return Worker(params, zeros(params), jnp.float32(1), jnp.asarray(False))

    def step(w: Worker, _loss: Scalar, grads: Grads) -> Worker:
        return w._replace(grads=grads)

    def ask(w: Worker, key: Key) -> tuple[Worker, Out]:
        drawn = jax.random.uniform(key, (2,))
        push = (drawn[0] < passes(c_push, w.vbar)) | ~w.pushed if c_push else True
        fetch = drawn[1] < passes(c_fetch, w.vbar) if c_fetch else True
        return w._replace(pushed=w.pushed | push), Out(w.grads, push, fetch)

    def passes(c: float, vbar: Scalar) -> Scalar:
        return (vbar + eps) / (vbar + eps + c)

    def take(w: Worker, answer: tuple[Params, Scalar], _message: In) -> Worker:
        params, vbar = answer
        return w._replace(params=params, vbar=vbar)

    def init_server(params: Params, _info: Info) -> Server:
        cache = Cache(jax.tree.map(lambda p: jnp.zeros((setup.workers, *p.shape), p.dtype), params), jnp.zeros(setup.workers, jnp.int32)) if c_push else ()
        v = jax.tree.map(jnp.ones_like if variant == "std" else jnp.zeros_like, params)
        return Server(params, zeros(params), zeros(params), v, jnp.int32(0), jnp.int32(0), cache)

    def serve(s: Server, messages: In, _measured: Array) -> tuple[Server, Answers]:
        push, source = messages.push[0], messages.source[0]
        grads, tau, cache = jax.tree.map(lambda leaf: leaf[0], messages.body), messages.staleness[0], s.cache
        if c_push:
            grads = jax.tree.map(lambda g, kept: jnp.where(push, g, kept[source]), grads, cache.grads)
            seen = jnp.where(push, s.pushes - tau, cache.seen[source])
            tau = s.pushes - seen
            cache = Cache(jax.tree.map(lambda kept, g: kept.at[source].set(g), cache.grads, grads), cache.seen.at[source].set(seen))
        new = update(s._replace(cache=cache), grads, tau)
        new = new._replace(pushes=s.pushes + push)
        s = new if c_push else select(push, new, s)
        return s, answer_all((s.params, mean(s.v)), messages)

    def update(s: Server, g: Grads, tau: Int) -> Server:
        if variant == "std":
            n = jax.tree.map(lambda n, g: gamma * n + (1 - gamma) * g**2, s.n, g)
            b = jax.tree.map(lambda b, g: gamma * b + (1 - gamma) * g, s.b, g)
            v = jax.tree.map(lambda v, n, b: beta * v + (1 - beta) * jnp.sqrt(jnp.maximum(n - b**2, 0) + eps), s.v, n, b)
            below = v
        else:
            n, b = s.n, s.b
            v = jax.tree.map(lambda v, g: gamma * v + (1 - gamma) * jnp.abs(g), s.v, g)
            below = jax.tree.map(lambda v: v + eps, v)
        rate = setup.rate(s.updates / setup.workers)
        params = jax.tree.map(lambda p, g, below: p - rate * g / (below * (tau + 1)), s.params, g, below)
        return s._replace(params=params, n=n, b=b, v=v, updates=s.updates + 1)

    def mean(v: PyTree) -> Scalar:
        leaves = jax.tree.leaves(v)
        return sum((leaf.sum() for leaf in leaves), jnp.float32(0)) / sum(leaf.size for leaf in leaves)

    return Strategy(
        init_worker=init_worker,
        point=lambda w: w.params,
        step=step,
        ask=ask,
        take=take,
        init_server=init_server,
        serve=serve,
        params=lambda _w, s: s.params,
        gates=c_push > 0,
    )
