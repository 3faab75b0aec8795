"""A front of students on disk: those than which no other is both cheaper and better, each a run directory that can be evaluated and exported.

Points are numbered from the cheapest and moved to their place in one step; `front.json` (format `hlt-train/front`) is written last and says that the front is
complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hlt_train import checkpoints
from hlt_train.checkpoints import Snapshot
from hlt_train.data import normalise
from hlt_train.errors import RunFailed, UsageError
from hlt_train.files import read_document, write_document, write_text
from hlt_train.report import front as report
from hlt_train.restore import ModelSpec, write_model
from hlt_train.run import Run
from hlt_train.types import Inputs
from hlt_train.width_candidates import Candidate

__all__ = ["FILE", "FOLDER", "PLOT", "Judged", "Point", "check_not_a_point", "chosen", "publish", "read_front"]

FILE, FOLDER, PLOT, POINT = "front.json", "front", "front.svg", "point.json"
FORMAT, POINT_FORMAT = "hlt-train/front", "hlt-train/front-point"


@dataclass(frozen=True)
class Point(Candidate):
    """A student of the front; its cross-entropy is golden.

    Attributes:
        accuracy: likewise.
        bit_operations: whatever the unit of the front is.
        alive: weights that are not 0.
    """

    accuracy: float
    bit_operations: int
    alive: int


def chosen(front: Sequence[Point], budget: float | None) -> Point:
    """The point with the least loss among those within the budget.

    Raises:
        RunFailed: none is.
    """
    within = [point for point in front if budget is None or point.cost <= budget]
    if not within:
        cheapest = min(point.cost for point in front)
        raise RunFailed(
            f"no point of the front costs at most {budget:g}; the cheapest costs {cheapest:g}",
            where="widths.budget",
            then="a new --run with a larger --set widths.budget, or a larger second number of widths.beta",
        )
    return min(within, key=lambda point: (point.cross_entropy, point.cost))


class Judged(NamedTuple):
    """A point with what makes it a run: the description of its network and its float weights."""

    point: Point
    spec: ModelSpec
    weights: Any


def publish(run: Path, kept: Sequence[Judged], best: Point, unit: str, inputs: Inputs, config: Mapping[str, Any], budget: float | None = None) -> list[Path]:
    """Write the points as `run/front/1`, ..., run directories with one checkpoint, a plot with the budget, and then `front.json`. Returns the directories."""
    writing, place = run / f".{FOLDER}.writing", run / FOLDER
    for old in (writing, place):  # of a process that was killed before it wrote front.json
        shutil.rmtree(old, ignore_errors=True)
    for k, judged in enumerate(kept, 1):
        _write_point(writing / str(k), judged, inputs, config)
    writing.rename(place)
    chosen_one = [judged.point for judged in kept].index(best) + 1
    plotted = [report.Point(judged.point.cost, judged.point.accuracy, 0.0, True, k, unit == "bit_operations") for k, judged in enumerate(kept, 1)]
    write_text(run / PLOT, report.front_svg(plotted, {}, budget, chosen_one, unit.replace("_", " "), "accuracy, validation", key=False))
    table = [{"point": k, **asdict(judged.point)} for k, judged in enumerate(kept, 1)]
    write_document(run / FILE, FORMAT, 1, {"unit": unit, "chosen": chosen_one, "points": table})
    return [place / str(k) for k in range(1, len(kept) + 1)]


def _write_point(place: Path, judged: Judged, inputs: Inputs, config: Mapping[str, Any]) -> None:
    step = judged.point.step
    with Run.create(place) as run:
        normalise.save(run.path / "normalisation.json", inputs)
        write_model(run.path, judged.spec)
        checkpoints.save(run.path, Snapshot(judged.weights, {}, {"step": step}))
        checkpoints.point(run.path, "LAST", step)
        checkpoints.point(run.path, "BEST", step)
        run.write_config(config)
        write_document(run.path / POINT, POINT_FORMAT, 1, asdict(judged.point))
    (place / ".lock").unlink()


def read_front(run: Path) -> dict[str, Any] | None:
    """`front.json`; None where the bits have not been learned (to the end)."""
    if not (run / FILE).is_file():
        return None
    return {key: value for key, value in read_document(run / FILE, FORMAT, 1).items() if key not in ("format", "version")}


def check_not_a_point(path: Path) -> None:
    """Refuse to go on with a point of a front: it is finished."""
    if (path / POINT).is_file():
        then = f"hlt-train export {path}, or a new student: hlt-train distil TEACHER_RUN --run DIR"
        raise UsageError("a point of a front is finished and cannot be resumed", where=str(path), then=then)
