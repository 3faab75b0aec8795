"""Bounds really bound, are reached where they can be, and flags mean what kernels take them to mean."""

from __future__ import annotations

import dataclasses
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlt_train.cost import cost
from hlt_train.errors import UsageError
from hlt_train.graph import Affine, Fixed, Graph, Input, Output, Pool, Quant, Requant, input_node, trace
from hlt_train.proof import prove, summary
from hlt_train.types import Features, Group
from hlt_train.vectors import vectors
from tests import graphs

I64 = np.int64
MAKERS = {
    "mlp": graphs.mlp,
    "sum": graphs.deepsets,
    "max": lambda seed: graphs.deepsets(seed, kind="max"),
    "mean": lambda seed: graphs.deepsets(seed, kind="mean"),
    "convolution": graphs.convolution,
    "wild": graphs.wild,
    "wild windows": graphs.wild_windows,
    "minifloat": graphs.minifloat,
    "minifloat mean": lambda seed: graphs.minifloat(seed, kind="mean", signed=False),
}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", MAKERS)
def test_no_input_leaves_the_interval(name: str, seed: int) -> None:
    graph = MAKERS[name](seed)
    proofs = prove(graph)
    x = vectors(graph, n=3000, seed=seed).x
    for node, value in trace(graph, x).items():
        structure = graph.structure[node]
        if structure.length is not None:
            value = value[np.arange(structure.length) < structure.present(x.counts["jets"])[:, None]]
        assert (value >= proofs[node].lo).all(), node
        assert (value <= proofs[node].hi).all(), node
        assert np.abs(value).max() <= proofs[node].bound, node


def one_layer(w: list[list[int]], b: list[int], *, lo: int = -8, hi: int = 7, relu: bool = False) -> Graph:
    f32 = np.float32
    n = len(w)
    group = Group(
        "event", tuple(f"v{k}" for k in range(n)), None, np.zeros(n, f32), np.ones(n, f32), np.full(n, lo, f32), np.full(n, hi, f32), np.zeros(n, f32)
    )
    node = input_node("in", group, Fixed(lo < 0, 20, 0))
    affine = Affine("dense", ("in",), np.array(w, I64), np.array(b, I64), np.zeros(len(b), I64), relu)
    return Graph((node, affine, Output("out", ("dense",), tuple(f"y{k}" for k in range(len(b))), "none")))


weights = st.lists(st.lists(st.integers(-300, 300), min_size=2, max_size=2), min_size=3, max_size=3)


@given(weights, st.lists(st.integers(-500, 500), min_size=2, max_size=2), st.booleans())
def test_the_interval_of_a_first_layer_is_reached_and_not_passed(w: list[list[int]], b: list[int], relu: bool) -> None:
    graph = one_layer(w, b, relu=relu)
    corners = np.array(list(product([-8, 7], repeat=3)), np.float32)
    found = trace(graph, Features({"event": corners}, {}))["dense"]
    proof = prove(graph)["dense"]
    assert proof.lo.tolist() == found.min(axis=0).tolist()
    assert proof.hi.tolist() == found.max(axis=0).tolist()


@given(weights, st.permutations(range(3)))
def test_no_partial_sum_in_any_order_passes_the_bound(w: list[list[int]], order: list[int]) -> None:
    bound = prove(one_layer(w, [11, -13]))["dense"].bound
    for corner in product([-8, 7], repeat=3):
        for o, start in ((0, 11), (1, -13), (0, 0)):
            partial = start
            for i in order:
                partial += corner[i] * w[i][o]
                assert abs(partial) <= bound


def test_flags_at_their_edges() -> None:
    inputs: dict[str, Any] = {"lo": 0, "hi": 255}
    fits = lambda w, **kw: prove(one_layer(w, [0], **{**inputs, **kw}))["dense"]  # noqa: E731
    assert fits([[127], [1]]).maddubs  # 255 * 128 = 32640
    assert not fits([[127], [2]]).maddubs  # 255 * 129 = 32895
    assert fits([[127], [2]]).u8s8
    assert fits([[127], [0], [127], [0], [-128]]).maddubs  # pairs do not cross
    assert not fits([[128]]).u8s8
    assert not fits([[127]], lo=-1).u8s8
    assert not fits([[1]], hi=256).u8s8
    assert fits([[32767]], hi=32767).madd_i16
    assert not fits([[32768]], hi=32767).madd_i16
    assert not fits([[32767], [32767], [32767]], hi=32767).madd_i16  # the sum leaves int32
    assert fits([[2**24 // 255]]).f24
    assert not fits([[2**24 // 255 + 1]]).f24
    assert fits([[2**23]], hi=1).f24
    assert not fits([[2**24]], hi=0).f24  # a weight on a constant zero must still be a float32 integer
    assert fits([[2**23]]).i32
    assert not fits([[2**23 + 2**16]]).i32
    assert fits([[1]]).acc_bits == 9


def test_the_rounding_constant_is_in_the_bound() -> None:
    graph = one_layer([[1]], [0])
    requant = Requant("q", ("dense",), Quant(Fixed(True, 40, -25), "half_up", "sat"))
    nodes = (*graph.nodes[:-1], requant, Output("out", ("q",), ("y0",), "none"))
    proof = prove(Graph(nodes))["q"]
    assert proof.bound == 8 + 2**24
    assert not proof.f24
    floor = dataclasses.replace(requant, quant=dataclasses.replace(requant.quant, round="floor"))
    assert prove(Graph((*nodes[:-2], floor, nodes[-1])))["q"].f24


def test_the_rounding_constant_of_a_minifloat_is_half_a_step_at_the_largest_number() -> None:
    """-8 rounds at steps of 4 where only two significant bits are kept, one of them below the binary point of the new grid."""
    graph = one_layer([[1]], [0])
    requant = Requant("q", ("dense",), Quant(Fixed(True, 5, -1), "half_up", "sat_sym", 1))
    proof = prove(Graph((*graph.nodes[:-1], requant, Output("out", ("q",), ("y0",), "none"))))["q"]
    assert (proof.bound, proof.lo.tolist(), proof.hi.tolist()) == (8 + 2, [-4], [4])


@pytest.mark.parametrize(
    ("w", "requant", "message"),
    [
        ([[2**59]], None, "Affine 'dense' can reach 2\\*\\*62.0"),
        ([[2**30]], Quant(Fixed(True, 20, 40), "floor", "sat"), "Requant 'q' can reach"),
    ],
)
def test_more_than_63_bits_are_refused_by_name(w: list[list[int]], requant: Quant | None, message: str) -> None:
    graph = one_layer(w, [0])
    if requant is not None:
        graph = Graph((*graph.nodes[:-1], Requant("q", ("dense",), requant), Output("out", ("q",), ("y0",), "none")))
    with pytest.raises(UsageError, match=message):
        prove(graph)


def test_pools_over_the_full_length_and_the_empty_collection() -> None:
    f32 = np.float32
    group = Group("jets", ("a",), 5, np.zeros(1, f32), np.ones(1, f32), np.full(1, 2, f32), np.full(1, 9, f32), np.full(1, 3, f32))
    node = input_node("in", group, Fixed(False, 4, 0))
    for kind, expected in (("sum", (0, 45)), ("max", (0, 9)), ("mean", (0, 36))):
        quant = Quant(Fixed(False, 6, 2), "half_even", "sat") if kind == "mean" else None
        graph = Graph((node, Pool("p", ("in",), kind, "jets", quant), Output("out", ("p",), ("y",), "none")))  # type: ignore[arg-type]
        proof = prove(graph)["p"]
        assert (int(proof.lo[0]), int(proof.hi[0])) == expected


def test_summary_is_what_json_holds() -> None:
    import json

    content = summary(prove(graphs.mlp(2)))
    assert json.loads(json.dumps(content)) == content
    assert prove(graphs.float_mlp(1)) == {}


def test_cost_counts() -> None:
    graph = one_layer([[1, -1], [0, 3], [4, 7]], [1, 2], lo=0, hi=7)
    # 3-bit inputs; weights of 1, a sign, 0, 2, 1 (and a shift), 3 bits
    assert cost(graph) == {"parameters": 8, "macs": 6, "bit_operations": 3 * (1 + 1 + 0 + 2 + 1 + 3)}
    sets = graphs.deepsets(1, length=7)
    phi = sum(node.w.size for node in sets.nodes if isinstance(node, Affine) and node.name.startswith("phi"))
    rest = sum(node.w.size for node in sets.nodes if isinstance(node, Affine)) - phi
    assert cost(sets)["macs"] == 7 * phi + rest
    assert isinstance(sets.inputs[0], Input)
