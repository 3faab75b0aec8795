"""network.json of this directory as lwtnn computes it, in NumPy and float64. Needs Python and numpy only.

    from reader import run
    logits = run(directory, groups, counts)     # float32 [n, outputs]

A NaN becomes the variable's default first, as `lwt::NanReplacer` makes it; constituents at index >= count are not read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

ROWS = 1 << 12  # vectors at a time


def apply(layer: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """A layer on the last axis."""
    bias = np.array(layer["bias"], np.float64)
    weights = np.array(layer["weights"], np.float64)
    y: np.ndarray
    if layer["architecture"] == "normalization":
        y = (x + bias) * weights
        return y
    if len(weights):
        x = x @ weights.reshape(-1, x.shape[-1]).T
    y = x + bias
    activation = layer["activation"]
    if activation == "rectified":
        y = np.maximum(y, 0)
    elif activation == "tanh":
        y = np.tanh(y)
    elif isinstance(activation, dict) and activation["function"] == "swish":
        with np.errstate(over="ignore"):  # exp of a large number is inf, and y / inf the right 0
            y = y / (1 + np.exp(-activation["alpha"] * y))
    elif activation != "linear":
        raise SystemExit(f"network.json: this reader does not know activation {activation}")
    return y


def normalised(variables: list[dict[str, Any]], defaults: dict[str, float], x: np.ndarray) -> np.ndarray:
    """(x + offset) * scale, NaN replaced before."""
    offset, scale = (np.array([variable[key] for variable in variables]) for key in ("offset", "scale"))
    x = np.where(np.isnan(x), np.array([defaults[variable["name"]] for variable in variables]), x.astype(np.float64))
    z: np.ndarray = (x + offset) * scale
    return z


class Network:
    """network.json, either form."""

    def __init__(self, directory: Path) -> None:
        self.document = json.loads((directory / "network.json").read_text())

    def __call__(self, groups: dict[str, np.ndarray], counts: dict[str, np.ndarray]) -> np.ndarray:
        """Logits, float64 `[n, outputs]`."""
        document = self.document
        if "nodes" in document:
            return self.graph(groups, counts)
        (x,) = groups.values()
        y = normalised(document["inputs"], document["defaults"], x)
        for layer in document["layers"]:
            y = apply(layer, y)
        return y

    def graph(self, groups: dict[str, np.ndarray], counts: dict[str, np.ndarray]) -> np.ndarray:
        """The graph form: every node in order; `present` says which constituents of a sequence exist."""
        document = self.document
        values: list[np.ndarray] = []
        present: dict[int, np.ndarray] = {}
        for place, node in enumerate(document["nodes"]):
            kind, sources = node["type"], node["sources"]
            if kind in ("input", "input_sequence"):
                entry = document["inputs" if kind == "input" else "input_sequences"][sources[0]]
                x = groups[entry["name"]]
                if kind == "input_sequence":
                    present[place] = (np.arange(x.shape[1]) < counts[entry["name"]][:, None])[:, :, None]
                    x = np.where(present[place], x, np.float32(0))
                y = normalised(entry["variables"], {v["name"]: v["default"] for v in entry["variables"]}, x)
            elif kind in ("feed_forward", "time_distributed"):
                y = apply(document["layers"][node["layer_index"]], values[sources[0]])
                if kind == "time_distributed":
                    present[place] = present[sources[0]]
            elif kind == "sum":
                y = np.where(present[sources[0]], values[sources[0]], 0).sum(axis=1)
            elif kind == "concatenate":
                y = np.concatenate([values[s] for s in sources], axis=-1)
            elif kind == "add":
                y = np.add.reduce([values[s] for s in sources])
            else:
                raise SystemExit(f"network.json: this reader does not know node {kind}")
            values.append(y)
        logits: np.ndarray = values[document["outputs"]["logits"]["node_index"]]
        return logits


def run(directory: Path, groups: dict[str, np.ndarray], counts: dict[str, np.ndarray]) -> np.ndarray:
    """Float32 logits `[n, outputs]` of raw float32 features."""
    network = Network(directory)
    n = len(next(iter(groups.values())))
    parts = [
        network({k: v[start : start + ROWS] for k, v in groups.items()}, {k: v[start : start + ROWS] for k, v in counts.items()})
        for start in range(0, max(n, 1), ROWS)
    ]
    return np.concatenate(parts).astype(np.float32)
