"""What a card asks of a tree: which branches are read for which purpose, and how names become values per row.

A `Recipe` is the card's expressions parsed once, with its new variables resolved; `table.py` evaluates them on the columns of a cluster.
"""

from __future__ import annotations

from collections.abc import Iterable

from hlt_train.data.card import SPLITS, Card
from hlt_train.data.expressions import Expression, parse
from hlt_train.data.read import Tree
from hlt_train.errors import UsageError, nearest

__all__ = ["Recipe"]


class Recipe:
    """The parsed expressions of a card.

    Attributes:
        variables: the new variables.
        index_names, training_names, all_names: names needed to count and split rows, to train, and for everything.
    """

    def __init__(self, card: Card, *, labelled: bool = True) -> None:
        self.card = card
        self.labelled = labelled
        self.variables: dict[str, Expression] = {name: parse(text) for name, text in card.new_variables.items()}
        self.identity = [parse(text) for text in card.identity]
        self.selection = _optional(card.selection)
        self.sample_selections = [_optional(sample.selection) for sample in card.samples.values()]
        self.object_selection = _optional(card.object_selection)
        self.label = _optional(card.labels.expression) if labelled else None
        self.weight = parse(card.weights.expression if labelled else "1")
        self.rate_weight = parse(card.trigger.rate_weight if card.trigger else "1")
        self.observers = list(card.observers)
        self.reference = sorted(card.trigger.columns) if card.trigger else []
        self.splits: list[Expression | None] = [None] * len(SPLITS)
        if card.splits.by == "expression":
            self.splits = [_optional(getattr(card.splits, split)) for split in SPLITS]
        self.anchor: str | None = None

        inputs = [name for group in card.inputs.values() for name in group.vars]
        chosen = _names(self.selection, *self.sample_selections, self.object_selection, *self.splits)
        learned = _names(self.label, self.weight)
        self.index_names: frozenset[str] = frozenset(chosen | learned | _names(*self.identity))
        self.training_names: frozenset[str] = frozenset({*inputs, *learned})
        extra = {*self.observers, *self.reference}
        self.all_names: frozenset[str] = frozenset({*self.training_names, *_names(self.rate_weight, *self.identity), *extra})

    def bind(self, tree: Tree, sample: str) -> None:
        """Check that a tree has every branch that the card needs, of a numeric type; the first one fixes the collection's anchor branch.

        Raises:
            UsageError: a branch is missing (with the nearest names) or is not numeric.
        """
        if self.card.collection is not None:
            self._bind_collection(tree, sample)
        for name in sorted(self.branches(self.index_names | self.all_names, tree)):
            where = f"{tree.path}, tree '{tree.name}', sample '{sample}'"
            if name not in tree:
                users = self._users(name)
                raise UsageError(f"branch '{name}' is missing ({users})", where=where, near=nearest(name, (*tree.names, *self.variables)))
            branch = tree.branch(name)
            if branch.dtype is None:
                raise UsageError(f"branch '{name}' holds {branch.text}, not numbers ({self._users(name)})", where=where, then=f"hlt-train inspect {tree.path}")

    def _bind_collection(self, tree: Tree, sample: str) -> None:
        prefixes = (f"{self.card.collection}_", f"{self.card.collection}.")
        found = [name for name in tree.names if name.startswith(prefixes)]
        if self._anchor_missing(tree):
            needed = self.branches(self.index_names | self.all_names, tree)
            lists = [n for n in sorted(found, key=lambda n: (n not in needed, found.index(n))) if tree.branch(n).depth >= 1]
            if not lists:
                collections = (
                    sorted({name.split("_")[0] for name in tree.names if "_" in name and tree.branch(name).depth == 1}) if len(tree.names) < 300 else []
                )
                near = nearest(str(self.card.collection), collections or sorted({n.split("_")[0] for n in tree.names}))
                what = f"no collection '{self.card.collection}': no list branch starts with '{prefixes[0]}'"
                raise UsageError(what, where=f"{tree.path}, tree '{tree.name}', sample '{sample}'", near=near)
            self.anchor = lists[0]

    def _anchor_missing(self, tree: Tree) -> bool:
        return self.anchor is None or self.anchor not in tree

    def _users(self, name: str) -> str:
        derived = [variable for variable, expression in self.variables.items() if name in expression.names]
        return f"needed by new variable '{derived[0]}'" if derived else "needed by the card"

    def branches(self, names: Iterable[str], tree: Tree) -> frozenset[str]:
        """The branches behind these names: new variables are followed to the branches that they need. A new variable hides a branch of the same name."""
        found: set[str] = set()
        for name in names:
            self._follow(name, found, (), tree)
        if self.anchor is not None:
            found.add(self.anchor)
        return frozenset(found)

    def _follow(self, name: str, found: set[str], chain: tuple[str, ...], tree: Tree) -> None:
        if name not in self.variables or name in chain[-1:]:
            if name in self.variables and name not in tree:  # `x: "x + 1"` may refine a branch x, but there is none
                raise UsageError(f"new variable '{name}' is defined by itself", where=f"new_variables.{name}")
            found.add(name)
            return
        if name in chain:
            raise UsageError(f"new variables form a circle: {' -> '.join((*chain, name))}", where=f"new_variables.{name}")
        for inner in self.variables[name].names:
            self._follow(inner, found, (*chain, name), tree)

    def aligned(self, branches: Iterable[str]) -> frozenset[str]:
        """Names with one element per object of the example's collection; new variables included that use such names element by element."""
        if self.card.collection is None:
            return frozenset()
        found = {name for name in branches if name.startswith((f"{self.card.collection}_", f"{self.card.collection}."))}
        while True:
            more = {name for name, e in self.variables.items() if name not in found and e.follows(frozenset(found))}
            if not more:
                return frozenset(found)
            found |= more


def _optional(text: str | None) -> Expression | None:
    return None if text is None else parse(text)


def _names(*expressions: Expression | None) -> set[str]:
    return {name for e in expressions if e is not None for name in e.names}
