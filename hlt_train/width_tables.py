"""The cost that bits are learned for, with the tables that it rests on: kept in the run, given or made once, so that a resumed run has the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hlt_train import latency_table, lut_surrogate, width_costs
from hlt_train.appraisal import code_path, events_of, mean_counts
from hlt_train.budget import Budget
from hlt_train.cost_tables import SMALL, latency, logic, small_model
from hlt_train.errors import UsageError
from hlt_train.graph import Graph
from hlt_train.progress import Progress
from hlt_train.restore import ModelSpec
from hlt_train.run import Run
from hlt_train.search_space import FAMILIES
from hlt_train.specimen import specimen
from hlt_train.study import Study
from hlt_train.types import Inputs
from hlt_train.width_config import Widths
from hlt_train.width_costs import Cost

__all__ = ["check_cost", "cost_of"]

SHORT = 2  # constituents of the networks that alkaid traces: its time grows fast with them


def check_cost(section: Widths, model: str, inputs: Inputs) -> None:
    """Refuse, before a run is begun, a cost that this machine or this network cannot have.

    Raises:
        UsageError: a latency table that is none or knows nothing of the code path, no compiler, no alkaid, a model of which no small ones are known.
    """
    if section.cost == "cpu":
        isa = code_path(section.isa)
        if section.latency_table is not None:
            table = latency_table.read_table(Path(section.latency_table))
            latency_table.check_path(table, isa, where="widths.latency_table", then="--set widths.isa=PATH")
    elif section.cost == "luts":
        if model not in FAMILIES:
            raise UsageError(f"LUTs of a '{model}' are not predicted", where="widths.cost", near=FAMILIES, then="--set widths.cost=bit_operations")
        lut_surrogate.estimate_logic(_small(model, SMALL[0][0], SMALL[0][1], inputs), 5.0)


def cost_of(study: Study, run: Run, graph: Graph, progress: Progress) -> Cost:
    """The cost that `widths` asks for.

    Args:
        study: what is learnt.
        run: of the student, which keeps the tables.
        graph: the network with the bits that it begins with, dead units included.
        progress: where to say what is measured.
    """
    section = study.config.widths
    assert section is not None
    if section.cost == "bit_operations":
        return width_costs.bit_operations()
    if section.cost == "luts":
        clock = Budget.model_fields["clock_ns"].default if study.config.budget is None else study.config.budget.clock_ns
        small = lambda: [_small(study.spec.name, widths, bits, study.inputs) for widths, bits in SMALL]  # noqa: E731
        return width_costs.luts(graph, logic(run.path, clock, small, progress))
    isa = code_path(section.isa)
    table = latency(section.latency_table, run.path, isa, run, progress)
    return width_costs.cpu(graph, table, isa, mean_counts(events_of(study.dataset, "train"), study.inputs))


def _small(model: str, widths: tuple[int, ...], bits: int, inputs: Inputs) -> Graph:
    """A small network of the same inputs, of which only the first constituents are read."""
    groups = tuple(group if group.length is None else replace(group, length=min(group.length, SHORT)) for group in inputs.groups)
    formats = {"weights": f"fixed<{bits},auto>", "activations": f"ufixed<{bits},auto>"}
    spec = ModelSpec.of({"name": model, **small_model(model, widths), "precision": formats}, ("a", "b", "c"))
    return specimen(spec, replace(inputs, groups=groups))
