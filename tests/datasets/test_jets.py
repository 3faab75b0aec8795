"""Toy jets: as hard as the reference row, physical, and the same for the same seed."""

from __future__ import annotations

import json
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot
from reference_network import JET_AUC, jet_figures

from hlt_train.datasets.jets import CHUNK, CLASSES, VERSION, write_jets
from hlt_train.errors import UsageError


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("jets") / "toy_jets.root"
    write_jets(path, 80_000, 1)
    return path


@pytest.fixture(scope="module")
def jets(path: Path) -> ak.Array:
    with uproot.open(path) as file:
        return file["Jets"].arrays(entry_stop=20_000)


def content(path: Path) -> ak.Array:
    with uproot.open(path) as file:
        return file["Jets"].arrays()


def same(a: ak.Array, b: ak.Array) -> bool:
    return a.fields == b.fields and all(ak.array_equal(a[name], b[name], dtype_exact=True) for name in a.fields)


@pytest.mark.slow
def test_as_hard_as_the_reference_row(path: Path) -> None:
    figures = jet_figures(path, seeds=3)
    for name, expected in JET_AUC.items():
        assert figures[name].mean() == pytest.approx(expected, abs=0.01), name


def test_branches_agree_with_each_other(jets: ak.Array) -> None:
    assert all(np.isfinite(ak.to_numpy(ak.flatten(jets[name], axis=None))).all() for name in jets.fields)
    assert ak.all(jets.npart == ak.num(jets.part_pt))
    assert ak.all(jets.npart == jets.jet_mult)
    assert ak.min(jets.npart) > 0
    assert ak.all(jets.part_pt[:, 1:] <= jets.part_pt[:, :-1])
    px, py = ak.sum(jets.part_pt * np.cos(jets.part_phi), axis=1), ak.sum(jets.part_pt * np.sin(jets.part_phi), axis=1)
    pz, energy = ak.sum(jets.part_pt * np.sinh(jets.part_eta), axis=1), ak.sum(jets.part_pt * np.cosh(jets.part_eta), axis=1)
    np.testing.assert_allclose(jets.jet_pt, np.hypot(px, py), rtol=1e-3)
    np.testing.assert_allclose(jets.jet_eta, np.arcsinh(pz / np.hypot(px, py)), atol=1e-3)
    np.testing.assert_allclose(jets.jet_mass, np.sqrt(np.maximum(energy**2 - px**2 - py**2 - pz**2, 0)), atol=1.5)
    np.testing.assert_allclose(ak.flatten(jets.part_deta), ak.flatten(jets.part_eta - jets.jet_eta), atol=1e-3)
    turn = ak.to_numpy(ak.flatten(jets.part_dphi - (jets.part_phi - jets.jet_phi))) / (2 * np.pi)
    np.testing.assert_allclose(turn, np.round(turn), atol=1e-3)
    assert set(ak.flatten(jets.part_absid)) == {22, 130, 211}
    assert ak.all((jets.part_charge != 0) == (jets.part_absid == 211))


def test_classes_are_shuffled_and_balanced(jets: ak.Array) -> None:
    groups = ak.to_numpy(jets.label).reshape(-1, len(CLASSES))
    assert (np.sort(groups, axis=1) == np.arange(len(CLASSES))).all()
    for place in range(len(CLASSES)):
        share = np.bincount(groups[:, place], minlength=5) / len(groups)
        assert np.abs(share - 0.2).max() < 4 * np.sqrt(0.2 * 0.8 / len(groups))


@pytest.mark.parametrize(("label", "mass", "multiplicity"), [(0, 146, 63), (1, 89, 39), (2, 87, 40), (3, 96, 41), (4, 171, 49)])
def test_mass_and_multiplicity(jets: ak.Array, label: int, mass: float, multiplicity: float) -> None:
    chosen = jets[jets.label == label]
    assert np.median(chosen.jet_mass) == pytest.approx(mass, rel=0.03)
    assert np.mean(chosen.npart) == pytest.approx(multiplicity, rel=0.03)


def test_same_content_for_the_same_seed_only(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_jets(tmp_path / f"{name}.root", 50, seed)
    a, b, c = (content(tmp_path / f"{name}.root") for name in "abc")
    assert same(a, b)
    assert not set(a.jet_pt) & set(c.jet_pt)
    assert not set(a.luminosityBlock) & set(c.luminosityBlock)  # so that files of different seeds share no identity


def test_content_is_that_of_this_version(jets: ak.Array) -> None:
    """Another content needs another VERSION of the generator, and new numbers here."""
    assert VERSION == 1
    assert ak.to_list(jets.label[:10]) == [1, 4, 0, 2, 3, 0, 1, 2, 4, 3]
    assert ak.to_list(jets.npart[:10]) == [47, 38, 64, 43, 36, 77, 30, 20, 80, 63]
    np.testing.assert_allclose(jets.jet_mass[:5], [95.04, 183.21, 106.73, 72.70, 86.96], atol=0.01)


def test_a_short_file_is_the_beginning_of_a_long_one(tmp_path: Path) -> None:
    write_jets(tmp_path / "long.root", CHUNK + 7, 3)
    write_jets(tmp_path / "short.root", CHUNK, 3)
    long, short = content(tmp_path / "long.root"), content(tmp_path / "short.root")
    assert same(long[:CHUNK], short)
    assert len(long) == CHUNK + 7
    assert ak.to_list(long.event) == list(range(1, CHUNK + 8))
    assert not set(long.jet_pt[:7]) & set(long.jet_pt[CHUNK:])  # the second chunk is not the first again


@pytest.mark.parametrize("n", [1, 7, 4999])
def test_awkward_counts(tmp_path: Path, n: int) -> None:
    write_jets(tmp_path / "x.root", n, 1)
    assert len(content(tmp_path / "x.root")) == n


@pytest.mark.parametrize(("n", "seed", "what"), [(0, 1, "cannot write 0 rows"), (-3, 1, "cannot write -3 rows"), (10, -1, "the seed is -1")])
def test_refuses_before_writing(tmp_path: Path, n: int, seed: int, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        write_jets(tmp_path / "x.root", n, seed)
    assert not list(tmp_path.iterdir())


def test_says_where_it_comes_from(path: Path) -> None:
    with uproot.open(path) as file:
        assert file["origin"] == "toy"
        assert json.loads(file["provenance"]).items() >= {"origin": "toy", "kind": "jets", "seed": 1, "n": 80_000, "generator": 1}.items()
        assert "origin=toy" in file["Jets"].title
