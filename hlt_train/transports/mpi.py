"""One process of the mpi transport: it hosts a worker, or shards of the server, or both, and does what the clerk (`clerk.py`) says.

While a worker computes, a thread keeps the messages moving (MPI makes progress only when it is called), so that the exchange of one interval is hidden behind
the computation of the next where the worker does not wait. Only one of the two threads is in MPI at a time.

A pause, for a checkpoint: every worker stops where it is, and says so to all to whom it sends; when all that send to an actor have said so, nothing is under
way to it, and it writes its state, with the messages that it has not consumed (Chandy and Lamport's snapshot of a distributed state). So a pause needs no
common step, and is as long as the longest batch.

Deaths (with fault tolerance): the clerk hears of a dead worker and has its shares taken over; a dead server or clerk ends the session for everybody, who
recover together and begin a new one at the last checkpoint.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from hlt_train.errors import RunFailed
from hlt_train.files import read_arrays, write_arrays
from hlt_train.transports._mpi_shards import ShardDesk
from hlt_train.transports._mpi_worker import WorkerDesk
from hlt_train.transports.actors import Shard, Worker
from hlt_train.transports.dealing import Share
from hlt_train.transports.freeze import freeze, thaw
from hlt_train.transports.journal import Journals
from hlt_train.transports.post import LONGEST_NAP, Parcel, padded
from hlt_train.transports.program import Program
from hlt_train.transports.protocol import Mail, Recovery, Tag, from_json, handle, size_of, to_json

__all__ = ["PATIENCE", "Crew", "Role", "actor_file", "capacity", "load_actor", "stored_actor"]

LOOK = 0.05  # seconds of a poll with nothing else to do
NAP = 2e-4  # seconds between two looks of the thread that keeps messages moving
SERVER_NAP = 2e-4  # seconds between two looks of a server: workers wait for it
SPARE = 1 << 16  # bytes of a payload for shares and JSON
PATIENCE = 4  # watchdogs that a process waits for a clerk which says nothing: the clerk may validate, and has the first word

T = TypeVar("T")


class Role(NamedTuple):
    """Who is who in a session, as the clerk says it.

    Attributes:
        session: counts the recoveries and replacements.
        clerk: its rank.
        shards: rank of each shard.
        workers: worker -> rank; those that are alive.
        deals: worker -> what it has to do (`Deal.document`), where that does not come from a checkpoint.
        inherits: worker -> what it takes over, besides: of workers that are missing since the checkpoint, or because the run has got longer.
        folder: where the states of the last checkpoint are; "" at the beginning of the run.
        joining: worker that begins at the server's present parameters -> (batches done, first number of its messages).
        started: the steps that worker 0 does alone are over.
        replicated: every worker's process has a copy of the one shard (exchange allreduce); `shards` names the one whose log and state count.
        limit: t at which workers wait until they are told; -1: nowhere.
        respawns: how many replacements may still be started.
        extended: the run has got longer since the checkpoint.
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
    replicated: bool = False
    limit: int = -1
    respawns: int = 0
    extended: bool = False

    def document(self) -> dict[str, Any]:
        """JSON-able."""
        return {name: [list(item) for item in value.items()] if isinstance(value, dict) else value for name, value in self._asdict().items()}

    @classmethod
    def of(cls, content: dict[str, Any]) -> Role:
        """The inverse of `document`."""
        fields: dict[str, Any] = {name: dict(value) if name in ("workers", "deals", "inherits", "joining") else value for name, value in content.items()}
        return cls(**fields)

    def hosts(self, shard: int) -> list[int]:
        """The ranks to which the messages for a shard go."""
        return sorted(self.workers.values()) if self.replicated else [self.shards[shard]]

    def servers(self) -> list[int]:
        """The ranks that have a shard."""
        return sorted({rank for k in range(len(self.shards)) for rank in self.hosts(k)})

    def vital(self) -> set[int]:
        """The ranks without which the session cannot go on."""
        return {self.clerk, *self.servers()}


def actor_file(folder: Path, kind: str, index: int) -> Path:
    """The state of an actor in a checkpoint."""
    return folder / f"{kind}-{index:05}.npz"


def capacity(program: Program) -> int:
    """Bytes of the largest payload."""
    sizes = [4 * len(program.vector)]
    if program.strategy.peers:
        state = jax.eval_shape(lambda: program.worker(0))
        sizes += [size_of(program.body_specs(0)), sum(padded(leaf.size * leaf.dtype.itemsize) for leaf in jax.tree.leaves(state))]
    else:
        for shard in range(program.shards):
            sizes += [size_of(program.body_specs(shard)), size_of(program.answer_specs(shard))]
    return max(sizes) + SPARE


def save_actor(folder: Path, kind: str, index: int, actor: Worker | Shard, more: dict[str, Any]) -> None:
    """Write the state of an actor."""
    arrays: dict[str, np.ndarray] = {}
    document = freeze({**actor.frozen(), "more": more}, arrays)
    write_arrays(actor_file(folder, kind, index), {**arrays, "document": to_json(document)})


def stored_actor(folder: Path, kind: str, index: int) -> dict[str, Any]:
    """What is stored of an actor: what it froze, and under `more` what its host added."""
    arrays = read_arrays(actor_file(folder, kind, index))
    content: dict[str, Any] = thaw(from_json(arrays.pop("document")), arrays)
    return content


def load_actor(folder: Path, kind: str, index: int, actor: Worker | Shard) -> dict[str, Any]:
    """Put an actor into its stored state; returns what was stored besides."""
    content = stored_actor(folder, kind, index)
    more: dict[str, Any] = content.pop("more")
    actor.thawed(content)
    return more


class Crew:
    """What one process hosts in one session.

    Args:
        mail: of the session.
        role: of the session.
        program: the strategy.
        data: share -> batch.
        portions: of the whole run.
        steps_per_epoch: of the data.
        run: the run directory (logs and states of actors).
        spans: (kind, begin, end) of what the worker did is reported for the timeline.
        report_every: seconds between two reports.
        watchdog: seconds; see `PATIENCE`.
    """

    desk_kind: type[WorkerDesk] = WorkerDesk

    def __init__(
        self,
        mail: Mail,
        role: Role,
        program: Program,
        data: Callable[[Share], Any],
        *,
        portions: int,
        steps_per_epoch: int,
        run: Path,
        spans: bool = True,
        report_every: float = 1.0,
        watchdog: float = 300.0,
    ) -> None:
        self.mail, self.post, self.role, self.program, self.data, self.run = mail, mail.post, role, program, data, run
        self.portions, self.steps_per_epoch, self.spans, self.report_every = portions, steps_per_epoch, spans, report_every
        self.journals = Journals(run)
        self.live = set(role.workers)  # workers that are not dead
        self._vital = role.vital()
        self.ended: tuple[int, str] | None = None
        self.watchdog, self._heard = watchdog, time.monotonic()
        # The thread that keeps messages moving while this one computes.
        self._computing, self._stop, self._lock = threading.Event(), threading.Event(), threading.Lock()
        rank = self.post.rank
        hosted = [k for k in range(len(role.shards)) if rank in role.hosts(k)]
        self.shards = ShardDesk(self, hosted) if hosted else None
        self.post.longest_nap = SERVER_NAP if hosted else LONGEST_NAP
        index = next((k for k, place in role.workers.items() if place == rank), None)
        self.worker = None if index is None else self.desk_kind(self, index)
        self._mover: threading.Thread | None = None
        if self.worker is not None:
            self._mover = threading.Thread(target=self._move, daemon=True)
            self._mover.start()

    def restore(self, kind: str, index: int, actor: Worker | Shard, *, logs: bool = True) -> dict[str, Any]:
        """An actor's state and log at the beginning of the session; returns what was stored besides."""
        journal = f"{kind}-{index:05}.jsonl"
        if not self.role.folder:
            if logs:
                self.journals.cut({journal: self.journals.headers()[journal]})
            return {}
        folder = Path(self.role.folder)
        more = load_actor(folder, kind, index, actor)
        if logs:
            self.journals.cut({journal: more["journal"]})
            actor.note({"restored": folder.parent.name})
        return more

    def save(self, number: int, kind: str, index: int, actor: Worker | Shard, more: dict[str, Any]) -> None:
        """Write the state of an actor, and tell the clerk."""
        folder = self.run / "checkpoints" / f".actors-{self.role.session}-{number}"
        journal = f"{kind}-{index:05}.jsonl"
        save_actor(folder, kind, index, actor, {**more, "journal": self.journals.sizes()[journal]})
        self.mail.send(self.role.clerk, Tag.SAVED, number, int(kind == "shard"), index)

    def run_session(self) -> tuple[int, str]:
        """Work until the clerk ends the session. Returns the exit code and a text.

        Raises:
            Recovery: everybody is to recover.
            RunFailed: nobody says anything any more.
        """
        try:
            for desk in (self.worker, self.shards):
                if desk is not None:
                    desk.rehearse()
            while self.ended is None:
                if self.worker is not None:
                    self.worker.work()
                self.pump(LOOK if self.worker is None or self.worker.idle() else 0.0)
            return self.ended
        finally:
            self._stop.set()
            self._computing.set()
            if self._mover is not None:
                self._mover.join()
            self.journals.close()

    def pump(self, timeout: float) -> None:
        """Take and do what has come."""
        self._check()
        parcels = self.mail.poll(timeout)
        now = time.monotonic()
        if parcels or (self.worker is not None and not self.worker.idle()):
            self._heard = now
        elif now - self._heard > PATIENCE * self.watchdog:
            raise RunFailed(f"rank {self.post.rank} has heard nothing of anybody, the clerk (rank {self.role.clerk}) included, for {now - self._heard:.0f} s")
        for parcel in parcels:
            handle(parcel, [self, *(desk for desk in (self.worker, self.shards) if desk is not None)])
        self._check()
        for desk in (self.worker, self.shards):
            if desk is not None:
                desk.report_if_due()

    def _check(self) -> None:
        if self.post.called or not self._vital.isdisjoint(self.post.dead):
            raise Recovery

    def computing(self, function: Callable[[], T]) -> T:
        """Call a function that computes, while messages move."""
        self._computing.set()
        try:
            return function()
        finally:
            self._computing.clear()
            with self._lock:  # the mover has left MPI
                pass

    def _move(self) -> None:
        while not self._stop.is_set():
            self._computing.wait()
            with self._lock:
                if self._computing.is_set() and not self._stop.is_set():
                    self.post.progress()
            time.sleep(NAP)

    # Before the desks hear of it.

    def on_death(self, _parcel: Parcel, worker: int) -> None:
        """A worker is dead: nothing more of it counts."""
        self.live.discard(worker)

    def on_end(self, parcel: Parcel, code: int) -> None:
        """The session is over."""
        self.ended = code, parcel.payload.tobytes().decode()
