"""The lwtnn artefact run by the reader that ships with it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hlt_train.errors import UsageError
from hlt_train.exporters._running import singly, timed
from hlt_train.types import Features

__all__ = ["latency", "load"]


def _reader(directory: Path) -> Any:
    for name in ("reader.py", "network.json"):
        if not (directory / name).is_file():
            raise UsageError(f"no such file: {name}", where=str(directory))
    spec = importlib.util.spec_from_file_location("_hlt_train_lwtnn_reader", directory / "reader.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(directory: Path) -> Callable[[Features], np.ndarray]:
    """Raw float32 features -> float32 logits `[n, n_outputs]`, by reader.py of the directory."""
    reader = _reader(directory)

    def run(x: Features) -> np.ndarray:
        logits: np.ndarray = reader.run(directory, x.groups, x.counts)
        return logits

    return run


def latency(directory: Path, x: Features, *, calls: int = 200) -> dict[str, Any]:
    """Batch-1 latency of reader.py: what NumPy takes in this process, no measure of lwtnn itself."""
    reader = _reader(directory)
    network = reader.Network(directory)
    return {
        **timed(lambda one: network(one.groups, one.counts), singly(x), calls),
        "method": "single calls of reader.py (NumPy, float64), batch 1; lwtnn itself was not timed",
        "runtime": f"numpy {np.__version__}",
    }
