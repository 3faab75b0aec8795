"""The golden evaluator against Python integers, what a graph must be, and that no constant of a graph is without effect."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlt_train.errors import RunFailed, UsageError
from hlt_train.graph import (
    Add,
    Affine,
    Concat,
    Fixed,
    Flatten,
    FloatAffine,
    Graph,
    Input,
    Node,
    Output,
    Pool,
    Quant,
    Requant,
    evaluate,
    input_node,
    score,
    score_weights,
    trace,
)
from hlt_train.types import Features, Group
from hlt_train.vectors import vectors
from tests import by_fractions, graphs

I64 = np.int64


def plain_group(name: str, n: int, length: int | None = None, clip: float = np.inf) -> Group:
    """Inputs that are integers already: centre 0, scale 1."""
    f32 = np.float32
    variables = tuple(f"{name}{k}" for k in range(n))
    return Group(name, variables, length, np.zeros(n, f32), np.ones(n, f32), np.full(n, -clip, f32), np.full(n, clip, f32), np.zeros(n, f32))


def network(*nodes: Node, names: int) -> Graph:
    return Graph((*nodes, Output("out", (nodes[-1].name,), tuple(f"y{k}" for k in range(names)), "none")))


def pooled(kind: str, quant: Quant | None, length: int) -> Graph:
    pool = Pool("pool", ("in",), kind, "jets", quant)  # type: ignore[arg-type]
    return network(input_node("in", plain_group("jets", 1, length), Fixed(True, 20, 0)), pool, names=1)


def rounded(value: Fraction, rule: str) -> int:
    return {"floor": lambda v: v.__floor__(), "half_up": lambda v: (v + Fraction(1, 2)).__floor__(), "half_even": round}[rule](value)


@given(
    st.lists(st.lists(st.integers(-5000, 5000), min_size=0, max_size=9), min_size=1, max_size=8),
    st.integers(-3, 6),
    st.sampled_from(["floor", "half_up", "half_even"]),
)
def test_pools_are_those_of_python(rows: list[list[int]], f: int, rule: str) -> None:
    length = 6
    x = np.full((len(rows), length, 1), np.nan, np.float32)  # garbage beyond the count must not matter
    for k, row in enumerate(rows):
        x[k, : len(row[:length]), 0] = row[:length]
    features = Features({"jets": x}, {"jets": np.array([len(row) for row in rows], np.int32)})
    kept = [row[:length] for row in rows]
    mean = Quant(Fixed(True, 22 - f, f), rule, "sat")  # type: ignore[arg-type]
    assert evaluate(pooled("sum", None, length), features).ravel().tolist() == [sum(row) for row in kept]
    assert evaluate(pooled("max", None, length), features).ravel().tolist() == [max(row, default=0) for row in kept]
    expected = [rounded(Fraction(sum(row), max(len(row), 1)) * Fraction(2) ** f, rule) for row in kept]
    assert evaluate(pooled("mean", mean, length), features).ravel().tolist() == expected


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("make", [graphs.wild, graphs.wild_windows])
def test_whole_graphs_are_those_of_fractions(make: Callable[[int], Graph], seed: int) -> None:
    graph = make(seed)
    x = vectors(graph, n=1500, seed=seed).x
    found = evaluate(graph, x)
    for row in np.random.default_rng(seed).integers(0, len(found), 12):
        assert found[row].tolist() == by_fractions.logits(graph, x, int(row)), row


def test_counts_below_zero_and_beyond_the_length_are_clamped() -> None:
    x = np.arange(12, dtype=np.float32).reshape(4, 3, 1) + 1
    counts = np.array([-5, 0, 3, 2**31 - 1], np.int32)
    assert evaluate(pooled("sum", None, 3), Features({"jets": x}, {"jets": counts})).ravel().tolist() == [0, 0, 24, 33]


@pytest.mark.parametrize("kind", ["sum", "max", "mean"])
def test_padding_is_never_read(kind: str) -> None:
    graph = graphs.deepsets(4, kind=kind)
    x = graphs.features(graph, 200, seed=1)
    absent = np.arange(7) >= x.counts["jets"][:, None]
    results = []
    for garbage in (0.0, np.nan, 3e38, -np.inf):
        jets = x.groups["jets"].copy()
        jets[absent] = garbage
        results.append(evaluate(graph, Features({**x.groups, "jets": jets}, x.counts)))
    assert all(np.array_equal(result, results[0]) for result in results)


@given(st.integers(1, 46), st.integers(0, 2**32 - 1))
def test_affine_is_exact_at_every_size(bits: int, seed: int) -> None:
    """Small sums take float64, large ones int64: both are Python's integers."""
    rng = np.random.default_rng(seed)
    w = rng.integers(-(2**bits), 2**bits, (3, 4)).astype(I64)
    affine = Affine("a", ("in",), w, rng.integers(-(2**bits), 2**bits, 4).astype(I64), np.zeros(4, I64), bool(rng.integers(2)))
    graph = network(input_node("in", plain_group("event", 3), Fixed(True, 12, 0)), affine, names=4)
    n = rng.integers(-4096, 4096, (5, 3))
    n[0] = (-4096, 4095, -4096)
    expected = [[sum(int(a) * int(b) for a, b in zip(row, w[:, o], strict=True)) + int(affine.b[o]) for o in range(4)] for row in n]
    expected = [[max(v, 0) if affine.relu else v for v in row] for row in expected]
    assert evaluate(graph, Features({"event": n.astype(np.float32)}, {})).tolist() == expected


def test_add_aligns_and_requantised_channels_keep_their_exponents() -> None:
    group = plain_group("event", 2)
    graph = network(
        input_node("in", group, Fixed(True, 10, np.array([0, 2], I64))),
        Requant("fine", ("in",), Quant(Fixed(True, 10, np.array([3, 1], I64)), "half_even", "sat")),
        Add("sum", ("in", "fine")),
        names=2,
    )
    x = np.array([[5.0, 1.25], [-7.0, 0.75]], np.float32)
    assert graph.structure["sum"].f is not None
    assert graph.structure["sum"].f.tolist() == [3, 2]
    assert trace(graph, Features({"event": x}, {}))["fine"].tolist() == [[40, 2], [-56, 2]]
    assert evaluate(graph, Features({"event": x}, {})).tolist() == [[80, 9], [-112, 7]]


def test_chunks_do_not_show() -> None:
    graph = graphs.deepsets(1)
    x = graphs.features(graph, 60_000)
    whole = evaluate(graph, x)
    assert np.array_equal(whole[-100:], evaluate(graph, x.take(slice(-100, None))))
    assert evaluate(graph, x.take(slice(0))).shape == (0, 2)


def test_input_node_rounds_the_clip_inwards() -> None:
    group = dataclasses.replace(plain_group("event", 3), lo=np.array([-4.4, -np.inf, 0.3], np.float32), hi=np.array([4.4, np.inf, 100], np.float32))
    node = input_node("in", group, Fixed(True, 3, 2))
    assert node.lo.tolist() == [-17, -32, 2]
    assert node.hi.tolist() == [17, 31, 31]
    assert node.nan.tolist() == [0, 0, 2]  # 0 is outside of the third clip


def test_score_aligns_the_logits() -> None:
    affine = Affine("a", ("in",), np.eye(3, dtype=I64), np.zeros(3, I64), np.array([0, 2, 5], I64), relu=False)
    nodes = (input_node("in", plain_group("event", 3), Fixed(True, 10, 0)), affine)
    graph = Graph((*nodes, Output("out", ("a",), ("s", "b", "unused"), "none", np.array([1, -1, 0], I64))))
    weights, f = score_weights(graph)
    assert (weights.tolist(), f) == ([4, -1, 0], 2)
    assert score(graph, np.array([[3, 7, 1000]], I64)).tolist() == [5]
    with pytest.raises(UsageError, match="no integer score"):
        score(network(*nodes, names=3), np.zeros((1, 3), I64))


def test_float_graphs_agree_with_float64() -> None:
    for activation in ("none", "relu", "tanh", "gelu", "silu"):
        graph = graphs.float_mlp(3, activation=activation)
        x = graphs.features(graph, 300)
        found = evaluate(graph, x)
        assert found.dtype == np.float32
        assert np.isfinite(found).all()
    relu = graphs.float_mlp(3, activation="relu")
    values = trace(relu, x)
    phi = next(node for node in relu.nodes if node.name == "phi")
    assert isinstance(phi, FloatAffine)
    exact = np.maximum(values["in_jets"].astype(np.float64) @ phi.w.astype(np.float64) + phi.b, 0)
    assert np.abs(values["phi"] - exact).max() < 1e-4


# ------------------------------------------------------------------------------------------------------------------- no constant is idle


def changed(graph: Graph, name: str, **fields: Any) -> Graph:
    return Graph(tuple(dataclasses.replace(node, **fields) if node.name == name else node for node in graph.nodes))


def quant_of(graph: Graph, name: str) -> Quant:
    node = next(node for node in graph.nodes if node.name == name)
    assert isinstance(node, Requant)
    return node.quant


def small(rule: str = "half_up", over: str = "sat") -> Graph:
    """Every neuron alive and every mode reached."""
    rng = np.random.default_rng(5)
    quant = Quant(Fixed(True, 2, 3), rule, over)  # type: ignore[arg-type]
    nodes = (
        input_node("in", graphs.group(rng, "event", 4), Fixed(True, 3, 3)),
        graphs.affine(rng, "dense", "in", 4, 6, relu=False, f=7),
        Requant("act", ("dense",), quant),
        graphs.affine(rng, "logits", "act", 6, 2, relu=False),
    )
    return Graph((*nodes, Output("out", ("logits",), ("a", "b"), "none", np.array([1, -1], I64))))


def with_weight(graph: Graph, name: str, i: int, o: int) -> Graph:
    node = next(node for node in graph.nodes if node.name == name)
    assert isinstance(node, Affine)
    w = node.w.copy()
    w[i, o] += 1
    return changed(graph, name, w=w)


MUTATIONS: dict[str, Callable[[Graph], Graph]] = {
    **{f"weight {i},{o}": (lambda g, i=i, o=o: with_weight(g, "dense", i, o)) for i in range(4) for o in range(6)},
    "shift": lambda g: changed(g, "act", quant=Quant(Fixed(True, 1, 4), g_round(g), g_over(g))),
    "floor": lambda g: changed(g, "act", quant=Quant(Fixed(True, 2, 3), "floor", g_over(g))),
    "half even": lambda g: changed(g, "act", quant=Quant(Fixed(True, 2, 3), "half_even", g_over(g))),
    "wrap": lambda g: changed(g, "act", quant=Quant(Fixed(True, 2, 3), g_round(g), "wrap")),
    "symmetric": lambda g: changed(g, "act", quant=Quant(Fixed(True, 2, 3), g_round(g), "sat_sym")),
    "input limit": lambda g: changed(g, "in", hi=g.inputs[0].hi - 1),
    "centre": lambda g: changed(g, "in", centre=np.nextafter(g.inputs[0].centre, np.float32(1e9))),
    "scale": lambda g: changed(g, "in", scale=np.nextafter(g.inputs[0].scale, np.float32(1e9))),
    "nan": lambda g: changed(g, "in", nan=g.inputs[0].nan + 1),
}


def g_round(graph: Graph) -> Any:
    return quant_of(graph, "act").round


def g_over(graph: Graph) -> Any:
    return quant_of(graph, "act").over


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_every_constant_shows_on_the_vectors(mutation: str) -> None:
    graph = small()
    other = MUTATIONS[mutation](graph)
    x = vectors(graph, n=8000, seed=3).x
    assert (evaluate(graph, x) != evaluate(other, x)).any()


# ------------------------------------------------------------------------------------------------------------------- what is refused

EVENT = plain_group("event", 2)
JETS = plain_group("jets", 2, 4)
IN = input_node("in", EVENT, Fixed(True, 3, 2))
IN_JETS = input_node("in_jets", JETS, Fixed(True, 3, 2))
DENSE = Affine("dense", ("in",), np.eye(2, dtype=I64), np.zeros(2, I64), np.zeros(2, I64), relu=False)


def inputs(**fields: Any) -> Input:
    return dataclasses.replace(IN, **fields)


def forced(quant: Quant, **fields: Any) -> Quant:
    """As a document may hold it, past the checks of annotations that only tests have."""
    for name, value in fields.items():
        object.__setattr__(quant, name, value)
    return quant


REFUSED: dict[str, tuple[Callable[[], Graph], str]] = {
    "twice": (lambda: network(IN, dataclasses.replace(IN, group="other"), names=2), "'in' twice"),
    "unknown source": (lambda: network(IN, dataclasses.replace(DENSE, sources=("inn",)), names=2), "reads 'inn'"),
    "later source": (lambda: network(DENSE, IN, names=2), "no earlier node"),
    "group twice": (lambda: network(IN, dataclasses.replace(IN, name="again"), names=2), "has an input already"),
    "no output": (lambda: Graph((IN,)), "is its Output"),
    "shape": (lambda: network(IN, dataclasses.replace(DENSE, w=np.zeros((3, 2), I64)), names=2), "has 2 features"),
    "dtype": (lambda: network(IN, dataclasses.replace(DENSE, w=np.zeros((2, 2), np.int32)), names=2), "w must be int64"),
    "bias": (lambda: network(IN, dataclasses.replace(DENSE, b=np.zeros(3, I64)), names=2), r"b must be int64 \[2\]"),
    "finer than float32": (lambda: network(IN, Requant("q", ("in",), Quant(Fixed(True, 0, 127), "floor", "sat")), names=2), r"2\*\*-126"),
    "too wide": (lambda: network(IN, Requant("q", ("in",), Quant(Fixed(True, 60, 3), "floor", "sat")), names=2), "wider than 62"),
    "long shift": (lambda: network(IN, Requant("q", ("in",), Quant(Fixed(True, 90, -70), "floor", "sat")), names=2), "more than 62"),
    "mode": (lambda: network(IN, Requant("q", ("in",), forced(Quant(Fixed(True, 2, 2), "floor", "sat"), round="half")), names=2), "no such mode: 'half'"),
    "per feature": (lambda: network(IN, Requant("q", ("in",), Quant(Fixed(True, 2, np.zeros(3, I64)), "floor", "sat")), names=2), r"integers \[2\]"),
    "first grid": (lambda: network(inputs(quant=Quant(Fixed(True, 3, 2), "floor", "sat")), names=2), "half_even and sat"),
    "limits": (lambda: network(inputs(hi=np.array([40, 1])), names=2), "within the format"),
    "nan": (lambda: network(inputs(nan=np.array([99, 0])), names=2), "within the format"),
    "scale 0": (lambda: network(inputs(scale=np.array([0, 1], np.float32)), names=2), "normal float32"),
    "scale subnormal": (lambda: network(inputs(scale=np.array([1e-40, 1], np.float32)), names=2), "normal float32"),
    "scale huge": (lambda: network(inputs(scale=np.array([1e37, 1], np.float32)), names=2), "normal float32"),
    "centre": (lambda: network(inputs(centre=np.array([np.nan, 1], np.float32)), names=2), "centre is not finite"),
    "input beyond 24 bits": (lambda: network(input_node("in", EVENT, Fixed(True, 28, 0)), names=2), "2\\*\\*24"),
    "constituents out": (lambda: network(IN_JETS, names=2), "scalars"),
    "mixed": (lambda: network(IN, IN_JETS, Concat("c", ("in", "in_jets")), names=4), "cannot combine"),
    "add": (
        lambda: network(IN, dataclasses.replace(DENSE, w=np.ones((2, 1), I64), b=np.zeros(1, I64), f=np.zeros(1, I64)), Add("+", ("in", "dense")), names=2),
        "2, 1 features",
    ),
    "pool of scalars": (lambda: network(IN, Pool("p", ("in",), "sum", "event"), names=2), "reads constituents"),
    "pool of others": (lambda: network(IN, IN_JETS, Pool("p", ("in_jets",), "sum", "event"), names=2), "reads constituents of 'event'"),
    "mean without quant": (lambda: network(IN_JETS, Pool("p", ("in_jets",), "mean", "jets"), names=2), "mean needs a quant"),
    "sum with quant": (lambda: network(IN_JETS, Pool("p", ("in_jets",), "sum", "jets", IN.quant), names=2), "nothing else takes one"),
    "flatten": (lambda: network(IN, Flatten("f", ("in",), "event"), names=2), "reads constituents"),
    "float after integer": (
        lambda: network(IN, FloatAffine("f", ("in",), np.zeros((2, 2), np.float32), np.zeros(2, np.float32), "none"), names=2),
        "is integer",
    ),
    "names": (lambda: network(IN, names=3), "one different name"),
    "score": (lambda: Graph((IN, Output("out", ("in",), ("a", "b"), "none", np.array([1.0, 2.0])))), "score must be int64"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_graph_is_refused_by_name(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(UsageError, match=message) as error:
        make()
    assert re.search(r"'\w|node '|\+", str(error.value)) or error.value.where == "graph"


@pytest.mark.parametrize(
    ("groups", "counts", "message"),
    [
        ({}, {}, "lack group 'jets'"),
        ({"jets": np.zeros((2, 4, 2), np.float32)}, {}, "counts of group 'jets'"),
        ({"jets": np.zeros((2, 4, 2))}, {"jets": np.zeros(2, np.int32)}, "found float64"),
        ({"jets": np.zeros((2, 5, 2), np.float32)}, {"jets": np.zeros(2, np.int32)}, r"\[2, 4, 2\]"),
        ({"jets": np.zeros((2, 4, 2), np.float32)}, {"jets": np.zeros(3, np.int32)}, "must be float32"),
    ],
)
def test_wrong_features_are_refused(groups: dict[str, Any], counts: dict[str, Any], message: str) -> None:
    graph = network(IN_JETS, Pool("p", ("in_jets",), "sum", "jets"), names=2)
    with pytest.raises(UsageError, match=message):
        evaluate(graph, Features(groups, counts))


def test_int64_is_never_left_silently() -> None:
    w = np.full((2, 2), 2**58, I64)
    graph = network(input_node("in", EVENT, Fixed(True, 10, 0)), dataclasses.replace(DENSE, w=w), names=2)
    with pytest.raises(RunFailed, match="Affine 'dense' leaves int64"):
        evaluate(graph, Features({"event": np.full((1, 2), 900, np.float32)}, {}))
    assert evaluate(graph, Features({"event": np.full((1, 2), 3, np.float32)}, {})).tolist() == [[6 * 2**58] * 2]
