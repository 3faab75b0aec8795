"""Toy topologies: QCD, ttbar and W + jets with an isolated lepton, as lists of particles and as 14 high-level features.

The schema is that of the topology classifier on which mpi_learn was shown (arXiv:1712.05878) and of Nguyen et al. (arXiv:1807.00083): 19 observables of each
of at most 801 particles, 14 high-level features, three classes, an isolated lepton in every event. Partons of each process become jets of particles, with
20 other collisions on average, and the particles are measured (see the private modules beside this one). Classes are told apart by the lepton's isolation and
momentum, the number and hardness of jets and particles, and displaced tracks; they overlap. It is not validated physics: the file says origin=toy.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from hlt_train.datasets._kinematics import Floats, Ints, sum_by_owner, wrap
from hlt_train.datasets._particles import CHARGED, ELECTRON, LEPTON, MUON, NEUTRAL, PHOTON, Particles, isolation, lepton_isolation, measure, pick
from hlt_train.datasets._topologies import BOTTOM, CHARM, CLASSES, Hard, draw, select
from hlt_train.datasets._writer import Columns, check_request, collection, generator, interleaved_labels, luminosity_block, rounded, write_chunks
from hlt_train.errors import UsageError

__all__ = ["CHUNK", "CLASSES", "FEATURES", "OBSERVABLES", "PARTICLES", "VERSION", "write_topology"]

VERSION = 1  # of the generator: the same (version, n, seed, particles) gives the same content
CHUNK = 1500  # events per chunk; part of the content's definition
STREAM = 3  # keeps the kinds of one seed independent
PARTICLES = 801  # most particles of an event in the published data
MAX_ISOLATION = 0.45  # of the lepton, all kinds together: the filter
JET_PT, JET_ETA = 30.0, 2.6  # jets that count
BTAG = {BOTTOM: 0.7, CHARM: 0.15}  # probability of a b-tag; MISTAG for the others
MISTAG = 0.01
OBSERVABLES = (
    *("Energy", "Px", "Py", "Pz", "Pt", "Eta", "Phi", "vtxX", "vtxY", "vtxZ"),
    *("ChPFIso", "GammaPFIso", "NeuPFIso", "isChHad", "isNeuHad", "isGamma", "isEle", "isMu", "Charge"),
)
FEATURES = (
    *("HT", "MET", "PhiMET", "MT", "nJets", "nBJets"),
    *("LepPt", "LepEta", "LepPhi", "LepIsoCh", "LepIsoGamma", "LepIsoNeu", "LepCharge", "LepIsEle"),
)


def write_topology(path: Path, n: int, seed: int, *, particles: int = PARTICLES, progress: Callable[[int], None] | None = None) -> None:
    """Write `n` toy topologies to the tree `Events` of the new ROOT file `path`.

    Branches: label (0 qcd, 1 ttbar, 2 wjets), run, luminosityBlock, event; the FEATURES (GeV, radians); nParticle and, by falling pt, `Particle_<observable>`
    for the OBSERVABLES (GeV, radians, mm; isolations relative to the particle's pt; flags 0 or 1).

    Args:
        path: the file, which must not exist.
        n: events; every three consecutive ones hold each class once, in random order.
        seed: the same (n, seed, particles) gives the same content, and the first events of a longer file are the same events.
        particles: most particles of an event that are written, the hardest ones; everything else of the events does not depend on it.
        progress: called with the events written so far.
    """
    check_request(path, n, seed)
    if not 1 <= particles <= PARTICLES:
        raise UsageError(f"cannot write {particles} particles per event", where=str(path), then=f"--particles takes 1 to {PARTICLES}")
    facts = {"kind": "topology", "generator": VERSION, "seed": seed, "n": n, "particles": particles}
    write_chunks(path, "Events", facts, lambda number: chunk(seed, number, particles), n=n, size=CHUNK, progress=progress)


def chunk(seed: int, number: int, most: int) -> Columns:
    """The events of chunk `number`."""
    label = interleaved_labels(CHUNK, len(CLASSES), generator(seed, STREAM, number))
    scalars = {name: np.zeros(CHUNK, np.float32) for name in FEATURES}
    parts, values = [], []
    for index, name in enumerate(CLASSES):
        rows = np.flatnonzero(label == index)
        rng = generator(seed, STREAM, number, index)
        hard, seen, lepton = accept(name, len(rows), rng)
        for feature, column in describe(hard, seen, lepton, rng).items():
            scalars[feature][rows] = column
        counts = np.bincount(seen.event, minlength=len(rows))
        kept = pick(seen, _rank(counts) < most)
        values.append(isolation(seen, counts, most))
        parts.append(kept._replace(event=rows[kept.event]))
    found, isolations = Particles._make(np.concatenate(field) for field in zip(*parts, strict=True)), np.concatenate(values)
    order = np.argsort(found.event, kind="stable")  # within an event the particles are sorted already
    return {
        "label": label.astype(np.int32),
        "run": np.ones(CHUNK, np.uint32),
        "luminosityBlock": luminosity_block(seed, CHUNK),
        "event": (number * CHUNK + np.arange(1, CHUNK + 1)).astype(np.uint64),
        **scalars,
        "Particle": collection(np.bincount(found.event, minlength=CHUNK), observables(pick(found, order), isolations[order])),
    }


def accept(name: str, n: int, rng: np.random.Generator) -> tuple[Hard, Particles, Floats]:
    """Exactly `n` events of class `name` with an isolated lepton: partons, particles, and the lepton's isolation `[n, 3]`."""
    hards: list[Hard] = []
    lists: list[Particles] = []
    isolations: list[Floats] = []
    events = partons = 0
    while events < n:
        hard = draw(name, 2 * (n - events) + 20, rng)
        seen = measure(hard, rng)
        around = lepton_isolation(seen, len(hard.lepton))
        keep = around.sum(axis=1) < MAX_ISOLATION
        keep &= np.cumsum(keep) <= n - events
        number, parton = np.cumsum(keep) - 1, np.cumsum(keep[hard.event]) - 1
        seen = pick(seen, keep[seen.event])
        source = np.where(seen.source >= 0, parton[seen.source] + partons, seen.source)
        lists.append(seen._replace(event=number[seen.event] + events, source=source))
        isolations.append(around[keep])
        hard = select(hard, keep)
        hards.append(hard._replace(event=hard.event + events))
        events += len(hard.lepton)
        partons += len(hard.pt)
    together = Hard._make(np.concatenate(field) for field in zip(*hards, strict=True))
    return together, Particles._make(np.concatenate(field) for field in zip(*lists, strict=True)), np.concatenate(isolations)


def describe(hard: Hard, seen: Particles, lepton: Floats, rng: np.random.Generator) -> dict[str, Floats]:
    """The FEATURES of events, `[n]` each.

    Args:
        hard: their partons: a jet is what the detector saw of one.
        seen: their particles, before any is cut away.
        lepton: isolation of the lepton, `[n, 3]`.
        rng: of the b-tags and of the resolution of MET, which is 0.8 sqrt(sum of pt / GeV) GeV in x and in y.
    """
    n, m = len(lepton), len(hard.pt)
    inside = seen.source >= 0
    owner, pt, phi = seen.source[inside], seen.pt[inside], seen.phi[inside]
    px, py, pz = (sum_by_owner(owner, pt * f, m) for f in (np.cos(phi), np.sin(phi), np.sinh(seen.eta[inside])))
    jet_pt = np.hypot(px, py)
    jet = (jet_pt > JET_PT) & (np.abs(np.arcsinh(pz / np.maximum(jet_pt, 1e-6))) < JET_ETA)
    tagged = rng.random(m) < np.select([hard.flavour == flavour for flavour in BTAG], list(BTAG.values()), MISTAG)
    spread = 0.8 * np.sqrt(sum_by_owner(seen.event, seen.pt, n))[:, None]
    missing = hard.invisible + spread * rng.standard_normal((n, 2))
    met, met_phi = np.hypot(missing[:, 0], missing[:, 1]), np.arctan2(missing[:, 1], missing[:, 0])
    mine = seen.source == LEPTON  # one per event, in the order of events
    lep_pt, lep_phi = seen.pt[mine], seen.phi[mine]
    return {
        "HT": sum_by_owner(hard.event, np.where(jet, jet_pt, 0.0), n),
        "MET": met,
        "PhiMET": met_phi,
        "MT": np.sqrt(2 * lep_pt * met * (1 - np.cos(lep_phi - met_phi))),
        "nJets": sum_by_owner(hard.event, jet.astype(np.float64), n),
        "nBJets": sum_by_owner(hard.event, (jet & tagged).astype(np.float64), n),
        "LepPt": lep_pt,
        "LepEta": seen.eta[mine],
        "LepPhi": lep_phi,
        **dict(zip(("LepIsoCh", "LepIsoGamma", "LepIsoNeu"), lepton.T, strict=True)),
        "LepCharge": seen.charge[mine].astype(np.float64),
        "LepIsEle": (seen.kind[mine] == ELECTRON).astype(np.float64),
    }


def observables(found: Particles, isolations: Floats) -> dict[str, np.ndarray]:
    """The OBSERVABLES of particles, flat."""
    columns = {
        "Energy": found.pt * np.cosh(found.eta),
        "Px": found.pt * np.cos(found.phi),
        "Py": found.pt * np.sin(found.phi),
        "Pz": found.pt * np.sinh(found.eta),
        "Pt": found.pt,
        "Eta": found.eta,
        "Phi": wrap(found.phi),
        **dict(zip(("vtxX", "vtxY", "vtxZ"), found.vertex.T, strict=True)),
        **dict(zip(("ChPFIso", "GammaPFIso", "NeuPFIso"), isolations.T, strict=True)),
    }
    kinds = {"isChHad": CHARGED, "isNeuHad": NEUTRAL, "isGamma": PHOTON, "isEle": ELECTRON, "isMu": MUON}
    flags = {name: (found.kind == kind).astype(np.int8) for name, kind in kinds.items()}
    written = {**{name: rounded(values) for name, values in columns.items()}, **flags, "Charge": found.charge.astype(np.int8)}
    return {name: written[name] for name in OBSERVABLES}


def _rank(counts: Ints) -> Ints:
    """Place of every item within its owner: counts [2, 0, 3] give [0, 1, 0, 1, 2]."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
