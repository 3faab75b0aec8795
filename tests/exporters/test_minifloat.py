"""Networks that round to minifloats: the plain C++ path, ONNX where every sum has 24 bits, and nothing else; a wrong mantissa is found."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from hlt_train.certify import Material, export_graph
from hlt_train.errors import RunFailed, UsageError
from hlt_train.exporters import Exporter
from hlt_train.exporters._cpp_header import header
from hlt_train.exporters._cpp_plan import Plan
from hlt_train.exporters.alkaid import alkaid
from hlt_train.exporters.cpp import cpp
from hlt_train.exporters.hls4ml import hls4ml
from hlt_train.exporters.onnx import onnx
from hlt_train.exporters.qonnx import qonnx
from hlt_train.graph import Affine, Fixed, Graph, Output, Quant, Requant, evaluate, input_node
from hlt_train.progress import Progress
from hlt_train.proof import prove
from hlt_train.vectors import vectors
from tests import graphs

QUIET = Progress(quiet=True)
POINTS = {"points": [{"name": "tight", "integer_threshold": 30, "threshold": 0.1}]}


def chain(mantissa: int, exponent: int, *, bits: int = 6, round: str = "half_even", relu: bool = True) -> Graph:
    """Scalars -> Affine -> minifloat -> logits."""
    rng = np.random.default_rng(mantissa + 10 * exponent)
    quant = Quant(Fixed(True, mantissa + (1 << exponent) - 1 - 4, 4), round, "sat_sym", mantissa)  # type: ignore[arg-type]
    nodes = (
        input_node("in", graphs.group(rng, "event", 6), Fixed(True, 3, 4)),
        graphs.affine(rng, "dense", "in", 6, 9, bits=bits, f=8, relu=relu),
        Requant("act", ("dense",), quant),
        graphs.affine(rng, "logits", "act", 9, 2, bits=bits, relu=False),
        Output("out", ("logits",), ("a", "b"), "none", np.array([1, -1], np.int64)),
    )
    return Graph(nodes)


def differing(exporter: Exporter, graph: Graph, directory: Path, n: int = 3000) -> int:
    exporter.write(graph, directory)
    x = vectors(graph, n=n).x
    return int((exporter.load(directory)(x) != evaluate(graph, x)).any(axis=1).sum())


@pytest.mark.parametrize("round", ["floor", "half_up", "half_even"])
@pytest.mark.parametrize("opset", [13, 21])
def test_onnx_finds_the_binade_exactly(tmp_path: Path, opset: int, round: str) -> None:
    for k, (exponent, mantissa) in enumerate([(2, 1), (3, 2), (4, 0), (3, 6)]):
        directory = tmp_path / str(k)
        directory.mkdir()
        graph = chain(mantissa, exponent, bits=4, round=round, relu=False)
        assert all(proof.f24 for proof in prove(graph).values())
        assert differing(onnx(opset=opset), graph, directory) == 0


def test_eight_bits_in_onnx(tmp_path: Path) -> None:
    assert differing(onnx(quantised="qdq"), chain(1, 2, bits=4), tmp_path) == 0
    assert "QuantizeLinear" in {node.op_type for node in _operators(tmp_path)}


def _operators(directory: Path) -> list[object]:
    import onnx as library

    return list(library.load(str(directory / "model.onnx")).graph.node)


@pytest.mark.parametrize(("exponent", "mantissa"), [pytest.param(4, 3, marks=pytest.mark.slow), (5, 2)])
def test_wide_ones_are_for_cpp_alone(tmp_path: Path, exponent: int, mantissa: int) -> None:
    """E4M3 has integers of 18 bits and sums of more than 24, E5M2 of 33, which the header adds up in int64."""
    graph = chain(mantissa, exponent, bits=12)
    assert not all(proof.f24 for proof in prove(graph).values())
    assert differing(cpp(), graph, tmp_path) == 0
    with pytest.raises(UsageError) as caught:
        onnx().write(graph, tmp_path)
    assert caught.value.where.startswith("node '")
    assert "cpp" in caught.value.near


@pytest.mark.parametrize("target", [hls4ml, qonnx, alkaid])
def test_other_targets_refuse_by_node(tmp_path: Path, target: type) -> None:
    with pytest.raises(UsageError) as caught:
        target().write(chain(2, 3), tmp_path)
    assert caught.value.where == "node 'act'"
    assert "'act'" in caught.value.what
    assert "minifloat" in caught.value.what
    assert caught.value.near == ("cpp", "onnx")


def test_a_header_has_the_plain_path_alone_and_the_certificate_says_so(tmp_path: Path) -> None:
    graph = chain(2, 3)
    certificate = export_graph(Material(graph, POINTS), {"cpp": cpp()}, tmp_path / "out", n_vectors=3000, keep=50, progress=QUIET)["cpp"]
    assert certificate["vector_paths"] == "none: 'act' rounds to a minifloat, which the plain path alone does"
    assert certificate["latency"]["paths"] == {"plain": "compared"}
    assert certificate["logits"]["differing"] == 0
    reach = certificate["reach"]["act"]
    assert reach["rounding"] == 9
    assert min(reach.values()) > 0  # ties and the largest number were seen
    assert "namespace avx2" not in (tmp_path / "out" / "cpp" / "net.hpp").read_text()


def test_a_network_without_minifloats_does_not_know_of_them() -> None:
    assert "minifloat" not in header(Plan(graphs.mlp(1)), "net")


@pytest.mark.parametrize("wrong", [{"mantissa": 3}, {"round": "floor"}, {"mantissa": None}])
def test_an_artefact_that_rounds_otherwise_is_found(tmp_path: Path, wrong: dict[str, object]) -> None:
    graph = chain(2, 3)
    act = graph.nodes[2]
    assert isinstance(act, Requant)
    assert isinstance(graph.nodes[1], Affine)
    other = Graph((*graph.nodes[:2], dataclasses.replace(act, quant=dataclasses.replace(act.quant, **wrong)), *graph.nodes[3:]))
    real = onnx()
    mistaken = real._replace(write=lambda _, directory: real.write(other, directory))
    with pytest.raises(RunFailed, match="differ from the golden model"):
        export_graph(Material(graph, POINTS), {"onnx": mistaken}, tmp_path / "out", n_vectors=3000, keep=50, progress=QUIET)
