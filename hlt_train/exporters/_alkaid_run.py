"""The ALIR program of an export run by alkaid's own interpreter, behind the input step of graph.json."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from hlt_train.errors import RunFailed, UsageError
from hlt_train.exporters._alkaid_trace import library
from hlt_train.exporters._grid import input_integers, read_graph
from hlt_train.exporters._running import singly, timed, whole
from hlt_train.graph import Graph
from hlt_train.types import Features

__all__ = ["latency", "load", "ports"]

PROGRAM = "program.alir.json"
ROWS = 1 << 14  # vectors in one call: their inputs are held as float64


def ports(graph: Graph, x: Features) -> np.ndarray:
    """The input port, float64 `[n, ports]`: the values of the integers of the input step and a bit per constituent, in the order of the program's inputs."""
    parts = []
    integers = input_integers(graph, x)
    for node in graph.inputs:
        f = graph.structure[node.name].f
        assert f is not None
        n = integers[node.group]
        parts.append((n * 2.0 ** -f.astype(np.float64)).reshape(len(n), -1))
        if node.length is not None:
            parts.append((np.arange(node.length) < x.counts[node.group][:, None]).astype(np.float64))
    return np.concatenate(parts, axis=1)


def _program(directory: Path) -> Any:
    path = directory / PROGRAM
    if not path.is_file():
        raise UsageError(f"no such file: {PROGRAM}", where=str(directory))
    types = library().types
    try:
        return types.CombLogic.load(path)
    except (AssertionError, LookupError, TypeError, ValueError) as error:
        raise RunFailed(f"alkaid {version('alkaid')} does not load it: {error}", where=str(path)) from error


def load(directory: Path) -> Callable[[Features], np.ndarray]:
    """Raw float32 features -> int64 logits `[n, n_outputs]`: the input step of graph.json in NumPy, then the program in alkaid's interpreter."""
    program = _program(directory)
    graph = read_graph(directory)
    f = graph.structure[graph.output.name].f
    assert f is not None

    def run(x: Features) -> np.ndarray:
        rows = len(next(iter(x.groups.values())))
        parts = []
        for start in range(0, max(rows, 1), ROWS):
            some = slice(start, start + ROWS)
            part = x.take(some)
            parts.append(program.predict(np.ascontiguousarray(ports(graph, part)), n_threads=1) if rows else np.zeros((0, len(f))))
        return whole(np.concatenate(parts).reshape(rows, len(f)) * 2.0 ** f.astype(np.float64))

    return run


def latency(directory: Path, x: Features, *, calls: int = 200) -> dict[str, Any]:
    """Batch-1 latency of the interpreter called from Python: of a program on this processor, not of the hardware, which `estimate` is about."""
    run = load(directory)
    return {
        **timed(run, singly(x), calls),
        "method": "single calls of alkaid's interpreter from Python, batch 1, one thread, input step in NumPy included; not the hardware",
        "runtime": f"alkaid {version('alkaid')}",
    }
