"""Omega, Delta and rho on hypergraphs small enough to count by hand, and of models whose sparsity is known."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlt_train.datasets.cells import write_cells
from hlt_train.errors import UsageError
from hlt_train.inspect_sparsity import inspect_sparsity, sparsity_text, workers
from hlt_train.models.deepsets import deepsets
from hlt_train.models.mlp import mlp
from hlt_train.models.sparse_linear import sparse_linear
from hlt_train.sparsity import Edges, edges, joined, measure, split_common
from hlt_train.touched import MOST, rows_at_most, touched
from tests.runs import write_card
from tests.students import cells, inputs, normalised, raw, raw_cells


def graph(*lists: list[int], size: int) -> Edges:
    owner = np.repeat(np.arange(len(lists)), [len(v) for v in lists])
    return edges(owner, np.array([v for vertices in lists for v in vertices], np.int64), len(lists), size)


def figures(of: Edges) -> tuple[int, float, float]:
    found = measure(of)
    return found.omega, found.delta, found.rho


@pytest.mark.parametrize(
    ("of", "want"),
    [
        (graph([0, 1], [2, 3], [4, 5], [6], size=8), (2, 1 / 4, 1 / 4)),  # disjoint: rho = 1 / |E|
        (graph([0, 1, 2], [0, 1, 2], size=3), (3, 1.0, 1.0)),  # dense
        (graph([0, 1], [1, 2], [2, 3], [3, 4], [4, 5], size=6), (2, 2 / 5, 3 / 5)),  # a chain: an inner edge meets two others
        (graph([0, 1], [0, 2], [0, 3], [4], size=5), (2, 3 / 4, 3 / 4)),  # a star, and one apart
        (graph([0, 1, 2, 3], [0], [1], [2], [4], size=5), (4, 2 / 5, 4 / 5)),  # Delta below rho
        (graph([], [1], [], size=2), (1, 1 / 3, 1 / 3)),  # an example that touches nothing meets nobody
        (graph([], [], size=2), (0, 0.0, 0.0)),
        (graph(size=3), (0, 0.0, 0.0)),
    ],
)
def test_by_hand(of: Edges, want: tuple[int, float, float]) -> None:
    assert figures(of) == pytest.approx(want)


@given(st.lists(st.sets(st.integers(0, 9), max_size=5), min_size=1, max_size=12))
def test_against_the_definitions(sets: list[set[int]]) -> None:
    found = figures(graph(*(sorted(s) for s in sets), size=10))
    n = len(sets)
    assert found[0] == max(len(s) for s in sets)
    assert found[1] == pytest.approx(max(sum(v in s for s in sets) for v in range(10)) / n)
    assert found[2] == pytest.approx(max(sum(bool(s & t) for t in sets) for s in sets) / n)


def test_pairs_may_repeat_and_come_in_any_order() -> None:
    of = edges(np.array([1, 0, 1, 0, 1]), np.array([3, 2, 0, 2, 3]), 3, 4)
    assert of.offsets.tolist() == [0, 1, 3, 3]
    assert of.vertices.tolist() == [2, 0, 3]


def test_a_batch_is_the_union_of_its_examples() -> None:
    of = graph([0, 1], [1, 2], [5], [0, 6], [7], size=8)
    pairs = joined(of, 2)
    assert len(pairs) == 2  # the fifth example fills no batch
    assert pairs.vertices.tolist() == [0, 1, 2, 0, 5, 6]
    assert figures(pairs) == (3, 1.0, 1.0)
    assert len(joined(of, 100)) == 1
    assert joined(of, 100).vertices.tolist() == [0, 1, 2, 5, 6, 7]
    assert len(joined(graph(size=8), 4)) == 0


def test_what_every_example_touches_is_set_apart() -> None:
    rest, common = split_common(graph([0, 1, 7], [2, 7], [3, 7], size=8))
    assert common == 1
    assert figures(rest) == pytest.approx((2, 1 / 3, 1 / 3))
    assert split_common(graph([0], [1], size=2))[1] == 0


def test_rho_of_a_sample_is_a_lower_bound_that_says_so() -> None:
    of = graph(*([k] for k in range(50)), [0, 1, 2, 3], size=50)
    assert measure(of).sampled == 51
    found = measure(of, sample=10, seed=3)
    assert (found.edges, found.sampled) == (51, 10)
    assert found.rho <= measure(of).rho == pytest.approx(5 / 51)
    assert measure(of, sample=10, seed=3) == found


def test_a_dense_network_gives_no_guarantee() -> None:
    described = inputs(np.random.default_rng(1), ("event", 3, None))
    x = normalised(described, raw(np.random.default_rng(2), described, 50))
    of = touched(mlp(described, 2, jax.random.key(0), widths=(4,), activation="tanh"), x, np.zeros(50, np.int32))
    assert of.size == 3 * 4 + 4 + 4 * 2 + 2
    assert figures(of)[1:] == (1.0, 1.0)


def test_padding_touches_no_weight_of_a_first_layer() -> None:
    """An MLP reads flattened constituents: an example touches only the weights of the places that it fills. DeepSets share theirs."""
    described = inputs(np.random.default_rng(1), ("jets", 2, 5))
    x = normalised(described, raw(np.random.default_rng(2), described, 40))
    x.groups["jets"][:] = np.where(x.groups["jets"] == 0, 0.5, x.groups["jets"]) * (np.arange(5) < x.counts["jets"][:, None])[..., None]
    label = np.zeros(40, np.int32)
    of = touched(mlp(described, 2, jax.random.key(0), widths=(3,), activation="tanh"), x, label)
    np.testing.assert_array_equal(np.diff(of.offsets), 3 + 3 * 2 + 2 + 3 * 2 * x.counts["jets"])
    shared = np.diff(touched(deepsets(described, 2, jax.random.key(0), phi=(3,), rho=(), activation="tanh"), x, label).offsets)
    assert len(set(shared[x.counts["jets"] > 0])) == 1


def test_a_model_with_rows_touches_these_and_its_bias() -> None:
    described = cells(("calo", 6))
    x = normalised(described, raw_cells(np.random.default_rng(2), described, 30, garbage=1.0))
    model = sparse_linear(described, 3, jax.random.key(0), buckets=5000)
    of = touched(model, x, np.zeros(30, np.int32))
    assert of.size == 5000 * 3 + 3
    rows = np.asarray(model.rows(x))
    for k in range(30):
        mine = of.vertices[of.offsets[k] : of.offsets[k + 1]]
        own = np.unique(rows[k][rows[k] < 5000])
        want = np.concatenate([(own[:, None] * 3 + np.arange(3)).ravel(), 15000 + np.arange(3)])
        np.testing.assert_array_equal(mine, want)
    assert split_common(of)[1] == 3


def test_fewer_examples_of_large_networks() -> None:
    described = inputs(np.random.default_rng(1), ("event", 3, None))
    large = mlp(described, 2, jax.random.key(0), widths=(10_000,))
    assert rows_at_most(large, 10_000) == MOST // (3 * 10_000 + 10_000 + 10_000 * 2 + 2)
    assert rows_at_most(large, 100) == 100


@pytest.mark.parametrize(("rho", "most"), [(0.0, None), (1.0, 1), (0.5, 2), (0.05, 11), (0.6, 1)])
def test_workers(rho: float, most: int | None) -> None:
    assert workers(rho) == most


@pytest.fixture(scope="module")
def calorimeter(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    path = tmp_path_factory.mktemp("cells") / "cells.root"
    write_cells(path, 3000, 1)
    return {"events": [str(path)]}


def test_sparse_cells(calorimeter: dict[str, list[str]]) -> None:
    found = inspect_sparsity("toy_cells", calorimeter, model="sparse_linear", batch=50, entries=1000)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["parameters"], found["touched_by_every_example"], found["examples"], found["batch_size"]) == (2**17 + 2, 2, 1000, 50)
    assert found["example"]["delta"] == found["example"]["rho"] == 1
    apart = found["example_apart"]
    assert apart["delta"] < 0.03
    assert apart["rho"] < 0.1
    assert 40 < apart["omega"] <= 160
    assert found["batch"]["edges"] == 20
    assert found["batch"]["omega"] > 10 * found["example"]["omega"]
    assert found["justified"] == "partly"
    assert found["workers"] >= 5
    text = sparsity_text(found)
    assert "lock-free training is justified with up to" in text.lower()
    assert "2 parameters that every example touches" in text


def test_dense_jets(tmp_path: Path) -> None:
    card = write_card(tmp_path)
    found = inspect_sparsity(str(card), options={"widths": [8]}, entries=100)
    assert found["justified"] == "no"
    assert found["example"]["delta"] == found["example"]["rho"] == 1
    assert "No guarantee: Delta = 1, rho = 1" in sparsity_text(found)
    with pytest.raises(UsageError, match="no model is called"):
        inspect_sparsity(str(card), model="spares_linear")
