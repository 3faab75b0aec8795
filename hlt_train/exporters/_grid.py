"""What targets share whose artefact starts at the integers of the input step: the step itself, from the graph that lies beside the artefact, and timing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from hlt_train import files
from hlt_train.arithmetic import input_step
from hlt_train.errors import UsageError
from hlt_train.graph import Graph, Input
from hlt_train.graph_document import FORMAT, VERSION, from_document, to_document
from hlt_train.structure import scaled
from hlt_train.types import Features

__all__ = ["Evaluate", "Integers", "input_integers", "only_exact", "read_graph", "source", "template", "timed", "write_graph"]

Integers = dict[str, np.ndarray]
Evaluate = Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], np.ndarray]  # integers and counts by group -> int64 logits


def write_graph(graph: Graph, directory: Path) -> None:
    """graph.json, of which `load` takes the input step."""
    files.write_document(directory / "graph.json", FORMAT, VERSION, {"nodes": to_document(graph)["nodes"]})


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


def template(name: str) -> str:
    """A file of templates/."""
    return resources.files("hlt_train.exporters").joinpath("templates", name).read_text()


def source(name: str) -> str:
    """The source of a helper of this room that imports nothing of hlt_train, to be written into an export as it is."""
    return resources.files("hlt_train.exporters").joinpath(name).read_text()


def timed(graph: Graph, evaluate: Evaluate, x: Features, *, calls: int) -> dict[str, Any]:
    """Batch-1 latency of `evaluate`: each call timed alone, warm, then with 2 MiB touched between calls; ns."""
    integers = input_integers(graph, x)
    rows = min(len(next(iter(integers.values()))), 256)
    events = [({k: v[i : i + 1] for k, v in integers.items()}, {k: v[i : i + 1] for k, v in x.counts.items()}) for i in range(rows)]
    other = np.zeros(1 << 18)

    def times(number: int, *, cold: bool) -> np.ndarray:
        found = np.empty(number)
        for k in range(number):
            if cold:
                np.add(other, 1, out=other)
            start = time.perf_counter_ns()
            evaluate(*events[k % rows])
            found[k] = time.perf_counter_ns() - start
        return found

    times(max(calls // 20, 1), cold=False)
    warm, cold = times(calls, cold=False), times(max(calls // 10, 10), cold=True)
    return {
        "median_ns": float(np.median(warm)),
        "p99_ns": float(np.quantile(warm, 0.99)),
        "cold_p50_ns": float(np.median(cold)),
        "cold_p99_ns": float(np.quantile(cold, 0.99)),
        "calls": calls,
    }
