"""Graphs for the FPGA targets: every mode in one network, and the families at the size that every tool is run on."""

from __future__ import annotations

import itertools

import numpy as np

from hlt_train.graph import Add, Concat, Fixed, Flatten, Graph, Node, Output, Pool, Quant, Requant, Window, input_node
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


def convolution(length: int = 16, n: int = 4, hidden: int = 6) -> Graph:
    """`length` constituents of n variables through a convolution with padding and a residual, one with stride 2, one without padding behind a stride, whose
    windows are also read as they are, sum, maximum, the positions themselves, rho.
    """
    rng = np.random.default_rng(3)
    last = (length - 1) // 2 - 1  # positions behind the stride, without those at which no whole window starts
    nodes: tuple[Node, ...] = (
        input_node("in_jets", graphs.group(rng, "jets", n, length), Fixed(True, 3, rng.integers(2, 5, n).astype(np.int64))),
        Window("near", ("in_jets",), 3, 1, 1, 1, "jets"),
        graphs.affine(rng, "conv0", "near", 3 * n, n, relu=False),
        Requant("conv0_act", ("conv0",), graphs.quant(rng, n, 4, over="sat", signed=True)),
        Add("residual", ("conv0_act", "in_jets")),
        Window("next", ("residual",), 3, 2, 1, 1, "jets"),
        graphs.affine(rng, "conv1", "next", 3 * n, hidden),
        Requant("conv1_act", ("conv1",), graphs.quant(rng, hidden, 4, over="sat", signed=False)),
        Window("last", ("conv1_act",), 3, 1, 0, 0, "jets"),
        graphs.affine(rng, "conv2", "last", 3 * hidden, hidden),
        Requant("conv2_act", ("conv2",), graphs.quant(rng, hidden, 4, over="sat", signed=False)),
        Pool("sum", ("conv2_act",), "sum", "jets"),
        Pool("max", ("conv1_act",), "max", "jets"),
        Pool("windows", ("last",), "max", "jets"),
        Flatten("flat", ("conv2_act",), "jets"),
        Concat("all", ("sum", "max", "windows", "flat")),
        graphs.affine(rng, "rho", "all", 5 * hidden + hidden * last, hidden),
        Requant("rho_act", ("rho",), graphs.quant(rng, hidden, 3)),
        graphs.affine(rng, "logits", "rho_act", hidden, 2, relu=False),
        Output("out", ("logits",), ("a", "b"), "softmax", np.array([1, -1], np.int64)),
    )
    return Graph(nodes)


def uniform(*, windows: bool = True, length: int = 8, n: int = 3, hidden: int = 4, rounding: str = "half_even", over: str = "sat") -> Graph:
    """One format per layer and no Concat, as QONNX is read: constituents (with `windows`, through a convolution that keeps the length, a residual, one with
    stride 2 and one whose windows are read as they are), their sum, maximum and themselves, two scalars beside.
    """
    rng = np.random.default_rng(4)

    def quant(*, signed: bool) -> Quant:
        return Quant(Fixed(signed, 2, 3), rounding, over)  # type: ignore[arg-type]

    def layer(name: str, source: str, n_in: int, n_out: int, *, signed: bool) -> list[Node]:
        return [graphs.affine(rng, name, source, n_in, n_out, relu=not signed, f=7), Requant(f"{name}_act", (name,), quant(signed=signed))]

    nodes: list[Node] = [
        input_node("in_jets", graphs.group(rng, "jets", n, length), Fixed(True, 3, rng.integers(2, 4, n).astype(np.int64))),
        input_node("in_event", graphs.group(rng, "event", 2), Fixed(True, 3, 2)),
    ]
    last, positions = "phi_act", length
    if windows:
        positions = (length - 1) // 2 + 1
        nodes += [
            Window("near", ("in_jets",), 3, 1, 1, 1, "jets"),
            *layer("conv0", "near", 3 * n, n, signed=True),
            Add("residual", ("conv0_act", "in_jets")),
            Window("next", ("residual",), 4, 2, 1, 2, "jets"),
            *layer("phi", "next", 4 * n, hidden, signed=False),
            Window("pairs", ("phi_act",), 2, 1, 0, 1, "jets"),
            Pool("most", ("pairs",), "max", "jets"),
            graphs.affine(rng, "of_most", "most", 2 * hidden, 4, relu=False),
        ]
    else:
        nodes += layer("phi", "in_jets", n, hidden, signed=False)
    nodes += [
        *layer("phi1", last, hidden, hidden, signed=True),
        Pool("sum", ("phi1_act",), "sum", "jets"),
        Pool("max", (last,), "max", "jets"),
        Flatten("flat", ("phi1_act",), "jets"),
        graphs.affine(rng, "of_sum", "sum", hidden, 4, relu=False),
        graphs.affine(rng, "of_max", "max", hidden, 4, relu=False),
        graphs.affine(rng, "of_flat", "flat", hidden * positions, 4, relu=False),
        graphs.affine(rng, "of_event", "in_event", 2, 4, relu=False),
        Add("all", ("of_sum", "of_max", "of_flat", "of_event", *(("of_most",) if windows else ()))),
        Requant("rho", ("all",), quant(signed=True)),
        graphs.affine(rng, "logits", "rho", 4, 2, relu=False),
        Output("out", ("logits",), ("a", "b"), "softmax", np.array([1, -1], np.int64)),
    ]
    return Graph(tuple(nodes))


def wild_uniform(seed: int) -> Graph:
    """Windows of every kernel, stride and padding behind each other, some read by no Affine, some with a residual, in formats that QONNX holds."""
    rng = np.random.default_rng(seed)
    length, n = int(rng.integers(1, 9)), int(rng.integers(1, 4))
    nodes: list[Node] = [input_node("in", graphs.group(rng, "jets", n, length), Fixed(bool(rng.integers(2)), 3, rng.integers(0, 4, n).astype(np.int64)))]
    ends: list[Node] = []

    def quant(*, signed: bool) -> Quant:
        f = int(rng.integers(-1, 4))
        return Quant(Fixed(signed, 4 - f, f), str(rng.choice(["floor", "half_even"])), str(rng.choice(["sat", "sat_sym"])))  # type: ignore[arg-type]

    def layer(name: str, source: str, n_in: int, n_out: int, *, signed: bool) -> str:
        nodes.append(graphs.affine(rng, name, source, n_in, n_out, f=6, bits=3, relu=bool(rng.integers(2))))
        nodes.append(Requant(f"{name}_act", (name,), quant(signed=signed)))
        return f"{name}_act"

    def end(node: Node, features: int) -> None:
        nodes.append(node)
        nodes.append(graphs.affine(rng, f"of_{node.name}", node.name, features, 3, relu=False))
        ends.append(nodes[-1])

    source = "in"
    for k in range(int(rng.integers(0, 4))):
        kernel = int(rng.integers(1, 5))
        stride = int(rng.integers(1, min(3, length) + 1))
        before, after = (int(v) for v in rng.integers(0, min(kernel, length + 1), 2))
        positions = (length + before + after - kernel) // stride + 1
        if length + before + after < kernel or positions > -(-length // stride):
            continue
        nodes.append(Window(f"window{k}", (source,), kernel, stride, before, after, "jets"))
        if rng.integers(3):
            same = stride == 1 and positions == length and bool(rng.integers(2))
            wide = n if same else int(rng.integers(1, 4))
            after_it = layer(f"conv{k}", f"window{k}", kernel * n, wide, signed=bool(rng.integers(2)))
            if same:
                nodes.append(Add(f"residual{k}", (after_it, source)))
                after_it = f"residual{k}"
            source, n = after_it, wide
        else:
            source, n = f"window{k}", kernel * n
        length = positions
        if rng.integers(2):
            end(Pool(f"early{k}", (source,), "sum", "jets"), n)
    not_negative = layer("phi", source, n, 2, signed=False)
    end(Pool("max", (not_negative,), "max", "jets"), 2)
    end(Pool("sum", (source,), "sum", "jets"), n)
    end(Flatten("flat", (source,), "jets"), n * length)
    nodes += [
        Add("all", tuple(node.name for node in ends)),
        Requant("rho", ("all",), quant(signed=True)),
        graphs.affine(rng, "logits", "rho", 3, 2, relu=False),
        Output("out", ("logits",), ("a", "b"), "none", np.array([1, -1], np.int64)),
    ]
    return Graph(tuple(nodes))


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
