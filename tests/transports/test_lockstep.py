"""The lockstep transport: messages, keys, what it refuses, and the order of the mean on more devices."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hlt_train.errors import UsageError
from hlt_train.strategies import In, Info, Out, Strategy
from hlt_train.transports.lockstep import Network, actor_key
from tests import convex

RULE = convex.strategy("sync")


REFUSED = [
    ({"quorum": -1}, {}, "quorum=-1 leaves no message of 1 workers"),
    ({"quorum": -1, "late": "serve"}, {}, "late='serve'"),
    ({"fan": 2}, {}, "fan=2 to a server"),
    ({"peers": True, "warm": 3}, {}, "warm=3"),
    ({"batch": lambda w: 0, "warm": 3}, {}, "warm and batch"),
    ({}, {"arrival": "rotate"}, "arrival=rotate"),
    ({"quorum": 1}, {"arrival": "rotated"}, "arrival has no value 'rotated'"),
    ({}, {"loss": 0.1}, "loss=0.1"),
    ({"reliable": False}, {"reorder": 0.1}, "reorder=0.1"),
    ({"reliable": False}, {"loss": 1.5}, "no probability"),
    ({"quorum": 1}, {"exchange": "alltoall"}, "exchange=alltoall"),
    ({}, {"wire": "int8"}, "wire=int8 without"),
    ({}, {"wire": "int7"}, "int7"),
]


@pytest.mark.parametrize(("change", "network", "named"), REFUSED)
def test_refuses_by_name(change: dict[str, Any], network: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        convex.build(RULE._replace(**change), 1, 1, network=Network(**network))


def test_refuses_undeclared_messages_to_workers() -> None:
    lockstep = convex.build(RULE._replace(ask=lambda w, key: (w, Out(w.grads, True, True, 1))), 2, 1)
    with pytest.raises(UsageError, match="peers=True"):
        convex.run(lockstep, convex.data(1, 4))


def elastic(period: int, alpha: float = 0.2, rate: float = 0.05) -> Strategy:
    """Synchronous elastic averaging: a rule whose messages must arrive one by one, which exchanges every `period` batches, and fetches what it pushed."""

    def serve(centre: Any, m: In, _measured: Any) -> tuple[Any, Any]:
        pull = jax.tree.map(lambda x, c: alpha * (x - c), m.body, centre)
        return jax.tree.map(lambda c, d: c + d.sum(axis=0), centre, pull), pull

    return Strategy(
        init_worker=lambda params, info: params,
        point=lambda w: w,
        step=lambda w, loss, grads: jax.tree.map(lambda p, g: p - rate * g, w, grads),
        ask=lambda w, key: (w, Out(w, push=True, fetch=True)),
        take=lambda w, d, message: jax.tree.map(jnp.subtract, w, d),
        init_server=lambda params, info: params,
        serve=serve,
        params=lambda w, s: s,
        quorum=0,
        every=period,
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_each_message_and_period(workers: int) -> None:
    """Elastic averaging in NumPy, worker by worker, against the transport."""
    period, alpha, rate, batches = 3, 0.2, 0.05, convex.data(20, 8)
    lockstep = convex.build(elastic(period, alpha, rate), workers, 20)
    carry, _ = convex.run(lockstep, batches)
    x, y = (a.astype(np.float64) for a in convex.deal(batches, workers))
    w, b = np.zeros((workers, 4)), np.zeros(workers)
    centre_w, centre_b = np.zeros(4), 0.0
    for t in range(20):
        for k in range(workers):
            error = x[k, t] @ w[k] + b[k] - y[k, t]
            w[k] -= rate * 2 * (error[:, None] * x[k, t]).mean(axis=0)
            b[k] -= rate * 2 * error.mean()
        if (t + 1) % period == 0:
            pull_w, pull_b = alpha * (w - centre_w), alpha * (b - centre_b)
            w, b = w - pull_w, b - pull_b
            centre_w, centre_b = centre_w + pull_w.sum(axis=0), centre_b + pull_b.sum()
    found = convex.final(lockstep, carry)
    np.testing.assert_allclose(found["w"], centre_w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["b"], centre_b, rtol=1e-4, atol=1e-5)


def test_pushes_and_fetches_that_depend_on_the_step() -> None:
    """A worker that pushes only in even steps and never fetches: the server sums what is pushed (serve=None), the worker's point stays."""
    rule = Strategy(
        init_worker=lambda params, info: (params, jnp.zeros((), jnp.int32)),
        point=lambda w: w[0],
        step=lambda w, loss, grads: (w[0], w[1] + 1),
        ask=lambda w, key: (w, Out({"w": jnp.ones(4), "b": jnp.ones(())}, push=w[1] % 2 == 0, fetch=jnp.zeros((), bool))),
        take=lambda w, body, message: (body, w[1]),
        init_server=lambda params, info: params,
        serve=None,
        params=lambda w, s: s,
        quorum=0,
    )
    lockstep = convex.build(rule, 2, 7)
    carry, _ = convex.run(lockstep, convex.data(7, 4))
    assert convex.final(lockstep, carry)["b"] == 6  # steps 2, 4 and 6 of two workers
    assert np.asarray(carry.worker[0]["b"]).tolist() == [0, 0]


def test_keys_of_actors_and_steps_differ_and_repeat() -> None:
    """A rule that adds noise from its key: workers draw differently, a second run draws the same."""

    def noisy(params: Any, info: Info) -> Any:
        return params, info.key, jnp.zeros(())

    rule = Strategy(
        init_worker=noisy,
        point=lambda w: w[0],
        step=lambda w, loss, grads: w,
        ask=lambda w, key: ((w[0], w[1], jax.random.normal(key)), Out(w[0], push=True, fetch=False)),
        take=lambda w, body, message: w,
        init_server=lambda params, info: params,
        serve=lambda s, m, measured: (s, m.body),
        params=lambda w, s: s,
        quorum=0,
    )
    drawn = []
    for steps in (4, 3):
        lockstep = convex.build(rule, 2, steps)
        carry, _ = convex.run(lockstep, convex.data(6, 4))
        state = lockstep.host(carry)
        again = lockstep.restore(lockstep.init(convex.START), state)
        assert convex.same(lockstep.host(again), state)  # a typed random key survives a checkpoint
        drawn.append(np.asarray(carry.worker[2]))
    assert drawn[0][0] != drawn[0][1]
    assert drawn[0].tolist() == drawn[1].tolist()
    assert not np.array_equal(jax.random.key_data(actor_key(1, 0, 5)), jax.random.key_data(actor_key(1, 5, 0)))


FOUR = """
import numpy as np, optax
from hlt_train import devices
devices.prepare(4)
import jax
from hlt_train.strategies.sync import sync
from tests import convex
from tests.strategies.test_sync import serial
batches = convex.data(1, 64)
lockstep = convex.build(sync(convex.setup(optax.sgd(0.1))), 4, 1)
first = convex.final(lockstep, convex.run(lockstep, batches)[0])
for _ in range(20):
    assert convex.same(first, convex.final(lockstep, convex.run(lockstep, batches)[0]))
assert convex.same(first, serial(optax.sgd(0.1), batches, 4))
"""


def test_four_devices_take_the_ordered_mean_to_the_bit() -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}
    subprocess.run([sys.executable, "-c", FOUR], check=True, env=environment, timeout=300)
