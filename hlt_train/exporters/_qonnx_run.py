"""Run model.onnx of this directory with qonnx's own executor.

    import run
    logits = run.load(directory)(integers, counts)

Needs Python, numpy and qonnx; not hlt-train. The model has batch 1, which is what firmware tools read; here its batch becomes the number of events.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["load"]

ROWS = 1 << 15  # events in one call
NOT_INTEGER = np.iinfo(np.int64).min  # where an output that should be an integer is none


def _batch(model: Any, n: int) -> None:
    """Every tensor that the model computes gets n rows; constants keep their shape."""
    constants = {tensor.name for tensor in model.graph.initializer}
    outputs = {node.output[0]: node for node in model.graph.node}
    fixed = set(constants)
    for name, node in outputs.items():  # nodes are in the order of evaluation
        if all(source in fixed for source in node.input):
            fixed.add(name)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.name not in fixed:
            value.type.tensor_type.shape.dim[0].dim_value = n


def load(directory: Path) -> Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], np.ndarray]:
    """The network as a function: integers of the input step by group, int64 `[n, n_vars]` or `[n, length, n_vars]`, and counts by group, `[n]` -> logits.

    The integers are those of `graph.json`: value * 2**f of each variable. Logits are int64 `[n, outputs]`. Constituents at index >= count may be anything.
    """
    import onnx
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx

    interface = json.loads((directory / "interface.json").read_text())
    groups, exponents = interface["groups"], np.array(interface["outputs_f"], np.int32)
    model = onnx.load(str(directory / "model.onnx"))

    def run(feeds: dict[str, np.ndarray]) -> np.ndarray:
        _batch(model, len(next(iter(feeds.values()))))
        found: np.ndarray = execute_onnx(ModelWrapper(model), feeds)[model.graph.output[0].name]
        return found

    def evaluate(integers: Mapping[str, np.ndarray], counts: Mapping[str, np.ndarray]) -> np.ndarray:
        values = {}
        for group in groups:
            array = np.ldexp(integers[group["name"]].astype(np.float32), -np.array(group["f"], np.int32))
            if group["length"] is not None:  # features first, as in the model
                array = np.ascontiguousarray(array.transpose(0, 2, 1)[:, :, None, :])
            values[group["input"]] = array
            if group["valid"] is not None:
                exists = np.arange(group["length"]) < np.asarray(counts[group["name"]])[:, None]
                values[group["valid"]] = exists[:, None, None, :].astype(np.float32)
        n = len(next(iter(values.values())))
        parts = [run({name: array[k : k + ROWS] for name, array in values.items()}) for k in range(0, n, ROWS)]
        logits = np.ldexp(np.concatenate(parts).astype(np.float64), exponents)
        whole = np.isfinite(logits) & (np.rint(logits) == logits)
        return np.where(whole, np.where(whole, logits, 0).astype(np.int64), NOT_INTEGER)

    return evaluate
