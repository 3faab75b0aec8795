"""The end of a search: the chosen student exported and certified, its final figures on the test split, the table and the plot of the front."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hlt_train import files
from hlt_train.baselines import Sight, baselines
from hlt_train.budget import LIMITS, WORDS, Budget
from hlt_train.certify import CERTIFICATE
from hlt_train.comparison import figure_name, figures_at, request_of, teacher_on
from hlt_train.errors import RunFailed
from hlt_train.export import export
from hlt_train.progress import Progress
from hlt_train.report.front import Point, front, front_svg
from hlt_train.run import Run
from hlt_train.scorers import scorer
from hlt_train.scoring import score_split, setting_of
from hlt_train.search_record import Record
from hlt_train.study import Study
from hlt_train.trigger.views import view

__all__ = ["certify", "outcome"]

REPLICAS = 200
VECTORS = 100_000  # on which the export is compared


def outcome(base: Study, study: Study, budget: Budget, record: Record, run: Run, progress: Progress) -> dict[str, Any]:
    """What the command reports; `RUN/export` and the plots are made where they are not there yet.

    Args:
        base: of the search's card, which the teacher reads.
        study: of the chosen student's card.
        budget: with its limits.
        record: of the search.
        run: already the chosen student.
        progress: where to say how far it is.
    """
    chosen = record.content["chosen"]
    measured = record.content["measured"][str(chosen)]
    entry = record.candidate(chosen)
    assert entry is not None
    certificates = certify(run.path, budget, measured, entry["predicted"], progress)
    lines = reference_lines(base, progress, "validation")
    request = request_of(base.dataset.card)
    words = f"{figure_name(request)} at {request.text}, validation"
    plots = [str(_plot(record, budget, name, lines, words, run.path)) for name in budget.limits]
    final = _final(base, study, run.path, progress)
    student = {k: v for k, v in files.read_document(run.path / "student.json", "hlt-train/student", 1).items() if k not in ("format", "version")}
    told = {"chosen": chosen, "what": entry["what"], "costs": measured["costs"], "limits": budget.limits, "ratio": measured["ratio"], "plots": plots, **final}
    if "path" in measured:
        told["path"] = measured["path"]
    return {"run": str(run.path), "model": entry["model"]["name"], "export": certificates, **student, "search": {**told, "rows": table_rows(record)}}


def certify(run: Path, budget: Budget, measured: Mapping[str, Any], predicted: Mapping[str, float] | None, progress: Progress) -> dict[str, str]:
    """`RUN/export` with the budget in every certificate. Returns target -> directory.

    Raises:
        RunFailed: the exported header is not the one that was measured.
    """
    targets = [*(["cpp"] if budget.timed or not budget.logic else []), *(["alkaid"] if budget.logic else [])]
    out = run / "export"
    if not out.exists():
        export(run, targets, out, n_vectors=VECTORS, options={"alkaid": {"clock_ns": budget.clock_ns}} if budget.logic else None, progress=progress)
    for target in targets:
        if target == "cpp" and "header_sha256" in measured and files.sha256(out / "cpp" / "net.hpp") != measured["header_sha256"]:
            raise RunFailed("the exported header is not the one that was measured", where=str(out / "cpp" / "net.hpp"), then=f"remove {out} and resume")
        path = out / target / "certificate.json"
        content = {k: v for k, v in files.read_document(path, *CERTIFICATE).items() if k not in ("format", "version")}
        stated = {"limits": budget.limits, "measured": {k: v for k, v in measured.items() if k not in ("fits", "header_sha256")}, "met": measured["fits"]}
        files.write_document(path, *CERTIFICATE, {**content, "budget": {**stated, "predicted": None if predicted is None else dict(predicted)}})
    return {target: str(out / target) for target in targets}


def _final(base: Study, study: Study, run: Path, progress: Progress) -> dict[str, Any]:
    """The student at the working point on the test split, beside the teacher and the reference cut; their ratio is paired, event by event."""
    values, replicas, request = figures_at([scorer(run)], study, "test", progress, replicas=REPLICAS)
    found: dict[str, Any] = {
        "figure": figure_name(request),
        "request": request.text,
        "split": "test",
        "value": float(values[0]),
        "error": float(np.std(replicas[0], ddof=1)),
    }
    if (judge := teacher_on(base)) is not None:
        teacher, against, _ = figures_at([judge], base, "test", progress, replicas=REPLICAS)
        found["teacher"] = {"value": float(teacher[0]), "error": float(np.std(against[0], ddof=1))}
        if teacher[0] > 0 and (against[0] > 0).all():
            found["ratio_to_teacher"] = {"value": float(values[0] / teacher[0]), "error": float(np.std(replicas[0] / against[0], ddof=1))}
    reference = _reference(base, progress, "test")
    return found | ({} if reference is None else {"reference": reference})


def reference_lines(base: Study, progress: Progress, split: str) -> dict[str, float]:
    """Name -> figure on a split, of the teacher and of the card's reference cut."""
    found: dict[str, float] = {}
    if (judge := teacher_on(base)) is not None:
        found["teacher"] = float(figures_at([judge], base, split, progress, replicas=0)[0][0])
    reference = _reference(base, progress, split)
    return found if reference is None else {**found, "reference cut": reference["value"]}


def _reference(base: Study, progress: Progress, split: str) -> dict[str, Any] | None:
    """The reference cut at the same rate or mistag, thresholds from validation; None where the card has none, or the working point is an efficiency."""
    card = base.dataset.card
    request = request_of(card)
    if card.trigger is None or card.trigger.reference is None or request.kind == "eff":
        return None
    setting, sights = setting_of(card), []
    for part in ("validation", split):
        scored = score_split([], base.dataset, part, progress=progress)
        seen = view(setting, scored.truth, np.zeros(len(scored.keys)), events=setting.has_rates and (request.kind == "rate" or not setting.per_object))
        if len(seen.score) != len(scored.keys):
            return None  # events made of several rows: the cut is of rows
        sights.append(Sight(seen if request.kind == "rate" else seen._replace(hertz=None), scored.columns))
    for row in baselines(card, setting, [request], sights[0], sights[1]):
        if row["name"] == "reference cut":
            return {"value": row["efficiency"]["value"], "cut": row["cut"]}
    return None


def _plot(record: Record, budget: Budget, name: str, lines: Mapping[str, float], figure: str, run: Path) -> Path:
    """Efficiency against one cost, as SVG."""
    rungs = len(record.content["rungs"])
    points: list[Point] = []
    for one in record.trained:
        if one["figures"] and name in one["predicted"]:
            measured = record.content["measured"].get(str(one["number"]), {}).get("costs", {}).get(name)
            last = one["figures"][-1]
            points.append(
                Point(measured or one["predicted"][name], last["value"], last["error"], last["rung"] == rungs - 1, one["number"], measured is not None)
            )
    words = {"network": "time of a call", "path": "time per event, branch values to decision", **{k: WORDS[k] for k in LIMITS[2:]}}
    unit = 1.0 if name in LIMITS[2:] else 1e-3 if budget.limits[name] >= 1e4 else 1.0
    axis = words[name] + ("" if name in LIMITS[2:] else " [us]" if unit == 1e-3 else " [ns]")
    scaled = [point._replace(cost=point.cost * unit) for point in points]
    path = run / "search" / f"front_{name}.svg"
    files.write_text(path, front_svg(scaled, lines, budget.limits[name] * unit, record.content["chosen"], axis, figure))
    return path


def table_rows(record: Record) -> list[dict[str, Any]]:
    """The candidates that were trained, the longest trained and best first."""
    found = []
    limits = [name for name in LIMITS if record.content["budget"].get(name) is not None]
    for one in record.trained:
        if not one["figures"]:
            continue
        last, measured = one["figures"][-1], record.content["measured"].get(str(one["number"]), {})
        costs = {name: {"predicted": one["predicted"].get(name), "measured": measured.get("costs", {}).get(name)} for name in limits}
        row = {"number": one["number"], "what": one["what"], "steps": last["steps"], "value": last["value"], "error": last["error"], "costs": costs}
        found.append({**row, "fits": measured.get("fits"), "chosen": one["number"] == record.content["chosen"]})
    first = limits[0]
    points = [(row["costs"][first]["measured"] or row["costs"][first]["predicted"], row["value"]) for row in found]
    for row, on in zip(found, front(points), strict=True):
        row["front"] = on
    return sorted(found, key=lambda row: (-row["steps"], -row["value"], row["number"]))
