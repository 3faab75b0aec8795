"""The golden vectors: every kind is there, traps are traps, the file keeps every bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hlt_train.arithmetic import input_step
from hlt_train.errors import RunFailed
from hlt_train.golden import CATEGORIES, GARBAGE, Golden, read_golden, write_golden
from hlt_train.graph import Fixed, Graph, Input, Output, Requant, evaluate, input_node, score, trace
from hlt_train.marking import mark, subset
from hlt_train.structure import scaled
from hlt_train.types import Features, Group
from hlt_train.vectors import grid_of, input_ties, row_bytes, vectors
from tests import graphs


def rows(x: Features) -> int:
    return len(next(iter(x.groups.values())))


def test_all_kinds_the_same_for_the_same_seed() -> None:
    graph = graphs.deepsets(1)
    data, nearest = graphs.features(graph, 3000, seed=1), graphs.features(graph, 77, seed=2)
    first, again, other = (vectors(graph, data, nearest, n=5000, seed=seed) for seed in (4, 4, 5))
    assert rows(first.x) == len(first.category) == 5000
    assert all(np.array_equal(first.x.groups[k], again.x.groups[k], equal_nan=True) for k in first.x.groups)
    assert not np.array_equal(first.x.groups["event"], other.x.groups["event"], equal_nan=True)
    counted = {CATEGORIES[k]: int(v) for k, v in zip(*np.unique(first.category, return_counts=True), strict=True)}
    assert counted["nearest"] == 77
    assert counted["data"] == 2500
    assert {"random", "input_tie", "saturation", "special", "collection"} <= counted.keys()


def test_the_edges_are_there() -> None:
    graph = graphs.deepsets(1, length=7)
    x = vectors(graph, n=5000).x
    values = x.groups["event"]
    assert all(np.isin(value, values) for value in np.array([np.inf, -np.inf, 3.4028235e38, 1e-45], np.float32))
    assert np.isnan(values).any(axis=0).all()
    assert np.isnan(values).all(axis=1).any()
    assert {0, 1, 6, 7, 8, 107, 2**31 - 1} <= set(x.counts["jets"].tolist())
    absent = np.arange(7) >= x.counts["jets"][:, None]
    assert np.isnan(x.groups["jets"][0::2][absent[0::2]]).all()
    assert (x.groups["jets"][1::2][absent[1::2]] == GARBAGE[1]).all()
    first = graph.inputs[0]
    assert isinstance(first, Input)
    n = trace(graph, x)["in_jets"]
    assert ((n == first.lo).any(axis=(0, 1)) & (n == first.hi).any(axis=(0, 1))).all()


def test_few_rows_of_long_collections_are_constructed() -> None:
    graph = graphs.deepsets(1, length=500)
    assert row_bytes(graph) == 4 * (3 * 500 + 2)
    made = vectors(graph, n=2000)
    assert rows(made.x) == 2000
    assert (made.category != 0).sum() * row_bytes(graph) < 7 << 20


def generic_input(f: int, n: int = 40) -> tuple[Graph, Input]:
    rng = np.random.default_rng(3)
    group = graphs.group(rng, "event", n)
    node = input_node("in", group, Fixed(True, 3, f))
    return Graph((node, Output("out", ("in",), group.variables, "none"))), node


def test_ties_are_ties_and_traps_catch_every_wrong_input_step() -> None:
    graph, node = generic_input(5)
    factor = scaled(node.scale, np.full(40, 5))
    grid, rng = grid_of(graph, node), np.random.default_rng(0)
    for j in range(40):
        ties, traps = input_ties(grid, j, rng)
        t = (ties - node.centre[j]) * factor[j]
        assert ((t - np.floor(t)) == 0.5).all()
        assert len(traps)
    x = vectors(graph, n=20_000).x.groups["event"]
    limits = (node.lo.astype(np.float32), node.hi.astype(np.float32))
    finite = np.isfinite(x)
    x = np.where(finite, x, node.centre)
    right = input_step(x, node.centre, factor, node.lo, node.hi, node.nan)
    o = (-node.centre.astype(np.float64) * factor).astype(np.float32)
    wide = x.astype(np.float64)
    with np.errstate(over="ignore"):
        wrong = {
            "x * s + o": x * factor + o,
            "fused": (wide * factor + o).astype(np.float32),
            "float64": (wide - node.centre) * factor.astype(np.float64),
            "half up": np.floor(np.clip((x - node.centre) * factor, *limits) + np.float32(0.5)),
        }
    for name, t in wrong.items():
        differs = np.rint(np.clip(t, *limits)).astype(np.int64) != right
        # A power of two may leave no trap; these scales are generic, so nearly every variable has one of each kind.
        assert differs.any(axis=0).mean() > 0.9, name


def test_random_vectors_alone_would_not_notice() -> None:
    """Why traps are constructed: the same wrong input step passes on as many random vectors."""
    graph, node = generic_input(5)
    factor = scaled(node.scale, np.full(40, 5))
    made = vectors(graph, n=20_000)
    x = made.x.groups["event"][made.category == CATEGORIES.index("random")][:3000]
    right = input_step(x, node.centre, factor, node.lo, node.hi, node.nan)
    with np.errstate(over="ignore"):
        wrong = np.rint(np.clip(x * factor + (-node.centre * factor), node.lo, node.hi)).astype(np.int64)
    assert (wrong != right).mean() < 1e-3


def test_marks_are_what_they_say_and_the_subset_keeps_them() -> None:
    graph = graphs.mlp(3, over="sat", round="half_even")
    made = vectors(graph, graphs.features(graph, 2000), n=10_000)
    points = score(graph, evaluate(graph, made.x))
    threshold = int(np.median(points))
    category, reach = mark(graph, made.x, made.category, points, [threshold, None])
    assert (category != made.category).any()
    assert np.isin(made.category[category != made.category], [0, 1]).all()  # only random and data vectors change their name
    marked = points[category == CATEGORIES.index("threshold")]
    assert set(marked.tolist()) <= {threshold - 1, threshold, threshold + 1}
    assert threshold in marked
    assert reach["act0"].tie == reach["act0"].rounding > 0
    assert 0 < reach["act0"].beyond <= reach["act0"].limit
    kept = subset(category, 10, 0)
    assert (np.diff(kept) > 0).all()
    assert np.isin(np.flatnonzero(category > 1), kept).all()
    assert (category[kept] <= 1).sum() == 10


def test_a_marked_tie_is_one() -> None:
    graph = graphs.mlp(8, widths=(4,))
    made = vectors(graph, n=20_000)
    only = np.flatnonzero(made.category == 0)
    x = made.x.take(only)
    category, _ = mark(graph, x, made.category[only], None, [])
    ties = np.flatnonzero(category == CATEGORIES.index("requant_tie"))
    requant = next(node for node in graph.nodes if isinstance(node, Requant))
    before, f = trace(graph, x.take(ties))[requant.sources[0]], graph.structure[requant.sources[0]].f
    assert f is not None
    shift = f - requant.quant.to.f
    assert len(ties)
    assert ((before & ((1 << shift) - 1)) == (1 << shift) >> 1).any(axis=1).all()


@pytest.mark.parametrize("make", [lambda: graphs.mlp(1, outputs=3), lambda: graphs.deepsets(2, kind="mean"), lambda: graphs.float_mlp(3)])
def test_the_file_keeps_every_bit(tmp_path: Path, make: object) -> None:
    graph = make()  # type: ignore[operator]
    made = vectors(graph, n=2000)
    outputs = evaluate(graph, made.x)
    points = score(graph, outputs) if graph.exact else None
    decisions = np.stack([outputs[:, 0] > 0, outputs[:, 1] > 3])
    golden = Golden(made.x, outputs, points, decisions, made.category)
    write_golden(tmp_path, graph, golden, ["tight", "loose"], {"tolerance": 1.5})
    back = read_golden(tmp_path)
    assert back.outputs.tobytes() == outputs.tobytes()
    assert back.outputs.dtype == outputs.dtype
    assert (back.score is None) == (points is None)
    assert np.array_equal(back.decisions, decisions)
    assert np.array_equal(back.category, made.category)
    for name, array in made.x.groups.items():
        assert back.x.groups[name].tobytes() == array.tobytes()
    assert {k: v.tolist() for k, v in back.x.counts.items()} == {k: v.tolist() for k, v in made.x.counts.items()}
    content = bytearray((tmp_path / "golden.bin").read_bytes())
    content[-1] ^= 1
    (tmp_path / "golden.bin").write_bytes(bytes(content))
    with pytest.raises(RunFailed, match="damaged"):
        read_golden(tmp_path)


def test_power_of_two_scales_have_no_contraction_traps() -> None:
    """Nothing to find, and nothing breaks: centre 0, scale 1."""
    f32 = np.float32
    group = Group("event", ("a",), None, np.zeros(1, f32), np.ones(1, f32), np.full(1, -4, f32), np.full(1, 4, f32), np.zeros(1, f32))
    node = input_node("in", group, Fixed(True, 3, 2))
    graph = Graph((node, Output("out", ("in",), ("a",), "none")))
    ties, _ = input_ties(grid_of(graph, node), 0, np.random.default_rng(0))
    assert {0.125, -0.375} <= set(np.unique(ties).tolist())
    assert rows(vectors(graph, n=500).x) == 500
