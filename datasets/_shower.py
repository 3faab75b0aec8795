"""From prongs to hadrons: a primary Lund-plane shower with one secondary generation, hadronisation and a mass constraint.

An emission is a point of the Lund plane (ln 1/theta, ln 1/z); at leading logarithm its density is (2 C / pi) alpha_s(kt) d ln(1/theta) d ln(1/z), with C the
colour factor of the emitter and kt = z theta pt (Dreyer, Salam, Soyez, arXiv:1807.04758, section 2). Points are drawn uniformly in the triangle kt > KT_MIN,
theta < the emitter's opening angle, and thinned to the running coupling and the splitting function. What a real shower solves and this one does not
(recoil of every emission, spin, colour connection) is summarised by the recoil of the emitter's axis and by putting resonances back on their mass shell.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hlt_train.datasets._kinematics import Floats, Ints, owners, sum_by_owner, wrap

__all__ = ["GLUON", "QUARK", "Particles", "hadronise", "put_on_shell", "shower"]

QUARK = 4 / 3  # colour factor C_F
GLUON = 3.0  # colour factor C_A
ALPHA_FROZEN = 0.35  # value at which the running coupling is frozen at low kt
BETA0 = 0.61  # (33 - 2 n_f) / (12 pi) with n_f = 5
LAMBDA = 0.2  # GeV, one-loop QCD scale
KT_MIN = 0.45  # GeV, where perturbative emission ends
HADRON_KT = 0.35  # GeV, transverse momentum of hadrons about their parton


class Particles(NamedTuple):
    """Massless particles of many jets, flat: the jet each belongs to, pt in GeV, pseudorapidity, azimuth (unwrapped)."""

    jet: Ints
    pt: Floats
    eta: Floats
    phi: Floats


class Emissions(NamedTuple):
    """Emissions, flat: index of the emitter, fraction z of its pt, angle theta and azimuth about it (radians)."""

    emitter: Ints
    z: Floats
    theta: Floats
    azimuth: Floats

    def of(self, emitters: Particles) -> Particles:
        """The emitted gluons as particles."""
        eta = emitters.eta[self.emitter] + self.theta * np.cos(self.azimuth)
        phi = emitters.phi[self.emitter] + self.theta * np.sin(self.azimuth)
        return Particles(emitters.jet[self.emitter], self.z * emitters.pt[self.emitter], eta, phi)


def emit(emitters: Particles, colour: Floats, angle: Floats, most: float, rng: np.random.Generator) -> Emissions:
    """Emissions of every emitter below its opening `angle`, at most the share `most` of its momentum in all."""
    depth = np.log(np.maximum(emitters.pt * angle / KT_MIN, 1.0001))  # the triangle's side in either logarithm
    count = rng.poisson(2 * colour / np.pi * ALPHA_FROZEN * depth * depth / 2)
    emitter = owners(count)
    # Uniform in the triangle a = ln(1/z) > 0, b = ln(angle/theta) > 0, a + b < depth.
    across, along = np.sqrt(rng.random(emitter.size)), rng.random(emitter.size)
    a, b = depth[emitter] * across * along, depth[emitter] * across * (1 - along)
    z, kt = np.exp(-a), emitters.pt[emitter] * angle[emitter] * np.exp(-a - b)
    alpha = np.minimum(ALPHA_FROZEN, 1 / (2 * BETA0 * np.log(np.maximum(kt, 0.5) / LAMBDA)))
    accepted = rng.random(emitter.size) < alpha / ALPHA_FROZEN * (1 - z + z * z / 2)
    accepted &= z < 0.5 + 0.5 * rng.random(emitter.size)  # the softer branch is the emission
    emitter, z, b = emitter[accepted], z[accepted], b[accepted]
    taken = sum_by_owner(emitter, z, len(emitters.pt))
    z = z * np.minimum(1, most / np.maximum(taken, 1e-9))[emitter]
    return Emissions(emitter, z, angle[emitter] * np.exp(-b), rng.uniform(0, 2 * np.pi, emitter.size))


def shower(prongs: Particles, colour: Floats, angle: Floats, rng: np.random.Generator) -> Particles:
    """Prongs `[p]` with colour factor and opening angle `[p]` to partons: the prongs after recoil, their gluons, and the gluons' gluons."""
    n = len(prongs.pt)
    primary = emit(prongs, colour, angle, 0.9, rng)
    gluons = primary.of(prongs)
    kept = 1 - sum_by_owner(primary.emitter, primary.z, n)
    recoil_eta = sum_by_owner(primary.emitter, primary.z * primary.theta * np.cos(primary.azimuth), n) / kept
    recoil_phi = sum_by_owner(primary.emitter, primary.z * primary.theta * np.sin(primary.azimuth), n) / kept
    secondary = emit(gluons, np.full(len(gluons.pt), GLUON), primary.theta, 0.8, rng)
    soft = secondary.of(gluons)
    kept_by_gluon = 1 - sum_by_owner(secondary.emitter, secondary.z, len(gluons.pt))
    return Particles(
        np.concatenate([prongs.jet, gluons.jet, soft.jet]),
        np.concatenate([prongs.pt * kept, gluons.pt * kept_by_gluon, soft.pt]),
        np.concatenate([prongs.eta - recoil_eta, gluons.eta, soft.eta]),
        np.concatenate([prongs.phi - recoil_phi, gluons.phi, soft.phi]),
    )


def hadronise(partons: Particles, rng: np.random.Generator) -> Particles:
    """Partons above 4 GeV break into two or more hadrons that share the momentum at random, HADRON_KT about the parton's direction."""
    mean = 0.8 * np.log(np.maximum(partons.pt, 4) / 4) + 0.3
    count = np.where(partons.pt > 4, 2 + rng.poisson(mean), 1)
    parent = owners(count)
    share = rng.standard_exponential(parent.size)
    share /= sum_by_owner(parent, share, len(count))[parent]
    pt = partons.pt[parent] * share
    spread = np.where(count[parent] > 1, HADRON_KT / np.maximum(pt, HADRON_KT), 0.0)
    azimuth = rng.uniform(0, 2 * np.pi, parent.size)
    return Particles(partons.jet[parent], pt, partons.eta[parent] + spread * np.cos(azimuth), partons.phi[parent] + spread * np.sin(azimuth))


def put_on_shell(hadrons: Particles, mass: Floats) -> Particles:
    """Scale angles about each jet's axis so that jet k has about `mass[k]` (GeV): the shower took no account of the mass in its recoils. Two rounds."""
    jet, pt, eta, phi = hadrons
    n = len(mass)
    for _ in range(2):
        px, py = sum_by_owner(jet, pt * np.cos(phi), n), sum_by_owner(jet, pt * np.sin(phi), n)
        pz, energy = sum_by_owner(jet, pt * np.sinh(eta), n), sum_by_owner(jet, pt * np.cosh(eta), n)
        found = np.sqrt(np.maximum(energy**2 - px**2 - py**2 - pz**2, 1.0))
        scale = np.clip(mass / found, 0.3, 1.6)[jet]
        axis_eta, axis_phi = np.arcsinh(pz / np.hypot(px, py))[jet], np.arctan2(py, px)[jet]
        eta, phi = axis_eta + (eta - axis_eta) * scale, axis_phi + wrap(phi - axis_phi) * scale
    return Particles(jet, pt, eta, phi)
