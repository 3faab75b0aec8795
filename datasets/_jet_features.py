"""High-level features of jets from their constituents.

Six of them (mass, multiplicity, sum z ln z, tau21, tau32, width) are the inputs of the reference network of the toy jets.
"""

from __future__ import annotations

import numpy as np

from hlt_train.datasets._jet_detector import Constituents
from hlt_train.datasets._kinematics import Floats, Ints, sum_by_owner, wrap

__all__ = ["LEADING", "describe"]

LEADING = 32  # constituents that enter the subjettiness ratios
SEED_DISTANCE = 0.1  # the hardest constituents at least this far apart start the axes
ROUNDS = 3  # refinements of the axes


def describe(found: Constituents, n: int) -> tuple[dict[str, Floats], Floats, Floats]:
    """Features of `n` jets, and deta and dphi of each constituent to its jet's axis.

    Args:
        found: constituents sorted by jet, then by falling pt.
        n: number of jets; each must own at least one constituent for its features to mean anything.

    Returns:
        name -> `[n]` (pt and mass in GeV), deta `[c]`, dphi `[c]`.
    """
    jet, pt, eta, phi = found[:4]
    px, py = sum_by_owner(jet, pt * np.cos(phi), n), sum_by_owner(jet, pt * np.sin(phi), n)
    pz, energy = sum_by_owner(jet, pt * np.sinh(eta), n), sum_by_owner(jet, pt * np.cosh(eta), n)
    jet_pt = np.hypot(px, py)
    jet_eta, jet_phi = np.arcsinh(pz / np.maximum(jet_pt, 1e-6)), np.arctan2(py, px)
    deta, dphi = eta - jet_eta[jet], wrap(phi - jet_phi[jet])
    counts = np.bincount(jet, minlength=n)
    z = pt / sum_by_owner(jet, pt, n)[jet]
    tau = subjettiness(*(padded(x, counts, LEADING) for x in (z, deta, dphi)), axes=3)
    features = {
        "pt": jet_pt,
        "eta": jet_eta,
        "phi": jet_phi,
        "mass": np.sqrt(np.maximum(energy**2 - px**2 - py**2 - pz**2, 0)),
        "mult": counts.astype(np.float64),
        "sumzlogz": sum_by_owner(jet, z * np.log(z), n),
        "width": sum_by_owner(jet, z * np.hypot(deta, dphi), n),
        "tau21": tau[1] / np.maximum(tau[0], 1e-9),
        "tau32": tau[2] / np.maximum(tau[1], 1e-9),
    }
    return features, deta, dphi


def padded(values: Floats, counts: Ints, length: int) -> Floats:
    """Flat values of jagged rows to `[n, length]`, zero beyond each row's count."""
    column = np.arange(length)
    place = (np.cumsum(counts) - counts)[:, None] + column
    return np.where(column < counts[:, None], values[np.minimum(place, len(values) - 1)], 0.0)


def subjettiness(z: Floats, deta: Floats, dphi: Floats, *, axes: int) -> list[Floats]:
    """tau_1 ... tau_axes, `[n]` each: sum of z times the distance to the nearest of N axes (Thaler, Van Tilburg, arXiv:1011.2268).

    The axes start at the hardest constituents that are SEED_DISTANCE apart and are refined like k-means: not the minimum over all axes, but close to it and
    cheap. Inputs are `[n, length]`, zero-padded.
    """
    found = []
    row = np.arange(len(z))
    seeds_eta: list[Floats] = []
    seeds_phi: list[Floats] = []
    free = z
    for _ in range(axes):
        hardest = free.argmax(axis=1)
        seeds_eta.append(deta[row, hardest])
        seeds_phi.append(dphi[row, hardest])
        free = np.where(np.hypot(deta - seeds_eta[-1][:, None], dphi - seeds_phi[-1][:, None]) < SEED_DISTANCE, 0.0, free)
        found.append(_refine(z, deta, dphi, np.stack(seeds_eta), np.stack(seeds_phi)))
    return found


def _refine(z: Floats, deta: Floats, dphi: Floats, axis_eta: Floats, axis_phi: Floats) -> Floats:
    """Subjettiness `[n]` for axes `[N, n]` after ROUNDS of moving each axis to the centroid of the constituents nearest to it."""
    for _ in range(ROUNDS):
        nearest = _distance2(deta, dphi, axis_eta, axis_phi).argmin(axis=0)
        share = z * (nearest == np.arange(len(axis_eta))[:, None, None])
        total = np.maximum(share.sum(axis=2), 1e-9)
        axis_eta, axis_phi = np.einsum("anl,nl->an", share, deta) / total, np.einsum("anl,nl->an", share, dphi) / total
    tau: Floats = (z * np.sqrt(_distance2(deta, dphi, axis_eta, axis_phi).min(axis=0))).sum(axis=1)
    return tau


def _distance2(deta: Floats, dphi: Floats, axis_eta: Floats, axis_phi: Floats) -> Floats:
    """Squared distance `[N, n, length]` of every constituent to every axis."""
    return (deta - axis_eta[:, :, None]) ** 2 + (dphi - axis_phi[:, :, None]) ** 2
