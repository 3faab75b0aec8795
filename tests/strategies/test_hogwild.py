"""Hogwild: on disjoint supports every interleaving is the serial run; with collisions every addition arrives."""

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
from hlt_train.strategies import Setup, Sparse, Strategy
from hlt_train.strategies.hogwild import hogwild
from tests import convex
from tests.drive import Drive

N, PART, STEPS = 3, 5, 6
SIZE = N * PART
TARGET = jnp.asarray(np.random.default_rng(0).normal(size=SIZE), jnp.float32)
START = np.zeros(SIZE, np.float32)


def rule(rate: float = 0.1, workers: int = N, portions: int = 1, **options: Any) -> Strategy:
    return hogwild(convex.setup(optax.sgd(rate), workers, rate, portions), **options)


def dense(params: Any, k: Any, _number: Any, _key: Any) -> Any:
    """Worker k's loss is that of its own part of the vector."""
    mine = jnp.arange(SIZE) // PART == k
    return jax.value_and_grad(lambda v: (jnp.where(mine, v - TARGET, 0) ** 2).sum())(params)


def sparse(params: Any, k: Any, number: Any, key: Any) -> Any:
    """The same gradient as a `Sparse`, with padding."""
    loss, g = dense(params, k, number, key)
    index = jnp.concatenate([k * PART + jnp.arange(PART), jnp.full(2, SIZE)])
    return loss, Sparse(index, g.at[index].get(mode="fill", fill_value=7.0))


RULE = rule()


def serial() -> np.ndarray:
    x = START.copy()
    for k in range(N):
        for _ in range(STEPS):
            x = x - np.float32(0.1) * np.asarray(dense(jnp.asarray(x), k, 0, None)[1])
    return x


@settings(max_examples=5)
@given(st.permutations([k for k in range(N) for _ in range(STEPS)]), st.booleans(), st.sampled_from([1, 2]))
def test_disjoint_supports_are_serial_in_any_interleaving(order: list[int], as_sparse: bool, shards: int) -> None:
    d = Drive(RULE, START, sparse if as_sparse else dense, N, shards).run(order)
    np.testing.assert_allclose(d.params(), serial(), rtol=1e-6)
    again = Drive(RULE, START, sparse if as_sparse else dense, N, shards).run(sorted(order))
    np.testing.assert_array_equal(d.params(), again.params())


def test_a_tree_with_a_sparse_table() -> None:
    """An embedding of which a batch touches two rows, once twice; and a dense part."""
    start = {"table": np.zeros(8, np.float32), "bias": np.zeros(2, np.float32)}

    def gradient(params: Any, k: Any, _number: Any, _key: Any) -> Any:
        return params["bias"].sum(), {"table": Sparse(jnp.asarray([1, 6, 1, 9]), jnp.asarray([1.0, 2, 3, 4])), "bias": jnp.full(2, k + 1.0)}

    d = Drive(rule(0.5), start, gradient, N).run([0, 2, 1])
    found = d.params()
    np.testing.assert_allclose(found["table"], [0, -6, 0, 0, 0, 0, -3, 0])
    np.testing.assert_allclose(found["bias"], [-3, -3])


def test_collisions_add() -> None:
    """All workers write everything: each addition arrives, at the rate of the worker's own step."""
    setup = Setup(N, lambda count: 0.5 ** count.astype(jnp.float32), optax.sgd)

    def ones(params: Any, _k: Any, _number: Any, _key: Any) -> Any:
        return params.sum(), jnp.ones_like(params)

    d = Drive(hogwild(setup), START, ones, N).run([0, 0, 1, 2, 2, 2])
    np.testing.assert_allclose(d.params(), -(1 + 0.5) - 1 - (1 + 0.5 + 0.25))


def test_staleness_does_not_stop_a_convex_problem() -> None:
    def gradient(params: Any, _k: Any, _number: Any, _key: Any) -> Any:
        return jax.value_and_grad(lambda v: ((v - TARGET) ** 2).sum())(params)

    rng = np.random.default_rng(1)
    d = Drive(RULE, START, gradient, N).run(rng.integers(N, size=80).tolist())
    np.testing.assert_allclose(d.params(), TARGET, atol=1e-4)
    assert max(d.staleness) > N - 1


def test_backoff_after_every_epoch() -> None:
    """12 portions for 3 workers: an epoch is 4 batches of a worker."""
    made = rule(0.1, portions=12, beta=0.5)
    w = Drive(made, START, dense, 1).w[0]
    lengths = []
    step = jax.jit(made.step)
    for _ in range(9):
        w = step(w, jnp.zeros(()), jnp.ones(SIZE))
        lengths.append(-float(w.update[0]))
    np.testing.assert_allclose(lengths, [0.1] * 4 + [0.05] * 4 + [0.025], rtol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 1.5, -1.0, np.nan])
def test_refused(beta: float) -> None:
    with pytest.raises(UsageError, match="beta"):
        rule(beta=beta)
