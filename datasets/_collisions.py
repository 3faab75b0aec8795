"""Hard processes of the toy events, with pile-up: QCD dijets and gg -> HH -> 4b, as partons that become jets.

Units: GeV and radians. Nothing here is validated physics: shapes and rates are of the right size, so that a trigger's problem is as hard as the real one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hlt_train.datasets._kinematics import Floats, Ints, boost, coordinates, isotropic, owners, power_law, two_body_decay

__all__ = ["BOTTOM", "CHARM", "LIGHT", "PILEUP", "Partons", "concatenate", "hh_to_4b", "pileup", "qcd"]

PILEUP, LIGHT, CHARM, BOTTOM = -1, 0, 4, 5  # flavours
MASS_H = 125.0
PT_MIN_QCD = 90.0  # GeV: softer dijets do not reach L1 HT > 280
MAX_ETA = 4.7


class Partons(NamedTuple):
    """Jets before the detector, of many events, flat: the event each belongs to, pt, pseudorapidity, azimuth (unwrapped), flavour."""

    event: Ints
    pt: Floats
    eta: Floats
    phi: Floats
    flavour: Ints


def concatenate(parts: list[Partons]) -> Partons:
    """All the partons of `parts`, in that order."""
    return Partons._make(np.concatenate(field) for field in zip(*parts, strict=True))


def qcd(n: int, rng: np.random.Generator) -> Partons:
    """Dijets with dN/dpt ~ pt^-5.2 above PT_MIN_QCD, an imbalance in pt, final-state radiation; 6 % bb, 9 % cc."""
    pt = power_law(n, PT_MIN_QCD, 3000.0, 5.2, rng)
    eta1 = rng.normal(0, 1.5, n)
    eta2 = np.clip(eta1 * 0.4 + rng.normal(0, 1.3, n), -MAX_ETA, MAX_ETA)
    phi = rng.uniform(-np.pi, np.pi, n)
    imbalance = rng.standard_exponential(n) * 0.12 * pt
    bottom, charm = rng.random(n) < 0.06, rng.random(n) < 0.09
    flavour = np.where(bottom, BOTTOM, np.where(charm, CHARM, LIGHT))
    event = np.arange(n)
    leading = Partons(event, pt, eta1, phi, flavour)
    recoiling = Partons(event, np.maximum(pt - imbalance, 10), eta2, phi + np.pi + rng.normal(0, 0.15, n), flavour)
    parent = owners(rng.poisson(0.7 * np.log(pt / 20 + 1)))
    share = rng.uniform(0.05, 0.55, parent.size) ** 1.3
    radiation = Partons(
        parent,
        np.maximum(share * pt[parent], 8),
        np.where(rng.random(parent.size) < 0.5, eta1[parent], eta2[parent]) + rng.normal(0, 1, parent.size),
        rng.uniform(-np.pi, np.pi, parent.size),
        np.where(rng.random(parent.size) < 0.06, BOTTOM, LIGHT),
    )
    return concatenate([leading, recoiling, radiation])


def hh_to_4b(n: int, rng: np.random.Generator) -> Partons:
    """Pairs of Higgs bosons (mass of the pair 250 GeV + Gamma), each to two b quarks, a quarter of which lose a neutrino, and initial-state radiation."""
    mass_hh = 2 * MASS_H + rng.gamma(3.2, 55, n)
    speed = np.sqrt(1 - (2 * MASS_H / mass_hh) ** 2)
    direction = isotropic(n, rng) * speed[:, None]
    rapidity, pt_hh, phi_hh = rng.normal(0, 0.9, n), rng.exponential(35, n), rng.uniform(0, 2 * np.pi, n)
    transverse_mass = np.hypot(mass_hh, pt_hh)
    momentum_hh = np.stack([pt_hh * np.cos(phi_hh), pt_hh * np.sin(phi_hh), transverse_mass * np.sinh(rapidity)], axis=1)
    velocity_hh = momentum_hh / (transverse_mass * np.cosh(rapidity))[:, None]
    event, massless, parts = np.arange(n), np.zeros(n), []
    for sign in (1, -1):
        mass = rng.normal(MASS_H, 0.3, n)
        energy = mass / np.sqrt(1 - speed * speed)
        higgs = np.concatenate([energy[:, None], sign * direction * energy[:, None]], axis=1)
        for quark in two_body_decay(boost(higgs, velocity_hh), mass, massless, massless, rng):
            pt, eta, phi = coordinates(quark)
            visible = np.where(rng.random(n) < 0.25, rng.beta(6, 2, n), 1.0)
            parts.append(Partons(event, pt * visible, eta, phi, np.full(n, BOTTOM)))
    parent = owners(rng.poisson(0.9, n))
    m = parent.size
    parts.append(Partons(parent, power_law(m, 12.0, 400.0, 2.4, rng), rng.normal(0, 2, m), rng.uniform(-np.pi, np.pi, m), np.full(m, LIGHT)))
    return concatenate(parts)


def pileup(n: int, rng: np.random.Generator) -> tuple[Ints, Partons]:
    """Number of extra collisions of each of `n` events (52 on average, spread 9, then Poisson), and the soft jets they add."""
    collisions = rng.poisson(np.clip(rng.normal(52, 9, n), 10, 90))
    event = owners(rng.poisson(0.055 * collisions))
    m = event.size
    jets = Partons(event, power_law(m, 8.0, 200.0, 6.0, rng), rng.uniform(-MAX_ETA, MAX_ETA, m), rng.uniform(-np.pi, np.pi, m), np.full(m, PILEUP))
    return collisions, jets
