"""The columns of one cluster, and the values that a card's names and expressions have on them, per entry or per candidate.

A *candidate* is what may become a row: an entry, or with `example: <Collection>` an object of an entry. Expressions see whole entries (lists of objects);
a value that follows the objects element by element is then taken apart, one element per candidate, and any other value is repeated for every object.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import awkward as ak
import numpy as np

from hlt_train.data.expressions import Expression
from hlt_train.data.ragged import Ragged, ragged
from hlt_train.data.read import Cluster, Column
from hlt_train.data.recipe import Recipe
from hlt_train.errors import RunFailed, UsageError

__all__ = ["Table"]


class Table(Mapping[str, Any]):
    """The columns of one cluster; as a mapping it gives branches and new variables per entry, each evaluated once."""

    def __init__(self, recipe: Recipe, path: str, tree: str, cluster: Cluster, columns: Mapping[str, Column]) -> None:
        self.recipe = recipe
        self.path = path
        self.tree = tree
        self.cluster = cluster
        self.entries = cluster.stop - cluster.start
        self._columns = columns
        self._values: dict[str, Any] = {}
        self._aligned = recipe.aligned(columns)
        self._evaluating: list[str] = []
        self._objects: np.ndarray | None = None
        if recipe.card.collection is not None:
            self._objects = ragged(columns[recipe.anchor or ""]).offsets[0]

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            if name in self.recipe.variables and name not in self._evaluating:
                self._evaluating.append(name)
                try:
                    self._values[name] = self.recipe.variables[name].evaluate(self)
                finally:
                    self._evaluating.pop()
            else:
                return self._columns[name]
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter({*self._columns, *self.recipe.variables})

    def __len__(self) -> int:
        return len({*self._columns, *self.recipe.variables})

    @property
    def where(self) -> str:
        """The cluster, for messages."""
        return f"{self.path}, tree '{self.tree}', entries {self.cluster.start} to {self.cluster.stop}"

    @property
    def candidates(self) -> int:
        """How many rows the cluster has before any selection."""
        return self.entries if self._objects is None else int(self._objects[-1])

    def parents(self) -> np.ndarray:
        """int64 `[candidates]`: the entry (counted within the cluster) of each candidate."""
        if self._objects is None:
            return np.arange(self.entries)
        return np.repeat(np.arange(self.entries), np.diff(self._objects))

    def object_index(self) -> np.ndarray:
        """int32 `[candidates]`: position of each candidate in its entry, 0 for event examples."""
        if self._objects is None:
            return np.zeros(self.entries, np.int32)
        position: np.ndarray = np.arange(self.candidates) - np.repeat(self._objects[:-1], np.diff(self._objects))
        return position.astype(np.int32)

    def branches(self) -> Mapping[str, Column]:
        """The columns as read."""
        return self._columns

    def per_entry(self, expression: Expression, role: str) -> np.ndarray:
        """The value of an expression for each entry; a list per entry is refused."""
        column = self._take(expression.evaluate(self), f"{role} '{expression.text}'")
        if column.depth:
            raise UsageError(f"{role} '{expression.text}' is a list per entry, not one value", where=self.where, then="reduce it: max(x), sum(x), nth(x, 0)")
        return column.content

    def per_row(self, what: str | Expression, picked: np.ndarray, parents: np.ndarray, role: str) -> np.ndarray:
        """One value per row: entry values are broadcast to objects.

        Args:
            what: a name or an expression.
            picked: the candidates that are rows.
            parents: their entries (within the cluster).
            role: what it is for, in messages.
        """
        column, per_object = self._column(what, role)
        if column.depth != int(per_object):
            text = what if isinstance(what, str) else what.text
            then = "give its group a 'length' to use it as constituents, or reduce it in new_variables: max(x), sum(x), nth(x, 0)"
            raise UsageError(f"{role} '{text}' is a list {'per object' if per_object else 'per entry'}, used as one value", where=self.where, then=then)
        values: np.ndarray = column.content[picked if per_object else parents]
        return values

    def lists(self, name: str, picked: np.ndarray, parents: np.ndarray, role: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Constituents: the flat content, the boundaries of its lists, and which list each row takes."""
        column, per_object = self._column(name, role)
        if per_object and column.depth == 2:
            return column.content, column.offsets[1], picked
        if not per_object and column.depth == 1:
            return column.content, column.offsets[0], parents
        kind = "one value per object" if per_object else "one value per entry" if column.depth == 0 else "a list of lists per entry"
        then = "a group with 'length' needs lists; put scalars into a group without 'length'"
        raise UsageError(f"{role} '{name}' is {kind}, not a list of constituents", where=self.where, then=then)

    def _column(self, what: str | Expression, role: str) -> tuple[Ragged, bool]:
        """A column, and whether its outermost lists are the objects of the collection."""
        if isinstance(what, str):
            column, follows = self._take(self[what], f"{role} '{what}'"), what in self._aligned
        else:
            column, follows = self._take(what.evaluate(self), f"{role} '{what.text}'"), what.follows(self._aligned)
        per_object = follows and column.depth >= 1
        if per_object and self._objects is not None and not np.array_equal(column.offsets[0], self._objects):
            text = what if isinstance(what, str) else what.text
            raise RunFailed(
                f"{role} '{text}' has another number of elements than '{self.recipe.anchor}', which counts the objects of '{self.recipe.card.collection}'",
                where=self.where,
                then="objects joined by an index branch cannot be used yet; otherwise the file is damaged",
            )
        return column, per_object

    def _take(self, value: Any, what: str) -> Ragged:
        if not isinstance(value, ak.Array) and np.ndim(value) == 0:
            return Ragged((), np.full(self.entries, value))
        try:
            return ragged(value)
        except TypeError as error:
            raise UsageError(f"{what} {error}", where=self.where) from error
