"""Does the model in this directory still compute what it was exported for, with the ONNX Runtime of this machine?

    python selftest.py [--json]

Runs the model on the golden vectors through the inputs and outputs of its profile (through preprocess.json where there is one) and compares integer logits,
integer scores, probabilities, and the decision at every working point of working_points.json with the recorded ones; then the hashes of the files with
certificate.json. Exit code 0: all equal; 1: something differs. Needs Python, numpy and onnxruntime only.

Vectors of even index are given at their own length where the profile allows it, with up to three constituents too many where there are more than the network
reads; those of odd index are padded to the full length.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from hlt_train.exporters.templates.selftest_files import HERE, counted, differences, read_golden, read_json, report

ROWS = 1 << 22  # numbers of the inputs in one call


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
    head, document = read_json("golden.json"), read_json("working_points.json")
    groups, counts, outputs, score, decisions = read_golden(head)
    found, metadata = run_model(groups, counts)
    result = {"runtime": f"onnxruntime {onnxruntime.__version__}", **counted(head, document, outputs, decisions)}
    if "error" in result:
        return result
    given = by_class(found, "logits", "logit_", head)
    if given is None:
        return {**result, "error": "the model has no logits"}
    exponents = json.loads(metadata["hlt_train.logits_exponents"])
    values = outputs if exponents is None else outputs * 2.0 ** -np.array(exponents)
    result |= compare_probabilities(by_class(found, "softmax", "p", head), values, metadata, head)
    logits = integers(given.astype(np.float64) * 2.0 ** np.array(exponents)) if head["exact"] else given
    return {**result, **differences(head, document, logits, outputs, score, decisions, lambda: integers(found["score"][:, 0].astype(np.float64)))}


if __name__ == "__main__":
    sys.exit(report(compare))
