"""Does the model in this directory still compute what it was exported for, with the ONNX Runtime of this machine?

    python selftest.py [--json]

Runs the model on the golden vectors through the inputs and outputs of its profile (through preprocess.json where there is one) and compares integer logits,
integer scores, probabilities, and the decision at every working point of working_points.json with the recorded ones; then the hashes of the files with
certificate.json. Exit code 0: all equal; 1: something differs. Needs Python, numpy and onnxruntime only.

Vectors of even index are given at their own length where the profile allows it, with up to three constituents too many where there are more than the network
reads; those of odd index are padded to the full length.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parent
GARBAGE = (np.float32(np.nan), np.float32(3e38))  # beyond a collection's count, by parity of the vector: no network may notice it
ROWS = 1 << 22  # numbers of the inputs in one call


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


def model_file() -> Path:
    """model.onnx, or the model of a repository."""
    found = [path for path in (HERE / "model.onnx", *sorted(HERE.glob("*/1/model.onnx"))) if path.is_file()]
    if len(found) != 1:
        sys.exit(f"FAILED: expected one model, found {len(found)}")
    return found[0]


def preprocess(array: np.ndarray, group: dict[str, Any], exists: np.ndarray | None) -> np.ndarray:
    """CMSSW's step from features `[rows, constituents, n_vars]` to inputs `[rows, n_vars, constituents]`; infinities are clamped, as in the network."""
    infos = [group["var_infos"][name] for name in group["var_names"]]
    value = {key: np.array([info[key] for info in infos], np.float32) for key in infos[0]}
    with np.errstate(over="ignore"):
        ready = (np.where(np.isnan(array), value["replace_inf_value"], array) - value["median"]) * value["norm_factor"]
    ready = np.minimum(np.maximum(ready, value["lower_bound"]), value["upper_bound"])
    if exists is not None:
        ready = np.where(exists[:, :, None], ready, value["pad"])
    return np.ascontiguousarray(np.swapaxes(ready, 1, 2))


class Ports:
    """The inputs of the model: profile, groups, and the content of preprocess.json where the profile has one."""

    def __init__(self, metadata: dict[str, str]) -> None:
        self.profile = metadata["hlt_train.profile"]
        self.inputs: list[dict[str, Any]] = json.loads(metadata["hlt_train.inputs"])
        self.described = read_json("preprocess.json") if self.profile == "cmssw" else {}


def lengths(ports: Ports, counts: dict[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
    """Per collection the constituents that each vector is given."""
    found, profile = {}, ports.profile
    for port in ports.inputs:
        full = port["length"]
        if full is None:
            continue
        own = np.clip(counts[port["group"]], 1, full) if profile == "cmssw" else np.clip(counts[port["group"]], 0, full + 3)
        odd = np.arange(n) % 2 == 1
        found[port["group"]] = np.where(odd if profile != "athena" else False, full, own) if profile != "plain" else np.full(n, full)
    return found


def feeds_of(ports: Ports, groups: dict[str, np.ndarray], counts: dict[str, np.ndarray], rows: np.ndarray, size: dict[str, int]) -> dict[str, np.ndarray]:
    """The model's inputs for these vectors, whose collections have the sizes given."""
    feeds = {}
    for port in ports.inputs:
        name = port["group"]
        array, exists = groups[name][rows], None
        if name in size:
            extra = max(size[name] - array.shape[1], 0)
            array = np.concatenate([array[:, : size[name]], np.full((len(rows), extra, array.shape[2]), 7, np.float32)], axis=1)
            exists = np.arange(size[name]) < counts[name][rows][:, None]
            if port["count"] is not None:
                feeds[port["count"]] = counts[name][rows][:, None].astype(np.float32)
        if ports.profile == "cmssw":
            array = preprocess(array if name in size else array[:, None, :], ports.described[name], exists)
        elif ports.profile == "athena" and name in size:
            array = array[0]
        feeds[port["input"]] = array
    return feeds


def run_model(groups: dict[str, np.ndarray], counts: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(output name -> float32 array of all vectors, metadata) of the model, one thread, on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(model_file()), options, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    names = [port.name for port in session.get_outputs()]
    n = len(next(iter(groups.values())))
    ports = Ports(metadata)
    sizes = lengths(ports, counts, n)
    calls: dict[tuple[int, ...], list[int]] = {}
    for row, key in enumerate(zip(*(v.tolist() for v in sizes.values()), strict=True) if sizes else [()] * n):
        calls.setdefault(key, []).append(row)
    single = ports.profile == "athena"
    step = 1 if single else max(1, ROWS // max(math.prod(array.shape[1:]) for array in groups.values()))
    joined: dict[str, np.ndarray] = {}
    for key, members in calls.items():
        for start in range(0, len(members), step):
            rows = np.array(members[start : start + step])
            found = session.run(names, feeds_of(ports, groups, counts, rows, dict(zip(sizes, key, strict=True))))
            for name, values in zip(names, found, strict=True):
                values = np.asarray(values).reshape(len(rows), -1)
                joined.setdefault(name, np.empty((n, values.shape[1]), np.float32))[rows] = values
    return joined, metadata


def by_class(found: dict[str, np.ndarray], together: str, prefix: str, head: dict[str, Any]) -> np.ndarray | None:
    """An output `[n, classes]`: one tensor, or a scalar per class; None where the model has neither."""
    if together in found:
        return found[together]
    names = [prefix + name for name in head["outputs"]]
    return np.concatenate([found[name] for name in names], axis=1) if all(name in found for name in names) else None


def softmax(logits: np.ndarray) -> np.ndarray:
    """In float64."""
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    share: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
    return share


def integers(values: np.ndarray) -> np.ndarray:
    """Float64 -> int64; what is no integer becomes one that nothing equals."""
    whole = np.isfinite(values) & (np.rint(values) == values)
    return np.where(whole, np.where(whole, values, 0).astype(np.int64), np.iinfo(np.int64).min)


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


def compare_probabilities(found: np.ndarray | None, logits: np.ndarray, metadata: dict[str, str], head: dict[str, Any]) -> dict[str, Any]:
    """How far the probabilities are from the softmax of the expected logits, where the model has any."""
    if "hlt_train.softmax_tolerance" not in metadata:
        return {}
    if found is None:
        return {"error": "the model has no probabilities"}
    # Logits of a float network may be off by their own tolerance, which moves a probability by at most half of it.
    tolerance = float(metadata["hlt_train.softmax_tolerance"]) + head.get("tolerance", 0.0)
    off = np.abs(found.astype(np.float64) - softmax(logits.astype(np.float64)))
    wrong = np.logical_not(off <= tolerance)
    return {"softmax_tolerance": tolerance, "softmax_deviation": float(off.max(initial=0)), "probabilities_differing": int(wrong.sum())}


def compare() -> dict[str, Any]:
    """Counts of what was compared and what differs, and the first difference."""
    head = read_json("golden.json")
    groups, counts, outputs, score, decisions = read_golden(head)
    found, metadata = run_model(groups, counts)
    document = read_json("working_points.json")
    points, exact = document["points"], head["exact"]
    result: dict[str, Any] = {"vectors": len(outputs), "logits": outputs.size, "working_points": len(points), "decisions": decisions.size}
    if [p["name"] for p in points] != head["working_points"]:
        return {**result, "error": "working_points.json has other working points than golden.json"}
    given = by_class(found, "logits", "logit_", head)
    if given is None:
        return {**result, "error": "the model has no logits"}
    exponents = json.loads(metadata["hlt_train.logits_exponents"])
    values = outputs if exponents is None else outputs * 2.0 ** -np.array(exponents)
    result |= compare_probabilities(by_class(found, "softmax", "p", head), values, metadata, head)
    if exact:
        logits = integers(given.astype(np.float64) * 2.0 ** np.array(exponents))
        wrong: np.ndarray = logits != outputs
        result["logits_differing"] = int(wrong.sum())
        scores = integers(found["score"][:, 0].astype(np.float64)) if score is not None else None
        result["scores_differing"] = int(np.count_nonzero(scores != score)) if score is not None else 0
        near = np.zeros(len(outputs), bool)
    else:
        logits = given
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


def main() -> int:
    """Compare, print, and return the exit code."""
    if np.float32(1) + np.float32(2**-24) != np.float32(1) or np.float32(1) + np.float32(3 * 2**-24) != np.float32(1 + 2**-22):
        raise SystemExit("this process does not round to nearest even: nothing can be compared")
    result = {"runtime": f"onnxruntime {onnxruntime.__version__}", **compare(), "files_changed": changed_files()}
    compared = ("logits", "scores", "probabilities", "decisions")
    failed = bool("error" in result or result["files_changed"]) or any(result.get(f"{k}_differing", 0) for k in compared)
    result["passed"] = not failed
    if "--json" in sys.argv[1:]:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key.replace('_', ' '):20s} {value}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
