"""What the generators conserve: four-momentum in decays and boosts, momentum in the shower and hadronisation, masses, and the limits of subjettiness."""

from __future__ import annotations

import numpy as np
import pytest

from hlt_train.datasets._collisions import BOTTOM, concatenate, hh_to_4b, pileup, qcd
from hlt_train.datasets._jet_features import padded, subjettiness
from hlt_train.datasets._kinematics import boost, coordinates, four_momentum, isotropic, owners, power_law, sum_by_owner, two_body_decay, wrap
from hlt_train.datasets._shower import GLUON, QUARK, Particles, emit, hadronise, put_on_shell, shower
from hlt_train.datasets._trigger_detector import HLT, L1, measure
from hlt_train.datasets._writer import generator

N = 2000


@pytest.fixture
def rng() -> np.random.Generator:
    return generator(11, 99)


def mass(momenta: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(momenta[:, 0] ** 2 - (momenta[:, 1:] ** 2).sum(axis=1), 0))


def moving(rng: np.random.Generator, m: float) -> np.ndarray:
    return four_momentum(rng.exponential(300, N), rng.normal(0, 1.5, N), rng.uniform(-np.pi, np.pi, N), np.full(N, m))


def test_coordinates_and_back(rng: np.random.Generator) -> None:
    momenta = moving(rng, 80.4)
    np.testing.assert_allclose(four_momentum(*coordinates(momenta), np.full(N, 80.4)), momenta, rtol=1e-9, atol=1e-9)


def test_boost_and_back_keeps_the_mass(rng: np.random.Generator) -> None:
    momenta, velocity = moving(rng, 125.0), isotropic(N, rng) * rng.uniform(0, 0.99, N)[:, None]
    velocity[0] = 0
    there = boost(momenta, velocity)
    np.testing.assert_allclose(mass(there), 125, rtol=1e-6)
    np.testing.assert_allclose(boost(there, -velocity), momenta, rtol=1e-7, atol=1e-6)
    np.testing.assert_array_equal(there[0], momenta[0])


def test_boost_from_rest_gives_the_velocity(rng: np.random.Generator) -> None:
    velocity = isotropic(N, rng) * rng.uniform(0, 0.99, N)[:, None]
    at_rest = np.tile([91.2, 0.0, 0.0, 0.0], (N, 1))
    moved = boost(at_rest, velocity)
    np.testing.assert_allclose(moved[:, 1:] / moved[:, :1], velocity, atol=1e-12)


def test_decay_conserves_four_momentum(rng: np.random.Generator) -> None:
    top = moving(rng, 172.8)
    w, b = two_body_decay(top, np.full(N, 172.8), np.full(N, 80.4), np.full(N, 4.7), rng)
    np.testing.assert_allclose(w + b, top, rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(mass(w), 80.4, rtol=1e-4)
    np.testing.assert_allclose(mass(b), 4.7, rtol=1e-2)


def test_isotropic_is_uniform_on_the_sphere(rng: np.random.Generator) -> None:
    directions = isotropic(N, rng)
    np.testing.assert_allclose((directions**2).sum(axis=1), 1)
    np.testing.assert_allclose(directions.mean(axis=0), 0, atol=4 / np.sqrt(3 * N))
    np.testing.assert_allclose((directions**2).mean(axis=0), 1 / 3, atol=4 * np.sqrt(4 / 45 / N))


def test_power_law(rng: np.random.Generator) -> None:
    x = power_law(100_000, 90.0, 3000.0, 5.2, rng)
    assert x.min() >= 90
    assert x.max() <= 3000
    assert np.mean(x > 180) == pytest.approx(2**-4.2, rel=0.05)


def test_flat_bookkeeping() -> None:
    counts = np.array([2, 0, 1])
    assert owners(counts).tolist() == [0, 0, 2]
    assert sum_by_owner(owners(counts), np.array([1.0, 2.0, 5.0]), 3).tolist() == [3, 0, 5]
    assert padded(np.array([1.0, 2.0, 5.0]), counts, 3).tolist() == [[1, 2, 0], [0, 0, 0], [5, 0, 0]]
    assert padded(np.array([1.0, 2.0, 5.0]), counts, 1).tolist() == [[1], [0], [5]]
    np.testing.assert_allclose(wrap(np.array([0.5, np.pi, -np.pi, 3 * np.pi + 0.25, -7.0])), [0.5, -np.pi, -np.pi, -np.pi + 0.25, 2 * np.pi - 7], atol=1e-12)


def prongs(rng: np.random.Generator) -> Particles:
    return Particles(np.arange(N), rng.normal(1000, 45, N), rng.normal(0, 0.7, N), rng.uniform(-np.pi, np.pi, N))


def test_shower_and_hadronisation_conserve_momentum(rng: np.random.Generator) -> None:
    before = prongs(rng)
    partons = shower(before, np.full(N, GLUON), np.full(N, 0.8), rng)
    hadrons = hadronise(partons, rng)
    for after in (partons, hadrons):
        assert after.pt.min() > 0
        np.testing.assert_allclose(sum_by_owner(after.jet, after.pt, N), before.pt, rtol=1e-9)
    assert len(hadrons.pt) > len(partons.pt) > 5 * N


def test_emissions_follow_the_colour_factor(rng: np.random.Generator) -> None:
    quark, gluon = (emit(prongs(rng), np.full(N, colour), np.full(N, 0.8), 0.9, rng) for colour in (QUARK, GLUON))
    assert len(gluon.z) / len(quark.z) == pytest.approx(9 / 4, abs=9 / 4 * 4 * np.sqrt(1 / len(gluon.z) + 1 / len(quark.z)))
    for found in (quark, gluon):
        assert sum_by_owner(found.emitter, found.z, N).max() <= 0.9 + 1e-12
        assert found.theta.max() <= 0.8


def test_on_shell(rng: np.random.Generator) -> None:
    hadrons = hadronise(shower(prongs(rng), np.full(N, GLUON), np.full(N, 0.8), rng), rng)
    jet, pt, eta, phi = put_on_shell(hadrons, np.full(N, 150.0))
    total = np.stack([sum_by_owner(jet, x, N) for x in (pt * np.cosh(eta), pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta))], axis=1)
    assert np.median(mass(total)) == pytest.approx(150, rel=0.02)
    np.testing.assert_array_equal(pt, hadrons.pt)


def test_subjettiness_of_few_particles() -> None:
    z, deta, dphi = (np.zeros((3, 8)) for _ in range(3))
    z[:, :3] = [[1, 0, 0], [0.5, 0.5, 0], [0.4, 0.35, 0.25]]
    deta[1, :2] = [-0.3, 0.3]
    deta[2, :3], dphi[2, :3] = [-0.3, 0.3, 0.0], [0.0, 0.0, 0.4]
    tau1, tau2, tau3 = subjettiness(z, deta, dphi, axes=3)
    np.testing.assert_allclose(tau1[:2], [0, 0.3], atol=1e-12)
    np.testing.assert_allclose(tau2[:2], 0, atol=1e-12)
    np.testing.assert_allclose(tau3, 0, atol=1e-12)
    assert tau1[2] > tau2[2] > 0.05


def test_subjettiness_does_not_depend_on_the_frame(rng: np.random.Generator) -> None:
    z, deta, dphi = np.sort(rng.exponential(1, (50, 32)), axis=1)[:, ::-1], rng.normal(0, 0.3, (50, 32)), rng.normal(0, 0.3, (50, 32))
    turned = subjettiness(z, 0.6 * deta - 0.8 * dphi + 1, 0.8 * deta + 0.6 * dphi - 2, axes=3)
    for a, b in zip(subjettiness(z, deta, dphi, axes=3), turned, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


def test_higgs_pairs_have_four_b_quarks_of_two_higgs(rng: np.random.Generator) -> None:
    partons = hh_to_4b(N, rng)
    quarks = [field[: 4 * N].reshape(4, N) for field in partons]
    assert (partons.flavour == BOTTOM).sum() == 4 * N
    momenta = [four_momentum(quarks[1][k], quarks[2][k], quarks[3][k], np.zeros(N)) for k in range(4)]
    for pair in (momenta[0] + momenta[1], momenta[2] + momenta[3]):
        assert np.quantile(mass(pair), 0.9) == pytest.approx(125, abs=1)  # neutrinos only take away
        assert mass(pair).max() < 127


def test_qcd_balances_and_pileup_counts(rng: np.random.Generator) -> None:
    partons = qcd(N, rng)
    leading, recoiling = partons.pt[:N], partons.pt[N : 2 * N]
    assert (recoiling <= leading).all()
    assert np.mean(partons.flavour[:N] == BOTTOM) == pytest.approx(0.06, abs=4 * np.sqrt(0.06 / N))
    number, jets = pileup(N, rng)
    assert number.mean() == pytest.approx(52, abs=1)
    assert len(jets.pt) / number.sum() == pytest.approx(0.055, rel=0.05)


def test_resolution_is_worse_at_l1_and_pileup_leaks_in(rng: np.random.Generator) -> None:
    partons = concatenate([qcd(N, rng)])
    width = {}
    for level in (L1, HLT):
        response = measure(partons, np.full(N, 50), level, rng).pt[:N] / partons.pt[:N]
        width[level] = response.std()
        more = measure(partons, np.full(N, 80), level, rng).pt[:N] - measure(partons, np.full(N, 20), level, rng).pt[:N]
        expected = level.left_over * np.pi * 0.16 * 0.55 * 60
        assert more.mean() == pytest.approx(expected, abs=4 * more.std() / np.sqrt(N))
    assert width[L1] > 1.5 * width[HLT]
