"""Does the network in this directory still compute what it was exported for, with the tools of this machine?

    python selftest.py [--json]

The artefact starts at the integers of the input step. This script computes that step from graph.json, hands the integers to the artefact (run.py), and compares
integer logits, the integer score and the decision at every working point of working_points.json with golden.bin; then the hashes of the files with
certificate.json. Exit code 0: all equal; 1: something differs. Needs Python, numpy, and what run.py names.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from hlt_train.exporters.templates.selftest_files import HERE, counted, differences, read_golden, read_json, report


def array_of(content: dict[str, Any] | int) -> np.ndarray:
    """An array of graph.json."""
    return np.array(content) if isinstance(content, int) else np.array(content["data"], content["dtype"]).reshape(content["shape"])


def input_step(node: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """Integers of float32 x: t = fl32(fl32(x - centre) * fl32(scale * 2**f)), clamped, rounded half to even; NaN gives the declared integer."""
    centre, scale, lo, hi, nan = (array_of(node[name]) for name in ("centre", "scale", "lo", "hi", "nan"))
    factor = np.ldexp(scale.astype(np.float64), array_of(node["quant"]["to"]["f"]).astype(np.int32)).astype(np.float32)
    missing = np.isnan(x)
    with np.errstate(over="ignore", invalid="ignore"):
        t = (x - centre) * factor
    t = np.clip(np.where(missing, np.float32(0), t), lo.astype(np.float32), hi.astype(np.float32))
    return np.where(missing, nan, np.rint(t).astype(np.int64))


def artefact(groups: dict[str, np.ndarray], counts: dict[str, np.ndarray]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """(logits that the artefact gives, the nodes of graph.json)."""
    sys.path.insert(0, str(HERE))
    import run  # type: ignore[import-not-found, unused-ignore]  # run.py of this directory

    nodes = read_json("graph.json")["nodes"]
    integers = {node["group"]: input_step(node, groups[node["group"]]) for node in nodes if node["node"] == "Input"}
    return run.load(HERE)(integers, counts), nodes


def score_of(nodes: list[dict[str, Any]], logits: np.ndarray) -> np.ndarray:
    """The discriminant: the integer combination of logits, aligned to their largest exponent, that graph.json declares."""
    weights = array_of(nodes[-1]["score"])
    f = exponents(nodes, nodes[-1]["sources"][0])
    top = int(f[weights != 0].max()) if weights.any() else 0
    found: np.ndarray = logits @ np.where(weights != 0, weights << np.maximum(top - f, 0), 0)
    return found


def exponents(nodes: list[dict[str, Any]], name: str) -> np.ndarray:
    """The exponent of every feature of a node that logits may come from."""
    node = next(n for n in nodes if n["name"] == name)
    kind = node["node"]
    if kind == "Affine":
        return array_of(node["f"])
    if kind in ("Input", "Requant") or (kind == "Pool" and node["quant"]):
        f = array_of(node["quant"]["to"]["f"])
        size = len(node["variables"]) if kind == "Input" else len(exponents(nodes, node["sources"][0]))
        return np.broadcast_to(f, size)
    parts = [exponents(nodes, source) for source in node["sources"]]
    if kind == "Add":
        highest: np.ndarray = np.max(parts, axis=0)
        return highest
    if kind == "Window":
        return np.tile(parts[0], node["kernel"])
    if kind == "Flatten":
        return np.tile(parts[0], positions(nodes, node["sources"][0]))
    return np.concatenate(parts)


def positions(nodes: list[dict[str, Any]], name: str) -> int:
    """How many constituents, or positions of a window, a node yields."""
    node = next(n for n in nodes if n["name"] == name)
    if node["node"] == "Input":
        return int(node["length"])
    before = positions(nodes, node["sources"][0])
    if node["node"] == "Window":
        return int((before + node["before"] + node["after"] - node["kernel"]) // node["stride"] + 1)
    return before


def compare() -> dict[str, Any]:
    """Counts of what was compared and what differs, and the first difference."""
    head, document = read_json("golden.json"), read_json("working_points.json")
    groups, counts, outputs, score, decisions = read_golden(head)
    logits, nodes = artefact(groups, counts)
    result = counted(head, document, outputs, decisions)
    if "error" in result:
        return result
    return {**result, **differences(head, document, logits, outputs, score, decisions, lambda: score_of(nodes, logits))}


if __name__ == "__main__":
    sys.exit(report(compare))
