"""Hints: which layers, what is learnt of them and when."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hlt_train.errors import UsageError
from hlt_train.hints import REGRESSOR, STEPS, Hint, Hints, hidden_layers, layer_of
from hlt_train.models.deepsets import deepsets
from hlt_train.models.mlp import mlp
from hlt_train.types import Features
from tests import students

INPUTS = students.inputs(np.random.default_rng(0), ("hlf", 4, None), ("part", 3, 5))


def test_layers_with_one_vector_per_row_in_the_order_of_the_network() -> None:
    one = mlp(INPUTS, 2, jax.random.key(0), widths=(7, 6, 5))
    assert list(hidden_layers(one, INPUTS, "student").items()) == [("dense_0", 7), ("dense_1", 6), ("dense_2", 5)]
    two = deepsets(INPUTS, 2, jax.random.key(0), phi=(8, 9), rho=(4,))
    assert list(hidden_layers(two, INPUTS, "student").items()) == [("part_pool", 9), ("rho_0", 4)]
    assert layer_of(None, hidden_layers(one, INPUTS, "student"), "student") == "dense_1"
    with pytest.raises(UsageError, match="no hidden layer 'dense_9'") as caught:
        layer_of("dense_9", hidden_layers(one, INPUTS, "student"), "student")
    assert "dense_0" in caught.value.near


def test_a_network_without_hidden_layers_has_no_hint() -> None:
    with pytest.raises(UsageError, match="no hidden layer with one vector per row"):
        hidden_layers(mlp(INPUTS, 2, jax.random.key(0), widths=()), INPUTS, "student")


class Traced:
    """Shows its input as its hidden layer."""

    def trace(self, x: Features) -> dict[str, Any]:
        return {"v": x.groups["v"]}


def test_the_formula_and_its_minimum() -> None:
    """|u - W v - b|^2 / 2, the mean over units; its gradient vanishes at the solution of least squares."""
    rng = np.random.default_rng(1)
    v, u = rng.normal(size=(40, 3)).astype(np.float32), rng.normal(size=(40, 2)).astype(np.float32)
    hint, x = Hint("v", 3, 2, 1.0, 0), Features({"v": v}, {})
    solution = np.linalg.lstsq(np.concatenate([v, np.ones((40, 1))], axis=1), u, rcond=None)[0]
    best = {"weight": jnp.asarray(solution[:3].T, jnp.float32), "bias": jnp.asarray(solution[3], jnp.float32)}
    found = hint.rows(Traced(), {REGRESSOR: best}, x, jnp.asarray(u))
    np.testing.assert_allclose(found, ((u - v @ solution[:3] - solution[3]) ** 2).mean(axis=1) / 2, rtol=1e-4)
    gradient = jax.grad(lambda r: hint.rows(Traced(), {REGRESSOR: r}, x, jnp.asarray(u)).sum())(best)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) < 1e-4
    start = hint.companions(jax.random.key(0))[REGRESSOR].start
    assert start["weight"].shape == (2, 3)


def test_the_schedule() -> None:
    """The hint alone for the first three steps, then the answers with the weight that is given."""
    answers, own = jnp.array([1.0, 2.0]), jnp.array([10.0, 20.0])
    for weight in (0.0, 0.5):
        hint = Hint("v", 3, 2, weight, 3)
        for step, want in ((0, own), (2, own), (3, answers + weight * own)):
            np.testing.assert_array_equal(hint.joined(answers, own, {STEPS: jnp.float32(step)}), want)
    np.testing.assert_array_equal(Hint("v", 3, 2, 2.0, 0).joined(answers, own, {STEPS: jnp.float32(0)}), answers + 2 * own)


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"frist": 0.5}, "nearest: first"),
        ({"weight": -1}, "at least 0"),
        ({"first": 1}, "share below 1"),
        ({"weight": 0}, "leave no hint"),
        ({"student": 3}, "a layer has a name"),
        ({"cached": 1}, "true or false"),
    ],
)
def test_sections_that_are_none(section: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        Hints.from_config(section)
    assert says in str(caught.value)


def test_first_alone_is_the_papers_schedule() -> None:
    assert Hints.from_config({"first": 0.25}).weight == 0.0
    assert Hints.from_config({}).weight == 1.0
    assert Hints.from_config({"first": 0.25, "weight": 0.5}).weight == 0.5
