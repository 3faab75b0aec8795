"""What a student costs, twice: predicted before it is trained, from tables alone, and measured when it is there, as `docs/budget.md` defines it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hlt_train import files, latency_table, lut_surrogate, plugins
from hlt_train.budget import Budget, share
from hlt_train.certify import POINTS
from hlt_train.clocks import check_path, network_time, path_time
from hlt_train.cost import cost
from hlt_train.data.dataset import Dataset, evenly
from hlt_train.data.program import compile_program
from hlt_train.describe_inputs import FORMAT, VERSION, features_document
from hlt_train.errors import UsageError
from hlt_train.exporters._alkaid_trace import library
from hlt_train.feature_vectors import feature_vectors, kinds_of
from hlt_train.graph import Graph
from hlt_train.latency_table import tiny
from hlt_train.restore import Loaded, lowered
from hlt_train.trigger import working_points
from hlt_train.types import Features, Inputs

__all__ = ["Tables", "code_path", "events_of", "measure", "predict", "refuse_missing"]

EVENTS = 1000
TRIGGER_MS = 300.0  # what an event of the High-Level Trigger may take on average, which the share of a path is a share of


class Tables(NamedTuple):
    """What predictions rest on. latency: of `bench --calibrate`; logic: of `lut_surrogate.fit`; isa: code path. None where the budget does not ask."""

    isa: str | None
    latency: Mapping[str, Any] | None
    logic: Mapping[str, Any] | None


def refuse_missing(budget: Budget) -> None:
    """Refuse a budget that could not be measured in the end: no alkaid."""
    if budget.logic:
        library()


def code_path(wanted: str | None) -> str:
    """The code path that times are of: the one asked for, if this processor has it, or the one that it takes. Compiles a tiny header."""
    with tempfile.TemporaryDirectory(prefix="hlt-train-") as folder:
        plugins.factory("exporters", "cpp")().write(tiny(), Path(folder))
        return check_path(Path(folder), wanted)


def predict(budget: Budget, tables: Tables, graph: Graph, counts: Mapping[str, float]) -> dict[str, float]:
    """Limit -> predicted cost. Of the path it is the network's part, which no derived variable makes shorter.

    Args:
        budget: whose limits are asked for.
        tables: what predictions rest on.
        graph: trained, or a `specimen`.
        counts: group -> mean number of constituents of an event.
    """
    found: dict[str, float] = {}
    if tables.latency is not None and tables.isa is not None:
        time = latency_table.predict(tables.latency, graph, tables.isa, counts)
        found |= {"network": time, "path": time}
    if tables.logic is not None:
        found |= lut_surrogate.predict(tables.logic, graph)
    if budget.macs is not None or budget.bits is not None:
        costs = cost(graph)
        found |= {"macs": float(costs["macs"]), "bits": float(costs["bit_operations"])}
    return {name: found[name] for name in budget.limits}


def events_of(dataset: Dataset, split: str = "validation") -> Features:
    """Raw features of about 1,000 rows, spread over a split."""
    if not dataset.size(split):
        raise UsageError(f"the {split} split has no rows, and a time is measured on its events", where=f"card '{dataset.card.name}', splits")
    rows = dataset.spread(split, 8)
    return rows.x.take(evenly(len(rows), EVENTS))


def mean_counts(x: Features, inputs: Inputs) -> dict[str, float]:
    """Group -> mean number of constituents that are read."""
    return {g.name: float(np.minimum(x.counts[g.name], g.length).mean()) for g in inputs.groups if g.length is not None}


def measure(budget: Budget, isa: str | None, loaded: Loaded, dataset: Dataset) -> dict[str, Any]:
    """`costs` (limit -> measured) of a student in a run, and beside it how each was measured."""
    graph = lowered(loaded)
    points = working_points.read(loaded.path / working_points.FILE) if (loaded.path / working_points.FILE).is_file() else {"points": []}
    return measure_graph(budget, isa, graph, loaded.inputs, points, dataset)


def measure_graph(budget: Budget, isa: str | None, graph: Graph, inputs: Inputs, points: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    """As `measure`, of a graph: of one with made-up weights too. points: content of working_points.json."""
    costs: dict[str, float] = {}
    found: dict[str, Any] = {"costs": costs}
    if budget.timed:
        assert isa is not None
        with tempfile.TemporaryDirectory(prefix="hlt-train-") as scratch:
            folder = Path(scratch)
            exporter = plugins.factory("exporters", "cpp")()
            exporter.write(graph, folder)
            files.write_document(folder / "working_points.json", *POINTS, {"points": points["points"]})
            if budget.path is not None:
                found["path"] = _path(budget, isa, folder, graph, inputs, dataset)
                costs["path"] = float(found["path"]["median_ns"])
            if budget.network is not None:
                found["network"] = network_time(folder, graph, events_of(dataset), isa)
                costs["network"] = float(found["network"]["median_ns"])
            found["header_sha256"] = files.sha256(folder / "net.hpp")
    if budget.logic:
        found["logic"] = lut_surrogate.estimate_logic(graph, budget.clock_ns)
        costs |= {"luts": found["logic"]["luts"], "cycles": found["logic"]["cycles"]}
    counted = cost(graph)
    costs |= {"macs": float(counted["macs"]), "bits": float(counted["bit_operations"])}
    found["costs"] = {name: costs[name] for name in budget.limits}
    return found


def _path(budget: Budget, isa: str, folder: Path, graph: Graph, inputs: Inputs, dataset: Dataset) -> dict[str, Any]:
    """The path from branch values to decision, of the events that a rate is made of."""
    card = dataset.card
    wanted = {name for node in graph.inputs for name in node.variables}
    rated = list(card.trigger.rate) if card.trigger is not None and card.trigger.rate else None
    columns = dataset.branch_values("validation", wanted, EVENTS, rated)
    program = compile_program(card, [(node.group, node.length, node.variables) for node in graph.inputs], kinds_of(columns))
    if not program.derives:
        why = "; ".join(f"{name}: {reason}" for name, reason in program.given.items())
        raise UsageError(f"the path cannot be timed: no variable has a form in features.hpp ({why})", where="--budget-path", then="--budget-network")
    files.write_document(folder / "features.json", FORMAT, VERSION, features_document(graph, inputs, card, program))
    plugins.factory("exporters", "cpp")().complete(folder)
    steps = ["branch values gathered", "derived variables", "sorting, cutting to length", "input step", "network", "score", "threshold"]
    timed = path_time(folder, feature_vectors(card, program, columns, special=0), isa, steps)
    selections = {"selection": card.selection, "object_selection": card.object_selection}
    selections |= {f"samples.{name}.selection": sample.selection for name, sample in card.samples.items() if rated is None or name in rated}
    told: dict[str, Any] = {**timed, "samples": rated or list(card.samples), "per": "event" if card.example == "event" else "object"}
    told["not_timed"] = {"selections": {k: v for k, v in selections.items() if v is not None}, "given_by_the_caller": dict(program.given)}
    if budget.reached is not None:
        fraction = share(budget.reached)
        told |= {"reached": budget.reached, "mean_ms_per_input_event": timed["mean_ns"] * fraction / 1e6}
        told["share_of_300_ms"] = timed["mean_ns"] * fraction / 1e6 / TRIGGER_MS
    return told
