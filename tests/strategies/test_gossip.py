"""Gossip: the sums of the weights and of the weighted parameters are kept, on the way too."""

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
from hlt_train.strategies import Strategy
from hlt_train.strategies.gossip import gossip
from tests import convex
from tests.drive import Drive

N = 4
TARGETS = jnp.asarray(np.random.default_rng(0).normal(size=(N, 3)), jnp.float32)
START = {"w": np.zeros(3, np.float32), "b": np.ones((), np.float32)}


def rule(p: float, workers: int = N, tx: optax.GradientTransformation | None = None) -> Strategy:
    return gossip(convex.setup(optax.sgd(0.1) if tx is None else tx, workers), p=p)


def towards_own_target(params: Any, k: Any, _number: Any, _key: Any) -> Any:
    return jax.value_and_grad(lambda p: ((p["w"] - TARGETS[k]) ** 2).sum() + p["b"] ** 2)(params)


def standing(params: Any, _k: Any, _number: Any, _key: Any) -> Any:
    return jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)


def sums(d: Drive) -> tuple[float, np.ndarray]:
    """The weights and the weighted parameters of the workers and of the messages on the way, in float64."""
    pairs = [(w.params, w.weight) for w in d.w] + [body for box in d.inbox for body, *_ in box]
    weights = np.array([float(a) for _, a in pairs])
    return weights.sum(), sum(a * np.append(np.asarray(p["w"], np.float64), float(p["b"])) for a, (p, _) in zip(weights, pairs, strict=True))


RULES = {p: rule(p) for p in (0.4, 1.0)}


@settings(max_examples=6)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.4, 1.0]))
def test_nothing_is_lost_on_the_way(seed: int, p: float) -> None:
    """Workers apart, no local steps: both sums stay, whoever speaks when."""
    rng = np.random.default_rng(seed)
    d = Drive(RULES[p], START, standing, N, seed=seed % 1000)
    for k in range(N):
        d.w[k] = d.w[k]._replace(params=jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=np.shape(leaf)), jnp.float32), START))
    weight, weighted = sums(d)
    assert weight == 1
    for _ in range(5):
        d.run(rng.integers(N, size=6).tolist())
        found, found_weighted = sums(d)
        np.testing.assert_allclose(found, weight, rtol=1e-6)
        np.testing.assert_allclose(found_weighted, weighted, atol=1e-6)
    assert d.sent
    assert all(m.push and not m.fetch and m.to != m.source and 0 <= m.to < N for m in d.sent)


def test_one_exchange() -> None:
    d = Drive(RULES[1.0], START, standing, N)
    d.w[0] = d.w[0]._replace(params={"w": jnp.full(3, 3.0), "b": jnp.zeros(())})
    d.run([0])
    to = d.sent[0].to
    assert float(d.w[0].weight) == 1 / 8
    before = d.w[to]
    d.w[to] = RULES[1.0].take(before, *d.inbox[to].pop()[:2])
    assert float(d.w[to].weight) == 3 / 8
    np.testing.assert_allclose(d.w[to].params["w"], (2 * before.params["w"] + 3.0) / 3, rtol=1e-6)


def test_p_is_how_often_and_everyone_is_drawn_alike() -> None:
    ask = RULES[0.4].ask
    w = Drive(RULES[0.4], START, standing, N).w[2]
    outs = jax.jit(jax.vmap(lambda key: ask(w, key)[1]._replace(body=())))(jax.random.split(jax.random.key(1), 4000))
    np.testing.assert_allclose(outs.push.mean(), 0.4, atol=0.03)
    counts = np.bincount(np.asarray(outs.to)[np.asarray(outs.push)], minlength=N)
    assert counts[2] == 0
    np.testing.assert_allclose(counts[[0, 1, 3]] / counts.sum(), 1 / 3, atol=0.05)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_without_gossip_and_alone_it_is_the_optimiser(p: float) -> None:
    """p = 0: N independent runs. One worker: no one to speak to."""
    tx = optax.adam(0.05)
    workers = 1 if p else 2
    d = Drive(rule(p, workers, tx), START, towards_own_target, workers).run([0] * 12)
    assert not d.sent
    params, state = jax.tree.map(jnp.asarray, START), tx.init(START)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(towards_own_target(params, 0, 0, None)[1], state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(12):
        params, state = step(params, state)
    np.testing.assert_allclose(d.w[0].params["w"], params["w"], rtol=1e-5)


def test_consensus_on_the_mean_of_different_tasks() -> None:
    """Worker k pulls towards target k; the weighted mean ends near the mean of the targets, and the workers near one another."""
    d = Drive(rule(1.0, tx=optax.sgd(0.04)), START, towards_own_target, N)
    tail = []
    for r in range(70):
        d.run(range(N))
        if r >= 40:
            tail.append(d.params()["w"])
    np.testing.assert_allclose(np.mean(tail, axis=0), TARGETS.mean(axis=0), atol=0.2)
    spread = max(np.abs(np.asarray(w.params["w"]) - tail[-1]).max() for w in d.w)
    assert spread < 0.5
    assert d.params()["b"] < 0.05


def test_parameters_are_the_weighted_mean() -> None:
    d = Drive(RULES[1.0], START, standing, N)
    weights = np.array([0.5, 0.25, 0.125, 0.0625])  # the rest is on its way
    d.w = [
        w._replace(weight=jnp.float32(a), params={"w": jnp.full(3, float(k)), "b": jnp.float32(k)}) for k, (w, a) in enumerate(zip(d.w, weights, strict=True))
    ]
    np.testing.assert_allclose(d.params()["w"], weights @ np.arange(N) / weights.sum(), rtol=1e-6)
    np.testing.assert_allclose(d.params()["b"], weights @ np.arange(N) / weights.sum(), rtol=1e-6)


@pytest.mark.parametrize("p", [-0.1, 1.1, np.nan])
def test_refused(p: float) -> None:
    with pytest.raises(UsageError, match="gossip"):
        rule(p)
