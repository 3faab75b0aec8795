"""8-bit matrix products in ONNX: the same integers whether the runtime fuses them or not, refusals by node, and mutations that are noticed."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx as library
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from hlt_train.certify import Material, export_graph
from hlt_train.errors import UsageError
from hlt_train.exporters.onnx import onnx
from hlt_train.graph import Add, Affine, Concat, Fixed, Flatten, Graph, Node, Output, Pool, Quant, Requant, evaluate, input_node, score
from hlt_train.progress import Progress
from hlt_train.selftest import run_selftest
from hlt_train.types import Features
from hlt_train.vectors import vectors
from tests import graphs
from tests.exporters.changes import move_threshold, noticed_threshold

QUIET = Progress(quiet=True)
LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")


def mlp(seed: int, *, round: str = "half_even", over: str = "sat", signed: bool = False, width: int = 8) -> Graph:
    """Scalars -> two hidden layers -> logits in 8 bits, weights of the full range, per-channel weight exponents."""
    rng = np.random.default_rng(seed)
    nodes: list[Node] = [input_node("in", graphs.group(rng, "event", 6), Fixed(True, 3, 4))]
    source, n = "in", 6
    for k in range(2):
        dense = graphs.affine(rng, f"dense{k}", source, n, 16, bits=8, f=10, relu=not signed)
        # Different exponents per output are what per-channel scales are for.
        dense = dataclasses.replace(dense, f=10 + rng.integers(-1, 2, 16).astype(np.int64))
        f = 4
        nodes += [dense, Requant(f"act{k}", (f"dense{k}",), Quant(Fixed(signed, width - int(signed) - f, f), round, over))]  # type: ignore[arg-type]
        source, n = f"act{k}", 16
    last = graphs.affine(rng, "logits", source, n, 2, bits=8, f=11, relu=False)
    return Graph((*nodes, last, Output("out", ("logits",), ("a", "b"), "none", np.array([1, -1], np.int64))))


def collection(seed: int, kind: str) -> Graph:
    """Constituents -> phi -> pool and a residual -> 8 bits -> rho."""
    rng = np.random.default_rng(seed)
    eight = Quant(Fixed(False, 4, 4), "half_even", "sat")
    mean = Quant(Fixed(False, 4, 4), "half_even", "sat") if kind == "mean" else None
    nodes: tuple[Node, ...] = (
        input_node("in_jets", graphs.group(rng, "jets", 3, 6), Fixed(True, 3, 4)),
        graphs.affine(rng, "phi0", "in_jets", 3, 8, bits=8, f=9),
        Requant("phi0_act", ("phi0",), eight),
        graphs.affine(rng, "phi1", "phi0_act", 8, 8, bits=8, f=9),
        Requant("phi1_act", ("phi1",), eight),
        Add("residual", ("phi0_act", "phi1_act")),
        Pool("pool", ("residual",), kind, "jets", mean),  # type: ignore[arg-type]
        Requant("pool_act", ("pool",), eight),
        Flatten("flat", ("phi1_act",), "jets"),
        Concat("all", ("pool_act", "flat")),
        graphs.affine(rng, "logits", "all", 8 + 48, 3, bits=8, f=9, relu=False),
        Output("out", ("logits",), ("a", "b", "c"), "none", np.array([1, -1, 0], np.int64)),
    )
    return Graph(nodes)


def run(directory: Path, x: Features, level: str) -> tuple[np.ndarray, set[str]]:
    """(integer scores, kinds of operators that ran) at one optimisation level."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(directory / "optimised.onnx")
    options.log_severity_level = 3  # it warns that an optimised model is of this machine
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"])
    feeds = {**x.groups, **{f"{name}_count": counts[:, None].astype(np.float32) for name, counts in x.counts.items()}}
    found = session.run(["score"], feeds)[0][:, 0].astype(np.int64)
    return found, {node.op_type for node in library.load(str(directory / "optimised.onnx")).graph.node}


@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("signed", [False, True])
def test_fused_or_not_the_integers_are_the_same(tmp_path: Path, opset: int, signed: bool) -> None:
    for seed in range(3):
        graph = mlp(seed, signed=signed)
        exporter = onnx(quantised="qdq", opset=opset)
        facts = exporter.write(graph, tmp_path)
        assert facts["quantised"] == "qdq"
        assert facts["qdq"]["products"] == ["dense0", "dense1", "logits"]
        x = vectors(graph, n=3000, seed=seed).x
        expected = evaluate(graph, x)
        assert np.array_equal(exporter.load(tmp_path)(x), expected)
        kinds = {}
        for level in LEVELS:
            found, kinds[level] = run(tmp_path, x, level)
            assert np.array_equal(found, score(graph, expected)), level
        assert {"QuantizeLinear", "DequantizeLinear", "Gemm"} <= kinds["ORT_DISABLE_ALL"]
        assert "QGemm" in kinds["ORT_ENABLE_EXTENDED"], "otherwise this says nothing about integer kernels"


@pytest.mark.parametrize("kind", ["sum", "max", "mean"])
@pytest.mark.parametrize("profile", ["plain", "cmssw", "triton", "athena"])
def test_collections_and_profiles(tmp_path: Path, profile: str, kind: str) -> None:
    graph = collection(1, kind)
    exporter = onnx(profile=profile, quantised="qdq")
    exporter.write(graph, tmp_path)
    x = vectors(graph, n=1000).x
    expected = evaluate(graph, x)
    assert np.array_equal(exporter.load(tmp_path)(x), expected)
    if profile == "plain":
        for level in LEVELS:
            assert np.array_equal(run(tmp_path, x, level)[0], score(graph, expected)), level


@pytest.mark.parametrize("round", ["floor", "half_up", "half_even"])
@pytest.mark.parametrize("over", ["wrap", "sat", "sat_sym"])
def test_every_mode_and_narrow_formats(tmp_path: Path, round: str, over: str) -> None:
    for width, signed in ((8, True), (6, True), (5, False)):
        graph = mlp(4, round=round, over=over, signed=signed, width=width)
        exporter = onnx(quantised="qdq")
        exporter.write(graph, tmp_path)
        x = vectors(graph, n=1500).x
        assert np.array_equal(exporter.load(tmp_path)(x), evaluate(graph, x)), (width, signed)


def test_the_tensors_are_of_eight_bits_and_the_scales_powers_of_two(tmp_path: Path) -> None:
    onnx(quantised="qdq").write(mlp(0), tmp_path)
    model = library.load(str(tmp_path / "model.onnx"))
    library.checker.check_model(model, full_check=True)
    library.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    assert [constants[f"{name}/weight"].data_type for name in ("dense0", "dense1", "logits")] == [TensorProto.INT8] * 3
    assert constants["dense0/bias"].data_type == TensorProto.INT32
    scales = {name for node in model.graph.node if node.op_type.endswith("izeLinear") for name in (node.input[1],)}
    assert len(scales) > 5
    for name in scales:
        mantissa, _ = np.frexp(numpy_helper.to_array(constants[name]))
        assert np.all(mantissa == 0.5), name
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") == 3


def test_products_that_saturate_without_vnni_are_named(tmp_path: Path) -> None:
    graph = mlp(0)
    loud = onnx(quantised="qdq").write(graph, tmp_path)["qdq"]["need_vnni_or_x64quantprecision"]
    assert loud == ["dense0", "dense1", "logits"]
    small = Graph(tuple(dataclasses.replace(node, w=node.w >> 3) if isinstance(node, Affine) else node for node in graph.nodes))
    assert onnx(quantised="qdq").write(small, tmp_path)["qdq"]["need_vnni_or_x64quantprecision"] == []


def with_node(graph: Graph, name: str, **changes: Any) -> Graph:
    return Graph(tuple(dataclasses.replace(node, **changes) if node.name == name else node for node in graph.nodes))


def test_what_eight_bits_do_not_hold_is_refused_by_node(tmp_path: Path) -> None:
    graph, rng = mlp(0), np.random.default_rng(0)
    wide_input = Graph((input_node("in", graphs.group(rng, "event", 6), Fixed(True, 3, 6)), *graph.nodes[1:]))
    weights = next(node for node in graph.nodes if node.name == "dense1")
    assert isinstance(weights, Affine)
    mixed = Quant(Fixed(False, np.full(16, 4), np.where(np.arange(16) < 3, 3, 4)), "half_even", "sat")
    cases = {
        r"Input 'in' feeds Affine 'dense0' with integers from -\d+ to \d+": wide_input,
        r"Affine 'dense1' has weights from -\d+ to \d+": with_node(graph, "dense1", w=weights.w * 2),
        r"Requant 'act0' feeds Affine 'dense1' with integers from 0 to 511": with_node(graph, "act0", quant=Quant(Fixed(False, 5, 4), "half_even", "sat")),
        r"Requant 'act1' feeds Affine 'logits' with exponents from 3 to 4": with_node(graph, "act1", quant=mixed),
        r"FloatInput 'in_jets' is float": graphs.float_mlp(0),
    }
    for message, wrong in cases.items():
        with pytest.raises(UsageError, match=message) as error:
            onnx(quantised="qdq").write(wrong, tmp_path)
        assert error.value.where.startswith("node '")
        assert "onnx.quantised=none" in error.value.near
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------------------- what changes is noticed


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("qdq") / "out"
    graph = with_node(mlp(2), "act1", quant=Quant(Fixed(False, 4, 4), "half_up", "sat"))  # what QuantizeLinear does not do: operators of its own
    points = {"points": [{"name": "tight", "integer_threshold": noticed_threshold(graph, 5000), "threshold": 0.1}]}
    certificate = export_graph(Material(graph, points), {"onnx": onnx(quantised="qdq")}, out, n_vectors=5000, keep=1500, progress=QUIET)["onnx"]
    assert certificate["bit_exact"]
    assert certificate["logits"]["differing"] == 0
    return out / "onnx"


def change(model: Any, prefix: str, edit: Callable[[np.ndarray], Any]) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == prefix)
    before = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(edit(before.copy()), before.dtype), prefix))


def one_weight(w: np.ndarray) -> np.ndarray:
    w[1, 2] += 1 if w[1, 2] < 127 else -1
    return w


def half_even(model: Any) -> None:
    """Floor(x + 1/2) becomes Round."""
    floor = next(node for node in model.graph.node if node.name.startswith("act1/Floor"))
    add = next(node for node in model.graph.node if node.output[0] == floor.input[0])
    floor.op_type, floor.input[0] = "Round", add.input[0]


MUTATIONS: dict[str, Callable[[Any], None]] = {
    "weight": lambda model: change(model, "dense1/weight", one_weight),
    "bias": lambda model: change(model, "dense0/bias", lambda b: b + np.eye(16, dtype=np.int32)[3] * 8),
    "weight scale": lambda model: change(model, "dense1/weight_scale", lambda s: s * np.where(np.arange(s.size) == 0, 2, 1).astype(np.float32)),
    "activation scale": lambda model: change(model, "act0/quantum", lambda s: s * 2),
    "zero point": lambda model: change(model, "act0/zero_point", lambda z: z + 1),
    "shift": lambda model: change(model, "act1/grid", lambda s: s * np.where(np.arange(s.size) == 0, 2, 1).astype(np.float32)),
    "rounding": half_even,
    "limit of a quantiser": lambda model: change(model, "act0/hi", lambda hi: hi - np.eye(16, dtype=np.float32)[3] * 2.0**-4),
    "clamp limit": lambda model: change(model, "act1/hi", lambda hi: hi - np.eye(16, dtype=np.float32)[4]),
    "input limit": lambda model: change(model, "in/hi", lambda hi: hi - np.eye(6, dtype=np.float32)[2]),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_selftest_fails_on_a_changed_model(tmp_path: Path, exported: Path, mutation: str) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    model = library.load(str(copy / "model.onnx"))
    MUTATIONS[mutation](model)
    library.save(model, str(copy / "model.onnx"))
    result = run_selftest(copy)
    assert not result["passed"]
    assert result["logits_differing"] > 0


@pytest.mark.parametrize("step", [1, -1])
def test_the_selftest_fails_on_a_changed_threshold(tmp_path: Path, exported: Path, step: int) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    move_threshold(copy, step)
    result = run_selftest(copy)
    assert not result["passed"]
    assert result["decisions_differing"] > 0
    assert result["logits_differing"] == 0
