"""A run that tried several students becomes the chosen one."""

from __future__ import annotations

import shutil
from pathlib import Path

from hlt_train.distil import STUDENT
from hlt_train.files import write_bytes

__all__ = ["adopt"]

NAMES = ("model.json", "normalisation.json", "metrics.jsonl", "working_points.json", "LAST", "BEST", STUDENT)  # student.json last: it marks a finished student


def adopt(run: Path, student: Path) -> None:
    """Make `run` that student: its network, inputs, checkpoints, metrics and working points."""
    (run / STUDENT).unlink(missing_ok=True)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    names = [p.relative_to(student) for p in sorted((student / "checkpoints").rglob("*")) if p.is_file()]
    for name in [*names, *(Path(name) for name in NAMES if (student / name).is_file())]:
        write_bytes(run / name, (student / name).read_bytes())
