"""Networks with learned bits against the students that are made of them: the same integers, the same cost."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hlt_train.cost import cost
from hlt_train.errors import UsageError
from hlt_train.graph import Affine, Graph, evaluate
from hlt_train.models._layers import Dense, GroupInput
from hlt_train.models._pooling import Pooling
from hlt_train.models._widths import Learned, Range, learning
from hlt_train.models.conv import conv
from hlt_train.models.deepsets import deepsets
from hlt_train.models.mlp import mlp
from hlt_train.precision.config import Precision
from hlt_train.restore import with_weights
from tests import students

BUILD: dict[str, Any] = {
    "mlp": lambda described, precision: mlp(described, 3, jax.random.key(1), widths=(9, 6), precision=precision),
    "deepsets": lambda described, precision: deepsets(described, 3, jax.random.key(1), phi=(7, 6), rho=(5,), precision=precision),
    "conv": lambda described, precision: conv(described, 3, jax.random.key(1), filters=(4, 5), stride=2, rho=(5,), precision=precision),
}


def learned(name: str, seed: int = 0, weights: str = "element", activations: str = "element") -> tuple[Learned, Any]:
    """A network whose bits have been moved at random, some of them to nothing; and its inputs."""
    rng = np.random.default_rng(seed)
    groups = (("event", 3, None),) if name == "mlp" else (("event", 3, None), ("jets", 4, 5))
    described = students.inputs(rng, *groups)
    network = BUILD[name](described, None)
    made = learning(network, BUILD[name](described, students.NARROW), described, weights, activations, pruned=False)  # type: ignore[arg-type]

    def moved(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path)
        if name.endswith((".f", ".i")):
            return leaf - jnp.asarray(rng.integers(0, 7 if name.endswith(".f") else 2, leaf.shape), jnp.float32) * (rng.random(leaf.shape) < 0.8)
        return leaf

    params, static = eqx.partition(made, eqx.is_inexact_array)
    return eqx.combine(jax.tree_util.tree_map_with_path(moved, params), static), described


def student(made: Learned, name: str, described: Any) -> Graph:
    """From the formats as texts, as a run would be read back; that is what `fixed` makes at once."""
    at_once, precision = made.fixed(described, students.NARROW)
    frozen = BUILD[name](described, Precision.from_config(precision.to_config()))
    assert _formats(at_once) == _formats(frozen)
    network = with_weights(frozen, at_once)
    graph: Graph = network.lower(described, ("a", "b", "c"), None)
    return graph


def _formats(network: Any) -> list[Any]:
    """All but the largest integers of inputs, of which `fixed` does not know what the clip leaves out."""
    parts = jax.tree.leaves(network, is_leaf=lambda node: isinstance(node, Dense | GroupInput | Pooling))
    plain = [dataclasses.replace(part.formats, source=part.formats.source._replace(top=())) for part in parts if isinstance(part, Dense)]
    return [*plain, *([getattr(part, name, None) for name in ("name", "format", "lo", "hi", "source_f", "kind")] for part in parts)]


@pytest.mark.parametrize(("name", "granularity"), [("mlp", "element"), ("mlp", "channel"), ("mlp", "tensor"), ("deepsets", "element"), ("conv", "element")])
def test_the_student_computes_what_was_trained(name: str, granularity: str) -> None:
    """Bit for bit, with dead weights, dead activations and dead inputs."""
    made, described = learned(name, weights=granularity, activations=granularity)
    x = students.raw(np.random.default_rng(5), described, 300)
    graph = student(made, name, described)
    f = graph.structure["output"].f
    assert f is not None
    wanted = np.ldexp(evaluate(graph, x).astype(np.float64), -f.astype(np.int32))
    np.testing.assert_array_equal(np.asarray(eqx.filter_jit(lambda model, rows: model(rows))(made, students.normalised(described, x))), wanted)
    assert np.ptp(wanted) > 0
    if granularity == "element":
        assert any((node.w == 0).mean() > 0.1 for node in graph.nodes if isinstance(node, Affine))


@eqx.filter_jit
def operations(made: Learned) -> jax.Array:
    return made.bit_operations()


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_the_cost_bounds_that_of_the_graph(name: str) -> None:
    made, described = learned(name)
    assert 0 < cost(student(made, name, described))["bit_operations"] <= float(operations(made))


def test_the_cost_is_that_of_the_graph() -> None:
    """Exactly, where activations reach the ends of their formats."""
    made, described = learned("mlp")
    # with integer bits that every sum overflows, every activation reaches its limit
    params, static = eqx.partition(made, eqx.is_inexact_array)

    def shrunk(path: Any, leaf: jax.Array) -> jax.Array:
        keys = jax.tree_util.keystr(path)
        if keys.endswith(".bias"):
            return jnp.full_like(leaf, 3.0)
        if keys.endswith(".i"):
            return jnp.full_like(leaf, 1.0 if "bits" in keys else -1.0)  # the clips of inputs are 2 at least
        return leaf

    small = eqx.combine(jax.tree_util.tree_map_with_path(shrunk, params), static)
    assert float(operations(small)) == cost(student(small, "mlp", described))["bit_operations"]


def test_every_bit_is_worth_the_bits_it_meets() -> None:
    """d cost / d f of a weight is the width of its input, of an activation the sum of the weights that read it; dead ones are free."""
    made, _ = learned("mlp")
    gradient = eqx.filter_jit(eqx.filter_grad(lambda model: model.bit_operations()))(made)
    layers, slopes = made.network.layers, gradient.network.layers
    for k, (layer, slope) in enumerate(zip(layers, slopes, strict=True)):
        read = made.network.inputs[0].bits.width if k == 0 else layers[k - 1].out.width
        alive = np.asarray(layer.weight) != 0
        inside = np.asarray(layer.f) <= np.asarray(layer.most)
        assert inside.all()
        np.testing.assert_allclose(slope.f, np.where(alive, np.asarray(read)[None, :], 0))
        if k:
            width = np.asarray(layers[k - 1].out.width)
            np.testing.assert_allclose(slopes[k - 1].out.f, np.where(width > 0, np.asarray(layer.weight_bits).sum(axis=0), 0))
        assert not np.asarray(slope.linear.weight).any()
    assert not alive.all()


def test_pruned_weights_remain_zero() -> None:
    described = students.inputs(np.random.default_rng(0), ("event", 3, None))
    network = BUILD["mlp"](described, None)
    weight = np.asarray(network.layers[0].linear.weight).copy()
    weight[::2] = 0
    network = eqx.tree_at(lambda model: model.layers[0].linear.weight, network, jnp.asarray(weight))
    made = learning(network, BUILD["mlp"](described, students.NARROW), described, "element", "element", pruned=True)
    x = students.normalised(described, students.raw(np.random.default_rng(1), described, 50))
    gradient = eqx.filter_jit(eqx.filter_grad(lambda model: model(x).sum()))(made).network.layers[0]
    assert not np.asarray(gradient.linear.weight)[::2].any()
    assert np.asarray(gradient.linear.weight)[1::2].any()


def test_formats_without_widths_are_refused() -> None:
    described = students.inputs(np.random.default_rng(0), ("event", 3, None))
    network = BUILD["mlp"](described, None)
    for change, what in (
        ({"weights": "ternary<0>"}, "no width to learn"),
        ({"over": "wrap"}, "learned with saturation"),
        ({"round": "stochastic"}, "one rounding"),
    ):
        fixed = BUILD["mlp"](described, Precision.from_config({**students.NARROW.to_config(), **change}))
        with pytest.raises(UsageError, match=what):
            learning(network, fixed, described, "element", "element", pruned=False)


def test_a_dead_feature_makes_no_sum_finer() -> None:
    bits = Range(jnp.array([9.0, 2.0, 3.0]), jnp.array([-9.0, 1.0, 1.0]), jnp.full(3, 9), jnp.full(3, 9), False, "half_even")
    assert bits.exponents.tolist() == [2, 2, 3]
    assert str(bits.format(bits.now, 3)) == "ufixed<[0,3,4],[-2,1,1]>,half_even,sat"
