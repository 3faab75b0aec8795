"""The vectors on which an artefact is compared with the golden model: random ones are not a test of ties, so most kinds are constructed.

`vectors` makes at least n raw inputs: random over the formats and beyond, data, entries nearest a threshold, ties and contraction traps of the input step,
saturation and limits, NaN and infinities, empty, full and over-long collections. `hlt_train.marking` finds among them the ties and limits inside the network.
See `docs/numbers.md`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hlt_train.golden import CATEGORIES, GARBAGE
from hlt_train.graph import Affine, FloatInput, Graph, Input, Window
from hlt_train.structure import scaled
from hlt_train.types import Features

__all__ = ["Grid", "Vectors", "grid_of", "input_ties", "row_bytes", "vectors"]

Float32 = npt.NDArray[np.float32]
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 1e-38, 3.4028235e38, -3.4028235e38, 1e30, -1e30], np.float32)
ULPS = np.arange(-24, 25)
BLOCK = 4096  # rows whose float64 coordinates are held at a time
SHIPPED = 6 << 20  # bytes that the constructed vectors may take where rows are long
TIES = 256  # grid points per variable that are searched for ties


class Vectors(NamedTuple):
    """x: raw features with garbage beyond every count; category: uint8 `[n]`, index into `hlt_train.golden.CATEGORIES`."""

    x: Features
    category: np.ndarray


class Grid(NamedTuple):
    """An input in units of its grid: t = (x - centre) * factor runs over [lo, hi]. A float input has the grid of 1/64 of its scale."""

    centre: Float32
    factor: Float32
    lo: npt.NDArray[np.int64]
    hi: npt.NDArray[np.int64]


def grid_of(graph: Graph, node: Input | FloatInput) -> Grid:
    """The grid of an input node."""
    if isinstance(node, Input):
        f = graph.structure[node.name].f
        assert f is not None
        return Grid(node.centre, scaled(node.scale, f), node.lo, node.hi)
    factor = np.where(node.scale == 0, np.float32(1), node.scale) * np.float32(64)
    lo, hi = (np.clip(limit * np.float32(64), -(2.0**20), 2.0**20).astype(np.int64) for limit in (node.lo, node.hi))
    return Grid(node.centre, factor.astype(np.float32), lo, hi)


def _raw(grid: Grid, t: np.ndarray) -> Float32:
    """About the x of a grid coordinate t, float32 of t's shape."""
    x: Float32 = np.clip(t / grid.factor.astype(np.float64) + grid.centre, -3e38, 3e38).astype(np.float32)
    return x


def _step(x: Float32, grid: Grid, j: int) -> Float32:
    with np.errstate(over="ignore"):
        t: Float32 = (x - grid.centre[j]) * grid.factor[j]
    return t


def input_ties(grid: Grid, j: int, rng: np.random.Generator) -> tuple[Float32, Float32]:
    """For variable j: (x whose t is exactly a half, x on which a wrong arithmetic gives another integer), each possibly empty.

    The wrong ones: x * s + o, rounded twice or fused; the whole step in float64; half away from zero or upwards.
    """
    lo, hi = int(grid.lo[j]), int(grid.hi[j])
    span = np.unique(np.concatenate([rng.integers(lo - 1, hi + 1, TIES), [lo - 1, lo, hi - 1, hi]]))
    middle = ((span + 0.5) / np.float64(grid.factor[j]) + np.float64(grid.centre[j])).astype(np.float32)
    middle = middle[np.isfinite(middle)]
    x = (middle[:, None] + ULPS * np.spacing(middle)[:, None]).astype(np.float32).ravel()
    t = _step(x, grid, j)
    x, t = x[np.isfinite(t)], t[np.isfinite(t)]
    s, c = grid.factor[j], grid.centre[j]
    o = np.float32(-np.float64(c) * np.float64(s))
    exact = (x.astype(np.float64) - np.float64(c)) * np.float64(s)
    fused = x.astype(np.float64) * np.float64(s) + np.float64(o)
    wrong = (x * s + o, fused.astype(np.float32), exact, np.floor(np.clip(t, lo, hi) + np.float32(0.5)), np.trunc(t + np.copysign(np.float32(0.5), t)))
    traps = np.zeros(x.shape, bool)
    for value in wrong:
        traps |= np.rint(np.clip(value, lo, hi)) != np.rint(np.clip(t, lo, hi))
    return x[(t - np.floor(t)) == 0.5], x[traps]


def _random(graph: Graph, n: int, rng: np.random.Generator) -> Features:
    """Rows uniform over the format and a fifth beyond it, rows of normal inputs, and rows of any float32 magnitude."""
    groups, counts = {}, {}
    kind = rng.choice(3, n, p=[0.5, 0.4, 0.1])
    for node in graph.inputs:
        grid = grid_of(graph, node)
        row = (len(node.variables),) if node.length is None else (node.length, len(node.variables))
        x = groups[node.group] = np.empty((n, *row), np.float32)
        for start in range(0, n, BLOCK):
            for k in range(3):
                rows = start + np.flatnonzero(kind[start : start + BLOCK] == k)
                x[rows] = _raw(grid, _coordinates(grid, k, (len(rows), *row), rng))
        if node.length is not None:
            full = rng.random(n) < 0.1
            counts[node.group] = np.where(full, node.length, rng.integers(0, node.length + 1, n)).astype(np.int32)
    return Features(groups, counts)


def _coordinates(grid: Grid, kind: int, shape: tuple[int, ...], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Grid coordinates of one kind of random row."""
    middle, half = (grid.lo + grid.hi) / 2, (grid.hi - grid.lo) / 2 + 1
    if kind == 0:
        return np.add(middle, 1.2 * half * rng.uniform(-1, 1, shape))
    if kind == 1:
        return np.add(middle, half / 5 * rng.standard_normal(shape))
    magnitude: npt.NDArray[np.float64] = np.exp(rng.uniform(-30, 30, shape))
    return np.copysign(magnitude, rng.uniform(-1, 1, shape))


def _fill(graph: Graph, x: Features, rng: np.random.Generator, values: dict[str, list[Float32]]) -> Features:
    """Overwrite x by random members of `values[group][variable]`: everywhere in half of the rows, in one variable of the others."""
    for node in graph.inputs:
        array = x.groups[node.group]
        everywhere = rng.random(len(array)) < 0.5
        chosen = rng.integers(0, len(node.variables), len(array))
        for j, pool in enumerate(values[node.group]):
            if len(pool):
                rows = everywhere | (chosen == j)
                array[rows, ..., j] = rng.choice(pool, array[rows, ..., j].shape)
        if node.length is not None:  # a trap in an absent constituent is none
            x.counts[node.group] = np.maximum(x.counts[node.group], 1)
    return x


def _ties(graph: Graph, n: int, rng: np.random.Generator) -> Features:
    values: dict[str, list[Float32]] = {}
    for node in graph.inputs:
        grid = grid_of(graph, node)
        found = [input_ties(grid, j, rng) for j in range(len(node.variables))]
        # As many ties as traps, so that a variable with few traps shows them often.
        values[node.group] = [np.concatenate([rng.choice(part, 512) for part in pair if len(part)] or [np.zeros(0, np.float32)]) for pair in found]
    return _fill(graph, _random(graph, n, rng), rng, values)


def _saturated(graph: Graph, n: int, rng: np.random.Generator) -> Features:
    """Inputs at, next to and far beyond their limits; for every neuron that reads an input, the signs that drive it to its extremes."""
    values = {}
    for node in graph.inputs:
        grid = grid_of(graph, node)
        steps = np.array([-1000, -1, -0.5, -0.499, 0, 0.499, 0.5, 1, 1000])
        ends = [np.concatenate([_raw(_one(grid, j), np.asarray(end[j] + steps)) for end in (grid.lo, grid.hi)]) for j in range(len(node.variables))]
        values[node.group] = [np.concatenate([e, np.nextafter(e, np.float32(np.inf)), np.nextafter(e, np.float32(-np.inf))]) for e in ends]
    x = _fill(graph, _random(graph, n, rng), rng, values)
    inputs: dict[str, Input | FloatInput] = {node.name: node for node in graph.inputs}
    windows = {node.name: node for node in graph.nodes if isinstance(node, Window) and node.sources[0] in inputs}
    row = 0
    for layer in graph.nodes:
        if isinstance(layer, Affine) and (layer.sources[0] in inputs or layer.sources[0] in windows):
            window = windows.get(layer.sources[0])
            node = inputs[layer.sources[0] if window is None else window.sources[0]]
            grid = grid_of(graph, node)
            for sign in (layer.w.T, -layer.w.T):
                wanted = sign if node.length is None else _row(sign, window, node.length)
                extreme = _raw(grid, np.where(wanted > 0, grid.hi, grid.lo).astype(np.float64))[: n - row]
                rows = slice(row, row + len(extreme))
                x.groups[node.group][rows] = extreme
                if node.length is not None:
                    x.counts[node.group][rows] = node.length
                row += len(extreme)
    return x


def _row(sign: np.ndarray, window: Window | None, length: int) -> np.ndarray:
    """Signs of the weights `[outputs, I]` -> those of the constituents `[outputs, length, n_vars]` of which one position, at least, reads exactly these."""
    if window is None:
        return np.repeat(sign[:, None, :], length, axis=1)
    neighbours = sign.reshape(len(sign), window.kernel, -1)
    first = -(-window.before // window.stride) * window.stride - window.before  # of the earliest window with nothing before the collection
    return neighbours[:, (np.arange(length) - first) % window.kernel]


def _one(grid: Grid, j: int) -> Grid:
    one = slice(j, j + 1)
    return Grid(grid.centre[one], grid.factor[one], grid.lo[one], grid.hi[one])


def _special(graph: Graph, n: int, rng: np.random.Generator) -> Features:
    values = {node.group: [SPECIAL for _ in node.variables] for node in graph.inputs}
    x = _fill(graph, _random(graph, n, rng), rng, values)
    for k, value in enumerate(SPECIAL[:n]):  # and rows of nothing else
        for array in x.groups.values():
            array[k] = value
    return x


def _collections(graph: Graph, n: int, rng: np.random.Generator) -> Features:
    x = _random(graph, n, rng)
    for node in graph.inputs:
        if node.length is not None:
            extremes = np.array([0, 1, node.length - 1, node.length, node.length + 1, node.length + 100, 2**31 - 1], np.int32)
            x.counts[node.group] = rng.choice(extremes, n).astype(np.int32)
    for counts in x.counts.values():
        counts[: n // 20] = 0  # all of them empty at once
    return x


def _garbage(graph: Graph, x: Features) -> Features:
    """Beyond every count what `hlt_train.golden.pad` puts there."""
    groups = {name: np.array(array, np.float32) for name, array in x.groups.items()}
    for node in graph.inputs:
        if node.length is not None:
            absent = np.arange(node.length) >= x.counts[node.group][:, None]
            for parity, value in enumerate(GARBAGE):
                groups[node.group][parity::2][absent[parity::2]] = value
    return Features(groups, {name: np.maximum(counts, 0).astype(np.int32) for name, counts in x.counts.items()})


def _select(graph: Graph, x: Features, rows: np.ndarray | slice) -> Features:
    counted = [node.group for node in graph.inputs if node.length is not None]
    return Features({node.group: x.groups[node.group][rows] for node in graph.inputs}, {name: x.counts[name][rows] for name in counted})


def _size(graph: Graph, x: Features) -> int:
    return len(x.groups[graph.inputs[0].group])


def row_bytes(graph: Graph) -> int:
    """Bytes of the features of one row with full collections."""
    return 4 * sum(len(node.variables) * (node.length or 1) for node in graph.inputs)


def vectors(graph: Graph, data: Features | None = None, nearest: Features | None = None, *, n: int = 100_000, seed: int = 0) -> Vectors:
    """At least n vectors of all kinds, the same for the same arguments. All of `nearest` is taken, of `data` at most n // 2 rows."""
    rng = np.random.default_rng(seed)
    some = max(min(n // 25, SHIPPED // (7 * row_bytes(graph))), 64)
    parts: list[tuple[str, Features]] = [
        ("input_tie", _ties(graph, 3 * some, rng)),
        ("saturation", _saturated(graph, 2 * some, rng)),
        ("special", _special(graph, some, rng)),
    ]
    if any(node.length is not None for node in graph.inputs):
        parts.append(("collection", _collections(graph, some, rng)))
    if nearest is not None:
        parts.append(("nearest", _select(graph, nearest, slice(None))))
    if data is not None:
        rows = _size(graph, data)
        picked = np.sort(rng.permutation(rows)[: n // 2])
        parts.append(("data", _select(graph, data, picked)))
    missing = n - sum(_size(graph, x) for _, x in parts)
    parts.append(("random", _random(graph, max(missing, some), rng)))
    groups = {node.group: np.concatenate([x.groups[node.group] for _, x in parts]) for node in graph.inputs}
    counts = {node.group: np.concatenate([x.counts[node.group] for _, x in parts]) for node in graph.inputs if node.length is not None}
    category = np.concatenate([np.full(_size(graph, x), CATEGORIES.index(name), np.uint8) for name, x in parts])
    return Vectors(_garbage(graph, Features(groups, counts)), category)
