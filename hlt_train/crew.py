"""Training by processes: what every rank of a run with `--transport mpi` does, from its first message to its last.

Rank 0 begins as the clerk. After a recovery the roles are cast anew among the living, and a rank may find itself the clerk; a session that ends in a recovery
is followed by another that begins at the last checkpoint. A process that has no role waits until it is needed.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hlt_train import checkpoints
from hlt_train.books import Work
from hlt_train.casting import AHEAD, cast, make_role
from hlt_train.clerk import Clerk
from hlt_train.errors import HltTrainError, RunFailed
from hlt_train.files import read_document, write_document
from hlt_train.progress import Progress
from hlt_train.run import Run
from hlt_train.signals import StopRequest
from hlt_train.timeline import Timeline
from hlt_train.transports.account import Coverage, wire_document
from hlt_train.transports.mpi import PATIENCE, Crew, Role, capacity
from hlt_train.transports.options import MpiOptions
from hlt_train.transports.post import Post
from hlt_train.transports.protocol import WORDS, Mail, Recovery, Tag, from_json, to_json

__all__ = ["Ranks", "open_post"]

RECOVERIES = "recoveries.json"
LEAVE = 5.0  # seconds that the last words may take
PARTING = 300.0  # seconds that the clerk may take to finish when all is well


def open_post(work: Work) -> Post:
    """This rank's post office, for messages as large as the strategy needs."""
    return Post(capacity(work.program), words=WORDS)


class Ranks:
    """This process's part in a run by processes.

    Args:
        mail: of this process, for all of its life.
        work: what is trained.
        options: of the transport.
        path: the run directory.
        opened: makes or opens the run; called by the clerk alone.
        progress: where the clerk says how far it is.
        respawn: what Python runs in a replacement.
        first: number of the first session.
    """

    clerk_kind: type[Clerk] = Clerk  # for engines in which workers do not exchange by messages alone
    crew_kind: type[Crew] = Crew

    def __init__(
        self,
        mail: Mail,
        work: Work,
        options: MpiOptions,
        path: Path,
        opened: Callable[[], Run],
        progress: Progress,
        respawn: Sequence[str] | None = None,
        *,
        first: int = 0,
    ) -> None:
        self.mail, self.post, self.work, self.options, self.path, self.opened, self.progress = mail, mail.post, work, options, path, opened, progress
        self.respawn, self.first = respawn, first
        self.role: Role | None = None
        self.run: Run | None = None
        self.timeline = Timeline()
        self.respawns = 0 if work.program.strategy.peers else options.respawn
        self._coverage: Coverage | None = None  # of the session that this process led before
        self._extended = False

    def train(self, *, extended: bool = False) -> dict[str, Any] | None:
        """Take part until the run ends. Returns the figures of the run on the rank that is the clerk at the end, None elsewhere.

        Raises:
            HltTrainError: the run failed or was interrupted, on the clerk, and where the failure happened.
            SystemExit: on the other ranks, after a failure.
        """
        self._extended = extended
        alive, again = self.post.alive, self.post.replacement
        while True:
            try:
                if again:
                    alive, again = self._agree(), False
                clerk = self._clerk(alive)
                if clerk == self.post.rank:
                    return self._lead(alive)
                self._follow(clerk)
            except Recovery:
                self.post.recover(self.respawn if self.respawns > 0 else None, patience=self.options.watchdog)
                again = True
            else:
                return None

    def leave(self, *, failed: bool) -> None:
        """Part from the others. After a failure nobody waits long for those that may hang, and the clerk goes first: whoever ends early ends its launch."""
        leads = self.role is None or self.role.clerk == self.post.rank
        self.post.close(PARTING if not failed else LEAVE if leads else 4 * LEAVE)

    def _agree(self) -> tuple[int, ...]:
        """After a recovery: the latest role that any of the living knows is everybody's. Returns the living."""
        alive = self.post.alive
        self.mail.begin(-self.post.epoch)
        mine = None if self.post.replacement and self.role is None else {"role": None if self.role is None else self.role.document(), "respawns": self.respawns}
        for rank in alive:
            self.mail.send(rank, Tag.KNOWN, payload=to_json(mine))
        known: dict[int, Any] = {}
        began = time.monotonic()
        while not set(alive) <= set(known):
            for parcel in self.mail.poll(0.05):
                known[parcel.source] = from_json(parcel.payload)
            if self.post.called or self.post.dead & (set(alive) - set(known)):
                raise Recovery
            if time.monotonic() - began > self.options.watchdog:
                raise RunFailed(f"no word of ranks {sorted(set(alive) - set(known))} after a recovery")
        old = [content for content in known.values() if content is not None]
        self.respawns = max(0, min(content["respawns"] for content in old) - (len(known) - len(old)))
        roles = [content["role"] for content in old if content["role"] is not None]
        self.role = Role.of(max(roles, key=lambda role: role["session"])) if roles else None
        return alive

    def _next_session(self) -> int:
        return self.first if self.role is None else self.role.session + 1

    def _clerk(self, alive: Sequence[int]) -> int:
        """Who leads the next session."""
        if self.role is None:
            return alive[0]
        return cast(self.role, alive, len(self.role.shards), sorted(self.role.workers), beside=self.options.exchange != "server")[0]

    # The clerk.

    def _lead(self, alive: Sequence[int]) -> dict[str, Any]:
        began = time.monotonic()
        self.mail.begin(self._next_session())
        try:
            clerk = self._prepare(alive)
        except HltTrainError as error:
            for rank in alive:
                if rank != self.post.rank:
                    self.mail.send(rank, Tag.END, error.exit_code, payload=np.frombuffer(error.what.encode()[:4000], np.uint8))
            self.post.flush(LEAVE)
            raise
        try:
            digests = clerk.lead()
        except HltTrainError:
            self.post.flush(LEAVE)
            raise
        finally:
            self._coverage = clerk.books.coverage
        figures = self._finish(clerk, digests)
        self.post.flush(LEAVE)
        return {**clerk.record.summary(time.monotonic() - began), **figures}

    def _prepare(self, alive: Sequence[int]) -> Clerk:
        """The roles and the state at the beginning of a session; everybody is told."""
        if self.run is None:
            self.run = self.opened()
        old = self.role
        step = checkpoints.pointed(self.path, "LAST")
        ended = 0 if step is None else int(checkpoints.document(self.path, step)["ended_epoch"])
        role = self.role = make_role(
            self._next_session(),
            old,
            alive,
            self.work.program,
            self.options,
            self.path,
            steps=self.work.steps,
            limit=(ended + (1 if self.work.holds else AHEAD)) * self.work.steps_per_epoch,
            respawns=self.respawns,
            extended=self._extended and old is None,
        )
        clerk = self.clerk_kind(self.mail, self.run, self.work, self.options, role, self.timeline, self.progress)
        clerk.begin(self._coverage, recovered=old is not None)
        for rank in alive:
            if rank != self.post.rank:
                self.mail.send(rank, Tag.ROLE, payload=to_json(role.document()))
        if old is not None:
            self._note_recovery(clerk, step, sorted(set(range(self.post.size)) - set(alive)))
        return clerk

    def _note_recovery(self, clerk: Clerk, step: int | None, dead: list[int]) -> None:
        """What happened, for the log and for `transport.json`."""
        role, (shares, messages) = clerk.role, clerk.lost
        line = {"session": role.session, "restored": step, "dead": dead, "lost_shares": shares, "lost_messages": messages}
        path = clerk.run.path / RECOVERIES
        known = read_document(path, "hlt-train/recoveries", 1)["recoveries"] if path.is_file() else []
        write_document(path, "hlt-train/recoveries", 1, {"recoveries": [*known, line]})
        lost = "what had been applied since cannot be counted" if messages is None else f"{messages} messages that the server had served since"
        lost += f", with {shares} shares of the data, are done once more" if shares is not None else ": their shares are done once more, uncounted (clerk died)"
        text = f"session {role.session} from {'the beginning' if step is None else f'step {step}'}: dead {dead}, clerk {role.clerk}, shards {role.shards}"
        clerk.run.log(f"{text}, workers {role.workers}; {lost}")
        clerk.record.progress(f"recovered from {'the beginning' if step is None else f'the checkpoint of step {step}'} without ranks {dead or 'missing'}")

    def _finish(self, clerk: Clerk, digests: dict[str, Any]) -> dict[str, Any]:
        """Write what is known only at the end."""
        run, books = clerk.run, clerk.books
        write_document(run.path / "coverage.json", "hlt-train/coverage", 1, self.work.finish(books.coverage, clerk.record.tally.step))
        wire = wire_document(self.options.wire, books.wire)
        path = run.path / RECOVERIES
        recoveries = read_document(path, "hlt-train/recoveries", 1)["recoveries"] if path.is_file() else []
        missing = sorted(set(range(clerk.n)) - clerk.alive)
        content = {"transport": "mpi", "dead": missing, "recoveries": recoveries, **books.account.document(), "wire": wire, "digests": digests, **clerk.more()}
        write_document(run.path / "transport.json", "hlt-train/transport", 1, content)
        if self.options.timeline:
            self.timeline.write(run.path / "timeline.json", "wall")
        return books.short()

    # Everybody else.

    def _follow(self, clerk: int) -> None:
        """Wait for a role and work. Signals are the clerk's to answer: the others wait for what it says."""
        with StopRequest():
            self.role = self._wait_for_role(clerk)
            try:
                crew = self.crew_kind(
                    self.mail,
                    self.role,
                    self.work.program,
                    self.work.data,
                    portions=self.work.steps * self.work.program.workers,
                    steps_per_epoch=self.work.steps_per_epoch,
                    run=self.path,
                    spans=self.options.timeline,
                    report_every=self.options.report_every,
                    watchdog=self.options.watchdog,
                )
                code, _text = crew.run_session()
            except Recovery:
                raise
            except Exception as error:
                self._tell(error)
                raise
        self.post.flush(LEAVE)
        if code:  # the clerk says what happened, and its exit code is that of the run: another's would end it before it has spoken
            raise SystemExit(0)

    def _tell(self, error: Exception) -> None:
        """Tell the clerk what went wrong here; the traceback goes into the log."""
        assert self.role is not None
        text = error.what if isinstance(error, HltTrainError) else f"{type(error).__name__}: {error}"
        with (self.path / "log.txt").open("a") as stream:
            stream.write(f"rank {self.post.rank}: {traceback.format_exc()}\n")
        self.mail.send(self.role.clerk, Tag.ERROR, payload=np.frombuffer(text.encode()[:4000], np.uint8))
        self.post.flush(LEAVE)

    def _wait_for_role(self, clerk: int) -> Role:
        self.mail.begin(self._next_session())
        began, kept, role = time.monotonic(), [], None
        while role is None:
            for parcel in self.mail.poll(0.2):
                if parcel.tag == Tag.ROLE:
                    role = Role.of(from_json(parcel.payload))
                elif parcel.tag == Tag.END:
                    raise SystemExit(0)
                else:  # of somebody who knows his role already
                    kept.append(parcel)
            if self.post.called or clerk in self.post.dead:
                raise Recovery
            if role is None and time.monotonic() - began > PATIENCE * self.options.watchdog:
                raise RunFailed(f"rank {self.post.rank} has waited {time.monotonic() - began:.0f} s for the clerk, rank {clerk}, to begin")
        self.mail.keep(kept)
        return role
