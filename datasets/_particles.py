"""Particles of the toy topologies as particle flow lists them: jets fragmented, pile-up added, everything measured; isolation of each particle.

Units: GeV, radians, millimetres. Multiplicities and resolutions are of the size of a general-purpose LHC detector's; they describe none.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hlt_train.datasets._kinematics import Floats, Ints, owners, sum_by_owner, wrap
from hlt_train.datasets._topologies import BOTTOM, CHARM, Hard

__all__ = ["CHARGED", "ELECTRON", "LEPTON", "MUON", "NEUTRAL", "PHOTON", "PILEUP", "Particles", "isolation", "lepton_isolation", "measure", "pick"]

CHARGED, NEUTRAL, PHOTON, ELECTRON, MUON = range(5)  # kinds, in the order of the flags
LEPTON, PILEUP = -2, -1  # sources that are no parton
CONE = 0.3  # of the isolation
MEAN_PILEUP = 20  # collisions besides the hard one
VERTEX_SPREAD = 50.0  # mm along the beam
BLOCK = 64  # events whose pairs of particles are formed at once: they stay in the cache


class Particles(NamedTuple):
    """What the detector saw, flat, by event and falling pt.

    Attributes:
        event: `[m]`.
        pt, eta, phi: massless momenta, `[m]`.
        vertex: x, y, z of the origin of a track, 0 for what leaves none, `[m, 3]`.
        kind: CHARGED ... MUON, `[m]`.
        charge: -1, 0 or 1, `[m]`.
        source: index of the parton in its `Hard`, LEPTON or PILEUP, `[m]`.
    """

    event: Ints
    pt: Floats
    eta: Floats
    phi: Floats
    vertex: Floats
    kind: Ints
    charge: Ints
    source: Ints


def measure(hard: Hard, rng: np.random.Generator) -> Particles:
    """All particles of the events, by event and falling pt."""
    n = len(hard.lepton)
    primary = np.concatenate([rng.normal(0, 0.01, (n, 2)), rng.normal(0, VERTEX_SPREAD, (n, 1))], axis=1)
    parts = [_lepton(hard, primary), _fragments(hard, primary, rng), _pileup(n, rng)]
    found = Particles._make(np.concatenate(field) for field in zip(*parts, strict=True))
    resolution = np.array([0.01, 0.12, 0.03, 0.02, 0.01])[found.kind]
    pt = found.pt * np.maximum(0.1, 1 + resolution * rng.standard_normal(found.pt.size))
    track = (found.charge != 0)[:, None]
    vertex = np.where(track, found.vertex + rng.normal(0, [0.03, 0.03, 0.1], found.vertex.shape), 0.0)
    found = found._replace(pt=pt, phi=wrap(found.phi), vertex=vertex)
    seen = (pt > np.where(found.charge != 0, 0.4, 0.7)) & (np.abs(found.eta) < np.where(found.charge != 0, 2.6, 5.0))
    seen |= found.source == LEPTON
    found = pick(found, seen)
    return pick(found, np.lexsort((-found.pt, found.event)))


def pick(particles: Particles, which: NDArray[np.bool_] | Ints) -> Particles:
    """Some of the particles, by a mask or by places."""
    return Particles._make(field[which] for field in particles)


def _lepton(hard: Hard, primary: Floats) -> Particles:
    n = len(hard.lepton)
    kind = np.where(hard.electron, ELECTRON, MUON)
    pt, eta, phi = hard.lepton.T
    return Particles(np.arange(n), pt, eta, phi, primary, kind, hard.charge, np.full(n, LEPTON))


def _fragments(hard: Hard, primary: Floats, rng: np.random.Generator) -> Particles:
    """Hadrons and photons of every parton: more for harder ones, unequal shares, the hard ones near the axis; tracks of heavy hadrons start displaced."""
    number = 1 + rng.poisson(2.5 + 3.2 * np.log1p(hard.pt / 8))
    parton = owners(number)
    m = parton.size
    share = rng.standard_exponential(m) ** 1.6
    share /= sum_by_owner(parton, share, len(number))[parton]
    pt = share * hard.pt[parton]
    distance = np.minimum(0.5, rng.exponential(0.07, m) + rng.exponential(0.35, m) / (1 + pt))
    azimuth = rng.uniform(-np.pi, np.pi, m)
    kind = _kinds(m, rng)
    heavy = np.isin(hard.flavour, (BOTTOM, CHARM))[parton] & (kind == CHARGED) & (rng.random(m) < 0.6)
    flight = np.where(hard.flavour == BOTTOM, 4.0, 1.2) * rng.standard_exponential(hard.pt.size)  # mm, transverse, one vertex per jet
    place = np.where(heavy, flight[parton], 0.0)[:, None]
    along = np.stack([np.cos(hard.phi), np.sin(hard.phi), np.sinh(hard.eta).clip(-10, 10)], axis=1)[parton]
    event = hard.event[parton]
    eta, phi = hard.eta[parton] + distance * np.cos(azimuth), hard.phi[parton] + distance * np.sin(azimuth)
    return Particles(event, pt, eta, phi, primary[event] + place * along, kind, _charges(kind, rng), parton)


def _pileup(n: int, rng: np.random.Generator) -> Particles:
    """Soft particles of other collisions, each with its own vertex."""
    collision = owners(rng.poisson(MEAN_PILEUP, n))
    z = rng.normal(0, VERTEX_SPREAD, collision.size)
    member = owners(rng.poisson(13.0, collision.size))
    m = member.size
    kind = _kinds(m, rng)
    vertex = np.stack([rng.normal(0, 0.01, m), rng.normal(0, 0.01, m), z[member]], axis=1)
    pt = 0.4 + rng.exponential(0.5, m)
    return Particles(collision[member], pt, rng.uniform(-5, 5, m), rng.uniform(-np.pi, np.pi, m), vertex, kind, _charges(kind, rng), np.full(m, PILEUP))


def _kinds(m: int, rng: np.random.Generator) -> Ints:
    return rng.choice(np.array([CHARGED, NEUTRAL, PHOTON]), m, p=[0.6, 0.15, 0.25])


def _charges(kind: Ints, rng: np.random.Generator) -> Ints:
    return np.where(kind == CHARGED, rng.choice(np.array([-1, 1]), kind.size), 0)


def isolation(particles: Particles, counts: Ints, most: int) -> Floats:
    """Sums of pt around particles, relative to their own pt.

    Args:
        particles: of all events, by event.
        counts: particles per event, `[n]`, at least one each.
        most: how many leading particles of each event are looked around, among all of its particles.

    Returns:
        `[sum of min(counts, most), 3]`: charged hadrons, photons, neutral hadrons within CONE, without the particle itself.
    """
    starts = np.cumsum(counts) - counts
    eta, phi, pt = (field.astype(np.float32) for field in (particles.eta, particles.phi, particles.pt))
    carried = np.stack([np.where(particles.kind == kind, pt, 0) for kind in (CHARGED, PHOTON, NEUTRAL)], axis=1)
    found = []
    for begin in range(0, len(counts), BLOCK):
        number = counts[begin : begin + BLOCK, None]
        slot = np.arange(number.max())
        real = slot < number
        place = np.where(real, starts[begin : begin + BLOCK, None] + slot, 0)
        leading = slice(None, min(most, slot.size))
        near = _near(eta[place][:, leading, None], phi[place][:, leading, None], eta[place][:, None], phi[place][:, None]) & real[:, None]
        near[:, slot[leading], slot[leading]] = False
        sums = near.astype(np.float32) @ carried[place]
        found.append((sums / pt[place][:, leading, None])[real[:, leading]])
    return np.concatenate(found).astype(np.float64)


def lepton_isolation(particles: Particles, n: int) -> Floats:
    """As `isolation`, `[n, 3]`, for the lepton of each of the `n` events."""
    lepton = np.flatnonzero(particles.source == LEPTON)[:, None]
    eta, phi = particles.eta.astype(np.float32), particles.phi.astype(np.float32)
    mine = lepton[particles.event, 0]
    near = _near(eta[mine], phi[mine], eta, phi) & (particles.source != LEPTON)
    sums = [sum_by_owner(particles.event, np.where(near & (particles.kind == kind), particles.pt, 0.0), n) for kind in (CHARGED, PHOTON, NEUTRAL)]
    return np.stack(sums, axis=1) / particles.pt[lepton]


def _near(eta: NDArray[np.float32], phi: NDArray[np.float32], other_eta: NDArray[np.float32], other_phi: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether two directions are within CONE; azimuths are within [-pi, pi)."""
    turn = np.abs(phi - other_phi)
    turn = np.minimum(turn, np.float32(2 * np.pi) - turn)
    across = eta - other_eta
    close: NDArray[np.bool_] = across * across + turn * turn < np.float32(CONE * CONE)
    return close
