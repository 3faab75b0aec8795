"""Graphs for the FPGA targets: every mode in one network, and the families at the size that every tool is run on."""

from __future__ import annotations

import itertools

import numpy as np

from hlt_train.graph import Add, Concat, Fixed, Flatten, Graph, Node, Output, Pool, Quant, Requant, input_node
from tests import graphs

ROUNDS = ("floor", "half_up", "half_even")
OVERFLOWS = ("wrap", "sat", "sat_sym")


def modes(seed: int = 0) -> Graph:
    """The nine modes side by side, signed and unsigned, with a format per feature of 0 to 9 bits, one of them coarser than what it reads."""
    rng = np.random.default_rng(seed)
    n, i64 = 6, np.int64
    nodes: list[Node] = [
        input_node("in", graphs.group(rng, "event", 5), Fixed(True, 3, rng.integers(1, 5, 5).astype(i64))),
        graphs.affine(rng, "dense", "in", 5, n, relu=False, f=7),
    ]
    for k, (rule, over) in enumerate(itertools.product(ROUNDS, OVERFLOWS)):
        f, width, signed = rng.integers(0, 6, n).astype(i64), rng.integers(0, 10, n), bool(k % 2)
        width[:3] = (0, 1, 2)
        f[5], width[5] = -6, 4  # its last bit is worth more than any value that comes in
        nodes.append(Requant(f"act{k}", ("dense",), Quant(Fixed(signed, (width - int(signed) - f).astype(i64), f), rule, over)))  # type: ignore[arg-type]
    sources = tuple(node.name for node in nodes if isinstance(node, Requant))
    nodes += [Concat("all", sources), graphs.affine(rng, "logits", "all", n * len(sources), 5, relu=False, f=8)]
    return Graph((*nodes, Output("out", ("logits",), tuple("abcde"), "none", rng.integers(-2, 3, 5).astype(i64))))


def mlp(*, rounding: str = "half_even", residual: bool = True, uniform: bool = False, over: str = "sat") -> Graph:
    """16-32-16-5; the residual adds the second layer's input, brought to 16 features, to its output."""
    rng = np.random.default_rng(1)

    def quant(n: int, f: int) -> Quant:
        return Quant(Fixed(False, 2, f), rounding, over) if uniform else graphs.quant(rng, n, f, width=7, round=rounding, over=over)  # type: ignore[arg-type]

    nodes: list[Node] = [
        input_node("in", graphs.group(rng, "event", 16), Fixed(True, 3, 4)),
        graphs.affine(rng, "dense0", "in", 16, 32, bits=6),
        Requant("act0", ("dense0",), quant(32, 4)),
        graphs.affine(rng, "dense1", "act0", 32, 16, bits=6),
        Requant("act1", ("dense1",), quant(16, 3)),
    ]
    last = "act1"
    if residual:
        nodes += [
            graphs.affine(rng, "skip", "act0", 32, 16, relu=False),
            Requant("skip_act", ("skip",), quant(16, 3)),
            Add("sum", ("act1", "skip_act", "act1")),
        ]
        last = "sum"
    nodes.append(graphs.affine(rng, "logits", last, 16, 5, relu=False))
    return Graph((*nodes, Output("out", ("logits",), tuple("abcde"), "softmax", np.array([0, 0, 1, -1, 2], np.int64))))


def deepsets(length: int = 16, n: int = 8, hidden: int = 12) -> Graph:
    """`length` constituents of n variables, phi with ReLU, the sum, the maximum, a signed sum and the constituents themselves, two scalars beside, rho."""
    rng = np.random.default_rng(2)
    nodes: tuple[Node, ...] = (
        input_node("in_jets", graphs.group(rng, "jets", n, length), Fixed(True, 3, rng.integers(2, 5, n).astype(np.int64))),
        input_node("in_event", graphs.group(rng, "event", 2), Fixed(True, 3, 2)),
        graphs.affine(rng, "phi0", "in_jets", n, hidden),
        Requant("phi0_act", ("phi0",), graphs.quant(rng, hidden, 4, over="sat", signed=False)),
        graphs.affine(rng, "phi1", "phi0_act", hidden, hidden),
        Requant("phi1_act", ("phi1",), graphs.quant(rng, hidden, 4, over="sat", signed=False)),
        graphs.affine(rng, "signed", "phi1_act", hidden, 3, relu=False),
        Requant("signed_act", ("signed",), graphs.quant(rng, 3, 2, over="sat", signed=True)),
        Pool("sum", ("phi1_act",), "sum", "jets"),
        Pool("max", ("phi1_act",), "max", "jets"),
        Pool("signed_sum", ("signed_act",), "sum", "jets"),
        Flatten("flat", ("signed_act",), "jets"),
        Concat("all", ("sum", "max", "signed_sum", "flat", "in_event")),
        graphs.affine(rng, "rho", "all", 2 * hidden + 3 + 3 * length + 2, hidden),
        Requant("rho_act", ("rho",), graphs.quant(rng, hidden, 3)),
        graphs.affine(rng, "logits", "rho_act", hidden, 2, relu=False),
        Output("out", ("logits",), ("a", "b"), "softmax", np.array([1, -1], np.int64)),
    )
    return Graph(nodes)


def tame(graph: Graph) -> Graph:
    """A wild graph without what hls4ml refuses: the mean becomes a sum, the maximum is of an unsigned format."""
    import dataclasses

    nodes: list[Node] = []
    for node in graph.nodes:
        if isinstance(node, Pool) and node.kind == "mean":
            node = dataclasses.replace(node, kind="sum", quant=None)
        if isinstance(node, Pool) and node.kind == "max":
            nodes.append(Requant("not_negative", node.sources, Quant(Fixed(False, 5, 3), "half_up", "sat")))
            node = dataclasses.replace(node, sources=("not_negative",))
        nodes.append(node)
    return Graph(tuple(nodes))
