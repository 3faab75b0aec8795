"""`Window`, the gather of neighbours that makes an Affine a convolution: what it yields, what exists of it, what is proved of it, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hlt_train.cost import cost
from hlt_train.errors import UsageError
from hlt_train.golden import GARBAGE
from hlt_train.graph import Add, Affine, Concat, Fixed, Flatten, Graph, Node, Output, Pool, Quant, Window, evaluate, float_input_node, input_node, trace
from hlt_train.graph_document import from_document, to_document
from hlt_train.latency_table import kernels
from hlt_train.proof import prove
from hlt_train.types import Features, Group
from hlt_train.vectors import vectors
from tests import graphs

I64 = np.int64


def jets(length: int, n: int = 1, *, lo: float = -np.inf) -> Group:
    """Constituents that are integers already."""
    f32 = np.float32
    variables = tuple(f"v{k}" for k in range(n))
    return Group("jets", variables, length, np.zeros(n, f32), np.ones(n, f32), np.full(n, lo, f32), np.full(n, np.inf, f32), np.full(n, max(lo, 0), f32))


def network(*nodes: Node, names: int) -> Graph:
    return Graph((*nodes, Output("out", (nodes[-1].name,), tuple(f"y{k}" for k in range(names)), "none")))


def flattened(length: int, window: Window, n: int = 1) -> Graph:
    """The constituents of a window, one after the other."""
    positions = (length + window.before + window.after - window.kernel) // window.stride + 1
    flat = Flatten("flat", (window.name,), "jets")
    return network(input_node("in", jets(length, n), Fixed(True, 12, 0)), window, flat, names=positions * window.kernel * n)


def features(x: np.ndarray, counts: list[int]) -> Features:
    """x `[rows, length, n]`, garbage beyond the counts."""
    x = np.array(x, np.float32)
    for row, count in enumerate(counts):
        x[row, max(count, 0) :] = GARBAGE[row % 2]
    return Features({"jets": x}, {"jets": np.array(counts, np.int32)})


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.integers(0, 4), st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_a_window_and_an_affine_are_the_convolution_of_xla(length: int, kernel: int, stride: int, before: int, after: int, seed: int) -> None:
    positions = (length + before + after - kernel) // stride + 1
    assume(max(before, after) < kernel and max(before, after) <= length and stride <= length and 1 <= positions <= -(-length // stride))
    rng = np.random.default_rng(seed)
    w = rng.integers(-9, 10, (kernel, 2, 3))
    graph = network(
        input_node("in", jets(length, 2), Fixed(True, 12, 0)),
        Window("w", ("in",), kernel, stride, before, after, "jets"),
        Affine("conv", ("w",), w.reshape(2 * kernel, 3), np.zeros(3, I64), np.zeros(3, I64), relu=False),
        Flatten("flat", ("conv",), "jets"),
        names=3 * positions,
    )
    x = rng.integers(-99, 100, (4, length, 2)).astype(np.float32)
    numbers = ("NWC", "WIO", "NWC")
    expected = jax.lax.conv_general_dilated(x, w.astype(np.float32), (stride,), [(before, after)], dimension_numbers=numbers, precision="highest")
    found = trace(graph, features(x, [length] * 4))["conv"]
    assert found.dtype == I64
    assert np.array_equal(found, np.asarray(expected))


# length 5, kernel 3, stride 2, one before and one after: windows start at -1, 1, 3. Constituents 1 to 5.
BY_HAND = {
    -4: [],
    0: [],
    1: [[0, 1, 0]],
    2: [[0, 1, 2]],
    3: [[0, 1, 2], [2, 3, 0]],
    4: [[0, 1, 2], [2, 3, 4]],
    5: [[0, 1, 2], [2, 3, 4], [4, 5, 0]],
    9: [[0, 1, 2], [2, 3, 4], [4, 5, 0]],
    2**31 - 1: [[0, 1, 2], [2, 3, 4], [4, 5, 0]],
}


def test_few_constituents_by_hand() -> None:
    window = Window("w", ("in",), 3, 2, 1, 1, "jets")
    x = features(np.tile(np.arange(1.0, 6.0)[None, :, None], (len(BY_HAND), 1, 1)), list(BY_HAND))
    assert evaluate(flattened(5, window), x).tolist() == [[v for row in rows for v in row] + [0] * (9 - 3 * len(rows)) for rows in BY_HAND.values()]
    head: tuple[Node, ...] = (input_node("in", jets(5), Fixed(True, 12, 0)), window)
    pools = {"sum": sum, "max": max}
    for kind, take in pools.items():
        graph = network(*head, Pool("p", ("w",), kind, "jets"), names=3)  # type: ignore[arg-type]
        assert evaluate(graph, x).tolist() == [[take(column) for column in zip(*rows, strict=True)] or [0] * 3 for rows in BY_HAND.values()]
    # A mean divides by the positions that exist: 4 * mean, rounded half to even.
    mean = network(*head, Pool("p", ("w",), "mean", "jets", Quant(Fixed(True, 12, 2), "half_even", "sat")), names=3)
    assert evaluate(mean, x).tolist() == [[round(4 * sum(column) / len(rows)) for column in zip(*rows, strict=True)] or [0] * 3 for rows in BY_HAND.values()]


def test_strides_of_windows_multiply() -> None:
    """Every second of every third constituent: of 14, positions 0, 6 and 12, as many as ceil(count / 6)."""
    graph = network(
        input_node("in", jets(14), Fixed(True, 12, 0)),
        Window("third", ("in",), 1, 3, 0, 0, "jets"),
        Window("sixth", ("third",), 2, 2, 0, 1, "jets"),
        Flatten("flat", ("sixth",), "jets"),
        names=6,
    )
    assert graph.structure["third"].length == 5
    assert (graph.structure["sixth"].length, graph.structure["sixth"].stride) == (3, 6)
    counts = [0, 1, 3, 4, 6, 7, 12, 13, 14, 20]
    found = evaluate(graph, features(np.tile(np.arange(14.0)[None, :, None] + 1, (len(counts), 1, 1)), counts))
    assert found.tolist() == [
        [0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
        [1, 4, 0, 0, 0, 0],
        [1, 4, 0, 0, 0, 0],
        [1, 4, 7, 0, 0, 0],
        [1, 4, 7, 10, 0, 0],
        [1, 4, 7, 10, 13, 0],
        [1, 4, 7, 10, 13, 0],
        [1, 4, 7, 10, 13, 0],
    ]


def test_positions_end_where_no_whole_window_fits() -> None:
    """Without padding, five constituents hold three windows of three; six positions would exist by the stride alone."""
    graph = network(
        input_node("in", jets(5), Fixed(True, 12, 0)),
        Window("w", ("in",), 3, 1, 0, 0, "jets"),
        Pool("p", ("w",), "mean", "jets", Quant(Fixed(True, 12, 0), "floor", "sat")),
        names=3,
    )
    found = evaluate(graph, features(np.full((4, 5, 1), 6.0), [1, 2, 5, 9]))
    assert found.tolist() == [[6, 0, 0], [6, 3, 0], [6, 6, 6], [6, 6, 6]]


def test_float32_passes_unchanged() -> None:
    positions = 4
    window = Window("w", ("in",), 3, 2, 1, 1, "jets")
    graph = network(float_input_node("in", jets(7, 2)), window, Flatten("flat", ("w",), "jets"), names=positions * 6)
    rng = np.random.default_rng(0)
    x = features(rng.normal(0, 1, (40, 7, 2)), list(rng.integers(-1, 10, 40)))
    found = evaluate(graph, x)
    assert found.dtype == np.float32
    for row, count in enumerate(x.counts["jets"]):
        kept = np.zeros((9, 2), np.float32)
        kept[1 : 1 + max(min(count, 7), 0)] = x.groups["jets"][row, : max(count, 0)]
        expected = np.stack([kept[2 * j : 2 * j + 3].ravel() * (2 * j < count) for j in range(positions)])
        assert np.array_equal(found[row], expected.ravel())


@pytest.mark.parametrize("make", [graphs.convolution, graphs.wild_windows, graphs.float_convolution])
def test_absent_constituents_are_never_read(make: Callable[[int], Graph]) -> None:
    for seed in range(5):
        graph = make(seed)
        x = graphs.features(graph, 200, seed)
        absent = np.arange(x.groups["jets"].shape[1]) >= x.counts["jets"][:, None]
        results = []
        for garbage in (0.0, np.nan, 3e38, -np.inf):
            values = x.groups["jets"].copy()
            values[absent] = garbage
            results.append(evaluate(graph, Features({"jets": values}, x.counts)))
        assert all(np.array_equal(result, results[0]) for result in results)


def test_the_interval_contains_0_where_a_neighbour_can_be_absent() -> None:
    """Constituents are 3 to 7: the one a position starts at is never absent, its neighbours on both sides may be."""
    graph = network(
        input_node("in", jets(4, 2, lo=3), Fixed(False, 3, 0)),
        Window("w", ("in",), 3, 1, 1, 1, "jets"),
        Flatten("flat", ("w",), "jets"),
        names=24,
    )
    proof = prove(graph)["w"]
    assert proof.lo.tolist() == [0, 0, 3, 3, 0, 0]
    assert proof.hi.tolist() == [7] * 6
    assert proof.bound == 7


def test_the_limits_of_a_neuron_behind_a_window_are_among_the_vectors() -> None:
    """Every neuron of a first convolution reaches both ends of its interval."""
    for before, after, stride in ((0, 0, 1), (1, 1, 1), (2, 0, 2), (1, 1, 3)):
        rng = np.random.default_rng(before)
        graph = network(
            input_node("in", graphs.group(rng, "jets", 2, 9), Fixed(True, 3, 3)),
            Window("w", ("in",), 3, stride, before, after, "jets"),
            graphs.affine(rng, "conv", "w", 6, 5, relu=False),
            Pool("p", ("conv",), "max", "jets"),
            names=5,
        )
        x = vectors(graph, n=2000).x
        structure, proof = graph.structure["conv"], prove(graph)["conv"]
        found = trace(graph, x)["conv"][np.arange(structure.length) < structure.present(x.counts["jets"])[:, None]]
        assert found.max(axis=0).tolist() == proof.hi.tolist()
        assert found.min(axis=0).tolist() == proof.lo.tolist()


def test_costs_are_counted_per_position() -> None:
    graph = network(
        input_node("in", jets(9, 2), Fixed(False, 3, 0)),
        Window("w", ("in",), 3, 2, 1, 1, "jets"),
        Affine("conv", ("w",), np.ones((6, 4), I64), np.zeros(4, I64), np.zeros(4, I64), relu=True),
        Pool("p", ("conv",), "sum", "jets"),
        names=4,
    )
    assert cost(graph) == {"parameters": 28, "macs": 24 * 5, "bit_operations": 24 * 3 * 5}
    assert kernels(graph, "plain")["layer"] == 5
    assert kernels(graph, "plain", {"jets": 4.0})["tile"] == 24 * 2
    assert kernels(graph, "plain", {"jets": 99.0})["pool"] == 4 * 5


HOSTILE: dict[str, tuple[str, Any, str]] = {
    "kernel 0": ("kernel", 0, "kernel must be an integer of at least 1, found 0"),
    "stride 0": ("stride", 0, "stride must be an integer of at least 1, found 0"),
    "before -1": ("before", -1, "before must be an integer of at least 0, found -1"),
    "a fraction": ("stride", 1.5, "damaged Window: stride must be an integer"),
    "a float": ("kernel", 3.0, "damaged Window: kernel must be an integer"),
    "a word": ("after", "1", "damaged Window: after must be an integer"),
    "true": ("kernel", True, "damaged Window: kernel must be an integer"),
    "nothing": ("before", None, "damaged Window: before must be an integer"),
    "an array": ("stride", {"dtype": "int64", "shape": [], "data": [1]}, "damaged Window: stride must be an integer"),
    "a list": ("before", [1], "damaged Window: before must be an integer"),
    "huge": ("kernel", 10**18, "hold no window of"),
    "huge stride": ("stride", 10**30, "is more than the length, 9"),
    "padding of a whole window": ("before", 3, "must be less than the kernel, 3"),
    "another group": ("group", "event", "reads constituents of 'event'"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_wrong_document_is_refused_by_the_name_of_the_node(case: str) -> None:
    field, value, message = HOSTILE[case]
    document = copy.deepcopy(to_document(graphs.convolution(1)))
    next(node for node in document["nodes"] if node["name"] == "near")[field] = value
    with pytest.raises(UsageError, match=message) as error:
        from_document(document)
    assert error.value.where in ("node 'near'", "nodes[1] (near)")


IN = input_node("in", jets(4), Fixed(True, 3, 2))
REFUSED: dict[str, tuple[Callable[[], Graph], str]] = {
    "scalars": (
        lambda: network(IN, Pool("p", ("in",), "sum", "jets"), Window("w", ("p",), 1, 1, 0, 0, "jets"), names=1),
        "reads constituents of 'jets', but 'p' has scalars",
    ),
    "no room": (lambda: flattened(4, Window("w", ("in",), 6, 1, 0, 1, "jets")), "4 constituents, 0 before and 1 after them hold no window of 6"),
    "positions that never exist": (lambda: flattened(4, Window("w", ("in",), 3, 1, 2, 2, "jets")), "yields 6 positions, but those from 4 on start beyond"),
    "padding beyond the length": (lambda: flattened(4, Window("w", ("in",), 12, 1, 5, 5, "jets")), "not more than the length, 4"),
    "add of other positions": (lambda: network(IN, Window("w", ("in",), 1, 2, 0, 0, "jets"), Add("a", ("w", "in")), names=1), "of one length and stride"),
    "concat of other strides": (
        lambda: network(IN, Window("u", ("in",), 1, 2, 0, 0, "jets"), Window("v", ("in",), 3, 1, 0, 0, "jets"), Concat("a", ("u", "v")), names=4),
        "of one length and stride",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_window_is_refused_by_name(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(UsageError, match=message) as error:
        make()
    assert error.value.where.startswith("node '")
