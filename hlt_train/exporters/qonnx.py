"""Target `qonnx`: a QONNX model of a perceptron, a set network or a 1-D convolution, exact in qonnx's executor and as hls4ml reads it.

It starts at the integers of the input step (`docs/numbers.md`, section 2), handed over as real values on their grid; which constituents exist is an input of
its own. See `docs/fpga.md`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from onnx import helper

from hlt_train import files
from hlt_train.errors import RunFailed, UsageError
from hlt_train.exporters import Exporter, _qonnx_run
from hlt_train.exporters._grid import Evaluate, input_integers, only_exact, read_graph, timed, write_graph
from hlt_train.exporters._qonnx_nodes import IR, OPSET, Model
from hlt_train.exporters._templates import selftest, source
from hlt_train.graph import Graph
from hlt_train.types import Features

__all__ = ["qonnx"]

_INTERFACE = ("hlt-train/qonnx-interface", 1)
_CALLS = 100


def qonnx() -> Exporter:
    """QONNX for hls4ml and FINN: one format per layer; starts at the integers of the input step."""
    return Exporter(_write, _load, _latency, ("interface.json", "model.onnx", "run.py", "selftest.py"))


def _write(graph: Graph, directory: Path) -> dict[str, Any]:
    only_exact(graph, "qonnx")
    model = Model(graph)
    proto = model.proto()
    f = graph.structure[graph.output.name].f
    assert f is not None
    types = {name: f"{type_.cpp.removesuffix('>')},AP_RND_CONV,AP_SAT>" for name, type_ in model.input_types.items()}
    helper.set_model_props(
        proto, {"hlt_train.format": "hlt-train/qonnx", "hlt_train.input_types": json.dumps(types), "hlt_train.logits_exponents": json.dumps(f.tolist())}
    )
    files.write_bytes(directory / "model.onnx", proto.SerializeToString())
    groups = [
        {
            "name": node.group,
            "input": model.inputs[node.group],
            "valid": model.masks.get(node.group),
            "variables": list(node.variables),
            "length": node.length,
            "f": _exponents(graph, node.name),
        }
        for node in graph.inputs
    ]
    content = {"groups": groups, "outputs": list(graph.output.names), "outputs_f": f.tolist(), "input_types": types}
    files.write_document(directory / "interface.json", *_INTERFACE, content)
    files.write_text(directory / "run.py", source("_qonnx_run.py"))
    files.write_text(directory / "selftest.py", selftest("selftest_grid.py"))
    write_graph(graph, directory)
    return {
        "target": "qonnx",
        "bit_exact": True,
        "starts_at": "grid",
        "opset": OPSET,
        "ir_version": IR,
        "operators": len(proto.graph.node),
        "input_types": types,
    }


def _exponents(graph: Graph, name: str) -> list[int]:
    f = graph.structure[name].f
    assert f is not None
    found: list[int] = f.tolist()
    return found


def _open(directory: Path) -> tuple[Graph, Evaluate]:
    try:
        import qonnx
    except ImportError as error:
        raise UsageError("qonnx is not installed, and nothing is called verified without it", then="pip install 'hlt-train[qonnx]'") from error
    del qonnx
    if not (directory / "model.onnx").is_file() or not (directory / "interface.json").is_file():
        raise UsageError("this is not an export of the target qonnx: model.onnx or interface.json is missing", where=str(directory))
    try:
        return read_graph(directory), _qonnx_run.load(directory)
    except DecodeError as error:
        raise RunFailed(f"damaged file: {error}", where=str(directory / "model.onnx")) from error


def _load(directory: Path) -> Any:
    graph, evaluate = _open(directory)
    return lambda x: evaluate(input_integers(graph, x), x.counts)


def _latency(directory: Path, x: Features) -> dict[str, Any]:
    graph, evaluate = _open(directory)
    return {
        **timed(graph, evaluate, x, calls=_CALLS),
        "method": "single calls of qonnx's executor from Python, batch 1; a reference to compare with, no latency of a device",
    }
