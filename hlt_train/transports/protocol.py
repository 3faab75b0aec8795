"""What the processes of the mpi transport say to each other: one tag per kind of message, one contiguous buffer each.

Headers begin with the number of the session: after a recovery everybody begins a new one, and what was under way in the old one is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import IntEnum
from typing import Any

import numpy as np

from hlt_train.transports.dealing import Share
from hlt_train.transports.post import Parcel, Post, padded
from hlt_train.transports.program import Specs

__all__ = ["WORDS", "Mail", "Recovery", "Tag", "from_json", "handle", "size_of", "split_shares", "to_json", "unpack"]

WORDS = 12  # of a header


class Tag(IntEnum):
    """Kinds of messages; the header after the session's number, and the payload."""

    ROLE = 1  # clerk -> all: JSON, who is who and where to begin
    PUSH = 2  # worker -> shard: source, sequence, point, push, fetch, shard, clock, number of shares; shares then leaves
    ANSWER = 3  # shard -> worker: sequence, shard, clock; leaves
    PEER = 4  # worker -> worker: source, sequence, point, push; leaves
    FATES = 5  # shard 0 -> clerk: int64 of (source, sequence, fate, staleness, shares, (step, owner)...)
    REPORT = 6  # worker -> clerk: worker; JSON
    FINISHED = 7  # worker -> shards, clerk: worker, t
    ORDER = 8  # shard 0 -> other shards: kind (0 serve, 1 late, 2 nothing more before the pause of that number); int64 of (source, sequence)
    MEASURE = 9  # shard -> shard 0: shard; bytes of the measure
    TOTAL = 10  # shard 0 -> other shards: shard; bytes of the sum
    JOINS = 11  # worker -> shard: worker, shard
    WELCOME = 12  # shard -> worker: shard, clock; slice
    PARAMS = 13  # clerk -> shards (peers: workers): number of the request
    VECTOR = 14  # shard (peer) -> clerk: number, index; slice (a peer: its state)
    PAUSE = 15  # clerk -> all: number
    PAUSED = 16  # actor -> those it sends to: number, kind (0 worker, 1 shard), index: nothing more comes from me before GO
    SAVED = 17  # actor -> clerk: number, kind, index
    GO = 18  # clerk -> all: number
    WARM = 19  # worker 0 -> workers: the steps that it does alone are over
    DEATH = 20  # clerk -> all: worker
    FORGOTTEN = 21  # shard 0 -> clerk: worker
    TAKEOVER = 22  # clerk -> worker: JSON, sources
    LIMIT = 23  # clerk -> workers: t at which they wait
    STOP = 24  # clerk -> workers: no further batch
    END = 25  # clerk -> all: exit code; text
    ERROR = 26  # anyone -> clerk: text
    KNOWN = 27  # all -> all, after a recovery: JSON, the latest role that the sender knows
    ADDRESS = 28  # worker -> workers: JSON, where it receives datagrams
    READY = 29  # worker -> workers: worker; it has compiled what it needs


class Recovery(Exception):
    """The session cannot go on without a process that is dead, or the dead are to be replaced: leave what you do and recover."""


class Mail:
    """A post office as one session sees it: what belongs to an earlier session is dropped, what belongs to a later one is kept until that begins.

    Attributes:
        session: its number.
    """

    def __init__(self, post: Post) -> None:
        self.post = post
        self.session = -1
        self._early: list[Parcel] = []
        self._ready: list[Parcel] = []

    def begin(self, session: int) -> None:
        """From now on it is that session."""
        self.session = session
        kept, self._early, self._ready = self._early, [], []
        self._sort(kept)

    def send(self, to: int, tag: Tag, *header: int, payload: Any = None) -> None:
        """Send a message of this session."""
        self.post.send(to, tag, (self.session, *header), payload)

    def poll(self, timeout: float) -> list[Parcel]:
        """What has come for this session; see `Post.poll`."""
        self._sort(self.post.poll(0.0 if self._ready else timeout))
        found, self._ready = self._ready, []
        return found

    def keep(self, parcels: Iterable[Parcel]) -> None:
        """They come again with the next `poll`, before all others."""
        self._ready = [*parcels, *self._ready]

    def _sort(self, parcels: Iterable[Parcel]) -> None:
        for parcel in parcels:
            session = int(parcel.header[0])
            if session > self.session:
                self._early.append(parcel)
            elif session == self.session:
                self._ready.append(parcel)


def handle(parcel: Parcel, actors: Iterable[Any]) -> None:
    """Call `on_<tag>(parcel, *header)` of those that have it."""
    name = f"on_{Tag(parcel.tag).name.lower()}"
    words = [int(word) for word in parcel.header[1:]]
    for actor in actors:
        if (method := getattr(actor, name, None)) is not None:
            method(parcel, *words)


def to_json(content: Any) -> np.ndarray:
    """JSON as a payload."""
    return np.frombuffer(json.dumps(content).encode(), np.uint8)


def from_json(payload: np.ndarray) -> Any:
    """The inverse of `to_json`."""
    return json.loads(payload.tobytes())


def size_of(specs: Specs) -> int:
    """Bytes of a part, whose arrays lie as the post office lays them."""
    return sum(padded(int(np.prod(shape)) * dtype.itemsize) for shape, dtype in specs)


def unpack(payload: np.ndarray, specs: Specs) -> tuple[np.ndarray, ...]:
    """The arrays of a part that was sent as a list; views into `payload`."""
    parts = []
    place = 0
    for shape, dtype in specs:
        size = int(np.prod(shape)) * dtype.itemsize
        parts.append(payload[place : place + size].view(dtype).reshape(shape))
        place += padded(size)
    return tuple(parts)


def split_shares(payload: np.ndarray, count: int) -> tuple[tuple[Share, ...], np.ndarray]:
    """The shares in front of a payload, int64 (step, owner) each, and what follows them."""
    pairs = payload[: 16 * count].view(np.int64).reshape(-1, 2)
    return tuple((int(step), int(owner)) for step, owner in pairs), payload[padded(16 * count) :]
