"""Who works on what: the portions of data that a worker still has to do, and what becomes of them when it dies.

A *share* is (step, owner): the part of worker `owner` in the batch of a step, as `Stream` deals it. Every worker begins with its own shares, in the order of
the steps. When a worker dies, what it had left is split evenly among the survivors, each of which does the earliest of its shares next.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Deal", "Share", "Source", "deals", "inherit"]

Share = tuple[int, int]


class Source(NamedTuple):
    """Shares (next, owner), (next + stride, owner), ... below `stop`."""

    owner: int
    next: int
    stop: int
    stride: int = 1


class Deal:
    """The shares that a worker has still to do."""

    def __init__(self, sources: Iterable[Iterable[int]]) -> None:
        self.sources = [Source(*line) for line in sources]

    def peek(self) -> Share | None:
        """The next share, None when all are done."""
        self.sources = [s for s in self.sources if s.next < s.stop]
        return min(((s.next, s.owner) for s in self.sources), default=None)

    def pop(self) -> Share | None:
        """Take the next share."""
        share = self.peek()
        for k, s in enumerate(self.sources):
            if (s.next, s.owner) == share:
                self.sources[k] = s._replace(next=s.next + s.stride)
                break
        return share

    def skip(self, count: int) -> list[Share]:
        """Give up shares; returns them."""
        return [share for _ in range(count) if (share := self.pop()) is not None]

    def extend(self, sources: Iterable[Iterable[int]]) -> None:
        """Take over."""
        self.sources += [Source(*line) for line in sources]

    def left(self) -> int:
        """How many shares are left."""
        return sum(max(0, -(-(s.stop - s.next) // s.stride)) for s in self.sources)

    def document(self) -> list[list[int]]:
        """JSON-able; `Deal(document)` is its inverse."""
        return [list(s) for s in self.sources]


def deals(workers: int, steps: int, warm: int = 0) -> list[Deal]:
    """What each worker has to do in a run of `steps`; the first `warm` steps are worker 0's alone."""
    warm = min(warm, steps)
    first = Deal([(0, 0, steps), *((k, 0, warm) for k in range(1, workers) if warm)])
    return [first, *(Deal([(k, warm, steps)]) for k in range(1, workers))]


def inherit(dead: Deal, unfinished: Iterable[Share], heirs: list[int]) -> dict[int, list[Source]]:
    """Survivor -> what it takes over of a dead worker: its share of what was still to do, and of the shares whose results were never consumed."""
    found: dict[int, list[Source]] = {heir: [] for heir in heirs}
    n = len(heirs)
    for s in dead.sources:
        for k, heir in enumerate(heirs):
            part = Source(s.owner, s.next + k * s.stride, s.stop, s.stride * n)
            if part.next < part.stop:
                found[heir].append(part)
    for k, (step, owner) in enumerate(unfinished):
        found[heirs[k % n]].append(Source(owner, step, step + 1))
    return found
