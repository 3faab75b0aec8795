"""What the predictions of a search rest on, kept in its directory: a latency table, given or made first, and the surrogate of alkaid's estimate.

A table may come from another machine: the same seed and table give the same candidates anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hlt_train import latency_table, lut_surrogate
from hlt_train.appraisal import Tables, code_path
from hlt_train.budget import Budget
from hlt_train.candidates import Candidates
from hlt_train.cost_tables import HELD_OUT, LOGIC, SMALL, latency, small_model
from hlt_train.errors import UsageError, nearest
from hlt_train.files import read_document, write_document
from hlt_train.graph import Graph
from hlt_train.progress import Progress
from hlt_train.run import Run
from hlt_train.search_space import Proposal, Space

__all__ = ["check_table", "tables"]


def check_table(budget: Budget) -> None:
    """Refuse, before anything is opened, a latency table that is none or knows nothing of the code path."""
    if budget.latency_table is not None:
        table = latency_table.read_table(Path(budget.latency_table))
        if budget.isa is not None and budget.isa not in table["paths"]:
            near = nearest(budget.isa, table["paths"]) or tuple(table["paths"])
            raise UsageError(
                f"the latency table has no path '{budget.isa}'", where=budget.latency_table, near=near, then="leave --latency-table out to make one"
            )


def tables(budget: Budget, candidates: Candidates, space: Space, run: Run, progress: Progress) -> Tables:
    """Those of the search in `run`, made where they are not there yet."""
    folder = run.path / "search"
    folder.mkdir(exist_ok=True)
    isa = found = logic = None
    if budget.timed:
        isa = code_path(budget.isa)
        found = latency(budget.latency_table, folder, isa, run, progress)
    if budget.logic:
        logic = _logic(budget, folder, candidates, space, progress)
    return Tables(isa, found, logic)


def _logic(budget: Budget, folder: Path, candidates: Candidates, space: Space, progress: Progress) -> dict[str, Any]:
    path = folder / LOGIC
    if not path.is_file():
        graphs = list(_small(candidates, space))
        progress(f"alkaid traces {len(graphs)} small networks, to predict others")
        write_document(path, *lut_surrogate.FORMAT, lut_surrogate.fit(graphs, budget.clock_ns, HELD_OUT))
    found = read_document(path, *lut_surrogate.FORMAT)
    if found["clock_ns"] != budget.clock_ns:
        raise UsageError(f"it is of a clock of {found['clock_ns']:g} ns, the budget's is {budget.clock_ns:g} ns", where=str(path))
    return found


def _small(candidates: Candidates, space: Space) -> Sequence[Graph]:
    """Small networks of the card's inputs, read in the shortest collections that the space has."""
    lengths = {name: choices[0] for name, choices in space.lengths.items()}
    found = []
    for k, (widths, bits) in enumerate(SMALL):
        family = space.families[k % len(space.families)]
        formats = {"weights": f"fixed<{bits},auto>", "activations": f"ufixed<{bits},auto>", "inputs": space.inputs[0], "layers": dict[str, dict[str, str]]()}
        found.append(candidates.graph(Proposal({"name": family, **small_model(family, widths)}, formats, {}, lengths))[0])
    return found
