"""Inputs, features and precisions for tests of models: generic centres and scales, garbage in the padding, values beyond every clip."""

from __future__ import annotations

import numpy as np

from hlt_train.precision.config import Precision
from hlt_train.types import Features, Group, Inputs

F32 = np.float32


def group(rng: np.random.Generator, name: str, n: int, length: int | None = None) -> Group:
    """A group whose normalisation is nowhere a round number."""
    return Group(
        name=name,
        variables=tuple(f"{name}_{i}" for i in range(n)),
        length=length,
        centre=rng.normal(0, 30, n).astype(F32),
        scale=rng.uniform(0.02, 3, n).astype(F32),
        lo=-rng.uniform(2, 6, n).astype(F32),
        hi=rng.uniform(2, 6, n).astype(F32),
        nan=rng.choice([0, 1, -0.5], n).astype(F32),
    )


def inputs(rng: np.random.Generator, *groups: tuple[str, int, int | None], classes: int = 2) -> Inputs:
    """Groups given as (name, variables, length)."""
    return Inputs(tuple(group(rng, *g) for g in groups), tuple(f"class_{c}" for c in range(classes)))


def cells(*groups: tuple[str, int], classes: int = 2) -> Inputs:
    """Groups of hits given as (name, length): the number of a cell, as it is, and a value."""
    found = []
    for name, length in groups:
        lo, hi = np.array([-np.inf, 0], F32), np.array([np.inf, 4], F32)
        found.append(Group(name, (f"{name}_cell", f"{name}_value"), length, np.array([0, 0], F32), np.array([1, 0.5], F32), lo, hi, np.zeros(2, F32)))
    return Inputs(tuple(found), tuple(f"class_{c}" for c in range(classes)))


def raw_cells(rng: np.random.Generator, described: Inputs, n: int, *, garbage: float = np.nan) -> Features:
    """Raw hits: cells of 100,000, no value zero; `garbage` beyond every count."""
    groups, counts = {}, {}
    for g in described.groups:
        assert g.length is not None
        counts[g.name] = rng.integers(0, g.length + 1, n).astype(np.int32)
        x = np.stack([rng.integers(0, 100_000, (n, g.length)), rng.uniform(0.1, 9, (n, g.length))], axis=2).astype(F32)
        x[np.arange(g.length) >= counts[g.name][:, None]] = garbage
        groups[g.name] = x
    return Features(groups, counts)


def raw(rng: np.random.Generator, described: Inputs, n: int, *, garbage: float = np.nan) -> Features:
    """Raw features: mostly inside the clip, some far beyond, some NaN; `garbage` beyond every count."""
    groups, counts = {}, {}
    for g in described.groups:
        shape = (n, *g.shape)
        x = (g.centre + rng.normal(0, 2, shape) / g.scale).astype(F32)
        x[rng.random(shape) < 0.01] = F32(np.nan)
        x[rng.random(shape) < 0.01] = F32(np.inf)
        x[rng.random(shape) < 0.01] = F32(-3e38)
        if g.length is not None:
            counts[g.name] = rng.integers(0, g.length + 1, n).astype(np.int32)
            x[np.arange(g.length) >= counts[g.name][:, None]] = garbage
        groups[g.name] = x
    return Features(groups, counts)


def normalised(described: Inputs, x: Features) -> Features:
    """`Group`'s rule in NumPy float32, one operation at a time; constituents beyond the count become 0."""
    groups = {}
    with np.errstate(over="ignore", invalid="ignore"):
        for g in described.groups:
            v = x.groups[g.name]
            z = np.clip((v - g.centre) * g.scale, g.lo, g.hi)
            z = np.where(np.isnan(v), g.nan, z).astype(F32)
            if g.length is not None:
                z[np.arange(g.length) >= x.counts[g.name][:, None]] = 0
            groups[g.name] = z
    return Features(groups, x.counts)


NARROW = Precision(weights="fixed<8,2>", bias="fixed<8,2>", activations="ufixed<8,3>", inputs="fixed<10,4>")
