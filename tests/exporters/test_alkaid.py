"""The alkaid target: exact on students of every mode, refusals by node, estimates, and a selftest that notices every changed constant."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hlt_train.certify import Material, export_graph
from hlt_train.errors import RunFailed, UsageError
from hlt_train.exporters import _alkaid_trace
from hlt_train.exporters._alkaid_trace import LARGE, estimate, operations
from hlt_train.exporters.alkaid import alkaid
from hlt_train.graph import Add, Affine, Concat, Fixed, Graph, Node, Output, Pool, Quant, Requant, evaluate, input_node
from hlt_train.progress import Progress
from hlt_train.proof import prove
from hlt_train.selftest import run_selftest
from hlt_train.types import Features
from hlt_train.vectors import vectors
from tests import graphs
from tests.exporters import hls4ml_nets as nets
from tests.exporters.changes import move_threshold

QUIET = Progress(quiet=True)
i64 = np.int64


def ends(rng: np.random.Generator, nodes: list[Node], source: str, n: int, outputs: int) -> Graph:
    names = tuple(f"class{k}" for k in range(outputs))
    last = graphs.affine(rng, "logits", source, n, outputs, relu=False)
    return Graph((*nodes, last, Output("out", ("logits",), names, "softmax", np.eye(outputs, dtype=i64)[0] - np.eye(outputs, dtype=i64)[1])))


def unsigned(rng: np.random.Generator, n: int, round: str, over: str) -> Quant:
    return graphs.quant(rng, n, 4, width=5, round=round, over=over, signed=False)


def mlp_student() -> Graph:
    """16-32-16-5."""
    rng = np.random.default_rng(1)
    nodes: list[Node] = [
        input_node("in", graphs.group(rng, "event", 16), Fixed(True, 3, 3)),
        graphs.affine(rng, "dense0", "in", 16, 32, bits=3),
        Requant("act0", ("dense0",), unsigned(rng, 32, "half_even", "sat")),
        graphs.affine(rng, "dense1", "act0", 32, 16, bits=3),
        Requant("act1", ("dense1",), unsigned(rng, 16, "half_up", "sat")),
    ]
    return ends(rng, nodes, "act1", 16, 5)


def sets_student(kind: str) -> Graph:
    """DeepSets of 16 constituents of 8 variables, 12 wide."""
    rng = np.random.default_rng(2)
    nodes: list[Node] = [
        input_node("in", graphs.group(rng, "jets", 8, 16), Fixed(True, 3, 1)),
        graphs.affine(rng, "phi", "in", 8, 12, bits=2, relu=False),
        Requant("phi_act", ("phi",), graphs.quant(rng, 12, 3, width=5, round="half_even", over="sat", signed=True)),
        Pool("pool", ("phi_act",), kind, "jets"),  # type: ignore[arg-type]
        graphs.affine(rng, "rho", "pool", 12, 12, bits=3),
        Requant("rho_act", ("rho",), unsigned(rng, 12, "floor", "sat")),
    ]
    return ends(rng, nodes, "rho_act", 12, 3)


def residual_student() -> Graph:
    rng = np.random.default_rng(3)
    nodes: list[Node] = [
        input_node("in", graphs.group(rng, "event", 8), Fixed(True, 3, 3)),
        graphs.affine(rng, "dense0", "in", 8, 10),
        Requant("act0", ("dense0",), unsigned(rng, 10, "half_even", "sat")),
        graphs.affine(rng, "dense1", "act0", 10, 10, relu=False),
        Requant("act1", ("dense1",), graphs.quant(rng, 10, 4, round="half_even", over="sat_sym", signed=True)),
        Add("sum", ("act0", "act1")),
        Concat("all", ("sum", "in")),
    ]
    return ends(rng, nodes, "all", 18, 3)


STUDENTS: dict[str, Callable[[], Graph]] = {
    "mlp": mlp_student,
    "sum": lambda: sets_student("sum"),
    "max": lambda: sets_student("max"),
    "residual": residual_student,
    "convolution": lambda: nets.convolution(8, 3, 4),
}


def differing(graph: Graph, directory: Path, n: int, seed: int = 0) -> int:
    """Integers in which alkaid's interpreter differs from the golden model on n vectors."""
    facts = alkaid().write(graph, directory)
    assert facts["bit_exact"]
    assert facts["starts_at"] == "grid"
    x = vectors(graph, n=n, seed=seed).x
    found = alkaid().load(directory)(x)
    assert found.dtype == np.int64
    return int((found != evaluate(graph, x)).sum())


def reader(directory: Path) -> Any:
    """The reader that ships, which is NumPy alone."""
    spec = importlib.util.spec_from_file_location("alir_reader", directory / "reader.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", STUDENTS)
def test_students_are_exact(tmp_path: Path, name: str) -> None:
    graph = STUDENTS[name]()
    assert differing(graph, tmp_path, 20_000) == 0
    x = vectors(graph, n=2000, seed=9).x
    assert np.array_equal(reader(tmp_path).run(tmp_path, x.groups, x.counts), evaluate(graph, x))


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDENTS)
def test_students_are_exact_on_many_vectors(tmp_path: Path, name: str) -> None:
    assert differing(STUDENTS[name](), tmp_path, 100_000, seed=1) == 0


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 100))])
def test_windows_of_every_kind(tmp_path: Path, seed: int) -> None:
    """Kernels, strides and padding one behind the other, with and without an Affine between them."""
    graph = nets.tame(graphs.wild_windows(seed))
    if any(not proof.f24 for proof in prove(graph).values()):  # more bits than alkaid adds
        with pytest.raises(UsageError, match="exact up to 24"):
            alkaid().write(graph, tmp_path)
        return
    assert differing(graph, tmp_path, 2000) == 0
    x = vectors(graph, n=1000, seed=3).x
    assert np.array_equal(reader(tmp_path).run(tmp_path, x.groups, x.counts), evaluate(graph, x))


def test_weights_on_signed_bits(tmp_path: Path) -> None:
    """A signed format of one bit has the values 0 and -1: alkaid 0.8.2 sums single bits in tables that know 0 and 1 only."""
    rng = np.random.default_rng(8)
    nodes: list[Node] = [
        input_node("in", graphs.group(rng, "event", 4), Fixed(True, 3, 2)),
        graphs.affine(rng, "dense", "in", 4, 14, relu=False),
        Requant("act", ("dense",), Quant(Fixed(True, 3, -3), "floor", "wrap")),
    ]
    assert differing(ends(rng, nodes, "act", 14, 2), tmp_path, 4000) == 0


@pytest.mark.parametrize("name", ["max", "convolution"])
def test_what_is_absent_does_not_matter(tmp_path: Path, name: str) -> None:
    graph = STUDENTS[name]()
    exporter = alkaid()
    exporter.write(graph, tmp_path)
    x = graphs.features(graph, 300)
    other = {k: v.copy() for k, v in x.groups.items()}
    absent = np.arange(x.groups["jets"].shape[1]) >= x.counts["jets"][:, None]
    assert absent.any()
    other["jets"][absent] = 1
    run = exporter.load(tmp_path)
    assert np.array_equal(run(x), run(Features(other, x.counts)))
    assert run(x.take(slice(0))).shape == (0, len(graph.output.names))


# --------------------------------------------------------------------------------------------------------------- files, estimates, refusals


def test_verilog_scripts_and_estimates(tmp_path: Path) -> None:
    graph = graphs.mlp(1)
    cycles = {}
    for clock in (2.0, 5.0):
        directory = tmp_path / str(clock)
        directory.mkdir()
        facts = alkaid(clock_ns=clock, part="xcku115-flvb2104-2-i").write(graph, directory)
        cycles[clock] = facts["estimate"]["cycles"]
        assert facts["estimate"]["luts"] > 100
        assert "module network" in (directory / "rtl/src/network.v").read_text()
        assert "xcku115" in (directory / "rtl/build_vivado_prj.tcl").read_text()
        assert (directory / "rtl/build_quartus_prj.tcl").is_file()
        assert f"set clock_period {clock}" in (directory / "rtl/src/network.xdc").read_text()
        document = json.loads((directory / "alkaid.json").read_text())
        assert [port["group"] for port in document["inputs"]] == ["event"]
        assert [port["name"] for port in document["outputs"]] == list(graph.output.names)
    assert cycles[2.0] > cycles[5.0] > 1


def test_every_certificate_has_the_estimate(tmp_path: Path) -> None:
    from hlt_train.exporters.onnx import onnx

    graph = graphs.mlp(2)
    certificate = export_graph(Material(graph), {"onnx": onnx()}, tmp_path / "out", n_vectors=500, progress=QUIET)["onnx"]
    assert certificate["fpga"] == estimate(graph)
    assert certificate["fpga"]["luts"] > 100
    convolution = nets.convolution(8, 3, 4)
    assert operations(convolution) > 9 * 3 * 8 * 0.5  # by the weights that are not 0, at every position
    found = estimate(convolution)
    assert isinstance(found, dict)
    assert found["luts"] > 1000
    large = graphs.mlp(0, widths=(60, 60))
    assert operations(large) > LARGE
    assert f"limit {LARGE:,}" in str(estimate(large))
    assert "Pool 'pool' is a mean" in str(estimate(graphs.deepsets(0, kind="mean")))
    assert "computes in float32" in str(estimate(graphs.float_mlp(0)))


def test_without_alkaid_the_install_line_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alkaid().write(graphs.mlp(1), tmp_path)
    monkeypatch.setitem(sys.modules, "alkaid", None)
    with pytest.raises(UsageError) as error:
        alkaid().write(graphs.mlp(1), tmp_path)
    assert error.value.then == "pip install 'hlt-train[alkaid]'"
    with pytest.raises(UsageError, match="not installed"):
        alkaid().load(tmp_path)
    assert estimate(graphs.mlp(1)) == "not estimated: alkaid is not installed: pip install 'hlt-train[alkaid]'"


def test_a_failure_of_alkaid_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(tracing: Any, graph: Graph) -> None:
        raise AssertionError("interval")

    monkeypatch.setattr(_alkaid_trace, "_trace", fails)
    with pytest.raises(RunFailed, match=r"alkaid 0\.8\.\d+ fails to trace the network: AssertionError: interval"):
        alkaid().write(graphs.mlp(1), tmp_path)
    assert "fails to trace" in str(estimate(graphs.mlp(1)))


def changed(graph: Graph, name: str, **change: Any) -> Graph:
    return Graph(tuple(dataclasses.replace(node, **change) if node.name == name else node for node in graph.nodes))


def one_node(w: int, b: int, *, bits: int = 8, f: int = 0) -> Graph:
    rng = np.random.default_rng(0)
    w_, b_, f_ = np.full((1, 1), w, i64), np.full(1, b, i64), np.full(1, f, i64)
    nodes = (
        input_node("in", graphs.group(rng, "event", 1), Fixed(True, bits - 1, 0)),
        Affine("first", ("in",), w_, b_, f_, relu=False),
        Affine("second", ("first",), w_, np.zeros(1, i64), f_, relu=False),
        Output("out", ("second",), ("y",), "none"),
    )
    return Graph(nodes)


@pytest.mark.parametrize(
    ("graph", "node", "what", "near"),
    [
        (lambda: graphs.float_mlp(0), "in_jets", "float32", "onnx"),
        (lambda: graphs.deepsets(0, kind="mean"), "pool", "mean", "sum"),
        (lambda: one_node(1 << 22, 0), "first", "needs 26 bits", "cpp"),
        (lambda: one_node(3, 1 << 24), "first", "needs 26 bits", "cpp"),
        (lambda: one_node(1 << 11, 0), "second", "needs 26 bits", "cpp"),
        (lambda: one_node(3, 0, f=101), "first", "exponents reach 100", "cpp"),
    ],
)
def test_refusals_name_the_node(tmp_path: Path, graph: Callable[[], Graph], node: str, what: str, near: str) -> None:
    with pytest.raises(UsageError, match=what) as error:
        alkaid().write(graph(), tmp_path)
    assert error.value.where == f"node '{node}'"
    assert f"'{node}'" in error.value.what
    assert near in error.value.near
    assert list(tmp_path.iterdir()) == []


def test_just_inside_the_limits(tmp_path: Path) -> None:
    """Large sums and constants that are taken are computed."""
    for k, graph in enumerate((one_node(255, 901), one_node(-255, -901), one_node(1, (1 << 24) - 201), one_node(3, 5, f=100))):
        directory = tmp_path / str(k)
        directory.mkdir()
        assert differing(graph, directory, 500) == 0


def test_options_and_files_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="clock_ns"):
        alkaid(clock_ns=0.0)
    with pytest.raises(UsageError, match=r"program\.alir\.json"):
        alkaid().load(tmp_path)
    (tmp_path / "program.alir.json").write_text('{"meta": "something else", "spec_version": 4, "model": []}')
    with pytest.raises(RunFailed, match="does not load"):
        alkaid().load(tmp_path)


# --------------------------------------------------------------------------------------------------------------- the selftest notices


def subject() -> Graph:
    """Generic scales, all modes alive."""
    rng = np.random.default_rng(5)
    nodes = (
        input_node("in", graphs.group(rng, "event", 6), Fixed(True, 3, 4)),
        graphs.affine(rng, "dense", "in", 6, 8, relu=False, f=8),
        Requant("act", ("dense",), Quant(Fixed(True, 2, 3), "half_up", "sat")),
        graphs.affine(rng, "logits", "act", 8, 2, relu=False),
        Output("out", ("logits",), ("a", "b"), "none", np.array([1, -1], i64)),
    )
    return Graph(nodes)


POINTS = {"points": [{"name": "tight", "integer_threshold": 40, "threshold": 1.25}, {"name": "loose", "integer_threshold": -3, "threshold": -0.1}]}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "out"
    certificate = export_graph(Material(subject(), POINTS), {"alkaid": alkaid()}, out, n_vectors=20_000, keep=2000, progress=QUIET)["alkaid"]
    assert certificate["logits"]["differing"] == 0
    assert certificate["estimate"] == certificate["fpga"]
    return out / "alkaid"


def one_more(array: np.ndarray, *index: int) -> np.ndarray:
    array = array.copy()
    array[index] += 1
    return array


CHANGES: dict[str, Callable[[Graph], Graph]] = {
    "weight": lambda g: changed(g, "dense", w=one_more(g.nodes[1].w, 2, 3)),  # type: ignore[attr-defined]
    "bias": lambda g: changed(g, "dense", b=one_more(g.nodes[1].b, 1)),  # type: ignore[attr-defined]
    "shift": lambda g: changed(g, "act", quant=Quant(Fixed(True, 1, 4), "half_up", "sat")),
    "rounding": lambda g: changed(g, "act", quant=Quant(Fixed(True, 2, 3), "half_even", "sat")),
    "clamp limit": lambda g: changed(g, "act", quant=Quant(Fixed(True, 2, 3), "half_up", "sat_sym")),
}


def test_the_selftest_passes_where_nothing_changed(exported: Path) -> None:
    result = run_selftest(exported)
    assert result["passed"], result["output"]
    assert result["logits_differing"] == result["scores_differing"] == result["decisions_differing"] == 0
    assert result["vectors"] > 2000


@pytest.mark.parametrize("change", CHANGES)
def test_the_selftest_fails_on_a_changed_program(tmp_path: Path, exported: Path, change: str) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    other = tmp_path / "other"
    other.mkdir()
    alkaid().write(CHANGES[change](subject()), other)
    shutil.copy(other / "program.alir.json", copy / "program.alir.json")
    result = run_selftest(copy)
    assert not result["passed"]
    assert result["logits_differing"] > 0, "the integers must tell, not only the hash"


@pytest.mark.parametrize("code", [0, 1, 11])
def test_the_selftest_fails_on_a_changed_sum(tmp_path: Path, exported: Path, code: int) -> None:
    """Where a sum of the program becomes a difference."""
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    document = json.loads((copy / "program.alir.json").read_text())
    operation = next(op for op in document["model"][5] if op[1] == code)
    if code == 11:
        operation[2][2] ^= 1
    else:
        operation[1] = 1 - code
    (copy / "program.alir.json").write_text(json.dumps(document))
    result = run_selftest(copy)
    assert not result["passed"]
    assert result["logits_differing"] > 0


@pytest.mark.parametrize("step", [1, -1])
def test_the_selftest_fails_on_a_changed_threshold(tmp_path: Path, exported: Path, step: int) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    move_threshold(copy, step, 1)
    result = run_selftest(copy)
    assert not result["passed"]
    assert result["decisions_differing"] > 0
    assert result["logits_differing"] == 0
