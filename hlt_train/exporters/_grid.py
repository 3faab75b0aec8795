"""What targets share whose artefact starts at the integers of the input step: the step itself, from the graph that lies beside the artefact, and timing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hlt_train import files
from hlt_train.arithmetic import input_step
from hlt_train.errors import UsageError
from hlt_train.exporters import _running
from hlt_train.exporters._running import singly
from hlt_train.graph import Graph, Input
from hlt_train.graph_document import FORMAT, VERSION, from_document, to_document
from hlt_train.structure import scaled
from hlt_train.types import Features

__all__ = ["Evaluate", "Integers", "input_integers", "only_exact", "read_graph", "timed", "write_graph"]

Integers = dict[str, np.ndarray]
Evaluate = Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], np.ndarray]  # integers and counts by group -> int64 logits


def write_graph(graph: Graph, directory: Path) -> None:
    """graph.json, of which `load` takes the input step."""
    document = to_document(graph)
    files.write_document(directory / "graph.json", FORMAT, document["version"], {"nodes": document["nodes"]})


def read_graph(directory: Path) -> Graph:
    """The graph of an export directory."""
    return from_document(files.read_document(directory / "graph.json", FORMAT, VERSION))


def input_integers(graph: Graph, x: Features) -> Integers:
    """The integers of the input step by group, int64; those at index >= count are what garbage gives, and within the format like all others."""
    found = {}
    for node in graph.inputs:
        f = graph.structure[node.name].f
        assert isinstance(node, Input)
        assert f is not None
        found[node.group] = input_step(x.groups[node.group], node.centre, scaled(node.scale, f), node.lo, node.hi, node.nan)
    return found


def only_exact(graph: Graph, target: str) -> None:
    """Refuse a float network by the first node that computes in float32."""
    for node in graph.nodes:
        if not graph.structure[node.name].exact:
            raise UsageError(
                f"{type(node).__name__} '{node.name}' computes in float32, and {target} holds fixed point only",
                where=f"node '{node.name}'",
                near=("onnx", "cpp"),
                then="export a student with a precision, or choose another target",
            )


def timed(graph: Graph, evaluate: Evaluate, x: Features, *, calls: int) -> dict[str, Any]:
    """Batch-1 latency of `evaluate`, the input step done before."""
    events = [(input_integers(graph, one), one.counts) for one in singly(x)]
    return _running.timed(lambda event: evaluate(*event), events, calls)
