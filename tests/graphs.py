"""Random graphs of the IR for the tests: MLPs, DeepSets and convolutions of every rounding, overflow and per-feature exponents, with features to run on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hlt_train.errors import UsageError
from hlt_train.graph import (
    Add,
    Affine,
    Concat,
    Fixed,
    Flatten,
    FloatAffine,
    FloatPool,
    Graph,
    Node,
    Output,
    Pool,
    Quant,
    Requant,
    Window,
    float_input_node,
    input_node,
)
from hlt_train.proof import prove
from hlt_train.types import Features, Group


def group(rng: np.random.Generator, name: str, n: int, length: int | None = None) -> Group:
    """A group with generic float32 centres and scales, so that ties of the input step are hard."""
    f32 = np.float32
    return Group(
        name=name,
        variables=tuple(f"{name}_{i}" for i in range(n)),
        length=length,
        centre=rng.normal(0, 30, n).astype(f32),
        scale=rng.uniform(0.02, 3, n).astype(f32),
        lo=np.full(n, -5, f32),
        hi=np.full(n, 5, f32),
        nan=rng.choice([0, 1, -0.5], n).astype(f32),
    )


def affine(rng: np.random.Generator, name: str, source: str, n_in: int, n_out: int, *, bits: int = 4, f: int = 8, relu: bool = True) -> Affine:
    """An Affine of random `bits`-bit weights."""
    top = 1 << (bits - 1)
    w = rng.integers(-top, top, (n_in, n_out)).astype(np.int64)
    return Affine(name, (source,), w, rng.integers(-64, 64, n_out).astype(np.int64), np.full(n_out, f, np.int64), relu)


def quant(rng: np.random.Generator, n: int, f: int, *, width: int = 6, round: str | None = None, over: str | None = None, signed: bool | None = None) -> Quant:
    """A format of about `width` bits with per-feature exponents around f."""
    fs = (f + rng.integers(-1, 2, n)).astype(np.int64)
    signed = bool(rng.integers(2)) if signed is None else signed
    fixed = Fixed(signed, (width - int(signed) - fs).astype(np.int64), fs)
    return Quant(fixed, round or str(rng.choice(["floor", "half_up", "half_even"])), over or str(rng.choice(["wrap", "sat", "sat_sym"])))  # type: ignore[arg-type]


def mlp(seed: int, *, widths: tuple[int, ...] = (8, 6), variables: int = 5, outputs: int = 2, over: str | None = None, round: str | None = None) -> Graph:
    """Scalars -> Affine, Requant, ... -> logits; two outputs have the logit difference as score."""
    rng = np.random.default_rng(seed)
    nodes: list[Node] = [input_node("in", group(rng, "event", variables), Fixed(True, 3, rng.integers(2, 5, variables).astype(np.int64)))]
    source, n = "in", variables
    for k, width in enumerate(widths):
        nodes += [affine(rng, f"dense{k}", source, n, width), Requant(f"act{k}", (f"dense{k}",), quant(rng, width, 4, over=over, round=round))]
        source, n = f"act{k}", width
    return _finish(rng, nodes, source, n, outputs)


def deepsets(seed: int, *, kind: str = "sum", length: int = 7, outputs: int = 2, round: str | None = None) -> Graph:
    """Constituents -> phi -> pool, beside scalars and a flattened copy -> rho -> logits."""
    rng = np.random.default_rng(seed)
    mean = quant(rng, 4, 3, width=8, round=round) if kind == "mean" else None
    nodes: list[Node] = [
        input_node("in_jets", group(rng, "jets", 3, length), Fixed(True, 3, 3)),
        input_node("in_event", group(rng, "event", 2), Fixed(True, 3, 2)),
        affine(rng, "phi0", "in_jets", 3, 4),
        Requant("phi0_act", ("phi0",), quant(rng, 4, 4, round=round)),
        affine(rng, "phi1", "phi0_act", 4, 4, relu=False),
        Requant("phi1_act", ("phi1",), quant(rng, 4, 4, round=round)),
        Add("residual", ("phi0_act", "phi1_act")),
        Pool("pool", ("residual",), kind, "jets", mean),  # type: ignore[arg-type]
        Flatten("flat", ("in_jets",), "jets"),
        Concat("all", ("pool", "in_event", "flat")),
        affine(rng, "rho", "all", 6 + 3 * length, 5),
        Requant("rho_act", ("rho",), quant(rng, 5, 3, round=round)),
    ]
    return _finish(rng, nodes, "rho_act", 5, outputs)


def convolution(seed: int, *, kind: str = "sum", length: int = 9, stride: int = 2, outputs: int = 2, round: str | None = None) -> Graph:
    """Constituents -> a convolution that keeps the length, with a residual -> one that strides -> pool, beside a flattened copy -> rho -> logits."""
    rng = np.random.default_rng(seed)
    mean = quant(rng, 5, 3, width=8, round=round) if kind == "mean" else None
    nodes: list[Node] = [
        input_node("in_jets", group(rng, "jets", 3, length), Fixed(True, 3, 3)),
        Window("near", ("in_jets",), 3, 1, 1, 1, "jets"),
        affine(rng, "conv0", "near", 9, 3),
        Requant("conv0_act", ("conv0",), quant(rng, 3, 4, round=round)),
        Add("residual", ("conv0_act", "in_jets")),
        Window("next", ("residual",), 4, stride, 1, 2, "jets"),
        affine(rng, "conv1", "next", 12, 5),
        Requant("conv1_act", ("conv1",), quant(rng, 5, 4, round=round)),
        Pool("pool", ("conv1_act",), kind, "jets", mean),  # type: ignore[arg-type]
        Flatten("flat", ("conv1_act",), "jets"),
        Concat("all", ("pool", "flat")),
        affine(rng, "rho", "all", 5 + 5 * ((length - 1) // stride + 1), 5),
        Requant("rho_act", ("rho",), quant(rng, 5, 3, round=round)),
    ]
    return _finish(rng, nodes, "rho_act", 5, outputs)


def minifloat(seed: int, *, kind: str = "sum", signed: bool = True, outputs: int = 2, round: str | None = None) -> Graph:
    """Constituents -> phi -> pool -> rho -> logits, every loss of bits a minifloat, of another mantissa, with exponents per feature on either side."""
    rng = np.random.default_rng(seed)

    def mini(n: int, f: int, width: int, mantissa: int) -> Quant:
        found = quant(rng, n, f, width=width, round=round, over="sat_sym", signed=signed)
        return Quant(found.to, found.round, found.over, mantissa)

    nodes: list[Node] = [
        input_node("in_jets", group(rng, "jets", 3, 5), Fixed(True, 3, 3)),
        input_node("in_event", group(rng, "event", 3), Fixed(True, 3, 2)),
        affine(rng, "phi", "in_jets", 3, 5, relu=False),
        Requant("phi_act", ("phi",), mini(5, 6, 9, 2)),
        Pool("pool", ("phi_act",), kind, "jets", mini(5, 7, 10, 3) if kind == "mean" else None),  # type: ignore[arg-type]
        Requant("event_act", ("in_event",), mini(3, 9, 13, 1)),
        Concat("all", ("pool", "event_act")),
        affine(rng, "rho", "all", 8, 6, relu=False, f=9),
        Requant("rho_act", ("rho",), mini(6, 4, 8, 0)),
    ]
    return _finish(rng, nodes, "rho_act", 6, outputs)


def _finish(rng: np.random.Generator, nodes: list[Node], source: str, n: int, outputs: int) -> Graph:
    score = np.array([1, -1] if outputs == 2 else [0] * (outputs - 1) + [1], np.int64)
    last = affine(rng, "logits", source, n, outputs, relu=False)
    names = tuple(f"class{i}" for i in range(outputs))
    return Graph((*nodes, last, Output("out", ("logits",), names, "softmax", score)))


def float_mlp(seed: int, *, activation: str = "relu") -> Graph:
    """A float teacher with constituents and scalars."""
    rng = np.random.default_rng(seed)
    f32 = np.float32
    draw = lambda *shape: rng.normal(0, 0.6, shape).astype(f32)  # noqa: E731
    nodes: tuple[Node, ...] = (
        float_input_node("in_jets", group(rng, "jets", 3, 5)),
        float_input_node("in_event", group(rng, "event", 2)),
        FloatAffine("phi", ("in_jets",), draw(3, 8), draw(8), activation),  # type: ignore[arg-type]
        FloatPool("sum", ("phi",), "sum", "jets"),
        FloatPool("max", ("phi",), "max", "jets"),
        FloatPool("mean", ("phi",), "mean", "jets"),
        Flatten("flat", ("in_jets",), "jets"),
        Concat("all", ("sum", "max", "mean", "in_event", "flat")),
        FloatAffine("rho", ("all",), draw(24 + 2 + 15, 8), draw(8), activation),  # type: ignore[arg-type]
        FloatAffine("logits", ("rho",), draw(8, 3), draw(3), "none"),
        Output("out", ("logits",), ("a", "b", "c"), "softmax"),
    )
    return Graph(nodes)


def float_convolution(seed: int, *, activation: str = "relu") -> Graph:
    """A float teacher: a convolution that keeps the length, with a residual, one that strides, every pool and a flattened copy."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(0, 0.6, shape).astype(np.float32)  # noqa: E731
    nodes: tuple[Node, ...] = (
        float_input_node("in_jets", group(rng, "jets", 3, 8)),
        Window("near", ("in_jets",), 3, 1, 1, 1, "jets"),
        FloatAffine("conv0", ("near",), draw(9, 3), draw(3), activation),  # type: ignore[arg-type]
        Add("residual", ("conv0", "in_jets")),
        Window("next", ("residual",), 2, 2, 0, 0, "jets"),
        FloatAffine("conv1", ("next",), draw(6, 5), draw(5), activation),  # type: ignore[arg-type]
        FloatPool("sum", ("conv1",), "sum", "jets"),
        FloatPool("max", ("conv1",), "max", "jets"),
        FloatPool("mean", ("conv1",), "mean", "jets"),
        Flatten("flat", ("conv1",), "jets"),
        Concat("all", ("sum", "max", "mean", "flat")),
        FloatAffine("logits", ("all",), draw(35, 3), draw(3), "none"),
        Output("out", ("logits",), ("a", "b", "c"), "softmax"),
    )
    return Graph(nodes)


def features(graph: Graph, n: int, seed: int = 0) -> Features:
    """Random raw features of about the width of the formats, with some NaN, infinities, empty and over-long collections and garbage in the padding."""
    rng = np.random.default_rng(seed)
    groups: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}
    for node in graph.inputs:
        shape = (n, len(node.variables)) if node.length is None else (n, node.length, len(node.variables))
        x = (node.centre + rng.normal(0, 3, shape) / node.scale).astype(np.float32)
        special = rng.random(shape)
        x[special < 0.01] = np.nan
        x[(special > 0.01) & (special < 0.015)] = np.inf
        x[(special > 0.015) & (special < 0.02)] = -np.inf
        if node.length is not None:
            count = rng.integers(0, node.length + 3, n).astype(np.int32)
            padding = np.arange(node.length) >= count[:, None]
            x[padding] = rng.choice(np.array([np.nan, 3e38, -np.inf], np.float32))
            counts[node.group] = count
        groups[node.group] = x
    return Features(groups, counts)


def wild(seed: int) -> Graph:
    """Every node and mode with exponents of either sign, formats of 0 to 13 bits, intervals outside of a format. A graph that is refused is drawn again."""
    return _accepted(_wild, seed)


def _accepted(draw: Callable[[np.random.Generator], Graph], seed: int) -> Graph:
    try:
        graph = draw(np.random.default_rng(seed))
        prove(graph)
    except UsageError:
        return _accepted(draw, seed + 1_000_003)
    return graph


def _wild(rng: np.random.Generator) -> Graph:
    i64, length, n_jets, n_event, n = np.int64, *(int(v) for v in rng.integers(1, [9, 5, 5, 7]))

    def requant(name: str, source: str, features: int) -> Requant:
        return Requant(name, (source,), _wild_quant(rng, features))

    def dense(name: str, source: str, n_in: int, n_out: int) -> Affine:
        top = int(rng.integers(1, 2 ** int(rng.integers(1, 7)) + 1))
        w = np.where(rng.random((n_in, n_out)) < 0.3, 0, rng.integers(-top, top + 1, (n_in, n_out))).astype(i64)
        return Affine(name, (source,), w, rng.integers(-99, 100, n_out).astype(i64), rng.integers(-2, 10, n_out).astype(i64), bool(rng.integers(2)))

    first = lambda k, signed: Fixed(signed, rng.integers(1, 5, k).astype(i64), rng.integers(-1, 7, k).astype(i64))  # noqa: E731
    nodes: tuple[Node, ...] = (
        input_node("jets_in", group(rng, "jets", n_jets, length), first(n_jets, bool(rng.integers(2)))),
        input_node("event_in", group(rng, "event", n_event), first(n_event, signed=True)),
        dense("a", "jets_in", n_jets, n),
        requant("a_out", "a", n),
        dense("b", "a_out", n, n),
        Add("sum", ("a_out", "b")),
        requant("sum_out", "sum", n),
        Pool("pool_sum", ("sum_out",), "sum", "jets"),
        Pool("pool_max", ("sum_out",), "max", "jets"),
        Pool("pool_mean", ("sum_out",), "mean", "jets", _wild_quant(rng, n)),
        Flatten("flat", ("sum_out",), "jets"),
        requant("flat_out", "flat", n * length),
        Concat("all", ("pool_sum", "pool_max", "pool_mean", "flat_out", "event_in")),
        dense("r", "all", 3 * n + n * length + n_event, 5),
        requant("r_out", "r", 5),
        dense("logits", "r_out", 5, 3),
        Output("out", ("logits",), ("x", "y", "z"), "none", rng.integers(-2, 3, 3).astype(i64)),
    )
    return Graph(nodes)


def wild_windows(seed: int) -> Graph:
    """Windows of every kernel, stride and padding, one behind the other, with and without an Affine between them; refusals as in `wild`."""
    return _accepted(_wild_windows, seed)


def _wild_windows(rng: np.random.Generator) -> Graph:
    i64, length, n = np.int64, int(rng.integers(1, 12)), int(rng.integers(1, 5))
    first = Fixed(bool(rng.integers(2)), rng.integers(1, 5, n).astype(i64), rng.integers(-1, 7, n).astype(i64))
    nodes: list[Node] = [input_node("jets_in", group(rng, "jets", n, length), first)]
    source = "jets_in"

    def dense(name: str, source: str, n_in: int, n_out: int) -> Affine:
        w = np.where(rng.random((n_in, n_out)) < 0.3, 0, rng.integers(-20, 21, (n_in, n_out))).astype(i64)
        return Affine(name, (source,), w, rng.integers(-99, 100, n_out).astype(i64), rng.integers(-2, 10, n_out).astype(i64), bool(rng.integers(2)))

    for k in range(int(rng.integers(1, 4))):
        kernel, stride = (int(v) for v in rng.integers(1, [6, 4]))
        before, after = (int(v) for v in rng.integers(0, kernel, 2))
        nodes.append(Window(f"window{k}", (source,), kernel, stride, before, after, "jets"))
        source, n, length = f"window{k}", kernel * n, (length + before + after - kernel) // stride + 1
        if rng.integers(3):
            wide = int(rng.integers(1, 5))
            nodes.append(dense(f"conv{k}", source, n, wide))
            source, n = f"conv{k}", wide
        if rng.integers(3):
            nodes.append(Requant(f"act{k}", (source,), _wild_quant(rng, n)))
            source = f"act{k}"
    nodes += [
        Pool("pool_sum", (source,), "sum", "jets"),
        Pool("pool_max", (source,), "max", "jets"),
        Pool("pool_mean", (source,), "mean", "jets", _wild_quant(rng, n)),
        Flatten("flat", (source,), "jets"),
        Concat("all", ("pool_sum", "pool_max", "pool_mean", "flat")),
        Requant("all_out", ("all",), _wild_quant(rng, 3 * n + n * length)),
        dense("logits", "all_out", 3 * n + n * length, 3),
        Output("out", ("logits",), ("x", "y", "z"), "none", rng.integers(-2, 3, 3).astype(i64)),
    ]
    return Graph(tuple(nodes))


def _wild_quant(rng: np.random.Generator, n: int) -> Quant:
    f, width, signed = rng.integers(-4, 9, n).astype(np.int64), rng.integers(0, 14, n), bool(rng.integers(2))
    rule, over = str(rng.choice(["floor", "half_up", "half_even"])), str(rng.choice(["wrap", "sat", "sat_sym"]))
    return Quant(Fixed(signed, (width - int(signed) - f).astype(np.int64), f), rule, over)  # type: ignore[arg-type]
