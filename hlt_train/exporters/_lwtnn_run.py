"""The lwtnn artefact run by the reader that ships with it."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hlt_train.errors import UsageError
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
    rows = min(len(next(iter(x.groups.values()))), 256)
    events = [({k: v[i : i + 1] for k, v in x.groups.items()}, {k: v[i : i + 1] for k, v in x.counts.items()}) for i in range(rows)]
    other = np.zeros(1 << 18)

    def times(number: int, *, cold: bool) -> np.ndarray:
        found = np.empty(number)
        for k in range(number):
            if cold:
                np.add(other, 1, out=other)
            start = time.perf_counter_ns()
            network(*events[k % rows])
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
        "method": "single calls of reader.py (NumPy, float64), batch 1; lwtnn itself was not timed",
        "runtime": f"numpy {np.__version__}",
    }
