"""Which networks every export target is compared on: a pairwise covering array of formats, weights and families, what each target refuses of it, and how many
vectors. Tests parametrise over `CASES`, and `page` prints it as docs/coverage-of-exports.md.

A new family is a function and its line in `FAMILIES`; a target that refuses it says so in `TARGETS`.
"""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from hlt_train.exporters import Exporter
from hlt_train.exporters.alkaid import alkaid
from hlt_train.exporters.cpp import cpp
from hlt_train.exporters.hls4ml import hls4ml
from hlt_train.exporters.lwtnn import lwtnn
from hlt_train.exporters.onnx import onnx
from hlt_train.exporters.qonnx import qonnx
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
from tests import graphs

__all__ = ["CASES", "FACTORS", "FAMILIES", "FLOATS", "NEAREST", "TARGETS", "TOLERANCE", "Case", "Row", "covering", "float_graph", "graph_of", "page", "pairs"]


NEAREST = 200  # vectors nearest the working points
TOLERANCE = 1e-5  # of a float network, in units of the largest logit


class Row(NamedTuple):
    """One network: its Requant nodes round and overflow in one way, with a sign or without; formats and exponents of weights per tensor, channel or element.

    Overflow "minifloat": numbers of two significant bits, which saturate at the largest of either sign.
    """

    round: str
    over: str
    sign: str
    formats: str
    weights: str
    family: str

    def __str__(self) -> str:
        return ", ".join(self)


# ------------------------------------------------------------------------------------------------------------------------------------- networks


class Maker:
    """A graph in the making. `f` and `n`: exponents and number of features of every node so far."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.rng = np.random.default_rng(zlib.crc32(repr(tuple(row)).encode()))
        self.nodes: list[Node] = []
        self.f: dict[str, np.ndarray] = {}

    def put(self, node: Node, f: np.ndarray) -> str:
        """Add a node with these exponents; its name."""
        self.nodes.append(node)
        self.f[node.name] = np.asarray(f, np.int64)
        return node.name

    def _exponents(self, n: int, middle: int) -> np.ndarray:
        spread = 0 if self.row.formats == "per tensor" else 1
        return (middle + self.rng.integers(-spread, spread + 1, n)).astype(np.int64)

    def input(self, group: str, n: int, length: int | None = None) -> str:
        """Seven bits, six to eight where exponents differ; per element the first variable has none and is 0."""
        f = self._exponents(n, 3)
        i = np.full(n, 3)
        if self.row.formats == "per element":
            i[0] = -1 - f[0]
        return self.put(input_node(f"in_{group}", graphs.group(self.rng, group, n, length), Fixed(True, 3 if self.row.formats == "per tensor" else i, f)), f)

    def quant(self, n: int, width: int = 5) -> Quant:
        """About `width` bits, one more of a minifloat; per element from none to seven."""
        signed = self.row.sign == "signed"
        modes = (self.row.round, self.row.over, None)
        if self.row.over == "minifloat":
            width, modes = width + 1, (self.row.round, "sat_sym", 1)
        f = self._exponents(n, 3)
        bits = self.rng.integers(0, 8, n) if self.row.formats == "per element" else np.full(n, width)
        if self.row.formats == "per tensor":
            return Quant(Fixed(signed, width - int(signed) - 3, 3), *modes)  # type: ignore[arg-type]
        return Quant(Fixed(signed, (bits - int(signed) - f).astype(np.int64), f), *modes)  # type: ignore[arg-type]

    def affine(self, name: str, source: str, n_out: int, *, relu: bool = False) -> str:
        """Weights of the row's kind times a power of two per tensor, output or weight, aligned to the exponents of the inputs."""
        before = self.f[source]
        kinds = {"full": np.arange(-8, 8), "ternary": np.array([-1, 0, 1]), "binary": np.array([-1, 1]), "power of two": np.array([-8, -4, -2, -1, 1, 2, 4, 8])}
        kind = self.rng.choice(kinds[self.row.weights], (len(before), n_out))
        if self.row.formats == "per element":
            kind = kind << self.rng.integers(0, 3, kind.shape)
        w = kind << (before.max() - before)[:, None]
        bits = {"full": 4, "ternary": 2, "binary": 2, "power of two": 3}[self.row.weights]
        f = before.max() + self._exponents(n_out, bits)
        b = self.rng.integers(-40, 41, n_out)
        return self.put(Affine(name, (source,), w.astype(np.int64), b.astype(np.int64), f, relu), f)

    def requant(self, name: str, source: str) -> str:
        """To the row's format."""
        quant = self.quant(len(self.f[source]))
        return self.put(Requant(name, (source,), quant), np.broadcast_to(np.asarray(quant.to.f), len(self.f[source])))

    def layer(self, name: str, source: str, n_out: int) -> str:
        """Affine, with ReLU where the format has no sign and does not wrap, and Requant."""
        relu = self.row.sign == "unsigned" and self.row.over != "wrap"
        return self.requant(f"{name}_act", self.affine(name, source, n_out, relu=relu))

    def pool(self, source: str, kind: str) -> str:
        """Over the constituents; a mean of four bits, so that it overflows."""
        quant = self.quant(len(self.f[source]), 4) if kind == "mean" else None
        f = self.f[source] if quant is None else np.broadcast_to(np.asarray(quant.to.f), len(self.f[source]))
        return self.put(Pool("pool", (source,), kind, "jets", quant), f)  # type: ignore[arg-type]

    def graph(self, last: str) -> Graph:
        """With logits and a score."""
        self.affine("logits", last, 3)
        return Graph((*self.nodes, Output("out", ("logits",), ("a", "b", "c"), "none", np.array([1, -1, 2], np.int64))))


def mlp(make: Maker) -> str:
    """Two hidden layers."""
    return make.layer("dense1", make.layer("dense0", make.input("event", 6), 12), 8)


def residual(make: Maker) -> str:
    """The second layer's output beside its input."""
    first = make.layer("dense0", make.input("event", 6), 8)
    second = make.layer("dense1", first, 8)
    return make.put(Add("sum", (first, second)), np.maximum(make.f[first], make.f[second]))


def sets(make: Maker, kind: str) -> str:
    """Constituents pooled, beside scalars; per element they are flattened too, each with a format of its own."""
    phi = make.layer("phi", make.input("jets", 3, 4), 6)
    parts = [make.pool(phi, kind), make.input("event", 2)]
    if make.row.formats == "per element":
        parts.append(make.requant("flat_act", make.put(Flatten("flat", (phi,), "jets"), np.tile(make.f[phi], 4))))
    return make.layer("rho", make.put(Concat("all", tuple(parts)), np.concatenate([make.f[part] for part in parts])), 8)


def convolution(make: Maker) -> str:
    """Two convolutions over constituents, the second with a stride; their sum; per element the positions themselves too."""
    source = make.input("jets", 2, 5)
    for k, stride in enumerate((1, 2)):
        window = make.put(Window(f"near{k}", (source,), 3, stride, 1, 1, "jets"), np.tile(make.f[source], 3))
        source = make.layer(f"conv{k}", window, 4)
    pooled = make.pool(source, "sum")
    if make.row.formats == "per element":
        flat = make.requant("flat_act", make.put(Flatten("flat", (source,), "jets"), np.tile(make.f[source], 3)))
        pooled = make.put(Concat("all", (pooled, flat)), np.concatenate([make.f[pooled], make.f[flat]]))
    return make.layer("rho", pooled, 6)


FAMILIES: dict[str, Callable[[Maker], str]] = {
    "MLP": mlp,
    "residual": residual,
    "DeepSets sum": functools.partial(sets, kind="sum"),
    "DeepSets max": functools.partial(sets, kind="max"),
    "DeepSets mean": functools.partial(sets, kind="mean"),
    "convolution": convolution,
}

FACTORS: dict[str, tuple[str, ...]] = {
    "round": ("floor", "half_up", "half_even"),
    "over": ("wrap", "sat", "sat_sym", "minifloat"),
    "sign": ("signed", "unsigned"),
    "formats": ("per tensor", "per channel", "per element"),
    "weights": ("full", "ternary", "binary", "power of two"),
    "family": tuple(FAMILIES),
}


@functools.cache
def graph_of(row: Row) -> Graph:
    """The network of a row, always the same."""
    make = Maker(row)
    return make.graph(FAMILIES[row.family](make))


def float_mlp(rng: np.random.Generator) -> Graph:
    """A chain on scalars."""
    draw = lambda *shape: rng.normal(0, 0.6, shape).astype(np.float32)  # noqa: E731
    nodes = (
        float_input_node("in", graphs.group(rng, "event", 6)),
        FloatAffine("dense", ("in",), draw(6, 12), draw(12), "tanh"),
        FloatAffine("logits", ("dense",), draw(12, 3), draw(3), "none"),
        Output("out", ("logits",), ("a", "b", "c"), "softmax"),
    )
    return Graph(nodes)


def float_sets(rng: np.random.Generator) -> Graph:
    """Constituents summed, beside scalars."""
    draw = lambda *shape: rng.normal(0, 0.6, shape).astype(np.float32)  # noqa: E731
    nodes = (
        float_input_node("in_jets", graphs.group(rng, "jets", 3, 4)),
        float_input_node("in_event", graphs.group(rng, "event", 2)),
        FloatAffine("phi", ("in_jets",), draw(3, 6), draw(6), "relu"),
        FloatPool("pool", ("phi",), "sum", "jets"),
        Concat("all", ("pool", "in_event")),
        FloatAffine("logits", ("all",), draw(8, 3), draw(3), "none"),
        Output("out", ("logits",), ("a", "b", "c"), "softmax"),
    )
    return Graph(nodes)


def float_convolution(rng: np.random.Generator) -> Graph:
    """Neighbours of every second constituent, summed."""
    draw = lambda *shape: rng.normal(0, 0.6, shape).astype(np.float32)  # noqa: E731
    nodes = (
        float_input_node("in_jets", graphs.group(rng, "jets", 3, 5)),
        Window("near", ("in_jets",), 3, 2, 1, 1, "jets"),
        FloatAffine("conv", ("near",), draw(9, 6), draw(6), "relu"),
        FloatPool("pool", ("conv",), "sum", "jets"),
        FloatAffine("logits", ("pool",), draw(6, 3), draw(3), "none"),
        Output("out", ("logits",), ("a", "b", "c"), "softmax"),
    )
    return Graph(nodes)


FLOATS: dict[str, Callable[[np.random.Generator], Graph]] = {
    "float MLP": float_mlp,
    "float DeepSets sum": float_sets,
    "float convolution": float_convolution,
}


@functools.cache
def float_graph(name: str) -> Graph:
    """A float network by its name."""
    return FLOATS[name](np.random.default_rng(3))


# -------------------------------------------------------------------------------------------------------------------------------- covering array


def pairs(row: Row) -> set[tuple[tuple[int, str], tuple[int, str]]]:
    """The pairs of levels that a row holds."""
    return set(itertools.combinations(enumerate(row), 2))


def covering(takes: Callable[[Row], bool] = lambda row: True) -> list[Row]:
    """Rows that hold every pair of levels which any accepted row holds: each the one with the most pairs that are missing yet, the first of equals."""
    candidates = {row: pairs(row) for row in itertools.starmap(Row, itertools.product(*FACTORS.values())) if takes(row)}
    missing: set[Any] = set().union(*candidates.values())
    rows = []
    while missing:
        best = max(candidates, key=lambda row: len(candidates[row] & missing))
        rows.append(best)
        missing -= candidates[best]
    return rows


# ---------------------------------------------------------------------------------------------------------------------------------------- targets


class Target(NamedTuple):
    """A target, or a form of one.

    Attributes:
        make: its exporter.
        refuses: what it refuses in a row, "" if it takes it.
        floats: the float networks that it takes.
        fast: how many rows of its array the default suite compares, and on how many vectors; the rest is slow.
        vectors: on which every row is compared by the slow tests.
    """

    make: Callable[[], Exporter]
    refuses: Callable[[Row], str]
    floats: tuple[str, ...]
    fast: tuple[int, int]
    vectors: int


def _qdq(row: Row) -> str:
    return "" if row.formats == "per tensor" else "one exponent per tensor"


def _fixed(row: Row) -> str:
    return "minifloat" if row.over == "minifloat" else ""


def _hls4ml(row: Row) -> str:
    if _fixed(row):
        return _fixed(row)
    if row.family == "DeepSets mean":
        return "mean"
    return "maximum that can be negative" if row.family == "DeepSets max" and row.sign == "signed" else ""


def _qonnx(row: Row) -> str:
    said = {
        "minifloat": row.over == "minifloat",
        "concatenation": row.family.startswith("DeepSets"),
        "half up": row.round == "half_up",
        "wrap": row.over == "wrap",
        "a format per feature": row.formats != "per tensor",
    }
    return next((what for what, refused in said.items() if refused), "")


TARGETS: dict[str, Target] = {
    "cpp": Target(cpp, lambda row: "", tuple(FLOATS), (2, 3000), 100_000),
    "onnx": Target(onnx, lambda row: "", tuple(FLOATS), (99, 1000), 100_000),
    "onnx, QDQ": Target(lambda: onnx(quantised="qdq"), _qdq, (), (99, 1000), 100_000),
    "hls4ml": Target(hls4ml, _hls4ml, (), (1, 3000), 100_000),
    "qonnx": Target(qonnx, _qonnx, (), (99, 1000), 100_000),
    "alkaid": Target(alkaid, lambda row: _fixed(row) or ("mean" if row.family == "DeepSets mean" else ""), (), (99, 1000), 100_000),
    "lwtnn": Target(lwtnn, lambda row: "rounding", ("float MLP", "float DeepSets sum"), (0, 0), 0),
}


class Case(NamedTuple):
    """A network for a target: the row of an exact one, or the name of a float one; vectors compared by the default suite (0: none) and by `make test-all`."""

    target: str
    network: Row | str
    fast: int
    slow: int

    @property
    def graph(self) -> Graph:
        """The network."""
        return float_graph(self.network) if isinstance(self.network, str) else graph_of(self.network)


def _cases() -> tuple[Case, ...]:
    found = []
    for name, target in TARGETS.items():
        rows = covering(lambda row, refuses=target.refuses: not refuses(row)) if target.vectors else []  # type: ignore[misc]
        many, vectors = target.fast
        found += [Case(name, row, vectors if k < many else 0, target.vectors) for k, row in enumerate(rows)]
        found += [Case(name, network, 0 if name == "cpp" else 1000, 100_000) for network in target.floats]
    return tuple(found)


CASES = _cases()


# ------------------------------------------------------------------------------------------------------------------------------------------ page


def _kinds(graph: Graph) -> set[str]:
    return {f"{type(node).__name__} {node.kind}" if isinstance(node, Pool | FloatPool) else type(node).__name__ for node in graph.nodes}


def _refused_everywhere(target: Target, has: Callable[[Graph, Row | str], bool]) -> bool:
    """Whether the target refuses every network of the array that has something."""
    rows = [row for row in itertools.starmap(Row, itertools.product(*FACTORS.values())) if has(graph_of(row), row)]
    floats = [name for name in FLOATS if has(float_graph(name), name)]
    return bool(rows or floats) and all(target.refuses(row) for row in rows) and not set(floats) & set(target.floats)


def _cell(name: str, has: Callable[[Graph, Row | str], bool]) -> str:
    mine = [case for case in CASES if case.target == name and has(case.graph, case.network)]
    fast, slow = sum(case.fast for case in mine), sum(case.slow for case in mine)
    if fast:
        return f"tested {fast:,} / {slow:,}"
    if slow:
        return f"test-all {slow:,}"
    return "refused" if _refused_everywhere(TARGETS[name], has) else "not run"


def _table(title: str, lines: Sequence[tuple[str, Callable[[Graph, Row | str], bool]]]) -> str:
    head = f"| {title} | " + " | ".join(f"`{name}`" for name in TARGETS) + " |\n|---|" + "---|" * len(TARGETS) + "\n"
    return head + "".join(f"| {line} | " + " | ".join(_cell(name, has) for name in TARGETS) + " |\n" for line, has in lines)


def page() -> str:
    """The tables as Markdown."""

    def level(factor: int, value: str) -> Callable[[Graph, Row | str], bool]:
        return lambda graph, network: isinstance(network, Row) and network[factor] == value

    kinds = sorted({kind for row in covering() for kind in _kinds(graph_of(row))}) + sorted(
        {kind for name in FLOATS for kind in _kinds(float_graph(name)) if kind.startswith("Float")}
    )
    nodes = [(kind, lambda graph, network, kind=kind: kind in _kinds(graph)) for kind in kinds]
    formats = [
        (value + {"weights": " weights", "formats": ""}.get(factor, ""), level(k, value))
        for k, (factor, values) in enumerate(FACTORS.items())
        if factor != "family"
        for value in values
    ]
    families = [(name, level(len(FACTORS) - 1, name)) for name in FAMILIES]
    families += [(name, lambda graph, network, name=name: network == name) for name in FLOATS]
    counts = ", ".join(f"{sum(case.target == name and isinstance(case.network, Row) for case in CASES)} ({name})" for name in TARGETS)
    return f"""# What the tests compare of every export

Written by `make docs` from the cases that `tests/exporters/test_covering.py` runs; a test fails when this page is not what they are.

Every target gets networks of a pairwise covering array: of rounding, overflow, sign, formats (per tensor, per channel, per element), kind of weights and
family, each pair of values occurs together in one of the networks at least, unless the target refuses all that have both. Networks per target:
{counts}.

Each is exported, and its `selftest.py` is run in a process that sees the directory and cannot import hlt-train. About a quarter of the vectors are constructed
(ties, limits, NaN and infinities, empty and over-long collections), a fifth resemble data, up to {NEAREST} lie nearest the working points, the rest are random.
An exact network must give every integer logit, score and decision, a float network its logits to {TOLERANCE:g} of the largest.

- **tested a / b**: at least a vectors in `make test`, and b in `make test-all`; no integer and no decision may differ.
- **test-all b**: in `make test-all` only.
- **refused**: by an error that names the node and an alternative, which is tested too.
- **not run**: nothing is known.

A network counts in every line that says something of it. The other tests of `tests/exporters` compare further networks.

{_table("formats", formats)}
{_table("families", families)}
{_table("nodes", nodes)}"""
