"""Messages from worker to worker inside the lockstep transport, and a network that loses and reorders them."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from hlt_train.strategies import Out, Strategy
from hlt_train.transports.lockstep import Network
from tests import convex

STEPS = 40


def diary(fan: int = 1, **changes: Any) -> Strategy:
    """Worker k tells worker 1 - k (with fan 2: also itself) its number of batches, in every batch but each fifth. A worker folds what it hears into a hash."""

    def ask(w: Any, _key: Any) -> Any:
        _, me, t, _ = w
        to = 1 - me if fan == 1 else jnp.stack([1 - me, me])
        body = 100 * me + t if fan == 1 else jnp.stack([100 * me + t, 100 * me + t + 50])
        return w, Out(body, push=t % 5 != 0 if fan == 1 else jnp.stack([t % 5 != 0, t % 5 == 0]), fetch=False if fan == 1 else jnp.zeros(2, bool), to=to)

    def take(w: Any, body: Any, message: Any) -> Any:
        params, me, t, heard = w
        return params, me, t, (heard * 31 + body + 7 * message.source + message.staleness) % 1_000_003

    rule = Strategy(
        init_worker=lambda params, info: (params, jnp.asarray(info.index, jnp.int32), jnp.int32(0), jnp.int32(0)),
        point=lambda w: w[0],
        step=lambda w, loss, grads: (w[0], w[1], w[2] + 1, w[3]),
        ask=ask,
        take=take,
        init_server=lambda params, info: (),
        serve=None,
        params=lambda w, s: {name: leaf.mean(axis=0) for name, leaf in w[0].items()},
        peers=True,
        fan=fan,
    )
    return rule._replace(**changes)


def heard(lockstep: Any, steps: int = STEPS) -> tuple[list[int], dict[str, np.ndarray]]:
    carry, _ = convex.run(lockstep, convex.data(steps, 4))
    return np.asarray(carry.worker[3]).tolist(), lockstep.counters(carry)


def test_messages_come_at_once_in_the_order_of_their_senders() -> None:
    found, counted = heard(convex.build(diary(), 2, STEPS))
    hashes = [0, 0]
    for t in range(1, STEPS + 1):
        for source in (0, 1):
            if t % 5:
                to = 1 - source
                hashes[to] = (hashes[to] * 31 + 100 * source + t + 7 * source) % 1_000_003
    assert found == hashes
    assert counted["sent"].tolist() == counted["applied"].tolist() == [32, 32]


def test_several_messages_of_an_ask() -> None:
    """fan=2: to the other worker in four steps of five, to itself in the fifth."""
    found, counted = heard(convex.build(diary(fan=2), 2, STEPS))
    hashes = [0, 0]
    for t in range(1, STEPS + 1):
        for source in (0, 1):
            to, body = (1 - source, 100 * source + t) if t % 5 else (source, 100 * source + t + 50)
            hashes[to] = (hashes[to] * 31 + body + 7 * source) % 1_000_003
    assert found == hashes
    assert counted["sent"].tolist() == [40, 40]


def test_datagrams_are_lost_and_held_back_and_the_run_repeats() -> None:
    rule = diary(reliable=False)
    clean = heard(convex.build(rule, 2, STEPS))
    assert clean[0] == heard(convex.build(diary(), 2, STEPS))[0]
    runs = [heard(convex.build(rule, 2, steps, network=Network(loss=0.3, reorder=0.3))) for steps in (STEPS, 7)]
    assert runs[0][0] == runs[1][0] != clean[0]
    counted = runs[0][1]
    assert all(np.array_equal(counted[name], runs[1][1][name]) for name in counted)
    assert counted["sent"].tolist() == [32, 32]
    assert 4 < counted["lost"].sum() < 40
    under_way = counted["sent"].sum() - counted["lost"].sum() - counted["applied"].sum()
    assert 0 <= under_way <= 2
    late, counted = heard(convex.build(rule, 2, STEPS, network=Network(reorder=0.999999)), 4)
    hashes = [0, 0]
    for t in range(1, 4):  # what was sent in step t comes in step t + 1
        for source in (0, 1):
            hashes[1 - source] = (hashes[1 - source] * 31 + 100 * source + t + 7 * source) % 1_000_003
    assert late == hashes
    assert counted["applied"].tolist() == [3, 3]


def test_datagrams_to_a_server() -> None:
    """serve=None adds what arrives; what was lost is counted, and its sender goes on as it is."""
    rule = Strategy(
        init_worker=lambda params, info: (params, jnp.int32(0)),
        point=lambda w: w[0],
        step=lambda w, loss, grads: w,
        ask=lambda w, key: (w, Out({"w": jnp.ones(4), "b": jnp.ones(())}, push=True, fetch=True)),
        take=lambda w, body, message: (w[0], w[1] + 1),
        init_server=lambda params, info: params,
        serve=None,
        params=lambda w, s: s,
        reliable=False,
    )
    lockstep = convex.build(rule, 2, STEPS, network=Network(loss=0.25))
    carry, _ = convex.run(lockstep, convex.data(STEPS, 4))
    counted = lockstep.counters(carry)
    assert convex.final(lockstep, carry)["b"] == counted["applied"].sum() == 2 * STEPS - counted["lost"].sum()
    answers = np.asarray(carry.worker[1])
    assert (answers < counted["applied"]).all()  # some answers were lost too
    assert 5 < counted["lost"].sum() < 40
