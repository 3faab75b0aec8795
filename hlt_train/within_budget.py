"""One student under a budget: what it would cost is measured before it is trained, on made-up weights, and what it costs when it is there."""

from __future__ import annotations

from typing import Any

from hlt_train.appraisal import code_path, measure, measure_graph, refuse_missing
from hlt_train.budget import Budget
from hlt_train.errors import BudgetNotMet
from hlt_train.files import write_document
from hlt_train.progress import Progress
from hlt_train.restore import load_run
from hlt_train.run import Run
from hlt_train.search_outcome import certify
from hlt_train.specimen import specimen
from hlt_train.study import Study

__all__ = ["foreseen", "settled"]

FORMAT, FILE = ("hlt-train/budget", 1), "budget.json"
GUESSED = ("luts", "cycles", "bits")  # they depend on the weights: what made-up ones give is said, and decides nothing


def foreseen(study: Study, progress: Progress) -> None:
    """Refuse a student that is over budget whatever it learns: its header is compiled with made-up weights, and timed.

    Raises:
        BudgetNotMet: a time or the multiplications exceed their limit.
    """
    budget = study.config.budget
    assert budget is not None
    refuse_missing(budget)
    isa = code_path(budget.isa) if budget.timed else None
    found = measure_graph(budget, isa, specimen(study.spec, study.inputs), study.inputs, {"points": []}, study.dataset)["costs"]
    progress(f"with made-up weights: {budget.told(found)}")
    fixed = {name: value for name, value in found.items() if name not in GUESSED}
    if not budget.fits(fixed):
        raise _over(budget, fixed, "before it is trained", "a smaller --model, or --trials N without --model to search for one")
    for name in GUESSED:
        if name in found and found[name] > budget.limits[name]:
            progress(f"warning: made-up weights need {found[name] / budget.limits[name]:.2f} of the limit of {name}; those that are learnt decide")


def settled(study: Study, run: Run, result: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Measure the trained student, export and certify it. Returns `result` with the budget.

    Raises:
        BudgetNotMet: it is over budget; the run stays, without an export.
    """
    budget = study.config.budget
    assert budget is not None
    isa = code_path(budget.isa) if budget.timed else None
    found = measure(budget, isa, load_run(run.path), study.dataset)
    found["fits"] = budget.fits(found["costs"])
    write_document(run.path / FILE, *FORMAT, {"limits": budget.limits, **found})
    if not found["fits"]:
        raise _over(budget, found["costs"], f"as trained in {run.path}", "a smaller --model, or --trials N without --model to search for one")
    certificates = certify(run.path, budget, found, None, progress)
    told = {"limits": budget.limits, "costs": found["costs"], **({"path": found["path"]} if "path" in found else {})}
    return {**result, "export": certificates, "budget": told}


def _over(budget: Budget, costs: dict[str, float], when: str, then: str) -> BudgetNotMet:
    name, ratio = budget.worst(costs)
    return BudgetNotMet(f"the student is over budget {when}: {budget.told(costs)}", where=f"{name}: {ratio:.2f} of the limit", then=then)
