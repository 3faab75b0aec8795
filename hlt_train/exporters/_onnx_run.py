"""The ONNX artefact run: one thread of ONNX Runtime on the CPU."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hlt_train.errors import RunFailed, UsageError
from hlt_train.types import Features

__all__ = ["latency", "load"]

ROWS = 1 << 22  # numbers of the inputs in one call
NOT_INTEGER = np.iinfo(np.int64).min  # where an output that should be an integer is none


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError("ONNX Runtime is not installed, and nothing is called verified without it", then="pip install 'hlt-train[onnx]'") from error
    return onnxruntime


def _session(directory: Path) -> Any:
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = directory / "model.onnx"
    if not path.is_file():
        raise UsageError("no such file: model.onnx", where=str(directory))
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own exceptions share no base
        raise RunFailed(f"ONNX Runtime {runtime.__version__} does not load it: {error}", where=str(path)) from error


def _feeds(session: Any, x: Features, rows: slice) -> dict[str, np.ndarray]:
    feeds = {}
    for port in session.get_inputs():
        group = port.name.removesuffix("_count")
        if port.name in x.groups:
            feeds[port.name] = x.groups[port.name][rows]
        else:
            feeds[port.name] = x.counts[group][rows, None].astype(np.float32)
    return feeds


def load(directory: Path) -> Callable[[Features], np.ndarray]:
    """Raw float32 features -> logits `[n, n_outputs]`: int64 of an exact model, float32 otherwise."""
    session = _session(directory)
    exponents = json.loads(session.get_modelmeta().custom_metadata_map["hlt_train.logits_exponents"])

    def run(x: Features) -> np.ndarray:
        first = next(iter(x.groups.values()))
        step = max(1, ROWS // max(int(np.prod(array.shape[1:])) for array in x.groups.values()))
        parts = [session.run(["logits"], _feeds(session, x, slice(k, k + step)))[0] for k in range(0, max(len(first), 1), step)]
        logits: np.ndarray = np.concatenate(parts)
        if exponents is None:
            return logits
        integers = logits.astype(np.float64) * 2.0 ** np.array(exponents)
        whole = np.isfinite(integers) & (np.rint(integers) == integers)
        return np.where(whole, np.where(whole, integers, 0).astype(np.int64), NOT_INTEGER)

    return run


def latency(directory: Path, x: Features, *, calls: int = 2000) -> dict[str, Any]:
    """Batch-1 latency of `InferenceSession.run` from Python: each call timed alone, warm, then with 2 MiB touched between calls."""
    session = _session(directory)
    rows = len(next(iter(x.groups.values())))
    feeds = [_feeds(session, x, slice(k, k + 1)) for k in range(min(rows, 256))]
    other = np.zeros(1 << 18)

    def times(number: int, *, cold: bool) -> np.ndarray:
        found = np.empty(number)
        for k in range(number):
            if cold:
                np.add(other, 1, out=other)
            start = time.perf_counter_ns()
            session.run(None, feeds[k % len(feeds)])
            found[k] = time.perf_counter_ns() - start
        return found

    times(100, cold=False)
    warm, cold = times(calls, cold=False), times(max(calls // 10, 10), cold=True)
    return {
        "median_ns": float(np.median(warm)),
        "p99_ns": float(np.quantile(warm, 0.99)),
        "cold_p50_ns": float(np.median(cold)),
        "cold_p99_ns": float(np.quantile(cold, 0.99)),
        "calls": calls,
        "method": "single calls of InferenceSession.run from Python, batch 1, one thread",
        "runtime": f"onnxruntime {_runtime().__version__}",
    }
