"""Times as budgets mean them: measured on the header itself, with blocks, calls and processes as defined; what cannot be measured is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hlt_train import clocks, files, plugins
from hlt_train.clocks import check_path, network_time, path_time
from hlt_train.data.card import Card
from hlt_train.data.program import compile_program
from hlt_train.describe_inputs import FORMAT, VERSION, features_document
from hlt_train.errors import RunFailed, UsageError
from hlt_train.feature_vectors import FeatureVectors, feature_vectors, kinds_of
from hlt_train.graph import Graph, evaluate
from hlt_train.graph import score as score_of
from hlt_train.precision.config import Precision
from hlt_train.restore import ModelSpec
from hlt_train.specimen import specimen
from hlt_train.types import Features, Group, Inputs

N = 300
CARD = Card.model_validate(
    {
        "samples": {"a": {"files": []}, "b": {"files": []}},
        "new_variables": {"logpt": "log(pt)", "leading": "nth(sort_desc(pt), 0, default=0.0)"},
        "inputs": {"jets": {"length": 3, "vars": ["logpt", "eta"]}, "event": ["leading", "met"]},
        "labels": {"classes": ["a", "b"]},
    }
)


def group(name: str, variables: tuple[str, ...], length: int | None) -> Group:
    zero, one = np.zeros(len(variables), np.float32), np.ones(len(variables), np.float32)
    return Group(name, variables, length, zero, one, -5 * one, 5 * one, zero)


INPUTS = Inputs((group("jets", ("logpt", "eta"), 3), group("event", ("leading", "met"), None)), ("a", "b"))


@pytest.fixture(scope="module")
def graph() -> Graph:
    precision = Precision().to_config()
    return specimen(ModelSpec.of({"name": "deepsets", "phi": [4], "rho": [4], "precision": precision}, ("a", "b"))._replace(score=(-1, 1)), INPUTS)


@pytest.fixture(scope="module")
def header(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpp")
    plugins.factory("exporters", "cpp")().write(graph, folder)
    return folder


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "BLOCKS", 20)
    monkeypatch.setattr(clocks, "CALLS", 50)
    monkeypatch.setattr(clocks, "ROUNDS", 2)


def test_the_network(header: Path, graph: Graph) -> None:
    rng = np.random.default_rng(1)
    groups = {"jets": rng.normal(0, 1, (N, 3, 2)).astype(np.float32), "event": rng.normal(0, 1, (N, 2)).astype(np.float32)}
    x = Features(groups, {"jets": rng.integers(0, 4, N).astype(np.int32)})
    found = network_time(header, graph, x, "plain")
    assert found["median_ns"] == max(found["processes_ns"])
    assert len(found["processes_ns"]) == 3
    assert 0 < found["median_ns"] <= found["p99_ns"] <= found["p999_ns"]
    assert (found["isa"], found["blocks"], found["calls"], found["events"]) == ("plain", 20, 50, N)
    with pytest.raises(RunFailed, match="this processor has no such path"):
        network_time(header, graph, x, "abacus")


def golden_score(graph: Graph, vectors: FeatureVectors) -> np.ndarray:
    """The integer score of what the feed makes of the branches."""
    (packed, counts), (event, _) = vectors.x  # type: ignore[misc]
    assert counts is not None
    padded = np.zeros((len(counts), 3, 2), np.float32)
    padded[np.arange(3) < counts[:, None]] = packed
    return score_of(graph, evaluate(graph, Features({"jets": padded, "event": event}, {"jets": counts})))


def test_the_path(header: Path, graph: Graph) -> None:
    """From branch values of real shape to the decision; features.hpp is that of the card."""
    rng = np.random.default_rng(2)
    import awkward as ak

    sizes = rng.integers(0, 9, N)
    columns = {name: ak.unflatten(rng.uniform(1, 9, sizes.sum()).astype(np.float32), sizes) for name in ("pt", "eta")}
    columns["met"] = rng.uniform(0, 9, N).astype(np.float32)
    program = compile_program(CARD, [(g.name, g.length, g.variables) for g in INPUTS.groups], kinds_of(columns))
    files.write_document(header / "features.json", FORMAT, VERSION, features_document(graph, INPUTS, CARD, program))
    vectors = feature_vectors(CARD, program, columns, special=0)
    score = golden_score(graph, vectors)
    threshold = int(np.median(score))
    files.write_document(header / "working_points.json", "hlt-train/working-points", 1, {"points": [{"name": "half", "integer_threshold": threshold}]})
    plugins.factory("exporters", "cpp")().complete(header)
    found = path_time(header, vectors, check_path(header, None), ["all"])
    assert found["events"] == N
    expected = int((score >= threshold).sum())
    assert N / 4 < expected < N
    assert abs(found["passed"] / clocks.ROUNDS - expected) <= 2  # what is timed decides as the golden model does, but for a last bit of libm
    assert 0 < found["median_ns"] <= found["p99_ns"]
    assert found["timed"] == ["all"]


def test_paths_are_refused_by_name(header: Path) -> None:
    with pytest.raises(UsageError, match="no path 'avx'") as caught:
        check_path(header, "avx")
    assert "avx2" in caught.value.near
