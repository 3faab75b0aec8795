"""From object scores to event decisions: `max`, `nth(k)` or `sum` over the objects of an event that take part. Only event decisions have rates."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from hlt_train.errors import UsageError

__all__ = ["Grouping", "event_scores", "group_rows"]


class Grouping(NamedTuple):
    """Which rows make which event. event: int64 `[n_rows]`, 0..m-1 in order of first appearance; first: int64 `[m]`, the first row of each event."""

    event: np.ndarray
    first: np.ndarray


def group_rows(sample: np.ndarray, identity: np.ndarray) -> Grouping:
    """Rows with the same sample and identity (`[n]`, int64 `[n, k]`) belong to one event."""
    keys = np.concatenate([np.asarray(sample, np.int64)[:, None], np.asarray(identity, np.int64)], axis=1)
    order = np.lexsort(keys.T[::-1])
    ordered = keys[order]
    new = np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1)) if len(keys) else np.zeros(0, dtype=bool)
    number = np.empty(len(keys), dtype=np.int64)
    number[order] = np.cumsum(new) - 1
    first = np.full(int(new.sum()), len(keys), dtype=np.int64)
    np.minimum.at(first, number, np.arange(len(keys)))
    by_appearance = np.argsort(first, kind="stable")
    place = np.empty(len(first), dtype=np.int64)
    place[by_appearance] = np.arange(len(first))
    return Grouping(place[number], first[by_appearance])


def event_scores(scores: np.ndarray, grouping: Grouping, taking_part: np.ndarray, how: str) -> np.ndarray:
    """Object scores `[n_rows]` -> event scores `[m]` of the same type.

    Args:
        scores: float64 or int64.
        grouping: from `group_rows`.
        taking_part: bool `[n_rows]`, the objects that `trigger.objects` accepts.
        how: `max`; `nth(k)`, the k-th highest counted from 0 as in expressions, so that `nth(0)` is `max`; `sum`.

    An event with too few objects gets the lowest score there is (-inf, or the lowest integer), for `sum` as well: below every event that has enough.
    """
    lowest = -np.inf if scores.dtype.kind == "f" else np.iinfo(scores.dtype).min
    found = np.full(len(grouping.first), lowest, dtype=scores.dtype)
    event, score = grouping.event[taking_part], scores[taking_part]
    if how == "sum":
        some = np.bincount(event, minlength=len(found)) > 0
        total = np.zeros_like(found)
        np.add.at(total, event, score)
        found[some] = total[some]
        return found
    match = re.fullmatch(r"nth\(\s*(\d+)\s*\)", how.strip())
    if match is None and how != "max":
        raise UsageError(f"unknown event score '{how}'", where="trigger.event_score", then="write max, sum or nth(k)")
    k = int(match[1]) if match else 0
    order = np.lexsort((_descending(score), event))
    event, score = event[order], score[order]
    starts = np.flatnonzero(np.append(True, event[1:] != event[:-1])) if len(event) else np.zeros(0, dtype=np.int64)
    sizes = np.diff(np.append(starts, len(event)))
    enough = sizes > k
    found[event[starts[enough]]] = score[starts[enough] + k]
    return found


def _descending(score: np.ndarray) -> np.ndarray:
    """A key that sorts descending, also for the lowest integer, which has no negative."""
    place = np.empty(len(score), dtype=np.int64)
    place[np.argsort(score, kind="stable")[::-1]] = np.arange(len(score))
    return place
