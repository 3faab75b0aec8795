"""Which vectors reach the ties and limits inside the network, so that the subset that ships keeps them and the certificate says how many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hlt_train.arithmetic import dropped, limits, rational, rounded, rounded_rational
from hlt_train.golden import CATEGORIES
from hlt_train.graph import Graph, Node, Pool, Quant, Requant, trace
from hlt_train.types import Features

__all__ = ["Reach", "mark", "subset"]

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
SCAN = 1 << 25  # numbers of the widest node that are searched
CHUNK = 1 << 18
EACH = 3  # vectors kept per feature and kind


class Reach(NamedTuple):
    """Of one Requant (or mean): over its features, how many round at all (a minifloat does), and show a tie, a value at a limit, and a value beyond one."""

    rounding: int
    tie: int
    limit: int
    beyond: int


def mark(graph: Graph, x: Features, category: np.ndarray, score: np.ndarray | None, thresholds: Sequence[int | None]) -> tuple[np.ndarray, dict[str, Reach]]:
    """Categories in which random and data vectors that are needed for a tie, a limit or a threshold say so, and the reach of every node that loses bits."""
    marked = category.copy()
    plain = np.isin(category, [CATEGORIES.index("random"), CATEGORIES.index("data")])
    if score is not None:
        for threshold in thresholds:
            for value in [] if threshold is None else [threshold - 1, threshold, threshold + 1]:
                marked[np.flatnonzero(plain & (score == value))[:EACH]] = CATEGORIES.index("threshold")
    seen: dict[str, dict[str, Int64]] = {}
    for start, values in _chunks(graph, x):
        for node in graph.nodes:
            if isinstance(node, Requant | Pool) and node.quant is not None:
                for kind, hits in _kinds(graph, node, node.quant, values, x, start).items():
                    counted = seen.setdefault(node.name, {}).setdefault(kind, np.zeros(hits.shape[1], np.int64))
                    rows = _first(hits, EACH - counted)
                    counted += hits.sum(axis=0)
                    rows = rows[plain[start + rows]] + start
                    marked[rows] = CATEGORIES.index("requant_tie" if kind.startswith("tie") else "limit")
    return marked, {name: _reach(graph, name, kinds) for name, kinds in seen.items()}


def subset(category: np.ndarray, keep: int, seed: int) -> np.ndarray:
    """Rows that ship, ascending: every constructed, marked and nearest vector, and `keep` of the random and data ones."""
    plain = np.flatnonzero(np.isin(category, [CATEGORIES.index("random"), CATEGORIES.index("data")]))
    some = np.random.default_rng(seed).permutation(plain)[:keep]
    return np.sort(np.concatenate([np.setdiff1d(np.arange(len(category)), plain), some]))


def _chunks(graph: Graph, x: Features) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    widest = max(s.n * (s.length or 1) for s in graph.structure.values())
    rows = min(len(x.groups[graph.inputs[0].group]), max(SCAN // widest, 1))
    step = max(1, CHUNK // widest)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        yield start, trace(graph, x.take(part))


def _first(hits: Bool, wanted: Int64) -> Int64:
    """Rows of the first wanted[j] hits of every column j."""
    rows = [np.flatnonzero(hits[:, j])[: wanted[j]] for j in np.flatnonzero(wanted > 0)]
    return np.unique(np.concatenate([*rows, np.zeros(0, np.int64)])).astype(np.int64)


def _reach(graph: Graph, name: str, kinds: dict[str, Int64]) -> Reach:
    node = next(node for node in graph.nodes if node.name == name)
    f, to = graph.structure[node.sources[0]].f, graph.structure[name].f
    assert f is not None
    assert to is not None
    always = isinstance(node, Pool) or (isinstance(node, Requant) and node.quant.mantissa is not None)
    rounding = len(f) if always else int((f > to).sum())
    tie, limit, beyond = (int(((kinds[a] > 0) | (kinds[b] > 0)).sum()) for a, b in (("tie_even", "tie_odd"), ("at_lo", "at_hi"), ("beyond_lo", "beyond_hi")))
    return Reach(rounding, tie, limit, beyond)


def _kinds(graph: Graph, node: Requant | Pool, quant: Quant, values: dict[str, np.ndarray], x: Features, start: int) -> dict[str, Bool]:
    """By kind, bool [rows, n]: some present constituent (or the scalar) is of that kind."""
    n = values[node.sources[0]]
    f = graph.structure[node.sources[0]].f
    assert f is not None
    shift = f - np.broadcast_to(np.asarray(quant.to.f, np.int64), f.shape)
    rows = slice(start, start + len(n))
    if isinstance(node, Pool):
        near, floor, tie = _mean_parts(n, graph.structure[node.sources[0]].present(x.counts[node.group][rows]), shift, quant)
    else:
        near = rounded(n, shift, quant)
        right = np.maximum(shift + dropped(n, shift, quant.mantissa), 0)
        floor = np.right_shift(n, right)
        tie = (right > 0) & (n - (floor << right) == (np.int64(1) << right) >> 1)
    lo, hi = limits(quant, n.shape[-1])
    one = np.left_shift(np.int64(1), dropped(hi, 0, quant.mantissa))  # the last step of the format
    next_lo, next_hi = lo - one, hi + one
    kinds = {
        "tie_even": tie & (floor & 1 == 0),
        "tie_odd": tie & (floor & 1 == 1),
        "at_lo": near == lo,
        "at_hi": near == hi,
        "beyond_lo": near == next_lo,
        "beyond_hi": near == next_hi,
    }
    return {kind: _any(graph, node, hits, x, rows) for kind, hits in kinds.items()}


def _mean_parts(n: Int64, count: Int64, shift: Int64, quant: Quant) -> tuple[Int64, Int64, Bool]:
    total = np.where((np.arange(n.shape[1]) < count[:, None])[:, :, None], n, 0).sum(axis=1)
    numerator: Int64 = total << np.maximum(-shift, 0)
    denominator: Int64 = np.left_shift(np.maximum(count, 1)[:, None], np.maximum(shift, 0))
    step = np.left_shift(denominator, dropped(np.abs(numerator) // denominator, 0, quant.mantissa))
    floor = rational(numerator, step, "floor")
    return rounded_rational(numerator, denominator, quant), floor, 2 * (numerator - floor * step) == step


def _any(graph: Graph, node: Node, hits: Bool, x: Features, rows: slice) -> Bool:
    structure = graph.structure[node.name]
    if structure.length is None or structure.group is None:
        return hits
    present = np.arange(structure.length) < structure.present(x.counts[structure.group][rows])[:, None]
    found: Bool = np.asarray((hits & present[:, :, None]).any(axis=1))
    return found
