"""Reflection of constituents: a jet and its mirror image are equally likely."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from hlt_train.augmentations import Transform, column, constituents, real
from hlt_train.errors import UsageError
from hlt_train.types import Features, Inputs

__all__ = ["reflection"]


def reflection(inputs: Inputs, *, probability: float = 0.5, group: str | None = None, phi: str | None = None) -> Transform:
    """Changes the sign of phi about the axis, for all constituents of a jet together, with some probability.

    Args:
        inputs: of the network.
        probability: of a reflection.
        group: of constituents; None: the only one.
        phi: the variable relative to the axis; None: the one that ends in dphi or phirel.
    """
    if not 0 <= probability <= 1:
        raise UsageError(f"a probability is between 0 and 1, got {probability:g}", where="augment.reflection.probability")
    g = constituents(inputs, group, "reflection")
    b = column(g, phi, ("dphi", "phirel"), "reflection", "phi")

    def transform(x: Features, key: Any) -> Features:
        raw = jnp.asarray(x.groups[g.name])
        mirrored = jax.random.bernoulli(key, probability, (raw.shape[0], 1)) & real(x, g)
        return x._replace(groups={**x.groups, g.name: raw.at[..., b].set(jnp.where(mirrored, -raw[..., b], raw[..., b]))})

    return transform
