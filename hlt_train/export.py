"""`export`: a run's network as files that a trigger loads, compared bit for bit with the golden model and certified before anything appears in OUT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hlt_train import checkpoints, files, plugins
from hlt_train.artefact import CARD
from hlt_train.certify import POINTS, Material, export_graph, graph_hash
from hlt_train.data import normalise
from hlt_train.data.dataset import Dataset, open_dataset
from hlt_train.data.program import compile_program
from hlt_train.decisions import scores, thresholds
from hlt_train.describe_inputs import FORMAT, VERSION, features_document
from hlt_train.errors import UsageError
from hlt_train.feature_vectors import feature_vectors, kinds_of
from hlt_train.graph import Graph, evaluate
from hlt_train.progress import Progress
from hlt_train.restore import Loaded, load_run, lowered
from hlt_train.scoring import write_working_points
from hlt_train.types import Features

__all__ = ["DATA_ROWS", "NEAREST", "export"]

DATA_ROWS = 50_000
NEAREST = 1000
FEATURE_ROWS = 1000


def export(
    source: Path,
    targets: Sequence[str],
    out: Path,
    *,
    n_vectors: int = 100_000,
    seed: int = 0,
    keep: int | None = None,
    sample_files: Mapping[str, Sequence[str]] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Export the BEST network of the run `source` to `out`/<target> for every target.

    Args:
        source: a run directory.
        targets: names of exporters.
        out: a directory that does not exist or is empty.
        n_vectors: least number of vectors on which each artefact is compared.
        seed: of the vectors.
        keep: random and data vectors that ship beside all constructed ones; default: as many as fit.
        sample_files: files of the samples, in place of the card's.
        options: target -> options of the exporter.
        progress: where to say how far it is.

    Raises:
        UsageError: `out` exists, an unknown target, a target that refuses the network (by layer), a missing compiler or runtime.
        RunFailed: an artefact differs from the golden model; nothing is left behind.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("it exists already, and nothing is ever overwritten", where=str(out), then="choose another --out, or remove it yourself")
    if not targets:
        raise UsageError("export to what?", near=plugins.names("exporters"), then="hlt-train export RUN --to cpp,onnx --out DIR")
    if n_vectors < 1:
        raise UsageError(f"--vectors must be at least 1, got {n_vectors}")
    given = options or {}
    chosen = {name: plugins.parse_options("exporters", name, dict(given.get(name, {}))) for name in targets}
    exporters = {name: plugins.factory("exporters", name)(**chosen[name]) for name in targets}
    loaded = load_run(source, "BEST")
    material = _material(loaded, sample_files, seed, progress)
    certificates = export_graph(material, exporters, out, n_vectors=n_vectors, seed=seed, keep=keep, options=chosen, progress=progress)
    return {"run": str(source), "checkpoint": f"BEST, step {loaded.step}", "out": str(out), "targets": certificates}


def _material(loaded: Loaded, sample_files: Mapping[str, Sequence[str]] | None, seed: int, progress: Progress) -> Material:
    graph = lowered(loaded)
    progress(f"{loaded.path}: BEST, step {loaded.step}; reading the validation split")
    with open_dataset(loaded.card, sample_files, training=False) as dataset:
        points = _points(loaded, dataset, progress)
        data, nearest = _rows(graph, dataset, points, seed)
        columns = dataset.branch_values("validation", {name for node in graph.inputs for name in node.variables}, FEATURE_ROWS)
    program = compile_program(loaded.card, [(node.group, node.length, node.variables) for node in graph.inputs], kinds_of(columns))
    documents = {
        "features.json": (FORMAT, VERSION, features_document(graph, loaded.inputs, loaded.card, program)),
        "card.json": (*CARD, {"card": loaded.card.model_dump(mode="json", by_alias=True)}),
        "normalisation.json": (normalise.FORMAT, 1, _content(loaded.path / "normalisation.json", normalise.FORMAT, 1)),
    }
    derived = feature_vectors(loaded.card, program, columns, seed=seed) if program.derives else None
    return Material(graph, points, data, nearest, documents, _sources(loaded, graph), derived)


def _points(loaded: Loaded, dataset: Dataset, progress: Progress) -> dict[str, Any]:
    """The run's working points; derived now (and written to the run) where there are none, or those of an older BEST."""
    path = loaded.path / "working_points.json"
    content = _content(path, *POINTS) if path.is_file() else None
    if content is None or content.get("network") != f"{loaded.which}, step {loaded.step:,}":
        content = write_working_points(loaded.path, dataset, progress=progress)
    return content or {"points": []}


def _content(path: Path, format: str, version: int) -> dict[str, Any]:
    return {key: value for key, value in files.read_document(path, format, version).items() if key not in ("format", "version")}


def _sources(loaded: Loaded, graph: Graph) -> dict[str, Any]:
    """Hashes of everything that the network comes from."""
    return {
        "run": loaded.path.name,
        "checkpoint": {"which": loaded.which, "step": loaded.step},
        "weights_sha256": checkpoints.document(loaded.path, loaded.step)["sha256"]["weights.npz"],
        "normalisation_sha256": files.sha256(loaded.path / "normalisation.json"),
        "config_sha256": files.sha256(loaded.path / "config.yaml"),
        "graph_sha256": graph_hash(graph),
        "card": loaded.card.name,
    }


def _rows(graph: Graph, dataset: Dataset, points: Mapping[str, Any], seed: int) -> tuple[Features | None, Features | None]:
    """(at most `DATA_ROWS` rows of the validation split, the `NEAREST` rows of it nearest each threshold), in one pass over it."""
    total = dataset.size("validation")
    if not total:
        return None, None
    chosen = np.zeros(total, bool)
    chosen[np.random.default_rng(seed).permutation(total)[:DATA_ROWS]] = True
    limits = [t for t in thresholds(graph, points) if t is not None]
    near: list[tuple[np.ndarray, Features]] = [(np.zeros(0), _none(graph)) for _ in limits]
    data, start = [], 0
    for rows in dataset.iterate("validation", columns="training"):
        x = _only(graph, rows.x)
        data.append(x.take(np.flatnonzero(chosen[start : start + len(rows)])))
        start += len(rows)
        score = scores(graph, evaluate(graph, x), points) if limits else None
        if score is not None:
            for k, threshold in enumerate(limits):
                distance = np.abs(score - threshold).astype(np.float64)
                distance, candidates = np.concatenate([near[k][0], distance]), _join([near[k][1], x])
                best = np.argsort(distance, kind="stable")[:NEAREST]
                near[k] = distance[best], candidates.take(best)
    return _join(data), _join([part for _, part in near]) if limits else None


def _only(graph: Graph, x: Features) -> Features:
    """The groups that the graph reads."""
    return Features(
        {node.group: x.groups[node.group] for node in graph.inputs},
        {node.group: x.counts[node.group] for node in graph.inputs if node.length is not None},
    )


def _none(graph: Graph) -> Features:
    shapes = {node.group: (len(node.variables),) if node.length is None else (node.length, len(node.variables)) for node in graph.inputs}
    counted = [node.group for node in graph.inputs if node.length is not None]
    return Features({k: np.zeros((0, *v), np.float32) for k, v in shapes.items()}, {k: np.zeros(0, np.int32) for k in counted})


def _join(parts: Sequence[Features]) -> Features:
    return Features(
        {k: np.concatenate([p.groups[k] for p in parts]) for k in parts[0].groups},
        {k: np.concatenate([p.counts[k] for p in parts]) for k in parts[0].counts},
    )
