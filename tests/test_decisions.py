"""From logits to decisions."""

from __future__ import annotations

import numpy as np

from hlt_train.decisions import decide, scores, thresholds
from hlt_train.graph import Graph, Output
from tests import graphs

EXACT = {"points": [{"integer_threshold": 4, "threshold": 0.5}, {"integer_threshold": None, "threshold": 0.0}]}


def test_an_exact_graph_cuts_on_integers_inclusively() -> None:
    graph = graphs.mlp(1)
    outputs = np.array([[5, 1], [4, 1], [3, -1]], np.int64)
    found = scores(graph, outputs, EXACT)
    assert found is not None
    assert found.tolist() == [4, 3, 4]
    assert thresholds(graph, EXACT) == [4, None]
    assert decide(graph, found, EXACT, 3).tolist() == [[True, False, True], [False, False, False]]


def test_a_float_graph_cuts_on_the_discriminant() -> None:
    graph = graphs.float_mlp(1)
    points = {"points": [{"threshold": 0.0}], "classes": ["a", "b", "c"], "discriminant": {"signal": {"a": 1.0}, "background": {"b": 0.5, "c": 0.5}}}
    outputs = np.log(np.array([[0.6, 0.2, 0.2], [0.1, 0.4, 0.5]], np.float32))
    found = scores(graph, outputs, points)
    assert found is not None
    assert np.allclose(found, np.log([0.6 / 0.2, 0.1 / 0.45]), atol=1e-6)
    assert decide(graph, found, points, 2).tolist() == [[True, False]]


def test_without_a_score_nothing_passes() -> None:
    graph = graphs.mlp(1)
    bare = Graph((*graph.nodes[:-1], Output("out", ("logits",), ("a", "b"), "none")))
    assert scores(bare, np.zeros((2, 2), np.int64), EXACT) is None
    assert not decide(bare, None, EXACT, 2).any()
    assert scores(graphs.float_mlp(1), np.zeros((2, 3), np.float32), {"points": []}) is None
