"""Servers that do not wait for everyone, inside the lockstep transport: against the serial driver, message by message."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hlt_train.strategies import In, Out, Strategy
from hlt_train.transports.lockstep import Network
from tests import convex
from tests.drive import Drive


def stale(rate: float = 0.05, **changes: Any) -> Strategy:
    """SGD on a server that divides the rate of a gradient by its staleness + 1. A worker is (params, grads, index, batches)."""

    def serve(s: Any, m: In, _measured: Any) -> tuple[Any, Any]:
        scale = jnp.where(m.push, rate / (1 + m.staleness), 0)
        s = jax.tree.map(lambda p, g: p - jnp.tensordot(scale, g, 1), s, m.body)
        return s, jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (m.push.shape[0], *leaf.shape)), s)

    rule = Strategy(
        init_worker=lambda params, info: (params, jax.tree.map(jnp.zeros_like, params), jnp.asarray(info.index), jnp.int32(0)),
        point=lambda w: w[0],
        step=lambda w, loss, grads: (w[0], grads, w[2], w[3] + 1),
        ask=lambda w, key: (w, Out(w[1], push=True, fetch=True)),
        take=lambda w, body, message: (body, *w[1:]),
        init_server=lambda params, info: params,
        serve=serve,
        params=lambda w, s: s,
    )
    return rule._replace(**changes)


def driven(rule: Strategy, batches: Any, workers: int, order: list[int]) -> Drive:
    x, y = convex.deal(batches, workers)
    return Drive(rule, convex.START, lambda p, k, i, key: convex.gradient(p, (x[k, i], y[k, i]), key), workers, jit=False).run(order)


def sometimes(push_every: int, fetch_every: int) -> Any:
    """Worker k pushes and fetches every so many batches, worker 1 one batch later than worker 0."""
    return lambda w, key: (w, Out(w[1], push=(w[3] + w[2]) % push_every == 0, fetch=(w[3] + w[2]) % fetch_every == 0))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("push_every", "fetch_every"), [(1, 1), (2, 3), (3, 2)])
def test_messages_one_by_one(workers: int, push_every: int, fetch_every: int) -> None:
    """Server, clocks and staleness are those of a serial run in the same order; a message that is not sent changes nothing."""
    rule, batches = stale(ask=sometimes(push_every, fetch_every)), convex.data(12, 8)
    lockstep = convex.build(rule, workers, 12)
    carry, _ = convex.run(lockstep, batches)
    drive = driven(rule, batches, workers, list(range(workers)) * 12)
    np.testing.assert_allclose(convex.final(lockstep, carry)["w"], drive.params()["w"], rtol=1e-5)
    assert np.asarray(carry.traffic.clock).tolist() == [drive.clock] * workers
    assert np.asarray(carry.traffic.seen).tolist() == drive.seen
    found = lockstep.counters(carry)
    assert found["staleness"].sum(axis=0).tolist() == np.bincount(drive.staleness, minlength=64).tolist()
    assert found["applied"].sum() == drive.clock == len(drive.staleness)


def test_orders_of_arrival() -> None:
    """Rotated: the serial run in the rotated order. Permuted: repeats for a seed, and is neither of the others."""
    rule, batches, ends = stale(), convex.data(9, 8), {}
    for arrival in ("fixed", "rotate", "permute"):
        lockstep = convex.build(rule, 2, 9, network=Network(arrival=arrival))
        ends[arrival] = convex.final(lockstep, convex.run(lockstep, batches)[0])["w"]
        again = convex.build(rule, 2, 4, network=Network(arrival=arrival))
        assert convex.same(convex.final(again, convex.run(again, batches)[0])["w"], ends[arrival])
    order = [k for t in range(9) for k in ((0, 1) if t % 2 == 0 else (1, 0))]
    np.testing.assert_allclose(ends["rotate"], driven(rule, batches, 2, order).params()["w"], rtol=1e-5)
    assert len({end.tobytes() for end in ends.values()}) == 3


def test_late_messages_are_dropped_counted_and_answered() -> None:
    """Quorum -1 of two: the second in the order is late. It counts nothing on the server, and its worker goes on from the round's answer."""
    rule, batches = stale(quorum=-1, late="drop"), convex.data(10, 8)
    lockstep = convex.build(rule, 2, 10)
    carry, losses = convex.run(lockstep, batches)
    x, y = convex.deal(batches, 2)
    params = jax.tree.map(jnp.asarray, convex.START)
    for t in range(10):
        assert losses[1, t] == pytest.approx(float(convex.loss(params, x[1, t], y[1, t])), rel=1e-4)  # the late worker is where the other one is
        params = jax.tree.map(lambda p, g: p - 0.05 * g, params, jax.grad(convex.loss)(params, x[0, t], y[0, t]))
    np.testing.assert_allclose(convex.final(lockstep, carry)["w"], params["w"], rtol=1e-4)
    found = lockstep.counters(carry)
    assert found["applied"].tolist() == [10, 0]
    assert found["late"].tolist() == [0, 10]
    rotated = convex.build(rule, 2, 10, network=Network(arrival="rotate"))
    assert rotated.counters(convex.run(rotated, batches)[0])["late"].tolist() == [5, 5]


def test_answers_that_are_taken_late() -> None:
    """wait=False: the gradient of batch t is taken at the parameters that answered the push of batch t - 2."""
    rule, batches = stale(0.02, wait=False), convex.data(10, 8)
    lockstep = convex.build(rule, 1, 10)
    carry, losses = convex.run(lockstep, batches)
    x, y = batches
    server = [jax.tree.map(jnp.asarray, convex.START)]
    for t in range(10):
        point = server[max(t - 1, 0)]
        assert losses[0, t] == pytest.approx(float(convex.loss(point, x[t], y[t])), rel=1e-4)
        # the answer of push t - 1 is taken before push t is sent, so its sender has seen every earlier push
        server.append(jax.tree.map(lambda p, g: p - 0.02 * g, server[-1], jax.grad(convex.loss)(point, x[t], y[t])))
    np.testing.assert_allclose(convex.final(lockstep, carry)["w"], server[-1]["w"], rtol=1e-4)
    assert lockstep.counters(carry)["staleness"][0, :3].tolist() == [10, 0, 0]
    two = convex.build(rule, 2, 10)
    parts = convex.build(rule, 2, 3)
    whole, cut = convex.run(two, batches)[0], convex.run(parts, batches)[0]
    assert convex.same(two.host(whole), parts.host(cut))


def test_one_worker_alone_first() -> None:
    """warm=3 of two workers: six batches in their order by worker 0, then both start from the server's parameters."""
    rule, batches = stale(warm=3), convex.data(4, 8)
    lockstep = convex.build(rule, 2, 4)
    carry, losses = convex.run(lockstep, tuple(a[:3] for a in batches))
    x, y = convex.deal(batches, 2)
    params = jax.tree.map(jnp.asarray, convex.START)
    for t in range(3):
        for k in range(2):
            assert losses[k, t] == pytest.approx(float(convex.loss(params, x[k, t], y[k, t])), rel=1e-4)
            params = jax.tree.map(lambda p, g: p - 0.05 * g, params, jax.grad(convex.loss)(params, x[k, t], y[k, t]))
    np.testing.assert_allclose(convex.final(lockstep, carry)["w"], params["w"], rtol=1e-4)
    np.testing.assert_array_equal(carry.worker[0]["w"][0], carry.worker[0]["w"][1])
    assert np.asarray(carry.worker[2]).tolist() == [0, 1]  # who they are
    assert np.asarray(carry.worker[3]).tolist() == [6, 0]  # their batches
    assert np.asarray(carry.traffic.seen).tolist() == [6, 6]
    assert lockstep.counters(carry)["applied"].tolist() == [6, 0]
    carry, _ = convex.run(lockstep, tuple(a[3:] for a in batches), carry)
    assert lockstep.counters(carry)["staleness"][:, :3].tolist() == [[7, 0, 0], [0, 1, 0]]


def test_portions_that_the_state_names() -> None:
    """Worker k asks the server for the next portion of six; every third time it gets none, computes nothing and repeats its loss."""

    def serve(s: Any, m: In, _measured: Any) -> tuple[Any, Any]:
        params, given = s
        params = jax.tree.map(lambda p, g: p - 0.05 * jnp.tensordot(m.push.astype(jnp.float32), g, 1), params, m.body)
        idle = given % 3 == 2
        return (params, given + 1), (jax.tree.map(lambda leaf: leaf[None], params), jnp.where(idle, -1, given % 6)[None])

    zero = jax.tree.map(jnp.zeros_like, convex.START)
    rule = Strategy(
        init_worker=lambda params, info: (params, zero, jnp.int32(-1), jnp.int32(0), jnp.bool_(False)),
        point=lambda w: w[0],
        step=lambda w, loss, grads: (w[0], grads, w[2], w[3] + 1, jnp.bool_(True)),
        ask=lambda w, key: ((*w[:4], jnp.bool_(False)), Out(w[1], push=w[4], fetch=True)),
        take=lambda w, body, message: (body[0], w[1], body[1], *w[3:]),
        init_server=lambda params, info: (params, jnp.int32(0)),
        serve=serve,
        params=lambda w, s: s[0],
        batch=lambda w: w[2],
    )
    x, y = convex.data(6, 8)
    lockstep = convex.build(rule, 2, 9)
    data = convex.devices.place(tuple(np.stack([a] * 2) for a in (x, y)), lockstep.mesh)
    carry, losses = lockstep.dispatch(lockstep.init(convex.START), (), data, 9)
    losses = np.asarray(losses)
    params, given, at, held, mine = {"w": np.zeros(4), "b": 0.0}, 0, [convex.START] * 2, [-1, -1], [0.0, 0.0]
    for t in range(9):
        grads = [None, None]
        for k in range(2):
            if held[k] >= 0:
                mine[k], grads[k] = jax.value_and_grad(convex.loss)(at[k], x[held[k]], y[held[k]])
            assert losses[k, t] == pytest.approx(float(mine[k]), rel=1e-4, abs=1e-6)
        for k in range(2):
            if grads[k] is not None:
                params = jax.tree.map(lambda p, g: p - 0.05 * g, params, grads[k])
            at[k], held[k], given = params, -1 if given % 3 == 2 else given % 6, given + 1
    np.testing.assert_allclose(convex.final(lockstep, carry)["w"], params["w"], rtol=1e-4)
    assert np.asarray(carry.step).tolist() == [9, 9]
    assert np.asarray(carry.worker[3]).tolist() == [5, 6]  # gradients
