"""Toy cells: sparse as they should be, learnable cell by cell, and the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot
from scipy.stats import rankdata

from hlt_train.datasets.cells import CELLS, CHUNK, ETA, NOISY, PHI, VERSION, noisy_cells, write_cells

N = 2 * CHUNK


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> ak.Array:
    path = tmp_path_factory.mktemp("cells") / "toy_cells.root"
    write_cells(path, N, 1)
    return content(path)


def content(path: Path) -> ak.Array:
    with uproot.open(path) as file:
        return file["Events"].arrays()


def test_branches_agree_with_each_other(events: ak.Array) -> None:
    assert set(events.fields) == {"label", "run", "luminosityBlock", "event", "nCell", "Cell_id", "Cell_energy"}
    assert ak.all(events.nCell == ak.num(events.Cell_id))
    assert ak.all(events.Cell_energy[:, 1:] <= events.Cell_energy[:, :-1])
    assert ak.min(events.Cell_energy) > 0
    assert 0 <= ak.min(events.Cell_id) < ak.max(events.Cell_id) < CELLS == 100_000
    assert ak.all(ak.num(events.Cell_id) == ak.Array([len(set(cells)) for cells in events.Cell_id.tolist()]))  # once per event
    assert (np.sort(ak.to_numpy(events.label).reshape(-1, 2), axis=1) == [0, 1]).all()
    assert ak.to_list(events.event) == list(range(1, N + 1))


def test_a_few_cells_are_hot_and_most_are_rarely_hit(events: ak.Array) -> None:
    share = np.bincount(ak.to_numpy(ak.flatten(events.Cell_id)), minlength=CELLS) / N
    hot = noisy_cells()
    assert len(set(hot.tolist())) == NOISY
    assert share[hot].mean() == pytest.approx(15 * 40 / (CELLS + 39 * NOISY), rel=0.05)
    quiet = np.delete(share, hot)
    assert share[hot].min() > 4 * np.median(quiet)
    assert np.mean(quiet < 1e-3) > 0.98
    assert 20 < ak.mean(events.nCell) < 35


def auc(score: np.ndarray, label: np.ndarray) -> float:
    rank, n = rankdata(score), label.sum()
    return float((rank[label == 1].sum() - n * (n + 1) / 2) / (n * (len(label) - n)))


def test_a_linear_function_of_the_cells_tells_them_apart(events: ak.Array) -> None:
    """Front layers for, back layers against: what a linear model over cells can learn. The number of hits says little."""
    label = ak.to_numpy(events.label)
    layer, value = events.Cell_id // (ETA * PHI), np.log(1 + events.Cell_energy)
    score = ak.sum(value * (1.0 * (layer <= 1) - 1.0 * (layer >= 3) + 0.15 * (layer == 2)), axis=1)
    assert auc(ak.to_numpy(score), label) == pytest.approx(0.951, abs=0.006)
    assert auc(ak.to_numpy(events.nCell), label) < 0.65


def test_same_content_for_the_same_seed_and_beginning(tmp_path: Path, events: ak.Array) -> None:
    write_cells(tmp_path / "a.root", 50, 1)
    write_cells(tmp_path / "c.root", 50, 2)
    a, c = content(tmp_path / "a.root"), content(tmp_path / "c.root")
    assert all(ak.array_equal(a[name], events[name][:50], dtype_exact=True) for name in a.fields)
    assert not ak.array_equal(a.Cell_id, c.Cell_id)
    assert not set(a.luminosityBlock) & set(c.luminosityBlock)


def test_content_is_that_of_this_version(events: ak.Array) -> None:
    """Another content needs another VERSION of the generator, and new numbers here."""
    assert VERSION == 1
    assert int(ak.sum(events.nCell)) == PINNED["hits"]
    assert int(ak.sum(events.Cell_id[:100])) == PINNED["cells"]


PINNED = {"hits": 519_121, "cells": 129_134_756}
