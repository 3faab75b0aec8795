"""What running an artefact from Python takes in every target: one event at a time, the time of a call, and outputs that should be integers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hlt_train.types import Features

__all__ = ["NOT_INTEGER", "TIMED", "singly", "timed", "whole"]

TIMED = 256  # distinct events of a measurement
NOT_INTEGER = np.iinfo(np.int64).min  # where an output that should be an integer is none


def whole(values: np.ndarray) -> np.ndarray:
    """Float64 -> int64; what is no integer becomes one that nothing equals."""
    integer = np.isfinite(values) & (np.rint(values) == values)
    return np.where(integer, np.where(integer, values, 0).astype(np.int64), NOT_INTEGER)


def singly(x: Features) -> list[Features]:
    """The first `TIMED` events, each as features of one row."""
    rows = range(min(len(next(iter(x.groups.values()))), TIMED))
    return [x.take(slice(i, i + 1)) for i in rows]


def timed(call: Callable[[Any], Any], events: Sequence[Any], calls: int) -> dict[str, Any]:
    """Nanoseconds of `call` on one event after the other: each call timed alone, warm, then with 2 MiB touched between calls."""
    other = np.zeros(1 << 18)

    def times(number: int, *, cold: bool) -> np.ndarray:
        found = np.empty(number)
        for k in range(number):
            if cold:
                np.add(other, 1, out=other)
            event = events[k % len(events)]
            start = time.perf_counter_ns()
            call(event)
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
