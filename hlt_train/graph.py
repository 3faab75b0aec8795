"""The IR of a network and its NumPy evaluator, the golden model: what students and teachers are lowered to, and all that an exporter ever sees.

A `Graph` is a list of nodes (`hlt_train.nodes`) in the order of evaluation. Every node yields one value per event: `[n]` for scalars, `[length, n]` for
constituents; those at index >= count are never read, a count beyond the length reads the first `length` and a negative one none.

Integer nodes are evaluated in int64; matrix products run in float64 BLAS where the bound of every partial sum is below 2**53, which gives the same integers
faster. Float nodes are evaluated in float32. The number contract is `docs/numbers.md`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hlt_train.arithmetic import input_step, limits, requantise, rounded_rational
from hlt_train.errors import RunFailed, UsageError, nearest
from hlt_train.floating import activate, normalise
from hlt_train.nodes import (
    Add,
    Affine,
    Concat,
    Fixed,
    Flatten,
    FloatAffine,
    FloatInput,
    FloatPool,
    Input,
    Ints,
    Node,
    Output,
    Overflow,
    Pool,
    PoolKind,
    Quant,
    Requant,
    Round,
    Window,
)
from hlt_train.structure import Structure, check, scaled
from hlt_train.types import Features, Group

__all__ = [
    "Add",
    "Affine",
    "Concat",
    "Fixed",
    "Flatten",
    "FloatAffine",
    "FloatInput",
    "FloatPool",
    "Graph",
    "Input",
    "Ints",
    "Node",
    "Output",
    "Overflow",
    "Pool",
    "PoolKind",
    "Quant",
    "Requant",
    "Round",
    "Window",
    "evaluate",
    "float_input_node",
    "input_node",
    "score",
    "score_weights",
    "trace",
]

CHUNK = 1 << 17  # numbers per node that `evaluate` holds at a time: they stay in the processor's cache


@dataclass(frozen=True, eq=False)
class Graph:
    """nodes: in the order of evaluation, the last one an `Output`. Checked when made: names, sources, shapes, exponents, formats."""

    nodes: tuple[Node, ...]
    structure: dict[str, Structure] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "structure", check(self.nodes))

    @property
    def output(self) -> Output:
        """The last node."""
        node = self.nodes[-1]
        assert isinstance(node, Output)
        return node

    @property
    def inputs(self) -> tuple[Input | FloatInput, ...]:
        """The nodes that read features, in order."""
        return tuple(node for node in self.nodes if isinstance(node, Input | FloatInput))

    @property
    def exact(self) -> bool:
        """Whether the logits are integers. Integers come only from integers, so then every node they need is exact."""
        return self.structure[self.output.name].exact


def input_node(name: str, group: Group, to: Fixed) -> Input:
    """The input step of `group` onto the grid of `to`: the card's clip within the format, rounded inwards; the NaN value rounded to the grid and clamped."""
    n = len(group.variables)
    quant = Quant(to, "half_even", "sat")
    lo, hi = limits(quant, n)
    f = np.broadcast_to(np.asarray(to.f, np.int64), n).astype(np.int32)
    with np.errstate(over="ignore"):
        least, most, nan = (np.ldexp(np.asarray(value, np.float64), f) for value in (group.lo, group.hi, group.nan))
    lo = np.clip(np.ceil(least), lo, hi).astype(np.int64)
    hi = np.clip(np.floor(most), lo, hi).astype(np.int64)
    nan = np.clip(np.rint(nan), lo, hi).astype(np.int64)
    return Input(name, (), group.name, group.variables, group.length, group.centre, group.scale, lo, hi, nan, quant)


def float_input_node(name: str, group: Group) -> FloatInput:
    """The normalisation of `group` in float32."""
    return FloatInput(name, (), group.name, group.variables, group.length, group.centre, group.scale, group.lo, group.hi, group.nan)


def evaluate(graph: Graph, x: Features) -> np.ndarray:
    """Logits of raw float32 features, `[rows, n_outputs]`: int64 of an exact graph, whose value is n * 2**-f (`graph.structure`); float32 otherwise."""
    rows = _rows(graph, x)
    widest = max(s.n * (s.length or 1) for s in graph.structure.values())
    step = max(1, CHUNK // widest)
    parts = [trace(graph, x.take(slice(start, start + step)))[graph.output.name] for start in range(0, max(rows, 1), step)]
    return np.concatenate(parts)


def trace(graph: Graph, x: Features) -> dict[str, np.ndarray]:
    """The value of every node, by name: `[rows, n]` or `[rows, length, n]`; what it holds at index >= count has no meaning. Rows are not chunked."""
    _rows(graph, x)
    values: dict[str, np.ndarray] = {}
    for node in graph.nodes:
        values[node.name] = _value(graph, node, [values[source] for source in node.sources], x)
    return values


def score_weights(graph: Graph) -> tuple[np.ndarray, int]:
    """The integer score as (int64 `[n_outputs]`, f): score = sum_o weight[o] * logit[o], worth score * 2**-f. Refused where the output has none."""
    weights, f = graph.output.score, graph.structure[graph.output.name].f
    if weights is None or f is None:
        raise UsageError(f"output '{graph.output.name}' has no integer score", then="a float graph's discriminant is computed from its logits")
    used = f[weights != 0]
    top = int(used.max()) if len(used) else 0
    return np.where(weights != 0, weights << np.maximum(top - f, 0), 0), top


def score(graph: Graph, outputs: np.ndarray) -> np.ndarray:
    """The discriminant of integer logits `[rows, n_outputs]`, int64 `[rows]`: what thresholds cut on."""
    weights, _ = score_weights(graph)
    _guard(graph.output, _bound(outputs, weights[:, None]))
    found: np.ndarray = outputs @ weights
    return found


def _rows(graph: Graph, x: Features) -> int:
    rows = None
    for node in graph.inputs:
        if node.group not in x.groups or (node.length is not None and node.group not in x.counts):
            what = f"the counts of group '{node.group}'" if node.group in x.groups else f"group '{node.group}'"
            raise UsageError(f"the features lack {what}", near=nearest(node.group, x.groups), then=f"groups given: {', '.join(x.groups)}")
        array = x.groups[node.group]
        shape = (len(node.variables),) if node.length is None else (node.length, len(node.variables))
        rows = len(array) if rows is None else rows
        counted = node.length is None or np.shape(x.counts[node.group]) == (rows,)
        if array.dtype != np.float32 or array.shape != (rows, *shape) or not counted:
            raise UsageError(f"group '{node.group}' must be float32 [{rows}, {', '.join(map(str, shape))}], found {array.dtype} {list(array.shape)}")
    return rows or 0


def _present(graph: Graph, node: Flatten | Pool | FloatPool | Window, x: Features) -> tuple[np.ndarray, np.ndarray]:
    """(bool [rows, length, 1]: the source's constituent is real, int64 [rows]: how many)."""
    source = graph.structure[node.sources[0]]
    assert source.length is not None
    count = source.present(x.counts[node.group])
    return (np.arange(source.length) < count[:, None])[:, :, None], count


def _window(graph: Graph, node: Window, n: np.ndarray, x: Features) -> np.ndarray:
    present, _ = _present(graph, node, x)
    padded = np.pad(np.where(present, n, n.dtype.type(0)), ((0, 0), (node.before, node.after), (0, 0)))
    positions = graph.structure[node.name].length
    assert positions is not None
    gathered = padded[:, np.arange(positions)[:, None] * node.stride + np.arange(node.kernel)]  # [rows, positions, kernel, n]
    return gathered.reshape(len(n), positions, graph.structure[node.name].n)


def _bound(n: np.ndarray, w: np.ndarray) -> float:
    """An upper bound of every partial sum of n @ w, in float64 (rounding of the bound itself is covered by the margins of its users)."""
    return float((_most(n) @ np.abs(w).astype(np.float64)).max(initial=0))


def _most(n: np.ndarray) -> np.ndarray:
    """Largest magnitude per feature, float64 `[n]`."""
    flat = n.reshape(-1, n.shape[-1])
    return np.asarray(np.maximum(flat.max(axis=0, initial=0), -flat.min(axis=0, initial=0)).astype(np.float64))


def _guard(node: Node, bound: float) -> None:
    if bound >= 2.0**62:
        raise RunFailed(f"{type(node).__name__} '{node.name}' leaves int64", where=f"node '{node.name}'", then="hlt_train.proof.prove names the width it needs")


def _affine(node: Affine, n: np.ndarray) -> np.ndarray:
    bound = _bound(n, node.w) + float(np.abs(node.b).max(initial=0))
    _guard(node, bound)
    if bound < 2.0**52:
        acc: np.ndarray = (n.astype(np.float64) @ node.w.astype(np.float64)).astype(np.int64) + node.b
    else:
        acc = n @ node.w + node.b
    return np.maximum(acc, 0, out=acc) if node.relu else acc


def _shifted(node: Node, n: np.ndarray, f: np.ndarray, quant: Quant) -> np.ndarray:
    shift = (f - quant.to.f).astype(np.float64)
    _guard(node, float((_most(n) * 2.0 ** np.maximum(-shift, 0) + 2.0 ** np.maximum(shift - 1, 0)).max(initial=0)))
    return requantise(n, f, quant)


def _mean(node: Pool, total: np.ndarray, count: np.ndarray, f: np.ndarray, quant: Quant) -> np.ndarray:
    gain = np.broadcast_to(np.asarray(quant.to.f, np.int64), f.shape) - f
    most = _most(total) * 2.0 ** (np.maximum(gain, 0) + 1.0)
    _guard(node, float((most + 2.0 ** np.maximum(-gain, 0) * 2.0 * max(int(count.max(initial=0)), 1)).max(initial=0)))
    n = rounded_rational(total << np.maximum(gain, 0), np.maximum(count, 1)[:, None] << np.maximum(-gain, 0), quant)
    # The rational is at its final exponent: only the overflow rule is left.
    return requantise(n, np.asarray(quant.to.f, np.int64), quant)


def _pool(graph: Graph, node: Pool | FloatPool, n: np.ndarray, x: Features) -> np.ndarray:
    present, count = _present(graph, node, x)
    total: np.ndarray
    kept: np.ndarray = np.where(present, n, n.dtype.type(0))
    if node.kind == "max":
        least = np.iinfo(np.int64).min if isinstance(node, Pool) else -np.inf
        top: np.ndarray = np.where(present, n, n.dtype.type(least)).max(axis=1)
        return np.asarray(np.where(count[:, None] > 0, top, n.dtype.type(0)))
    if isinstance(node, FloatPool):
        total = kept.sum(axis=1, dtype=np.float32)
        if node.kind == "mean":
            total = total / np.maximum(count, 1).astype(np.float32)[:, None]
        return total
    _guard(node, float(np.abs(kept).max(initial=0)) * n.shape[1])
    total = kept.sum(axis=1)
    f = graph.structure[node.sources[0]].f
    if node.quant is None or f is None:
        return total
    return _mean(node, total, count, f, node.quant)


def _value(graph: Graph, node: Node, sources: list[np.ndarray], x: Features) -> np.ndarray:
    f = graph.structure[node.name].f
    if isinstance(node, Input):
        assert f is not None
        return input_step(x.groups[node.group], node.centre, scaled(node.scale, f), node.lo, node.hi, node.nan)
    if isinstance(node, FloatInput):
        return normalise(x.groups[node.group], node)
    first = sources[0]
    if isinstance(node, Affine):
        return _affine(node, first)
    if isinstance(node, Requant):
        before = graph.structure[node.sources[0]].f
        assert before is not None
        return _shifted(node, first, before, node.quant)
    if isinstance(node, Add):
        return _add(graph, node, sources)
    if isinstance(node, Concat):
        return np.concatenate(sources, axis=-1)
    if isinstance(node, Flatten):
        present, _ = _present(graph, node, x)
        return np.where(present, first, first.dtype.type(0)).reshape(len(first), graph.structure[node.name].n)
    if isinstance(node, Window):
        return _window(graph, node, first, x)
    if isinstance(node, Pool | FloatPool):
        return _pool(graph, node, first, x)
    if isinstance(node, FloatAffine):
        return activate(first @ node.w + node.b, node.activation)
    assert isinstance(node, Output)
    return first


def _add(graph: Graph, node: Add, sources: list[np.ndarray]) -> np.ndarray:
    top = graph.structure[node.name].f
    if top is None:
        return _sum(sources)
    shifts = [top - f for f in (graph.structure[name].f for name in node.sources) if f is not None]
    _guard(node, sum(float((_most(n) * 2.0**s).max(initial=0)) for n, s in zip(sources, shifts, strict=True)))
    return _sum([n << s for n, s in zip(sources, shifts, strict=True)])


def _sum(arrays: list[np.ndarray]) -> np.ndarray:
    total = arrays[0]
    for array in arrays[1:]:
        total = total + array
    return total
