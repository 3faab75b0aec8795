"""An export opened again: its files verified, its artefact ready to run, with everything that evaluation and prediction need beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hlt_train import decisions, files, plugins
from hlt_train.certify import CERTIFICATE, POINTS
from hlt_train.data import normalise
from hlt_train.data.card import Card
from hlt_train.errors import RunFailed, UsageError, nearest
from hlt_train.graph import Graph
from hlt_train.graph_document import FORMAT as GRAPH_FORMAT
from hlt_train.graph_document import VERSION as GRAPH_VERSION
from hlt_train.graph_document import from_document
from hlt_train.regeneration import check_regenerated
from hlt_train.types import Features, Inputs

__all__ = ["CARD", "Artefact", "is_export", "no_such", "open_export"]

CARD = ("hlt-train/export-card", 1)


@dataclass(frozen=True, eq=False)
class Artefact:
    """One target's directory of an export.

    Attributes:
        path: the directory.
        target: the exporter's name.
        outputs: raw float32 features -> logits `[n, n_outputs]` of the ARTEFACT, int64 of an exact graph, float32 otherwise.
        graph: what it computes.
        inputs: the input groups, in raw units with their normalisation.
        card: the card of the run that it was exported from.
        working_points: content of working_points.json.
        certificate: content of certificate.json.
        latency: features -> figures of one call at batch 1, as `Exporter.latency` gives them.
    """

    path: Path
    target: str
    outputs: Callable[[Features], np.ndarray]
    graph: Graph
    inputs: Inputs
    card: Card
    working_points: dict[str, Any]
    certificate: dict[str, Any]
    latency: Callable[[Features], dict[str, Any]]

    @property
    def exact(self) -> bool:
        """Whether its logits are integers."""
        return self.graph.exact

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its outputs."""
        return self.graph.output.names

    def score(self, outputs: np.ndarray) -> np.ndarray:
        """What thresholds cut on, `[n]`: the integer score, or the float64 discriminant of a float graph."""
        found = decisions.scores(self.graph, outputs, self.working_points)
        if found is None:
            raise UsageError("this export has neither an integer score nor a discriminant", where=str(self.path))
        return found


def is_export(path: Path) -> bool:
    """Whether `path` is one target of an export, or the directory of several."""
    return path.is_dir() and bool(_targets(path))


def _targets(path: Path) -> list[Path]:
    if (path / "certificate.json").is_file():
        return [path]
    return sorted(child.parent for child in path.glob("*/certificate.json"))


def no_such(path: Path) -> UsageError:
    """The error of a run or an export that is not there, with the directories beside it that come nearest."""
    beside = [str(p) for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    return UsageError("no such run or export", where=str(path), near=nearest(str(path), beside))


def open_export(path: Path, *, trust: bool = False) -> Artefact:
    """Open a target's directory (or OUT, where it has one target), and make its artefact ready to run.

    Args:
        path: the directory.
        trust: take the artefact as it is. Otherwise it must be what this program writes for the graph that lies beside it: a certificate proves nothing of
            files that a stranger made together with it.

    Raises:
        RunFailed: a file is not the one that the certificate names.
        UsageError: not an export, or not one that this program would write.
    """
    if not path.exists():
        raise no_such(path)
    targets = _targets(path) if path.is_dir() else []
    if len(targets) != 1:
        names = [str(target) for target in targets]
        what = "it holds the exports of several targets" if targets else "not an export: it has no certificate.json"
        raise UsageError(what, where=str(path), near=names, then=f"name one of them: {names[0]}" if names else "hlt-train export RUN --to cpp,onnx --out DIR")
    directory = targets[0]
    certificate = files.read_document(directory / "certificate.json", *CERTIFICATE)
    for name, stated in certificate["sha256"].items():
        file = directory / name
        if not file.is_file() or files.sha256(file) != stated:
            raise RunFailed(f"the export was changed: {name} is not the file that was certified", where=str(file), then="export the run again")
    graph = from_document(files.read_document(directory / "graph.json", GRAPH_FORMAT, GRAPH_VERSION))
    target = certificate["target"]
    exporter = plugins.factory("exporters", target)(**plugins.parse_options("exporters", target, dict(certificate.get("options", {}))))
    if wrong := sorted(set(certificate.get("options", {})) & set(exporter.local)):
        raise UsageError(f"its certificate wants to set '{wrong[0]}' on this machine", where=str(directory), then="export the run again")
    if not trust:
        check_regenerated(directory, graph, exporter, certificate["program"])
    return Artefact(
        path=directory,
        target=target,
        outputs=exporter.load(directory),
        graph=graph,
        inputs=normalise.load(directory / "normalisation.json"),
        card=Card.model_validate(files.read_document(directory / "card.json", *CARD)["card"]),
        working_points=files.read_document(directory / "working_points.json", *POINTS),
        certificate=certificate,
        latency=partial(exporter.latency, directory),
    )
