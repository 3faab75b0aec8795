"""What crosses between the rooms: features, batches, input and output descriptions. NumPy only; every NamedTuple here is also a JAX pytree.

Glossary. *entry*: one row of a tree. *row*: one example (an event, or one object of an event). *cluster*: the range of entries read at once. *block*: the
clusters shuffled together. *batch*: the rows of one step over all workers. *step*: one update. *dispatch*: the steps of one call into the device.
*epoch*: every row of the training split once. *actor*: whoever owns a random stream (worker k, server, data).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Batch", "Features", "Group", "Inputs", "Rows"]

Array = Any  # np.ndarray on the data side, jax.Array on the device side


class Features(NamedTuple):
    """The inputs of a network for a set of rows.

    Attributes:
        groups: name -> float32 `[n_rows, n_vars]` for a group of scalars, `[n_rows, length, n_vars]` for padded constituents.
        counts: name -> int32 `[n_rows]`, how many constituents are real; only for constituent groups. Constituents at index >= count are never read.
    """

    groups: dict[str, Array]
    counts: dict[str, Array]

    def take(self, rows: Any) -> Features:
        """Some of the rows: a slice, indices, or a mask `[n_rows]`."""
        return Features({name: x[rows] for name, x in self.groups.items()}, {name: n[rows] for name, n in self.counts.items()})


class Batch(NamedTuple):
    """What one worker trains on in one step.

    Attributes:
        x: normalised features.
        label: int32 `[n]`, class index.
        weight: float32 `[n]`, training weight; 0 for the rows that pad the last batch of an epoch.
        extra: name -> array `[n, ...]`, for instance cached teacher logits.
    """

    x: Features
    label: Array
    weight: Array
    extra: dict[str, Array]


class Rows(NamedTuple):
    """Examples as read: raw values before normalisation, with everything that rates, joins and predictions need.

    Attributes:
        x: raw float32 features (padded; NaN where the file has NaN or inf where it has inf).
        label: int32 `[n]`.
        weight: float64 `[n]`, training weight; enters only the loss and early stopping.
        rate_weight: float64 `[n]`, in units of the sample's normalisation (Hz once `trigger` has scaled it); enters only rates, efficiencies, errors.
        sample: int32 `[n]`, index into the card's samples.
        identity: int64 `[n, k]`, the identity expression's columns (default run, luminosityBlock, event).
        object: int32 `[n]`, index of the object in its event, 0 for event examples.
        observers: name -> `[n]`.
        reference: bool `[n]`-like columns or values needed by `trigger.reference` and `trigger.objects`, by name.
    """

    x: Features
    label: np.ndarray
    weight: np.ndarray
    rate_weight: np.ndarray
    sample: np.ndarray
    identity: np.ndarray
    object: np.ndarray
    observers: dict[str, np.ndarray]
    reference: dict[str, np.ndarray]

    def __len__(self) -> int:  # rows, not fields
        return len(self.label)

    def take(self, rows: slice) -> Rows:
        """Some of the rows; fields that were not read stay empty."""
        fields = {name: getattr(self, name)[rows] for name in ("label", "weight", "rate_weight", "sample", "identity", "object")}
        observers, reference = ({name: column[rows] for name, column in columns.items()} for columns in (self.observers, self.reference))
        return Rows(x=self.x.take(rows), **fields, observers=observers, reference=reference)


@dataclass(frozen=True)
class Group:
    """One input group after the card and the normalisation are resolved: all a model, the IR or an exporter needs to know of it.

    `z = clip((x - centre) * scale, lo, hi)` in float32, one operation at a time without contraction; NaN in x becomes `nan` in z. `length` None means scalars.
    """

    name: str
    variables: tuple[str, ...]
    length: int | None
    centre: np.ndarray  # float32 [n_vars]
    scale: np.ndarray  # float32 [n_vars]
    lo: np.ndarray  # float32 [n_vars], lower clip of z
    hi: np.ndarray  # float32 [n_vars], upper clip of z
    nan: np.ndarray  # float32 [n_vars], value of z for a NaN input
    available: str = "online"  # "online" | "offline"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row of this group."""
        return (len(self.variables),) if self.length is None else (self.length, len(self.variables))


@dataclass(frozen=True)
class Inputs:
    """Everything about a network's inputs and outputs that the card and the normalisation fix."""

    groups: tuple[Group, ...]
    classes: tuple[str, ...]

    def __getitem__(self, name: str) -> Group:
        return next(g for g in self.groups if g.name == name)
