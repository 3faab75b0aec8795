"""Relativistic kinematics and flat-array bookkeeping for the toy generators.

Units: GeV and radians. A four-momentum is a row (E, px, py, pz). Particles of many jets or events live in flat arrays next to an *owner* array: the index of
the jet or event each belongs to.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Floats", "Ints", "boost", "coordinates", "four_momentum", "isotropic", "owners", "power_law", "sum_by_owner", "two_body_decay", "wrap"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def four_momentum(pt: Floats, eta: Floats, phi: Floats, mass: Floats) -> Floats:
    """(pt, pseudorapidity, azimuth, mass), each `[n]`, to four-momenta `[n, 4]`."""
    energy = np.sqrt((pt * np.cosh(eta)) ** 2 + mass * mass)
    return np.stack([energy, pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)], axis=1)


def coordinates(momenta: Floats) -> tuple[Floats, Floats, Floats]:
    """Four-momenta `[n, 4]` to (pt, pseudorapidity, azimuth), each `[n]`."""
    pt = np.hypot(momenta[:, 1], momenta[:, 2])
    return pt, np.arcsinh(momenta[:, 3] / np.maximum(pt, 1e-6)), np.arctan2(momenta[:, 2], momenta[:, 1])


def wrap(phi: Floats) -> Floats:
    """An azimuth or a difference of two, brought to [-pi, pi)."""
    return (phi + np.pi) % (2 * np.pi) - np.pi


def boost(momenta: Floats, velocity: Floats) -> Floats:
    """Four-momenta `[n, 4]` seen in a frame where their old frame moves with `velocity` `[n, 3]` (in units of c, below 1)."""
    speed2 = (velocity**2).sum(axis=1)
    gamma = 1 / np.sqrt(1 - speed2)
    along = (velocity * momenta[:, 1:]).sum(axis=1)
    factor = np.where(speed2 > 0, (gamma - 1) / np.maximum(speed2, 1e-12), 0.0)
    energy = gamma * (momenta[:, 0] + along)
    space = momenta[:, 1:] + (factor * along + gamma * momenta[:, 0])[:, None] * velocity
    return np.concatenate([energy[:, None], space], axis=1)


def isotropic(n: int, rng: np.random.Generator) -> Floats:
    """Unit vectors `[n, 3]`, uniform on the sphere."""
    cosine = rng.uniform(-1, 1, n)
    sine = np.sqrt(1 - cosine * cosine)
    azimuth = rng.uniform(0, 2 * np.pi, n)
    return np.stack([sine * np.cos(azimuth), sine * np.sin(azimuth), cosine], axis=1)


def two_body_decay(parent: Floats, mass: Floats, mass1: Floats, mass2: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Isotropic decay of `parent` `[n, 4]` of `mass` `[n]` into two particles; returns their four-momenta in the frame of `parent`."""
    energy1 = (mass * mass + mass1 * mass1 - mass2 * mass2) / (2 * mass)
    momentum = np.sqrt(np.maximum(energy1 * energy1 - mass1 * mass1, 0))[:, None] * isotropic(len(parent), rng)
    velocity = parent[:, 1:] / parent[:, :1]
    first = np.concatenate([energy1[:, None], momentum], axis=1)
    second = np.concatenate([(mass - energy1)[:, None], -momentum], axis=1)
    return boost(first, velocity), boost(second, velocity)


def power_law(n: int, low: float, high: float, exponent: float, rng: np.random.Generator) -> Floats:
    """`n` values between `low` and `high` with density proportional to x**-exponent (exponent not 1), by inversion."""
    k = 1 - exponent
    drawn: Floats = (low**k + rng.random(n) * (high**k - low**k)) ** (1 / k)
    return drawn


def owners(counts: Ints) -> Ints:
    """Counts per owner `[n]` to the owner of every item `[sum(counts)]`: [2, 0, 1] gives [0, 0, 2]."""
    return np.repeat(np.arange(len(counts)), counts)


def sum_by_owner(owner: Ints, values: Floats, n: int) -> Floats:
    """Sum of `values` over the items of each of the `n` owners."""
    return np.bincount(owner, weights=values, minlength=n).astype(np.float64, copy=False)
