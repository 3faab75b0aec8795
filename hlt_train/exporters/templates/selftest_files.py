"""What every selftest in NumPy does alike: it reads the directory, compares with the golden vectors, and reports. `_templates.py` puts it into each of them."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable
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
    outputs = take("<i8" if head["exact"] else "<f4", n, len(head["outputs"]))
    score = take("<i8", n) if head["score"] else None
    return groups, counts, outputs, score, take("u1", points, n).astype(bool)


def discriminant(logits: np.ndarray, points: dict[str, Any]) -> np.ndarray:
    """log(sum of signal fractions * p / sum of background fractions * p), float64, of float logits."""
    sides = []
    for side in ("signal", "background"):
        fractions = points["discriminant"][side]
        columns = [points["classes"].index(name) for name in fractions]
        terms = logits[:, columns].astype(np.float64) + (np.log(list(fractions.values())) if len(columns) > 1 else 0)
        top = terms.max(axis=1)
        sides.append(top if len(columns) == 1 else top + np.log(np.exp(terms - top[:, None]).sum(axis=1)))
    difference: np.ndarray = sides[0] - sides[1]
    return difference


def decide(point: dict[str, Any], score: np.ndarray, *, exact: bool) -> np.ndarray:
    """Score >= threshold; a point without a threshold passes nothing."""
    threshold = point["integer_threshold"] if exact else point["threshold"]
    return np.zeros(len(score), bool) if threshold is None else np.asarray(score >= threshold)


def counted(head: dict[str, Any], document: dict[str, Any], outputs: np.ndarray, decisions: np.ndarray) -> dict[str, Any]:
    """How much is compared; with an `error` where working_points.json does not belong to the vectors."""
    points = document["points"]
    result: dict[str, Any] = {"vectors": len(outputs), "logits": outputs.size, "working_points": len(points), "decisions": decisions.size}
    if [p["name"] for p in points] != head["working_points"]:
        result["error"] = "working_points.json has other working points than golden.json"
    return result


def differences(
    head: dict[str, Any],
    document: dict[str, Any],
    logits: np.ndarray,
    outputs: np.ndarray,
    score: np.ndarray | None,
    decisions: np.ndarray,
    integer_score: Callable[[], np.ndarray],
) -> dict[str, Any]:
    """What differs in logits, scores and decisions, and the first of it; float logits may differ by the stated tolerance."""
    points, exact, result = document["points"], head["exact"], dict[str, Any]()
    if exact:
        wrong: np.ndarray = logits != outputs
        result["logits_differing"] = int(wrong.sum())
        scores = integer_score() if score is not None else None
        result["scores_differing"] = int(np.count_nonzero(scores != score)) if score is not None else 0
        near = np.zeros(len(outputs), bool)
    else:
        wrong = np.logical_not(np.abs(logits - outputs) <= head["tolerance"])
        result |= {"tolerance": head["tolerance"], "maximal_deviation": float(np.abs(logits - outputs).max()), "logits_differing": int(wrong.sum())}
        scores = discriminant(logits, document) if points else None
    passed = [decide(point, scores, exact=exact) for point in points] if scores is not None else []
    differing = 0
    for point, mine, recorded in zip(points, passed, decisions, strict=False):
        if not exact:  # within the tolerance of both sides of the discriminant a decision may go either way
            near = np.abs(scores - point["threshold"]) <= 2 * head["tolerance"]
        differing += int(np.count_nonzero((mine != recorded) & ~near))
    result["decisions_differing"] = differing
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


def report(compare: Callable[[], dict[str, Any]]) -> int:
    """Compare, print, and return the exit code."""
    if np.float32(1) + np.float32(2**-24) != np.float32(1) or np.float32(1) + np.float32(3 * 2**-24) != np.float32(1 + 2**-22):
        raise SystemExit("this process does not round to nearest even: nothing can be compared")
    result = {**compare(), "files_changed": changed_files()}
    compared = ("logits", "scores", "probabilities", "decisions")
    failed = bool("error" in result or result["files_changed"]) or any(result.get(f"{k}_differing", 0) for k in compared)
    result["passed"] = not failed
    if "--json" in sys.argv[1:]:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key.replace('_', ' '):20s} {value}")
    return int(failed)
