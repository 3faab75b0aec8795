"""Convolutions in ONNX: the same integers in every profile, opset and through 8 bits, also where the length of a collection is not known before it comes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx as library
import pytest
from onnx import numpy_helper

from hlt_train.certify import Material, export_graph
from hlt_train.exporters._onnx_run import find_model
from hlt_train.exporters.onnx import onnx
from hlt_train.graph import Add, Concat, Fixed, Flatten, Graph, Node, Output, Pool, Quant, Requant, Window, evaluate, input_node, score
from hlt_train.progress import Progress
from hlt_train.proof import prove
from hlt_train.selftest import run_selftest
from hlt_train.vectors import vectors
from tests import graphs
from tests.exporters.test_onnx_qdq import LEVELS, run

PROFILES = ("plain", "cmssw", "triton", "athena")
OPSETS = (13, 15, 17, 18, 21)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_artefact_gives_the_golden_integers(tmp_path: Path, profile: str) -> None:
    for seed, kind in enumerate(("sum", "max", "mean")):
        graph = graphs.convolution(seed, kind=kind, stride=1 + seed)
        x = vectors(graph, n=1500, seed=seed).x
        exporter = onnx(profile=profile)
        assert exporter.write(graph, tmp_path)["bit_exact"]
        assert np.array_equal(exporter.load(tmp_path)(x), evaluate(graph, x))


@pytest.mark.parametrize("profile", PROFILES)
def test_wild_windows(tmp_path: Path, profile: str) -> None:
    exact = 0
    for seed in range(16):
        graph = graphs.wild_windows(seed)
        if all(proof.f24 for proof in prove(graph).values()):
            exporter = onnx(profile=profile)
            exporter.write(graph, tmp_path)
            x = vectors(graph, n=500, seed=seed).x
            assert np.array_equal(exporter.load(tmp_path)(x), evaluate(graph, x)), seed
            exact += 1
    assert exact > 10


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_and_the_checker(tmp_path: Path, opset: int) -> None:
    graph = graphs.convolution(3, kind="mean")
    x = vectors(graph, n=500).x
    for profile in PROFILES:
        directory = tmp_path / profile
        directory.mkdir()
        exporter = onnx(profile=profile, opset=opset)
        assert exporter.write(graph, directory)["opset"] == opset
        assert np.array_equal(exporter.load(directory)(x), evaluate(graph, x))
        model = library.load(str(find_model(directory)))
        library.checker.check_model(model, full_check=True)
        library.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


@pytest.mark.parametrize("profile", PROFILES)
def test_float_convolutions_stay_within_rounding(tmp_path: Path, profile: str) -> None:
    for activation in ("relu", "silu"):
        graph = graphs.float_convolution(2, activation=activation)
        exporter = onnx(profile=profile)
        exporter.write(graph, tmp_path)
        x = vectors(graph, n=500).x
        expected = evaluate(graph, x)
        assert np.abs(exporter.load(tmp_path)(x) - expected).max() < 1e-4 * np.abs(expected).max()


def eight(seed: int, kind: str) -> Graph:
    """A convolution with a residual and one that strides, in 8 bits."""
    rng = np.random.default_rng(seed)
    byte, signed = Quant(Fixed(False, 4, 4), "half_even", "sat"), Quant(Fixed(True, 3, 4), "half_even", "sat")
    nodes: tuple[Node, ...] = (
        input_node("in_jets", graphs.group(rng, "jets", 3, 7), Fixed(True, 3, 4)),
        Window("near", ("in_jets",), 3, 1, 1, 1, "jets"),
        graphs.affine(rng, "conv0", "near", 9, 3, bits=8, f=9, relu=False),
        Requant("act0", ("conv0",), signed),
        Add("residual", ("act0", "in_jets")),
        Requant("residual_act", ("residual",), signed),
        Window("next", ("residual_act",), 2, 2, 0, 1, "jets"),
        graphs.affine(rng, "conv1", "next", 6, 8, bits=8, f=9),
        Requant("act1", ("conv1",), byte),
        Pool("pool", ("act1",), kind, "jets", byte if kind == "mean" else None),  # type: ignore[arg-type]
        Requant("pool_act", ("pool",), byte),
        Flatten("flat", ("act1",), "jets"),
        Concat("all", ("pool_act", "flat")),
        graphs.affine(rng, "logits", "all", 8 + 32, 3, bits=8, f=9, relu=False),
        Output("out", ("logits",), ("a", "b", "c"), "none", np.array([1, -1, 0], np.int64)),
    )
    return Graph(nodes)


@pytest.mark.parametrize("kind", ["sum", "mean"])
@pytest.mark.parametrize("profile", PROFILES)
def test_through_eight_bits(tmp_path: Path, profile: str, kind: str) -> None:
    graph = eight(1, kind)
    exporter = onnx(profile=profile, quantised="qdq")
    assert exporter.write(graph, tmp_path)["qdq"]["products"] == ["conv0", "conv1", "logits"]
    x = vectors(graph, n=1000).x
    expected = evaluate(graph, x)
    assert (np.ptp(expected, axis=0) > 0).all()
    assert np.array_equal(exporter.load(tmp_path)(x), expected)
    if profile == "plain":
        for level in LEVELS:
            found, kinds = run(tmp_path, x, level)
            assert np.array_equal(found, score(graph, expected)), level
        assert "QLinearMatMul" in kinds or "MatMulIntegerToFloat" in kinds, "otherwise this says nothing about integer kernels"


MUTATIONS = {"a neighbour": ("next/neighbours", (1, 2)), "a start": ("next/starts", (0, 1, 0)), "the padding": ("near/pads", (1,))}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_selftest_fails_on_a_changed_window(tmp_path: Path, mutation: str) -> None:
    graph = graphs.convolution(4, kind="mean")
    export_graph(Material(graph), {"onnx": onnx()}, tmp_path / "out", n_vectors=2000, keep=100, progress=Progress(quiet=True))
    directory = tmp_path / "out" / "onnx"
    (directory / "certificate.json").unlink()
    assert run_selftest(directory)["passed"]
    name, index = MUTATIONS[mutation]
    model = library.load(str(directory / "model.onnx"))
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array[index] += 1
    if mutation == "the padding":  # one more before, one less behind
        array[4] -= 1
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    library.save(model, str(directory / "model.onnx"))
    assert not run_selftest(directory)["passed"]
