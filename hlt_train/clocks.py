"""Times of a C++ export as budgets mean them (`docs/budget.md`): a small program, compiled once, runs in three processes, of which the slowest counts.

- the network: the median over 200 blocks of the mean time of 1,000 dependent calls, on distinct events;
- the path: the median over events of the time from branch values to decision, at the multiplicities that the events have.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hlt_train.errors import RunFailed, UsageError, nearest
from hlt_train.exporters._compiler import compile_cpp, find_compiler, version
from hlt_train.exporters._cpp_library import build
from hlt_train.exporters._templates import template
from hlt_train.feature_vectors import FILE, FeatureVectors, write_feature_vectors
from hlt_train.graph import Graph
from hlt_train.types import Features

__all__ = ["FLAGS", "check_path", "network_time", "path_time"]

PROCESSES, BLOCKS, CALLS, ROUNDS, EVENTS = 3, 200, 1000, 20, 1000
FLAGS = "-std=c++17 -O2"


def check_path(directory: Path, wanted: str | None) -> str:
    """The code path that is to be timed, of the header in `directory`: `wanted`, or the one that this processor takes.

    Raises:
        UsageError: no such path, or this processor lacks it.
    """
    library = build(directory, find_compiler())
    if wanted is None:
        return str(library.path)
    here = [name for name, available in library.paths.items() if available]
    if wanted not in library.paths:
        raise UsageError(f"the header has no path '{wanted}'", where="--isa", near=nearest(wanted, library.paths) or tuple(library.paths))
    if wanted not in here:
        raise UsageError(f"this processor cannot run the path '{wanted}', so a budget on it cannot be measured here", where="--isa", near=here)
    return wanted


def network_time(directory: Path, graph: Graph, x: Features, path: str) -> dict[str, Any]:
    """Nanoseconds of one call of `net.hpp` in `directory`.

    Args:
        directory: of target cpp.
        graph: what it computes.
        x: raw features of events, at most 1,000 of which are used, in turn.
        path: code path.
    """
    parts: list[bytes] = []
    for node in graph.inputs:
        rows = np.ascontiguousarray(x.groups[node.group][:EVENTS], "<f4")
        parts += [rows.tobytes()] + ([] if node.length is None else [x.counts[node.group][:EVENTS].astype("<i4").tobytes()])
    n = min(EVENTS, len(next(iter(x.groups.values()))))
    with tempfile.TemporaryDirectory(prefix="hlt-train-") as scratch:
        events = Path(scratch) / "events.bin"
        events.write_bytes(np.array([n], "<i8").tobytes() + b"".join(parts))
        found = _largest(directory, "clock_network.cpp", Path(scratch), [path, str(_core()), str(BLOCKS), str(CALLS), str(events)])
    return {**found, "isa": path, "blocks": BLOCKS, "calls": CALLS, "events": n}


def path_time(directory: Path, vectors: FeatureVectors, path: str, steps: Sequence[str]) -> dict[str, Any]:
    """Nanoseconds per event from branch values to decision.

    Args:
        directory: of target cpp, with features.hpp and working_points.hpp.
        vectors: branch values of events.
        path: code path.
        steps: what is timed, in words, for whoever reads the figure.
    """
    with tempfile.TemporaryDirectory(prefix="hlt-train-") as scratch:
        write_feature_vectors(Path(scratch), vectors)
        found = _largest(directory, "clock_path.cpp", Path(scratch), [path, str(_core()), str(ROUNDS), str(Path(scratch) / FILE)])
    return {**found, "isa": path, "rounds": ROUNDS, "timed": list(steps)}


def _core() -> int:
    """The core that is taken: the last of those that this process may use."""
    return max(os.sched_getaffinity(0))


def _largest(directory: Path, source: str, scratch: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """The program run in each of the processes, one after the other; the figures of the one with the largest median."""
    words = find_compiler()
    for name in (source, "clock.hpp"):
        (scratch / name).write_text(template(name))
    program = scratch / "clock"
    compile_cpp(words, [scratch / source], program, ["-O2", f"-I{directory.resolve()}"])
    found = []
    for _ in range(PROCESSES):
        done = subprocess.run([str(program), *arguments], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RunFailed(f"the program that measures the time ends with {done.returncode}: {done.stderr.strip()}", where=str(directory))
        found.append(json.loads(done.stdout))
    worst = max(found, key=lambda one: one["median_ns"])
    worst.pop("last", None)
    every = [one["median_ns"] for one in found]
    return {**worst, "processes_ns": every, "core": _core(), "compiler": version(words), "flags": FLAGS}
