"""The lwtnn target: its JSON read by an independent evaluator, event by event as lwtnn does; refusals; a selftest that notices what changed."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hlt_train.certify import Material, export_graph
from hlt_train.errors import UsageError
from hlt_train.exporters.lwtnn import lwtnn
from hlt_train.graph import Add, Concat, FloatAffine, FloatPool, Graph, Output, evaluate, float_input_node
from hlt_train.progress import Progress
from hlt_train.selftest import run_selftest
from hlt_train.types import Features
from hlt_train.vectors import vectors
from tests import graphs

QUIET = Progress(quiet=True)
f32 = np.float32
CLASSES = ("a", "b", "c")
POINTS = {
    "points": [{"name": "tight", "integer_threshold": None, "threshold": -0.5}, {"name": "loose", "integer_threshold": None, "threshold": -2.0}],
    "discriminant": {"signal": {"a": 1.0}, "background": {"b": 0.5, "c": 0.5}},
    "classes": list(CLASSES),
}


def mlp(activation: str = "relu", *, seed: int = 1) -> Graph:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(0, 0.4, shape).astype(f32)  # noqa: E731
    nodes = (
        float_input_node("in", graphs.group(rng, "event", 6)),
        FloatAffine("dense0", ("in",), draw(6, 16), draw(16), activation),  # type: ignore[arg-type]
        FloatAffine("dense1", ("dense0",), draw(16, 8), draw(8), activation),  # type: ignore[arg-type]
        FloatAffine("logits", ("dense1",), draw(8, 3), draw(3), "none"),
        Output("out", ("logits",), CLASSES, "softmax"),
    )
    return Graph(nodes)


def sets(activation: str = "relu", *, seed: int = 2, kind: str = "sum") -> Graph:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(0, 0.4, shape).astype(f32)  # noqa: E731
    nodes = (
        float_input_node("in_jets", graphs.group(rng, "jets", 3, 5)),
        float_input_node("in_event", graphs.group(rng, "event", 4)),
        FloatAffine("phi", ("in_jets",), draw(3, 8), draw(8), activation),  # type: ignore[arg-type]
        FloatPool("pool", ("phi",), kind, "jets"),  # type: ignore[arg-type]
        FloatAffine("side", ("in_event",), draw(4, 8), draw(8), activation),  # type: ignore[arg-type]
        Add("both", ("pool", "side")),
        Concat("all", ("both", "in_event")),
        FloatAffine("rho", ("all",), draw(12, 8), draw(8), activation),  # type: ignore[arg-type]
        FloatAffine("logits", ("rho",), draw(8, 3), draw(3), "none"),
        Output("out", ("logits",), CLASSES, "softmax"),
    )
    return Graph(nodes)


# --------------------------------------------------------------------------------------------------------------- lwtnn once more


class Event:
    """One event through network.json: vectors and columns, as `lwt::Stack` and `lwt::Graph` compute them."""

    def __init__(self, document: dict[str, Any], x: Features, row: int) -> None:
        self.document, self.x, self.row = document, x, row

    def inputs(self, variables: list[dict[str, Any]], values: np.ndarray, defaults: dict[str, float]) -> np.ndarray:
        """(x + offset) * scale, NaN replaced by the default as NanReplacer does."""
        found = []
        for variable, value in zip(variables, values, strict=True):
            one = defaults[variable["name"]] if math.isnan(value) else float(value)
            found.append((one + variable["offset"]) * variable["scale"])
        return np.array(found)

    def stack(self, layer: dict[str, Any], v: np.ndarray) -> np.ndarray:
        if layer["architecture"] == "normalization":
            return np.array([w * (x + b) for w, x, b in zip(layer["weights"], v, layer["bias"], strict=True)])
        assert layer["architecture"] == "dense"
        if layer["weights"]:
            v = np.array(layer["weights"]).reshape(-1, len(v)) @ v
        v = v + np.array(layer["bias"])
        activation = layer["activation"]
        if activation == "rectified":
            v = np.where(v < 0, 0.0, v)
        elif activation == "tanh":
            v = np.tanh(v)
        elif activation != "linear":
            assert activation == {"function": "swish", "alpha": 1.0}
            v = np.array([x * (0.0 if x < -30 else 1.0 if x > 30 else 1 / (1 + math.exp(-x))) for x in v])
        return v

    def sequential(self) -> np.ndarray:
        (values,) = self.x.groups.values()
        v = self.inputs(self.document["inputs"], values[self.row], self.document["defaults"])
        for layer in self.document["layers"]:
            v = self.stack(layer, v)
        return v

    def node(self, k: int) -> Any:
        """A vector, or a list of columns."""
        node = self.document["nodes"][k]
        kind = node["type"]
        if kind == "input":
            entry = self.document["inputs"][node["sources"][0]]
            assert node["size"] == len(entry["variables"])
            return self.inputs(entry["variables"], self.x.groups[entry["name"]][self.row], {v["name"]: v["default"] for v in entry["variables"]})
        if kind == "input_sequence":
            entry = self.document["input_sequences"][node["sources"][0]]
            many = min(int(self.x.counts[entry["name"]][self.row]), self.x.groups[entry["name"]].shape[1])
            defaults = {v["name"]: v["default"] for v in entry["variables"]}
            return [self.inputs(entry["variables"], column, defaults) for column in self.x.groups[entry["name"]][self.row][:many]]
        sources = [self.node(s) for s in node["sources"]]
        if kind == "feed_forward":
            return self.stack(self.document["layers"][node["layer_index"]], sources[0])
        if kind == "time_distributed":
            return [self.stack(self.document["layers"][node["layer_index"]], column) for column in sources[0]]
        if kind == "sum":
            return sum(sources[0], np.zeros(8))
        if kind == "add":
            return sources[0] + sources[1]
        assert kind == "concatenate"
        return np.concatenate(sources)

    def logits(self) -> np.ndarray:
        if "nodes" not in self.document:
            return self.sequential()
        found: np.ndarray = self.node(self.document["outputs"]["logits"]["node_index"])
        return found


def by_events(directory: Path, x: Features, n: int) -> np.ndarray:
    document = json.loads((directory / "network.json").read_text())
    return np.array([Event(document, x, row).logits() for row in range(n)])


@pytest.mark.parametrize("activation", ["none", "relu", "tanh", "silu"])
@pytest.mark.parametrize("make", [mlp, sets])
def test_the_json_computes_the_network(tmp_path: Path, make: Callable[[str], Graph], activation: str) -> None:
    graph = make(activation)
    facts = lwtnn().write(graph, tmp_path)
    assert not facts["bit_exact"]
    assert facts["starts_at"] == "float"
    assert facts["form"] == ("sequential" if make is mlp else "graph")
    x = vectors(graph, n=20_000).x
    found, expected = lwtnn().load(tmp_path)(x), evaluate(graph, x)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
    chosen = np.random.default_rng(0).permutation(20_000)[:1500]
    some = x.take(chosen)
    again = by_events(tmp_path, some, 1500)
    assert np.abs(again - expected[chosen]).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("make", [mlp, sets])
def test_the_json_computes_the_network_on_many_vectors(tmp_path: Path, make: Callable[[], Graph]) -> None:
    graph = make()
    lwtnn().write(graph, tmp_path)
    x = vectors(graph, n=100_000, seed=1).x
    expected = evaluate(graph, x)
    assert np.abs(by_events(tmp_path, x, 100_000) - expected).max() <= 1e-6 * np.abs(expected).max()


def test_the_clip_holds_for_infinities_and_nan_is_the_default(tmp_path: Path) -> None:
    """One variable, no layer: the logit is the normalised input."""
    rng = np.random.default_rng(0)
    group = graphs.group(rng, "event", 3)
    nodes = (
        float_input_node("in", group),
        FloatAffine("same", ("in",), np.eye(3, dtype=f32), np.zeros(3, f32), "none"),
        Output("out", ("same",), CLASSES, "none"),
    )
    graph = Graph(nodes)
    lwtnn().write(graph, tmp_path)
    x = np.repeat(np.array([np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 0.0], f32)[:, None], 3, axis=1)
    features = Features({"event": x}, {})
    found = lwtnn().load(tmp_path)(features)
    assert np.array_equal(found[:2], [[5, 5, 5], [-5, -5, -5]])
    assert np.array_equal(found[3:5], [[5, 5, 5], [-5, -5, -5]])
    assert np.abs(found[2] - group.nan).max() < 1e-6
    assert np.abs(by_events(tmp_path, features, 6) - evaluate(graph, features)).max() < 1e-5


def with_input(**change: np.ndarray) -> Graph:
    group = dataclasses.replace(graphs.group(np.random.default_rng(0), "event", 3), **change)
    return Graph((float_input_node("in", group), Output("out", ("in",), CLASSES, "none")))


@pytest.mark.parametrize(
    ("graph", "node", "what", "near"),
    [
        (lambda: graphs.mlp(1), "act0", "no rounding", "cpp"),
        (lambda: sets(kind="max"), "pool", "is a max", "sum"),
        (lambda: sets(kind="mean"), "pool", "is a mean", "sum"),
        (lambda: mlp("gelu"), "dense0", "activation gelu", "silu"),
        (lambda: graphs.float_mlp(1), "max", "is a max", "sum"),
        (lambda: graphs.float_convolution(1), "near", "reads neighbours, and lwtnn has no convolution", "sum"),
        (lambda: graphs.convolution(1), "conv0_act", "no rounding", "cpp"),
        (lambda: with_input(hi=np.full(3, np.inf, f32)), "in", "no finite clip of 'event_0'", "onnx"),
        (lambda: with_input(nan=np.full(3, 7, f32)), "in", "NaN of 'event_0'", "onnx"),
    ],
)
def test_refusals_name_the_node(tmp_path: Path, graph: Callable[[], Graph], node: str, what: str, near: str) -> None:
    with pytest.raises(UsageError, match=what) as error:
        lwtnn().write(graph(), tmp_path)
    assert error.value.where == f"node '{node}'"
    assert f"'{node}'" in error.value.what
    assert near in error.value.near
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------------------- the selftest notices


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, graph in (("sequential", mlp()), ("graph", sets())):
        out = tmp_path_factory.mktemp("export") / "out"
        certificate = export_graph(Material(graph, POINTS), {"lwtnn": lwtnn()}, out, n_vectors=20_000, keep=2000, progress=QUIET)["lwtnn"]
        assert not certificate["bit_exact"]
        assert 0 < certificate["maximal_deviation"] <= certificate["tolerance"]
        assert "NaN" in certificate["condition"]
        assert certificate["latency"]["median_ns"] > 0
        found[name] = out / "lwtnn"
    return found


@pytest.mark.parametrize("form", ["sequential", "graph"])
def test_the_selftest_passes_where_nothing_changed(exported: dict[str, Path], form: str) -> None:
    result = run_selftest(exported[form])
    assert result["passed"], result["output"]
    assert result["logits_differing"] == result["decisions_differing"] == 0


def scaled(values: list[float], k: int) -> None:
    values[k] *= 1.001


def variables(document: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = document["inputs"] if "layers" in document and "nodes" not in document else document["inputs"][0]["variables"]
    return found


def other_default(document: dict[str, Any]) -> None:
    if "defaults" in document:
        document["defaults"] = {name: value + 1 for name, value in document["defaults"].items()}
    else:
        for variable in variables(document):
            variable["default"] += 1


CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "weight": lambda document: scaled(document["layers"][-1]["weights"], 3),
    "bias": lambda document: scaled(document["layers"][-1]["bias"], 1),
    "offset": lambda document: variables(document)[1].update(offset=variables(document)[1]["offset"] * 1.001),
    "scale": lambda document: variables(document)[1].update(scale=variables(document)[1]["scale"] * 1.001),
    "clip": lambda document: scaled(document["layers"][1]["bias"], 0),
    "activation": lambda document: document["layers"][-2].update(activation="linear"),
    "default": other_default,
}


@pytest.mark.parametrize("form", ["sequential", "graph"])
@pytest.mark.parametrize("change", CHANGES)
def test_the_selftest_fails_on_a_changed_network(tmp_path: Path, exported: dict[str, Path], form: str, change: str) -> None:
    copy = Path(shutil.copytree(exported[form], tmp_path / "copy"))
    document = json.loads((copy / "network.json").read_text())
    CHANGES[change](document)
    (copy / "network.json").write_text(json.dumps(document))
    result = run_selftest(copy)
    assert not result["passed"]
    assert result["logits_differing"] > 0, "the logits must tell, not only the hash"


def test_the_selftest_fails_on_a_changed_threshold(tmp_path: Path, exported: dict[str, Path]) -> None:
    copy = Path(shutil.copytree(exported["sequential"], tmp_path / "copy"))
    document = json.loads((copy / "working_points.json").read_text())
    document["points"][0]["threshold"] += 0.1
    (copy / "working_points.json").write_text(json.dumps(document))
    result = run_selftest(copy)
    assert not result["passed"]
    assert result["decisions_differing"] > 0
    assert result["logits_differing"] == 0


def test_files_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"reader\.py"):
        lwtnn().load(tmp_path)
