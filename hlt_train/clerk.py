"""The clerk of a run by processes: it says who is who, and writes, validates, saves and counts; no gradient passes through it.

Validation runs beside the training: the shards send their slices of the parameters, and everybody goes on. A barrier's shards do so by themselves at the ends
of epochs, so that what is validated is exactly the state of that step; the others when the clerk asks, once as many shares as an epoch has are done. A barrier
that may stop early waits at the end of each epoch for the validation: when it stops does not depend on time.

A checkpoint is a pause (`transports/mpi.py`): every actor writes its state, and the clerk puts a folder with all of it in its place in one move. A pause that
cannot be completed (somebody died, or is stopped) is called off, and tried again later.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from hlt_train import checkpoints
from hlt_train.books import Books, Work
from hlt_train.casting import AHEAD, to_do
from hlt_train.errors import HltTrainError, RunFailed
from hlt_train.final_states import clean, cut_logs_of_the_missing, joined, last_states, served_since, stillness, stored_vector
from hlt_train.progress import Progress
from hlt_train.record import BREATH, Record
from hlt_train.run import Run
from hlt_train.signals import StopRequest
from hlt_train.strategies import Params
from hlt_train.timeline import Timeline
from hlt_train.transports.account import HELD, Coverage
from hlt_train.transports.dealing import Deal, inherit
from hlt_train.transports.mpi import PATIENCE, Role
from hlt_train.transports.options import MpiOptions
from hlt_train.transports.post import Parcel
from hlt_train.transports.program import digest
from hlt_train.transports.protocol import Mail, Recovery, Tag, handle, to_json
from hlt_train.transports.simulate import Span

__all__ = ["Clerk"]

LOOK = 0.02  # seconds of a poll


class Clerk:
    """The clerk's part of one session.

    Args:
        mail: of the session.
        run: the run, held by this process.
        work: what is trained.
        options: of the transport.
        role: of the session.
        timeline: collects what workers did.
        progress: where to say how far it is.

    Attributes:
        lost: (applied shares, messages that shard 0 had served) that the recovery before this session lost; None: not known.
    """

    def __init__(self, mail: Mail, run: Run, work: Work, options: MpiOptions, role: Role, timeline: Timeline, progress: Progress) -> None:
        self.mail, self.post, self.run, self.work, self.options, self.role, self.timeline = mail, mail.post, run, work, options, role, timeline
        self.program, self.rule, self.n = work.program, work.program.strategy, work.program.workers
        self.record = Record(work.plan, work.steps_per_epoch, run, progress, self._weights, self._state)
        self.books = Books(work, self.record)
        self.books.barrier &= len(role.workers) == self.n
        self._strict = work.holds and len(role.workers) == self.n
        self._limits: dict[int, int] = {}  # batches up to which each worker may go, where it is not the one of its role
        self.dead: dict[int, Deal] = {}  # workers that died in this session -> what is kept for their replacements
        self.finished: set[int] = set()
        self.lost: tuple[int | None, int | None] = (None, None)
        self._bases: dict[int, Deal] = {}  # what each worker had to do when the session began, and what it took over
        self._vectors: dict[int, dict[int, Any]] = {}  # number of a request, or -epoch -> index -> slice
        self._asked: int | None = None
        self._number = 0
        self._pausing: int | None = None
        self._final = False  # the pause is the last one
        self._pause_began = self._pause_after = 0.0
        self._saved_by: set[tuple[int, int]] = set()
        self._folder: Path | None = None  # of the states that are being saved
        self._current: tuple[int, np.ndarray] | None = None  # (step, parameters) to write
        self._last_save = time.monotonic()
        self._forgetting: set[int] = set()
        self._respawn_wanted = False
        self._stop_sent = False
        self._origin = time.time()
        self._began = time.monotonic()
        self._last_of: dict[int, float] = {}  # rank -> when anything last came from it

    @property
    def alive(self) -> set[int]:
        """The living workers."""
        return set(self.role.workers) - set(self.dead)

    def more(self) -> dict[str, Any]:
        """What `transport.json` says besides, of engines in which workers do not exchange by messages alone."""
        return {}

    # Beginning.

    def begin(self, before: Coverage | None, *, recovered: bool) -> None:
        """Go to the last checkpoint of the run, if there is one.

        Args:
            before: the coverage of the session that ended in a recovery, where this process led it.
            recovered: there was such a session.
        """
        document = self.record.restore(extended=self.role.extended)
        clean(self.run.path)
        messages = served_since(self.run.path, self.role.folder)
        if document is None:
            lost = None if before is None else before.roll_back({})
            self.books.coverage = before or self.books.coverage
        else:
            arrays = checkpoints.load(self.run.path, int(document["step"]), "state")
            lost = self.books.restore(arrays, document, before)
            lost = None if before is None else lost
        if recovered:
            self.lost = lost, messages
        cut_logs_of_the_missing(self.run.path, self.role, self.n)
        self._bases, unpushed = to_do(self.role)
        for share in unpushed if self.role.extended else ():
            self.books.coverage.reopen(share)

    # The loop.

    def lead(self) -> dict[str, Any]:
        """Lead the session to the end of the run. Returns the digests of all actors.

        Raises:
            Recovery: everybody is to recover.
            RunFailed, Interrupted: after everybody has been told.
        """
        with StopRequest() as stop:
            try:
                while True:
                    self._take()
                    self._advance()
                    if self._pausing is not None:
                        if self._everyone_saved():
                            if self._final:
                                return self._end()
                            self._commit()
                            self.record.leave_if(stop)
                        elif time.monotonic() - self._pause_began > self.options.watchdog / 2:
                            self._call_off()
                    elif self.alive <= self.finished and not self._forgetting and not self._respawn_wanted:
                        self._pause(final=True)
                    else:
                        self._pause_if_due(stop)
            except HltTrainError as error:
                self._tell_all(Tag.END, error.exit_code, payload=np.frombuffer(error.what.encode()[:4000], np.uint8))
                raise

    def _take(self) -> None:
        """Take what has come."""
        self._check()
        for parcel in self.mail.poll(LOOK):
            self._last_of[parcel.source] = time.monotonic()
            handle(parcel, [self, self.books])
        self._check()
        if time.monotonic() - self.books.heard > self.options.watchdog * (1 if self.books.latest else PATIENCE):  # the first batch compiles
            self._hung()
        if self.options.timeline:
            for worker, kind, begin, end in self.books.spans:
                self.timeline(Span(f"worker {worker}", kind, begin - self._origin, end - self._origin))
        self.books.spans.clear()

    def _check(self) -> None:
        dead = self.post.dead
        if self.post.called or self.role.vital() & dead:
            self.run.log(f"recovery: ranks {sorted(dead)} are dead")
            raise Recovery
        for k, rank in self.role.workers.items():
            if rank in dead and k not in self.dead:
                self._death(k, rank)

    def _hung(self) -> None:
        at_work = {k: (self.role.workers[k], self.books.t[k]) for k in sorted(self.alive - self.finished)}
        silent = [rank for rank, _ in at_work.values() if time.monotonic() - self._last_of.get(rank, self._began) > self.options.watchdog / 2]
        what = stillness(self.run.path, self.options.watchdog, at_work, silent)
        self.run.log(f"watchdog: {what}")
        raise RunFailed(what, where=str(self.run.path), then=f"hlt-train fit --resume {self.run.path}")

    def _tell_all(self, tag: Tag, *header: int, payload: Any = None) -> None:
        for rank in self.post.alive:
            if rank != self.post.rank:
                self.mail.send(rank, tag, *header, payload=payload)

    # What workers and shards say.

    def on_finished(self, _parcel: Parcel, worker: int, t: int) -> None:
        """A worker has nothing left to do."""
        self.books.t[worker] = t
        self.books.heard = time.monotonic()
        if worker in self.alive:
            self.finished.add(worker)

    def on_error(self, parcel: Parcel) -> None:
        """Something failed in another process."""
        text = parcel.payload.tobytes().decode()
        index = next((f"worker {k}" for k, rank in self.role.workers.items() if rank == parcel.source), "server")
        raise RunFailed(f"rank {parcel.source} ({index}): {text}", where=str(self.run.path), then="its traceback is in log.txt of the run")

    def on_vector(self, parcel: Parcel, number: int, index: int) -> None:
        """Parameters of a shard, or a peer's state."""
        self._vectors.setdefault(number, {})[index] = parcel.payload

    def _vector(self, number: int) -> np.ndarray | None:
        """The parameters that a request or the end of an epoch gave; None while parts are missing."""
        found = self._vectors.get(number, {})
        if not (self.alive if self.rule.peers else set(range(self.program.shards))) <= set(found):
            return None
        del self._vectors[number]
        return joined(self.program, sorted(self.alive), found)

    def _advance(self) -> None:
        """Write metrics, and validate at the ends of epochs."""
        books = self.books
        books.settle_to(books.reached(self.alive))
        if books.at_end_of_epoch() and self.record.tally.step < self.work.steps:
            if books.barrier:
                vector = self._vector(-(books.ended_epoch + 1))
            elif self._asked is None:
                self._number += 1
                self._asked, vector = self._number, None
                for rank in {*self.role.shards, *(self.role.workers[k] for k in self.alive if self.rule.peers)}:
                    self.mail.send(rank, Tag.PARAMS, self._asked)
            else:
                vector = self._vector(self._asked)
            if vector is not None:
                self._asked = None
                self._end_epoch(vector)
        self._lengthen()
        books.show()

    def _end_epoch(self, vector: np.ndarray) -> None:
        tally = self.record.tally
        self._current = (tally.step, vector)
        self.books.end_epoch(vector)
        if tally.stopped_early and not self._stop_sent:
            self._stop_sent = True
            self._tell_all(Tag.STOP)
        if self._strict and not self.dead:
            self._tell_all(Tag.LIMIT, (self.books.ended_epoch + 1) * self.work.steps_per_epoch)

    def _lengthen(self) -> None:
        """Let the workers go on, each from where it is; but where this clerk is behind with its validation they come to their limits.

        Otherwise it would look at parameters of much later than the epoch that it puts them down to, and stop a run too late.
        """
        if self._strict or self.dead or self.books.at_end_of_epoch():
            return
        spe = self.work.steps_per_epoch
        for k in self.alive:
            limit = self.books.t[k] + AHEAD * spe
            if limit >= self._limits.get(k, self.role.limit) + spe:
                self._limits[k] = limit
                self.mail.send(self.role.workers[k], Tag.LIMIT, limit)

    # Pauses and checkpoints.

    def _pause_if_due(self, stop: StopRequest) -> None:
        if self._forgetting or time.monotonic() < self._pause_after:
            return
        every, tally = self.work.plan.checkpoint_every, self.record.tally
        steps = tally.step - (checkpoints.pointed(self.run.path, "LAST") or 0)
        due = steps >= every if every is not None else (time.monotonic() - self._last_save > BREATH and self.books.ended_epoch > 0 and steps > 0)
        if due or stop.received or self._respawn_wanted:
            self._pause()

    def _pause(self, *, final: bool = False) -> None:
        self._number += 1
        self._pausing, self._final, self._pause_began = self._number, final, time.monotonic()
        self._saved_by = set()
        self._tell_all(Tag.PAUSE, self._number)

    def _everyone_saved(self) -> bool:
        return {(0, k) for k in self.alive} | {(1, k) for k in range(len(self.role.shards))} <= self._saved_by

    def _call_off(self) -> None:
        """Nothing comes of this pause: go on, and try again a little later."""
        wanted = {(0, k) for k in self.alive} | {(1, k) for k in range(len(self.role.shards))}
        missing = [f"{('worker', 'shard')[kind]} {index}" for kind, index in sorted(wanted - self._saved_by)]
        self.run.log(f"a checkpoint is postponed: no state of {', '.join(missing) or 'the dead'}")
        self._pause_after = time.monotonic() + min(1.0, self.options.watchdog / 4)
        self._go()

    def _go(self) -> None:
        number, self._pausing = self._pausing, None
        assert number is not None
        self._tell_all(Tag.GO, number)
        shutil.rmtree(self._place(number), ignore_errors=True)

    def _place(self, number: int) -> Path:
        return self.run.path / "checkpoints" / f".actors-{self.role.session}-{number}"

    def on_saved(self, _parcel: Parcel, number: int, kind: int, index: int) -> None:
        """An actor has written its state."""
        if number == self._pausing:
            self.books.heard = time.monotonic()
            self._saved_by.add((kind, index))

    def _commit(self) -> None:
        """The states of all actors are written: make them a checkpoint."""
        assert self._pausing is not None
        folder = self._place(self._pausing)
        self._advance()  # what the shards sent before their states is here
        if self.books.barrier and not self.books.at_end_of_epoch():
            self.books.settle_all(min(self.books.reached(self.alive), (self.books.ended_epoch + 1) * self.work.steps_per_epoch))
        tally = self.record.tally
        if checkpoints.pointed(self.run.path, "LAST") == tally.step and not self._respawn_wanted:  # nothing new
            self._go()
            return
        if self._current is None or self._current[0] != tally.step:
            self._current = (tally.step, self._stored_vector(folder))
        self._save(folder)
        if self._respawn_wanted:
            self.run.log("recovery: the dead are replaced")
            raise Recovery
        self._go()

    def _save(self, folder: Path) -> None:
        self._folder = folder
        if checkpoints.pointed(self.run.path, "LAST") == self.record.tally.step:  # the same step, with other states
            checkpoints.save(self.run.path, self.record.snapshot())
        self.record.save()
        self._folder = None
        self._last_save = time.monotonic()

    def _stored_vector(self, folder: Path) -> np.ndarray:
        return stored_vector(self.program, sorted(self.alive), folder)

    def _last_states(self, folder: Path) -> tuple[dict[str, str], list[str]]:
        """Hashes of the final states of workers and shards; what no push took along is counted."""
        workers, shards, held = last_states(self.program, sorted(self.alive), folder)
        for share in held:
            if self.books.coverage.is_open(share):
                self.books.coverage.mark(share, HELD)
        return workers, shards

    def _weights(self) -> Params:
        assert self._current is not None
        return self.work.weights(self._current[1])

    def _state(self) -> tuple[dict[str, np.ndarray], dict[str, Any], Path | None]:
        orphans = {str(k): [self.books.t[k], deal.document()] for k, deal in self.dead.items()} if self._respawn_wanted else {}
        more = {**self.books.document(), "steps": self.work.steps, "session": self.role.session, "orphans": orphans}
        return self.books.arrays(), more, self._folder

    # Deaths.

    def _death(self, k: int, rank: int) -> None:
        """A worker has died: the shards forget it, and then its shares are dealt to the others."""
        self.run.log(f"worker {k} (rank {rank}) died after batch {self.books.t[k]} or later")
        self.record.progress(f"worker {k} (rank {rank}) died")
        now = time.time() - self._origin
        self.timeline(Span(f"worker {k}", "failure", now, now + 1e-3))
        self.dead[k] = Deal([])
        self.books.barrier = False
        self.books.heard = time.monotonic()
        self.finished.discard(k)
        if not self.alive:
            raise RunFailed("no worker is left", where=str(self.run.path), then=f"hlt-train fit --resume {self.run.path}")
        if self._pausing is not None:
            self._call_off()
        self._tell_all(Tag.DEATH, k)
        self._tell_all(Tag.LIMIT, -1)
        if self.rule.peers:
            self._take_over(k)
        else:
            self._forgetting.add(k)

    def on_forgotten(self, _parcel: Parcel, worker: int) -> None:
        """The fates of everything that shard 0 had of a dead worker are known."""
        self._forgetting.discard(worker)
        if self.role.respawns > 0:
            self._respawn_wanted = True
            deal, unfinished = self.books.remaining(self._bases[worker])
            deal.extend((owner, step, step + 1) for step, owner in unfinished)
            self.dead[worker] = deal
            return
        self._take_over(worker)

    def _take_over(self, k: int) -> None:
        if self.rule.warm and k == 0:  # nobody else will tell the others that they may begin
            self._tell_all(Tag.WARM)
        if self.rule.batch is not None:
            return  # the server hands out what is missing once more
        heirs = sorted(self.alive)
        deal, unfinished = self.books.remaining(self._bases[k])
        again = self.books.note_redealt(deal, unfinished)
        for heir, sources in inherit(deal, unfinished, heirs).items():
            if sources:
                self.finished.discard(heir)
                self._bases[heir].extend(sources)
                self.mail.send(self.role.workers[heir], Tag.TAKEOVER, payload=to_json([list(s) for s in sources]))
        self.run.log(f"{again} shares of worker {k} were dealt to workers {heirs}")

    # The end.

    def _end(self) -> dict[str, Any]:
        """Everybody has finished, and the last states are written."""
        assert self._pausing is not None
        folder, books, tally, spe = self._place(self._pausing), self.books, self.record.tally, self.work.steps_per_epoch
        workers, shards = self._last_states(folder)
        vector = self._stored_vector(folder)
        digests = {"params": digest(vector), "workers": workers, "shards": shards}
        final = self.work.steps if not tally.stopped_early else min(self.work.steps, max(tally.step, books.reached(self.alive)))
        found: np.ndarray | None
        while tally.step < final or (books.ended_epoch * spe < final and books.at_end_of_epoch()):
            step = min((books.ended_epoch + 1) * spe, final)
            if not books.barrier:  # epochs that nobody had the time to validate have no line
                books.ended_epoch = max(books.ended_epoch, -(-final // spe) - 1)
                step = final
            books.settle_all(step)
            found = self._vector(-(books.ended_epoch + 1)) if books.barrier and step < final else None
            self._current = (tally.step, vector if found is None else found)
            books.end_epoch(self._current[1])
            if step >= final or (tally.stopped_early and step >= tally.step):
                break
        self._current = (tally.step, vector)
        self._save(folder)
        self._tell_all(Tag.END, 0)
        return digests
