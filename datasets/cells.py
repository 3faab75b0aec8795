"""Toy calorimeter cells: sparse events, each a short list of (cell, energy) out of 100,000 cells; showers of electrons against hadrons and noise.

Electrons shower early, hadrons late, some events hold noise only; depth fluctuates from shower to shower. So the logarithm of the likelihood ratio is close to
a sum over the hits: positive weights for cells of the front layers, negative ones for the back, none for noise, which a linear model on hashed cells learns
cell by cell. A hundred noisy cells are hit in a few per mille of the events, nearly all others in fewer than one in a thousand: sparse data, for which
lock-free training is meant. It is not validated physics: the file says origin=toy.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from hlt_train.datasets._kinematics import Floats, Ints, owners, sum_by_owner
from hlt_train.datasets._writer import Columns, check_request, collection, generator, interleaved_labels, luminosity_block, rounded, write_chunks

__all__ = ["CELLS", "CHUNK", "CLASSES", "ETA", "LAYERS", "PHI", "VERSION", "noisy_cells", "write_cells"]

VERSION = 1  # of the generator: the same (version, n, seed) gives the same content
CLASSES = ("background", "signal")
CHUNK = 10_000  # events per chunk; part of the content's definition
STREAM = 4  # keeps the kinds of one seed independent
LAYERS, ETA, PHI = 5, 100, 200  # cells in depth, pseudorapidity and azimuth
CELLS = LAYERS * ETA * PHI
NOISY, NOISE_RATIO = 100, 40.0  # cells that are noisy, and how much more often they are hit than a quiet one
NOISE = 15.0  # hits of noise per event, on average
HITS = 14.0  # hits of a shower, on average
NOISE_ONLY = 0.25  # share of the background without a shower
DEPTH = np.array([[0.06, 0.12, 0.22, 0.30, 0.30], [0.30, 0.36, 0.20, 0.09, 0.05]])  # mean share of a shower's hits per layer: hadron, electron
STIFFNESS = 8.0  # of the depth from shower to shower: larger fluctuates less
WIDTH = (2.0, 1.0)  # cells across: hadron, electron


def write_cells(path: Path, n: int, seed: int, *, progress: Callable[[int], None] | None = None) -> None:
    """Write `n` toy events of a calorimeter to the tree `Events` of the new ROOT file `path`.

    Branches: label (0 background, 1 signal), run, luminosityBlock, event; nCell and, by falling energy, Cell_id (0 .. CELLS - 1; layer, pseudorapidity,
    azimuth, from the slowest to the fastest) and Cell_energy (GeV). A cell is listed at most once per event.

    Args:
        path: the file, which must not exist.
        n: events; every two consecutive ones are one of each class, in random order.
        seed: the same (n, seed) gives the same content, and the first events of a longer file are the same events.
        progress: called with the events written so far.
    """
    check_request(path, n, seed)
    facts = {"kind": "cells", "generator": VERSION, "seed": seed, "n": n}
    write_chunks(path, "Events", facts, lambda number: chunk(seed, number), n=n, size=CHUNK, progress=progress)


def noisy_cells() -> Ints:
    """The noisy cells, `[NOISY]`: a property of the detector, the same for every file."""
    return np.sort(generator(0, STREAM).choice(CELLS, NOISY, replace=False))


def chunk(seed: int, number: int) -> Columns:
    """The events of chunk `number`."""
    rng = generator(seed, STREAM, number)
    label = interleaved_labels(CHUNK, len(CLASSES), rng)
    parts = [noise(CHUNK, rng), showers(label, rng)]
    event, cell, energy = (np.concatenate(field) for field in zip(*parts, strict=True))
    hit, place = np.unique(event * CELLS + cell, return_inverse=True)
    energy = sum_by_owner(place, energy, hit.size)
    event, cell = hit // CELLS, hit % CELLS
    order = np.lexsort((cell, -energy, event))
    return {
        "label": label.astype(np.int32),
        "run": np.ones(CHUNK, np.uint32),
        "luminosityBlock": luminosity_block(seed, CHUNK),
        "event": (number * CHUNK + np.arange(1, CHUNK + 1)).astype(np.uint64),
        "Cell": collection(np.bincount(event, minlength=CHUNK), {"id": cell[order].astype(np.int32), "energy": rounded(energy[order])}),
    }


def noise(n: int, rng: np.random.Generator) -> tuple[Ints, Ints, Floats]:
    """Event, cell and energy of the noise hits of `n` events."""
    event = owners(rng.poisson(NOISE, n))
    extra = NOISY * (NOISE_RATIO - 1)
    hot = rng.random(event.size) < extra / (CELLS + extra)
    cell = np.where(hot, rng.choice(noisy_cells(), event.size), rng.integers(CELLS, size=event.size))
    return event, cell, 0.1 + rng.exponential(0.3, event.size)


def showers(label: Ints, rng: np.random.Generator) -> tuple[Ints, Ints, Floats]:
    """Event, cell and energy of the shower hits of events with these labels, `[n]`; azimuth is periodic, pseudorapidity ends."""
    n = len(label)
    depth = rng.standard_gamma(STIFFNESS * DEPTH[label])
    reach = np.cumsum(depth, axis=1) / depth.sum(axis=1, keepdims=True)
    with_shower = (label == 1) | (rng.random(n) >= NOISE_ONLY)
    event = owners(np.where(with_shower, 1 + rng.poisson(HITS - 1, n), 0))
    m = event.size
    layer = np.minimum((rng.random(m)[:, None] > reach[event]).sum(axis=1), LAYERS - 1)
    width = np.array(WIDTH)[label][event]
    eta = rng.normal(ETA / 2, ETA / 6, n)[event] + width * rng.standard_normal(m)
    phi = rng.uniform(0, PHI, n)[event] + width * rng.standard_normal(m)
    row, column = np.floor(eta).clip(0, ETA - 1).astype(np.int64), np.floor(phi).astype(np.int64) % PHI
    return event, (layer * ETA + row) * PHI + column, 0.2 + rng.exponential(2.0, m)
