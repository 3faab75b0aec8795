"""Any number of workers on one machine under a virtual clock: the actors, their messages and the time they take, but no network.

The gradients are computed, the updates are made; only the clock is imagined. A batch takes `compute` seconds times the factor of the straggler model; where
there are more workers than `cores`, computing workers share them. A message takes `latency` plus its bytes over `bandwidth`, and a shard serves one message
after another, `service` seconds each. Failures happen when the schedule says so.

The simulation is deterministic: events at the same time come in the order in which they were made, and random numbers belong to (seed, actor, count). Its
whole state can be taken (`state`) between two events and put back, messages in flight included.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from hlt_train.errors import RunFailed, UsageError
from hlt_train.strategies import SERVER
from hlt_train.transports.account import APPLIED, GATED, HELD, LATE, Account, Coverage
from hlt_train.transports.actors import Fate, Reply, Served, Shard, Worker
from hlt_train.transports.dealing import Deal, Share, deals, inherit
from hlt_train.transports.freeze import freeze, thaw
from hlt_train.transports.journal import Journals
from hlt_train.transports.program import Message, Program
from hlt_train.transports.stragglers import Factor, uniform

__all__ = ["Failure", "Simulation", "Span", "Timing"]

_LATENCY, _LOSS, _REORDER = 0x4C41, 0x4C4F, 0x5245
_STILL = 1000  # times that each worker asks for data in vain, while nobody computes, before the simulation is said to stand still


@dataclass(frozen=True)
class Timing:
    """Seconds of virtual time.

    Attributes:
        compute: mean of a batch on a core of its own.
        factor: of each batch (see `stragglers`).
        latency: mean of a message; the actual one is exponential above half of it, so that messages of different workers overtake each other. Those of one
            worker to one shard stay in their order, as with MPI and TCP.
        bandwidth: bytes/s of a link.
        service: of a message at a shard.
        idle: between two asks of a worker that was given no data.
        cores: cores that the workers share; None: one each.
        loss, reorder: probabilities for a datagram (rules with reliable=False) to be lost, or held back for one more latency.
        detection: from a death to its discovery; a barrier waits for a dead worker as long.
    """

    compute: float = 0.02
    factor: Factor = field(default=lambda _worker, _batch: 1.0)
    latency: float = 1e-4
    bandwidth: float = 1e9
    service: float = 0.0
    idle: float = 1e-3
    cores: int | None = None
    loss: float = 0.0
    reorder: float = 0.0
    detection: float = 0.2


class Failure(NamedTuple):
    """At `time` the worker `worker` dies (kind "kill"), or is stopped for `seconds` (kind "stop"); kind "server": the server dies and is rolled back."""

    time: float
    kind: str
    worker: int = 0
    seconds: float = 0.0


class Span(NamedTuple):
    """What an actor did from `begin` to `end`, for the timeline. kind: compute | wait | serve | failure."""

    actor: str
    kind: str
    begin: float
    end: float


class Simulation:
    """A run under the virtual clock.

    Args:
        program: the strategy.
        data: share -> batch.
        steps: batches of each worker.
        coverage: of the data.
        timing: seconds.
        failures: on schedule.
        journals: the actors' logs.
        spans: called with what actors did, for the timeline.
    """

    def __init__(
        self,
        program: Program,
        data: Callable[[tuple[int, int]], Any],
        *,
        steps: int,
        coverage: Coverage,
        timing: Timing,
        failures: tuple[Failure, ...] = (),
        journals: Journals | None = None,
        spans: Callable[[Span], None] | None = None,
    ) -> None:
        _check(failures, program)
        self.program, self.rule, self.data, self.steps, self.timing, self.coverage = program, program.strategy, data, steps, timing, coverage
        n, shards = program.workers, 0 if program.strategy.peers else program.shards
        self.journals = journals or Journals(None)
        note = self.journals.note
        dealt = deals(n, steps, self.rule.warm)
        self.workers = [Worker(program, k, dealt[k], note("worker", k), steps * n) for k in range(n)]
        self.shards = [Shard(program, k, note("shard", k)) for k in range(shards)]
        self.account = Account(n)
        self.now = 0.0
        self.done = 0  # shares that have been computed or given up, over all workers; of portions that the server hands out, those that counted
        self.losses: list[float] = []  # since they were last collected
        self.failures = failures
        self.dead: set[int] = set()
        self._noticed: set[int] = set()  # the dead that are known to be
        self._heap: list[tuple[float, int, str, int, Any]] = []
        self._count = 0
        self._sent: dict[tuple[int, int], Message] = {}  # messages to the server that some shard has still to serve
        self._left: dict[tuple[int, int], int] = {}  # how many shards
        self._reached: dict[tuple[int, int], float] = {}  # (worker, shard) -> when its latest message arrives
        self._parts: dict[tuple[int, int], dict[int, Reply]] = {}  # answers that have come, by shard
        self._inbox: list[list[Message]] = [[] for _ in range(n)]
        self._parked: dict[int, float] = {}  # worker -> since when it waits for its answer
        self._busy: set[int] = set()  # workers that compute
        self._idle: set[int] = set()  # workers without data that will ask again
        self._idled = 0  # times that workers asked in vain since somebody computed
        self._alone = self.rule.warm > 0  # worker 0 does the first steps; the others have not begun
        self._finished: set[int] = set()
        self._since: dict[int, float] = {}
        self._frozen: dict[int, float] = {}  # stopped workers -> until when
        self._free = [0.0] * max(1, shards)  # when a shard has done what it has
        self._spans = spans
        self._started = False
        self._saved: dict[str, Any] | None = None  # the last checkpoint, to which a dead server goes back
        for k, failure in enumerate(failures):
            self._at(failure.time, "failure", k, None)

    # Running.

    def advance(self, done: int) -> bool:
        """Go on until so many shares are done, over all workers. False: the run is over."""
        if not self._started:
            self._started = True
            for worker in self.workers:
                worker.begin()
            for worker in self.workers[: 1 if self._alone else None]:
                self._go_on(worker)
            self.remember()
        while self.done < done and self._next():
            pass
        if self.done < done and (waiting := self._waiting()):
            names = f"{', '.join(map(str, waiting[:8]))}{', ...' if len(waiting) > 8 else ''}"
            raise self._still(f"worker(s) {names} wait for an answer that nobody will send")
        return self.done >= done

    def _next(self) -> bool:
        """The next event. False: nothing is left to happen; a failure that the schedule has for later does not count."""
        if not self._heap or (self._heap[0][2] == "failure" and all(event[2] == "failure" for event in self._heap) and not self._waiting()):
            return False
        self.now, _, kind, actor, what = heapq.heappop(self._heap)
        getattr(self, f"_on_{kind}")(actor, what)
        return True

    def _waiting(self) -> list[int]:
        """The living that are not done."""
        return [w.index for w in self.workers if w.index not in self.dead and w.wants != "done"]

    def _still(self, why: str) -> RunFailed:
        where = f"{self.now:.6g} s of virtual time, {self.done} shares done"
        return RunFailed(f"the simulation stands still: {why}", where=where, then="a schedule of failures, or a rule, under which somebody can go on")

    def close_round(self, clock: int) -> None:
        """Of a barrier: let every shard have made so many updates. No worker begins a batch before it has the answer to its last one."""
        while any(shard.clock < clock for shard in self.shards) and self._next():
            pass

    def drain(self) -> None:
        """After the last batch: let what is under way arrive, and count what no push took along."""
        while self._next():
            pass
        for worker in self.workers:
            for share in worker.pending:
                if self.coverage.is_open(share):
                    self.coverage.mark(share, HELD)

    def stop(self) -> None:
        """Let no worker begin another batch."""
        for worker in self.workers:
            worker.stopped = True

    def extend(self, steps: int) -> None:
        """The run is longer now: every worker has so much more to do, the living do what the dead would have done.

        Raises:
            ValueError: it would be shorter; `stop` ends it before.
        """
        if steps < self.steps:
            raise ValueError(f"a run of {self.steps} steps, extended to {steps}")
        living = [w.index for w in self.workers if w.index not in self.dead]
        for worker in self.workers:
            worker.stopped = False
            worker.portions_limit = steps * len(self.workers)
            for share in worker.pending:
                self.coverage.reopen(share)
            more = Deal([(worker.index, self.steps, steps)])
            for heir, sources in inherit(more, (), [worker.index] if worker.index in living else living).items():
                if sources and self.rule.batch is None:
                    self.workers[heir].take_over(sources)
        self.steps = steps
        for k in sorted(self._finished - self.dead):
            self._finished.discard(k)
            self._go_on(self.workers[k])

    def params(self) -> np.ndarray:
        """float32 `[n]`: the parameters to validate."""
        alive = [w.state for w in self.workers if w.index not in self.dead]
        return self.program.params(alive, [s.state for s in self.shards])

    def _at(self, time: float, kind: str, actor: int, what: Any) -> None:
        heapq.heappush(self._heap, (time, self._count, kind, actor, what))
        self._count += 1

    def _span(self, actor: str, kind: str, begin: float, end: float) -> None:
        if self._spans is not None and end > begin:
            self._spans(Span(actor, kind, begin, end))

    # Workers.

    def _go_on(self, worker: Worker) -> None:
        """Let a worker do everything that takes no time."""
        k = worker.index
        while k not in self.dead and k not in self._frozen:
            match worker.wants:
                case "batch":
                    if worker.share() is None:
                        seconds = self.timing.idle
                        self._idle.add(k)
                    else:
                        seconds = self._duration(worker)
                        self._busy.add(k)
                    self._since[k] = self.now
                    self._at(self.now + seconds, "computed", k, None)
                    return
                case "exchange":
                    self._deliver(worker)
                    for message in worker.ask():
                        self._post(message)
                    self._collect(worker)
                case "answer":
                    assert worker.awaiting is not None
                    replies = self._parts.get((k, worker.awaiting[0]), {})
                    if len(replies) < len(self.shards):
                        self._parked.setdefault(k, self.now)
                        return
                    since = self._parked.pop(k, self.now)
                    self.account.waiting[k] += self.now - since
                    self._span(f"worker {k}", "wait", since, self.now)
                    self._parts.pop((k, worker.awaiting[0]))
                    worker.answer([replies[s] for s in range(len(self.shards))])
                    self._collect(worker)
                case "done":
                    self._finished.add(k)
                    worker.end()
                    self._settle()
                    return

    def _duration(self, worker: Worker) -> float:
        timing = self.timing
        crowd = 1.0 if timing.cores is None else max(1.0, (len(self._busy) + 1) / timing.cores)
        return timing.compute * timing.factor(worker.index, worker.t) * crowd

    def _on_computed(self, k: int, _what: Any) -> None:
        if k in self.dead:
            return
        if k in self._frozen:  # stopped meanwhile: the batch ends when it goes on
            self._at(self._frozen[k], "computed", k, None)
            return
        worker = self.workers[k]
        self._busy.discard(k)
        self._idle.discard(k)
        share = worker.share()
        if share is None:
            worker.idle()
            self._idled = 0 if self._busy or self._frozen or self.dead != self._noticed else self._idled + 1
            if self._idled > _STILL * len(self.workers):
                raise self._still("the server has no data for any worker")
        else:
            self._idled = 0
            self.losses.append(worker.evaluate(self.data(share)))
            self.account.batches[k] += 1
            if self.rule.peers:  # its own parameters have it; there is nobody else to apply it
                self._apply(k, worker.pending)
                worker.pending = []
            self.done += int(self.rule.batch is None)
            self.account.compute[k] += self.now - self._since[k]
        self._span(f"worker {k}", "compute" if share is not None else "wait", self._since[k], self.now)
        self._go_on(worker)
        if self._alone and k == 0 and worker.t == min(self.rule.warm, self.steps) * self.program.workers:
            self._join()

    def _join(self) -> None:
        """The steps that worker 0 does alone are done (or it is dead): the others begin at the server's present parameters."""
        self._alone = False
        for worker in self.workers[1:]:
            if worker.index not in self.dead:
                slices, clocks = zip(*(shard.welcome(worker.index) for shard in self.shards), strict=True)
                worker.join(list(slices), list(clocks))
                self._go_on(worker)

    def _deliver(self, worker: Worker) -> None:
        """Hand over what peers have sent."""
        inbox, self._inbox[worker.index] = self._inbox[worker.index], []
        worker.peers(inbox)

    def _collect(self, worker: Worker) -> None:
        for share, why in worker.lost:
            code = GATED if why == "gated" else LATE
            self.coverage.mark(share, code)
            (self.account.gated if code == GATED else self.account.late)[worker.index] += 1
            self.done += int(code == LATE)  # a gated share has been computed, one of a round that closed has not
        worker.lost = []

    # Messages.

    def _post(self, message: Message) -> None:
        """Put a message on its way."""
        k, timing = message.source, self.timing
        sizes = [sum(leaf.nbytes for leaf in part) if message.push else 0 for part in message.parts]  # a fetch is a header
        size = sum(sizes)
        self.account.messages[k] += 1
        self.account.bytes[k] += size
        if message.to != SERVER:
            held = 0.0
            if not self.rule.reliable:
                if uniform(self.program.seed, _LOSS, k, message.sequence) < timing.loss:
                    self.account.lost_datagrams[k] += 1
                    return
                if uniform(self.program.seed, _REORDER, k, message.sequence) < timing.reorder:
                    held = timing.latency
            self._at(self._arrival(message, 0, size) + held, "peer", message.to, message)
            return
        self._sent[k, message.sequence], self._left[k, message.sequence] = message, len(self.shards)
        for shard, part in enumerate([size] if self.rule.order == "all" else sizes):
            time = max(self._arrival(message, shard, part), self._reached.get((k, shard), 0.0))
            self._reached[k, shard] = time
            self._at(time, "arrive", shard, (k, message.sequence))

    def _arrival(self, message: Message, shard: int, size: int) -> float:
        timing = self.timing
        u = uniform(self.program.seed, _LATENCY + shard, message.source, message.sequence)
        return self.now + timing.latency * (0.5 - 0.5 * float(np.log(u))) + size / timing.bandwidth

    def _on_peer(self, to: int, message: Message) -> None:
        if to not in self.dead:
            self._inbox[to].append(message)

    def _on_arrive(self, shard: int, what: tuple[int, int]) -> None:
        """A message reaches a shard, which begins it when it has done what came before."""
        begin = max(self.now, self._free[shard])
        self._free[shard] = begin + self.timing.service
        self._span(f"shard {shard}", "serve", begin, self._free[shard])
        self._at(self._free[shard], "offer", shard, what)

    def _on_offer(self, shard: int, what: tuple[int, int]) -> None:
        message = self._sent.get(what)
        if message is None:  # of a worker that died, whose shares others have
            return
        for s in self.shards if self.rule.order == "all" else [self.shards[shard]]:
            served = s.offer(message)
            if served is not None:
                self._served(s, served)
        self._serve_ready()

    def _live(self) -> int:
        """Workers that may still send."""
        return len(self.workers) - len(self._noticed) - len(self._finished)  # which have no member in common

    def _serve_ready(self) -> None:
        """Serve while there is enough to serve."""
        live = self._live() if self.rule.quorum != 1 else 1
        groups = [self.shards] if self.rule.order == "all" else [[s] for s in self.shards]
        for group in groups:
            while group and (messages := group[0].ready(live, self._finished)):
                total = self._total([s.measure(messages) for s in group])
                for s in group:
                    self._served(s, s.serve(messages, total))

    @staticmethod
    def _total(measured: list[Any]) -> Any:
        total = measured[0]
        for more in measured[1:]:
            total = jax.tree.map(lambda a, b: a + b, total, more)
        return total

    def _served(self, shard: Shard, served: Served) -> None:
        """Account for what a shard did, and send its answers."""
        for fate in served.fates:
            if shard.index == 0:
                self._note_fate(fate)
            key = fate.source, fate.sequence
            self._left[key] -= 1
            if self._left[key] == 0:
                del self._left[key], self._sent[key]
        for reply in served.replies:
            if reply.to in self.dead:
                continue
            size = sum(leaf.nbytes for leaf in reply.part)
            self.account.bytes[reply.to] += size
            u = uniform(self.program.seed, _LATENCY + 1000 + shard.index, reply.to, reply.sequence)
            self._at(self.now + self.timing.latency * (0.5 - 0.5 * float(np.log(u))) + size / self.timing.bandwidth, "reply", reply.to, reply)

    def _note_fate(self, fate: Fate) -> None:
        if fate.fate == "applied":
            self.account.stale(fate.source, fate.staleness)
            self._apply(fate.source, fate.shares)
        elif fate.fate == "late":
            self.account.late[fate.source] += 1
            for share in fate.shares:
                self.coverage.mark(share, LATE)

    def _apply(self, k: int, shares: Iterable[Share]) -> None:
        """The results of shares have been consumed."""
        self.account.applied[k] += 1
        for share in shares:
            new = self.coverage.mark(share, APPLIED)
            self.done += int(new and self.rule.batch is not None)

    def _on_reply(self, k: int, reply: Reply) -> None:
        if k in self.dead:
            return
        self._parts.setdefault((k, reply.sequence), {})[reply.shard] = reply
        if k in self._parked:
            self._go_on(self.workers[k])

    def _settle(self) -> None:
        """A worker is done or dead: a round may be complete without it."""
        if self.rule.quorum != 1:
            self._serve_ready()

    # Failures.

    def _on_failure(self, number: int, _what: Any) -> None:
        failure = self.failures[number]
        name = "server" if failure.kind == "server" else f"worker {failure.worker}"
        self._span(name, "failure", self.now, self.now + (failure.seconds if failure.kind == "stop" else self.timing.detection))
        if failure.kind == "stop":
            until = max(self.now + failure.seconds, self._frozen.get(failure.worker, 0.0))
            self._frozen[failure.worker] = until
            self._at(until, "thaw", failure.worker, None)
        elif failure.kind == "kill" and failure.worker not in self.dead:
            self.dead.add(failure.worker)
            self._halt(failure.worker)
            self._at(self.now + self.timing.detection, "death", failure.worker, None)
        elif failure.kind == "server":
            self._roll_back()

    def _on_thaw(self, k: int, _what: Any) -> None:
        if self._frozen.get(k, 0.0) > self.now:  # stopped once more meanwhile
            return
        self._frozen.pop(k, None)
        if k not in self._busy and k not in self._idle and not (self._alone and k):
            self._go_on(self.workers[k])

    def _halt(self, k: int) -> None:
        """A worker that is dead does nothing more."""
        self._busy.discard(k)
        self._idle.discard(k)
        self._parked.pop(k, None)

    def _on_death(self, k: int, _what: Any) -> None:
        """The death is noticed: what the worker had left, and what it had sent and nobody served, goes to the others."""
        worker = self.workers[k]
        self._noticed.add(k)
        self._finished.discard(k)
        # What no shard has served is forgotten; what some have, the others serve when it reaches them.
        sent = [self._sent[key] for key in sorted(self._sent) if key[0] == k and self._left[key] == len(self.shards)]
        unserved: list[Share] = [share for message in sent for share in message.shares if self.coverage.is_open(share)]
        for message in sent:
            del self._sent[k, message.sequence], self._left[k, message.sequence]
        for shard in self.shards:
            shard.forget(k)
        heirs = [w for w in self.workers if w.index not in self.dead]
        if not heirs:
            raise RunFailed("no worker is left", where=f"{self.now:.6g} s of virtual time", then="a schedule of failures that leaves one")
        if self.rule.batch is None:  # else the server hands out what the dead had
            self._redeal(worker, unserved, heirs)
        worker.pending = []
        if self._alone and k == 0:
            self._join()
        self._settle()

    def _redeal(self, worker: Worker, unserved: list[Share], heirs: list[Worker]) -> None:
        """The shares of a dead worker go to the others."""
        again = [*worker.unfinished(), *unserved]
        self.done -= len(again)  # they were computed, and will be once more
        inherited = inherit(worker.deal, again, [w.index for w in heirs])
        worker.deal = Deal([])
        for heir in heirs:
            sources = inherited[heir.index]
            for source in sources:
                for step in range(source.next, source.stop, source.stride):
                    self.coverage.note_redealt((step, source.owner))
            if sources:
                heir.take_over(sources)
                if heir.index in self._finished:
                    self._finished.remove(heir.index)
                    self._go_on(heir)

    def _roll_back(self) -> None:
        """The server dies: everybody goes back to the last checkpoint; what was applied since is lost with it, and dealt once more."""
        now = self.now + self.timing.detection
        assert self._saved is not None
        tables = {epoch: table.copy() for epoch, table in self._saved["tables"].items()}
        document, arrays = self._saved["document"], self._saved["arrays"]
        shift = now - document["now"]
        account = {name: value.copy() for name, value in self.account.arrays().items()}
        pending = [(time, kind, actor, what) for time, _, kind, actor, what in sorted(self._heap, key=lambda e: e[:2]) if kind == "failure"]
        dead = set(self.dead)
        self.journals.cut(self._saved["sizes"])
        self.put(document, arrays, self.coverage.epochs, shift)
        self.coverage.roll_back(tables)
        self.account.restore(account)
        self._heap = [event for event in self._heap if event[2] != "failure"]
        heapq.heapify(self._heap)
        for time, kind, actor, what in pending:
            self._at(max(time, now), kind, actor, what)
        for k in sorted(dead - self.dead):
            self.dead.add(k)
            self._halt(k)
            self._at(now, "death", k, None)

    # The whole state.

    def remember(self) -> None:
        """Keep the present state as the checkpoint to which a dead server goes back, if one is still to die."""
        if not self._server_will_die():
            self._saved = None
            return
        document, arrays = self.take()
        document.pop("saved", None)
        tables = {epoch: table.copy() for epoch, table in self.coverage.epochs.items()}
        self._saved = {"document": document, "arrays": arrays, "tables": tables, "sizes": self.journals.sizes()}

    def take(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The state between two events: a JSON document and arrays. The coverage is its owner's to keep.

        While a server is still to die, the checkpoint to which it will go back is a part of it.
        """
        arrays: dict[str, np.ndarray] = {}
        names = (
            "now",
            "steps",
            "done",
            "losses",
            "dead",
            "_noticed",
            "_heap",
            "_count",
            "_sent",
            "_left",
            "_reached",
            "_parts",
            "_inbox",
            "_parked",
            "_busy",
            "_idle",
            "_idled",
            "_alone",
            "_finished",
            "_since",
            "_frozen",
            "_free",
            "_started",
        )
        document = {name: freeze(getattr(self, name), arrays) for name in names}
        document["workers"] = [freeze(worker.frozen(), arrays) for worker in self.workers]
        document["shards"] = [freeze(shard.frozen(), arrays) for shard in self.shards]
        document["account"] = freeze(self.account.arrays(), arrays)
        if self._saved is not None and self._server_will_die():
            document["saved"] = freeze(self._saved, arrays)
        return document, arrays

    def _server_will_die(self) -> bool:
        return any(event[2] == "failure" and self.failures[event[3]].kind == "server" for event in self._heap)

    def put(self, document: dict[str, Any], arrays: dict[str, np.ndarray], tables: dict[int, np.ndarray], shift: float = 0.0) -> None:
        """Back to a state that `take` took, `shift` seconds later."""
        held = {name: thaw(value, arrays) for name, value in document.items() if name not in ("workers", "shards", "account", "saved")}
        for name, value in held.items():
            setattr(self, name, set(value) if name in ("dead", "_noticed", "_busy", "_idle", "_finished") else value)
        if "saved" in document:
            self._saved = thaw(document["saved"], arrays)
        self.now += shift
        self._heap = [(time + shift, *rest) for time, *rest in (tuple(event) for event in held["_heap"])]
        heapq.heapify(self._heap)
        for name in ("_parked", "_since", "_frozen", "_reached"):
            setattr(self, name, {k: time + shift for k, time in getattr(self, name).items()})
        self._free = [time + shift for time in self._free]
        for worker, content in zip(self.workers, document["workers"], strict=True):
            worker.thawed(thaw(content, arrays))
        for shard, content in zip(self.shards, document["shards"], strict=True):
            shard.thawed(thaw(content, arrays))
        self.account.restore(thaw(document["account"], arrays))
        self.coverage.epochs = {epoch: table.copy() for epoch, table in tables.items()}


def _check(failures: tuple[Failure, ...], program: Program) -> None:
    """Refuse a schedule that cannot happen."""
    for failure in failures:
        if failure.kind == "server" and program.strategy.peers:
            raise UsageError("a failure of the server: this strategy has none", then="kill:WORKER@TIME or stop:WORKER@TIME+SECONDS")
        if failure.kind != "server" and not 0 <= failure.worker < program.workers:
            what = f"a failure of worker {failure.worker}: the run has {program.workers} worker(s)"
            raise UsageError(what, near=[str(program.workers - 1)], then=f"a worker from 0 to {program.workers - 1}")
    if program.workers <= len({failure.worker for failure in failures if failure.kind == "kill"}):
        raise UsageError("the schedule of failures kills every worker", then="a schedule that leaves one")
