"""Jagged columns as flat NumPy arrays with offsets, and the gather that pads them.

Padding is one gather: slot j of row i takes element `starts[i] + j`, and slots beyond the count take an extra last row that holds the filling. It is many
times faster than `ak.pad_none` with `ak.fill_none`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import awkward as ak
import numpy as np

__all__ = ["Ragged", "pad", "ragged"]

_AT_ONCE = 1024  # rows gathered at once: their elements stay in the cache


class Ragged(NamedTuple):
    """A column of nested lists: `offsets[k]` are the boundaries of the lists at level k, `content` the flat numbers. No offsets: one number per entry."""

    offsets: tuple[np.ndarray, ...]
    content: np.ndarray

    @property
    def depth(self) -> int:
        """0 for a number per entry, 1 for a list per entry, and so on."""
        return len(self.offsets)


def ragged(column: Any) -> Ragged:
    """Take a column apart without copying more than needed.

    Raises:
        TypeError: it holds strings, records or missing values.
    """
    if isinstance(column, np.ndarray):
        offsets = tuple(np.arange(0, int(np.prod(column.shape[: k + 2])) + 1, max(column.shape[k + 1], 1)) for k in range(column.ndim - 1))
        return Ragged(offsets, column.reshape(-1))
    layout = ak.to_layout(column)
    found: list[np.ndarray] = []
    while True:
        if layout.is_indexed and not layout.is_option:
            layout = layout.project()
        elif layout.is_list and layout.parameter("__array__") not in ("string", "bytestring"):
            layout = layout.to_ListOffsetArray64(True)
            found.append(np.asarray(layout.offsets.data))
            layout = layout.content[: int(found[-1][-1])]
        elif layout.is_numpy and layout.purelist_depth == 1:
            return Ragged(tuple(found), np.asarray(layout.data))
        elif layout.is_numpy:
            layout = layout.to_RegularArray()
        else:
            raise TypeError(f"holds {ak.type(column)}, not numbers")


def pad(contents: Sequence[np.ndarray], starts: np.ndarray, counts: np.ndarray, length: int, fill: Sequence[float]) -> np.ndarray:
    """Gather rows of equal length from flat columns that share their offsets.

    Args:
        contents: one flat array per variable.
        starts: int64 `[n]`, where each row starts in the contents; fastest in ascending order.
        counts: `[n]`, elements of each row, at most `length`.
        length: slots per row.
        fill: per variable, the value of the slots at index >= count.

    Returns:
        float32 `[n, length, n_variables]`.
    """
    x = np.empty((len(starts), length, len(contents)), np.float32)
    slots = np.arange(length)
    for begin in range(0, len(starts), _AT_ONCE):
        rows = slice(begin, begin + _AT_ONCE)
        first, number = starts[rows], counts[rows]
        low, high = int(first.min()), int((first + number).max())
        # One row per element, so that the gather copies whole rows; the last row is the filling. Only the elements between `low` and `high` are copied.
        table = np.empty((high - low + 1, len(contents)), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for k, content in enumerate(contents):
                table[:-1, k] = content[low:high]
        table[-1] = fill
        index = np.where(slots < number[:, None], (first - low)[:, None] + slots, high - low)
        table.take(index, axis=0, out=x[rows], mode="clip")
    return x
