"""Target `onnx`: a plain ONNX model, exact in ONNX Runtime on the CPU, with normalisation and first quantisation inside.

Inputs are float32 by group name: `[batch, n_vars]`, `[batch, length, n_vars]`, and `<group>_count` `[batch, 1]` (a whole number in float32) beside a
collection. Outputs: `logits` `[batch, n_outputs]`, whose integers are logits * 2**f with the exponents in the metadata, and `score` `[batch, 1]`, the integer
that thresholds cut on.
"""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

from hlt_train import __version__, files
from hlt_train.errors import UsageError
from hlt_train.exporters import Exporter
from hlt_train.exporters._onnx_builder import Builder
from hlt_train.exporters._onnx_nodes import build
from hlt_train.exporters._onnx_run import latency, load
from hlt_train.graph import Graph, score_weights
from hlt_train.graph_document import to_document
from hlt_train.proof import summary

__all__ = ["onnx"]

OPSETS = range(13, 22)


def onnx(*, opset: int = 17) -> Exporter:
    """Plain ONNX for ONNX Runtime: exact where every sum fits float32's 24 bits, which is proved; float networks with their deviation.

    Args:
        opset: of the default ONNX domain, 13 to 21.
    """
    if opset not in OPSETS:
        raise UsageError(f"opset {opset} is not supported", near=(str(min(max(opset, OPSETS[0]), OPSETS[-1])),), then="choose 13 to 21")

    def write(graph: Graph, directory: Path) -> dict[str, Any]:
        clash = {f"{node.group}_count" for node in graph.inputs if node.length is not None} & {node.group for node in graph.inputs}
        if clash:
            raise UsageError(f"group '{min(clash)}' has the name of a count", then="rename it in the card")
        builder = Builder(opset)
        proofs = build(graph, builder)
        model = builder.model("hlt_train", _metadata(graph))
        files.write_bytes(directory / "model.onnx", model.SerializeToString())
        template = resources.files("hlt_train.exporters").joinpath("templates", "selftest_onnx.py").read_text()
        files.write_text(directory / "selftest.py", template)
        return {
            "target": "onnx",
            "bit_exact": graph.exact,
            "starts_at": "float",
            "provider": "CPUExecutionProvider; other providers are not covered",
            "opset": opset,
            "ir_version": model.ir_version,
            "operators": len(model.graph.node),
            "proof": summary(proofs),
        }

    return Exporter(write, load, latency, ("model.onnx", "selftest.py"))


def _metadata(graph: Graph) -> dict[str, str]:
    document = json.dumps(to_document(graph), sort_keys=True)
    f = graph.structure[graph.output.name].f
    facts: dict[str, Any] = {
        "format": "hlt-train/onnx",
        "version": 1,
        "program": f"hlt-train {__version__}",
        "graph_sha256": hashlib.sha256(document.encode()).hexdigest(),
        "outputs": list(graph.output.names),
        "logits_exponents": None if f is None else f.tolist(),
        "scale": "float32 logits" if f is None else "integer = logits * 2**logits_exponents",
    }
    if graph.output.score is not None:
        weights, exponent = score_weights(graph)
        facts |= {"score_weights": weights.tolist(), "score_exponent": exponent}
    return {f"hlt_train.{key}": value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
