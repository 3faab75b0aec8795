"""Write a graph for its targets, run what was written, compare it bit for bit, certify it, and only then let it appear.

Everything happens in a hidden directory beside OUT, which is moved to OUT when every target has passed. See `docs/numbers.md`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from hlt_train import __version__, files
from hlt_train.cost import cost
from hlt_train.decisions import decide, scores, thresholds
from hlt_train.errors import RunFailed, UsageError
from hlt_train.exporters import Exporter
from hlt_train.exporters._alkaid_trace import estimate
from hlt_train.exporters._grid import write_graph
from hlt_train.feature_vectors import FeatureVectors, write_feature_vectors
from hlt_train.golden import CATEGORIES, Golden, write_golden
from hlt_train.graph import Graph, evaluate
from hlt_train.graph_document import to_document
from hlt_train.machine import machine, versions
from hlt_train.marking import Reach, mark, subset
from hlt_train.progress import Progress
from hlt_train.proof import prove, summary
from hlt_train.selftest import run_selftest
from hlt_train.types import Features
from hlt_train.ulp import one_step
from hlt_train.vectors import row_bytes, vectors

__all__ = ["CERTIFICATE", "Material", "export_graph", "graph_hash"]

CERTIFICATE = ("hlt-train/certificate", 1)
POINTS = ("hlt-train/working-points", 1)
SHIPPED = 16 << 20  # bytes of golden.bin, about, that the default of `keep` aims at
ULP_ROWS = 20_000


@dataclass(frozen=True, eq=False)
class Material:
    """What is exported.

    Attributes:
        graph: the network.
        points: content of working_points.json; `{"points": []}` where there are none.
        data: raw rows of the validation split, and those nearest each threshold.
        documents: file name -> (format, version, content) of further documents of the directory, such as features.json.
        sources: what the certificate says of where the network comes from (run, checkpoint, hashes).
        derived: branch values with the features that they give, for targets that compute features themselves.
    """

    graph: Graph
    points: Mapping[str, Any] = field(default_factory=lambda: {"points": []})
    data: Features | None = None
    nearest: Features | None = None
    documents: Mapping[str, tuple[str, int, Mapping[str, Any]]] = field(default_factory=dict)
    sources: Mapping[str, Any] = field(default_factory=dict)
    derived: FeatureVectors | None = None


@dataclass(frozen=True, eq=False)
class _Expected:
    """All vectors with what they must give, the rows that ship, and what the graph would cost in an FPGA."""

    golden: Golden
    shipped: np.ndarray
    reach: dict[str, Reach]
    fpga: dict[str, Any] | str


def graph_hash(graph: Graph) -> str:
    """SHA-256 of the graph's document in canonical JSON."""
    return hashlib.sha256(json.dumps(to_document(graph), sort_keys=True).encode()).hexdigest()


def export_graph(
    material: Material,
    targets: Mapping[str, Exporter],
    out: Path,
    *,
    n_vectors: int = 100_000,
    seed: int = 0,
    keep: int | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Export to `out`/<target> and return the certificates by target.

    Args:
        material: the network and what belongs to it.
        targets: name -> exporter.
        out: a directory that does not exist or is empty.
        n_vectors: least number of vectors compared.
        seed: of the vectors.
        keep: random and data vectors that ship beside all constructed ones; default: as many as fit about 16 MB.
        options: target -> options with which its exporter was made, for the certificate.
        progress: where to say how far it is.

    Raises:
        UsageError: `out` exists, or a target refuses the graph by node name.
        RunFailed: an artefact differs from the golden model; nothing is left behind.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("it exists already, and nothing is ever overwritten", where=str(out), then="choose another --out, or remove it yourself")
    out.parent.mkdir(parents=True, exist_ok=True)
    prove(material.graph)
    progress(f"vectors: making and evaluating {n_vectors:,}")
    expected = _expect(material, n_vectors, seed, keep)
    staging = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        said = {name: {k: v for k, v in (options or {}).get(name, {}).items() if k not in exporter.local} for name, exporter in targets.items()}
        certificates = {name: _one(name, exporter, material, expected, staging / name, said[name], progress) for name, exporter in targets.items()}
        umask = os.umask(0)
        os.umask(umask)
        staging.chmod(0o777 & ~umask)
        staging.replace(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return certificates


def _expect(material: Material, n: int, seed: int, keep: int | None) -> _Expected:
    graph, points = material.graph, material.points
    made = vectors(graph, material.data, material.nearest, n=n, seed=seed)
    outputs = evaluate(graph, made.x)
    score = scores(graph, outputs, points)
    integers = score if graph.exact else None
    category, reach = mark(graph, made.x, made.category, integers, [t for t in thresholds(graph, points) if isinstance(t, int)])
    golden = Golden(made.x, outputs, integers, decide(graph, score, points, len(outputs)), category)
    if keep is None:
        row = row_bytes(graph) + 8 * (outputs.shape[1] + 1) + len(golden.decisions) + 1
        keep = max(SHIPPED // row - len(subset(category, 0, seed)), 0)
    return _Expected(golden, subset(category, keep, seed), reach, estimate(graph))


def _rows(golden: Golden, rows: np.ndarray) -> Golden:
    x = golden.x.take(rows)
    return Golden(x, golden.outputs[rows], None if golden.score is None else golden.score[rows], golden.decisions[:, rows], golden.category[rows])


def _one(
    name: str, exporter: Exporter, material: Material, expected: _Expected, directory: Path, options: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    graph, golden, points = material.graph, expected.golden, material.points
    progress(f"{name}: writing")
    directory.mkdir()
    facts = exporter.write(graph, directory)
    write_graph(graph, directory)
    files.write_document(directory / "working_points.json", *POINTS, points)
    for file, (format, version, content) in material.documents.items():
        files.write_document(directory / file, format, version, content)
    if exporter.derives and material.derived is not None:
        write_feature_vectors(directory, material.derived)
    progress(f"{name}: comparing {len(golden):,} vectors")
    compared = _compare(name, exporter, material, golden, directory)
    names = [point["name"] for point in points["points"]]
    tolerance = {} if graph.exact else {"tolerance": compared["tolerance"]}
    write_golden(directory, graph, golden, names, tolerance)
    exporter.complete(directory)
    tested = _selftest(name, directory, "on every vector")
    write_golden(directory, graph, _rows(golden, expected.shipped), names, tolerance)
    progress(f"{name}: timing")
    latency = exporter.latency(directory, _rows(golden, np.arange(min(len(golden), 1000))).x if material.data is None else material.data)
    content = {
        "target": name,
        "program": f"hlt-train {__version__}",
        "options": options,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **facts,
        **_statement(material, expected),
        **compared,
        **({"features": tested["features"]} if "features" in tested else {}),
        "latency": latency,
        "machine": machine(),
        "versions": versions(),
        "sha256": {path.relative_to(directory).as_posix(): files.sha256(path) for path in _files(directory)},
    }
    files.write_document(directory / "certificate.json", *CERTIFICATE, content)
    _selftest(name, directory, "on the vectors that ship")
    return {**content, "bytes": sum(path.stat().st_size for path in _files(directory))}


def _files(directory: Path) -> list[Path]:
    """Every file, those in folders included: a target may need a tree."""
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _statement(material: Material, expected: _Expected) -> dict[str, Any]:
    """What is true of the graph whatever the target."""
    graph, golden = material.graph, expected.golden
    counted = {name: int((golden.category == k).sum()) for k, name in enumerate(CATEGORIES)}
    x = (
        material.data.take(slice(ULP_ROWS))
        if material.data is not None
        else _rows(golden, np.flatnonzero(golden.category == CATEGORIES.index("random"))[:ULP_ROWS]).x
    )
    flips = one_step(graph, x, lambda z: _decided(material, z))
    return {
        "exact": graph.exact,
        "vectors": {"compared": len(golden), "shipped": len(expected.shipped), "by_category": counted},
        "reach": {name: reach._asdict() for name, reach in expected.reach.items()},
        "proof": summary(prove(graph)),
        "cost": cost(graph),
        "fpga": expected.fpga,
        "one_ulp": {"of": "validation rows" if material.data is not None else "random vectors", **flips},
        "graph_sha256": graph_hash(graph),
        "sources": dict(material.sources),
    }


def _decided(material: Material, x: Features) -> np.ndarray:
    outputs = evaluate(material.graph, x)
    return decide(material.graph, scores(material.graph, outputs, material.points), material.points, len(outputs))


def _compare(name: str, exporter: Exporter, material: Material, golden: Golden, directory: Path) -> dict[str, Any]:
    """Run the artefact on every vector. An exact graph must give every integer and decision; of a float one the deviation is stated."""
    graph, points = material.graph, material.points
    got = exporter.load(directory)(golden.x)
    if got.shape != golden.outputs.shape:
        raise RunFailed(f"{name}: the artefact gives outputs of shape {list(got.shape)}, expected {list(golden.outputs.shape)}", where=name)
    if graph.exact:
        wrong = got != golden.outputs
        if wrong.any():
            raise _differs(name, graph, golden, got, wrong)
        passed = decide(graph, scores(graph, got, points), points, len(got))
        differing = int((passed != golden.decisions).sum())
        return {
            "bit_exact": True,
            "logits": {"compared": int(got.size), "differing": int(wrong.sum())},
            "decisions": {"compared": int(passed.size), "differing": differing},
        }
    with np.errstate(invalid="ignore"):
        deviation = np.where(got == golden.outputs, np.float32(0), np.abs(got - golden.outputs))
    if not np.isfinite(deviation).all():
        raise _differs(name, graph, golden, got, ~np.isfinite(deviation))
    passed = decide(graph, scores(graph, got, points), points, len(got))
    largest = float(np.abs(golden.outputs).max(initial=0))
    # The selftest of another machine sums in another order: four times what was seen here, and never less than a few roundings of the largest logit.
    tolerance = max(4 * float(deviation.max(initial=0)), 16 * float(np.finfo(np.float32).eps) * largest)
    return {
        "bit_exact": False,
        "logits": {"compared": int(got.size), "differing": int((got != golden.outputs).sum())},
        "maximal_deviation": float(deviation.max(initial=0)),
        "largest_logit": largest,
        "tolerance": tolerance,
        "decisions": {"compared": int(passed.size), "differing": int((passed != golden.decisions).sum())},
    }


def _differs(name: str, graph: Graph, golden: Golden, got: np.ndarray, wrong: np.ndarray) -> RunFailed:
    row, column = (int(v) for v in np.argwhere(wrong)[0])
    kind = CATEGORIES[int(golden.category[row])]
    return RunFailed(
        f"{name}: {int(wrong.any(axis=1).sum())} of {len(golden)} vectors differ from the golden model; nothing was exported",
        where=f"vector {row} ({kind}), output '{graph.output.names[column]}': expected {golden.outputs[row, column]}, got {got[row, column]}",
        then="this is a bug of the exporter, the compiler or the runtime: report it with the versions that `hlt-train --version` and the compiler print",
    )


def _selftest(name: str, directory: Path, what: str) -> dict[str, Any]:
    """What the export's own selftest prints as JSON; an error where it fails."""
    result = run_selftest(directory)
    if not result["passed"]:
        last = "\n           ".join(str(result["output"]).splitlines()[-6:])
        raise RunFailed(f"{name}: the export's own selftest fails {what}; nothing was exported", where=last, then="report it with the compiler and the runtime")
    return result
