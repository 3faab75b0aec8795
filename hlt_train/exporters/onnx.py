"""Target `onnx`: an ONNX model, exact in ONNX Runtime on the CPU, with normalisation and first quantisation inside, as the framework wants it.

Profile `plain`: inputs are float32 by group name: `[batch, n_vars]`, `[batch, length, n_vars]`, and `<group>_count` `[batch, 1]` (a whole number in float32)
beside a collection. Outputs: `logits` `[batch, n_outputs]`, whose integers are logits * 2**f with the exponents in the metadata, and `score` `[batch, 1]`, the
integer that thresholds cut on. `cmssw` (docs/cmssw.md), `triton` and `athena` (docs/athena.md) are the same graph behind other inputs and outputs.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from hlt_train import __version__, files
from hlt_train.errors import UsageError
from hlt_train.exporters import Exporter
from hlt_train.exporters._onnx_builder import Builder
from hlt_train.exporters._onnx_nodes import build
from hlt_train.exporters._onnx_profiles import SOFTMAX_TOLERANCE, Options, Profile, profile_named
from hlt_train.exporters._onnx_qdq import QdqEmitter, qdq_facts
from hlt_train.exporters._onnx_run import latency, load
from hlt_train.exporters._templates import selftest
from hlt_train.graph import Graph, score_weights
from hlt_train.graph_document import to_document
from hlt_train.proof import summary

__all__ = ["onnx"]

OPSETS = range(13, 22)
QUANTISED = ("none", "qdq")
DEFAULTS = Options("hlt_train", "jet_features", "track_features", "tracks_r22default_sd0sort", 256)


def onnx(
    *,
    profile: str = "plain",
    opset: int | None = None,
    quantised: str = "none",
    name: str = DEFAULTS.name,
    jet_input: str = DEFAULTS.jet_input,
    track_input: str = DEFAULTS.track_input,
    tracks: str = DEFAULTS.tracks,
    max_batch_size: int = DEFAULTS.max_batch_size,
) -> Exporter:
    """ONNX for ONNX Runtime: exact where every sum fits float32's 24 bits, which is proved; float networks with their deviation.

    Args:
        profile: plain, cmssw, triton or athena: the inputs, outputs and files of the framework that loads it.
        opset: of the default ONNX domain, 13 to 21; by default 17, in cmssw 15, in athena 16.
        quantised: none, or qdq: QuantizeLinear and DequantizeLinear around each matrix product, for hardware of 8 bits.
        name: of the model (triton, athena).
        jet_input: athena: the input of the scalars.
        track_input: athena: the input of the collection.
        tracks: athena: the name of the track sequence in gnn_config, which selects and sorts the tracks.
        max_batch_size: triton: the largest batch that the server makes.
    """
    chosen = profile_named(profile, Options(name, jet_input, track_input, tracks, max_batch_size), DEFAULTS)
    version = chosen.opset if opset is None else opset
    if version not in OPSETS:
        raise UsageError(f"opset {version} is not supported", near=(str(min(max(version, OPSETS[0]), OPSETS[-1])),), then="choose 13 to 21")
    if quantised not in QUANTISED:
        raise UsageError(f"quantised must be none or qdq, got '{quantised}'", near=QUANTISED, then="--set onnx.quantised=qdq")

    def write(graph: Graph, directory: Path) -> dict[str, Any]:
        chosen.check(graph)
        builder = Builder(version)
        proofs = build(graph, builder, chosen, QdqEmitter if quantised == "qdq" else None)
        model = builder.model("hlt_train", {**_metadata(graph, chosen), **chosen.metadata(graph)}, chosen.options.name)
        files.write_bytes(directory / chosen.model_path(), model.SerializeToString())
        chosen.companions(graph, directory)
        files.write_text(directory / "selftest.py", selftest("selftest_onnx.py"))
        return {
            "target": "onnx",
            "bit_exact": graph.exact,
            "starts_at": "float",
            "provider": "CPUExecutionProvider; other providers are not covered",
            **chosen.facts(graph),
            "quantised": quantised,
            **(qdq_facts(graph, proofs) if quantised == "qdq" else {}),
            "opset": version,
            "ir_version": model.ir_version,
            "operators": len(model.graph.node),
            "proof": summary(proofs),
        }

    return Exporter(write, load, latency, (chosen.model_path(), *chosen.names(), "selftest.py"))


def _metadata(graph: Graph, profile: Profile) -> dict[str, str]:
    document = json.dumps(to_document(graph), sort_keys=True)
    f = graph.structure[graph.output.name].f
    facts: dict[str, Any] = {
        "format": "hlt-train/onnx",
        "version": 2,
        "program": f"hlt-train {__version__}",
        "profile": profile.name,
        "inputs": profile.layout(graph),
        "graph_sha256": hashlib.sha256(document.encode()).hexdigest(),
        "outputs": list(graph.output.names),
        "logits_exponents": None if f is None else f.tolist(),
        "scale": "float32 logits" if f is None else "integer = logits * 2**logits_exponents",
    }
    if profile.probabilities:
        facts["softmax_tolerance"] = SOFTMAX_TOLERANCE
    if graph.output.score is not None:
        weights, exponent = score_weights(graph)
        facts |= {"score_weights": weights.tolist(), "score_exponent": exponent}
    return {f"hlt_train.{key}": value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
