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
        write: (graph, existing empty directory) -> facts for the certificate (proof flags, opset, ...). Refuses by node name what the target cannot represent.
        load: directory -> a function that runs the ARTEFACT: raw float32 features -> outputs `[n, n_outputs]`, int64 for exact graphs, float32 otherwise.
        latency: (directory, features) -> batch-1 latency of the artefact: `median_ns`, `p99_ns`, `cold_p50_ns`, and what they were measured with.
        artefacts: the file names that `write` and `complete` make, for hashing.
        complete: called once `working_points.json`, `golden.bin` and the rest lie in the directory; writes what depends on them.
        local: options that say how this machine runs the artefact, such as its compiler, not what is written: no certificate carries them to another machine.
    """

    write: Callable[[Graph, Path], dict[str, Any]]
    load: Callable[[Path], Callable[[Features], np.ndarray]]
    latency: Callable[[Path, Features], dict[str, Any]]
    artefacts: tuple[str, ...]
    complete: Callable[[Path], None] = lambda directory: None
    local: tuple[str, ...] = ()
