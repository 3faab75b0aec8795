"""Hard processes of the toy topologies: QCD, ttbar and W + jets with one lepton above threshold, as partons.

Units: GeV, radians, millimetres. Leptons come from W decays, or for QCD from a hadron that gives most of its jet's momentum to one. Nothing here is validated
physics: multiplicities, spectra and kinematic edges are of the right size, so that the classes overlap as simulated ones do.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hlt_train.datasets._kinematics import Floats, Ints, boost, coordinates, isotropic, owners, power_law, two_body_decay

__all__ = ["BOTTOM", "CHARM", "CLASSES", "LEPTON_ETA", "LEPTON_PT", "LIGHT", "MAX_ETA", "Hard", "draw", "select"]

CLASSES = ("qcd", "ttbar", "wjets")
LIGHT, CHARM, BOTTOM = 0, 4, 5  # flavours
LEPTON_PT, LEPTON_ETA = 23.0, 2.6  # the filter: a lepton above and within
MAX_ETA = 5.0  # of what is followed at all
JET_PT = 10.0  # softest parton that becomes a jet
MASS_W, WIDTH_W, MASS_T, MASS_B = 80.4, 1.04, 172.8, 4.7  # GeV; WIDTH_W is half the width
HADRONIC = 0.68  # share of W bosons that decay to quarks


class Hard(NamedTuple):
    """Events before fragmentation: partons, flat, sorted by nothing, and the one lepton of each event.

    Attributes:
        event, pt, eta, phi, flavour: of the partons, `[m]`.
        lepton: pt, eta, phi of the charged lepton, `[n, 3]`.
        electron: bool `[n]`; else a muon.
        charge: -1 or 1, `[n]`.
        invisible: px, py of all neutrinos together, `[n, 2]`.
    """

    event: Ints
    pt: Floats
    eta: Floats
    phi: Floats
    flavour: Ints
    lepton: Floats
    electron: np.ndarray
    charge: Ints
    invisible: Floats


def draw(name: str, n: int, rng: np.random.Generator) -> Hard:
    """About `n` events of class `name` whose lepton passes the filter in pt and eta (isolation comes with the particles); at least one."""
    process = {"qcd": qcd, "ttbar": ttbar, "wjets": wjets}[name]
    while True:
        found = process(n, rng)
        passed = (found.lepton[:, 0] > LEPTON_PT) & (np.abs(found.lepton[:, 1]) < LEPTON_ETA)
        if passed.any():
            return select(found, passed)


def select(events: Hard, keep: np.ndarray) -> Hard:
    """The events where `keep` `[n]` is true, renumbered."""
    number = np.cumsum(keep) - 1
    partons = keep[events.event]
    flat = {name: getattr(events, name)[partons] for name in ("pt", "eta", "phi", "flavour")}
    rest = {name: getattr(events, name)[keep] for name in ("lepton", "electron", "charge", "invisible")}
    return Hard(event=number[events.event[partons]], **flat, **rest)


def qcd(n: int, rng: np.random.Generator) -> Hard:
    """Dijets; in one of the two a hadron with heavy flavour decays to a lepton, a neutrino and a soft rest."""
    pt = power_law(n, 45.0, 1500.0, 4.2, rng)
    eta = rng.normal(0, 1.5, n)
    away = 0.5 * eta + rng.normal(0, 1.3, n)
    phi = rng.uniform(-np.pi, np.pi, n)
    back = phi + np.pi + rng.normal(0, 0.2, n)
    flavour = rng.choice([BOTTOM, CHARM, LIGHT], n, p=[0.45, 0.3, 0.25])  # light: a hadron taken for a lepton
    share, missing = rng.beta(5, 2, n), rng.beta(1.2, 6, n)
    lepton = np.stack([pt * share, eta + rng.normal(0, 0.05, n), phi + rng.normal(0, 0.05, n)], axis=1)
    neutrino = np.where(flavour == LIGHT, 0.0, pt * (1 - share) * missing)
    left = pt * (1 - share) - neutrino
    recoil = pt * np.maximum(0.2, 1 - 0.15 * rng.standard_exponential(n))
    event = np.arange(n)
    first, second = (event, left, eta, phi, flavour), (event, recoil, away, back, np.where(rng.random(n) < 0.7, flavour, LIGHT))
    invisible = np.stack([neutrino * np.cos(phi), neutrino * np.sin(phi)], axis=1)
    return _hard([first, second, _radiation(n, 1.2, rng)], lepton, invisible, rng)


def wjets(n: int, rng: np.random.Generator) -> Hard:
    """A W boson that decays to leptons, the jet it recoils against, and radiation."""
    pt, rapidity, phi = 4 + rng.exponential(14, n) + rng.exponential(16, n), rng.normal(0, 1.5, n), rng.uniform(-np.pi, np.pi, n)
    mass = _line(n, rng)
    transverse = np.hypot(mass, pt)
    boson = np.stack([transverse * np.cosh(rapidity), pt * np.cos(phi), pt * np.sin(phi), transverse * np.sinh(rapidity)], axis=1)
    lepton, neutrino = two_body_decay(boson, mass, np.zeros(n), np.zeros(n), rng)
    flavour = rng.choice([LIGHT, CHARM, BOTTOM], n, p=[0.86, 0.11, 0.03])
    recoil = (np.arange(n), pt, rapidity + rng.normal(0, 1.2, n), phi + np.pi + rng.normal(0, 0.1, n), flavour)
    return _hard([recoil, _radiation(n, 1.3, rng)], np.stack(coordinates(lepton), axis=1), neutrino[:, 1:3], rng)


def ttbar(n: int, rng: np.random.Generator) -> Hard:
    """Pairs of top quarks, one with a lepton, the other with quarks or a second lepton that is lost with its neutrino, and radiation."""
    mass_pair = 2 * MASS_T + rng.gamma(1.8, 70, n)
    momentum = np.sqrt((mass_pair / 2) ** 2 - MASS_T**2)
    axis = isotropic(n, rng) * momentum[:, None]
    rapidity = rng.normal(0, 0.8, n)
    pt, phi = rng.exponential(30, n), rng.uniform(-np.pi, np.pi, n)
    transverse = np.hypot(mass_pair, pt)
    pair = np.stack([transverse * np.cosh(rapidity), pt * np.cos(phi), pt * np.sin(phi), transverse * np.sinh(rapidity)], axis=1)
    parts: list[tuple[Ints, Floats, Floats, Floats, Ints]] = []
    event = np.arange(n)
    lepton = np.zeros((n, 3))
    invisible = np.zeros((n, 2))
    hadronic = rng.random(n) < HADRONIC
    for sign in (1, -1):
        top = boost(np.concatenate([(mass_pair / 2)[:, None], sign * axis], axis=1), pair[:, 1:] / pair[:, :1])
        mass_w = _line(n, rng)
        w, b = two_body_decay(top, np.full(n, MASS_T), mass_w, np.full(n, MASS_B), rng)
        one, two = two_body_decay(w, mass_w, np.zeros(n), np.zeros(n), rng)
        parts.append((event, *coordinates(b), np.full(n, BOTTOM)))
        if sign == 1:
            lepton = np.stack(coordinates(one), axis=1)
            invisible += two[:, 1:3]
            continue
        charm = rng.random(n) < 0.5
        for quark, flavour in ((one, np.where(charm, CHARM, LIGHT)), (two, np.full(n, LIGHT))):
            pieces = (event, *coordinates(quark), flavour)
            parts.append(tuple(piece[hadronic] for piece in pieces))  # type: ignore[arg-type]
            invisible[~hadronic] += quark[~hadronic, 1:3]
    return _hard([*parts, _radiation(n, 1.2, rng)], lepton, invisible, rng)


def _line(n: int, rng: np.random.Generator) -> Floats:
    """Masses of W bosons: a Breit-Wigner line, cut at 12 half widths."""
    found: Floats = MASS_W + WIDTH_W * rng.standard_cauchy(n).clip(-12, 12)
    return found


def _radiation(n: int, mean: float, rng: np.random.Generator) -> tuple[Ints, Floats, Floats, Floats, Ints]:
    """Initial-state radiation: `mean` partons per event on average."""
    event = owners(rng.poisson(mean, n))
    m = event.size
    flavour = rng.choice([LIGHT, CHARM, BOTTOM], m, p=[0.88, 0.09, 0.03])
    return event, power_law(m, JET_PT, 400.0, 2.2, rng), rng.normal(0, 2, m), rng.uniform(-np.pi, np.pi, m), flavour


def _hard(parts: list[tuple[Ints, Floats, Floats, Floats, Ints]], lepton: Floats, invisible: Floats, rng: np.random.Generator) -> Hard:
    """Partons that are hard and central enough, with the lepton's kind and charge."""
    event, pt, eta, phi, flavour = (np.concatenate(field) for field in zip(*parts, strict=True))
    followed = (pt > 1) & (np.abs(eta) < MAX_ETA)
    n = len(lepton)
    kept = event[followed], pt[followed], eta[followed], phi[followed], flavour[followed]
    return Hard(*kept, lepton=lepton, electron=rng.random(n) < 0.5, charge=rng.choice(np.array([-1, 1]), n), invisible=invisible)
