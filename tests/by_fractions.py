"""A graph evaluated a second way: one row at a time, every value a Python fraction, as docs/numbers.md reads. No 64-bit integers, no shifts, no arrays."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

from hlt_train.graph import Add, Affine, Concat, Flatten, Graph, Input, Pool, Quant, Requant, Window
from hlt_train.types import Features

Values = list[Fraction]


def logits(graph: Graph, x: Features, row: int) -> list[int]:
    """The integers of one row. A scalar node is a list of fractions, a collection a list of such lists, one per constituent that exists."""
    found: dict[str, Any] = {}
    for node in graph.nodes:
        sources = [found[name] for name in node.sources]
        if isinstance(node, Input):
            found[node.name] = _input(node, x, row)
        elif isinstance(node, Flatten | Pool):
            found[node.name] = _collected(graph, node, sources[0])
        elif isinstance(node, Window):
            found[node.name] = _windows(graph, node, sources[0])
        elif graph.structure[node.name].length is None:
            found[node.name] = _one(graph, node, sources)
        else:
            found[node.name] = [_one(graph, node, list(parts)) for parts in zip(*sources, strict=True)]
    integers = [v * Fraction(2) ** e for v, e in zip(found[graph.output.name], exponents(graph, graph.output.name), strict=True)]
    assert all(v.denominator == 1 for v in integers)
    return [int(v) for v in integers]


def exponents(graph: Graph, name: str) -> list[int]:
    """Of every feature of an integer node."""
    f = graph.structure[name].f
    assert f is not None
    return [int(e) for e in f]


def _input(node: Input, x: Features, row: int) -> Any:
    values = x.groups[node.group][row]
    if node.length is None:
        return [_grid(node, v, k) for k, v in enumerate(values)]
    count = min(max(int(x.counts[node.group][row]), 0), node.length)
    return [[_grid(node, v, k) for k, v in enumerate(constituent)] for constituent in values[:count]]


def _grid(node: Input, v: np.float32, k: int) -> Fraction:
    f = int(np.broadcast_to(node.quant.to.f, len(node.variables))[k])
    if np.isnan(v):
        return Fraction(int(node.nan[k])) / Fraction(2) ** f
    with np.errstate(over="ignore"):
        t = np.float32(np.float32(v - node.centre[k]) * np.float32(node.scale[k] * np.float32(2.0**f)))
    clamped = min(max(float(t), int(node.lo[k])), int(node.hi[k]))
    return Fraction(round(Fraction(clamped))) / Fraction(2) ** f


def _one(graph: Graph, node: Any, sources: list[Values]) -> Values:
    if isinstance(node, Affine):
        n = [v * Fraction(2) ** e for v, e in zip(sources[0], exponents(graph, node.sources[0]), strict=True)]
        acc = [sum((a * int(w) for a, w in zip(n, node.w[:, o], strict=True)), Fraction(int(node.b[o]))) for o in range(len(node.b))]
        return [(max(a, Fraction(0)) if node.relu else a) / Fraction(2) ** e for a, e in zip(acc, exponents(graph, node.name), strict=True)]
    if isinstance(node, Requant):
        return [_quantised(v, node.quant, k, len(sources[0])) for k, v in enumerate(sources[0])]
    if isinstance(node, Add):
        return [sum(parts, Fraction(0)) for parts in zip(*sources, strict=True)]
    if isinstance(node, Concat):
        return [v for source in sources for v in source]
    return sources[0]  # the output


def _quantised(v: Fraction, quant: Quant, k: int, n: int) -> Fraction:
    i, f = (int(np.broadcast_to(part, n)[k]) for part in (quant.to.i, quant.to.f))
    width, unit = int(quant.to.signed) + i + f, Fraction(2) ** -f
    if width <= 0:
        return Fraction(0)
    integer = {"floor": math.floor, "half_up": lambda t: math.floor(t + Fraction(1, 2)), "half_even": round}[quant.round](v / unit)
    lo, hi = (-(2 ** (width - 1)), 2 ** (width - 1) - 1) if quant.to.signed else (0, 2**width - 1)
    if quant.over == "wrap":
        return ((integer - lo) % 2**width + lo) * unit
    return min(max(integer, -hi if quant.over == "sat_sym" else lo) if quant.to.signed else max(integer, 0), hi) * unit


def _windows(graph: Graph, node: Window, constituents: list[Values]) -> list[Values]:
    """Of the constituents that exist, one list of neighbours for each that a window starts at."""
    before = graph.structure[node.sources[0]]
    assert before.length is not None
    positions = range(-node.before, before.length + node.after - node.kernel + 1, node.stride)
    existing = [at for at in positions if at + node.before < len(constituents)]
    absent = [Fraction(0)] * before.n
    return [[v for i in range(at, at + node.kernel) for v in (constituents[i] if 0 <= i < len(constituents) else absent)] for at in existing]


def _collected(graph: Graph, node: Flatten | Pool, constituents: list[Values]) -> Values:
    if isinstance(node, Flatten):
        missing = graph.structure[node.name].n - sum(len(c) for c in constituents)
        return [v for c in constituents for v in c] + [Fraction(0)] * missing
    n = graph.structure[node.name].n
    columns = [[c[k] for c in constituents] for k in range(n)]
    if node.kind == "max":
        return [max(column, default=Fraction(0)) for column in columns]
    totals = [sum(column, Fraction(0)) for column in columns]
    if node.quant is None:
        return totals
    return [_quantised(total / max(len(constituents), 1), node.quant, k, n) for k, total in enumerate(totals)]
