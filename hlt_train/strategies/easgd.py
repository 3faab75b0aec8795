"""Elastic averaging SGD (Zhang, Choromanska, LeCun 2015, "Deep learning with Elastic Averaging SGD").

Every worker has parameters of its own and is tied by a spring to a centre, which the springs pull along. Asynchronous EASGD (section 3.1, algorithm 1), with
momentum EAMSGD (section 3.2, algorithm 2), synchronous EASGD (section 3, equations 5 and 6). At a worker's exchange, on every `period`-th batch:

    d = alpha (x - c),   x <- x - d,   c <- c + d          c: the centre; x: as it was before this batch's own step
    v <- momentum v + u(x + momentum v),   x <- x + v      u: the optimiser's update for the gradient at that point, -eta g for plain SGD

Synchronous: all workers exchange at once with one c, to which the sum of their d is added; then beta = N alpha weighs the workers' mean against the centre.
One function serves both. x_i + c is conserved by an exchange.

Optimiser state: the workers'; it is not exchanged. The centre has none. The centre is what is validated and exported.

Where this differs from the paper. Algorithm 1 exchanges on batches 0, tau, 2 tau, ... (counted from 0), the first of which does nothing because all start
from the centre; here on tau - 1, 2 tau - 1, ...: the first period is a batch shorter, all else is the same, and the gradient of an exchange's batch is the
one at x before the exchange, as in the paper. Only the transport's very last exchange may come earlier than its period. The paper's alpha = eta rho is the
option itself and does not follow the learning rate's schedule. Reference values of the authors' code: beta 0.9; EAMSGD momentum 0.99 and a tenth of the
learning rate.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hlt_train.errors import UsageError
from hlt_train.strategies import Answers, Array, Grads, In, Info, Key, Out, Params, Scalar, Setup, Strategy
from hlt_train.strategies._parts import add, scaled, subtract, within, zeros

__all__ = ["easgd"]


class Worker(NamedTuple):
    """params; params before the last batch's step; the velocity, () without momentum; the optimiser's state."""

    params: Params
    before: Params
    velocity: Params
    optimiser: Any


def easgd(setup: Setup, *, period: int = 10, beta: float = 0.9, alpha: float | None = None, momentum: float = 0.0, synchronous: bool = False) -> Strategy:
    """Workers tied elastically to a moving centre; with `momentum` EAMSGD.

    Args:
        setup: the run.
        period: tau, batches of a worker between exchanges.
        beta: alpha is beta / N.
        alpha: of the exchange; given, it overrides beta.
        momentum: delta, of the workers' Nesterov velocity; 0: EASGD, above: EAMSGD.
        synchronous: all workers exchange at a barrier, with the same centre.
    """
    within("easgd", "period", period, 1)
    within("easgd", "beta", beta, 0)
    if alpha is None:
        alpha = beta / setup.workers
    within("easgd", "alpha", alpha, 0)
    within("easgd", "momentum", momentum, 0, 1)
    # Without gradients the distance of the exchanging workers' mean to the centre is multiplied by 1 - alpha - alpha M: M = N at a barrier, else 1.
    together = setup.workers if synchronous else 1
    if alpha * (1 + together) > 2:
        raise UsageError(f"easgd: with alpha={alpha} the centre overshoots further at every exchange", then=f"alpha of at most {2 / (1 + together):.6g}")
    tx = setup.tx()

    def init_worker(params: Params, _info: Info) -> Worker:
        return Worker(params, params, zeros(params) if momentum else (), tx.init(params))

    def point(w: Worker) -> Params:
        return add(w.params, scaled(momentum, w.velocity)) if momentum else w.params

    def step(w: Worker, _loss: Scalar, grads: Grads) -> Worker:
        updates, optimiser = tx.update(grads, w.optimiser, w.params)
        velocity = add(scaled(momentum, w.velocity), updates) if momentum else updates
        return Worker(add(w.params, velocity), w.params, velocity if momentum else (), optimiser)

    def ask(w: Worker, _key: Key) -> tuple[Worker, Out]:
        return w, Out(w.before, push=True, fetch=True)

    def take(w: Worker, pull: Params, _message: In) -> Worker:
        return w._replace(params=subtract(w.params, pull))

    def serve(centre: Params, messages: In, _measured: Array) -> tuple[Params, Answers]:
        def pull(x: Array, c: Array) -> Array:
            return jnp.where(messages.push.reshape((-1,) + (1,) * c.ndim), alpha * (x - c), 0)

        pulls = jax.tree.map(pull, messages.body, centre)
        return jax.tree.map(lambda c, d: c + d.sum(axis=0), centre, pulls), pulls

    return Strategy(
        init_worker=init_worker,
        point=point,
        step=step,
        ask=ask,
        take=take,
        init_server=lambda params, _info: params,
        serve=serve,
        params=lambda _w, s: s,
        quorum=0 if synchronous else 1,
        order="all" if synchronous else "each",
        every=period,
    )
