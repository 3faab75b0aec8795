"""A graph through JSON and back: the same bits, and damage is named."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hlt_train.errors import UsageError
from hlt_train.graph import FloatInput, Graph, Input, evaluate
from hlt_train.graph_document import LARGE, from_document, to_document
from tests import graphs

ALL = {
    "mlp": lambda: graphs.mlp(1, outputs=3),
    "sum": lambda: graphs.deepsets(2),
    "mean": lambda: graphs.deepsets(3, kind="mean"),
    "float": lambda: graphs.float_mlp(4),
    "convolution": lambda: graphs.convolution(5),
    "minifloat": lambda: graphs.minifloat(5, kind="mean"),
    "float convolution": lambda: graphs.float_convolution(5),
}


def through_json(graph: Graph) -> Graph:
    return from_document(json.loads(json.dumps(to_document(graph), allow_nan=False)))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("name", ALL)
def test_round_trip_to_the_bit(name: str) -> None:
    graph = ALL[name]()
    back = through_json(graph)
    assert all(same(a, b) for a, b in zip(graph.nodes, back.nodes, strict=True))
    x = graphs.features(graph, 100)
    assert evaluate(graph, x).tobytes() == evaluate(back, x).tobytes()


def test_awkward_floats_and_infinite_clips() -> None:
    graph = graphs.float_mlp(1)
    odd = np.array([0.1, 1e-45, 3.4028235e38], np.float32)
    first = dataclasses.replace(graph.nodes[0], scale=odd, lo=np.full(3, -np.inf, np.float32), hi=np.full(3, np.inf, np.float32))
    back = through_json(Graph((first, *graph.nodes[1:])))
    assert isinstance(back.nodes[0], FloatInput)
    assert same(first, back.nodes[0])


def test_large_arrays_are_base64() -> None:
    graph = graphs.mlp(1, widths=(300, 300))
    document = to_document(graph)
    stored = next(node for node in document["nodes"] if node["name"] == "dense1")["w"]
    assert LARGE < 300 * 300
    assert "base64" in stored
    assert all(same(a, b) for a, b in zip(graph.nodes, through_json(graph).nodes, strict=True))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), "hlt-train/run", "expected a document of format 'hlt-train/graph'"),
        (("version",), 3, "version 3"),
        (("version",), "1", "version '1'"),
        (("nodes", 1, "node"), "Afine", "no node is called 'Afine'"),
        (("nodes", 1, "w", "data", 0), 0.5, "damaged Affine"),
        (("nodes", 1, "w", "shape"), [7, 7], "damaged Affine"),
        (("nodes", 1, "w", "dtype"), "float64", "damaged Affine"),
        (("nodes", 1, "extra"), 1, "extra"),
        (("nodes", 2, "quant", "to"), {"signed": True}, "damaged Requant"),
        (("nodes", 1, "sources"), ["nowhere"], "reads 'nowhere'"),
    ],
)
def test_damage_is_named(path: tuple[Any, ...], value: Any, message: str) -> None:
    document = copy.deepcopy(to_document(graphs.mlp(1)))
    place: Any = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(UsageError, match=message):
        from_document(document)


@pytest.mark.parametrize("version", [1, 2])
def test_every_version_is_read_for_ever(version: int) -> None:
    """The samples were written by the first release of each; what they compute is stored beside them."""
    sample = json.loads((Path(__file__).parent / "samples" / f"graph-{version}.json").read_text())
    assert sample["graph"]["version"] == version
    graph = from_document(sample["graph"])
    assert to_document(graph) == sample["graph"]  # written as the oldest version that can say it: an older program reads it, and hashes stay
    assert isinstance(graph.inputs[0], Input)
    x = graphs.features(graph, 20, seed=9)
    assert evaluate(graph, x).tolist() == sample["outputs"]
