"""The worker of a process: its batches, its messages, and its state at a pause."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from hlt_train.strategies import SERVER
from hlt_train.transports.actors import Reply, Worker
from hlt_train.transports.dealing import Deal, Share, Source
from hlt_train.transports.post import Parcel
from hlt_train.transports.program import Message, Specs
from hlt_train.transports.protocol import Tag, from_json, to_json, unpack

if TYPE_CHECKING:
    from hlt_train.transports.mpi import Crew

__all__ = ["WorkerDesk"]

IDLE = 1e-3  # seconds that a worker without data waits before it asks again
MOST = 300  # spans and losses of one report


class WorkerDesk:
    """Hosts a worker.

    Args:
        crew: the process.
        index: of the worker.
    """

    def __init__(self, crew: Crew, index: int) -> None:
        self.crew, self.mail, self.role, self.program, self.rule = crew, crew.mail, crew.role, crew.program, crew.program.strategy
        role = self.role
        self.worker = worker = Worker(crew.program, index, Deal(role.deals.get(index, [])), crew.journals.note("worker", index), crew.portions)
        more: dict[str, Any] = {}
        if index not in role.joining:
            more = crew.restore("worker", index, worker)
            if not role.folder:
                worker.begin()
        worker.stopped = worker.stopped and not role.extended
        if role.extended:
            worker.note({"t": worker.t, "length": crew.portions // crew.program.workers})
        if index in role.inherits:
            worker.take_over([Source(*line) for line in role.inherits[index]])
        self._parts: dict[int, dict[int, Reply]] = more.get("parts", {})
        self._inbox: list[Message] = [m for m in more.get("inbox", []) if m.source in role.workers]
        self._welcomes: dict[int, tuple[np.ndarray, int]] = {}
        self._waits = bool(more.get("waits", index in role.joining or (bool(self.rule.warm) and index > 0 and not role.started)))
        self._warmed = bool(more.get("warmed", role.started))
        self._asked = False  # to join
        self._may_join = self._waits and (index in role.joining or role.started)
        self._limit = role.limit
        self._pause: int | None = None  # asked for
        self._paused: int | None = None  # since then
        self._saved = False
        self._markers: dict[int, set[tuple[int, int]]] = {}  # number of a pause -> actors that send nothing more before its end
        self._told_finished = False
        self._since: float | None = None
        self._first: tuple[Any, Any] | None = None  # share and data of the rehearsal
        self._rehearsed = time.monotonic()
        self._ready: set[int] = set()  # workers that have compiled what they need
        self._specs: dict[tuple[str, int], Specs] = {}
        self._crossed = int(crew.post.bytes_sent.sum() + crew.post.bytes_received.sum())
        self._fresh_report()
        self._join_if_may()

    # All begin together: otherwise one runs ahead while another still compiles, and its staleness says how long XLA took.

    def rehearse(self) -> None:
        """Compile what a batch needs, and tell the other workers."""
        worker = self.worker
        if worker.wants != "done":
            share = worker.share() or (0, SERVER)
            self._first = share, (batch := self.crew.data(share))
            self.crew.computing(lambda: self._rehearse(batch))
        self._rehearsed = time.monotonic()
        for k in self.crew.live - {worker.index}:
            self.mail.send(self.role.workers[k], Tag.READY, worker.index)

    def _rehearse(self, batch: Any) -> None:
        self.program.rehearse(self.worker.index, batch)

    def on_ready(self, _parcel: Parcel, worker: int) -> None:
        """Another worker has compiled what it needs."""
        self._ready.add(worker)

    def _together(self) -> bool:
        """Whether all others can begin, too; one that is stopped does not hold up the others for ever."""
        return self.crew.live - {self.worker.index} <= self._ready or time.monotonic() - self._rehearsed > self.crew.watchdog

    # The loop.

    def idle(self) -> bool:
        """Whether nothing is left to do before a message comes."""
        worker = self.worker
        if self._waits or self._paused is not None or self._held():
            return True
        return worker.wants == "done" or (worker.wants == "answer" and not self._complete())

    def work(self) -> None:
        """Do everything for which the worker need not wait."""
        worker = self.worker
        while self.crew.ended is None and not self._pausing() and not self._waits:
            match worker.wants:
                case "batch":
                    self._end_warm()
                    if self._held():
                        return
                    self._batch()
                    self.crew.pump(0.0)
                case "exchange":
                    inbox, self._inbox = self._inbox, []
                    worker.peers(inbox)
                    worker.begin_ask()
                    if worker.goes_on and not self._at_limit() and (self._warmed or not self.rule.warm):
                        self._batch()  # which sends what was asked, when the device is busy again
                        self.crew.pump(0.0)
                    else:
                        self._post_asked()
                case "answer":
                    if not self._complete():
                        self._since = self._since or time.monotonic()
                        return
                    assert worker.awaiting is not None
                    self._waited()
                    replies = self._parts.pop(worker.awaiting[0])
                    worker.answer([replies[k] for k in range(self.program.shards)])
                    self._collect()
                case "done":
                    if not self._told_finished:
                        self._end_warm()
                        self._told_finished = True
                        worker.end()
                        self._send_report()
                        for rank in {*self.role.servers(), self.role.clerk}:
                            self.mail.send(rank, Tag.FINISHED, worker.index, worker.t)
                    return

    def _held(self) -> bool:
        """Whether others must have done something before the next batch: compiled their part, or validated at the end of an epoch."""
        return self.worker.wants == "batch" and (self._at_limit() or not self._together())

    def _at_limit(self) -> bool:
        return 0 <= self._limit <= self.worker.t

    def _complete(self) -> bool:
        assert self.worker.awaiting is not None
        return len(self._parts.get(self.worker.awaiting[0], {})) == self.program.shards

    def _batch(self) -> None:
        worker, report = self.worker, self._report
        share = worker.share()
        if share is None:
            worker.idle()
            self.crew.pump(IDLE)
            return
        batch = self._data(share)
        begin = time.monotonic()
        worker.begin_batch(batch)
        if worker.asking:
            self._post_asked()
        loss = self.crew.computing(worker.end_batch)
        end = time.monotonic()
        report["losses"].append(loss)
        report["compute"] += end - begin
        self._span("compute", begin, end)
        if self.rule.peers:  # its own parameters have it: there is nobody else to apply it
            report["applied"] += [list(s) for s in worker.pending]
            worker.pending = []
        if worker.t % self.crew.steps_per_epoch == 0:
            self._reported = 0.0  # the clerk waits for the end of an epoch

    def _data(self, share: Share) -> Any:
        """The batch of a share, which the rehearsal may have read already."""
        first, self._first = self._first, None
        return first[1] if first is not None and first[0] == share else self.crew.data(share)

    def _post_asked(self) -> None:
        """Send what the worker has asked."""
        for message in self.worker.messages():
            self._post_message(message)
        self._collect()

    def _post_message(self, message: Message) -> None:
        self._report["messages"] += 1
        flags = int(message.push), int(message.fetch)
        if message.to != SERVER:
            if message.to in self.crew.live:
                mark = (message.source, message.sequence, message.point, flags[0])
                self.mail.send(self.role.workers[message.to], Tag.PEER, *mark, payload=list(message.parts[0]))
            return
        for k, part in enumerate(message.parts):
            shares = message.shares if k == 0 else ()
            head = (message.source, message.sequence, message.point, *flags, k, int(message.clock[k]), len(shares))
            payload = [np.array(shares, np.int64), *part] if shares else list(part)
            for rank in self.role.hosts(k):
                self.mail.send(rank, Tag.PUSH, *head, payload=payload)

    def _known(self, what: str, shard: int) -> Specs:
        key = (what, shard)
        if key not in self._specs:
            self._specs[key] = self.program.body_specs(shard) if what == "body" else self.program.answer_specs(shard)
        return self._specs[key]

    def on_answer(self, parcel: Parcel, sequence: int, shard: int, clock: int) -> None:
        """A shard's part of the answer."""
        part = unpack(parcel.payload, self._known("answer", shard))
        self._parts.setdefault(sequence, {})[shard] = Reply(self.worker.index, sequence, shard, clock, part)

    def on_peer(self, parcel: Parcel, source: int, sequence: int, point: int, push: int) -> None:
        """A peer's message: consumed at the next exchange point."""
        if source in self.crew.live:
            part = unpack(parcel.payload, self._known("body", 0))
            self._inbox.append(Message(source, sequence, point, self.worker.index, bool(push), False, np.zeros(1, np.int64), (), [part]))

    def on_takeover(self, parcel: Parcel) -> None:
        """Do what a dead worker has not done."""
        self.worker.take_over(from_json(parcel.payload))
        self._told_finished = False

    def on_limit(self, _parcel: Parcel, limit: int) -> None:
        """Go on up to another step."""
        self._limit = limit

    def on_stop(self, _parcel: Parcel) -> None:
        """No further batch."""
        self.worker.stopped = True

    def on_params(self, _parcel: Parcel, number: int) -> None:
        """The clerk wants a peer's parameters."""
        if self.rule.peers:
            leaves = self.program.leaves(self.worker.state)["leaves"]
            self.mail.send(self.role.clerk, Tag.VECTOR, number, self.worker.index, payload=list(leaves))

    # Joining: after the steps that worker 0 does alone, or in the place of a worker that died.

    def _end_warm(self) -> None:
        """Worker 0 has done the steps that are its alone: the others begin."""
        worker = self.worker
        if self.rule.warm and worker.index == 0 and not self._warmed and (worker.t >= self.rule.warm * self.program.workers or worker.wants == "done"):
            self._warmed = True
            for k in sorted(self.crew.live - {0}):
                self.mail.send(self.role.workers[k], Tag.WARM)

    def on_warm(self, _parcel: Parcel) -> None:
        """Begin."""
        self._may_join = True
        self._join_if_may()

    def _join_if_may(self) -> None:
        if self._waits and self._may_join and not self._asked and self._paused is None:
            self._asked = True
            for k, rank in enumerate(self.role.shards):
                self.mail.send(rank, Tag.JOINS, self.worker.index, k)

    def on_welcome(self, parcel: Parcel, shard: int, clock: int) -> None:
        """A shard's parameters."""
        self._welcomes[shard] = parcel.payload.view(np.float32), clock
        if len(self._welcomes) == len(self.role.shards):
            found = [self._welcomes[k] for k in range(len(self.role.shards))]
            self.worker.join([part for part, _ in found], [clock for _, clock in found], self.role.joining.get(self.worker.index))
            self._waits = False

    # Pauses.

    def on_pause(self, _parcel: Parcel, number: int) -> None:
        """Stop where you are."""
        self._pause = number
        self._pausing()

    def _pausing(self) -> bool:
        """Begin a pause that was asked for. Returns whether one is on."""
        if self._pause is not None and self._paused is None:
            self._paused, self._pause, self._saved = self._pause, None, False
            self._waited()
            self._send_report()
            peers = [self.role.workers[k] for k in self.crew.live if k != self.worker.index] if self.rule.peers else []
            for rank in {*self.role.servers(), *peers}:
                self.mail.send(rank, Tag.PAUSED, self._paused, 0, self.worker.index)
            self._save_if_quiet()
        return self._paused is not None

    def on_paused(self, _parcel: Parcel, number: int, kind: int, index: int) -> None:
        """Somebody sends nothing more before the end of a pause."""
        self._markers.setdefault(number, set()).add((kind, index))
        self._save_if_quiet()

    def on_death(self, _parcel: Parcel, _worker: int) -> None:
        """One less to wait for."""
        self._inbox = [m for m in self._inbox if m.source in self.crew.live]
        self._save_if_quiet()

    def _save_if_quiet(self) -> None:
        """Write the worker's state, when all that others sent before the pause has come."""
        if self._paused is None or self._saved:
            return
        wanted = {(0, k) for k in self.crew.live if k != self.worker.index} if self.rule.peers else {(1, k) for k in range(len(self.role.shards))}
        if not wanted <= self._markers.get(self._paused, set()):
            return
        self._saved = True
        more = {"parts": self._parts, "inbox": self._inbox, "waits": self._waits, "warmed": self._warmed}
        self.crew.save(self._paused, "worker", self.worker.index, self.worker, more)

    def on_go(self, _parcel: Parcel, number: int) -> None:
        """A pause is over, whether it was complete or not."""
        self._pause = None if self._pause == number else self._pause
        if self._paused == number:
            self._paused = None
            self._join_if_may()
        self._markers = {k: found for k, found in self._markers.items() if k > number}

    # Reports.

    def report_if_due(self) -> None:
        """Tell the clerk now and then."""
        if time.monotonic() - self._reported > self.crew.report_every:
            self._send_report()

    def _fresh_report(self) -> None:
        self._report: dict[str, Any] = {"losses": [], "compute": 0.0, "waiting": 0.0, "messages": 0, "lost": [], "applied": [], "spans": []}
        self._reported = time.monotonic()

    def _span(self, kind: str, begin: float, end: float) -> None:
        if self.crew.spans and len(self._report["spans"]) < MOST:
            shift = time.time() - time.monotonic()
            self._report["spans"].append([kind, begin + shift, end + shift])

    def _waited(self) -> None:
        """The worker waits no longer."""
        if self._since is not None:
            now = time.monotonic()
            self._report["waiting"] += now - self._since
            self._span("wait", self._since, now)
            self._since = None

    def _collect(self) -> None:
        self._report["lost"] += [[*share, why] for share, why in self.worker.lost]
        self.worker.lost = []

    def _send_report(self) -> None:
        """Everything since the last report, in pieces that fit into a message."""
        errors, self.program.wire_errors = self.program.wire_errors, []
        post = self.crew.post
        lists = {**{name: self._report[name] for name in ("losses", "lost", "applied", "spans")}, "wire": errors}
        crossed = int(post.bytes_sent.sum() + post.bytes_received.sum())
        sums = {**{name: self._report[name] for name in ("compute", "waiting", "messages")}, "bytes": crossed - self._crossed}
        self._crossed = crossed
        for begin in range(0, max(1, *map(len, lists.values())), MOST):
            piece = {name: values[begin : begin + MOST] for name, values in lists.items()}
            content = {**piece, **sums, "t": self.worker.t}
            self.mail.send(self.role.clerk, Tag.REPORT, self.worker.index, payload=to_json(content))
            sums = dict.fromkeys(sums, 0)
        self._fresh_report()
