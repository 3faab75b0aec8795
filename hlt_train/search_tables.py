"""What the predictions of a search rest on, kept in its directory: a latency table, given or made first, and the surrogate of alkaid's estimate.

A table may come from another machine: the same seed and table give the same candidates anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from hlt_train.appraisal import Tables, code_path
from hlt_train.budget import Budget
from hlt_train.candidates import Candidates
from hlt_train.cost_tables import LOGIC, SMALL, latency, logic, small_model
from hlt_train.errors import UsageError
from hlt_train.graph import Graph
from hlt_train.progress import Progress
from hlt_train.run import Run
from hlt_train.search_space import Proposal, Space

__all__ = ["tables"]


def tables(budget: Budget, candidates: Candidates, space: Space, run: Run, progress: Progress) -> Tables:
    """Those of the search in `run`, made where they are not there yet."""
    folder = run.path / "search"
    folder.mkdir(exist_ok=True)
    isa = found = surrogate = None
    if budget.timed:
        isa = code_path(budget.isa)
        found = latency(budget.latency_table, folder, isa, run, progress)
    if budget.logic:
        surrogate = logic(folder, budget.clock_ns, lambda: _small(candidates, space), progress)
        if surrogate["clock_ns"] != budget.clock_ns:
            raise UsageError(f"it is of a clock of {surrogate['clock_ns']:g} ns, the budget's is {budget.clock_ns:g} ns", where=str(folder / LOGIC))
    return Tables(isa, found, surrogate)


def _small(candidates: Candidates, space: Space) -> Sequence[Graph]:
    """Small networks of the card's inputs, read in the shortest collections that the space has."""
    lengths = {name: choices[0] for name, choices in space.lengths.items()}
    found = []
    for k, (widths, bits) in enumerate(SMALL):
        family = space.families[k % len(space.families)]
        formats = {"weights": f"fixed<{bits},auto>", "activations": f"ufixed<{bits},auto>", "inputs": space.inputs[0], "layers": dict[str, dict[str, str]]()}
        found.append(candidates.graph(Proposal({"name": family, **small_model(family, widths)}, formats, {}, lengths))[0])
    return found
