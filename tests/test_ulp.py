"""The share of bits that one float32 step of the inputs moves."""

from __future__ import annotations

import numpy as np

from hlt_train.graph import Fixed, Graph, Output, Pool, evaluate, input_node
from hlt_train.types import Features, Group
from hlt_train.ulp import one_step
from tests import graphs

F32 = np.float32


def line(length: int | None) -> Graph:
    """Grid steps of 1, nothing else."""
    group = Group("x", ("a",), length, np.zeros(1, F32), np.ones(1, F32), np.full(1, -8, F32), np.full(1, 8, F32), np.zeros(1, F32))
    node = input_node("in", group, Fixed(True, 3, 0))
    if length is None:
        return Graph((node, Output("out", ("in",), ("a",), "none", np.ones(1, np.int64))))
    return Graph((node, Pool("p", ("in",), "sum", "x"), Output("out", ("p",), ("a",), "none", np.ones(1, np.int64))))


def test_only_values_next_to_a_tie_move() -> None:
    graph = line(None)
    below = np.nextafter(F32(1.5), F32(0))  # rounds to 1; its upper neighbour is the tie, which rounds to 2
    x = Features({"x": np.array([[0.2], [below], [3.0], [-2.3]], F32)}, {})
    found = one_step(graph, x, lambda z: evaluate(graph, z).T >= 2)
    assert found["integer_inputs_flipped"] == 1 / 8  # one of four inputs in one of two directions
    assert found["decisions_flipped"] == 1 / 8
    assert found["rows"] == 4


def test_absent_constituents_do_not_count() -> None:
    graph = line(3)
    tie = np.nextafter(F32(0.5), F32(1))
    x = Features({"x": np.array([[[3.0], [tie], [tie]]], F32)}, {"x": np.array([1], np.int32)})
    assert one_step(graph, x, lambda z: evaluate(graph, z).T > 3)["integer_inputs_flipped"] == 0
    x.counts["x"][0] = 2
    assert one_step(graph, x, lambda z: evaluate(graph, z).T > 3)["integer_inputs_flipped"] == 1 / 4


def test_a_float_network_has_decisions_only() -> None:
    graph = graphs.float_mlp(1)
    found = one_step(graph, graphs.features(graph, 50), lambda z: evaluate(graph, z).T > 0)
    assert set(found) == {"rows", "decisions_flipped"}
