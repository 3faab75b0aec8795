"""Dropping of constituents: what a detector misses."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from hlt_train.augmentations import Transform, constituents, real
from hlt_train.errors import UsageError
from hlt_train.types import Features, Inputs

__all__ = ["dropping"]


def dropping(inputs: Inputs, *, probability: float = 0.05, keep: int = 1, group: str | None = None) -> Transform:
    """Drops every constituent with some probability, but the first `keep`; the others close up in their order, and the count falls.

    What is left of the dropped ones stands beyond the new count, where nothing reads it. Scalars keep the value of the whole jet.

    Args:
        inputs: of the network.
        probability: of a constituent.
        keep: constituents at the beginning, the hardest where they are sorted, that are never dropped.
        group: of constituents; None: the only one.
    """
    if not 0 <= probability <= 1 or keep < 0:
        raise UsageError(f"a probability is between 0 and 1 and keep at least 0, got {probability:g} and {keep}", where="augment.dropping")
    g = constituents(inputs, group, "dropping")

    def transform(x: Features, key: Any) -> Features:
        raw, there = jnp.asarray(x.groups[g.name]), real(x, g)
        dropped = there & (jax.random.uniform(key, raw.shape[:2]) < probability) & (jnp.arange(raw.shape[1]) >= keep)
        # A stable sort keeps the order: what stays, then (where nothing reads) what was never there and what is dropped.
        order = jnp.argsort(dropped, axis=1, stable=True)
        moved = jnp.take_along_axis(raw, order[..., None], axis=1)
        counts = jnp.asarray(x.counts[g.name])
        fewer = counts - jnp.sum(dropped, axis=1, dtype=counts.dtype)
        return x._replace(groups={**x.groups, g.name: moved}, counts={**x.counts, g.name: fewer})

    return transform
