"""Every rule on every form of the parameters: a vector, its slices on shards, a tree. The same messages give the same result."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hlt_train import plugins
from hlt_train.strategies import Strategy
from tests import quadratic
from tests.drive import Drive
from tests.quadratic import START, N, setup

RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "downpour": ("downpour", {"n_push": 2, "n_fetch": 3}),
    "eamsgd": ("easgd", {"period": 2, "momentum": 0.5}),
    "easgd at a barrier": ("easgd", {"period": 2, "synchronous": True}),
    "fasgd abs": ("fasgd", {"variant": "abs", "eps": 0.01}),
    "b-fasgd": ("fasgd", {"c_push": 0.5}),  # vbar is shard 0's, so its draws could differ: see below
    "dynsgd": ("dynsgd", {}),
    "n-softsync": ("dynsgd", {"softsync": 1}),
    "gem": ("gem", {}),
    "agn": ("agn", {"window": 2}),
    "average": ("average", {"period": 2}),
}


def made(name: str) -> Strategy:
    plugin, options = RULES[name]
    rule: Strategy = plugins.factory("strategies", plugin)(setup(2, optimiser=optax.adagrad), **plugins.parse_options("strategies", plugin, options))
    return rule


def as_tree(vector: Any) -> dict[str, Any]:
    return {"b": vector[0], "w": vector[1:].reshape(2, 3)}


def as_vector(tree: Any) -> Any:
    return jnp.concatenate([tree["b"][None], tree["w"].ravel()])


def gradient_of_tree(params: Any, worker: Any, batch: Any, key: Any) -> Any:
    loss, grads = quadratic.gradient(as_vector(params), worker, batch, key)
    return loss, as_tree(grads)


@pytest.mark.parametrize("name", RULES)
def test_slices_and_trees_are_the_vector(name: str) -> None:
    rule = made(name)
    if name == "b-fasgd":  # the same gates whatever vbar is
        rule = rule._replace(ask=lambda w, key: made(name).ask(w._replace(vbar=jnp.float32(1)), key))
    order = [0, 1] * 4 if rule.quorum != 1 else [0, 1, 1, 0, 0, 1, 1, 1]
    vector, slices, tree = (
        Drive(rule, start, gradient, 2, shards).run(order)
        for start, gradient, shards in ((START, quadratic.gradient, 1), (START, quadratic.gradient, 2), (as_tree(START), gradient_of_tree, 1))
    )
    assert np.abs(vector.params() - START).max() > 0.01
    np.testing.assert_allclose(slices.params(), vector.params(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(as_vector(tree.params()), vector.params(), rtol=1e-5, atol=1e-6)
    assert vector.staleness == slices.staleness == tree.staleness


@pytest.mark.parametrize("name", RULES)
def test_states_keep_their_shapes(name: str) -> None:
    """Between batches: what `init_worker` makes is what `step`, `ask` and `take` give back, and a server's state after a serve is like the first."""
    rule = made(name)

    def shapes(state: Any) -> Any:
        return jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), state)

    drive = Drive(rule, START, quadratic.gradient, 2)
    worker, server = shapes(drive.w[0]), shapes(drive.s[0])
    for _ in range(2):
        drive.run([0, 1])
        assert shapes(drive.w[0]) == worker
        assert shapes(drive.s[0]) == server
    assert drive.params().size == N
