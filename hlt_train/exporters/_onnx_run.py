"""The ONNX artefact run: one thread of ONNX Runtime on the CPU, fed as the profile says that the model's metadata name.

Collections are fed in both ways that a framework may: vectors of even index at their own length, those of odd index padded to the full length. Where the own
length may exceed the network's, up to three constituents more are given, which nobody may notice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hlt_train.errors import RunFailed, UsageError
from hlt_train.exporters._running import TIMED, timed, whole
from hlt_train.types import Features

__all__ = ["find_model", "latency", "load"]

ROWS = 1 << 22  # numbers of the inputs in one call
SURPLUS, UNNOTICED = 3, np.float32(7)  # constituents beyond the length, and what they hold

Feeds = dict[str, np.ndarray]


class _Model(NamedTuple):
    """session: of the artefact; profile, inputs, outputs, exponents: of its metadata; preprocess: content of preprocess.json, or empty."""

    session: Any
    profile: str
    inputs: list[dict[str, Any]]
    outputs: list[str]
    exponents: list[int] | None
    preprocess: dict[str, Any]


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError("ONNX Runtime is not installed, and nothing is called verified without it", then="pip install 'hlt-train[onnx]'") from error
    return onnxruntime


def find_model(directory: Path) -> Path:
    """The model of an export: model.onnx, or that of the one model of a repository."""
    found = [path for path in (directory / "model.onnx", *sorted(directory.glob("*/1/model.onnx"))) if path.is_file()]
    if len(found) != 1:
        raise UsageError("no such file: model.onnx" if not found else f"it holds {len(found)} models", where=str(directory))
    return found[0]


def _open(directory: Path) -> _Model:
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")  # 8-bit products without saturation on every CPU
    path = find_model(directory)
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own exceptions share no base
        raise RunFailed(f"ONNX Runtime {runtime.__version__} does not load it: {error}", where=str(path)) from error
    stated = session.get_modelmeta().custom_metadata_map
    profile = stated.get("hlt_train.profile", "plain")
    inputs = json.loads(stated["hlt_train.inputs"]) if "hlt_train.inputs" in stated else _inputs_of_version_1(session)
    outputs, exponents = (json.loads(stated[f"hlt_train.{key}"]) for key in ("outputs", "logits_exponents"))
    preprocess = _preprocess(directory / "preprocess.json") if profile == "cmssw" else {}
    return _Model(session, profile, inputs, outputs, exponents, preprocess)


def _inputs_of_version_1(session: Any) -> list[dict[str, Any]]:
    """Models of version 1 are all plain and do not describe their inputs."""
    shapes = {port.name: port.shape for port in session.get_inputs()}
    found: list[dict[str, Any]] = []
    for name, shape in shapes.items():
        length, count = (shape[1], f"{name}_count") if len(shape) == 3 else (None, None)
        if name.removesuffix("_count") not in shapes or name.removesuffix("_count") == name:
            found.append({"group": name, "input": name, "count": count, "length": length})
    return found


def _preprocess(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UsageError(f"no such file: {path.name}, through which CMSSW feeds the model", where=str(path), then="export the run again") from error
    except json.JSONDecodeError as error:
        raise RunFailed(f"damaged file: {error}", where=str(path), then="export the run again") from error
    return content


def _preprocessed(x: np.ndarray, group: dict[str, Any]) -> np.ndarray:
    """What CMSSW makes of float32 `[rows, constituents, n_vars]` by a group of preprocess.json, but infinities go in clamped, as in the golden model."""
    infos = [group["var_infos"][name] for name in group["var_names"]]
    median, factor, other, lower, upper = (
        np.array([info[key] for info in infos], np.float32) for key in ("median", "norm_factor", "replace_inf_value", "lower_bound", "upper_bound")
    )
    with np.errstate(over="ignore"):
        t = (np.where(np.isnan(x), other, x) - median) * factor
    clamped: np.ndarray = np.clip(t, lower, upper)
    return clamped


def _stretched(x: np.ndarray, length: int) -> np.ndarray:
    """The first `length` constituents; beyond those that there are, some that nobody may notice."""
    missing = length - x.shape[1]
    return x[:, :length] if missing <= 0 else np.pad(x, ((0, 0), (0, missing), (0, 0)), constant_values=UNNOTICED)


def _feeds(model: _Model, x: Features, rows: np.ndarray, lengths: dict[str, int]) -> Feeds:
    """The inputs of one call for these rows; lengths: by group, what the constituents' axis is to have."""
    feeds: Feeds = {}
    for port in model.inputs:
        group, length = port["group"], port["length"]
        array = x.groups[group][rows]
        if length is not None:
            array = _stretched(array, lengths[group])
            counts = np.asarray(x.counts[group])[rows]
            if port["count"] is not None:
                feeds[port["count"]] = counts[:, None].astype(np.float32)
        if model.profile == "cmssw":
            described = model.preprocess[group]
            array = _preprocessed(array if length is not None else array[:, None, :], described)
            if length is not None:
                pads = np.array([described["var_infos"][name]["pad"] for name in described["var_names"]], np.float32)
                array = np.where((np.arange(array.shape[1]) < counts[:, None])[:, :, None], array, pads)
            array = np.ascontiguousarray(array.transpose(0, 2, 1))
        elif model.profile == "athena" and length is not None:
            array = array[0]
        feeds[port["input"]] = array
    return feeds


def _lengths(model: _Model, x: Features, padded: np.ndarray) -> np.ndarray:
    """Per row the length that each collection is given, int64 `[rows, collections]`: its own, or the full one in rows that are `padded` (bool `[rows]`)."""
    collections = [port for port in model.inputs if port["length"] is not None]
    found = np.empty((len(padded), len(collections)), np.int64)
    for k, port in enumerate(collections):
        full = port["length"]
        least, most = (1, full) if model.profile == "cmssw" else (0, full + SURPLUS)
        found[:, k] = full if model.profile == "plain" else np.clip(x.counts[port["group"]], least, most)
        if model.profile != "athena":  # one jet per call: no padding
            found[padded, k] = full
    return found


def _calls(model: _Model, x: Features) -> Iterator[tuple[np.ndarray, Feeds]]:
    """All rows, in calls of equal lengths: (row numbers, inputs)."""
    rows = np.arange(len(next(iter(x.groups.values()))))
    groups = [port["group"] for port in model.inputs if port["length"] is not None]
    kinds, which = np.zeros((1, 0), np.int64), np.zeros(len(rows), np.int64)
    if groups:
        kinds, which = np.unique(_lengths(model, x, rows % 2 == 1), axis=0, return_inverse=True)
    step = 1 if model.profile == "athena" else max(1, ROWS // max(int(np.prod(array.shape[1:])) for array in x.groups.values()))
    for k, lengths in enumerate(kinds):
        chosen = rows[which.ravel() == k]
        for start in range(0, len(chosen), step):
            part = chosen[start : start + step]
            yield part, _feeds(model, x, part, dict(zip(groups, lengths.tolist(), strict=True)))


def load(directory: Path) -> Callable[[Features], np.ndarray]:
    """Raw float32 features -> logits `[n, n_outputs]`: int64 of an exact model, float32 otherwise."""
    model = _open(directory)
    names = [f"logit_{name}" for name in model.outputs] if model.profile == "athena" else ["logits"]

    def run(x: Features) -> np.ndarray:
        logits = np.empty((len(next(iter(x.groups.values()))), len(model.outputs)), np.float32)
        for rows, feeds in _calls(model, x):
            found = model.session.run(names, feeds)
            logits[rows] = np.stack(found)[None] if model.profile == "athena" else found[0]
        if model.exponents is None:
            return logits
        return whole(logits.astype(np.float64) * 2.0 ** np.array(model.exponents))

    return run


def latency(directory: Path, x: Features, *, calls: int = 2000) -> dict[str, Any]:
    """Batch-1 latency of `InferenceSession.run` from Python: each call timed alone, warm, then with 2 MiB touched between calls."""
    model = _open(directory)
    session = model.session
    rows = np.arange(min(len(next(iter(x.groups.values()))), TIMED))
    groups = [port["group"] for port in model.inputs if port["length"] is not None]
    lengths = _lengths(model, x, np.zeros(len(next(iter(x.groups.values()))), bool))
    feeds = [_feeds(model, x, rows[k : k + 1], dict(zip(groups, lengths[k].tolist(), strict=True))) for k in rows]
    return {
        **timed(lambda feed: session.run(None, feed), feeds, calls),
        "method": "single calls of InferenceSession.run from Python, batch 1, one thread",
        "runtime": f"onnxruntime {_runtime().__version__}",
    }
