"""The shards of a process: the messages that reach them, one order for all where the rule wants it, and their states at a pause."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hlt_train.strategies import SERVER
from hlt_train.transports.actors import Served, Shard
from hlt_train.transports.post import Parcel
from hlt_train.transports.program import Message, Specs
from hlt_train.transports.protocol import Recovery, Tag, split_shares, unpack

if TYPE_CHECKING:
    from hlt_train.transports.mpi import Crew

__all__ = ["FATES", "ShardDesk"]

FATES = ("applied", "late", "fetched")
SERVE, LATE, PAUSE = range(3)  # kinds of orders
MOST = 2000  # numbers of one message of fates


class Following:
    """A shard that serves in the order of shard 0.

    Attributes:
        arrived: messages that no order named yet.
        orders: (kind, messages) that have not been followed yet.
        serving: the messages whose total measure is awaited.
    """

    def __init__(self) -> None:
        self.arrived: dict[tuple[int, int], Message] = {}
        self.orders: list[tuple[int, list[tuple[int, int]]]] = []
        self.serving: list[Message] | None = None


class ShardDesk:
    """Hosts shards.

    Args:
        crew: the process.
        hosted: which ones.
    """

    def __init__(self, crew: Crew, hosted: Sequence[int]) -> None:
        self.crew, self.mail, self.role, self.program, self.rule = crew, crew.mail, crew.role, crew.program, crew.program.strategy
        self._one_order = self.rule.order == "all" and self.program.shards > 1
        self._counts = self.role.shards[hosted[0]] == crew.post.rank  # log, fates and state of a replica that is not the first are nobody's business
        self.shards: dict[int, Shard] = {}
        self._following: dict[int, Following] = {}
        for k in hosted:
            self.shards[k] = shard = Shard(self.program, k, crew.journals.note("shard", k)) if self._counts else Shard(self.program, k)
            more = crew.restore("shard", k, shard, logs=self._counts)
            shard.waiting = [m for m in shard.waiting if m.source in self.role.workers]
            self._following[k] = Following()
            self._following[k].arrived = {pair: m for pair, m in more.get("arrived", {}).items() if m.source in self.role.workers}
        self._finished: set[int] = set()
        self._measures: dict[int, Any] = {}
        self._serving: list[Message] | None = None  # by shard 0, which waits for the measures of the others
        self._fates: list[int] = []
        self._fates_sent = time.monotonic()
        self._markers: dict[int, set[int]] = {}  # number of a pause -> workers that send nothing more before its end
        self._ordered: set[tuple[int, int]] = set()  # (number, shard): shard 0 orders nothing more before the end of that pause
        self._pauses: set[int] = set()
        self._saved: set[tuple[int, int]] = set()
        self._snapshots = {k: shard.clock * self.rule.every // crew.steps_per_epoch for k, shard in self.shards.items()}
        self._specs: dict[int, Specs] = {}

    def rehearse(self) -> None:
        """Compile what serving needs, while the workers compile theirs."""
        count = self.rule.messages(len(self.role.workers))
        for k in self.shards:
            self.program.rehearse_shard(k, count)

    # Messages.

    def on_push(self, parcel: Parcel, source: int, sequence: int, point: int, push: int, fetch: int, shard: int, clock: int, count: int) -> None:
        """A worker's message."""
        if source not in self.crew.live:
            return
        self._finished.discard(source)
        if shard not in self._specs:
            self._specs[shard] = self.program.body_specs(shard)
        shares, rest = split_shares(parcel.payload, count)
        parts: list[Any] = [()] * self.program.shards
        parts[shard] = unpack(rest, self._specs[shard])
        clocks = np.full(self.program.shards, clock, np.int64)
        message = Message(source, sequence, point, SERVER, bool(push), bool(fetch), clocks, shares, parts)
        if self._one_order and shard != 0:
            self._following[shard].arrived[source, sequence] = message
            self._follow(shard)
            return
        mine = self.shards[shard]
        if (served := mine.offer(message)) is not None:
            self._served(mine, served)
        self._serve_ready()

    def _serve_ready(self) -> None:
        """Serve while there is enough to serve; with one order for all, shard 0 decides."""
        live = len(self.crew.live - self._finished)
        for k, shard in self.shards.items():
            if self._one_order and k != 0:
                continue
            while self._serving is None and (messages := shard.ready(live, self._finished)):
                self._serve(shard, messages)

    def _serve(self, shard: Shard, messages: list[Message]) -> None:
        if not self._one_order:
            self._served(shard, shard.serve(messages, shard.measure(messages)))
            return
        if not self.program.measures:
            self._order(SERVE, [(m.source, m.sequence) for m in messages])
            self._served(shard, shard.serve(messages, ()))
            return
        self._serving = messages
        self._measures = {0: shard.measure(messages)}
        self._order(SERVE, [(m.source, m.sequence) for m in messages])
        self._total()

    # One order for all shards.

    def _order(self, kind: int, pairs: Sequence[tuple[int, int]]) -> None:
        payload = np.array(pairs, np.int64)
        for k in range(1, self.program.shards):
            self.mail.send(self.role.shards[k], Tag.ORDER, kind, k, payload=payload)

    def on_order(self, parcel: Parcel, kind: int, shard: int) -> None:
        """What shard 0 decided."""
        self._following[shard].orders.append((kind, [(int(a), int(b)) for a, b in parcel.payload.view(np.int64).reshape(-1, 2)]))
        self._follow(shard)

    def _follow(self, shard: int) -> None:
        """Do the next orders of shard 0 whose messages are here."""
        mine, found = self.shards[shard], self._following[shard]
        while found.serving is None and found.orders:
            kind, pairs = found.orders[0]
            if kind == PAUSE:
                self._ordered.add((pairs[0][0], shard))
                found.orders.pop(0)
                self._save_if_quiet()
                continue
            missing = [pair for pair in pairs if pair not in found.arrived]
            if missing:
                if any(source not in self.crew.live for source, _ in missing):
                    raise Recovery(f"shard {shard} never got a message of a dead worker that shard 0 had served")
                return
            found.orders.pop(0)
            messages = [found.arrived.pop(pair) for pair in pairs]
            if kind == LATE:
                for message in messages:
                    self._served(mine, mine.refuse(message))
                continue
            mine.waiting += messages
            if self.program.measures:
                found.serving = messages
                self.mail.send(self.role.shards[0], Tag.MEASURE, shard, payload=np.asarray(mine.measure(messages)))
                return
            self._served(mine, mine.serve(messages, ()))

    def on_measure(self, parcel: Parcel, shard: int) -> None:
        """Another shard's part of the measure."""
        like = np.asarray(self._measures[0])
        self._measures[shard] = parcel.payload[: like.nbytes].view(like.dtype).reshape(like.shape)
        self._total()

    def _total(self) -> None:
        """When every shard's measure is here: their sum, in the order of the shards, to all; then serve."""
        if len(self._measures) < self.program.shards or self._serving is None:
            return
        total = self._measures[0]
        for k in range(1, self.program.shards):
            total = total + self._measures[k]
        for k in range(1, self.program.shards):
            self.mail.send(self.role.shards[k], Tag.TOTAL, k, payload=np.asarray(total))
        messages, self._serving = self._serving, None
        self._served(self.shards[0], self.shards[0].serve(messages, total))
        self._serve_ready()
        self._save_if_quiet()

    def on_total(self, parcel: Parcel, shard: int) -> None:
        """The sum of all measures."""
        mine, found = self.shards[shard], self._following[shard]
        messages, found.serving = found.serving, None
        assert messages is not None
        like = np.asarray(mine.measure(messages))
        self._served(mine, mine.serve(messages, parcel.payload[: like.nbytes].view(like.dtype).reshape(like.shape)))
        self._follow(shard)

    # What became of messages.

    def _served(self, shard: Shard, served: Served) -> None:
        """Send the answers, and note the fates for the clerk."""
        for reply in served.replies:
            rank = self.role.workers.get(reply.to)
            if rank is not None and reply.to in self.crew.live and (not self.role.replicated or rank == self.crew.post.rank):
                self.mail.send(rank, Tag.ANSWER, reply.sequence, reply.shard, reply.clock, payload=list(reply.part))
        if not self._counts:
            return
        self._snapshot(shard)
        if shard.index != 0:
            return
        late = [(fate.source, fate.sequence) for fate in served.fates if fate.fate == "late"]
        if late and self._one_order:
            self._order(LATE, late)
        for fate in served.fates:
            numbers = [number for share in fate.shares for number in share]
            self._fates += [fate.source, fate.sequence, FATES.index(fate.fate), fate.staleness, len(fate.shares), *numbers]
        if len(self._fates) > MOST:
            self._send_fates()

    def _snapshot(self, shard: Shard) -> None:
        """A barrier's parameters at the end of an epoch, for the clerk to validate: exactly those, whenever it looks."""
        epochs = shard.clock * self.rule.every // self.crew.steps_per_epoch
        if self.rule.quorum == 0 and epochs > self._snapshots[shard.index]:
            self._snapshots[shard.index] = epochs
            self.mail.send(self.role.clerk, Tag.VECTOR, -epochs, shard.index, payload=self.program.slice(shard.state))

    def report_if_due(self) -> None:
        """Tell the clerk now and then."""
        if self._fates and time.monotonic() - self._fates_sent > self.crew.report_every / 2:
            self._send_fates()

    def _send_fates(self) -> None:
        if self._fates:
            self.mail.send(self.role.clerk, Tag.FATES, payload=np.array(self._fates, np.int64))
            self._fates = []
        self._fates_sent = time.monotonic()

    def on_params(self, _parcel: Parcel, number: int) -> None:
        """The clerk wants the parameters."""
        if not self._counts:
            return
        self._send_fates()
        for k, shard in self.shards.items():
            self.mail.send(self.role.clerk, Tag.VECTOR, number, k, payload=self.program.slice(shard.state))

    # Workers that come and go.

    def on_joins(self, parcel: Parcel, worker: int, shard: int) -> None:
        """A worker begins at the present parameters."""
        part, clock = self.shards[shard].welcome(worker)
        self.mail.send(parcel.source, Tag.WELCOME, shard, clock, payload=part)

    def on_finished(self, _parcel: Parcel, worker: int, _t: int) -> None:
        """A worker sends nothing more: no round waits for it."""
        self._finished.add(worker)
        self._serve_ready()

    def on_death(self, _parcel: Parcel, worker: int) -> None:
        """Forget what a dead worker had sent and nobody served."""
        for k, shard in self.shards.items():
            shard.forget(worker)
            found = self._following[k]
            named = {pair for _, pairs in found.orders for pair in pairs}
            found.arrived = {pair: m for pair, m in found.arrived.items() if m.source != worker or pair in named}
            self._follow(k)
        self._serve_ready()
        if 0 in self.shards and self._counts:
            self._send_fates()
            self.mail.send(self.role.clerk, Tag.FORGOTTEN, worker)
        self._save_if_quiet()

    # Pauses.

    def on_pause(self, _parcel: Parcel, number: int) -> None:
        """A checkpoint is to be written."""
        self._pauses.add(number)
        self._save_if_quiet()

    def on_paused(self, _parcel: Parcel, number: int, kind: int, index: int) -> None:
        """A worker sends nothing more before the end of a pause."""
        if kind == 0:
            self._markers.setdefault(number, set()).add(index)
            self._save_if_quiet()

    def on_go(self, _parcel: Parcel, number: int) -> None:
        """A pause is over, whether it was complete or not."""
        self._pauses.discard(number)
        self._markers.pop(number, None)

    def _save_if_quiet(self) -> None:
        """Write the shards' states, when nothing more comes and nothing is half done; then the workers may write theirs."""
        for number in sorted(self._pauses):
            if not self.crew.live <= self._markers.get(number, set()):
                continue
            for k, shard in self.shards.items():
                if (number, k) in self._saved or (self._serving is not None and k == 0) or (self._one_order and k != 0 and (number, k) not in self._ordered):
                    continue
                self._saved.add((number, k))
                if self._one_order and k == 0:
                    self._order(PAUSE, [(number, 0)])
                if self._counts:
                    self._send_fates()
                    self.crew.save(number, "shard", k, shard, {"arrived": self._following[k].arrived})
                to = [self.crew.post.rank] if self.role.replicated else [self.role.workers[w] for w in self.crew.live]
                for rank in to:
                    self.mail.send(rank, Tag.PAUSED, number, 1, k)
