"""Pruning: how much goes when, what of a unit goes, and a pruned student from its training to its smaller network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hlt_train.distil import distil
from hlt_train.errors import UsageError
from hlt_train.fit import fit
from hlt_train.graph import Affine
from hlt_train.models.mlp import mlp
from hlt_train.precision.config import Precision
from hlt_train.progress import Progress
from hlt_train.pruning import Pruning, pruned, without_bits
from hlt_train.restore import load_run, lowered, parameters
from tests import runs, students
from tests.distillation import config, write_card

QUIET = Progress(quiet=True)


def test_the_schedule_is_cubic_and_nothing_comes_back() -> None:
    described = students.inputs(np.random.default_rng(0), ("event", 5, None))
    network = mlp(described, 4, jax.random.key(0), widths=(10,))
    asked, steps = Pruning(weights=0.8, begin=0.2, end=0.7, every=5), 100
    optimiser = pruned(optax.adam(0.05), asked, steps)
    params, key = parameters(network), jax.random.key(1)
    state = optimiser.init(params)

    @jax.jit
    def step(params: Any, state: Any, key: jax.Array) -> Any:
        gradient = jax.tree.map(lambda p: jax.random.normal(key, p.shape), params)
        updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    dead = np.zeros((10, 5), bool)
    for k in range(1, steps + 1):
        params, state = step(params, state, jax.random.fold_in(key, k))
        weight = np.asarray(params.layers[0].linear.weight)
        t = min(max((k // 5 * 5 / steps - 0.2) / 0.5, 0), 1)
        assert (weight == 0).sum() == round(0.8 * (1 - (1 - t) ** 3) * 50)
        assert (weight[dead] == 0).all()
        dead = weight == 0
    assert (np.asarray(params.layers[1].linear.weight) == 0).sum() == 32
    assert (np.asarray(params.layers[0].linear.bias) != 0).all()


def test_the_smallest_go() -> None:
    """Weights by magnitude within their layer, units by the norm of their weights; logits keep their units."""
    described = students.inputs(np.random.default_rng(0), ("event", 5, None))
    network = mlp(described, 4, jax.random.key(0), widths=(10,))
    weight = np.asarray(network.layers[0].linear.weight)
    params = parameters(network)
    still = jax.tree.map(jnp.zeros_like, params)
    for asked in (Pruning(weights=0.5, begin=0, end=0.1, every=1), Pruning(units=0.3, begin=0, end=0.1, every=1)):
        optimiser = pruned(optax.sgd(0.1), asked, 2)
        updates, _ = optimiser.update(still, optimiser.init(params), params)
        after = optax.apply_updates(params, updates)
        found = np.asarray(after.layers[0].linear.weight)
        if asked.weights:
            np.testing.assert_array_equal(found != 0, np.abs(weight) > np.sort(np.abs(weight).ravel())[24])
            continue
        gone = np.argsort((weight**2).sum(axis=1))[:3]
        np.testing.assert_array_equal(np.flatnonzero((found == 0).all(axis=1)), np.sort(gone))
        assert not np.asarray(after.layers[0].linear.bias)[gone].any()
        np.testing.assert_array_equal(np.asarray(after.layers[1].linear.weight), np.asarray(network.layers[1].linear.weight))


def test_formats_without_bits() -> None:
    described = students.inputs(np.random.default_rng(0), ("event", 3, None))
    network = mlp(described, 2, jax.random.key(0), widths=(2,))
    network = eqx.tree_at(lambda n: n.layers[0].linear.weight, network, jnp.array([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    asked = Precision(weights="fixed<[[8],[6]],[[2],[3]]>", bias="fixed<8,2>", activations="ufixed<8,3>", layers={"logits": {"weights": "fixed<8,2>"}})
    found = without_bits(asked, network)
    assert found.layers["dense_0"]["weights"].startswith("fixed<[[0,8,0],[0,0,0]],[[-6,2,-6],[-6,-6,-6]]>")
    assert found.layers["dense_0"]["bias"].startswith("fixed<[8,0],[2,-6]>")
    assert found.layers["logits"] == {"weights": "fixed<8,2>"}
    with pytest.raises(UsageError, match="no form without bits"):
        without_bits(Precision(weights="ternary<0>"), network)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    card, path = write_card(tmp_path_factory.mktemp("jets")), tmp_path_factory.mktemp("runs") / "teacher"
    fit(runs.config(card, length="1epochs"), path, progress=QUIET)
    return path


@pytest.mark.slow
def test_a_pruned_student(teacher: Path, tmp_path: Path) -> None:
    """Half of the units are not in the graph at all, and three quarters of the weights are 0 in it, after training on the grid too."""
    result = distil(config(teacher, length="6epochs", model={"widths": [8, 8]}, pruning={"weights": 0.75, "units": 0.5}), tmp_path / "r", progress=QUIET)
    graph = lowered(load_run(tmp_path / "r"))
    layers = [node for node in graph.nodes if isinstance(node, Affine)]
    assert all(layer.w.shape[1] <= 4 for layer in layers[:2])
    assert sum(int((layer.w != 0).sum()) for layer in layers) <= round(0.25 * (6 * 8 + 8 * 8 + 8 * 6))
    assert result["golden"]["differing_rows"] == 0
    assert result["golden"]["cost"]["parameters"] == sum(layer.w.size + layer.b.size for layer in layers)


def test_refusals(teacher: Path, tmp_path: Path) -> None:
    for section, what in (
        ({}, "give a fraction"),
        ({"weights": 1.0}, "less than 1"),
        ({"units": 0.5, "begin": 0.8}, "too early"),
        ({"unit": 0.5}, "unknown key"),
    ):
        with pytest.raises(UsageError, match=what):
            config(teacher, pruning=section)
    with pytest.raises(UsageError, match="in its float warm-up"):
        distil(config(teacher, pruning={"units": 0.5}, strategy={"name": "easgd"}), tmp_path / "r", progress=QUIET)
