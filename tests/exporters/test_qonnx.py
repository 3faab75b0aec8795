"""The qonnx target: exact in qonnx's executor and as hls4ml reads it; whatever a reader takes otherwise is refused by node; a changed model is noticed."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx as library
import pytest
from onnx import numpy_helper

from hlt_train.certify import Material, export_graph
from hlt_train.errors import RunFailed, UsageError
from hlt_train.exporters._grid import input_integers
from hlt_train.exporters.qonnx import qonnx
from hlt_train.graph import Affine, Concat, Fixed, Graph, Output, Pool, Quant, Requant, evaluate, input_node
from hlt_train.progress import Progress
from hlt_train.selftest import run_selftest
from hlt_train.types import Features
from hlt_train.vectors import vectors
from tests import graphs
from tests.exporters import hls4ml_nets as nets
from tests.exporters.changes import move_threshold, noticed_threshold

QUIET = Progress(quiet=True)


def differing(directory: Path, graph: Graph, n: int) -> int:
    exporter = qonnx()
    assert exporter.write(graph, directory)["starts_at"] == "grid"
    x = vectors(graph, n=n, seed=3).x
    return int((exporter.load(directory)(x) != evaluate(graph, x)).sum())


@pytest.mark.parametrize("n", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("rounding", ["floor", "half_even"])
@pytest.mark.parametrize("over", ["sat", "sat_sym"])
@pytest.mark.parametrize("residual", [False, True])
def test_perceptrons_are_exact_in_qonnx_s_executor(tmp_path: Path, rounding: str, over: str, residual: bool, n: int) -> None:
    assert differing(tmp_path, nets.mlp(rounding=rounding, residual=residual, uniform=True, over=over), n) == 0


@pytest.mark.parametrize("n", [5000, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("windows", [False, True])
def test_constituents_are_exact_in_qonnx_s_executor(tmp_path: Path, windows: bool, n: int) -> None:
    """Convolutions of kernel 1; and of more, with a stride, a residual and a window that is read as it is."""
    assert differing(tmp_path, nets.uniform(windows=windows), n) == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_windows_of_every_kind(tmp_path: Path, seed: int) -> None:
    """Kernels, strides and padding one behind the other, with and without an Affine between them."""
    graph = nets.wild_uniform(seed)
    assert differing(tmp_path, graph, 2000) == 0
    x = vectors(graph, n=2000, seed=2).x
    assert np.array_equal(as_read(tmp_path, graph, x, cleaned=False), evaluate(graph, x))


def simple(*, quant: Quant | None = None, bits: int = 4, f: int = 7, relu: bool = False) -> Graph:
    """4-6-2 with one format per layer; two of the weights and a bias vector are all zero or of a single bit."""
    rng = np.random.default_rng(5)
    dense = graphs.affine(rng, "dense", "in", 4, 6, bits=bits, relu=relu, f=f)
    last = graphs.affine(rng, "logits", "act", 6, 2, relu=False)
    nodes = (
        input_node("in", graphs.group(rng, "event", 4), Fixed(True, 3, np.array([1, 2, 3, 4]))),
        dense,
        Requant("act", ("dense",), quant or Quant(Fixed(True, 2, 3), "half_even", "sat")),
        dataclasses.replace(last, w=-np.abs(np.sign(last.w)) << 3, b=np.zeros(2, np.int64)),
        Output("out", ("logits",), ("a", "b"), "none", np.array([1, -1], np.int64)),
    )
    return Graph(nodes)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("f", [-3, 0, 5])
def test_formats_on_either_side_of_the_point(tmp_path: Path, signed: bool, f: int) -> None:
    """Input variables of different exponents, weights of one bit and a sign, an absent bias."""
    assert differing(tmp_path, simple(quant=Quant(Fixed(signed, 5 - f, f), "floor", "sat_sym"), f=max(f, 0)), 3000) == 0


def as_read(directory: Path, graph: Graph, x: Features, *, cleaned: bool) -> np.ndarray:
    """What hls4ml makes of an exported model, compiled and run: int64 `[n, outputs]`."""
    import hls4ml
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
    from qonnx.transformation.general import GiveUniqueNodeNames
    from qonnx.util.cleanup import cleanup_model

    interface = json.loads((directory / "interface.json").read_text())
    lengthy = any(node.length is not None for node in graph.inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ModelWrapper(str(directory / "model.onnx"))
        if cleaned or lengthy:
            model = cleanup_model(model)
        if lengthy:
            model = model.transform(ConvertToChannelsLastAndClean(make_input_channels_last=False)).transform(GiveUniqueNodeNames())
        config = hls4ml.utils.config_from_onnx_model(model, granularity="name", backend="Vitis", default_precision="fixed<16,6>")
        order = [*(group["input"] for group in interface["groups"]), *(group["valid"] for group in interface["groups"] if group["valid"])]
        for value, name in zip(model.graph.input, order, strict=True):  # cleaning up gives them other names
            config["LayerName"][value.name]["Precision"]["result"] = interface["input_types"][name].replace("ap_", "").replace("AP_", "")
        project = str(directory / "project")
        read = hls4ml.converters.convert_from_onnx_model(model, output_dir=project, backend="Vitis", io_type="io_parallel", hls_config=config)
        read.compile()
    integers, given = input_integers(graph, x), {}
    for group, node in zip(interface["groups"], graph.inputs, strict=True):
        f = graph.structure[node.name].f
        assert f is not None
        values = np.ldexp(integers[node.group].astype(np.float64), -f.astype(np.int32))
        given[group["input"]] = values if node.length is None else values.transpose(0, 2, 1)[:, :, None, :]
        if group["valid"] is not None:
            given[group["valid"]] = (np.arange(node.length) < x.counts[node.group][:, None]).astype(np.float64)[:, None, None, :]
    inputs = [np.ascontiguousarray(given[name]) for name in order]
    found = read.predict(inputs[0] if len(inputs) == 1 else inputs)
    f_out = graph.structure["out"].f
    assert f_out is not None
    integers_out: np.ndarray = np.ldexp(found, f_out.astype(np.int32))
    return integers_out


@pytest.mark.slow
@pytest.mark.parametrize(("over", "rounding"), [("sat", "half_even"), ("sat_sym", "floor")])
@pytest.mark.parametrize("cleaned", [False, True])
def test_hls4ml_reads_the_same_integers(tmp_path: Path, over: str, rounding: str, cleaned: bool) -> None:
    graph = nets.mlp(rounding=rounding, uniform=True, over=over)
    qonnx().write(graph, tmp_path)
    x = vectors(graph, n=5000, seed=2).x
    assert np.array_equal(as_read(tmp_path, graph, x, cleaned=cleaned), evaluate(graph, x))


@pytest.mark.slow
@pytest.mark.parametrize("windows", [False, True])
def test_hls4ml_reads_convolutions(tmp_path: Path, windows: bool) -> None:
    graph = nets.uniform(windows=windows)
    qonnx().write(graph, tmp_path)
    x = vectors(graph, n=5000, seed=2).x
    assert np.array_equal(as_read(tmp_path, graph, x, cleaned=True), evaluate(graph, x))


# ---------------------------------------------------------------------------------------------------------------------------------- refusals


def concatenated() -> Graph:
    graph = simple()
    nodes = list(graph.nodes[:3])
    nodes += [Concat("both", ("act", "act")), graphs.affine(np.random.default_rng(0), "last", "both", 12, 2, relu=False)]
    return Graph((*nodes, Output("out", ("last",), ("a", "b"), "none")))


def pooled(kind: str) -> Graph:
    """The pool called "sum", of values of either sign, is a mean or a maximum instead."""
    quant = Quant(Fixed(True, 2, 3), "floor", "sat") if kind == "mean" else None
    graph = nets.uniform(windows=False)
    return Graph(tuple(dataclasses.replace(n, kind=kind, quant=quant) if n.name == "sum" and isinstance(n, Pool) else n for n in graph.nodes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("graph", "node", "what", "near"),
    [
        (simple(quant=Quant(Fixed(True, 2, 3), "half_up", "sat")), "act", "rounds half_up", "half_even"),
        (simple(quant=Quant(Fixed(True, 2, 3), "floor", "wrap")), "act", "wraps", "sat"),
        (simple(quant=Quant(Fixed(True, 2, np.array([3, 3, 3, 3, 3, 2])), "floor", "sat")), "act", "format per feature", "hls4ml"),
        (simple(quant=Quant(Fixed(True, 0, 0), "floor", "sat")), "act", "format of 1 bits with a sign", "hls4ml"),
        (simple(quant=Quant(Fixed(False, 0, 0), "floor", "sat")), "act", "format of 0 bits", "hls4ml"),
        (simple(bits=22), "dense", "more than qonnx's float32 executor adds exactly", "hls4ml"),
        (concatenated(), "both", "no counterpart", "hls4ml"),
        (pooled("mean"), "sum", "divides by the number of constituents", "sum"),
        (pooled("max"), "sum", "'phi1_act' can be negative", "sum"),
        (graphs.float_mlp(0), "in_jets", "float32", "onnx"),
    ],
)
def test_a_refusal_names_the_node_and_what_comes_nearest(tmp_path: Path, graph: Graph, node: str, what: str, near: str) -> None:
    with pytest.raises(UsageError, match=what) as error:
        qonnx().write(graph, tmp_path)
    assert error.value.where == f"node '{node}'"
    assert near in error.value.near
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_float32_does_not_hold_is_refused(tmp_path: Path) -> None:
    graph = simple()
    nodes = tuple(dataclasses.replace(n, b=np.array([1, 0, 0, 0, 0, 3]), f=np.array([30, 7, 7, 7, 7, 0])) if n.name == "dense" else n for n in graph.nodes)
    assert isinstance(nodes[1], Affine)
    with pytest.raises(UsageError, match=r"its (weight|bias) needs") as error:
        qonnx().write(Graph(nodes), tmp_path)
    assert error.value.where == "node 'dense'"


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"model\.onnx"):
        qonnx().load(tmp_path)
    qonnx().write(simple(), tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(RunFailed, match="damaged"):
        qonnx().load(tmp_path)
    monkeypatch.setitem(sys.modules, "qonnx", None)
    with pytest.raises(UsageError, match="qonnx is not installed") as error:
        qonnx().load(tmp_path)
    assert "hlt-train[qonnx]" in error.value.then


# --------------------------------------------------------------------------------------------------------------- the selftest notices


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("qonnx") / "out"
    points = {"points": [{"name": "tight", "integer_threshold": noticed_threshold(simple(), 8000, 8), "threshold": 0.1}]}
    export_graph(Material(simple(), points), {"qonnx": qonnx()}, out, n_vectors=8000, keep=500, progress=QUIET)
    return out / "qonnx"


def constant(name: str, edit: Callable[[np.ndarray], Any]) -> Callable[[Any], None]:
    """A change of the initialiser whose name ends in `name`."""

    def change(model: Any) -> None:
        (tensor,) = (t for t in model.graph.initializer if t.name.endswith(name))
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(edit(numpy_helper.to_array(tensor).copy()), np.float32), tensor.name))

    return change


def attribute(name: str, key: str, value: bytes | int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        (node,) = (n for n in model.graph.node if n.output[0].endswith(name))
        (found,) = (a for a in node.attribute if a.name == key)
        if isinstance(value, bytes):
            found.s = value
        else:
            found.i = value

    return change


MUTATIONS: dict[str, Callable[[Any], None]] = {
    "weight": constant("dense_weight", lambda w: w + np.eye(4, 6) * 2.0**-4),
    "bias": constant("dense_bias", lambda b: b + np.eye(6)[0] * 2.0**-4),
    "shift": constant("act_quant_scale", lambda s: s / 2),
    "rounding": attribute("act_quant", "rounding_mode", b"FLOOR"),
    "clamp limit": constant("act_quant_bits", lambda b: b - 1),
    "symmetric": attribute("act_quant", "narrow", 1),
}


def test_the_selftest_passes_where_nothing_changed(exported: Path) -> None:
    found = run_selftest(exported)
    assert found["passed"], found["output"]
    assert found["logits_differing"] == found["scores_differing"] == found["decisions_differing"] == 0


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_selftest_fails_on_a_changed_model(tmp_path: Path, exported: Path, mutation: str) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    model = library.load(str(copy / "model.onnx"))
    before = model.SerializeToString()
    MUTATIONS[mutation](model)
    assert model.SerializeToString() != before
    library.save(model, str(copy / "model.onnx"))
    found = run_selftest(copy)
    assert not found["passed"]
    assert found["logits_differing"] > 0, "the integers must tell, not only the hash"


@pytest.mark.parametrize("step", [1, -8])  # scores of this network are 8 apart
def test_the_selftest_fails_on_a_changed_threshold(tmp_path: Path, exported: Path, step: int) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    move_threshold(copy, step)
    found = run_selftest(copy)
    assert not found["passed"]
    assert found["decisions_differing"] > 0
    assert found["logits_differing"] == 0
