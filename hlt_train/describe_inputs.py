"""`features.json`: every input of a network in words that a framework's producer can be written from: expression, source branches, and every constant."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hlt_train.data.card import Card
from hlt_train.data.expressions import parse
from hlt_train.data.program import Program
from hlt_train.graph import Graph, Input
from hlt_train.structure import scaled
from hlt_train.types import Group, Inputs

__all__ = ["FORMAT", "VERSION", "features_document"]

FORMAT, VERSION = "hlt-train/features", 2  # 2: with the program of the derived variables


def features_document(graph: Graph, inputs: Inputs, card: Card, program: Program) -> dict[str, Any]:
    """The content of features.json: the groups in the order of the graph's inputs, and the steps from branch values to them (`data.program`).

    Float32 constants are the shortest decimals that read back to their bits.

    Args:
        graph: the network.
        inputs: what it reads.
        card: where the variables are defined.
        program: the steps from branch values to the variables.
    """
    groups = []
    for node in graph.inputs:
        group = inputs[node.group]
        f = graph.structure[node.name].f
        integers = _integers(node, f) if isinstance(node, Input) and f is not None else [{} for _ in group.variables]
        variables = [{**_variable(group, k, card), **integers[k]} for k in range(len(group.variables))]
        groups.append({"name": group.name, "length": group.length, "available": group.available, "variables": variables})
    return {
        "classes": list(inputs.classes),
        "outputs": list(graph.output.names),
        "input_step": "t = fl32(fl32(x - centre) * factor), NaN -> nan, clamp to [lo, hi], round half to even; factor = scale * 2**f"
        if graph.exact
        else "z = clip(fl32(fl32(x - centre) * scale), lo, hi), NaN -> nan",
        "selection": card.selection,
        "object_selection": card.object_selection,
        "groups": groups,
        "program": program.document(),
    }


def _branches(name: str, card: Card, seen: frozenset[str] = frozenset()) -> set[str]:
    """The branches that a variable is computed from, through the card's new variables."""
    if name in seen:
        return set()
    text = card.new_variables.get(name, name)
    found: set[str] = set()
    for part in parse(text).names:
        found |= _branches(part, card, seen | {name}) if part in card.new_variables and part != name else {part}
    return found


def _number(value: np.floating[Any]) -> float | str:
    return float(value) if math.isfinite(value) else str(float(value))


def _variable(group: Group, k: int, card: Card) -> dict[str, Any]:
    name = group.variables[k]
    stated = card.inputs[group.name].vars.get(name) if group.name in card.inputs else None
    return {
        "name": name,
        "expression": card.new_variables.get(name, name),
        "branches": sorted(_branches(name, card)),
        "centre": _number(group.centre[k]),
        "scale": _number(group.scale[k]),
        "clip": [_number(group.lo[k]), _number(group.hi[k])],
        "nan": _number(group.nan[k]),
        "pad": stated.pad if stated is not None else 0.0,
    }


def _integers(node: Input, f: np.ndarray) -> list[dict[str, Any]]:
    """The same in integers of the first grid."""
    factor = scaled(node.scale, f)
    return [
        {"integer": {"f": int(f[k]), "factor": float(factor[k]), "lo": int(node.lo[k]), "hi": int(node.hi[k]), "nan": int(node.nan[k])}}
        for k in range(len(node.variables))
    ]
