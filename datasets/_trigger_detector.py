"""What L1, the HLT and the offline reconstruction see of the toy events' jets.

A measurement smears pt by N (+) S (+) C and leaves part of the pile-up's energy in the jet: the subtraction uses the average density, so the remainder grows
with the number of collisions. Units: GeV and radians.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hlt_train.datasets._collisions import BOTTOM, CHARM, PILEUP, Partons
from hlt_train.datasets._kinematics import Floats, Ints, sum_by_owner

__all__ = ["HLT", "L1", "L1_THRESHOLD", "OFFLINE", "Resolution", "btag", "ht", "measure", "missing_pt"]

JET_AREA = np.pi * 0.4**2
DENSITY = 0.55  # GeV per collision, unit area
MEAN_PILEUP = 50.0
TRACKER_ETA = 2.5  # b-tagging ends here
L1_THRESHOLD = 280.0  # GeV, of L1_HTT280


class Resolution(NamedTuple):
    """Energy resolution and geometry of one level: noise [GeV, at 50 collisions], stochastic, constant; share of pile-up left; cell size [radians]."""

    noise: float
    stochastic: float
    constant: float
    left_over: float
    cell: float


L1 = Resolution(noise=9.0, stochastic=1.3, constant=0.10, left_over=0.35, cell=0.087)
HLT = Resolution(noise=4.0, stochastic=0.85, constant=0.045, left_over=0.12, cell=0.02)
OFFLINE = Resolution(noise=3.0, stochastic=0.7, constant=0.035, left_over=0.05, cell=0.01)


def measure(partons: Partons, collisions: Ints, level: Resolution, rng: np.random.Generator) -> Partons:
    """The partons as `level` measures them, given the number of pile-up collisions of each event; same order and number."""
    event, pt, eta, phi, flavour = partons
    n = event.size
    density = DENSITY * collisions[event] * (1 + 0.12 * rng.standard_normal(n))
    hard = np.maximum(pt, 5)
    noise = level.noise * np.sqrt(collisions[event] / MEAN_PILEUP) / hard
    relative = np.sqrt(noise**2 + level.stochastic**2 / hard + level.constant**2)
    offset = level.left_over * JET_AREA * (density - DENSITY * MEAN_PILEUP)
    measured = pt * np.maximum(0.05, 1 + relative * rng.standard_normal(n)) + offset
    spread = level.cell / 2
    return Partons(event, np.maximum(measured, 0), eta + rng.normal(0, spread, n), phi + rng.normal(0, spread, n), flavour)


def ht(jets: Partons, n: int, *, min_pt: float, max_eta: float) -> Floats:
    """Scalar sum of pt `[n]` over the jets of each event above `min_pt` and within `max_eta`."""
    return sum_by_owner(jets.event, np.where((jets.pt > min_pt) & (np.abs(jets.eta) < max_eta), jets.pt, 0.0), n)


def missing_pt(jets: Partons, collisions: Ints, rng: np.random.Generator) -> Floats:
    """Missing transverse momentum `[n]`: the jets' imbalance and a soft term of 12 GeV + 0.12 GeV per collision in x and y."""
    n = len(collisions)
    soft = 12 + 0.12 * collisions
    x = sum_by_owner(jets.event, jets.pt * np.cos(jets.phi), n) + rng.normal(0, soft)
    y = sum_by_owner(jets.event, jets.pt * np.sin(jets.phi), n) + rng.normal(0, soft)
    return np.hypot(x, y)


def btag(jets: Partons, lost: Floats, rng: np.random.Generator) -> Floats:
    """B-tag score of each jet in [0, 1], -1 outside the tracker; 80 % b efficiency at 23 % mistag.

    Args:
        jets: measured jets.
        lost: probability `[jets]` that a b jet lost its tracks and scores below 0.05: the efficiency of every cut above falls by this share.
        rng: random numbers; the same ones are drawn whatever `lost` is.
    """
    flavours = [jets.flavour == BOTTOM, jets.flavour == CHARM, jets.flavour == PILEUP]
    score = rng.beta(np.select(flavours, [2.0, 1.3, 0.8], 0.9), np.select(flavours, [1.3, 2.2, 3.0], 2.8))
    chance, low = rng.random(score.size), rng.uniform(0, 0.05, score.size)
    score = np.where((jets.flavour == BOTTOM) & (chance < lost), low, score)
    return np.where(np.abs(jets.eta) > TRACKER_ETA, -1.0, score)
