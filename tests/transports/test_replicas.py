"""Copies of a shard, one beside each worker: they serve the same rounds, in whatever order the messages of different workers come to them."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlt_train.strategies import SERVER
from hlt_train.transports.actors import Shard
from hlt_train.transports.program import Message, digest
from tests.messages import TRUTH, program


class Copies:
    """Workers that send each message to every copy, and go on when their own copy has served it; what one sends to another arrives in its order.

    steps: of each worker; then it says that it has finished.
    """

    def __init__(self, name: str, steps: list[int]) -> None:
        self.steps, n = steps, len(steps)
        self.logs: list[list[list[list[int]]]] = [[] for _ in steps]
        self.shards = [Shard(program(name, n), 0, log.append) for log in self.logs]
        self.done, self.finished = [0] * n, [set[int]() for _ in steps]
        self.ways = {(a, b): deque[Message | None]() for a in range(n) for b in range(n)}  # None: it has finished
        for k in range(n):
            self.send(k)

    def send(self, k: int) -> None:
        """What worker k does next."""
        step = self.done[k]
        body = np.random.default_rng([k, step]).normal(size=len(TRUTH)).astype(np.float32)
        message = Message(k, step, step, SERVER, True, True, np.array([step]), ((step, k),), [(body,)])
        for b in range(len(self.steps)):
            self.ways[k, b].append(message if step < self.steps[k] else None)

    def arrive(self, way: tuple[int, int]) -> None:
        """The next message from one worker reaches a copy."""
        a, b = way
        message, shard = self.ways[way].popleft(), self.shards[b]
        if message is None:
            self.finished[b].add(a)
        else:
            assert shard.offer(message) is None
        while found := shard.ready(len(self.steps) - len(self.finished[b]), self.finished[b]):
            if any(reply.to == b for reply in shard.serve(found, shard.measure(found)).replies):
                self.done[b] += 1
                self.send(b)

    def under_way(self) -> list[tuple[int, int]]:
        """Between whom."""
        return [way for way, messages in self.ways.items() if messages]


@pytest.mark.parametrize("name", ["sync", "average"])
@given(steps=st.lists(st.integers(1, 4), min_size=3, max_size=3), data=st.data())
@settings(max_examples=40)
def test_all_copies_serve_the_same_rounds(name: str, steps: list[int], data: st.DataObject) -> None:
    copies = Copies(name, steps)
    while ways := copies.under_way():
        copies.arrive(data.draw(st.sampled_from(ways)))
    assert copies.done == steps
    rounds = [[[k, t] for k in range(3) if t < steps[k]] for t in range(max(steps))]
    assert copies.logs == [rounds] * 3
    assert len({digest(shard.state) for shard in copies.shards}) == 1


def test_a_worker_that_is_ahead_waits_for_the_round_of_the_others() -> None:
    copies = Copies("sync", [2, 1, 1])
    for way in [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1)]:
        copies.arrive(way)
    copies.arrive((0, 1))  # its second message, before the first of worker 2
    assert copies.logs == [[[[0, 0], [1, 0], [2, 0]]], [], []]


def test_who_has_finished_still_counts_where_its_last_message_waits() -> None:
    copies = Copies("sync", [1, 1, 1])
    for way in [(0, 0), (1, 0), (2, 0), (0, 1), (0, 1), (1, 1)]:  # to copy 1: the last message of worker 0, and that it has finished; then its own
        copies.arrive(way)
    assert copies.logs[1] == []
