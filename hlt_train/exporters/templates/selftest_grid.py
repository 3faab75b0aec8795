"""Does the network in this directory still compute what it was exported for, with the tools of this machine?

    python selftest.py [--json]

The artefact starts at the integers of the input step. This script computes that step from graph.json, hands the integers to the artefact (run.py), and compares
integer logits, the integer score and the decision at every working point of working_points.json with golden.bin; then the hashes of the files with
certificate.json. Exit code 0: all equal; 1: something differs. Needs Python, numpy, and what run.py names.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
GARBAGE = (np.float32(np.nan), np.float32(3e38))  # beyond a collection's count, by parity of the vector: no network may notice it


def read_json(name: str) -> dict[str, Any]:
    """A document of this directory."""
    try:
        content: dict[str, Any] = json.loads((HERE / name).read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"FAILED: {name} cannot be read: {error}")
    return content


def read_golden(head: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray, np.ndarray | None, np.ndarray]:
    """(groups, counts, outputs, score, decisions) of golden.bin, whose parts follow each other without gaps."""
    content = (HERE / "golden.bin").read_bytes()
    if content[:8] != b"HLTGOLD1":
        raise SystemExit("golden.bin is not a file of golden vectors")
    n, points = (int(v) for v in np.frombuffer(content, "<i8", 2, 8))
    place = 24

    def take(dtype: str, *shape: int) -> np.ndarray:
        nonlocal place
        found = np.frombuffer(content, dtype, math.prod(shape), place).reshape(shape)
        place += found.nbytes
        return found

    groups, counts = {}, {}
    for group in head["groups"]:
        name, length, width = group["name"], group["length"], len(group["variables"])
        if length is None:
            groups[name] = take("<f4", n, width)
            continue
        counts[name] = take("<i4", n)
        array = np.empty((n, length, width), np.float32)
        array[0::2], array[1::2] = GARBAGE
        array[np.arange(length) < counts[name][:, None]] = take("<f4", int(np.clip(counts[name], 0, length).sum()), width)
        groups[name] = array
    outputs = take("<i8", n, len(head["outputs"]))
    score = take("<i8", n) if head["score"] else None
    return groups, counts, outputs, score, take("u1", points, n).astype(bool)


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
    if kind == "Flatten":
        lengths = {n["group"]: n["length"] for n in nodes if n["node"] == "Input"}
        return np.tile(parts[0], lengths[node["group"]])
    return np.concatenate(parts)


def compare() -> dict[str, Any]:
    """Counts of what was compared and what differs, and the first difference."""
    head = read_json("golden.json")
    groups, counts, outputs, score, decisions = read_golden(head)
    points = read_json("working_points.json")["points"]
    logits, nodes = artefact(groups, counts)
    result: dict[str, Any] = {"vectors": len(outputs), "logits": outputs.size, "working_points": len(points), "decisions": decisions.size}
    if [p["name"] for p in points] != head["working_points"]:
        return {**result, "error": "working_points.json has other working points than golden.json"}
    wrong: np.ndarray = logits != outputs
    result["logits_differing"] = int(wrong.sum())
    result["scores_differing"] = result["decisions_differing"] = 0
    if score is not None:
        found = score_of(nodes, logits)
        result["scores_differing"] = int(np.count_nonzero(found != score))
        for point, recorded in zip(points, decisions, strict=True):
            threshold = point["integer_threshold"]
            passed = np.zeros(len(found), bool) if threshold is None else found >= threshold
            result["decisions_differing"] += int(np.count_nonzero(passed != recorded))
    if wrong.any():
        row, column = (int(v) for v in np.argwhere(wrong)[0])
        result["first"] = {"vector": row, "output": head["outputs"][column], "expected": outputs[row, column].item(), "got": logits[row, column].item()}
    return result


def changed_files() -> list[str]:
    """Files whose bytes are not those that certificate.json names."""
    if not (HERE / "certificate.json").is_file():
        return []
    stated = read_json("certificate.json")["sha256"]
    return [name for name, value in stated.items() if not (HERE / name).is_file() or hashlib.sha256((HERE / name).read_bytes()).hexdigest() != value]


def main() -> int:
    """Compare, print, and return the exit code."""
    result = {**compare(), "files_changed": changed_files()}
    failed = bool("error" in result or result["files_changed"]) or any(result.get(f"{k}_differing", 0) for k in ("logits", "scores", "decisions"))
    result["passed"] = not failed
    if "--json" in sys.argv[1:]:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key.replace('_', ' '):20s} {value}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
