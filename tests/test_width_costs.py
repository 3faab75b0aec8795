"""Prices of learned bits against the predictions that they stand for, and their gradients against finite differences."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hlt_train import latency_table, lut_surrogate, width_costs
from hlt_train.dead_units import without_dead_units
from hlt_train.graph import Graph
from hlt_train.models._widths import Learned, learning
from hlt_train.models.conv import conv
from hlt_train.models.deepsets import deepsets
from hlt_train.models.mlp import mlp
from hlt_train.precision.config import Precision
from hlt_train.width_costs import Cost
from tests import students

FORMATS = Precision.from_config({"weights": "fixed<6,0>", "bias": "fixed<8,0>", "activations": "ufixed<5,-3>", "inputs": "fixed<6,1>"})  # sums overflow them
BUILD: dict[str, Any] = {
    "mlp": lambda described, precision: mlp(described, 3, jax.random.key(1), widths=(9, 6), precision=precision),
    "deepsets": lambda described, precision: deepsets(described, 3, jax.random.key(1), phi=(7, 6), rho=(5,), pool="sum", precision=precision),
    "conv": lambda described, precision: conv(described, 3, jax.random.key(1), filters=(4, 5), stride=2, rho=(5,), pool="sum", precision=precision),
}
LOGIC = {"clock_ns": 5.0, "luts": {"constants": {"digit_bits": 0.6, "requant_bits": 1.5, "mask_bits": 0.25}}, "delay_ns": {"constants": {"layer": 1.0}}}
NS = {"call": 3.0, "input": 1.5, "layer": 2.0, "tile": 0.5, "requant": 0.75, "pool": 0.6, "gather": 0.3}
TIMES = {"paths": {path: {"ns": NS} for path in latency_table.TILE}}
COUNTS = {"jets": 3.5}


def network(name: str) -> tuple[Learned, Graph]:
    """Learned bits at their beginning, with activations that reach their limits, and the graph that is made of them."""
    rng = np.random.default_rng(0)
    described = students.inputs(rng, *((("event", 3, None),) if name == "mlp" else (("event", 3, None), ("jets", 4, 5))))
    made = learning(BUILD[name](described, None), BUILD[name](described, FORMATS), described, "element", "element", pruned=False)
    params, static = eqx.partition(made, eqx.is_inexact_array)

    def mixed(path: Any, leaf: jax.Array) -> jax.Array:
        """Large weights of both signs for every unit, and a bias of half its range: none is constant, and each reaches its limit."""
        if jax.tree_util.keystr(path).endswith(".linear.bias"):
            return jnp.full_like(leaf, 0.0625)
        if not jax.tree_util.keystr(path).endswith(".linear.weight"):
            return leaf
        signs = (-1.0) ** np.add.outer(np.arange(len(leaf)), np.arange(leaf.shape[1]))
        return jnp.asarray(signs * rng.uniform(0.3, 0.48, leaf.shape), jnp.float32)

    made = eqx.combine(jax.tree_util.tree_map_with_path(mixed, params), static)
    graph: Graph = made.fixed(described, FORMATS)[0].lower(described, ("a", "b", "c"), None)
    return made, graph


def costs(graph: Graph) -> dict[str, Cost]:
    return {"luts": width_costs.luts(graph, LOGIC), **{path: width_costs.cpu(graph, TIMES, path, COUNTS) for path in ("plain", "avx2")}}


@eqx.filter_jit
def priced(cost: Cost, learned: Learned) -> jax.Array:
    return cost.price(learned)


@pytest.mark.parametrize("name", ["mlp", "deepsets", "conv"])
def test_the_price_is_the_prediction(name: str) -> None:
    """With bits that values fill and everything alive."""
    made, graph = network(name)
    assert without_dead_units(graph) is graph
    predicted = {
        "luts": lut_surrogate.predict(LOGIC, graph)["luts"],
        **{path: latency_table.predict(TIMES, graph, path, COUNTS) for path in ("plain", "avx2")},
    }
    for what, cost in costs(graph).items():
        assert cost.of(graph) == predicted[what]
        assert float(priced(cost, made)) == pytest.approx(predicted[what], rel=1e-6), what


def with_bits(made: Learned, layer: int, unit: int, f: float) -> Learned:
    """One activation with other fraction bits."""
    changed: Learned = eqx.tree_at(lambda m: m.network.layers[layer].out.f, made, made.network.layers[layer].out.f.at[unit].set(f))
    return changed


@pytest.mark.parametrize("what", ["luts", "plain"])
def test_the_gradient_of_an_activation_is_a_finite_difference(what: str) -> None:
    """Of one bit for LUTs; of the whole unit for the processor, spread over its bits, where a tile is one product."""
    made, graph = network("mlp")
    cost = costs(graph)[what]
    before = float(priced(cost, made))
    slopes = eqx.filter_jit(eqx.filter_grad(cost.price))(made).network.layers
    for layer, unit in ((0, 2), (1, 5)):
        out = made.network.layers[layer].out
        width, f = float(out.width[unit]), float(out.f[unit])
        bits = 1.0 if what == "luts" else width
        after = float(priced(cost, with_bits(made, layer, unit, f - bits)))
        assert float(slopes[layer].out.f[unit]) == pytest.approx((before - after) / bits, rel=1e-4)
        assert float(slopes[layer].out.i[unit]) == pytest.approx((before - after) / bits, rel=1e-4)
        assert after < before


def test_a_begun_tile_counts_as_a_whole_one() -> None:
    """On vectors of 16 numbers and tiles of 2 x 8, 9 units take as long as 10 or more; the gradient still says that each is worth something."""
    made, graph = network("mlp")
    cost = costs(graph)["avx2"]
    one = with_bits(made, 0, 2, -16.0)
    assert float(priced(cost, made)) - float(priced(cost, one)) == pytest.approx(NS["tile"] * (5 - 4) * 1 + NS["tile"] * 2 * (2 - 1))
    slope = float(eqx.filter_jit(eqx.filter_grad(cost.price))(made).network.layers[0].out.f[2])
    width = float(made.network.layers[0].out.width[2])
    # tiles of the layer before, of the layer after, and numbers to requantise
    assert slope == pytest.approx((NS["tile"] * (2 / 8 + 1 / 2) + NS["requant"] / 16) / width)


def test_a_unit_without_weights_is_free() -> None:
    made, graph = network("mlp")
    dead = eqx.tree_at(lambda m: m.network.layers[0].linear.weight, made, made.network.layers[0].linear.weight.at[4].set(0))
    for what in ("luts", "plain"):
        assert float(priced(costs(graph)[what], dead)) < float(priced(costs(graph)[what], made))


def test_a_fraction_bit_of_a_weight_is_worth_a_third_of_a_digit() -> None:
    """On average over many weights."""
    rng = np.random.default_rng(3)
    described = students.inputs(rng, ("event", 40, None))
    build = lambda precision: mlp(described, 3, jax.random.key(1), widths=(60,), precision=precision)  # noqa: E731
    formats = Precision.from_config({**FORMATS.to_config(), "weights": "fixed<14,-1>"})
    made = learning(build(None), build(formats), described, "element", "element", pruned=False)
    graph: Graph = made.fixed(described, formats)[0].lower(described, ("a", "b", "c"), None)
    cost = width_costs.luts(graph, LOGIC)
    coarser = eqx.tree_at(lambda m: m.network.layers[0].f, made, made.network.layers[0].f - 4)
    slope = float(eqx.filter_jit(eqx.filter_grad(cost.price))(made).network.layers[0].f.sum())
    assert slope == pytest.approx((float(priced(cost, made)) - float(priced(cost, coarser))) / 4, rel=0.03)
