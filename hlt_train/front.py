"""A front of students on disk: those than which no other is both cheaper and better, each a run directory that can be evaluated and exported.

While bits are learned, every point so far that is on the front lies under its step. At the end the front is thinned, numbered from the cheapest, and moved
to its place in one step; `front.json` (format `hlt-train/front`) is written last and says that it is complete.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hlt_train import checkpoints
from hlt_train.checkpoints import Snapshot
from hlt_train.data import normalise
from hlt_train.errors import RunFailed, UsageError
from hlt_train.files import read_document, write_document
from hlt_train.restore import ModelSpec, write_model
from hlt_train.run import Run
from hlt_train.types import Inputs

__all__ = ["FILE", "FOLDER", "Point", "check_not_a_point", "chosen", "drop_after", "pareto", "points_in", "publish", "read_front", "thinned", "write_point"]

FILE, FOLDER, POINT = "front.json", "front", "point.json"
FORMAT, POINT_FORMAT = "hlt-train/front", "hlt-train/front-point"


@dataclass(frozen=True)
class Point:
    """A student on the way.

    Attributes:
        step: of the training that it is from.
        beta: the weight of the relative cost at that step.
        cost: in the unit of the front.
        cross_entropy: golden, on validation rows.
        accuracy: likewise.
        bit_operations: whatever the unit of the front is.
        alive: weights that are not 0.
    """

    step: int
    beta: float
    cost: float
    cross_entropy: float
    accuracy: float
    bit_operations: int
    alive: int


def pareto(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in cost or loss without losing in the other, by rising cost; of equal ones the earliest."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, p.cross_entropy, p.step)):
        if not found or point.cross_entropy < found[-1].cross_entropy:
            found.append(point)
    return found


def thinned(front: Sequence[Point], keep: int, always: Point) -> list[Point]:
    """At most `keep` points (two at least): the ends, `always`, and others far apart in the logarithm of the cost."""
    kept = list(front)
    place = [math.log(max(point.cost, 1e-30)) for point in kept]
    while len(kept) > max(keep, 2):
        inner = [k for k in range(1, len(kept) - 1) if kept[k] != always]
        if not inner:
            break
        least = min(inner, key=lambda k: (place[k + 1] - place[k - 1], k))
        del kept[least], place[least]
    return kept


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


def write_point(folder: Path, point: Point, spec: ModelSpec, inputs: Inputs, params: Any, config: Mapping[str, Any]) -> None:
    """A run directory `folder/<step>` with this one checkpoint; it is in its place when it is complete."""
    place = folder / str(point.step)
    writing = place.with_name(f".{point.step}.writing")
    shutil.rmtree(writing, ignore_errors=True)
    shutil.rmtree(place, ignore_errors=True)
    with Run.create(writing) as run:
        normalise.save(run.path / "normalisation.json", inputs)
        write_model(run.path, spec)
        checkpoints.save(run.path, Snapshot(params, {}, {"step": point.step}))
        checkpoints.point(run.path, "LAST", point.step)
        checkpoints.point(run.path, "BEST", point.step)
        run.write_config(config)
        write_document(run.path / POINT, POINT_FORMAT, 1, asdict(point))
    writing.rename(place)


def points_in(folder: Path) -> list[Point]:
    """The points of a folder; what a killed process left half written is removed."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.isdecimal():
            found.append(_point(path))
        else:
            shutil.rmtree(path)
    return found


def _point(path: Path) -> Point:
    document = read_document(path / POINT, POINT_FORMAT, 1)
    return Point(**{name: document[name] for name in Point.__dataclass_fields__})


def drop_after(folder: Path, step: int) -> None:
    """Remove the points later than `step`: they come again."""
    for point in points_in(folder):
        if point.step > step:
            shutil.rmtree(folder / str(point.step))


def publish(folder: Path, run: Path, kept: Sequence[Point], best: Point, unit: str) -> list[Path]:
    """Copy the kept points of `folder` to `run/front/1`, ..., and write `front.json`. Returns their directories."""
    writing, place = run / f".{FOLDER}.writing", run / FOLDER
    for old in (writing, place):  # of a process that was killed before it wrote front.json
        shutil.rmtree(old, ignore_errors=True)
    for k, point in enumerate(kept, 1):
        shutil.copytree(folder / str(point.step), writing / str(k), ignore=shutil.ignore_patterns(".lock"))
    writing.rename(place)
    table = [{"point": k, **asdict(point)} for k, point in enumerate(kept, 1)]
    write_document(run / FILE, FORMAT, 1, {"unit": unit, "chosen": kept.index(best) + 1, "points": table})
    return [place / str(k) for k in range(1, len(kept) + 1)]


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
