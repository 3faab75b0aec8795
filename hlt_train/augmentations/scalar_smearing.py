"""Smearing of scalars within their resolution."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hlt_train.augmentations import Transform
from hlt_train.errors import UsageError, nearest
from hlt_train.types import Features, Inputs

__all__ = ["scalar_smearing"]


def scalar_smearing(inputs: Inputs, *, absolute: dict[str, float] | None = None, relative: dict[str, float] | None = None) -> Transform:
    """Adds a normal deviation to scalars: of the given width in the variable's own unit, or relative to its value.

    Args:
        inputs: of the network.
        absolute: variable -> width, in its unit.
        relative: variable -> width as a share of its value.
    """
    known = {v: (g.name, k) for g in inputs.groups if g.length is None for k, v in enumerate(g.variables)}
    widths = {g.name: np.zeros((2, len(g.variables)), np.float32) for g in inputs.groups if g.length is None}
    for kind, (option, given) in enumerate((("absolute", absolute or {}), ("relative", relative or {}))):
        for name, width in given.items():
            where = f"augment.scalar_smearing.{option}"
            if name not in known:
                raise UsageError(f"scalar_smearing: no scalar input is called '{name}'", where=where, near=nearest(name, known) or tuple(known))
            if width < 0:
                raise UsageError(f"a resolution is at least 0, got {width:g} for '{name}'", where=where)
            group, place = known[name]
            widths[group][kind, place] = width
    if not (absolute or relative):
        raise UsageError(
            "scalar_smearing is told no variable",
            where="augment.scalar_smearing",
            near=tuple(known),
            then="--set augment.scalar_smearing.relative={VARIABLE: 0.05}",
        )

    def transform(x: Features, key: Any) -> Features:
        groups = dict(x.groups)
        for number, (name, (wide, share)) in enumerate(widths.items()):
            raw = jnp.asarray(groups[name])
            g = jax.random.normal(jax.random.fold_in(key, number), raw.shape)
            # not + 0 * g: an infinite value stays one
            groups[name] = jnp.where((wide > 0) | (share > 0), raw + g * (wide + share * jnp.abs(raw)), raw)
        return x._replace(groups=groups)

    return transform
