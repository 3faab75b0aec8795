"""Detector of the toy jets: tracker, electromagnetic and hadronic calorimeter with cells, thresholds and track efficiency.

Hadrons are 60 % charged, 25 % photons, 15 % neutral hadrons. The numbers are of the size of a general-purpose LHC detector's; they describe none.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hlt_train.datasets._kinematics import Floats, Ints, owners
from hlt_train.datasets._shower import Particles

__all__ = ["RADIUS", "Constituents", "measure", "underlying_event"]

RADIUS = 0.8  # jet radius
CHARGED, PHOTON, NEUTRAL = 211, 22, 130  # |PDG id| written for charged hadrons, photons and neutral hadrons
TRACK_EFFICIENCY = 0.95


class Constituents(NamedTuple):
    """What the detector saw, flat: owner jet, pt in GeV, pseudorapidity, azimuth (unwrapped), charge, |PDG id|."""

    jet: Ints
    pt: Floats
    eta: Floats
    phi: Floats
    charge: Ints
    absid: Ints


def underlying_event(eta: Floats, phi: Floats, rng: np.random.Generator) -> Particles:
    """Six soft particles on average, uniform over the area of each jet at (`eta`, `phi`), both `[n]`."""
    jet = owners(rng.poisson(6, len(eta)))
    radius, azimuth = RADIUS * np.sqrt(rng.random(jet.size)), rng.uniform(0, 2 * np.pi, jet.size)
    pt = 0.3 + rng.exponential(0.8, jet.size)
    return Particles(jet, pt, eta[jet] + radius * np.cos(azimuth), phi[jet] + radius * np.sin(azimuth))


def resolution(pt: Floats, energy: Floats, charged: np.ndarray, photon: np.ndarray) -> Floats:
    """Relative resolution: tracker .01 (+) 1.5e-4 pt, photons .005 (+) .028/sqrt(E) (+) .12/E, neutral hadrons .05 (+) 1/sqrt(E)."""
    tracker = np.hypot(0.01, 1.5e-4 * pt)
    electromagnetic = np.sqrt(0.005**2 + 0.028**2 / energy + (0.12 / energy) ** 2)
    hadronic = np.sqrt(0.05**2 + 1 / energy)
    return np.where(charged, tracker, np.where(photon, electromagnetic, hadronic))


def measure(hadrons: Particles, eta: Floats, phi: Floats, rng: np.random.Generator) -> Constituents:
    """Smear hadrons, move neutral ones to the centre of their cell, drop what is below threshold, untracked or outside the jet at (`eta`, `phi`) `[n]`."""
    jet, pt, h_eta, h_phi = hadrons
    kind = rng.random(pt.size)
    charged, photon = kind < 0.6, (kind >= 0.6) & (kind < 0.85)
    pt = pt * np.maximum(0, 1 + resolution(pt, pt * np.cosh(h_eta), charged, photon) * rng.standard_normal(pt.size))
    cell = np.where(photon, 0.0175, 0.022)
    h_eta = np.where(charged, h_eta, (np.floor(h_eta / cell) + 0.5) * cell)
    h_phi = np.where(charged, h_phi, (np.floor(h_phi / cell) + 0.5) * cell)
    seen = pt > np.where(charged, 0.5, 0.8)
    seen &= np.hypot(h_eta - eta[jet], h_phi - phi[jet]) < RADIUS
    seen &= ~charged | (rng.random(pt.size) < TRACK_EFFICIENCY)
    charge = np.where(charged, rng.choice(np.array([-1, 1]), pt.size), 0)
    absid = np.where(charged, CHARGED, np.where(photon, PHOTON, NEUTRAL))
    return Constituents(jet[seen], pt[seen], h_eta[seen], h_phi[seen], charge[seen], absid[seen])
