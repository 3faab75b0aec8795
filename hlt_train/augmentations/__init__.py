"""Transforms of raw features, one per file: factory(inputs, *, options) -> (features, key) -> features. Pure JAX; `hlt_train.augmentation` runs them.

A transform names its columns by options; where they are left out it takes those whose names end as the options' help says. A column that is not there is an
error that names it. Constituents at index >= count are left as they are, bit for bit, and with strength 0 so is everything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hlt_train.errors import UsageError, nearest
from hlt_train.types import Features, Group, Inputs

__all__ = ["Transform", "column", "columns_ending", "constituents", "real"]

Transform = Callable[[Features, Any], Features]


def constituents(inputs: Inputs, group: str | None, transform: str) -> Group:
    """The group of constituents of that name; the only one where none is named."""
    known = {g.name: g for g in inputs.groups if g.length is not None}
    if group is None and len(known) == 1:
        return next(iter(known.values()))
    if group is None or group not in known:
        what = f"{transform} acts on constituents, and " + (f"no group of them is called '{group}'" if group else f"there are {len(known)} groups of them")
        then = f"--set augment.{transform}.group=NAME" if known else "leave it out, or add constituents to the inputs"
        raise UsageError(what, where=f"augment.{transform}.group", near=(nearest(group, known) if group else ()) or tuple(known), then=then)
    return known[group]


def column(group: Group, name: str | None, endings: Sequence[str], transform: str, option: str) -> int:
    """The place of a variable in its group: the one that is named, else the only one whose name ends so."""
    where = f"augment.{transform}.{option}"
    if name is not None:
        if name not in group.variables:
            near = nearest(name, group.variables) or group.variables
            raise UsageError(f"{transform}: group '{group.name}' has no variable '{name}'", where=where, near=near)
        return group.variables.index(name)
    found = [v for v in group.variables if v.lower().endswith(tuple(endings))]
    if len(found) != 1:
        how = "no variable" if not found else f"{len(found)} variables ({', '.join(found)})"
        what = f"{transform} needs the {option} of constituents, and group '{group.name}' has {how} with a name that ends in {' or '.join(endings)}"
        raise UsageError(what, where=where, near=group.variables, then=f"--set {where}=VARIABLE")
    return group.variables.index(found[0])


def columns_ending(group: Group, names: Sequence[str] | None, endings: Sequence[str], transform: str, option: str) -> list[int]:
    """The places of several variables: those that are named, else all whose names end so."""
    if names is not None:
        return [column(group, name, (), transform, option) for name in names]
    return [k for k, v in enumerate(group.variables) if v.lower().endswith(tuple(endings))]


def real(x: Features, group: Group) -> Any:
    """Bool `[n, length]`: which constituents exist."""
    import jax.numpy as jnp

    return jnp.arange(group.length) < jnp.asarray(x.counts[group.name])[:, None]
