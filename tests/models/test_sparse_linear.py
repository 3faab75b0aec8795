"""The linear model on hashed cells: its sum, the rows it touches, gradients that need no table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hlt_train.data.card import load_card
from hlt_train.datasets.cells import write_cells
from hlt_train.errors import UsageError
from hlt_train.fit import fit
from hlt_train.models._refusal import NoGraph
from hlt_train.models.sparse_linear import SparseLinear, sparse_linear
from hlt_train.progress import Progress
from hlt_train.types import Features
from tests.runs import config
from tests.students import NARROW, cells, inputs, normalised, raw_cells

DESCRIBED = cells(("calo", 12), ("muon", 4))
N = 60


def features(seed: int = 2) -> Features:
    return normalised(DESCRIBED, raw_cells(np.random.default_rng(seed), DESCRIBED, N, garbage=1.0))


def model(buckets: int = 1009) -> SparseLinear:
    made = sparse_linear(DESCRIBED, 2, jax.random.key(0), buckets=buckets)
    rng = np.random.default_rng(3)
    table, bias = rng.normal(size=(buckets, 2)).astype(np.float32), rng.normal(size=2).astype(np.float32)
    return eqx.tree_at(lambda m: (m.table, m.bias), made, (jnp.asarray(table), jnp.asarray(bias)))


def test_it_is_the_sum_over_the_hits() -> None:
    x, network = features(), model()
    rows = np.asarray(network.rows(x))
    table, want = np.asarray(network.table, np.float64), np.tile(np.asarray(network.bias, np.float64), (N, 1))
    for name, first in (("calo", 0), ("muon", 12)):
        for event in range(N):
            for k in range(x.counts[name][event]):
                want[event] += x.groups[name][event, k, 1] * table[rows[event, first + k]]
    np.testing.assert_allclose(network(x), want, rtol=1e-5, atol=1e-5)


def test_rows_are_those_of_the_cells() -> None:
    """Equal cells of a group share a row, padding has the row that does not exist, and nearly all others differ in a large table."""
    x = features()
    rows = np.asarray(model(2**20).rows(x))
    assert rows.dtype == np.int32
    assert rows.shape == (N, 16)
    real = np.concatenate([np.arange(length) < x.counts[name][:, None] for name, length in (("calo", 12), ("muon", 4))], axis=1)
    assert (rows[~real] == 2**20).all()
    assert (rows[real] < 2**20).all()
    assert (rows[real] >= 0).all()
    of = {}
    for name, columns in (("calo", slice(0, 12)), ("muon", slice(12, 16))):
        for cell, row in zip(x.groups[name][..., 0][real[:, columns]], rows[:, columns][real[:, columns]], strict=True):
            assert of.setdefault((name, float(cell)), row) == row
    assert len(set(of.values())) > 0.99 * len(of)


def test_the_hash_spreads_neighbours_evenly() -> None:
    """100,000 consecutive cells in 1,000 rows: the number per row is Poisson, chi square per degree of freedom 1."""
    described = cells(("calo", 100_000))
    values = np.stack([np.arange(100_000), np.ones(100_000)], axis=1)[None].astype(np.float32)
    rows = np.asarray(sparse_linear(described, 1, jax.random.key(0), buckets=1000).rows(Features({"calo": values}, {"calo": np.array([100_000], np.int32)})))
    counts = np.bincount(rows[0], minlength=1001)
    assert counts[1000] == 0
    assert ((counts[:1000] - 100) ** 2 / 100).sum() / 999 == pytest.approx(1, abs=4 * np.sqrt(2 / 999))


def test_equal_numbers_in_two_groups_are_different_cells() -> None:
    both = np.array([[[7, 1]]], np.float32)
    described = cells(("a", 1), ("b", 1))
    rows = np.asarray(
        sparse_linear(described, 2, jax.random.key(0)).rows(Features({"a": both, "b": both}, {"a": np.ones(1, np.int32), "b": np.ones(1, np.int32)}))
    )
    assert rows[0, 0] != rows[0, 1]


def test_numbers_of_cells_survive_up_to_two_to_the_24() -> None:
    described = cells(("calo", 4))
    last = np.stack([2**24 - np.arange(4), np.ones(4)], axis=1)[None].astype(np.float32)
    x = normalised(described, Features({"calo": last}, {"calo": np.array([4], np.int32)}))
    np.testing.assert_array_equal(x.groups["calo"][0, :, 0].astype(np.int64), 2**24 - np.arange(4))
    assert len(set(np.asarray(sparse_linear(described, 2, jax.random.key(0), buckets=2**20).rows(x))[0].tolist())) == 4


@eqx.filter_jit
def of_table(network: SparseLinear, x: Features) -> tuple[jax.Array, jax.Array]:
    def loss(leaves: tuple[jax.Array, jax.Array]) -> jax.Array:
        return (eqx.tree_at(lambda m: (m.table, m.bias), network, leaves)(x) ** 2).sum()

    return jax.grad(loss)((network.table, network.bias))


def test_gradients_of_touched_rows_are_those_of_the_table() -> None:
    """What a transport does: gather, differentiate with respect to the gathered rows, scatter the sum; padding is dropped."""
    x, network = features(), model()
    rows = network.rows(x)
    gathered = network.table.at[rows].get(mode="fill", fill_value=0)
    np.testing.assert_array_equal(network.from_rows(gathered, network.bias, x), network(x))
    garbage = jnp.where((rows == 1009)[..., None], jnp.nan, gathered)
    np.testing.assert_array_equal(network.from_rows(garbage, network.bias, x), network(x))
    loss = lambda g, b: (network.from_rows(g, b, x) ** 2).sum()  # noqa: E731
    of_gathered, of_bias = jax.grad(loss, argnums=(0, 1))(gathered, network.bias)
    table, bias = of_table(network, x)
    np.testing.assert_allclose(jnp.zeros_like(table).at[rows].add(of_gathered, mode="drop"), table, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(of_bias, bias, rtol=1e-5)
    assert (np.asarray(table).any(axis=1) == np.isin(np.arange(1009), np.asarray(rows))).all()


def test_the_embedded_card_suits_it() -> None:
    card = load_card("toy_cells")
    (group,) = card.inputs.values()
    cell, value = group.vars.values()
    assert (cell.centre, cell.scale, cell.clip) == (0, 1, None)
    assert value.clip is not None


def test_refusals() -> None:
    key = jax.random.key(0)
    (group,) = cells(("calo", 3)).groups
    for wrong in (replace(group, scale=np.array([0.5, 1], np.float32)), replace(group, hi=np.array([5, 5], np.float32))):
        with pytest.raises(UsageError, match="'calo_cell' as the number of a cell, but the card normalises it") as caught:
            sparse_linear(replace(DESCRIBED, groups=(wrong,)), 2, key)
        assert "calo_cell: {centre: 0, scale: 1, clip: null}" in caught.value.then
    rng = np.random.default_rng(1)
    with pytest.raises(UsageError, match="'event' are scalars"):
        sparse_linear(inputs(rng, ("event", 2, None)), 2, key)
    with pytest.raises(UsageError, match="two variables per hit"):
        sparse_linear(inputs(rng, ("jets", 3, 4)), 2, key)
    with pytest.raises(UsageError, match="buckets is 1 to"):
        sparse_linear(DESCRIBED, 2, key, buckets=0)
    with pytest.raises(NoGraph):
        sparse_linear(DESCRIBED, 2, key, precision=NARROW)
    with pytest.raises(NoGraph, match="sparse_linear has no graph"):
        model().lower(DESCRIBED, ("a", "b"), None)


def test_fit_learns_and_writes_working_points(tmp_path: Path) -> None:
    write_cells(tmp_path / "toy.root", 20_000, 1)
    card = load_card("toy_cells")
    card.samples["events"].files = [str(tmp_path / "toy.root")]
    settings = {"model": {"name": "sparse_linear"}, "batch": 128, "learning_rate": 0.003}
    result = fit(config(card, length="5epochs", **settings), tmp_path / "run", progress=Progress(quiet=True))
    assert result["parameters"] == 2**17 + 2
    assert result["validation"]["accuracy"] > 0.62  # chance is 0.5; each cell is seen about four times
    assert json.loads((tmp_path / "run" / "working_points.json").read_text())["points"]
