"""A float graph in the two JSON forms of lwtnn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hlt_train.errors import UsageError
from hlt_train.graph import Add, Concat, FloatAffine, FloatInput, FloatPool, Graph, Node, Output, Requant, Window

__all__ = ["graph_form", "is_chain", "refuse", "sequential_form"]

ACTIVATIONS: dict[str, Any] = {"none": "linear", "relu": "rectified", "tanh": "tanh", "silu": {"function": "swish", "alpha": 1.0}}
CLIP = 4  # layers that make a clip


def _refusal(node: Node, what: str, near: tuple[str, ...], then: str) -> UsageError:
    return UsageError(f"{type(node).__name__} '{node.name}' {what}", where=f"node '{node.name}'", near=near, then=then)


def refuse(graph: Graph) -> None:
    """Refuse, by the name of a node, what lwtnn cannot compute."""
    integer = [node for node in graph.nodes if graph.structure[node.name].exact]
    if integer:
        node = next((node for node in integer if isinstance(node, Requant)), integer[0])
        what = "rounds to a fixed-point grid, and lwtnn has no rounding"
        raise _refusal(node, what, ("cpp", "onnx"), "export the student with cpp or onnx, its float teacher with lwtnn")
    for node in graph.nodes:
        sequence = graph.structure[node.name].length is not None
        if isinstance(node, FloatInput):
            _check_input(node)
        elif isinstance(node, FloatAffine):
            if node.activation not in ACTIVATIONS:
                near = ("silu", "onnx", "cpp")
                raise _refusal(node, f"has activation {node.activation}, which lwtnn lacks", near, "train with relu, tanh or silu, or export with onnx or cpp")
        elif isinstance(node, FloatPool):
            if node.kind != "sum":
                raise _refusal(
                    node, f"is a {node.kind}, and lwtnn only sums over a sequence", ("sum", "onnx", "cpp"), "train with pool sum, or export with onnx"
                )
        elif isinstance(node, Window):
            then = "train a set network with pool sum, whose layers see one constituent at a time, or export with onnx or cpp"
            raise _refusal(node, "reads neighbours, and lwtnn has no convolution over a sequence", ("sum", "onnx", "cpp"), then)
        elif isinstance(node, Add | Concat):
            if sequence:
                raise _refusal(node, "combines sequences, and lwtnn combines vectors only", ("onnx", "cpp"), "export with onnx or cpp")
        elif not isinstance(node, Output):
            raise _refusal(node, "has no counterpart in lwtnn", ("onnx", "cpp"), "export with onnx or cpp")


def _check_input(node: FloatInput) -> None:
    near = ("onnx", "cpp")
    for j, name in enumerate(node.variables):
        if not (np.isfinite(node.lo[j]) and np.isfinite(node.hi[j])):
            raise _refusal(node, f"has no finite clip of '{name}': an infinite input has no value", near, "give the variable a clip in the card")
        if not (node.lo[j] <= node.nan[j] <= node.hi[j]) or (node.scale[j] == 0 and node.nan[j] != 0):
            raise _refusal(node, f"gives a NaN of '{name}' a value that no input has", near, "choose a value within the clip in the card")


def is_chain(graph: Graph) -> bool:
    """Whether the sequential form holds it: one group of scalars, one layer after the other."""
    chained = [FloatInput, *[FloatAffine] * (len(graph.nodes) - 2), Output]
    follows = all(node.sources == (before.name,) for before, node in zip(graph.nodes, graph.nodes[1:], strict=False))
    return graph.inputs[0].length is None and follows and all(isinstance(node, kind) for node, kind in zip(graph.nodes, chained, strict=True))


def _floats(array: np.ndarray) -> list[float]:
    found: list[float] = array.astype(np.float64).ravel().tolist()
    return found


def _default(node: FloatInput, j: int) -> float:
    """The input whose normalised value is that of a NaN."""
    scale = float(node.scale[j])
    return float(node.centre[j]) + (float(node.nan[j]) / scale if scale else 0.0)


def _variables(node: FloatInput) -> list[dict[str, Any]]:
    return [{"name": name, "offset": -float(node.centre[j]), "scale": float(node.scale[j])} for j, name in enumerate(node.variables)]


def _clip(node: FloatInput) -> list[dict[str, Any]]:
    """Hi - relu((hi - lo) - relu(z - lo)): elementwise, since a product with a matrix of zeros makes NaN of an infinity; a dense layer without weights is."""
    lo, hi = node.lo.astype(np.float64), node.hi.astype(np.float64)
    minus = [-1.0] * len(lo)
    layers = [
        {"architecture": "dense", "weights": [], "bias": _floats(-lo), "activation": "rectified"},
        {"architecture": "normalization", "weights": minus, "bias": _floats(lo - hi)},
        {"architecture": "dense", "weights": [], "bias": [0.0] * len(lo), "activation": "rectified"},
        {"architecture": "normalization", "weights": minus, "bias": _floats(-hi)},
    ]
    assert len(layers) == CLIP
    return layers


def _dense(node: FloatAffine) -> dict[str, Any]:
    """Weights row by row of the outputs."""
    return {"architecture": "dense", "weights": _floats(node.w.T), "bias": _floats(node.b), "activation": ACTIVATIONS[node.activation]}


def sequential_form(graph: Graph) -> dict[str, Any]:
    """For `lwt::parse_json` and `lwt::LightweightNeuralNetwork`."""
    node = graph.inputs[0]
    assert isinstance(node, FloatInput)
    return {
        "inputs": _variables(node),
        "layers": _clip(node) + [_dense(layer) for layer in graph.nodes if isinstance(layer, FloatAffine)],
        "outputs": list(graph.output.names),
        "defaults": {name: _default(node, j) for j, name in enumerate(node.variables)},
    }


class _Builder:
    """Nodes and layers of the graph form as they are added."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[dict[str, Any]] = []
        self.layers: list[dict[str, Any]] = []
        self.inputs: list[dict[str, Any]] = []
        self.sequences: list[dict[str, Any]] = []

    def node(self, kind: str, sources: Sequence[int], **more: int) -> int:
        self.nodes.append({"type": kind, "sources": list(sources), **more})
        return len(self.nodes) - 1

    def layer(self, layer: dict[str, Any], source: int, *, sequence: bool) -> int:
        self.layers.append(layer)
        return self.node("time_distributed" if sequence else "feed_forward", [source], layer_index=len(self.layers) - 1)

    def input(self, node: FloatInput) -> int:
        sequence = node.length is not None
        into = self.sequences if sequence else self.inputs
        variables = [{**variable, "default": _default(node, j)} for j, variable in enumerate(_variables(node))]
        into.append({"name": node.group, "variables": variables})
        place = self.node("input_sequence" if sequence else "input", [len(into) - 1], size=len(variables))
        for layer in _clip(node):
            place = self.layer(layer, place, sequence=sequence)
        return place


def graph_form(graph: Graph) -> dict[str, Any]:
    """For `lwt::parse_json_graph` and `lwt::LightweightGraph`; the output node is called `logits`."""
    builder = _Builder(graph)
    places: dict[str, int] = {}
    for node in graph.nodes:
        sources = [places[source] for source in node.sources]
        sequence = graph.structure[node.name].length is not None
        if isinstance(node, FloatInput):
            places[node.name] = builder.input(node)
        elif isinstance(node, FloatAffine):
            places[node.name] = builder.layer(_dense(node), sources[0], sequence=sequence)
        elif isinstance(node, FloatPool):
            places[node.name] = builder.node("sum", sources)
        elif isinstance(node, Add | Concat):
            places[node.name] = builder.node("add" if isinstance(node, Add) else "concatenate", sources)
        else:
            places[node.name] = sources[0]
    output = {"labels": list(graph.output.names), "node_index": places[graph.output.name]}
    return {
        "inputs": builder.inputs,
        "input_sequences": builder.sequences,
        "nodes": builder.nodes,
        "layers": builder.layers,
        "outputs": {"logits": output},
    }
