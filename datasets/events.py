"""Toy trigger events: gg -> HH -> 4b against QCD, with pile-up, after an L1 seed on HT.

An L1-accepted sample as a High-Level Trigger path sees it: jets with HLT resolution and b-tag scores, HT, missing pt, vertices; the L1 bit, a reference bit,
offline HT and the number of pile-up collisions for turn-ons and stability. The sum of the four highest b-tags has AUC .965, a good network .99.
It is not validated physics: the file says origin=toy.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hlt_train.datasets._collisions import MAX_ETA, Partons, concatenate, hh_to_4b, pileup, qcd
from hlt_train.datasets._kinematics import Floats, Ints, wrap
from hlt_train.datasets._trigger_detector import HLT, L1, L1_THRESHOLD, OFFLINE, btag, ht, measure, missing_pt
from hlt_train.datasets._writer import Columns, check_request, collection, generator, interleaved_labels, luminosity_block, write_chunks

__all__ = ["CHUNK", "CLASSES", "DRIFT_RUN", "FIRST_RUN", "RUNS", "VERSION", "write_events"]

VERSION = 1  # of the generator: the same (version, n, seed, options) gives the same content
CLASSES = ("qcd", "hh")
ACCEPTANCE = (0.19, 0.58)  # of L1 by class; only sets how many events are tried at once
CHUNK = 10_000  # events per chunk; part of the content's definition
STREAM = 2  # keeps jets and events of one seed independent
FIRST_RUN, RUNS = 380_000, 20  # the events spread evenly over these runs
DRIFT_RUN = FIRST_RUN + RUNS // 2  # first run of the drift
DRIFT_SCALE, DRIFT_BTAG = 1.02, 0.05  # energy scale after it, and share of the b-tag efficiency lost
REFERENCE_RATE = 0.2  # of HLT_Ref, independent of everything else
MIN_PT = 20.0  # GeV, of the jets written


class Collisions(NamedTuple):
    """Events before the HLT: jets' partons, pile-up collisions `[n]`, L1 HT `[n]` in GeV."""

    partons: Partons
    pileup: Ints
    l1_ht: Floats


def write_events(path: Path, n: int, seed: int, drift: bool = False, *, rejected: bool = False, progress: Callable[[int], None] | None = None) -> None:
    """Write `n` toy events to the tree `Events` of the new ROOT file `path`.

    Branches: label (0 qcd, 1 hh), run, luminosityBlock, event, weight (1: unweighted events); nPU, npv; L1_HTT280, L1_HT; HLT_Ref (an independent path, for
    turn-ons); ht, met, offline_ht (GeV); nJet and, by falling pt above 20 GeV, Jet_pt, Jet_eta, Jet_phi, Jet_mass, Jet_btag (0..1, -1 outside the tracker).

    Args:
        path: the file, which must not exist.
        n: events; every two consecutive ones are one of each class, in random order.
        seed: the same arguments give the same content, and the first events of a longer file are the same events.
        drift: from run DRIFT_RUN on, 5 % less b-tag efficiency and a 2 % higher energy scale of the HLT (L1 and offline unchanged); the events of earlier
            runs are those of the file without drift.
        rejected: write events that L1 rejects, too, with L1_HTT280 = 0; otherwise only accepted ones.
        progress: called with the events written so far.
    """
    check_request(path, n, seed)
    facts = {"kind": "events", "generator": VERSION, "seed": seed, "n": n, "drift": drift, "all": rejected}
    make = lambda number: chunk(seed, number, drift=drift, rejected=rejected)  # noqa: E731
    write_chunks(path, "Events", facts, make, n=n, size=CHUNK, progress=progress)


def chunk(seed: int, number: int, *, drift: bool, rejected: bool) -> Columns:
    """The events of chunk `number`."""
    rng = generator(seed, STREAM, number)
    label = interleaved_labels(CHUNK, len(CLASSES), rng)
    run = FIRST_RUN + rng.integers(RUNS, size=CHUNK)
    reference = rng.random(CHUNK) < REFERENCE_RATE
    parts, numbers_of_collisions, l1_ht = [], np.zeros(CHUNK, np.int64), np.zeros(CHUNK)
    for index, name in enumerate(CLASSES):
        rows = np.flatnonzero(label == index)
        found = collide(name, len(rows), generator(seed, STREAM, number, index), rejected=rejected)
        parts.append(found.partons._replace(event=rows[found.partons.event]))
        numbers_of_collisions[rows], l1_ht[rows] = found.pileup, found.l1_ht
    collisions = Collisions(concatenate(parts), numbers_of_collisions, l1_ht)
    late = np.asarray(drift) & (run >= DRIFT_RUN)
    return {
        "label": label.astype(np.int32),
        "run": run.astype(np.uint32),
        "luminosityBlock": luminosity_block(seed, CHUNK),
        "event": (number * CHUNK + np.arange(1, CHUNK + 1)).astype(np.uint64),
        "weight": np.ones(CHUNK, np.float32),
        "HLT_Ref": reference,
        **reconstruct(collisions, late, generator(seed, STREAM, number, len(CLASSES))),
    }


def collide(name: str, n: int, rng: np.random.Generator, *, rejected: bool) -> Collisions:
    """`n` events of class `name`: those that L1 accepts, or all."""
    index = CLASSES.index(name)
    tries = n if rejected else int(n / ACCEPTANCE[index] * 1.1) + 100
    found: list[Collisions] = []
    while sum(len(f.pileup) for f in found) < n:
        tried = attempt(name, tries, rng)
        keep = np.ones(tries, np.bool_) if rejected else tried.l1_ht > L1_THRESHOLD
        found.append(select(tried, keep))
    offsets = np.cumsum([0, *(len(f.pileup) for f in found)])
    partons = concatenate([f.partons._replace(event=f.partons.event + start) for f, start in zip(found, offsets, strict=False)])
    together = Collisions(partons, np.concatenate([f.pileup for f in found]), np.concatenate([f.l1_ht for f in found]))
    return select(together, np.arange(len(together.pileup)) < n)


def attempt(name: str, n: int, rng: np.random.Generator) -> Collisions:
    """`n` events of class `name` with pile-up and their L1 HT (jets above 30 GeV within 2.4)."""
    hard = hh_to_4b(n, rng) if name == "hh" else qcd(n, rng)
    numbers, soft = pileup(n, rng)
    partons = concatenate([hard, soft])
    partons = Partons._make(field[np.abs(partons.eta) < MAX_ETA] for field in partons)
    measured = measure(partons, numbers, L1, rng)
    return Collisions(partons, numbers, ht(measured._replace(eta=partons.eta), n, min_pt=30.0, max_eta=2.4))


def select(collisions: Collisions, keep: np.ndarray) -> Collisions:
    """The events where `keep` `[n]` is true, renumbered."""
    number = np.cumsum(keep) - 1
    kept = Partons._make(field[keep[collisions.partons.event]] for field in collisions.partons)
    return Collisions(kept._replace(event=number[kept.event]), collisions.pileup[keep], collisions.l1_ht[keep])


def reconstruct(collisions: Collisions, late: np.ndarray, rng: np.random.Generator) -> Columns:
    """HLT and offline quantities of events; `late` `[n]` marks those after the drift."""
    n = len(late)
    jets = measure(collisions.partons, collisions.pileup, HLT, rng)
    jets = jets._replace(pt=jets.pt * np.where(late, DRIFT_SCALE, 1.0)[jets.event])
    score = btag(jets, np.where(late, DRIFT_BTAG, 0.0)[jets.event], rng)
    mass = jets.pt * np.clip(rng.normal(0.11, 0.03, jets.pt.size), 0.02, 0.4)
    offline = measure(collisions.partons, collisions.pileup, OFFLINE, rng)
    vertices = rng.binomial(collisions.pileup, 0.7)
    order = np.lexsort((-jets.pt, jets.event))
    order = order[jets.pt[order] > MIN_PT]
    written = Partons._make(field[order] for field in jets)
    fields = {"pt": written.pt, "eta": written.eta, "phi": wrap(written.phi), "mass": mass[order], "btag": score[order]}
    counts = np.bincount(written.event, minlength=n)
    return {
        "nPU": collisions.pileup.astype(np.int32),
        "npv": vertices.astype(np.int32),
        "L1_HTT280": collisions.l1_ht > L1_THRESHOLD,
        "L1_HT": collisions.l1_ht.astype(np.float32),
        "ht": ht(written, n, min_pt=MIN_PT, max_eta=2.5).astype(np.float32),
        "met": missing_pt(written, collisions.pileup, rng).astype(np.float32),
        "offline_ht": ht(offline, n, min_pt=30.0, max_eta=2.4).astype(np.float32),
        "Jet": collection(counts, {name: values.astype(np.float32) for name, values in fields.items()}),
    }
