"""Rotation of constituents in the eta-phi plane about the axis of their jet."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hlt_train.augmentations import Transform, column, constituents, real
from hlt_train.errors import UsageError
from hlt_train.types import Features, Inputs

__all__ = ["rotation"]


def rotation(inputs: Inputs, *, angle: float = 180.0, group: str | None = None, eta: str | None = None, phi: str | None = None) -> Transform:
    """Rotates every jet's constituents about its axis by an angle of its own, uniform in [-angle, angle] degrees.

    pT, Delta R between constituents and their distance to the axis stay as they are; so does the mass, to the accuracy of small angles.

    Args:
        inputs: of the network.
        angle: the largest, in degrees, at most 180.
        group: of constituents; None: the only one.
        eta: variable relative to the axis; None: the one that ends in deta or etarel.
        phi: the same of phi, not wrapped and in the same unit; None: the one that ends in dphi or phirel.
    """
    if not 0 <= angle <= 180:
        raise UsageError(f"an angle is between 0 and 180 degrees, got {angle:g}", where="augment.rotation.angle")
    g = constituents(inputs, group, "rotation")
    a, b = column(g, eta, ("deta", "etarel"), "rotation", "eta"), column(g, phi, ("dphi", "phirel"), "rotation", "phi")

    def transform(x: Features, key: Any) -> Features:
        raw = jnp.asarray(x.groups[g.name])
        turn = jax.random.uniform(key, (raw.shape[0], 1), minval=-1.0, maxval=1.0) * np.float32(np.radians(angle))
        c, s = jnp.cos(turn), jnp.sin(turn)
        there = real(x, g)
        turned = raw.at[..., a].set(jnp.where(there, c * raw[..., a] - s * raw[..., b], raw[..., a]))
        turned = turned.at[..., b].set(jnp.where(there, s * raw[..., a] + c * raw[..., b], raw[..., b]))
        return x._replace(groups={**x.groups, g.name: turned})

    return transform
