"""Workers and shards as state machines without input or output: a transport carries their messages, a log replays them.

A worker wants one thing at a time: the next batch, to exchange, or an answer. A shard is offered messages and serves them when enough have come. Both note
what they consume in the order in which they do, and the note is made before anything that depends on it is sent: so the notes of a killed process are whole.

With `wait=False` a worker goes on while its answer is under way, and waits for it at the next exchange point before it asks again: the exchange of one
interval is hidden behind the computation of the next, and the staleness stays bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Literal, NamedTuple

import numpy as np

from hlt_train.strategies import SERVER
from hlt_train.transports.dealing import Deal
from hlt_train.transports.program import Message, Program

__all__ = ["Fate", "Reply", "Served", "Shard", "Worker"]

Want = Literal["batch", "exchange", "answer", "done"]
Note = Callable[[Any], None]  # one JSON-able line of an actor's log


def _no_note(_line: Any) -> None:
    """For actors whose log nobody wants."""


class Reply(NamedTuple):
    """A shard's answer. clock: of the shard, after the message was served. fate: what became of the message."""

    to: int
    sequence: int
    shard: int
    clock: int
    part: tuple[np.ndarray, ...]


class Fate(NamedTuple):
    """What became of a message. fate: "applied", "late", or "fetched" where it did not push; staleness: in updates of the shard."""

    source: int
    sequence: int
    fate: str
    staleness: int
    shares: tuple[tuple[int, int], ...]


class Served(NamedTuple):
    """What a shard did with messages: their fates, and the replies that are wanted."""

    fates: list[Fate]
    replies: list[Reply]


class Worker:
    """A worker.

    Args:
        program: the strategy.
        index: of the worker.
        deal: what it has to do.
        note: its log: `[point, source, sequence]` for what it consumed, source -1 being the server's answer to its own message;
            `{"deal": sources}`, `{"t": batches, "takes over": sources}`, `{"joins": clocks}` and `{"t": batches, "ends": true}`.
        portions_limit: portions of the whole run, for rules whose server hands them out.

    Attributes:
        t: batches done.
        point: exchange points passed, each ask being one.
        pending: shares folded in since the last push.
        lost: shares given up since they were last collected: (share, "gated" | "late").
    """

    def __init__(self, program: Program, index: int, deal: Deal, note: Note = _no_note, portions_limit: int = 0) -> None:
        self.program, self.index, self.deal, self.note, self.portions_limit = program, index, deal, note, portions_limit
        self.rule = program.strategy
        self.state = program.worker(index)
        self.t = self.point = self.sequence = 0
        self.number = -1  # asks done at this exchange point; -1: between exchange points
        self.clock = np.zeros(program.shards, np.int64)
        self.awaiting: tuple[int, bool] | None = None  # (sequence, push) of the message whose answer has not come
        self.pending: list[tuple[int, int]] = []
        self.lost: list[tuple[tuple[int, int], str]] = []
        self.stopped = False
        self._running: tuple[tuple[int, int], Any] | None = None  # share and loss of the batch that has begun
        self._asked: Any = None  # the ask that has begun

    @property
    def wants(self) -> Want:
        """What the worker needs next."""
        between = self.number < 0
        if self.awaiting is not None and (self.rule.wait or not between or self._over()):
            return "answer"
        if between:
            return "done" if self._over() else "batch"
        return "exchange"

    def _over(self) -> bool:
        if self.stopped:
            return True
        if self.rule.batch is None:
            return self.deal.peek() is None
        return self.program.portion(self.state) >= self.portions_limit

    def share(self) -> tuple[int, int] | None:
        """The data of the batch that the worker wants: (step, owner), or (portion, -1) for a portion that the server handed out; None: idle this time."""
        if self.rule.batch is None:
            return self.deal.peek()
        portion = self.program.portion(self.state)
        return None if portion < 0 else (portion, -1)

    def evaluate(self, batch: Any) -> float:
        """Do the batch of `share()`; `batch` is its data. Returns the loss."""
        self.begin_batch(batch)
        return self.end_batch()

    def begin_batch(self, batch: Any) -> None:
        """`evaluate` without waiting for the device. Before `end_batch`, `messages` may tell what was asked before it."""
        share = self.share() if self.rule.batch is not None else self.deal.pop()
        assert share is not None
        self.state, loss = self.program.begin(self.state, batch, self.index, self.t)
        self._running = share, loss

    def end_batch(self) -> float:
        """Wait for the batch that was begun. Returns the loss."""
        assert self._running is not None
        (share, loss), self._running = self._running, None
        found = float(loss)
        self.pending.append(share)
        self._done()
        return found

    def idle(self) -> None:
        """Pass a batch without data."""
        self._done()

    def _done(self) -> None:
        self.t += 1
        if self.t % self.rule.every == 0 or self._last():
            self.number = 0

    def _last(self) -> bool:
        """Whether this was the last batch: what is left is exchanged although the interval is not full."""
        return self.rule.batch is None and self.deal.peek() is None

    def peers(self, messages: list[Message]) -> None:
        """Consume what peers have sent; at an exchange point, before the ask."""
        for message in messages:
            self.note([self.point, message.source, message.sequence])
            self.state = self.program.peer(self.state, message.parts[0], message.push, message.source)

    def ask(self) -> list[Message]:
        """One ask of an exchange point: the messages to send."""
        self.begin_ask()
        return self.messages()

    def begin_ask(self) -> None:
        """`ask` without waiting for the device."""
        self.state, self._asked = self.program.begin_ask(self.state, self.index, self.t - 1, self.number)

    @property
    def asking(self) -> bool:
        """Whether an ask has begun whose messages nobody has taken."""
        return self._asked is not None

    @property
    def goes_on(self) -> bool:
        """Whether the next batch may begin before it is known what the ask that has begun came to."""
        return self.rule.asks == 1 and (self.rule.peers or not self.rule.wait) and not self._over()

    def messages(self) -> list[Message]:
        """The messages of the ask that was begun."""
        outs, self._asked = self.program.asked(self._asked), None
        messages = []
        for push, fetch, to, parts in outs:
            if not (push or fetch):
                continue
            carried = tuple(self.pending) if push else ()
            if push and to == SERVER:
                self.pending = []
            messages.append(Message(self.index, self.sequence, self.point, to, push, fetch, self.clock.copy(), carried, parts))
            if fetch:
                self.awaiting = (self.sequence, push)
            self.sequence += 1
        if self.rule.gates and self.pending:
            self.lost += [(share, "gated") for share in self.pending]
            self.pending = []
        self.point += 1
        self.number += 1
        if self.number == self.rule.asks:
            self.number = -1
        return messages

    def answer(self, replies: list[Reply]) -> None:
        """The answers of all shards to the awaited message, in the order of the shards."""
        assert self.awaiting is not None
        sequence, push = self.awaiting
        assert all(reply.sequence == sequence for reply in replies)
        self.note([self.point, SERVER, sequence])
        staleness = replies[0].clock - int(self.clock[0]) - int(push)
        before = int(self.clock[0])
        self.clock = np.array([reply.clock for reply in replies], np.int64)
        self.state = self.program.take(self.state, [reply.part for reply in replies], push, max(0, staleness), self.index)
        self.awaiting = None
        if self.rule.late == "drop" and (missed := int(self.clock[0]) - before - 1) > 0:
            self.t += missed  # rounds that closed without this worker: it goes on at the open one
            self.lost += [(share, "late") for share in self.deal.skip(missed)]

    def begin(self) -> None:
        """Note what there is to do at first: a run that is made longer later keeps what it exchanged at its first end."""
        self.note({"deal": self.deal.document()})

    def take_over(self, sources: Iterable[Iterable[int]]) -> None:
        """Inherit shares: of a dead worker, or its own of a run that was made longer."""
        self.note({"t": self.t, "takes over": [list(s) for s in sources]})
        self.deal.extend(sources)

    def join(self, slices: Sequence[np.ndarray], clocks: Sequence[int], fresh: Sequence[int] | None = None) -> None:
        """Begin at the server's present parameters: after the steps that worker 0 did alone, or in the place of a worker that died.

        fresh: of a replacement: (batches done by its predecessor, first number of its messages).
        """
        if fresh is None:
            self.note({"joins": list(clocks)})
        else:
            self.note({"joins": list(clocks), "fresh": list(fresh), "deal": self.deal.document()})
            self.t, self.sequence = fresh
            self.number, self.awaiting, self.pending, self.lost = -1, None, [], []
        self.state = self.program.worker(self.index, np.concatenate(slices))
        self.clock = np.array(clocks, np.int64)

    def end(self) -> None:
        """Nothing is left to do."""
        self.note({"t": self.t, "ends": True})

    def unfinished(self) -> list[tuple[int, int]]:
        """Shares whose results nobody has yet."""
        return list(self.pending)

    def frozen(self) -> dict[str, Any]:
        """The state, for `freeze`."""
        held = {name: getattr(self, name) for name in ("t", "point", "sequence", "number", "clock", "awaiting", "pending", "lost", "stopped")}
        return {**held, "deal": self.deal.document(), "state": self.program.leaves(self.state)}

    def thawed(self, content: dict[str, Any]) -> None:
        """Back to a frozen state."""
        for name, value in content.items():
            if name not in ("deal", "state"):
                setattr(self, name, value)
        self.deal = Deal(content["deal"])
        self.state = self.program.worker_from(content["state"])


class Shard:
    """A server shard. The coordinator of `order="all"` is shard 0: its order is that of all.

    Args:
        program: the strategy.
        index: of the shard.
        note: its log, a line per serve: `[[source, sequence], ...]` in the order in which they counted, or `{"late": [source, sequence]}`.
    """

    def __init__(self, program: Program, index: int, note: Note = _no_note) -> None:
        self.program, self.index, self.note = program, index, note
        self.rule = program.strategy
        self.state = program.server(index)
        self.clock = 0
        self.waiting: list[Message] = []
        self.last: tuple[np.ndarray, ...] | None = None  # the answer of the last closed round

    def offer(self, message: Message) -> Served | None:
        """A message has come. A late one is answered at once; the others wait until `ready`."""
        if self.is_late(message):
            return self.refuse(message)
        self.waiting.append(message)
        return None

    def is_late(self, message: Message) -> bool:
        """Whether the message belongs to a closed round, and the rule drops those."""
        return self.rule.late == "drop" and int(message.clock[self.index]) < self.clock

    def refuse(self, message: Message) -> Served:
        """Count a late message, and answer it with the closed round's answer."""
        assert self.last is not None
        self.note({"late": [message.source, message.sequence]})
        replies = [Reply(message.source, message.sequence, self.index, self.clock, self.last)] if message.fetch else []
        return Served([Fate(message.source, message.sequence, "late", self.clock - int(message.clock[self.index]), message.shares)], replies)

    def ready(self, live: int, finished: AbstractSet[int]) -> list[Message]:
        """The messages to serve now, in the order that counts; empty: not enough yet.

        A round of a barrier takes one message of a worker. Where several processes have a copy of the shard, a worker that has its answer from another copy is
        ahead of this one: its message for the next round, or its word that it has finished, may come before another's message for this round.

        Args:
            live: workers that may still send.
            finished: workers that have said that they do not.
        """
        waiting, quorum = self.waiting, self.rule.messages(live)
        if len(waiting) < quorum:
            return []
        if self.rule.quorum <= 0:
            first: dict[int, Message] = {}
            for message in waiting:
                first.setdefault(message.source, message)
            waiting, quorum = list(first.values()), self.rule.messages(live + len(first.keys() & finished))
            if len(waiting) < quorum:
                return []
        chosen = waiting[:quorum]
        return sorted(chosen, key=lambda m: (m.source, m.sequence)) if self.rule.quorum != 1 else chosen

    def measure(self, messages: list[Message]) -> Any:
        """This shard's part of what `serve` is told; () for rules that measure nothing."""
        return self.program.measure(self.state, messages, self.index, self.clock) if self.program.measures else ()

    def serve(self, messages: list[Message], measured: Any) -> Served:
        """Serve messages that have been offered; those of the round that are still waiting become late where the rule drops them."""
        served = {(m.source, m.sequence) for m in messages}
        self.waiting = [m for m in self.waiting if (m.source, m.sequence) not in served]
        self.note([[m.source, m.sequence] for m in messages])
        before = self.clock
        self.state, parts = self.program.serve(self.state, messages, self.index, before, measured)
        pushed = any(m.push for m in messages)
        self.clock += int(pushed)
        self.last = parts[0]
        fates = [Fate(m.source, m.sequence, "applied" if m.push else "fetched", before - int(m.clock[self.index]), m.shares) for m in messages]
        replies = [Reply(m.source, m.sequence, self.index, self.clock, part) for m, part in zip(messages, parts, strict=True) if m.fetch]
        late = [m for m in self.waiting if self.is_late(m)]
        self.waiting = [m for m in self.waiting if not self.is_late(m)]
        for message in late:
            more = self.refuse(message)
            fates += more.fates
            replies += more.replies
        return Served(fates, replies)

    def forget(self, worker: int) -> None:
        """Drop what a dead worker had sent and nobody served."""
        self.waiting = [m for m in self.waiting if m.source != worker]

    def welcome(self, worker: int) -> tuple[np.ndarray, int]:
        """This shard's slice of the present parameters, and its clock, for a worker that joins."""
        self.note({"joins": worker})
        return self.program.slice(self.state), self.clock

    def frozen(self) -> dict[str, Any]:
        """The state, for `freeze`."""
        return {"clock": self.clock, "waiting": self.waiting, "last": self.last, "state": self.program.leaves(self.state)}

    def thawed(self, content: dict[str, Any]) -> None:
        """Back to a frozen state."""
        self.clock, self.waiting, self.last = content["clock"], content["waiting"], content["last"]
        self.state = self.program.server_from(content["state"], self.index)
