"""Toy events: as hard as they should be, with a drift that can be found, and the same for the same seed."""

from __future__ import annotations

import json
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot
from reference_network import btag_auc, event_figures

from hlt_train.datasets.events import CHUNK, DRIFT_RUN, FIRST_RUN, RUNS, VERSION, write_events
from hlt_train.errors import UsageError

N = 40_000


def content(path: Path) -> ak.Array:
    with uproot.open(path) as file:
        return file["Events"].arrays()


def same(a: ak.Array, b: ak.Array) -> bool:
    return a.fields == b.fields and all(ak.array_equal(a[name], b[name], dtype_exact=True) for name in a.fields)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("events")
    write_events(folder / "large.root", 200_000, 1)
    write_events(folder / "steady.root", N, 2)
    write_events(folder / "drift.root", N, 2, True)
    write_events(folder / "all.root", N, 2, rejected=True)
    return folder


@pytest.fixture(scope="module")
def steady(folder: Path) -> ak.Array:
    return content(folder / "steady.root")


@pytest.fixture(scope="module")
def drift(folder: Path) -> ak.Array:
    return content(folder / "drift.root")


def test_sum_of_btags(folder: Path) -> None:
    assert btag_auc(folder / "large.root") == pytest.approx(0.965, abs=0.005)


@pytest.mark.slow
def test_a_good_network(folder: Path) -> None:
    figures = event_figures(folder / "large.root", seeds=1)
    assert figures["inputs"] == 44
    assert 0.985 <= figures["auc"].mean() < 0.998  # above: too easy to be of use
    assert 0.78 < figures["efficiency at 50 Hz"].mean() < 0.88


def test_branches_agree_with_each_other(steady: ak.Array) -> None:
    assert all(np.isfinite(ak.to_numpy(ak.flatten(steady[name], axis=None))).all() for name in steady.fields)
    assert ak.all(steady.nJet == ak.num(steady.Jet_pt))
    assert ak.all(steady.Jet_pt[:, 1:] <= steady.Jet_pt[:, :-1])
    assert ak.min(steady.Jet_pt) > 20
    outside = abs(steady.Jet_eta) > 2.5
    assert ak.all(steady.Jet_btag[outside] == -1)
    assert ak.all((steady.Jet_btag[~outside] >= 0) & (steady.Jet_btag[~outside] <= 1))
    assert ak.max(abs(steady.Jet_phi)) <= np.float32(np.pi)
    np.testing.assert_allclose(steady.ht, ak.sum(ak.where(outside, 0, steady.Jet_pt), axis=1), rtol=1e-4, atol=1e-3)
    assert ak.all(steady.npv <= steady.nPU)
    assert set(np.unique(steady.run)) == set(range(FIRST_RUN, FIRST_RUN + RUNS))
    assert ak.to_list(steady.event) == list(range(1, N + 1))
    assert ak.all(steady.weight == 1)
    np.testing.assert_allclose(np.mean(steady.HLT_Ref), 0.2, atol=4 * np.sqrt(0.16 / N))


def test_l1_bit(folder: Path, steady: ak.Array) -> None:
    everything = content(folder / "all.root")
    for events in (steady, everything):
        assert ak.all((events.L1_HT > 280) == events.L1_HTT280)
        assert ak.to_list(np.sort(ak.to_numpy(events.label).reshape(-1, 2), axis=1)[0]) == [0, 1]
    assert ak.all(steady.L1_HTT280)
    accepted = [np.mean(everything.L1_HTT280[everything.label == label]) for label in (0, 1)]
    assert accepted == pytest.approx([0.19, 0.58], abs=0.01)
    # What passes is the same physics, whether rejected events are written or not.
    for name in ("ht", "met", "nJet"):
        a, b = steady[name][steady.label == 1], everything[name][everything.L1_HTT280 & (everything.label == 1)]
        assert abs(np.mean(a) - np.mean(b)) < 4 * np.hypot(np.std(a) / np.sqrt(len(a)), np.std(b) / np.sqrt(len(b))), name


def test_drift_leaves_earlier_runs_l1_and_offline_alone(steady: ak.Array, drift: ak.Array) -> None:
    early = steady.run < DRIFT_RUN
    assert same(steady[early], drift[early])
    for name in ("label", "run", "event", "nPU", "npv", "L1_HT", "L1_HTT280", "offline_ht", "HLT_Ref"):
        assert ak.array_equal(steady[name], drift[name]), name


def test_size_of_the_drift(steady: ak.Array, drift: ak.Array) -> None:
    late = (steady.run >= DRIFT_RUN) & (steady.label == 1)
    before, after = steady[late], drift[late]
    np.testing.assert_allclose(after.Jet_pt[:, 0] / before.Jet_pt[:, 0], 1.02, rtol=1e-5)
    # The hard central jets of HH -> 4b are nearly all b jets: at any cut, 5 % of the efficiency is lost.
    for cut in (0.3, 0.6):
        tagged = [ak.sum((events.Jet_btag > cut) & (events.Jet_pt > 60)) for events in (before, after)]
        assert tagged[1] / tagged[0] == pytest.approx(0.95, abs=0.012)


def significance(events: ak.Array, quantity: np.ndarray) -> float:
    """Difference of the means after and before DRIFT_RUN, in standard errors."""
    late = ak.to_numpy(events.run) >= DRIFT_RUN
    a, b = quantity[late], quantity[~late]
    return float((a.mean() - b.mean()) / np.hypot(a.std() / np.sqrt(len(a)), b.std() / np.sqrt(len(b))))


def test_drift_can_be_found_and_only_where_it_is(steady: ak.Array, drift: ak.Array) -> None:
    for events, found in ((steady, False), (drift, True)):
        signal = events[events.label == 1]
        tags = ak.to_numpy(ak.sum(ak.where(signal.Jet_btag > 0.5, 1, 0), axis=1))
        response = ak.to_numpy(events.ht / events.offline_ht)
        assert (significance(signal, tags) < -5) == found
        assert (significance(events, response) > 5) == found


def test_same_content_for_the_same_seed_only(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_events(tmp_path / f"{name}.root", 50, seed)
    a, b, c = (content(tmp_path / f"{name}.root") for name in "abc")
    assert same(a, b)
    assert not set(a.ht) & set(c.ht)
    assert not set(a.luminosityBlock) & set(c.luminosityBlock)


def test_content_is_that_of_this_version(folder: Path) -> None:
    """Another content needs another VERSION of the generator, and new numbers here."""
    with uproot.open(folder / "large.root") as file:
        events = file["Events"].arrays(["label", "run", "ht"], entry_stop=8)
    assert VERSION == 1
    assert ak.to_list(events.label) == [1, 0, 0, 1, 0, 1, 0, 1]
    assert ak.to_list(events.run) == [380014, 380008, 380010, 380015, 380000, 380003, 380011, 380001]
    np.testing.assert_allclose(events.ht[[0, 1, 4, 5]], [439.80, 224.03, 261.43, 300.42], atol=0.01)


@pytest.mark.parametrize("n", [1, 2, 9973, CHUNK, CHUNK + 1])
def test_a_short_file_is_the_beginning_of_a_long_one(folder: Path, steady: ak.Array, tmp_path: Path, n: int) -> None:
    write_events(tmp_path / "short.root", n, 2)
    assert same(content(tmp_path / "short.root"), steady[:n])


def test_refuses_no_rows(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write 0 rows"):
        write_events(tmp_path / "x.root", 0, 1)
    assert not list(tmp_path.iterdir())


def test_says_where_it_comes_from(folder: Path) -> None:
    with uproot.open(folder / "drift.root") as file:
        assert file["origin"] == "toy"
        assert json.loads(file["provenance"]).items() >= {"origin": "toy", "kind": "events", "seed": 2, "n": N, "drift": True, "all": False}.items()
        assert "origin=toy" in file["Events"].title
