"""One process of the mpi transport: it hosts a worker, or shards of the server, or both, and does what the clerk (`clerk.py`) says.

While a worker computes, a thread keeps the messages moving (MPI makes progress only when it is called), so that the exchange of one interval is hidden behind
the computation of the next where the worker does not wait. Only one of the two threads is in MPI at a time.

Deaths (with fault tolerance): the clerk hears of a dead worker and has its shares taken over; a dead server or clerk ends the session for everybody, who
recover together and begin a new one at the last checkpoint.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from hlt_train.errors import RunFailed
from hlt_train.files import read_arrays, write_arrays
from hlt_train.strategies import SERVER
from hlt_train.transports.actors import Reply, Served, Shard, Worker
from hlt_train.transports.dealing import Deal, Share, Source
from hlt_train.transports.freeze import freeze, thaw
from hlt_train.transports.journal import Journals
from hlt_train.transports.post import Parcel, Post
from hlt_train.transports.program import Message, Program
from hlt_train.transports.protocol import Tag, from_json, join_shares, pack, split_shares, to_json, unpack

__all__ = ["FATES", "Crew", "Recovery", "Role", "actor_file", "capacity"]

FATES = ("applied", "late", "fetched")
LOOK = 0.05  # seconds of a poll with nothing else to do
NAP = 2e-4  # seconds between two looks of the thread that keeps messages moving
IDLE = 1e-3  # seconds that a worker without data waits before it asks again
SPARE = 1 << 16  # bytes of a payload for shares and JSON


class Recovery(Exception):
    """A server or the clerk has died, or the dead are to be replaced: leave what you do and recover."""


class Role(NamedTuple):
    """Who is who in a session, as the clerk says it.

    Attributes:
        session: counts the recoveries and replacements.
        clerk: its rank.
        shards: rank of each shard.
        workers: worker -> rank; those that are alive.
        deals: worker -> what it has to do (`Deal.document`), where that does not come from a checkpoint.
        inherits: worker -> what it takes over, besides, of workers that died since the checkpoint.
        folder: where the states of the last checkpoint are; "" at the beginning of the run.
        joining: worker that begins at the server's present parameters -> (batches done, first number of its messages).
        started: the steps that worker 0 does alone are over.
    """

    session: int
    clerk: int
    shards: list[int]
    workers: dict[int, int]
    deals: dict[int, list[list[int]]]
    inherits: dict[int, list[list[int]]]
    folder: str
    joining: dict[int, list[int]]
    started: bool

    def document(self) -> dict[str, Any]:
        """JSON-able."""
        return {name: [list(item) for item in value.items()] if isinstance(value, dict) else value for name, value in self._asdict().items()}

    @classmethod
    def of(cls, content: dict[str, Any]) -> Role:
        """The inverse of `document`."""
        return cls(**{name: dict(value) if name in ("workers", "deals", "inherits", "joining") else value for name, value in content.items()})


def actor_file(folder: Path, kind: str, index: int) -> Path:
    """The state of an actor in a checkpoint."""
    return folder / f"{kind}-{index:05}.npz"


def capacity(program: Program) -> int:
    """Bytes of the largest payload."""
    from hlt_train.transports.protocol import size_of

    sizes = [4 * len(program.vector)]
    if program.strategy.peers:
        state = jax.eval_shape(lambda: program.worker(0))
        sizes += [size_of(program.body_specs(0)), sum(leaf.size * leaf.dtype.itemsize + 8 for leaf in jax.tree.leaves(state))]
    else:
        for shard in range(program.shards):
            sizes += [size_of(program.body_specs(shard)), size_of(program.answer_specs(shard))]
    return max(sizes) + SPARE


def save_actor(folder: Path, kind: str, index: int, actor: Worker | Shard, more: dict[str, Any]) -> None:
    """Write the state of an actor."""
    arrays: dict[str, np.ndarray] = {}
    document = freeze({**actor.frozen(), **more}, arrays)
    write_arrays(actor_file(folder, kind, index), {**arrays, "document": to_json(document)})


def load_actor(folder: Path, kind: str, index: int, actor: Worker | Shard) -> dict[str, Any]:
    """Read the state of an actor; returns what was stored besides."""
    arrays = read_arrays(actor_file(folder, kind, index))
    content: dict[str, Any] = thaw(from_json(arrays.pop("document")), arrays)
    more = content.pop("more")
    actor.thawed(content)
    return more  # type: ignore[no-any-return]


class Crew:
    """What one process hosts in one session.

    Args:
        post: the post office.
        role: of the session.
        program: the strategy.
        data: share -> batch.
        portions: of the whole run.
        steps_per_epoch: of the data.
        run: the run directory (logs and states of actors).
        spans: (kind, begin, end) of what the worker did is reported for the timeline.
        report_every: seconds between two reports.
    """

    def __init__(
        self,
        post: Post,
        role: Role,
        program: Program,
        data: Callable[[Share], Any],
        *,
        portions: int,
        steps_per_epoch: int,
        run: Path,
        spans: bool = True,
        report_every: float = 1.0,
    ) -> None:
        self.post, self.role, self.program, self.rule, self.data, self.run = post, role, program, program.strategy, data, run
        self.journals = Journals(run)
        self.report_every, self._spans_wanted, self.steps_per_epoch = report_every, spans, steps_per_epoch
        self.ended: tuple[int, str] | None = None
        self.index = next((k for k, rank in role.workers.items() if rank == post.rank), None)
        self.worker: Worker | None = None
        self.shards: dict[int, Shard] = {}
        folder = Path(role.folder) if role.folder else None
        for k, rank in enumerate(role.shards):
            if rank == post.rank:
                self.shards[k] = shard = Shard(program, k, self.journals.note("shard", k))
                self._begin("shard", k, shard, folder)
        if self.index is not None:
            deal = Deal(role.deals.get(self.index, []))
            self.worker = worker = Worker(program, self.index, deal, self.journals.note("worker", self.index), portions)
            if self.index not in role.joining:
                self._begin("worker", self.index, worker, folder)
            if self.index in role.inherits:
                worker.take_over([Source(*line) for line in role.inherits[self.index]])
        self._live = set(role.workers)
        self._finished: set[int] = set()
        self._gone: set[int] = set()
        # Of the worker.
        self._parts: dict[int, dict[int, Reply]] = {}
        self._inbox: list[Message] = []
        self._welcomes: dict[int, tuple[np.ndarray, int]] = {}
        self._waits = (self.index in role.joining) or (bool(self.rule.warm) and bool(self.index) and not role.started)
        self._pause: tuple[int, int] | None = None
        self._paused: int | None = None
        self._paused_peers: dict[int, set[int]] = {}
        self._told_finished = False
        self._warmed = role.started
        self._since: float | None = None
        self._report: dict[str, Any] = {}
        self._fresh_report()
        self._reported = time.monotonic()
        # Of shard 0 and the others in one order.
        self._arrived: dict[tuple[int, int], dict[int, Message]] = {}
        self._orders: list[tuple[int, list[tuple[int, int]]]] = []
        self._measures: dict[int, Any] = {}
        self._serving: list[Message] | None = None
        self._fates: list[int] = []
        self._fates_sent = time.monotonic()
        self._paused_workers: dict[int, set[int]] = {}
        self._saved_number = -1
        self._snapshots = {k: shard.clock * self.rule.every // steps_per_epoch for k, shard in self.shards.items()}
        self._known: dict[tuple[str, int], Any] = {}
        # The thread that keeps messages moving while this one computes.
        self._computing, self._stop, self._lock = threading.Event(), threading.Event(), threading.Lock()
        self._mover: threading.Thread | None = None
        if self.worker is not None:
            self._mover = threading.Thread(target=self._move, daemon=True)
            self._mover.start()
        if self._waits and self.index in role.joining:
            self._ask_to_join()

    def _begin(self, kind: str, index: int, actor: Worker | Shard, folder: Path | None) -> None:
        """An actor's state and log at the beginning of the session."""
        journal = f"{kind}-{index:05}.jsonl"
        if folder is None:
            self.journals.cut({journal: self.journals.headers()[journal]})
        elif actor_file(folder, kind, index).is_file():
            more = load_actor(folder, kind, index, actor)
            self.journals.cut({journal: more["journal"]})
            actor.note({"restored": folder.name if folder.name != "actors" else folder.parent.name})

    # The loop.

    def run_session(self) -> tuple[int, str]:
        """Work until the clerk ends the session. Returns the exit code and a text.

        Raises:
            Recovery: everybody is to recover.
        """
        try:
            while self.ended is None:
                self._work()
                self._pump(LOOK if self._idle() else 0.0)
            return self.ended
        finally:
            self._stop.set()
            self._computing.set()
            if self._mover is not None:
                self._mover.join()
            self.journals.close()

    def _idle(self) -> bool:
        """Whether nothing is left to do before a message comes."""
        worker = self.worker
        if worker is None or self._waits or self._paused is not None:
            return True
        return worker.wants == "done" or (worker.wants == "answer" and not self._complete(worker))

    def _move(self) -> None:
        while not self._stop.is_set():
            self._computing.wait()
            with self._lock:
                if self._computing.is_set() and not self._stop.is_set():
                    self.post.progress()
            time.sleep(NAP)

    def _pump(self, timeout: float) -> None:
        """Take and do what has come."""
        self._check()
        for parcel in self.post.poll(timeout):
            self._dispatch(parcel)
        self._check()
        if self._fates and time.monotonic() - self._fates_sent > self.report_every / 2:
            self._send_fates()
        if self.worker is not None and time.monotonic() - self._reported > self.report_every:
            self._send_report()

    def _check(self) -> None:
        role, dead = self.role, self.post.dead
        if self.post.called or role.clerk in dead or any(rank in dead for rank in role.shards):
            raise Recovery

    def _send(self, to: int, tag: Tag, *header: int, payload: Any = None) -> None:
        self.post.send(to, tag, (self.role.session, *header), payload)

    def _dispatch(self, parcel: Parcel) -> None:
        if parcel.header[0] != self.role.session:
            return
        getattr(self, f"_on_{Tag(parcel.tag).name.lower()}")(parcel, *(int(word) for word in parcel.header[1:]))

    # The worker.

    def _work(self) -> None:
        """Let the worker do everything for which it need not wait."""
        worker = self.worker
        while worker is not None and self.ended is None and self._paused is None and not self._waits:
            match worker.wants:
                case "batch":
                    self._end_warm(worker)
                    self._pump(0.0)
                    if self._ended_or_paused(worker):
                        return
                    self._batch(worker)
                case "exchange":
                    inbox, self._inbox = self._inbox, []
                    worker.peers(inbox)
                    for message in worker.ask():
                        self._post_message(message)
                    self._collect(worker)
                case "answer":
                    if not self._complete(worker):
                        if self._since is None:
                            self._since = time.monotonic()
                        return
                    assert worker.awaiting is not None
                    self._waited()
                    replies = self._parts.pop(worker.awaiting[0])
                    worker.answer([replies[k] for k in range(self.program.shards)])
                    self._collect(worker)
                case "done":
                    if self._ended_or_paused(worker):
                        return
                    if not self._told_finished:
                        self._told_finished = True
                        worker.end()
                        self._send_report()
                        for rank in {*self.role.shards, self.role.clerk}:
                            self._send(rank, Tag.FINISHED, worker.index, worker.t)
                    return

    def _end_warm(self, worker: Worker) -> None:
        """Worker 0 has done the steps that are its alone: the others begin."""
        if self.rule.warm and worker.index == 0 and not self._warmed and worker.t >= self.rule.warm * self.program.workers:
            self._warmed = True
            for k, rank in self.role.workers.items():
                if k:
                    self._send(rank, Tag.GO, -1)

    def _ended_or_paused(self, worker: Worker) -> bool:
        """After a look at what came: whether to stop here."""
        if self._pause is not None and (worker.t >= self._pause[1] or worker.wants == "done"):
            self._begin_pause(worker, *self._pause)
        return self.ended is not None or self._paused is not None

    def _complete(self, worker: Worker) -> bool:
        assert worker.awaiting is not None
        return len(self._parts.get(worker.awaiting[0], {})) == self.program.shards

    def _waited(self) -> None:
        if self._since is not None:
            now = time.monotonic()
            self._report["waiting"] += now - self._since
            self._span("wait", self._since, now)
            self._since = None

    def _batch(self, worker: Worker) -> None:
        share = worker.share()
        if share is None:
            worker.idle()
            self._pump(IDLE)
            return
        batch = self.data(share)
        begin = time.monotonic()
        self._computing.set()
        try:
            loss = worker.evaluate(batch)
        finally:
            self._computing.clear()
            with self._lock:  # the mover has left MPI
                pass
        end = time.monotonic()
        report = self._report
        report["losses"].append(loss)
        report["compute"] += end - begin
        if worker.t % self.steps_per_epoch == 0:
            self._reported = 0.0  # the clerk waits for the end of an epoch
        self._span("compute", begin, end)
        if self.rule.peers:
            report["applied"] += [list(s) for s in worker.pending]
            worker.pending = []

    def _span(self, kind: str, begin: float, end: float) -> None:
        if self._spans_wanted and len(self._report["spans"]) < 300:
            shift = time.time() - time.monotonic()
            self._report["spans"].append([kind, begin + shift, end + shift])

    def _collect(self, worker: Worker) -> None:
        self._report["lost"] += [[*share, why] for share, why in worker.lost]
        worker.lost = []

    def _fresh_report(self) -> None:
        self._report = {"losses": [], "compute": 0.0, "waiting": 0.0, "messages": 0, "lost": [], "applied": [], "spans": []}

    def _send_report(self) -> None:
        worker = self.worker
        assert worker is not None
        errors, self.program.wire_errors = self.program.wire_errors, []
        content = {**self._report, "t": worker.t, "bytes": int(self.post.bytes_sent.sum() + self.post.bytes_received.sum()), "wire": errors}
        for begin in range(0, max(1, len(content["losses"])), 500):
            part = {**content, "losses": content["losses"][begin : begin + 500]}
            self._send(self.role.clerk, Tag.REPORT, worker.index, payload=to_json(part))
            content |= {"compute": 0.0, "waiting": 0.0, "messages": 0, "lost": [], "applied": [], "spans": [], "wire": []}
        self._fresh_report()
        self._reported = time.monotonic()

    def _post_message(self, message: Message) -> None:
        self._report["messages"] += 1
        flags = int(message.push), int(message.fetch)
        if message.to != SERVER:
            rank = self.role.workers.get(message.to)
            if rank is not None and message.to not in self._gone:
                self._send(rank, Tag.PEER, message.source, message.sequence, message.point, flags[0], payload=pack(message.parts[0]))
            return
        for k, part in enumerate(message.parts):
            shares = message.shares if k == 0 else ()
            head = (message.source, message.sequence, message.point, *flags, k, int(message.clock[k]), len(shares))
            self._send(self.role.shards[k], Tag.PUSH, *head, payload=join_shares(shares, pack(part)))

    def _on_answer(self, parcel: Parcel, sequence: int, shard: int, clock: int) -> None:
        assert self.worker is not None
        part = unpack(parcel.payload, self._specs("answer", shard))
        self._parts.setdefault(sequence, {})[shard] = Reply(self.worker.index, sequence, shard, clock, part)

    def _on_peer(self, parcel: Parcel, source: int, sequence: int, point: int, push: int) -> None:
        assert self.worker is not None
        if source not in self._gone:
            part = unpack(parcel.payload, self._specs("body", 0))
            self._inbox.append(Message(source, sequence, point, self.worker.index, bool(push), False, np.zeros(1, np.int64), (), [part]))

    def _specs(self, what: str, shard: int) -> Any:
        key = (what, shard)
        if key not in self._known:
            self._known[key] = self.program.body_specs(shard) if what == "body" else self.program.answer_specs(shard)
        return self._known[key]

    def _on_takeover(self, parcel: Parcel) -> None:
        assert self.worker is not None
        self.worker.take_over(from_json(parcel.payload))
        self._told_finished = False

    def _on_stop(self, _parcel: Parcel) -> None:
        if self.worker is not None:
            self.worker.stopped = True

    def _on_go(self, _parcel: Parcel, number: int) -> None:
        if self._paused == number or (self._pause is not None and self._pause[0] <= number):
            self._paused = self._pause = None
        self._paused_workers.pop(number, None)
        if number < 0:  # the steps of worker 0 alone are over
            self._ask_to_join()

    def _ask_to_join(self) -> None:
        assert self.index is not None
        for k, rank in enumerate(self.role.shards):
            self._send(rank, Tag.JOINS, self.index, k)

    def _on_welcome(self, parcel: Parcel, shard: int, clock: int) -> None:
        assert self.worker is not None
        self._welcomes[shard] = parcel.payload.view(np.float32), clock
        if len(self._welcomes) == len(self.role.shards):
            found = [self._welcomes[k] for k in range(len(self.role.shards))]
            fresh = self.role.joining.get(self.worker.index)
            self.worker.join([part for part, _ in found], [clock for _, clock in found], fresh)
            self._waits = False

    # Pauses: every message that was sent has been consumed, every actor writes its state.

    def _on_pause(self, _parcel: Parcel, number: int, at: int) -> None:
        worker = self.worker
        if worker is None:
            self._save_shards(number)
            return
        if at >= 0 and worker.t > at and worker.wants != "done":
            self._send(self.role.clerk, Tag.PASSED, number, worker.index)
            return
        self._pause = (number, at)
        if self._waits:
            self._begin_pause(worker, number, at)

    def _begin_pause(self, worker: Worker, number: int, _at: int) -> None:
        self._pause, self._paused = None, number
        self._waited()
        self._send_report()
        others = [r for k, r in self.role.workers.items() if k != worker.index and k not in self._gone] if self.rule.peers else []
        for rank in {*self.role.shards, *others}:
            self._send(rank, Tag.PAUSED, number, worker.index)
        self._save_worker(number)

    def _save_worker(self, number: int) -> None:
        """A worker's state, when everything that peers sent before their pause has come."""
        worker = self.worker
        if worker is None or self._paused != number:
            return
        others = set(self.role.workers) - self._gone - {worker.index}
        if self.rule.peers and not others <= self._paused_peers.get(number, set()):
            return
        inbox = [m for m in self._inbox if m.source not in self._gone]
        more = {"journal": self.journals.sizes()[f"worker-{worker.index:05}.jsonl"], "inbox": inbox}
        save_actor(self._folder(number), "worker", worker.index, worker, {"more": more})
        self._send(self.role.clerk, Tag.SAVED, number, 0, worker.index)

    def _folder(self, number: int) -> Path:
        return self.run / "checkpoints" / f".actors-{self.role.session}-{number}"

    def _on_paused(self, _parcel: Parcel, number: int, worker: int) -> None:
        if self.rule.peers:
            self._paused_peers.setdefault(number, set()).add(worker)
            self._save_worker(number)
        self._paused_workers.setdefault(number, set()).add(worker)
        self._serve_ready()
        self._save_shards(number)

    def _save_shards(self, number: int) -> None:
        """The shards' states, when every worker has said that nothing more comes."""
        if not self.shards or number == self._saved_number:
            return
        if not self._live - self._gone <= self._paused_workers.get(number, set()):
            return
        self._saved_number = number
        self._send_fates()
        for k, shard in self.shards.items():
            more = {"journal": self.journals.sizes()[f"shard-{k:05}.jsonl"]}
            save_actor(self._folder(number), "shard", k, shard, {"more": more})
            self._send(self.role.clerk, Tag.SAVED, number, 1, k)

    # The shards.

    def _on_push(self, parcel: Parcel, source: int, sequence: int, point: int, push: int, fetch: int, shard: int, clock: int, count: int) -> None:
        if source in self._gone:
            return
        self._finished.discard(source)
        shares, rest = split_shares(parcel.payload, count)
        parts: list[Any] = [()] * self.program.shards
        parts[shard] = unpack(rest, self._specs("body", shard))
        clocks = np.full(self.program.shards, clock, np.int64)
        message = Message(source, sequence, point, SERVER, bool(push), bool(fetch), clocks, shares, parts)
        if self.rule.order == "all" and self.program.shards > 1 and shard != 0:
            self._arrived.setdefault((source, sequence), {})[shard] = message
            self._follow(shard)
            return
        mine = self.shards[shard]
        if (served := mine.offer(message)) is not None:
            self._served(mine, served)
        self._serve_ready()

    def _live_count(self) -> int:
        paused = set().union(*self._paused_workers.values()) if self.rule.quorum > 1 else set()
        return len(self._live - self._gone - self._finished - paused)

    def _serve_ready(self) -> None:
        """Serve while there is enough to serve; with one order for all, shard 0 decides."""
        for k, shard in self.shards.items():
            if self.rule.order == "all" and k != 0:
                continue
            while self._serving is None and (messages := shard.ready(max(1, self._live_count()))):
                self._serve(shard, messages)

    def _serve(self, shard: Shard, messages: list[Message]) -> None:
        if self.rule.order == "each" or self.program.shards == 1:
            self._served(shard, shard.serve(messages, shard.measure(messages)))
            return
        self._tell_order(0, [(m.source, m.sequence) for m in messages])
        if not self.program.measures:
            self._served(shard, shard.serve(messages, ()))
            return
        self._serving = messages
        self._measures = {0: shard.measure(messages)}
        self._total()

    def _tell_order(self, kind: int, pairs: Sequence[tuple[int, int]]) -> None:
        payload = np.array(pairs, np.int64)
        for k in range(1, self.program.shards):
            self._send(self.role.shards[k], Tag.ORDER, kind, k, payload=payload)

    def _on_order(self, parcel: Parcel, kind: int, shard: int) -> None:
        self._orders.append((kind, [(int(a), int(b)) for a, b in parcel.payload.view(np.int64).reshape(-1, 2)]))
        self._follow(shard)

    def _follow(self, shard: int) -> None:
        """Do the next orders of shard 0 whose messages are here."""
        mine = self.shards[shard]
        while self._serving is None and self._orders:
            kind, pairs = self._orders[0]
            if not all(shard in self._arrived.get(pair, {}) for pair in pairs):
                return
            self._orders.pop(0)
            messages = [self._arrived.pop(pair)[shard] for pair in pairs]
            if kind == 1:
                for message in messages:
                    self._served(mine, mine.refuse(message))
                continue
            mine.waiting += messages
            if self.program.measures:
                self._serving = messages
                measured = mine.measure(messages)
                self._send(self.role.shards[0], Tag.MEASURE, shard, payload=pack([np.asarray(leaf) for leaf in jax.tree.leaves(measured)]))
                return
            self._served(mine, mine.serve(messages, ()))

    def _on_measure(self, parcel: Parcel, shard: int) -> None:
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
            self._send(self.role.shards[k], Tag.TOTAL, k, payload=np.asarray(total))
        messages, self._serving = self._serving, None
        self._served(self.shards[0], self.shards[0].serve(messages, total))
        self._serve_ready()

    def _on_total(self, parcel: Parcel, shard: int) -> None:
        assert self._serving is not None
        mine, messages = self.shards[shard], self._serving
        like = np.asarray(mine.measure(messages))
        self._serving = None
        self._served(mine, mine.serve(messages, parcel.payload[: like.nbytes].view(like.dtype).reshape(like.shape)))
        self._follow(shard)

    def _served(self, shard: Shard, served: Served) -> None:
        """Send the answers, and note the fates for the clerk."""
        for reply in served.replies:
            rank = self.role.workers.get(reply.to)
            if rank is not None and reply.to not in self._gone:
                self._send(rank, Tag.ANSWER, reply.sequence, reply.shard, reply.clock, payload=pack(reply.part))
        self._snapshot(shard)
        if shard.index != 0:
            return
        late = [(fate.source, fate.sequence) for fate in served.fates if fate.fate == "late"]
        if late and self.rule.order == "all" and self.program.shards > 1:
            self._tell_order(1, late)
        for fate in served.fates:
            numbers = [number for share in fate.shares for number in share]
            self._fates += [fate.source, fate.sequence, FATES.index(fate.fate), fate.staleness, len(fate.shares), *numbers]
        if len(self._fates) > 2000:
            self._send_fates()

    def _snapshot(self, shard: Shard) -> None:
        """A barrier's parameters at the end of an epoch, for the clerk to validate: exactly those, whenever it looks."""
        done = self._snapshots.get(shard.index, 0)
        epochs = shard.clock * self.rule.every // self.steps_per_epoch
        if self.rule.quorum <= 0 and epochs > done:
            self._snapshots[shard.index] = epochs
            self._send(self.role.clerk, Tag.VECTOR, -epochs, shard.index, shard.clock, payload=self.program.slice(shard.state))

    def _send_fates(self) -> None:
        if self._fates:
            self._send(self.role.clerk, Tag.FATES, payload=np.array(self._fates, np.int64))
            self._fates = []
        self._fates_sent = time.monotonic()

    def _on_joins(self, parcel: Parcel, worker: int, shard: int) -> None:
        self._gone.discard(worker)
        self._live.add(worker)
        self._finished.discard(worker)
        part, clock = self.shards[shard].welcome(worker)
        self._send(parcel.source, Tag.WELCOME, shard, clock, payload=part)

    def _on_params(self, _parcel: Parcel, number: int) -> None:
        self._send_fates()
        for k, shard in self.shards.items():
            self._send(self.role.clerk, Tag.VECTOR, number, k, shard.clock, payload=self.program.slice(shard.state))
        if self.worker is not None and self.rule.peers:
            leaves = self.program.leaves(self.worker.state)["leaves"]
            self._send(self.role.clerk, Tag.VECTOR, number, self.worker.index, 0, payload=pack(leaves))

    def _on_finished(self, _parcel: Parcel, worker: int, _t: int) -> None:
        self._finished.add(worker)
        self._serve_ready()

    def _on_death(self, _parcel: Parcel, worker: int) -> None:
        """A worker is dead: nothing more of it counts."""
        self._gone.add(worker)
        for shard in self.shards.values():
            shard.forget(worker)
        self._arrived = {pair: found for pair, found in self._arrived.items() if pair[0] != worker or self._ordered(pair)}
        self._serve_ready()
        if 0 in self.shards:
            self._send_fates()
            self._send(self.role.clerk, Tag.FORGOTTEN, worker)
        for number in list(self._paused_workers):
            self._save_shards(number)
        if self._paused is not None:
            self._save_worker(self._paused)

    def _ordered(self, pair: tuple[int, int]) -> bool:
        return any(pair in pairs for _, pairs in self._orders)

    def _on_recover(self, _parcel: Parcel, _respawn: int) -> None:
        raise Recovery

    def _on_end(self, parcel: Parcel, code: int) -> None:
        self.ended = code, parcel.payload.tobytes().decode()

    def _on_role(self, _parcel: Parcel) -> None:
        raise RunFailed("a second role in one session")
