"""From the columns of a cluster to rows: labels, weights, padded float32 features, and what rates, joins and predictions need.

Every value that a network or a loss will see passes the guards here. NaN and infinities are counted per variable and refused if the card says so. A finite
|x| > 1e30 is taken for damage: ZSTD, LZ4 and uncompressed baskets do not notice overwritten bytes and return wrong numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hlt_train.data.card import Group
from hlt_train.data.ragged import pad
from hlt_train.data.recipe import Recipe
from hlt_train.data.table import Table
from hlt_train.errors import RunFailed, UsageError
from hlt_train.types import Features, Rows

__all__ = ["DAMAGE", "assemble", "concatenate", "identity", "labels", "values", "weights"]

DAMAGE = 1e30


def identity(recipe: Recipe, table: Table) -> np.ndarray:
    """int64 `[entries, k]`: the identity of every entry of a cluster (unsigned 64-bit numbers keep their bits)."""
    columns = []
    for expression in recipe.identity:
        values = table.per_entry(expression, "identity")
        if values.dtype.kind == "f" and not np.array_equal(values, np.rint(values)):
            raise UsageError(f"identity '{expression.text}' is not a whole number in every entry", where=table.where, then="use integer branches or floor(x)")
        columns.append(values.astype(np.uint64 if values.dtype == np.uint64 else np.int64).view(np.int64))
    return np.stack(columns, axis=1)


def labels(recipe: Recipe, table: Table, picked: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """int32 `[n]`: class of each row, -1 when the dataset was opened without labels."""
    card = recipe.card
    if not recipe.labelled:
        return np.full(len(picked), -1, np.int32)
    if recipe.label is None:
        sample = list(card.samples)[table.cluster.sample]
        name = card.labels.by[sample] if isinstance(card.labels.by, dict) else sample
        return np.full(len(picked), card.labels.classes.index(name), np.int32)
    values = table.per_row(recipe.label, picked, parents, "label")
    with np.errstate(invalid="ignore"):
        found = values.astype(np.int64)
    bad = np.flatnonzero((found != values) | (found < 0) | (found >= len(card.labels.classes)))
    if len(bad):
        entry = table.cluster.start + int(parents[bad[0]])
        raise UsageError(
            f"label {values[bad[0]]:g} is out of range: {len(card.labels.classes)} classes are numbered 0 to {len(card.labels.classes) - 1} "
            f"({len(bad)} such rows here, the first at entry {entry})",
            where=table.where,
            then=f"correct labels.expression ('{recipe.label.text}') or labels.classes, or select such entries away",
        )
    return found.astype(np.int32)


def weights(recipe: Recipe, table: Table, picked: np.ndarray, parents: np.ndarray, *, rate: bool = False) -> np.ndarray:
    """float64 `[n]`: training weight after the card's rule for negative ones (before balancing), or with `rate` the rate weight as it is."""
    expression = recipe.rate_weight if rate else recipe.weight
    role = "rate weight" if rate else "training weight"
    found = table.per_row(expression, picked, parents, role).astype(np.float64)
    bad = np.flatnonzero(~(np.abs(found) <= DAMAGE))
    if len(bad):
        entry = table.cluster.start + int(parents[bad[0]])
        raise RunFailed(
            f"{role} '{expression.text}' is {found[bad[0]]:g} at entry {entry} ({len(bad)} rows are NaN, infinite or above {DAMAGE:g})", where=table.where
        )
    if rate:
        return found
    rule = recipe.card.weights.negative
    return np.abs(found) if rule == "abs" else np.maximum(found, 0.0) if rule == "drop" else found


def assemble(recipe: Recipe, table: Table, picked: np.ndarray, *, everything: bool, scale: np.ndarray, bad: dict[str, int]) -> Rows:
    """The rows of one cluster.

    Args:
        recipe: the card's expressions.
        table: the cluster's columns.
        picked: which candidates are rows.
        everything: also identity, rate weight, observers and reference columns (else these fields are empty).
        scale: float64 `[n_classes]`, factor of the training weight per class.
        bad: filled with the number of non-finite values per variable.
    """
    parents = table.parents()[picked]
    groups, counts = {}, {}
    for name, group in recipe.card.inputs.items():
        groups[name], number = values(name, group, table, picked, parents)
        if number is not None:
            counts[name] = number
        _guard(recipe, table, group, groups[name], parents, bad)
    label = labels(recipe, table, picked, parents)
    weight = weights(recipe, table, picked, parents)
    if recipe.labelled:
        weight = weight * scale[label]
    n = len(picked)
    if not everything:
        none = np.zeros(0)
        empty = np.zeros((0, len(recipe.identity)), np.int64)
        return Rows(Features(groups, counts), label, weight, none, none.astype(np.int32), empty, none.astype(np.int32), {}, {})
    return Rows(
        x=Features(groups, counts),
        label=label,
        weight=weight,
        rate_weight=weights(recipe, table, picked, parents, rate=True),
        sample=np.full(n, table.cluster.sample, np.int32),
        identity=identity(recipe, table)[parents],
        object=table.object_index()[picked],
        observers={name: table.per_row(name, picked, parents, "observer") for name in recipe.observers},
        reference={name: table.per_row(name, picked, parents, "trigger variable") for name in recipe.reference},
    )


def values(name: str, group: Group, table: Table, picked: np.ndarray, parents: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """The features of one group for the candidates `picked` of the entries `parents`, as a network reads them before normalisation, and their counts.

    float32 `[n, n_vars]` and None for scalars; `[n, length, n_vars]` and int32 `[n]` for constituents.
    """
    if group.length is None:
        x = np.empty((len(picked), len(group.vars)), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for k, variable in enumerate(group.vars):
                x[:, k] = table.per_row(variable, picked, parents, f"input of group '{name}':")
        return x, None
    contents = []
    first = next(iter(group.vars))
    _, offsets, rows = table.lists(first, picked, parents, f"input of group '{name}':")
    for variable in group.vars:
        content, own, _ = table.lists(variable, picked, parents, f"input of group '{name}':")
        if not np.array_equal(own, offsets):
            raise _differ(name, first, variable, offsets, own, table)
        contents.append(content)
    starts = offsets[rows]
    counts = np.minimum(offsets[rows + 1] - starts, group.length).astype(np.int32)
    return pad(contents, starts, counts, group.length, [v.pad for v in group.vars.values()]), counts


def _differ(group: str, first: str, other: str, offsets: np.ndarray, own: np.ndarray, table: Table) -> UsageError:
    """Two variables of a group have lists of different length."""
    then = "put variables of different collections into different groups"
    where = f"{table.where}, group '{group}'"
    if len(offsets) != len(own):
        return UsageError(f"'{first}' and '{other}' are not lists of the same objects", where=where, then=then)
    k = int(np.argmax(np.diff(offsets) != np.diff(own)))
    numbers = f"list {k} has {offsets[k + 1] - offsets[k]} elements of '{first}' and {own[k + 1] - own[k]} of '{other}'"
    return UsageError(f"group '{group}' mixes lists of different length: {numbers}", where=where, then=then)


def _guard(recipe: Recipe, table: Table, group: Group, x: np.ndarray, parents: np.ndarray, bad: dict[str, int]) -> None:
    if x.size == 0 or (float(x.max()) <= DAMAGE and float(x.min()) >= -DAMAGE):  # false also for NaN
        return
    for k, variable in enumerate(group.vars):
        values = x[..., k].reshape(len(x), -1)
        finite = np.isfinite(values)
        where = f"{table.where}, branch '{variable}'"
        damaged = np.any(finite & (np.abs(np.where(finite, values, 0)) > DAMAGE), axis=1)
        if damaged.any():
            row = int(np.argmax(damaged))
            raise RunFailed(
                f"'{variable}' has values beyond {DAMAGE:g} in {int(damaged.sum())} rows, the first at entry {table.cluster.start + int(parents[row])}: "
                "this is what damaged baskets look like",
                where=where,
                then="copy the file again, or select such entries away if the values are real",
            )
        count = int(np.count_nonzero(~finite))
        if not count:
            continue
        bad[variable] = bad.get(variable, 0) + count
        if recipe.card.nan == "refuse":
            row = int(np.argmax(~finite.all(axis=1)))
            entry = table.cluster.start + int(parents[row])
            text = f" ({recipe.variables[variable].text})" if variable in recipe.variables else ""
            raise RunFailed(
                f"'{variable}'{text} has {count} values that are NaN or infinite, the first at entry {entry}",
                where=where,
                then="'nan: 0' in the card replaces NaN after normalisation (infinities are clipped); or select such entries away",
            )


def concatenate(parts: Sequence[Rows]) -> Rows:
    """Rows one after the other; at least one part."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    return Rows(
        x=Features(
            {name: np.concatenate([p.x.groups[name] for p in parts]) for name in first.x.groups},
            {name: np.concatenate([p.x.counts[name] for p in parts]) for name in first.x.counts},
        ),
        label=np.concatenate([p.label for p in parts]),
        weight=np.concatenate([p.weight for p in parts]),
        rate_weight=np.concatenate([p.rate_weight for p in parts]),
        sample=np.concatenate([p.sample for p in parts]),
        identity=np.concatenate([p.identity for p in parts]),
        object=np.concatenate([p.object for p in parts]),
        observers={name: np.concatenate([p.observers[name] for p in parts]) for name in first.observers},
        reference={name: np.concatenate([p.reference[name] for p in parts]) for name in first.reference},
    )
