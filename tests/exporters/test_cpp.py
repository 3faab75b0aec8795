"""The header computes what the golden evaluator computes, to the last integer, from every optimisation level and floating-point flag."""

from __future__ import annotations

import ctypes
import ctypes.util
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hlt_train.errors import UsageError
from hlt_train.exporters._compiler import compile_cpp, find_compiler
from hlt_train.exporters._cpp_library import Library
from hlt_train.exporters.cpp import cpp
from hlt_train.graph import Add, Affine, Concat, Fixed, Graph, Node, Output, Pool, Quant, Requant, evaluate, input_node
from hlt_train.types import Features, Group
from hlt_train.vectors import vectors
from tests import graphs
from tests.exporters.cpp_nets import available, libraries

ROUNDS, OVERS = ("floor", "half_up", "half_even"), ("wrap", "sat", "sat_sym")
X86 = platform.machine() == "x86_64"
FLAGS = {
    "O0": ["-O0"],
    "O2": ["-O2"],
    "O3": ["-O3"],
    "fast-math": ["-O3", "-ffast-math", "-ffp-contract=fast"],
    "contract-off": ["-O2", "-ffp-contract=off"],
    "undefined": ["-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all"],
}
if X86 and "fma" in Path("/proc/cpuinfo").read_text():
    FLAGS["fma"] = ["-O3", "-ffast-math", "-mfma", "-mavx2", "-ffp-contract=fast"]


def extremes() -> Graph:
    """Accumulators of 64 bits, weights of 8, 16, 32 and 40 bits, shifts in both directions and beyond 32, formats of width 0, 1 and 40."""
    rng = np.random.default_rng(5)
    full = lambda n, value: np.full(n, value, np.int64)  # noqa: E731
    w = rng.integers(-(2**39), 2**39, (6, 8))
    w[:, :2] >>= 8
    return Graph(
        (
            input_node("in", graphs.group(rng, "event", 6), Fixed(True, 3, np.arange(6))),
            Affine("wide", ("in",), w, rng.integers(-(2**40), 2**40, 8), full(8, 40), False),
            Requant(
                "mixed", ("wide",), Quant(Fixed(True, np.array([20, 3, -3, 0, 9, 9, -40, 2]), np.array([20, 4, 3, 0, 30, -3, 42, -2])), "half_even", "sat")
            ),
            Affine("second", ("mixed",), rng.integers(-(2**15), 2**15, (8, 7)), rng.integers(-9, 9, 7), full(7, 50), True),
            Requant("far", ("second",), Quant(Fixed(False, full(7, 30), full(7, 12)), "half_up", "sat")),
            Requant("up", ("far",), Quant(Fixed(True, np.array([20, 6, 3, 1, 1, 0, 0]), np.array([-8, 0, 6, 12, 14, 16, 20])), "floor", "wrap")),
            Output("out", ("up",), tuple("abcdefg"), "none", rng.integers(-3, 4, 7)),
        )
    )


def residual() -> Graph:
    """Three sources of different exponents added, two groups pooled three ways, an int32 accumulator at its very limit."""
    rng = np.random.default_rng(6)
    nodes: list[Node] = [
        input_node("muons", graphs.group(rng, "muons", 4, 3), Fixed(False, 2, 3)),
        input_node("taus", graphs.group(rng, "taus", 4, 5), Fixed(True, 4, 2)),
    ]
    for name in ("muons", "taus"):
        for kind, quant in (("sum", None), ("max", None), ("mean", graphs.quant(rng, 4, 2, width=7, round="half_even"))):
            nodes.append(Pool(f"{name} {kind}", (name,), kind, name, quant))  # type: ignore[arg-type]
    nodes.append(Add("Σ", ("muons sum", "taus max", "taus mean")))
    nodes.append(Concat("all", ("Σ", "muons max", "muons mean", "taus sum")))
    w = np.full((16, 3), 2**20)
    nodes.append(Affine("limit", ("all",), w, np.array([2**24, 0, -(2**24)]), np.zeros(3, np.int64), False))
    return Graph((*nodes, Output("out", ("limit",), ("a", "b", "c"), "softmax", np.array([1, 0, -1]))))


def covering() -> list[Graph]:
    """Every rounding with every overflow, every pool with every rounding, and the extremes."""
    made = [graphs.mlp(10 * i + j, widths=(9, 6), round=r, over=o, outputs=2 + i) for i, r in enumerate(ROUNDS) for j, o in enumerate(OVERS)]
    made += [graphs.deepsets(20 + i, kind=k, round=r) for k in ("sum", "max", "mean") for i, r in enumerate(ROUNDS)]
    return [*made, graphs.mlp(50, widths=(64, 32), variables=16, outputs=5), extremes(), residual()]


FAST = {"fma" if "fma" in FLAGS else "fast-math"}  # the other tests compile at -O2


@pytest.fixture
def _floating_point_as_before() -> Iterator[None]:
    """A library linked with -ffast-math makes the processor flush subnormals in the thread that loads it: wanted here, poison for every later test."""
    yield
    fe_dfl_env = ctypes.c_void_p(-1)
    assert ctypes.CDLL(ctypes.util.find_library("m")).fesetenv(fe_dfl_env) == 0
    assert np.nextafter(np.float32(0), np.float32(1)) * np.float32(1) > 0


@pytest.mark.usefixtures("_floating_point_as_before")
@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in FLAGS])
def test_same_integers_under_every_flag_and_without_a_warning(name: str, tmp_path: Path) -> None:
    nets = covering()
    for k, (graph, library) in enumerate(zip(nets, libraries(tmp_path, nets, FLAGS[name]), strict=True)):
        for x in (graphs.features(graph, 1000, k), vectors(graph, n=1500, seed=k).x):
            expected = evaluate(graph, x)
            assert (np.ptp(expected, axis=0) > 0).any(), f"graph {k} is constant: this compares nothing"
            for path in available(library):
                np.testing.assert_array_equal(library.evaluate(x, path), expected, err_msg=f"graph {k}, path {path}, at {name}")


@pytest.mark.parametrize("activation", ["none", "relu", "tanh", "gelu", "silu"])
def test_float_graphs_agree_to_rounding(activation: str, tmp_path: Path) -> None:
    graph = graphs.float_mlp(3, activation=activation)
    exporter = cpp()
    assert exporter.write(graph, tmp_path)["bit_exact"] is False
    x = graphs.features(graph, 2000)
    found = exporter.load(tmp_path)(x)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, evaluate(graph, x), rtol=1e-4, atol=1e-4)


def test_names_of_any_kind_become_identifiers(tmp_path: Path) -> None:
    """Keywords, names of the header itself, clashes, quotes, backslashes, trigraphs, line ends, other alphabets, nothing."""
    rng = np.random.default_rng(0)
    names = ["class", "logits", "x", "i", "a b", "a_b", 'q"\\??/', "линия", "9", "two\nlines", "*/", "evaluate", "score", "d0", "d0_w", "d0_w_", "n_x", "table"]
    groups = [Group(n, (n,), 2 if k % 3 == 0 else None, *(np.ones(1, np.float32) * v for v in (0, 1, -4, 4, 0))) for k, n in enumerate(names)]
    nodes: list[Node] = [input_node(f"{g.name}", g, Fixed(True, 3, 4)) for g in groups]
    nodes += [Pool(f"{g.name}_sum", (g.name,), "sum", g.name) for g in groups if g.length]
    last = [f"{g.name}_sum" if g.length else g.name for g in groups]
    nodes += [Concat("j", tuple(last)), graphs.affine(rng, "d0_b", "j", len(last), len(names), relu=False), Output("void", ("d0_b",), tuple(names), "none")]
    graph = Graph(tuple(nodes))
    (library,) = libraries(tmp_path, [graph], ["-O1"])
    assert library.outputs == tuple(names)
    assert [g[0] for g in library.groups] == names
    x = graphs.features(graph, 100)
    np.testing.assert_array_equal(library.evaluate(x), evaluate(graph, x))


def test_two_networks_in_one_program(tmp_path: Path) -> None:
    """The same namespace, function and file names in two translation units: the linker must not merge them."""
    exporter, nets = cpp(), [graphs.mlp(1), graphs.mlp(2)]
    sources = []
    for k, graph in enumerate(nets):
        directory = tmp_path / f"net{k}"
        directory.mkdir()
        exporter.write(graph, directory)
        path = directory / "unit.cpp"
        path.write_text(re.sub(r"\bnet_(?!c\.h)", f"net{k}_", (directory / "net_c.cpp").read_text()))
        sources.append(path)
    compile_cpp(find_compiler(), sources, tmp_path / "both.so", ["-O2", "-shared", "-fPIC"])
    for k, graph in enumerate(nets):
        x = graphs.features(graph, 500)
        np.testing.assert_array_equal(Library(tmp_path / "both.so", f"net{k}").evaluate(x), evaluate(graph, x))


def test_writing_is_deterministic(tmp_path: Path) -> None:
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        cpp().write(graphs.deepsets(4), tmp_path / name)
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1]
    assert set(written[0]) == set(cpp().artefacts)


def test_a_scale_that_flushed_subnormals_would_move_is_refused_by_name() -> None:
    group = Group("event", ("tiny",), None, *(np.full(1, v, np.float32) for v in (0, 2.0**110, -8, 8, 0)))
    graph = Graph((input_node("first", group, Fixed(True, 3, 2)), Output("out", ("first",), ("a",), "none")))
    with pytest.raises(UsageError, match=r"'first'.*tiny"):
        cpp().write(graph, Path("nowhere"))


def test_the_library_refuses_features_of_another_shape(tmp_path: Path) -> None:
    graph = graphs.deepsets(1)
    cpp().write(graph, tmp_path)
    run = cpp().load(tmp_path)
    x = graphs.features(graph, 4)
    with pytest.raises(UsageError, match=r"'jets'.*\[4, 7, 3\].*\[4, 6, 3\]"):
        run(Features({**x.groups, "jets": x.groups["jets"][:, :6]}, x.counts))
    with pytest.raises(UsageError, match=r"'event'.*missing"):
        run(Features({"jets": x.groups["jets"]}, x.counts))
    with pytest.raises(UsageError, match=r"counts.*jets"):
        run(Features(x.groups, {}))
    with pytest.raises(UsageError, match=r"net_c\.cpp is missing"):
        cpp().load(tmp_path / "elsewhere")


def test_latency_is_measured_on_the_artefact(tmp_path: Path) -> None:
    graph = graphs.mlp(1)
    cpp().write(graph, tmp_path)
    found = cpp().latency(tmp_path, graphs.features(graph, 100))
    assert 0 < found["median_ns"] <= found["p99_ns"]
    assert found["blocks"] >= 200
    assert found["compiler"]
