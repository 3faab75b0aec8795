"""Graph -> files -> the artefact run again. One exporter per file; each sees only a `Graph`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hlt_train.graph import Graph
from hlt_train.types import Features

__all__ = ["Exporter"]


class Exporter(NamedTuple):
    """How one target is written and run.

    Attributes:
        write: (graph, existing empty directory) -> facts for the certificate: `target`, `bit_exact`, `starts_at`, and what else holds of it (opset, types).
            `starts_at` is "float" where the input step is inside the artefact, and "grid" where the artefact reads its integers; it then writes
            `graph.json` too. Refuses what the target cannot represent by the name of a node, with the nearest alternative.
        load: directory -> a function that runs the ARTEFACT: raw float32 features -> outputs `[n, n_outputs]`, int64 for exact graphs, float32 otherwise.
            For an artefact that starts at the grid, the input step of `graph.json` comes first.
        latency: (directory, features) -> batch-1 latency of the artefact: `median_ns`, `p99_ns`, `cold_p50_ns`, and what they were measured with.
        artefacts: the files that `write` and `complete` make, for hashing; a name that ends in "/" is a folder with whatever lies in it.
        complete: called once `working_points.json`, `golden.bin` and the rest lie in the directory; writes what depends on them.
        local: options that say how this machine runs the artefact, such as its compiler, not what is written: no certificate carries them to another machine.
        data: artefacts that hold numbers for a tool and run nowhere; they may come from vectors that do not ship.
        derives: the artefact computes features from branch values too, as the program in features.json says; its selftest compares them with
            golden_features.bin and states what it found under "features" of its JSON.
    """

    write: Callable[[Graph, Path], dict[str, Any]]
    load: Callable[[Path], Callable[[Features], np.ndarray]]
    latency: Callable[[Path, Features], dict[str, Any]]
    artefacts: tuple[str, ...]
    complete: Callable[[Path], None] = lambda directory: None
    local: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    derives: bool = False
