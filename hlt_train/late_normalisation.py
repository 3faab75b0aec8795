"""Normalisation on the device rather than in the stream, for batches that are changed in between.

A stream of raw features, and what makes of them what a network reads. Together they are `data.normalise.apply`, to the bit.
"""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from hlt_train.types import Features, Group, Inputs

__all__ = ["normalised", "raw_inputs"]


def raw_inputs(inputs: Inputs) -> Inputs:
    """The same groups as they are in the file: not moved, scaled or clipped, and a NaN stays one."""

    def raw(group: Group) -> Group:
        zero = np.zeros_like(group.centre)
        return replace(group, centre=zero, scale=zero + 1, lo=zero - np.inf, hi=zero + np.inf, nan=zero + np.nan)

    return Inputs(tuple(map(raw, inputs.groups)), inputs.classes)


def normalised(inputs: Inputs, x: Features) -> Features:
    """As `data.normalise.apply`, on the device: float32 subtract, multiply, clip; NaN becomes the group's `nan`; constituents at index >= count become 0."""
    groups = {}
    for g in inputs.groups:
        raw = jnp.asarray(x.groups[g.name])
        z = jnp.clip((raw - g.centre) * g.scale, g.lo, g.hi)
        z = jnp.where(jnp.isnan(raw), g.nan, z)
        if g.length is not None:
            z = jnp.where((jnp.arange(g.length) < x.counts[g.name][:, None])[..., None], z, 0)
        groups[g.name] = z
    return Features(groups, x.counts)
