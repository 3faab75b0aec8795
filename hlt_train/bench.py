"""`bench`: the latency of an export measured again on this machine, beside what its certificate says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hlt_train.artefact import open_export
from hlt_train.golden import CATEGORIES, Golden, read_golden
from hlt_train.machine import machine
from hlt_train.progress import Progress
from hlt_train.types import Features

__all__ = ["FIGURES", "bench"]

FIGURES = ("median_ns", "p99_ns", "cold_p50_ns")
KINDS = ("data", "random")  # vectors to time on: those of real events where there are any


def bench(path: Path, *, trust: bool = False, progress: Progress) -> dict[str, Any]:
    """Time the artefact of an export, at batch 1.

    Args:
        path: one target's directory.
        trust: run it as it is, whoever wrote its code.
        progress: where to say how far it is.

    Returns:
        `certified` and `now`: what `Exporter.latency` gave then and gives here; `ratio` of each figure, now over then; `machine` then and now.
    """
    artefact = open_export(path, trust=trust)
    progress(f"{artefact.path}: timing")
    now, then = artefact.latency(_events(read_golden(artefact.path))), artefact.certificate["latency"]
    return {
        "export": str(artefact.path),
        "target": artefact.target,
        "certified": then,
        "now": now,
        "ratio": {name: now[name] / then[name] for name in FIGURES if then.get(name) and now.get(name)},
        "machine": {"certified": artefact.certificate["machine"], "now": machine()},
    }


def _events(golden: Golden) -> Features:
    """The vectors that look most like events."""
    for kind in KINDS:
        rows = np.flatnonzero(golden.category == CATEGORIES.index(kind))
        if len(rows):
            break
    return golden.x.take(rows)
