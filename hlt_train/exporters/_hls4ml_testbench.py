"""Inputs and expected outputs for the C simulation of Vitis or Vivado, from the golden vectors of the directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hlt_train import files
from hlt_train.exporters._convolutions import masked_groups
from hlt_train.exporters._grid import input_integers, read_graph
from hlt_train.golden import read_golden

__all__ = ["write_testbench"]

EVENTS = 1000


def write_testbench(directory: Path) -> None:
    """tb_data/tb_input_features.dat and tb_output_predictions.dat: one event per line, real values in the order of the top function's arguments.

    The events are spread over all golden vectors. Every number is a short binary fraction, written with all its digits.
    """
    graph, golden = read_graph(directory), read_golden(directory)
    rows = np.unique(np.linspace(0, len(golden) - 1, EVENTS).astype(np.int64))
    x = golden.x.take(rows)
    integers = input_integers(graph, x)
    columns = [_real(integers[node.group], graph.structure[node.name].f).reshape(len(rows), -1) for node in graph.inputs]
    masked = masked_groups(graph)
    columns += [np.arange(node.length) < x.counts[node.group][:, None] for node in graph.inputs if node.length is not None and node.group in masked]
    outputs = _real(golden.outputs[rows], graph.structure[graph.output.name].f)
    (directory / "tb_data").mkdir(exist_ok=True)
    files.write_text(directory / "tb_data" / "tb_input_features.dat", _lines(np.concatenate([c.astype(np.float64) for c in columns], axis=1)))
    files.write_text(directory / "tb_data" / "tb_output_predictions.dat", _lines(outputs))


def _real(n: np.ndarray, f: np.ndarray | None) -> np.ndarray:
    assert f is not None
    return np.ldexp(n.astype(np.float64), -f.astype(np.int32))


def _lines(values: np.ndarray) -> str:
    return "".join(" ".join(map(repr, row)) + "\n" for row in values.tolist())
