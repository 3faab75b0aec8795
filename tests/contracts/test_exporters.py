"""What every discovered exporter keeps: the artefact computes the golden integers, and an artefact that does not never leaves `export`.

A target may refuse a graph, by the name of one of its nodes and with an alternative; every target takes the plain MLP, in integers or, where it has none, in
float.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hlt_train import plugins
from hlt_train.certify import Material, export_graph
from hlt_train.errors import RunFailed, UsageError
from hlt_train.exporters import Exporter
from hlt_train.golden import read_golden
from hlt_train.graph import Fixed, FloatAffine, Graph, Output, Quant, Requant, Round, evaluate, float_input_node, input_node
from hlt_train.progress import Progress
from hlt_train.regeneration import check_regenerated
from hlt_train.selftest import run_selftest
from hlt_train.vectors import vectors
from tests import graphs

EXPORTERS = plugins.names("exporters")
QUIET = Progress(quiet=True)
FLOAT_ONLY = ("lwtnn",)  # they refuse integers
EXACT = tuple(name for name in EXPORTERS if name not in FLOAT_ONLY)
TAKES_ALL = ("cpp", "onnx")  # of what is in GRAPHS, float networks, and every mistake
GRAPHS: dict[str, Callable[[], Graph]] = {
    "plain": lambda: subject("half_even"),
    "mlp": lambda: graphs.mlp(1, outputs=3),
    "sum": lambda: graphs.deepsets(0),
    "max": lambda: graphs.deepsets(1, kind="max"),
    "mean": lambda: graphs.deepsets(0, kind="mean"),
    "convolution": lambda: graphs.convolution(0),
    "minifloat": lambda: graphs.minifloat(0, kind="mean"),
    **{f"wild {seed}": (lambda seed=seed: graphs.wild(seed)) for seed in (0, 1, 15)},
}
LONG = {("hls4ml", what) for what in ("mlp", "max", "shift", "overflow", "convolution")}  # a compilation each of what others show too
POINTS = {"points": [{"name": "tight", "integer_threshold": 30, "threshold": 0.1}, {"name": "never", "integer_threshold": None, "threshold": 0.0}]}


def each(kinds: Iterable[str], names: Iterable[str] = EXPORTERS) -> list[Any]:
    """Every exporter with every kind; what takes long is left to `make test-all`."""
    return [pytest.param(name, kind, marks=[pytest.mark.slow] if (name, kind) in LONG else []) for kind in kinds for name in names]


def make(name: str) -> Exporter:
    exporter = plugins.factory("exporters", name)()
    assert isinstance(exporter, Exporter)
    return exporter


def refused(name: str, graph: Graph, error: UsageError) -> None:
    """A refusal names a node of the graph and what comes nearest."""
    assert name not in TAKES_ALL, error
    assert any(error.where == f"node '{node.name}'" and f"'{node.name}'" in error.what for node in graph.nodes), error
    assert error.near, error


@pytest.mark.parametrize(("name", "kind"), each(GRAPHS))
def test_the_artefact_gives_the_golden_integers_or_is_refused_by_node(tmp_path: Path, name: str, kind: str) -> None:
    graph, seed = GRAPHS[kind](), 1
    exporter = make(name)
    if not takes(name, graph):
        assert kind != "plain" or name in FLOAT_ONLY
        return
    facts = exporter.write(graph, tmp_path)
    assert facts["target"] == name
    assert facts["bit_exact"]
    assert facts["starts_at"] in ("float", "grid")
    assert facts["starts_at"] == "float" or (tmp_path / "graph.json").is_file()
    x = vectors(graph, n=3000, seed=seed).x
    found = exporter.load(tmp_path)(x)
    assert found.dtype == np.int64
    assert np.array_equal(found, evaluate(graph, x))


@pytest.mark.slow
@pytest.mark.parametrize("name", TAKES_ALL)
def test_many_wild_graphs(tmp_path: Path, name: str) -> None:
    exporter, refused = make(name), 0
    for seed in range(40):
        directory = tmp_path / str(seed)
        directory.mkdir()
        graph = graphs.wild(seed)
        try:
            exporter.write(graph, directory)
        except UsageError:  # more bits than the target has
            refused += 1
            continue
        x = vectors(graph, n=1500, seed=seed).x
        assert np.array_equal(exporter.load(directory)(x), evaluate(graph, x)), seed
    assert refused < 12


@pytest.mark.parametrize("name", EXPORTERS)
def test_a_float_network_keeps_its_deviation_or_is_refused_by_node(tmp_path: Path, name: str) -> None:
    graph = graphs.float_mlp(1, activation="relu")
    exporter = make(name)
    try:
        facts = exporter.write(graph, tmp_path)
    except UsageError as error:
        refused(name, graph, error)
        return
    assert not facts["bit_exact"]
    x = vectors(graph, n=500).x
    found, expected = exporter.load(tmp_path)(x), evaluate(graph, x)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", FLOAT_ONLY)
def test_a_float_target_is_certified_with_its_deviation(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(3)
    draw = lambda *shape: rng.normal(0, 0.6, shape).astype(np.float32)  # noqa: E731
    graph = Graph(
        (
            float_input_node("in", graphs.group(rng, "event", 4)),
            FloatAffine("dense", ("in",), draw(4, 8), draw(8), "relu"),
            FloatAffine("logits", ("dense",), draw(8, 2), draw(2), "none"),
            Output("out", ("logits",), ("a", "b"), "softmax"),
        )
    )
    exporter = make(name)
    material = Material(graph, data=graphs.features(graph, 500))
    certificate = export_graph(material, {name: exporter}, tmp_path / "out", n_vectors=2000, keep=100, progress=QUIET)[name]
    assert not certificate["bit_exact"]
    assert 0 <= certificate["maximal_deviation"] <= 1e-5 * certificate["largest_logit"]
    directory = tmp_path / "out" / name
    assert run_selftest(directory)["passed"]
    check_regenerated(directory, graph, exporter, certificate["program"])
    content = (directory / "network.json").read_text()
    (directory / "network.json").write_text(content.replace("0.", "0.9", 1))
    (directory / "certificate.json").unlink()
    assert not run_selftest(directory)["passed"]


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name == "hls4ml" else []) for name in EXACT])
def test_a_certified_directory_stands_alone(tmp_path: Path, name: str) -> None:
    graph = graphs.deepsets(2) if takes(name, graphs.deepsets(2)) else subject("half_even")
    exporter = make(name)
    certificate = export_graph(
        Material(graph, POINTS, graphs.features(graph, 1000)), {name: exporter}, tmp_path / "out", n_vectors=4000, keep=100, progress=QUIET
    )[name]
    directory = tmp_path / "out" / name
    compared = certificate["vectors"]["compared"]
    assert compared >= 4000
    assert certificate["logits"] == {"compared": 2 * compared, "differing": 0}
    assert certificate["decisions"] == {"compared": 2 * compared, "differing": 0}
    assert certificate["starts_at"] == starts_at(name)
    folders = tuple(file for file in exporter.artefacts if file.endswith("/"))
    hashed = {next((folder for folder in folders if file.startswith(folder)), file) for file in certificate["sha256"]}
    assert {*exporter.artefacts, "graph.json", "golden.bin", "golden.json", "working_points.json"} == hashed
    assert {file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file()} == {*certificate["sha256"], "certificate.json"}
    assert {"median_ns", "p99_ns", "cold_p50_ns"} <= certificate["latency"].keys()
    assert certificate["latency"]["median_ns"] > 0
    assert run_selftest(directory)["passed"]
    check_regenerated(directory, graph, exporter, certificate["program"])  # the same files once more
    # One expected integer off by one, hashes made to agree: the artefact itself must say so.
    head = json.loads((directory / "golden.json").read_text())
    golden = read_golden(directory)
    content = bytearray((directory / "golden.bin").read_bytes())
    start = len(content) - len(golden) * (1 + len(golden.decisions) + 8) - golden.outputs.nbytes
    assert np.frombuffer(content, "<i8", golden.outputs.size, start).tolist() == golden.outputs.ravel().tolist()
    content[start] ^= 1
    (directory / "golden.bin").write_bytes(bytes(content))
    (directory / "certificate.json").unlink()
    (directory / "golden.json").write_text(json.dumps(head))
    assert not run_selftest(directory)["passed"]


# ------------------------------------------------------------------------------------------------------- an exporter that is wrong by little


def subject(round: Round = "half_up") -> Graph:
    """Every neuron alive, every mode reached, generic centres and scales."""
    rng = np.random.default_rng(5)
    nodes = (
        input_node("in", graphs.group(rng, "event", 4), Fixed(True, 3, 3)),
        graphs.affine(rng, "dense", "in", 4, 6, relu=False, f=7),
        Requant("act", ("dense",), Quant(Fixed(True, 2, 3), round, "sat")),
        graphs.affine(rng, "logits", "act", 6, 2, relu=False),
        Output("out", ("logits",), ("a", "b"), "none", np.array([1, -1], np.int64)),
    )
    return Graph(nodes)


def takes(name: str, graph: Graph) -> bool:
    """Whether a target takes a graph; a refusal must be a good one."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            make(name).write(graph, Path(scratch))
        except UsageError as error:
            refused(name, graph, error)
            return False
    return True


@functools.cache
def rounding_of(name: str) -> Round:
    """How the subject rounds for a target: half up, or half even for those that have no half up."""
    return "half_up" if takes(name, subject("half_up")) else "half_even"


@functools.cache
def starts_at(name: str) -> str:
    """Where a target's artefact begins."""
    with tempfile.TemporaryDirectory() as scratch:
        return str(make(name).write(subject("half_even"), Path(scratch))["starts_at"])


def edit(graph: Graph, name: str, change: Callable[[Any], dict[str, Any]]) -> Graph:
    return Graph(tuple(dataclasses.replace(node, **change(node)) if node.name == name else node for node in graph.nodes))


def nudged(array: np.ndarray, index: tuple[int, ...]) -> np.ndarray:
    array = array.copy()
    array[index] += 1
    return array


def fraction(array: np.ndarray) -> np.ndarray:
    """The next float32 after each number."""
    return np.nextafter(array, np.float32(np.inf))


MISTAKES: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    "weight": ("dense", lambda node: {"w": nudged(node.w, (1, 2))}),
    "shift": ("act", lambda node: {"quant": dataclasses.replace(node.quant, to=Fixed(True, 1, 4))}),
    "rounding": ("act", lambda node: {"quant": dataclasses.replace(node.quant, round="half_even" if node.quant.round == "half_up" else "floor")}),
    "overflow": ("act", lambda node: {"quant": dataclasses.replace(node.quant, over="sat_sym")}),
    "input limit": ("in", lambda node: {"hi": node.hi - np.eye(4, dtype=np.int64)[2]}),
    "centre": ("in", lambda node: {"centre": fraction(node.centre)}),
    "scale": ("in", lambda node: {"scale": fraction(node.scale)}),
    "nan": ("in", lambda node: {"nan": nudged(node.nan, (0,))}),
}


INPUT_STEP = {"input limit", "centre", "scale", "nan"}  # before an artefact that starts at the grid, which holds nothing of it


@pytest.mark.parametrize(("name", "mistake"), each(MISTAKES, EXACT))
def test_an_artefact_that_is_wrong_by_little_never_appears(tmp_path: Path, name: str, mistake: str) -> None:
    if mistake in INPUT_STEP and starts_at(name) == "grid":
        return  # the next test shows that there is nothing to be wrong
    right, graph = make(name), subject(rounding_of(name))
    node, change = MISTAKES[mistake]
    wrong = right._replace(write=lambda graph, directory: right.write(edit(graph, node, change), directory))
    with pytest.raises(RunFailed, match=f"{name}: .* vectors differ") as error:
        export_graph(Material(graph, POINTS), {name: wrong}, tmp_path / "out", n_vectors=8000, progress=QUIET)
    assert "expected" in error.value.where
    assert "got" in error.value.where
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", EXACT)
def test_an_artefact_that_starts_at_the_grid_holds_nothing_of_the_input_step(tmp_path: Path, name: str) -> None:
    if starts_at(name) == "float":
        return
    exporter, right = make(name), subject("half_even")
    wrong = right
    for mistake in INPUT_STEP:
        wrong = edit(wrong, *MISTAKES[mistake])
    exporter.write(wrong, tmp_path)
    other = tmp_path / "right"
    other.mkdir()
    exporter.write(right, other)
    (other / "graph.json").replace(tmp_path / "graph.json")
    x = vectors(right, n=3000).x
    assert np.array_equal(exporter.load(tmp_path)(x), evaluate(right, x))
    assert (evaluate(wrong, x) != evaluate(right, x)).any()


@pytest.mark.parametrize("name", EXACT)
def test_a_failed_selftest_leaves_nothing(tmp_path: Path, name: str) -> None:
    right = make(name)

    def complete(directory: Path) -> None:
        right.complete(directory)
        script = directory / "selftest.py"
        script.write_text("import sys\nsys.exit('broken')\n")

    with pytest.raises(RunFailed, match="selftest fails"):
        export_graph(Material(subject(rounding_of(name)), POINTS), {name: right._replace(complete=complete)}, tmp_path / "out", n_vectors=500, progress=QUIET)
    assert list(tmp_path.iterdir()) == []


def test_all_exporters_are_seen() -> None:
    assert {"alkaid", "cpp", "hls4ml", "lwtnn", "onnx", "qonnx"} <= set(EXPORTERS)


@pytest.mark.parametrize("name", TAKES_ALL)
def test_some_targets_take_the_input_step_and_half_up(name: str) -> None:
    assert (starts_at(name), rounding_of(name)) == ("float", "half_up")


@pytest.mark.parametrize("rule", ["half_up", "half_even"])
def test_the_subject_of_the_mistakes_is_alive(rule: Round) -> None:
    """Otherwise a mistake might not show for a reason that has nothing to do with an exporter."""
    graph = subject(rule)
    x = vectors(graph, n=8000).x
    for node, change in MISTAKES.values():
        assert (evaluate(edit(graph, node, change), x) != evaluate(graph, x)).any()
