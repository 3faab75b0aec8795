"""Smearing of the energies of constituents by a relative resolution."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from hlt_train.augmentations import Transform, columns_ending, constituents, real
from hlt_train.errors import UsageError
from hlt_train.types import Features, Inputs

__all__ = ["energy_smearing"]


def energy_smearing(
    inputs: Inputs,
    *,
    relative: float = 0.05,
    group: str | None = None,
    linear: tuple[str, ...] | None = None,
    log: tuple[str, ...] | None = None,
) -> Transform:
    """Multiplies the momentum and energy of every constituent by one factor exp(relative g), g normal: its direction stays.

    What is made of all constituents together (a jet's mass, a fraction of its momentum) is not computed again: relative columns change with their own
    constituent only, and scalars beside the constituents keep the value of the jet as it was.

    Args:
        inputs: of the network.
        relative: the resolution.
        group: of constituents; None: the only one.
        linear: variables proportional to the energy; None: those that end in _pt, _energy, _e or ptrel.
        log: natural logarithms of such; None: those that end in logpt, loge, logenergy, logrel, logptrel or logerel.
    """
    if relative < 0:
        raise UsageError(f"a resolution is at least 0, got {relative:g}", where="augment.energy_smearing.relative")
    g = constituents(inputs, group, "energy_smearing")
    logs = columns_ending(g, log, ("logpt", "loge", "logenergy", "logrel", "logptrel", "logerel"), "energy_smearing", "log")
    lines = [k for k in columns_ending(g, linear, ("_pt", "_energy", "_e", "ptrel"), "energy_smearing", "linear") if linear is not None or k not in logs]
    if not logs and not lines:
        what = f"energy_smearing finds no energy or momentum among the variables of group '{g.name}'"
        raise UsageError(
            what, where="augment.energy_smearing.linear", near=g.variables, then="--set augment.energy_smearing.log=[VARIABLE] or .linear=[VARIABLE]"
        )

    def transform(x: Features, key: Any) -> Features:
        raw = jnp.asarray(x.groups[g.name])
        shift = relative * jax.random.normal(key, raw.shape[:2])
        there = real(x, g)
        smeared = raw
        for k in logs:
            smeared = smeared.at[..., k].set(jnp.where(there, raw[..., k] + shift, raw[..., k]))
        for k in lines:
            smeared = smeared.at[..., k].set(jnp.where(there, raw[..., k] * jnp.exp(shift), raw[..., k]))
        return x._replace(groups={**x.groups, g.name: smeared})

    return transform
