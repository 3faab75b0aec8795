"""What travels beside a network: what its gradient says, what moves it, and that nobody but the strategy sees it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hlt_train.beside import Beside, accompanied, counted, optimiser, reported, trained
from hlt_train.strategies import In, Info, Setup
from hlt_train.strategies.sync import sync

COMPANIONS = {"steps": counted(0.0), "mean": counted({"x": 4.0}, lambda old, seen: {"x": 0.5 * (old["x"] + seen["x"])}), "slope": trained(jnp.ones(2))}


def loss(params: Beside, x: jax.Array) -> jax.Array:
    slope, mean = params.others["slope"], params.others["mean"]
    own = jnp.sum((params.network["w"] - slope) ** 2)
    return own + reported(params.others["steps"], 1.0) + reported(mean, {"x": jnp.mean(x) * params.network["w"].sum()})


def test_what_is_reported_is_a_gradient_and_changes_nothing_else() -> None:
    params = Beside({"w": jnp.array([3.0, 5.0])}, {name: companion.start for name, companion in COMPANIONS.items()})
    value, gradient = jax.value_and_grad(loss)(params, jnp.array([1.0, 2.0]))
    assert float(value) == 20.0
    np.testing.assert_array_equal(gradient.network["w"], [4.0, 8.0])  # what is reported depends on w; its gradient does not
    np.testing.assert_array_equal(gradient.others["slope"], [-4.0, -8.0])
    assert float(gradient.others["steps"]) == 1.0
    assert float(gradient.others["mean"]["x"]) == 12.0


def test_a_strategy_moves_all_of_it_and_shows_the_network_alone() -> None:
    """Two workers whose batches differ: counted companions get the mean over both, trained ones a step of the chosen optimiser, as the network does."""
    chosen = optax.sgd(0.125)
    setup = Setup(2, lambda _step: 0.125, lambda _rate: optimiser(chosen, {name: c.optimiser(chosen) for name, c in COMPANIONS.items()}))
    rule = accompanied(sync(setup), COMPANIONS)
    network = {"w": jnp.array([3.0, 5.0])}
    info = Info(0, 2, jax.random.key(0))
    worker, server = rule.init_worker(network, info), rule.init_server(network, info)
    for _ in range(3):
        found = [jax.grad(loss)(rule.point(worker), x) for x in (jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]))]
        mean: Any = jax.tree.map(lambda *leaves: jnp.mean(jnp.stack(leaves), axis=0, keepdims=True), *found)
        true = jnp.ones(1, bool)
        server, answers = rule.serve(server, In(mean, true, true, jnp.zeros(1, int), jnp.zeros(1, int)), ())  # type: ignore[misc]
        worker = rule.take(worker, jax.tree.map(lambda leaf: leaf[0], answers), In((), true[0], true[0], 0, 0))
    shown = rule.params(worker, server)
    assert jax.tree.structure(shown) == jax.tree.structure(network)
    np.testing.assert_allclose(shown["w"], [2.0 + 0.5**3, 3.0 + 2 * 0.5**3])  # w and slope approach each other by half of their distance
    others = server.params.others
    assert float(others["steps"]) == 3.0
    np.testing.assert_allclose(others["slope"], [2.0 - 0.5**3, 3.0 - 2 * 0.5**3])
    means, w = 4.0, np.array([3.0, 5.0])
    for _ in range(3):
        means = 0.5 * (means + 2.5 * w.sum())
        w = w - 0.25 * (w - (np.array([4.0, 6.0]) - w))
    assert float(others["mean"]["x"]) == means
