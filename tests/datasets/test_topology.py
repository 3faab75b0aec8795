"""Toy topologies: the benchmark's schema, kinematics that agree, classes that overlap, and the same for the same seed."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot

from hlt_train.data.card import load_card
from hlt_train.datasets._particles import CONE
from hlt_train.datasets.topology import CHUNK, CLASSES, FEATURES, MAX_ISOLATION, OBSERVABLES, PARTICLES, VERSION, write_topology
from hlt_train.errors import UsageError

N = CHUNK + 300


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("topology") / "toy_topology.root"
    write_topology(path, N, 1)
    return path


@pytest.fixture(scope="module")
def events(path: Path) -> ak.Array:
    return content(path)


def content(path: Path) -> ak.Array:
    with uproot.open(path) as file:
        return file["Events"].arrays()


def same(a: ak.Array, b: ak.Array) -> bool:
    return a.fields == b.fields and all(ak.array_equal(a[name], b[name], dtype_exact=True) for name in a.fields)


def test_the_schema_of_the_benchmark(events: ak.Array) -> None:
    assert (len(OBSERVABLES), len(FEATURES), len(CLASSES), PARTICLES) == (19, 14, 3, 801)
    identity = ["label", "run", "luminosityBlock", "event"]
    assert set(events.fields) == {*identity, *FEATURES, "nParticle", *(f"Particle_{name}" for name in OBSERVABLES)}
    card = load_card("toy_topology")
    assert (card.inputs["particles"].length, len(card.inputs["particles"].vars), len(card.inputs["hlf"].vars)) == (801, 19, 14)


def test_branches_agree_with_each_other(events: ak.Array) -> None:
    assert all(np.isfinite(ak.to_numpy(ak.flatten(events[name], axis=None))).all() for name in events.fields)
    p = {name: ak.to_numpy(ak.flatten(events[f"Particle_{name}"])).astype(np.float64) for name in OBSERVABLES}
    assert ak.all(events.nParticle == ak.num(events.Particle_Pt))
    assert ak.all(events.Particle_Pt[:, 1:] <= events.Particle_Pt[:, :-1])
    np.testing.assert_allclose(p["Pt"], np.hypot(p["Px"], p["Py"]), rtol=1e-3)
    np.testing.assert_allclose(p["Energy"], np.sqrt(p["Px"] ** 2 + p["Py"] ** 2 + p["Pz"] ** 2), rtol=1e-3)
    np.testing.assert_allclose(p["Pz"], p["Pt"] * np.sinh(p["Eta"]), rtol=4e-3, atol=1e-3)
    flags = np.stack([p[name] for name in ("isChHad", "isNeuHad", "isGamma", "isEle", "isMu")])
    assert (flags.sum(axis=0) == 1).all()
    assert ((p["Charge"] != 0) == (flags[[0, 3, 4]].sum(axis=0) == 1)).all()
    neutral = p["Charge"] == 0
    assert not p["vtxX"][neutral].any()
    assert not p["vtxZ"][neutral].any()
    assert np.abs(p["Phi"]).max() <= np.pi * (1 + 2**-12)  # stored with 12 bits


def test_isolations_are_sums_over_the_cone(events: ak.Array) -> None:
    """Of every particle of some events, from the written numbers; a particle at the cone's edge may fall on either side after rounding."""
    for event in events[:5]:
        pt, eta, phi = (np.asarray(event[f"Particle_{name}"], np.float64) for name in ("Pt", "Eta", "Phi"))
        turn = (phi[:, None] - phi + np.pi) % (2 * np.pi) - np.pi
        distance = np.hypot(eta[:, None] - eta, turn)
        np.fill_diagonal(distance, 9)
        for name, flag in (("ChPFIso", "isChHad"), ("GammaPFIso", "isGamma"), ("NeuPFIso", "isNeuHad")):
            carried = pt * np.asarray(event[f"Particle_{flag}"])
            low, high = (((distance < CONE + edge) @ carried) / pt for edge in (-0.003, 0.003))
            found = np.asarray(event[f"Particle_{name}"], np.float64)
            assert (found >= low * (1 - 2e-3) - 1e-6).all()
            assert (found <= high * (1 + 2e-3) + 1e-6).all()


def test_one_isolated_lepton_in_every_event(events: ak.Array) -> None:
    lepton = (events.Particle_isEle == 1) | (events.Particle_isMu == 1)
    assert ak.all(ak.sum(lepton, axis=1) == 1)
    for feature, observable in (("LepPt", "Pt"), ("LepEta", "Eta"), ("LepIsoCh", "ChPFIso"), ("LepIsoGamma", "GammaPFIso"), ("LepIsoNeu", "NeuPFIso")):
        np.testing.assert_allclose(events[feature], ak.flatten(events[f"Particle_{observable}"][lepton]), rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(events.LepCharge, ak.flatten(events.Particle_Charge[lepton]))
    np.testing.assert_array_equal(events.LepIsEle, ak.flatten(events.Particle_isEle[lepton]))
    assert ak.max(events.LepIsoCh + events.LepIsoGamma + events.LepIsoNeu) < MAX_ISOLATION
    assert ak.min(events.LepPt) > 20  # the filter is at 23 GeV before the resolution
    assert ak.max(abs(events.LepEta)) < 2.6


def test_features_are_what_their_names_say(events: ak.Array) -> None:
    cosine = np.cos(events.LepPhi - events.PhiMET)
    np.testing.assert_allclose(events.MT, np.sqrt(2 * events.LepPt * events.MET * (1 - cosine)), rtol=1e-3, atol=1e-2)
    assert ak.all(events.nBJets <= events.nJets)
    assert ak.all((events.HT == 0) == (events.nJets == 0))
    assert ak.all(30 * events.nJets <= events.HT)


def test_classes_overlap_and_differ_as_they_should(events: ak.Array) -> None:
    mean = lambda name: [float(np.mean(events[name][events.label == label])) for label in range(3)]  # noqa: E731
    ht, met, jets, tags = (mean(name) for name in ("HT", "MET", "nJets", "nBJets"))
    assert ht[1] > 2.5 * max(ht[0], ht[2])
    assert jets[1] > 1.5 + max(jets[0], jets[2])
    assert tags[1] == pytest.approx(1.25, abs=0.15)
    assert met[2] > 1.7 * met[0]  # the neutrino of the W
    isolation = mean("LepIsoCh")
    assert isolation[0] > 3 * max(isolation[1:])
    w = events[events.label == 2]
    assert np.median(w.MT) == pytest.approx(72, abs=6)  # below the mass of the W, smeared
    for name in ("HT", "MET", "LepIsoCh", "nParticle"):  # no cut on one variable does it: each class reaches into the central 90 % of the others
        of = [ak.to_numpy(events[name][events.label == label]) for label in range(3)]
        for one, other in itertools.permutations(of, 2):
            low, high = np.quantile(one, [0.05, 0.95])
            assert np.mean((other >= low) & (other <= high)) > 0.1, name


def test_classes_are_shuffled_and_balanced(events: ak.Array) -> None:
    groups = ak.to_numpy(events.label).reshape(-1, 3)
    assert (np.sort(groups, axis=1) == np.arange(3)).all()
    assert ak.to_list(events.event) == list(range(1, N + 1))


def test_fewer_particles_are_the_hardest_of_the_same_events(tmp_path: Path, events: ak.Array) -> None:
    write_topology(tmp_path / "short.root", 90, 1, particles=32)
    short = content(tmp_path / "short.root")
    assert ak.max(short.nParticle) == 32
    for name in events.fields:
        whole = events[name][:90]
        if name != "nParticle":
            assert ak.array_equal(short[name], whole[:, :32] if name.startswith("Particle_") else whole, dtype_exact=True), name


def test_same_content_for_the_same_seed_only(tmp_path: Path, events: ak.Array) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_topology(tmp_path / f"{name}.root", 50, seed, particles=8)
    a, b, c = (content(tmp_path / f"{name}.root") for name in "abc")
    assert same(a, b)
    assert not set(a.LepPt) & set(c.LepPt)
    assert not set(a.luminosityBlock) & set(c.luminosityBlock)


def test_a_longer_file_begins_with_the_shorter_one(tmp_path: Path, events: ak.Array) -> None:
    for name, n in (("short", 40), ("long", CHUNK + 10)):
        write_topology(tmp_path / f"{name}.root", n, 1, particles=5)
    short, long = content(tmp_path / "short.root"), content(tmp_path / "long.root")
    assert same(short, long[:40])
    assert ak.array_equal(long.LepPt, events.LepPt[: CHUNK + 10])  # also beyond the first chunk


def test_content_is_that_of_this_version(events: ak.Array) -> None:
    """Another content needs another VERSION of the generator, and new numbers here."""
    assert VERSION == 1
    assert float(ak.sum(events.nParticle)) == pytest.approx(PINNED["particles"], rel=1e-6)
    assert float(ak.sum(events.Particle_Pt)) == pytest.approx(PINNED["pt"], rel=1e-4)
    assert float(ak.sum(events.HT)) == pytest.approx(PINNED["ht"], rel=1e-4)


PINNED = {"particles": 283_198, "pt": 598_008.4, "ht": 198_147.5}


def test_the_file_says_what_made_it(path: Path) -> None:
    with uproot.open(path) as file:
        assert json.loads(file["provenance"]).items() >= {"origin": "toy", "kind": "topology", "seed": 1, "n": N, "particles": 801}.items()


@pytest.mark.parametrize("particles", [0, 802])
def test_refuses_other_numbers_of_particles(tmp_path: Path, particles: int) -> None:
    with pytest.raises(UsageError, match=f"cannot write {particles} particles"):
        write_topology(tmp_path / "x.root", 10, 1, particles=particles)
    assert not list(tmp_path.iterdir())
