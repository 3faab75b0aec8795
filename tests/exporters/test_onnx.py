"""The ONNX target: exact over opsets and graphs, refusals by layer, and a selftest that notices every changed constant."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx as library
import onnxruntime
import pytest
from onnx import numpy_helper

from hlt_train.certify import Material, export_graph
from hlt_train.errors import RunFailed, UsageError
from hlt_train.exporters.onnx import onnx
from hlt_train.graph import Affine, Fixed, Graph, Output, Pool, Quant, Requant, evaluate, input_node, score
from hlt_train.progress import Progress
from hlt_train.proof import prove
from hlt_train.selftest import run_selftest
from hlt_train.types import Features, Group
from hlt_train.vectors import vectors
from tests import graphs
from tests.exporters.changes import move_threshold

QUIET = Progress(quiet=True)


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
@pytest.mark.parametrize("kind", ["mlp", "sum", "max", "mean"])
def test_exact_over_opsets_and_modes(tmp_path: Path, opset: int, kind: str) -> None:
    for seed in range(3):
        graph = graphs.mlp(seed) if kind == "mlp" else graphs.deepsets(seed, kind=kind)
        x = vectors(graph, n=3000, seed=seed).x
        exporter = onnx(opset=opset)
        facts = exporter.write(graph, tmp_path)
        assert facts["bit_exact"]
        assert facts["opset"] == opset
        assert np.array_equal(exporter.load(tmp_path)(x), evaluate(graph, x))


@pytest.mark.parametrize("round", ["floor", "half_up", "half_even"])
@pytest.mark.parametrize("over", ["wrap", "sat", "sat_sym"])
def test_every_mode_by_name(tmp_path: Path, round: str, over: str) -> None:
    graph = graphs.mlp(7, round=round, over=over)
    x = vectors(graph, n=3000).x
    exporter = onnx()
    exporter.write(graph, tmp_path)
    assert np.array_equal(exporter.load(tmp_path)(x), evaluate(graph, x))


def test_wild_graphs(tmp_path: Path) -> None:
    exact = 0
    for seed in range(40):
        graph = graphs.wild(seed)
        exporter = onnx()
        if not all(proof.f24 for proof in prove(graph).values()):
            with pytest.raises(UsageError, match="float32"):
                exporter.write(graph, tmp_path)
            continue
        exporter.write(graph, tmp_path)
        x = vectors(graph, n=1000, seed=seed).x
        assert np.array_equal(exporter.load(tmp_path)(x), evaluate(graph, x)), seed
        exact += 1
    assert exact > 30


def test_a_mean_of_every_numerator_and_count(tmp_path: Path) -> None:
    """Float32 division under the floor: all sums of up to 20 constituents, against the exact rational."""
    for rule in ("floor", "half_up", "half_even"):
        graph = mean_of_integers(20, rule)
        counts = np.repeat(np.arange(21, dtype=np.int32), 4000)
        rng = np.random.default_rng(1)
        x = rng.integers(-1000, 1000, (len(counts), 20, 1)).astype(np.float32)
        features = Features({"jets": x}, {"jets": counts})
        exporter = onnx()
        exporter.write(graph, tmp_path)
        assert np.array_equal(exporter.load(tmp_path)(features), evaluate(graph, features))


def mean_of_integers(length: int, rule: str) -> Graph:
    f32 = np.float32
    group = Group("jets", ("a",), length, np.zeros(1, f32), np.ones(1, f32), np.full(1, -1024, f32), np.full(1, 1023, f32), np.zeros(1, f32))
    pool = Pool("pool", ("in",), "mean", "jets", Quant(Fixed(True, 10, 3), rule, "sat"))  # type: ignore[arg-type]
    return Graph((input_node("in", group, Fixed(True, 10, 0)), pool, Output("out", ("pool",), ("y",), "none")))


def test_logits_are_physical_and_the_score_is_the_integer(tmp_path: Path) -> None:
    graph = graphs.mlp(3)
    x = vectors(graph, n=500).x
    onnx().write(graph, tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    logits, points = session.run(["logits", "score"], {"event": x.groups["event"]})
    expected, f = evaluate(graph, x), graph.structure["out"].f
    assert f is not None
    assert np.array_equal(logits, (expected * 2.0**-f).astype(np.float32))
    assert np.array_equal(points[:, 0].astype(np.int64), score(graph, expected))
    assert not np.signbit(logits[logits == 0]).any()
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["hlt_train.format"] == "hlt-train/onnx"
    assert json.loads(metadata["hlt_train.logits_exponents"]) == f.tolist()
    assert metadata["hlt_train.profile"] == "plain"
    assert json.loads(metadata["hlt_train.inputs"]) == [{"group": "event", "input": "event", "count": None, "length": None}]
    assert [opset.version for opset in library.load(str(tmp_path / "model.onnx")).opset_import] == [17]


def wide(bits: int) -> Graph:
    """An Affine whose sums need about 2 * bits, then a Requant."""
    rng = np.random.default_rng(0)
    top = 1 << (bits - 1)
    w = rng.integers(-top, top, (4, 3)).astype(np.int64)
    nodes = (
        input_node("in", graphs.group(rng, "event", 4), Fixed(True, 3, 8)),
        Affine("first_dense", ("in",), w, np.zeros(3, np.int64), np.full(3, 8, np.int64), relu=False),
        Requant("act", ("first_dense",), Quant(Fixed(True, 8, 4), "floor", "sat")),
        Output("out", ("act",), ("a", "b", "c"), "none"),
    )
    return Graph(nodes)


def test_more_than_24_bits_are_refused_by_layer(tmp_path: Path) -> None:
    onnx().write(wide(8), tmp_path)
    with pytest.raises(UsageError, match=r"Affine 'first_dense' needs \d+ bits") as error:
        onnx().write(wide(16), tmp_path / "never")
    assert error.value.near == ("cpp",)
    assert "first_dense" in error.value.where


def test_options_and_names_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="opset 12"):
        onnx(opset=12)
    graph = graphs.deepsets(1)
    clash = Graph(tuple(_renamed(node) for node in graph.nodes))
    with pytest.raises(UsageError, match="jets_count"):
        onnx().write(clash, tmp_path)
    with pytest.raises(UsageError, match="'score' already"):
        onnx().write(Graph(tuple(_renamed(node, "score") for node in graph.nodes)), tmp_path)
    with pytest.raises(UsageError, match=r"model\.onnx"):
        onnx().load(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(RunFailed, match="does not load"):
        onnx().load(tmp_path)


def _renamed(node: Any, name: str = "jets_count") -> Any:
    return dataclasses.replace(node, group=name) if getattr(node, "group", "") == "event" else node


@pytest.mark.parametrize("activation", ["none", "relu", "tanh", "gelu", "silu"])
def test_float_networks_stay_within_rounding(tmp_path: Path, activation: str) -> None:
    graph = graphs.float_mlp(2, activation=activation)
    x = vectors(graph, n=1000).x
    exporter = onnx()
    assert not exporter.write(graph, tmp_path)["bit_exact"]
    found, expected = exporter.load(tmp_path)(x), evaluate(graph, x)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


# --------------------------------------------------------------------------------------------------------------- the selftest notices


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certified export with generic scales and all modes alive."""
    rng = np.random.default_rng(5)
    nodes = (
        input_node("in", graphs.group(rng, "event", 6), Fixed(True, 3, 4)),
        graphs.affine(rng, "dense", "in", 6, 8, relu=False, f=8),
        Requant("act", ("dense",), Quant(Fixed(True, 2, 3), "half_up", "sat")),
        graphs.affine(rng, "logits", "act", 8, 2, relu=False),
        Output("out", ("logits",), ("a", "b"), "none", np.array([1, -1], np.int64)),
    )
    points = {"points": [{"name": "tight", "integer_threshold": 40, "threshold": 1.25}, {"name": "loose", "integer_threshold": -3, "threshold": -0.1}]}
    out = tmp_path_factory.mktemp("export") / "out"
    export_graph(Material(Graph(nodes), points), {"onnx": onnx()}, out, n_vectors=20_000, keep=2000, progress=QUIET)
    return out / "onnx"


def named(model: Any, name: str) -> Any:
    """The initialiser called `name`."""
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def change(model: Any, name: str, edit: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = named(model, name)
    tensor.CopyFrom(numpy_helper.from_array(edit(numpy_helper.to_array(tensor).copy()), name))


def one_weight(array: np.ndarray) -> np.ndarray:
    array[2, 3] += 1
    return array


def rounding(model: Any) -> None:
    """Floor(x + 1/2) becomes Round: half up becomes half even."""
    floor = next(node for node in model.graph.node if node.name.startswith("act/Floor"))
    add = next(node for node in model.graph.node if node.output[0] == floor.input[0])
    floor.op_type, floor.input[0] = "Round", add.input[0]


def contraction(model: Any) -> None:
    """(x - c) * s becomes x * s + o."""
    sub, mul = (next(node for node in model.graph.node if node.name == f"in/{kind}") for kind in ("Sub", "Mul"))
    centre, scale = (numpy_helper.to_array(named(model, name)).astype(np.float64) for name in ("in/centre", "in/scale"))
    model.graph.initializer.append(numpy_helper.from_array((-centre * scale).astype(np.float32), "in/offset"))
    x, result = sub.input[0], mul.output[0]
    sub.op_type, mul.op_type = "Mul", "Add"
    del sub.input[:], mul.input[:]
    sub.input.extend([x, "in/scale"])
    mul.input.extend([sub.output[0], "in/offset"])
    assert mul.output[0] == result


MUTATIONS: dict[str, Callable[[Any], None]] = {
    "weight": lambda model: change(model, "dense/weight", one_weight),
    "bias": lambda model: change(model, "dense/bias", lambda b: b + np.eye(8, dtype=np.float32)[1]),
    "shift": lambda model: change(model, "act/shift", lambda s: s * np.where(np.arange(s.size) == 0, 2, 1).astype(np.float32)),
    "rounding": rounding,
    "clamp limit": lambda model: change(model, "act/hi", lambda hi: hi - np.eye(8, dtype=np.float32)[4]),
    "input limit": lambda model: change(model, "in/lo", lambda lo: lo + np.eye(6, dtype=np.float32)[5]),
    "nan": lambda model: change(model, "in/nan", lambda n: n + np.eye(6, dtype=np.float32)[0]),
    "contraction": contraction,
}


def test_the_selftest_passes_where_nothing_changed(exported: Path) -> None:
    result = run_selftest(exported)
    assert result["passed"], result["output"]
    assert result["logits_differing"] == result["scores_differing"] == result["decisions_differing"] == 0
    assert result["vectors"] > 2000


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_selftest_fails_on_a_changed_model(tmp_path: Path, exported: Path, mutation: str) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    model = library.load(str(copy / "model.onnx"))
    MUTATIONS[mutation](model)
    library.checker.check_model(model)
    library.save(model, str(copy / "model.onnx"))
    result = run_selftest(copy)
    assert not result["passed"]
    assert result["logits_differing"] > 0, "the integers must tell, not only the hash"


@pytest.mark.parametrize("point", [0, 1])
@pytest.mark.parametrize("step", [1, -1])
def test_the_selftest_fails_on_a_changed_threshold(tmp_path: Path, exported: Path, point: int, step: int) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    move_threshold(copy, step, point)
    result = run_selftest(copy)
    assert not result["passed"]
    assert result["decisions_differing"] > 0
    assert result["logits_differing"] == 0


def test_the_selftest_names_a_changed_file(tmp_path: Path, exported: Path) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    (copy / "graph.json").write_text((copy / "graph.json").read_text() + " ")
    result = run_selftest(copy)
    assert not result["passed"]
    assert result["files_changed"] == ["graph.json"]
