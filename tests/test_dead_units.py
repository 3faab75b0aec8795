"""Graphs without dead units compute the same integers, for random graphs with features that were made dead in every way there is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlt_train.cost import cost
from hlt_train.dead_units import without_dead_units
from hlt_train.graph import Affine, Fixed, Graph, Node, Requant, evaluate
from tests import graphs

BUILD = {
    "mlp": graphs.mlp,
    "deepsets": graphs.deepsets,
    "mean": lambda seed: graphs.deepsets(seed, kind="mean"),
    "max": lambda seed: graphs.deepsets(seed, kind="max"),
    "convolution": graphs.convolution,
}


def deadened(graph: Graph, rng: np.random.Generator) -> Graph:
    """Units whose weights are all 0 (their bias stays), weights that read a unit set to 0, activations without bits."""
    nodes: list[Node] = []
    for node in graph.nodes:
        if isinstance(node, Affine):
            w = node.w.copy()
            w[:, rng.random(w.shape[1]) < 0.3] = 0
            w[rng.random(w.shape[0]) < 0.3] = 0
            nodes.append(replace(node, w=w))
        elif isinstance(node, Requant):
            n = graph.structure[node.name].n
            dead = rng.random(n) < 0.2
            i = np.where(dead, -np.asarray(node.quant.to.f) - int(node.quant.to.signed), node.quant.to.i)
            nodes.append(replace(node, quant=replace(node.quant, to=Fixed(node.quant.to.signed, i, node.quant.to.f))))
        else:
            nodes.append(node)
    return Graph(tuple(nodes))


@pytest.mark.parametrize("name", sorted(BUILD))
@given(seed=st.integers(0, 10_000))
def test_the_same_integers(name: str, seed: int) -> None:
    graph = deadened(BUILD[name](seed), np.random.default_rng(seed))
    small = without_dead_units(graph)
    x = graphs.features(graph, 60, seed)
    np.testing.assert_array_equal(evaluate(small, x), evaluate(graph, x))
    assert (small.structure["out"].f == graph.structure["out"].f).all()  # type: ignore[union-attr]
    assert cost(small)["bit_operations"] <= cost(graph)["bit_operations"]
    assert without_dead_units(small) is small


def test_nothing_dead_is_the_same_graph() -> None:
    graph = graphs.mlp(3)
    full = Graph(tuple(replace(node, w=np.where(node.w == 0, 1, node.w)) if isinstance(node, Affine) else node for node in graph.nodes))
    assert without_dead_units(full) is full
    network = graphs.float_mlp(1)
    assert without_dead_units(network) is network


def test_a_constant_goes_into_the_bias() -> None:
    """A unit with zero weights and a bias is a constant; the layer after it loses the column, the layer itself the unit."""
    graph = graphs.mlp(5, widths=(4, 3), over="sat", round="floor")
    nodes = list(graph.nodes)
    first, requant = nodes[1], nodes[2]
    assert isinstance(first, Affine)
    assert isinstance(requant, Requant)
    w = np.where(first.w == 0, 1, first.w)
    w[:, 2] = 0
    nodes[1] = replace(first, w=w, b=np.where(np.arange(4) == 2, 4096, first.b))
    nodes[2] = replace(requant, quant=replace(requant.quant, to=Fixed(False, 6, 2)))
    second = nodes[3]
    assert isinstance(second, Affine)
    nodes[3] = replace(second, w=np.where(second.w == 0, 1, second.w), relu=False)
    nodes[4] = replace(nodes[4], quant=replace(requant.quant, to=Fixed(True, 20, 4)))  # type: ignore[call-arg]
    last = nodes[5]
    assert isinstance(last, Affine)
    nodes[5] = replace(last, w=np.where(last.w == 0, 1, last.w))
    graph = Graph(tuple(nodes))
    small = without_dead_units(graph)
    assert small.structure["dense0"].n == 3
    layers = {node.name: node for node in small.nodes if isinstance(node, Affine)}
    constant = 4096 >> (8 - 2)
    np.testing.assert_array_equal(layers["dense1"].b, second.b + constant * nodes[3].w[2])  # type: ignore[attr-defined]


def test_what_goes_together_stays_together() -> None:
    """The addends of a residual keep the same features; a flattened feature stays at every position because one needs it."""
    graph = graphs.deepsets(7)
    nodes = list(graph.nodes)
    for k, node in enumerate(nodes):
        if isinstance(node, Affine) and node.name in ("phi1", "rho"):
            w = np.zeros_like(node.w)
            if node.name == "phi1":
                np.fill_diagonal(w, 3)  # each unit reads its own addend
            else:
                w[1], w[6 + 3] = 1, 1  # one pooled feature, one feature of one constituent
            nodes[k] = replace(node, w=w)
    small = without_dead_units(Graph(tuple(nodes)))
    assert [small.structure[name].n for name in ("phi0", "phi0_act", "phi1", "residual", "pool")] == [1] * 5
    assert small.structure["flat"].n == graph.structure["flat"].n
