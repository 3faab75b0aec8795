"""Golden vectors of the derived variables: branch values, and the float32 features that the feed makes of them with NumPy and Awkward.

`golden_features.bin`, little-endian, nothing between the parts; branches, lists and groups are those of the program in `features.json`:

    char[8]                  "HLTFEAT1"
    int64                    n, vectors
    int32   [n]              number of the object, only where the program's "object" is not null
    per collection (a list with "branches"): int32 [n], its elements
    per branch               its type [n], or for one with a list [sum of the elements of its list]; bool as one byte
    per group                scalars: float32 [n][n_vars], NaN for a variable that the caller gives
                             constituents that are computed: int32 [n] counts, then float32 [sum of the counts][n_vars]

Half of the vectors are entries of the validation split, as they are. In the others lists are empty, of one element, as long as a group, longer, and values are
replaced by NaN, infinities, zeros of both signs, subnormals, multiples of pi and their neighbours, limits of integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np

from hlt_train.data.assemble import values
from hlt_train.data.card import Card
from hlt_train.data.program import Kind, Program
from hlt_train.data.ragged import ragged
from hlt_train.data.read import Cluster
from hlt_train.data.recipe import Recipe
from hlt_train.data.table import Table
from hlt_train.files import write_bytes

__all__ = ["FILE", "FeatureVectors", "feature_vectors", "kinds_of", "write_feature_vectors"]

MAGIC = b"HLTFEAT1"
FILE = "golden_features.bin"
LIST = " objects"  # no branch is called so
_PI = np.float32(np.pi)
SPECIAL = np.array(
    [
        *(np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 1.17549435e-38, 3.4028235e38, 1e-30, 1e20, 1.0, -1.0, 0.5, 2.0, 30.0, -7.25),
        *(np.nextafter(sign * k * _PI, np.float32(to)) for k in (0.5, 1, 2, 3) for sign in (1, -1) for to in (np.inf, -np.inf)),
        *(sign * k * _PI for k in (0.5, 1, 2, 3) for sign in (1, -1)),
    ]
)


@dataclass(frozen=True, eq=False)
class FeatureVectors:
    """Branch values and the features that they give.

    Attributes:
        program: the program that they are for.
        object: int32 `[n]`, the number of the object; None where an entry is one example.
        columns: per branch of the program, `[n]` or the elements of all lists one after the other.
        elements: per list of the program int32 `[n]`; None for what a mask leaves of another list.
        x: per group of the program: float32 `[n, n_vars]` and None, or `[sum of counts, n_vars]` and int32 counts; None for constituents that the caller gives.
    """

    program: Program
    object: np.ndarray | None
    columns: tuple[np.ndarray, ...]
    elements: tuple[np.ndarray | None, ...]
    x: tuple[tuple[np.ndarray, np.ndarray | None] | None, ...]

    def __len__(self) -> int:  # vectors, not fields
        return next((len(part[0] if part[1] is None else part[1]) for part in self.x if part is not None), 0)


def kinds_of(columns: Mapping[str, Any]) -> dict[str, Kind]:
    """What each branch holds."""
    found = {}
    for name, column in columns.items():
        taken = ragged(column)
        found[name] = Kind(taken.depth, taken.content.dtype.name)
    return found


def feature_vectors(card: Card, program: Program, columns: Mapping[str, Any], *, special: int = 1000, seed: int = 0) -> FeatureVectors:
    """Take `columns` as they are, and `special` vectors made of them.

    Args:
        card: whose variables they are.
        program: of these variables.
        columns: branch -> NumPy array `[n]` or Awkward array of lists; all branches of the program.
        special: vectors with special values and lengths.
        seed: of what is drawn.
    """
    rng = np.random.default_rng(seed)
    taken = [ragged(columns[branch["name"]]) for branch in program.branches]
    n = len(columns[program.branches[0]["name"]]) if taken else 0
    lengths = {group.length or 1 for group in card.inputs.values()}
    made: list[np.ndarray] = []
    elements: list[np.ndarray | None] = []
    for k, one in enumerate(program.lists):
        if "where" in one:
            elements.append(None)
            continue
        first = next((t for t, branch in zip(taken, program.branches, strict=True) if branch["list"] == k), None)
        read = np.diff(first.offsets[0]) if first is not None else np.zeros(n, np.int64)
        usual = read if len(read) else np.array([3])
        choices = np.array([0, 1, 2, *(length + d for length in sorted(lengths) for d in (-1, 0, 1, 7))])
        drawn = np.where(rng.random(special) < 0.5, rng.choice(choices, special), rng.choice(usual, special))
        elements.append(np.concatenate([read, drawn]).astype(np.int32))
    for column, branch in zip(taken, program.branches, strict=True):
        own = elements[branch["list"]] if branch["list"] is not None else None
        size = special if own is None else int(own[n:].sum())
        made.append(np.concatenate([column.content, _draw(rng, column.content, size)]))
    object = None
    if program.object is not None:
        own = elements[program.object]
        assert own is not None
        full = np.flatnonzero(own > 0)
        made = [_rows(values, None if b["list"] is None else elements[b["list"]], full) for values, b in zip(made, program.branches, strict=True)]
        elements = [None if one is None else one[full] for one in elements]
        object = rng.integers(0, own[full]).astype(np.int32)
    return FeatureVectors(program, object, tuple(made), tuple(elements), tuple(_expect(card, program, made, elements, object)))


def _draw(rng: np.random.Generator, content: np.ndarray, size: int) -> np.ndarray:
    """Values of a branch, a third of them special."""
    kind = content.dtype
    usual = rng.choice(content, size) if len(content) else np.ones(size, kind)
    if kind == np.dtype(bool):
        return np.asarray(rng.random(size) < 0.5)
    if kind.kind == "f":
        drawn = rng.choice(SPECIAL, size)
    else:
        drawn = rng.choice(np.array([0, 1, 2, 3, np.iinfo(kind).min, np.iinfo(kind).max, np.iinfo(kind).max - 1], object), size)
    return np.where(rng.random(size) < 1 / 3, drawn.astype(kind), usual).astype(kind)


def _rows(values: np.ndarray, elements: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    """The values of these rows."""
    if elements is None:
        one: np.ndarray = values[rows]
        return one
    chosen = np.zeros(len(elements), bool)
    chosen[rows] = True
    kept: np.ndarray = values[np.repeat(chosen, elements)]
    return kept


def _expect(
    card: Card, program: Program, columns: Sequence[np.ndarray], elements: Sequence[np.ndarray | None], object: np.ndarray | None
) -> list[tuple[np.ndarray, np.ndarray | None] | None]:
    """What the feed makes of the branches."""
    n = len(object) if object is not None else next((len(one) for one in elements if one is not None), len(columns[0]) if columns else 1)
    lists: dict[str, Any] = {}
    for branch, column in zip(program.branches, columns, strict=True):
        own = None if branch["list"] is None else elements[branch["list"]]
        lists[branch["name"]] = column if own is None else ak.unflatten(column, own)
    recipe = Recipe(card, labelled=False)
    recipe.anchor = LIST
    objects = elements[program.object] if program.object is not None else np.ones(n, np.int64)
    assert objects is not None
    lists[LIST] = ak.unflatten(np.ones(int(objects.sum()), np.int8), objects)
    table = Table(recipe, "golden vectors", "branches", Cluster(0, 0, 0, n), lists)
    parents = np.arange(n)
    picked = parents if object is None else np.concatenate([[0], np.cumsum(objects)[:-1]]) + object
    x: list[tuple[np.ndarray, np.ndarray | None] | None] = []
    for group in program.groups:
        stated = card.inputs[group["name"]]
        if stated.length is None:
            found = np.full((n, len(group["values"])), np.nan, np.float32)
            for k, (variable, value) in enumerate(zip(stated.vars, group["values"], strict=True)):
                if value is not None:
                    with np.errstate(over="ignore", invalid="ignore"):
                        found[:, k] = table.per_row(variable, picked, parents, "input")
            x.append((found, None))
        elif group["list"] is None:
            x.append(None)
        else:
            padded, counts = values(group["name"], stated, table, picked, parents)
            assert counts is not None
            x.append((padded[np.arange(stated.length) < counts[:, None]], counts))
    return x


def write_feature_vectors(directory: Path, vectors: FeatureVectors) -> None:
    """Write golden_features.bin."""
    parts = [MAGIC, np.array([len(vectors)], "<i8").tobytes()]
    if vectors.object is not None:
        parts.append(vectors.object.astype("<i4").tobytes())
    parts += [one.astype("<i4").tobytes() for one in vectors.elements if one is not None]
    parts += [column.astype(column.dtype.newbyteorder("<")).tobytes() for column in vectors.columns]
    for part in vectors.x:
        if part is not None:
            features, counts = part
            parts += [] if counts is None else [counts.astype("<i4").tobytes()]
            parts.append(features.astype("<f4").tobytes())
    write_bytes(directory / FILE, b"".join(parts))
