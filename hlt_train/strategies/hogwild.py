"""Hogwild (Niu, Recht, Re, Wright 2011, "Hogwild: a lock-free approach to parallelizing stochastic gradient descent", algorithm 1).

Every worker reads x, takes a gradient there and adds -gamma * g to x without a lock. The paper assumes that adding one scalar is atomic, and that adding a
vector is not: between a worker's read and the end of its write others may have written. So there is no `serve`: the server is the addition, which a transport
may run lock-free, element by element (`Accumulate` on a window, a shared segment).

The paper's promise of near-linear speed holds for sparse gradients. A gradient that is a `Sparse` (or a tree with a `Sparse` in the place of a leaf) is pushed
as it is, so that only its entries are written. A dense network writes every entry each time; it trains, but nothing is promised.

Deviations: a worker reads all of x before each batch, where the paper reads the entries of the example alone; and a batch may hold more than one example.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hlt_train.errors import UsageError
from hlt_train.strategies import Array, Body, Grads, In, Info, Key, Out, Params, S, Scalar, Setup, Sparse, Strategy, W

__all__ = ["hogwild"]


class Worker(NamedTuple):
    """params; steps: int32, batches of this worker; update: -rate * gradient between `step` and `ask`, None at other times."""

    params: Params
    steps: Array
    update: Body | None


def hogwild(setup: Setup, *, beta: float = 1.0) -> Strategy:
    """Lock-free addition of -rate * gradient to shared parameters.

    The optimiser of the run is not used: a rule with state of its own could not be written without a lock.

    Args:
        setup: the run. The rate is taken at a worker's own steps.
        beta: the step length is multiplied by it after every pass over the training set, the backoff of the paper's experiments; 1: the run's
            schedule alone.
    """
    if not 0 < beta <= 1:
        raise UsageError(f"hogwild: a step length multiplied by beta={beta} after every epoch does not fall", then="beta above 0 and at most 1")
    epoch = max(1.0, setup.portions / setup.workers)  # a worker's batches per pass of all workers over the data

    def init_worker(params: Params, _info: Info) -> Worker:
        return Worker(params, jnp.zeros((), jnp.int32), None)

    def step(w: Worker, _loss: Scalar, grads: Grads) -> Worker:
        length = setup.rate(w.steps) * beta ** jnp.floor(w.steps / epoch)
        update = jax.tree.map(lambda g: _scaled(-length, g), grads, is_leaf=lambda g: isinstance(g, Sparse))
        return Worker(w.params, w.steps + 1, update)

    def ask(w: Worker, _key: Key) -> tuple[Worker, Out]:
        return w._replace(update=None), Out(w.update, push=True, fetch=True)

    def take(w: Worker, params: Params, _message: In) -> Worker:
        return w._replace(params=params)

    def parameters(_w: W, s: S) -> Params:
        return s

    return Strategy(
        init_worker=init_worker,
        point=lambda w: w.params,
        step=step,
        ask=ask,
        take=take,
        init_server=lambda params, _info: params,
        serve=None,
        params=parameters,
        sparse=True,
    )


def _scaled(by: Scalar, gradient: Array | Sparse) -> Array | Sparse:
    return Sparse(gradient.index, by * gradient.value) if isinstance(gradient, Sparse) else by * gradient
