"""A first card for a file: valid, and to be edited. What the file cannot say (signal, background, rates) is marked `EDIT`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hlt_train.errors import UsageError

__all__ = ["draft"]

_NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
_IDENTITY = ("run", "luminosityBlock", "event")
_LABELS = ("label", "target", "truth", "class", "y")
_TRUTH = ("Gen", "gen", "LHE", "HTXS", "PSWeight", "SubGen", "Pileup", "btagWeight", "L1PreFiring")  # simulation's truth and weights, as NanoAOD names them
_MOST_SCALARS, _MOST_FIELDS, _LONGEST = 16, 8, 64


def draft(facts: Mapping[str, Any]) -> str:
    """The card as YAML, from what `survey` found.

    Raises:
        UsageError: the choice of the tree is open, or no branch could be an input.
    """
    if facts["tree"] is None:
        names = [tree["name"] for tree in facts["trees"]]
        raise UsageError(
            "the choice of the tree is open", where=str(facts["file"]), near=names[:8], then=f"hlt-train inspect {facts['file']} --tree {names[0]} --draft"
        )
    path = Path(str(facts["file"]))
    branches = [b for b in facts["branches"] if _NAME.fullmatch(b["name"]) and b["dtype"] is not None]
    identity = _identity(branches)
    label = next((b for b in branches if b["name"] in _LABELS and b["depth"] == 0 and b.get("min") == 0 and 1 <= b.get("max", 0) <= 50), None)
    available = _available(facts)
    card: dict[str, Any] = {"format": "hlt-train/card", "version": 1, "name": re.sub(r"\W+", "_", path.stem), "tree": facts["tree"]}
    card |= {"example": "event", "identity": identity}
    files = [str(path.resolve())]
    if label is None:
        card["samples"] = {"signal": {"files": files}, "background": {"files": []}}
        card["labels"] = {"classes": ["background", "signal"], "by": "sample"}
    else:
        card["samples"] = {"all": {"files": files}}
        card["labels"] = {"classes": [f"class_{k}" for k in range(int(label["max"]) + 1)], "expression": label["name"]}
    card["inputs"] = _inputs(branches, {*identity, label["name"] if label else "", "weight", "genWeight"}, available)
    card["nan"] = 0.0 if any(b.get("nan") or b.get("inf") for b in branches) else "refuse"
    card["splits"] = {"by": "hash", "fractions": {"train": 0.6, "validation": 0.1, "test": 0.3}}
    note = [
        f"# Drafted by hlt-train inspect --draft from {path.name}, tree {facts['tree']}, {facts['inspected_entries']} entries looked at.",
        "# EDIT: keep the inputs that the trigger has when the network runs; constant branches and integers were left out.",
        "# EDIT: " + ("name the classes." if label else "give the other sample its files, or list further samples and classes."),
    ]
    if not set(identity) & set(_IDENTITY):
        note.append("# EDIT: 'identity' is a guess; entries that share it share their split, and count as duplicates.")
    return "\n".join(note) + "\n" + yaml.safe_dump(card, sort_keys=False, width=150, default_flow_style=None)


def _identity(branches: list[dict[str, Any]]) -> list[str]:
    scalars = {b["name"]: b for b in branches if b["depth"] == 0 and b["dtype"].startswith(("int", "uint"))}
    found = [name for name in _IDENTITY if name in scalars]
    if found:
        return found
    named = [name for name in scalars if "event" in name.lower()]
    widest = sorted(scalars, key=lambda name: scalars[name].get("min", 0) - scalars[name].get("max", 0))
    if named or widest:
        return (named or widest)[:1]
    raise UsageError("no integer branch could identify an entry", then="write a card by hand: 'identity' takes any expression")


def _available(facts: Mapping[str, Any]) -> str:
    """NanoAOD holds offline objects, unless they are scouting's; a file that does not look like NanoAOD is taken at its word."""
    names = {b["name"] for b in facts["branches"]}
    scouting = any(name.startswith("Scouting") for name in names)
    nano = facts["tree"] == "Events" and facts["origin"] is None and {"run", "luminosityBlock", "event"} <= names
    return "offline" if nano and not scouting else "online"


def _inputs(branches: list[dict[str, Any]], used: set[str], available: str) -> dict[str, Any]:
    floats = [b for b in branches if b["dtype"].startswith("float") and "min" in b and not b["constant"]]
    usable = [b for b in floats if b["name"] not in used and not b["name"].startswith(_TRUTH)]
    scalars = [b["name"] for b in usable if b["depth"] == 0][:_MOST_SCALARS]
    inputs: dict[str, Any] = {"scalars": {"available": available, "vars": scalars}} if scalars else {}
    collections: dict[str, list[dict[str, Any]]] = {}
    for branch in usable:
        if branch["depth"] == 1:
            collections.setdefault(re.split(r"[_.]", branch["name"])[0], []).append(branch)
    for name, members in collections.items():
        alike = [b for b in members if b["multiplicity"] == members[0]["multiplicity"]][:_MOST_FIELDS]
        length = min(_LONGEST, max(1, round(alike[0]["multiplicity"]["p90"])))
        inputs[name if name != "scalars" else "lists"] = {"length": length, "available": available, "vars": [b["name"] for b in alike]}
    if not inputs:
        raise UsageError("no branch of the tree could be an input: none is a varying floating-point number", then="write a card by hand")
    return inputs
