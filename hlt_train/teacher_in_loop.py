"""The teacher on the rows of a batch, where its cached answers are not enough: of rows that were changed on the way, and of its hidden layers.

Cached answers (`hlt_train.teacher_logits`) are joined by identity, so that a teacher may read other inputs than its student. Here the teacher reads the batch,
so everything that it reads must be in it: the same groups and variables, made by the same expressions. Each network normalises the raw features for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hlt_train.combination import Mean
from hlt_train.data.card import Card
from hlt_train.data.dataset import Dataset
from hlt_train.errors import UsageError
from hlt_train.late_normalisation import normalised
from hlt_train.teachers import Teacher
from hlt_train.types import Features, Inputs

__all__ = ["Frozen", "frozen", "joint_logits"]

STEP = 4096  # rows of a call


@dataclass(frozen=True)
class Frozen:
    """A teacher that reads the raw features of its student's card.

    Attributes:
        network, inputs: of the teacher.
        columns: group -> places of its variables among those of the student's group.
        order: places of the student's classes among the teacher's logits.
    """

    network: Any
    inputs: Inputs
    columns: dict[str, np.ndarray]
    order: np.ndarray

    def reads(self, x: Features) -> Features:
        """Its normalised features from the student's raw ones."""
        groups = {name: jnp.asarray(x.groups[name])[..., places] for name, places in self.columns.items()}
        return normalised(self.inputs, Features(groups, {name: x.counts[name] for name in self.columns if name in x.counts}))

    def logits(self, x: Features) -> jax.Array:
        """float32 `[n, classes]`, in the student's order of classes."""
        found: jax.Array = jax.lax.stop_gradient(self.network(self.reads(x)))[:, self.order]
        return found

    def hidden(self, x: Features, layer: str) -> jax.Array:
        """float32 `[n, units]` of a hidden layer."""
        found: jax.Array = jax.lax.stop_gradient(self.network.trace(self.reads(x))[layer])
        return found

    def hidden_rows(self, dataset: Dataset, split: str, layer: str) -> np.ndarray:
        """The same for every row of a split, float32 `[rows, units]`, in batches of one size: the bits of a row do not depend on its neighbours."""
        compiled = jax.jit(lambda x: self.hidden(x, layer))
        parts = []
        for rows in dataset.iterate(split, step=STEP, columns="training"):
            missing = STEP - len(rows)
            x = jax.tree.map(lambda leaf, missing=missing: np.concatenate([leaf, np.zeros((missing, *leaf.shape[1:]), leaf.dtype)]), rows.x)
            parts.append(np.asarray(compiled(x))[: len(rows)])
        return np.concatenate(parts)


def joint_logits(teachers: Sequence[Frozen], weights: Sequence[float], how: Mean, x: Features) -> jax.Array:
    """As the cached answers are (`soft_targets`): the logits of one teacher, or log p of the mean distribution of several, float32 `[n, classes]`."""
    if len(teachers) == 1:
        return teachers[0].logits(x)
    log_p = jax.nn.log_softmax(jnp.stack([teacher.logits(x) for teacher in teachers]))
    share = np.array(weights, np.float32)[:, None, None] / np.float32(sum(weights))
    if how == "geometric":
        return jax.nn.log_softmax((share * log_p).sum(axis=0))
    return jax.nn.logsumexp(log_p, axis=0, b=share)


def frozen(teacher: Teacher, card: Card, inputs: Inputs, classes: Sequence[str], why: str) -> Frozen:
    """The teacher for rows of another card.

    Args:
        teacher: a run.
        card: of the student.
        inputs: of the student.
        classes: of the student, all of them the teacher's.
        why: what needs it, for the error.

    Raises:
        UsageError: the teacher reads something that the student's batches do not hold, or it is an ensemble of specialists.
    """
    loaded, theirs = teacher.run, teacher.card
    if loaded is None:
        what = f"{why} needs the teacher on every batch, and an ensemble answers by a minimisation for every row"
        raise UsageError(what, where=str(teacher.path), then="distil from its generalist, or without")
    mine = {g.name: g for g in inputs.groups}
    columns = {}
    for g in loaded.inputs.groups:
        own = mine.get(g.name)
        missing = g.variables if own is None else [v for v in g.variables if v not in own.variables]
        if own is None or missing or own.length != g.length:
            what = f"the group '{g.name}' of the teacher's inputs"
            if own is not None:
                what = f"'{missing[0]}'" if missing else f"'{g.name}' with {g.length} constituents"
            raise _other(f"{why} needs the teacher on every batch, but {what} is not in the inputs of card '{card.name}'")
        columns[g.name] = np.array([own.variables.index(v) for v in g.variables])
    used = [v for g in loaded.inputs.groups for v in g.variables]
    # what a variable is made of may be derived in turn
    used += [name for name in theirs.new_variables if name in card.new_variables]
    differing = [name for name in used if theirs.new_variables.get(name) != card.new_variables.get(name)]
    if differing or theirs.example != card.example:
        what = f"'{differing[0]}' is another expression there" if differing else f"its examples are of another kind ('{theirs.example}')"
        raise _other(f"{why} needs the teacher on every batch of card '{card.name}', but in the teacher's card {what}")
    order = np.array([list(theirs.labels.classes).index(c) for c in classes])
    return Frozen(loaded.model, loaded.inputs, columns, order)


def _other(what: str) -> UsageError:
    return UsageError(what, where="inputs", then="a student card with the teacher's inputs, or a teacher trained on the student's inputs")
