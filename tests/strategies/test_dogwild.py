"""Dogwild: nodes end at their masters' values, a lost difference is lost once and exactly, one without a frame is kept."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlt_train.errors import UsageError
from hlt_train.strategies import In, Info, Strategy
from hlt_train.strategies.dogwild import dogwild
from tests import convex
from tests.drive import Drive

N, CHUNK, SIZE = 3, 4, 30  # 8 chunks, the last of 2 numbers: nodes 0 to 2 are masters of chunks 0-2, 3-5 and 6-7
MASTER = np.repeat([0, 0, 0, 1, 1, 1, 2, 2], CHUNK)[:SIZE]
START = np.arange(SIZE, dtype=np.float32)


def rule(workers: int = N, rate: float = 1.0, **options: Any) -> Strategy:
    return dogwild(convex.setup(optax.sgd(rate), workers, rate), **{"chunk": CHUNK, "fan": 4, **options})


RULE = rule()
HEAD = In((), *map(jnp.asarray, (True, False, 0, 0)))


def standing(params: Any, _k: Any, _number: Any, _key: Any) -> Any:
    return jnp.zeros(()), jnp.zeros_like(params)


def hops(params: Any, _k: Any, number: Any, key: Any) -> Any:
    """Whole numbers, so that every sum is exact; after 5 batches the node stands still."""
    return jnp.zeros(()), jnp.where(number < 5, jax.random.randint(key, params.shape, -3, 4), 0).astype(jnp.float32)


def moved(made: Strategy, d: Drive, k: int, by: np.ndarray) -> None:
    """A local step of node k."""
    d.w[k] = made.step(d.w[k], jnp.zeros(()), -jnp.asarray(by, jnp.float32))


def settle(d: Drive, rounds: int = 8) -> Drive:
    for _ in range(rounds):
        d.run(range(N))
    return d


def test_masters_of_contiguous_ranges() -> None:
    d = Drive(RULE, START, standing, N)
    for k in range(N):
        d.w[k] = RULE.init_worker(jnp.full(SIZE, float(k)), Info(k, N, jax.random.key(0)))
    np.testing.assert_array_equal(d.params(), MASTER)
    settle(d)
    for k in range(N):
        sent = {int(m.body[0]) for m in d.sent if m.source == k and not m.body[2]}
        assert sent == set(np.flatnonzero(k == MASTER) // CHUNK)
        for peer in set(range(N)) - {k}:
            assert {int(m.body[0]) for m in d.sent if m.source == k and m.to == peer and not m.body[2]} == sent


@settings(max_examples=5)
@given(st.integers(0, 2**32 - 1))
def test_nodes_that_stand_still_end_at_their_masters_values(seed: int) -> None:
    """Nothing to learn and different starts: after everyone was heard, all nodes hold the masters' values to the bit, in whatever order."""
    rng = np.random.default_rng(seed)
    starts = rng.normal(size=(N, SIZE)).astype(np.float32)
    d = Drive(RULE, START, standing, N)
    d.network = lambda messages: [messages[i] for i in rng.permutation(len(messages))]
    for k in range(N):
        d.w[k] = RULE.init_worker(jnp.asarray(starts[k]), Info(k, N, jax.random.key(0)))
    d.run(rng.integers(N, size=10).tolist())
    settle(d)
    want = starts[MASTER, np.arange(SIZE)]
    for w in d.w:
        np.testing.assert_array_equal(w.params, want)
    np.testing.assert_array_equal(d.params(), want)


@settings(max_examples=5)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3]))
def test_every_move_arrives_once_unless_its_frame_was_lost(seed: int, loss: float) -> None:
    """The masters' values at the end: the start, all nodes' local moves, less the differences in lost frames. Exactly."""
    rng = np.random.default_rng(seed)
    lost = np.zeros(SIZE + CHUNK)

    def network(messages: list[Any]) -> list[Any]:
        arrived = []
        for m in messages:
            if rng.random() < loss:
                c, values, difference = m.body
                if difference:
                    lost[int(c) * CHUNK :][:CHUNK] += np.asarray(values)
            else:
                arrived.append(m)
        return [arrived[i] for i in rng.permutation(len(arrived))]

    d = Drive(RULE, START, hops, N, seed=seed % 1000)
    d.network = network
    d.run(rng.permutation([k for k in range(N) for _ in range(5)]).tolist())
    moves = sum(-np.asarray(hops(jnp.zeros(SIZE), k, b, d.key(k, 2 * b))[1]) for k in range(N) for b in range(5))
    settle(d, 4)
    loss = 0.0
    settle(d)
    want = START + moves - lost[:SIZE]
    np.testing.assert_array_equal(d.params(), want)
    for w in d.w:
        np.testing.assert_array_equal(w.params, want)
    assert any(m.body[2] for m in d.sent)


def test_a_lost_frame_loses_exactly_its_difference() -> None:
    d = Drive(RULE, START, standing, N)
    by = np.zeros(SIZE)
    by[[0, 1, 13]] = [2, -1, 8]  # chunk 0, of node 0, and chunk 3, of node 1
    moved(RULE, d, 2, by)
    d.network = lambda messages: [m for m in messages if not (m.body[2] and int(m.body[0]) == 0)]
    settle(d)
    want = START.copy()
    want[13] += 8
    for w in d.w:
        np.testing.assert_array_equal(w.params, want)
    lost = [m for m in d.sent if m.body[2] and int(m.body[0]) == 0 and np.any(m.body[1])]
    assert [(m.source, m.to, np.asarray(m.body[1]).tolist()) for m in lost] == [(2, 0, [2, -1, 0, 0])]


def test_without_a_free_frame_a_difference_is_kept() -> None:
    """fan=2: one frame for differences. Three are due; they go one by one, in turn, and the last has grown by a local step meanwhile."""
    made = rule(fan=2)
    w = made.init_worker(jnp.asarray(START), Info(2, N, jax.random.key(0)))
    w = made.step(w, jnp.zeros(()), -jnp.ones(SIZE))
    take, ask = jax.jit(made.take), jax.jit(made.ask)
    for c in (1, 0, 4):
        w = take(w, (jnp.int32(c), jnp.asarray(START[c * CHUNK :][:CHUNK] + 10), jnp.asarray(False)), HEAD)
    np.testing.assert_array_equal(w.params[: 2 * CHUNK], START[: 2 * CHUNK] + 11, "moved onto the new values, with what is its own")
    np.testing.assert_array_equal(w.params[2 * CHUNK : 3 * CHUNK], START[2 * CHUNK : 3 * CHUNK] + 1)
    sent = []
    for k in range(4):
        w, out = ask(w, jax.random.key(0))
        assert out.push.all()
        sent += [(int(c), int(to), values.tolist()) for c, values, difference, to in zip(*out.body, out.to, strict=True) if difference]
        assert len(sent) == min(k + 1, 3)
        if k == 1:
            w = made.step(w, jnp.zeros(()), -jnp.ones(SIZE))
    assert sent == [(0, 0, [1.0] * 4), (1, 0, [1.0] * 4), (4, 1, [2.0] * 4)]
    assert not w.due.any()
    np.testing.assert_array_equal(w.params - w.last, np.where(np.isin(np.arange(SIZE) // CHUNK, [0, 1]), 1, np.where(np.arange(SIZE) // CHUNK == 4, 0, 2)))


def test_nothing_due_leaves_all_frames_to_the_stream() -> None:
    d = Drive(RULE, START, standing, N).run([1])
    assert [(int(m.body[0]), m.to, bool(m.body[2])) for m in d.sent] == [(3, 2, False), (3, 0, False), (4, 2, False), (4, 0, False)]
    d.run([1])
    assert [(int(m.body[0]), m.to) for m in d.sent[4:]] == [(5, 2), (5, 0), (3, 2), (3, 0)]


def test_more_nodes_than_chunks() -> None:
    """Who is master of nothing sends differences only."""
    workers, size = 5, 9
    made = rule(workers)
    d = Drive(made, START[:size], hops, workers)
    for _ in range(12):
        d.run(range(workers))
    streaming = {m.source for m in d.sent if not m.body[2]}
    assert len(streaming) == min(workers, -(-size // CHUNK))
    moves = sum(-np.asarray(hops(jnp.zeros(size), k, b, d.key(k, 2 * b))[1]) for k in range(workers) for b in range(5))
    for w in d.w:
        np.testing.assert_array_equal(w.params, START[:size] + moves)


def test_one_node_is_sgd_with_a_quiet_start() -> None:
    made = rule(1, 0.05, momentum=0.9, quiet=6)
    x, y = map(jnp.asarray, convex.data(20, 8))
    d = Drive(made, convex.START, lambda p, _k, i, key: convex.gradient(p, (x[i], y[i]), key)).run([0] * 20)
    assert not d.sent
    params, velocity = jax.tree.map(np.asarray, convex.START), jax.tree.map(np.zeros_like, convex.START)
    gradient = jax.jit(jax.grad(convex.loss))
    for i in range(20):
        g = jax.device_get(gradient(params, x[i], y[i]))
        velocity = jax.tree.map(lambda v, g, mu=0.9 * (i >= 6): (mu * v - 0.05 * g).astype(np.float32), velocity, g)
        params = jax.tree.map(np.add, params, velocity)
    np.testing.assert_allclose(d.params()["w"], params["w"], rtol=1e-5)


def test_learns_with_lost_and_shuffled_frames() -> None:
    """Parameters in a tree; the two leaves share a chunk."""
    rng = np.random.default_rng(0)
    made = rule(N, 0.05, chunk=2, fan=4)
    x, y = map(jnp.asarray, convex.data(40, 16))
    d = Drive(made, convex.START, lambda p, k, i, key: convex.gradient(p, (x[(i + 7 * k) % 40], y[(i + 7 * k) % 40]), key), N)
    d.network = lambda messages: [messages[i] for i in rng.permutation(len(messages)) if rng.random() >= 0.2]
    for _ in range(60):
        d.run(rng.permutation(N).tolist())
    np.testing.assert_allclose(d.params()["w"], convex.TRUTH, atol=2e-3)
    np.testing.assert_allclose(d.params()["b"], 1, atol=2e-3)


@pytest.mark.parametrize("options", [{"chunk": 0}, {"fan": 1}, {"momentum": 1.0}, {"momentum": -0.1}, {"quiet": -1}])
def test_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="dogwild"):
        rule(**options)
