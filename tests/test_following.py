"""Exponents of a student follow its numbers by the published rule, never let a bias leave the grid of its sums, and are static when it is lowered."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hlt_train import following, graph
from hlt_train.calibration import dense_layers
from hlt_train.models.deepsets import deepsets
from hlt_train.models.mlp import mlp
from hlt_train.precision.config import Precision
from hlt_train.precision.followed import Exponents
from hlt_train.restore import ModelSpec, parameters, settled, with_params
from tests.students import inputs, normalised, raw

RNG = np.random.default_rng(3)
MIXED = inputs(RNG, ("event", 3, None), ("jets", 2, 4))
MOVING = Precision(weights="dynamic<8,2>", bias="dynamic<8,3>", activations="udynamic<8,3>", inputs="fixed<8,4>", every=30, overflow=0.05)


def network(precision: Precision = MOVING, **options: Any) -> eqx.Module:
    return mlp(MIXED, 2, jax.random.key(1), widths=(6, 5), precision=precision, **options)


def bits(model: Any) -> list[list[float]]:
    return [np.asarray(part.exponents.values)[:, 0].tolist() for part in following.parts(model)]


def stepped(model: eqx.Module, rates: list[np.ndarray], batch: int, precision: Precision = MOVING) -> eqx.Module:
    """The model after steps of plain SGD in which nothing is learnt and these rates `[steps, rows, 3]` per layer were counted."""
    params: Any = parameters(model)
    rule = following.optimiser(optax.sgd(0.1), precision, batch=batch)
    state, update = rule.init(params), jax.jit(rule.update)
    for k in range(len(rates[0])):
        zeros = jax.tree.map(jnp.zeros_like, params)
        leaves, structure = jax.tree.flatten(zeros, is_leaf=lambda node: isinstance(node, Exponents))
        counted = iter(rates)
        slopes = jax.tree.unflatten(structure, [Exponents(jnp.asarray(next(counted)[k])) if isinstance(leaf, Exponents) else leaf for leaf in leaves])
        updates, state = update(slopes, state, params)
        params = optax.apply_updates(params, updates)
    return with_params(model, params)


def counts(model: eqx.Module, steps: int, rows: list[list[tuple[float, float]]]) -> list[np.ndarray]:
    """The same rates (beyond, beyond half) in every step, for each layer's rows."""
    return [np.tile(np.array([[*pair, 0.0] for pair in part], np.float32), (steps, 1, 1)) for part in rows]


STILL, UP, DOWN = (0.0, 0.5), (0.2, 0.5), (0.0, 0.01)


def test_a_range_is_doubled_or_halved_every_so_many_examples() -> None:
    model = network()
    assert bits(model) == [[2, 3, 3], [2, 3, 3], [2, 3]]
    rows = [[UP, STILL, DOWN], [STILL, UP, UP], [DOWN, STILL]]
    assert bits(stepped(model, counts(model, 2, rows), batch=10)) == bits(model)  # 20 of 30 examples
    assert bits(stepped(model, counts(model, 3, rows), batch=10)) == [[3, 3, 2], [2, 4, 4], [1, 3]]
    assert bits(stepped(model, counts(model, 8, rows), batch=10)) == [[4, 3, 1], [2, 5, 5], [0, 3]]


def test_the_rate_is_the_mean_over_the_period() -> None:
    model = network()
    rows = [[STILL] * 3, [STILL] * 3, [STILL] * 2]
    found = counts(model, 3, rows)
    found[0][0, 0, 0] = 0.14  # 4.7 % over three steps, of 5 % that are let go
    assert bits(stepped(model, found, batch=10)) == bits(model)
    found[0][0, 0, 0] = 0.16
    assert bits(stepped(model, found, batch=10)) == [[3, 3, 3], [2, 3, 3], [2, 3]]


def test_a_bias_is_never_finer_than_its_sums() -> None:
    """Weights of 2^-6 and inputs of 2^-4 make sums of 2^-10, activations of 2^-5 sums of 2^-11; 8 bits with I = -2 have steps of 2^-10."""
    model = network()
    down = counts(model, 30, [[STILL, DOWN, STILL], [STILL, DOWN, STILL], [STILL, DOWN]])
    found = stepped(model, down, batch=10)
    assert bits(found) == [[2, -2, 3], [2, -3, 3], [2, -3]]
    # The next layer's sums are coarser when the activations that it reads are: its bias follows them at once.
    assert bits(stepped(found, counts(model, 3, [[STILL, STILL, UP], [UP, STILL, STILL], [STILL, STILL]]), batch=10)) == [[2, -2, 4], [3, -1, 3], [2, -3]]
    score = ModelSpec("mlp", {"widths": [6, 5]}, ("a", "b"), MOVING.to_config())
    settled(score, MIXED, found)  # accepted: a bias off the grid would be refused


def test_weights_take_the_steps_of_their_own_optimiser() -> None:
    model = network()
    params: Any = parameters(model)
    rule = following.optimiser(optax.adamw(0.1), MOVING, batch=10)
    slopes = jax.tree.map(jnp.ones_like, params)
    updates, _ = rule.update(slopes, rule.init(params), params)
    plain = following.without_exponents(params)
    inner = optax.adamw(0.1)
    want, _ = inner.update(jax.tree.map(jnp.ones_like, plain), inner.init(plain), plain)
    for a, b in zip(jax.tree.leaves(following.without_exponents(updates)), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("pool", ["sum", "mean"])
def test_the_settled_network_computes_what_was_trained(pool: str) -> None:
    """Exponents that differ from those at first, in every layer and pool: the dynamic forward, the settled forward, and the golden integers agree."""
    options = {"phi": (6,), "rho": (5,), "pool": pool}
    spec = ModelSpec("deepsets", options, ("a", "b"), MOVING.to_config())
    model = deepsets(MIXED, 2, jax.random.key(1), precision=MOVING, **options)  # type: ignore[arg-type]
    rows = [[DOWN, DOWN, UP], [STILL], [UP, STILL, DOWN], [STILL, UP]]
    assert [len(part) for part in bits(model)] == [len(part) for part in rows]
    moved = stepped(model, counts(model, 3, rows), batch=10)
    found, still = settled(spec, MIXED, moved)
    assert bits(moved) != bits(model)
    assert not following.parts(still)
    assert found.moving == spec.precision
    assert found.precision["layers"]["logits"] == {"weights": "fixed<8,2>,half_even,sat", "bias": "fixed<8,4>,half_even,sat"}
    x = raw(RNG, MIXED, 400)
    ready = normalised(MIXED, x)
    lowered = still.lower(MIXED, ("a", "b"), None)
    f = lowered.structure["output"].f
    want = np.ldexp(graph.evaluate(lowered, x).astype(np.float64), -f.astype(np.int32))
    np.testing.assert_array_equal(eqx.filter_jit(lambda m, v: m(v))(still, ready), want)
    forward = np.asarray(eqx.filter_jit(lambda m, v: m(v))(moved, ready))
    if pool == "sum":
        np.testing.assert_array_equal(forward, want)
    else:  # a mean is divided in float32 while it is trained
        assert (forward == want).mean() > 0.98
    before = settled(spec, MIXED, model)[1].lower(MIXED, ("a", "b"), None)
    assert any(not np.array_equal(a.quant.to.f, b.quant.to.f) for a, b in zip(lowered.nodes, before.nodes, strict=True) if isinstance(a, graph.Requant))


def test_what_is_counted_is_the_gradient_of_the_exponents() -> None:
    model = network(MOVING.with_format("dense_0", "activations", MOVING.activation("dense_0").scaled(-4)))
    x = normalised(MIXED, raw(RNG, MIXED, 300))

    def loss(params: Any) -> jax.Array:
        return 1e-3 * (with_params(model, params)(x) ** 2).sum()

    found = eqx.filter_jit(jax.grad(loss))(parameters(model))
    first = following.parts(found)[0].exponents.values
    values = np.asarray(dense_layers(model)[0].accumulate(jnp.concatenate([part(x).reshape(300, -1) for part in model.inputs], axis=-1)))
    np.testing.assert_allclose(first[2, 0], (values >= 0.5).mean(), rtol=1e-5)
    weights = np.abs(np.asarray(model.layers[0].linear.weight))
    np.testing.assert_allclose(first[0, :2], [(weights >= 2).mean(), (weights >= 1).mean()], rtol=1e-5)
