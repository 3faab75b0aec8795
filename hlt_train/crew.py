"""Training by processes: what every rank of a run with `--transport mpi` does, from its first message to its last.

Rank 0 begins as the clerk. After a recovery the roles are cast anew among the living, and a rank may find itself the clerk; a session that ends in a recovery
is followed by another that begins at the last checkpoint.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hlt_train import checkpoints
from hlt_train.clerk import Clerk, Work, cast
from hlt_train.errors import HltTrainError, RunFailed
from hlt_train.files import read_arrays, write_document
from hlt_train.progress import Progress
from hlt_train.run import Run
from hlt_train.signals import StopRequest
from hlt_train.timeline import Timeline
from hlt_train.transports.dealing import Deal, deals, inherit
from hlt_train.transports.freeze import thaw
from hlt_train.transports.mpi import Crew, Recovery, Role, actor_file, capacity
from hlt_train.transports.options import MpiOptions
from hlt_train.transports.post import Parcel, Post
from hlt_train.transports.protocol import WORDS, Tag, from_json, to_json

__all__ = ["Ranks", "open_post"]


def open_post(work: Work) -> Post:
    """This rank's post office, for messages as large as the strategy needs."""
    return Post(capacity(work.program), words=WORDS)


class Ranks:
    """This process's part in a run by processes.

    Args:
        post: the post office.
        work: what is trained.
        options: of the transport.
        path: the run directory.
        opened: makes or opens the run; called by the clerk alone.
        progress: where to say how far it is.
        respawn: what Python runs in a replacement.
    """

    def __init__(
        self, post: Post, work: Work, options: MpiOptions, path: Path, opened: Callable[[], Run], progress: Progress, respawn: Sequence[str] | None = None
    ) -> None:
        self.post, self.work, self.options, self.path, self.opened, self.progress, self.respawn = post, work, options, path, opened, progress, respawn
        self.role: Role | None = None
        self.run: Run | None = None
        self.timeline = Timeline()
        self.respawns = options.respawn if not work.program.strategy.peers else 0
        self._extended = False

    def train(self, *, extended: bool = False) -> dict[str, Any] | None:
        """Take part until the run ends. Returns the figures of the run on the rank that is the clerk at the end, None elsewhere.

        Raises:
            HltTrainError: the run failed or was interrupted, on the clerk, and where the failure happened.
            SystemExit: with its code, on the other ranks.
        """
        self._extended = extended
        session = 0
        while True:
            try:
                if self._is_clerk():
                    return self._lead(session)
                return self._follow()
            except Recovery:
                replaced = self.post.recover(self.respawn if self.respawns > 0 else None, patience=self.options.watchdog)
                self.respawns = max(0, self.respawns - len(replaced))
                session = (0 if self.role is None else self.role.session) + 1

    def _is_clerk(self) -> bool:
        if self.role is None:
            return not self.post.replacement and self.post.rank == self.post.alive[0]
        return cast(self.role, self.post.alive, len(self.role.shards), len(self.role.workers), self._beside())[0] == self.post.rank

    def _beside(self) -> bool:
        return self.options.exchange == "alltoall"

    # The clerk.

    def _lead(self, session: int) -> dict[str, Any]:
        began = time.monotonic()
        if self.run is None:
            self.run = self.opened()
        role = self.role = self._cast(session)
        for rank in sorted({*role.workers.values(), *role.shards}):
            self.post.send(rank, Tag.ROLE, (session,), to_json({**role.document(), "respawns": self.respawns}))
        clerk = Clerk(self.post, self.run, self.work, self.options, role, self.timeline, self.progress, self.respawns)
        clerk.begin(extended=self._extended)
        self._extended = False
        if session:
            self.run.log(f"session {session}: clerk rank {role.clerk}, shards {role.shards}, workers {role.workers}")
        try:
            ended = clerk.lead()
        except HltTrainError:
            self.post.flush(5.0)
            raise
        figures = self._finish(clerk, ended)
        self.post.flush(5.0)
        return {**clerk.record.summary(time.monotonic() - began), **figures}

    def _cast(self, session: int) -> Role:
        """The roles of a session, with what each worker has to do where that is not in its checkpoint."""
        program = self.work.program
        shards = 0 if program.strategy.peers else program.shards
        clerk, places, ranks = cast(self.role, self.post.alive, shards, program.workers, self._beside())
        step = checkpoints.pointed(self.path, "LAST")
        warm = program.strategy.warm
        joining: dict[int, list[int]] = {}
        given: dict[int, list[list[int]]] = {}
        if step is None:
            folder = None
            dealt = dict(enumerate(deals(program.workers, self.work.steps, warm)))
            given = {k: dealt[k].document() for k in ranks}
            started = not warm
        else:
            folder = self.path / "checkpoints" / str(step) / "actors"
            orphans = checkpoints.document(self.path, step)["orphans"]
            dealt = {k: _stored_deal(folder, k) for k in range(program.workers) if actor_file(folder, "worker", k).is_file()}
            for k in ranks:
                if k not in dealt:  # it died before the checkpoint; its replacement takes up what was kept for it, or nothing
                    t, left = orphans.pop(str(k), [0, []])
                    joining[k], given[k] = [t, (session + 1) << 32], left
            dealt |= {int(k): Deal(left) for k, (_, left) in orphans.items()}
            started = not warm or self._t_of(folder) >= warm * program.workers
        inherits: dict[int, list[list[int]]] = {}
        for k in sorted(set(dealt) - set(ranks)):
            for heir, sources in inherit(dealt[k], (), sorted(ranks)).items():
                inherits[heir] = [*inherits.get(heir, []), *(list(s) for s in sources)]
        return Role(session, clerk, places, ranks, given, inherits, "" if folder is None else str(folder), joining, started)

    @staticmethod
    def _t_of(folder: Path) -> int:
        stored = read_arrays(actor_file(folder, "worker", 0))
        return int(thaw(from_json(stored.pop("document")), stored)["t"])

    def _finish(self, clerk: Clerk, ended: dict[str, Any]) -> dict[str, Any]:
        """Write what is known only at the end."""
        run = clerk.run
        write_document(run.path / "coverage.json", "hlt-train/coverage", 1, self.work.finish(clerk.coverage, clerk.record.tally.step))
        errors = ended["wire_errors"]
        wire = {"format": self.options.wire, "messages": len(errors), "relative_error": float(np.mean(errors)) if errors else 0.0}
        content = {"transport": "mpi", "dead": sorted(clerk.dead), **clerk.account.document(), "wire": wire, "digests": ended["digests"]}
        write_document(run.path / "transport.json", "hlt-train/transport", 1, content)
        if self.options.timeline:
            self.timeline.write(run.path / "timeline.json", "wall")
        return clerk.short()

    # Everybody else.

    def _follow(self) -> None:
        """Wait for a role and work. Signals are the clerk's to answer: the others wait for what it says."""
        with StopRequest():
            parcel = self._wait_for_role()
            content = from_json(parcel.payload)
            self.respawns = content.pop("respawns")
            self.role = Role.of(content)
            crew = Crew(
                self.post,
                self.role,
                self.work.program,
                self.work.data,
                portions=self.work.steps * self.work.program.workers,
                steps_per_epoch=self.work.steps_per_epoch,
                run=self.path,
                spans=self.options.timeline,
                report_every=self.options.report_every,
            )
            try:
                code, _text = crew.run_session()
            except Recovery:
                raise
            except Exception as error:
                self._tell(error)
                raise
        self.post.flush(5.0)
        if code:  # the clerk says what happened
            raise SystemExit(code)

    def _tell(self, error: Exception) -> None:
        """Tell the clerk what went wrong here; the traceback goes into the log."""
        assert self.role is not None
        text = error.what if isinstance(error, HltTrainError) else f"{type(error).__name__}: {error}"
        with (self.path / "log.txt").open("a") as stream:
            stream.write(f"rank {self.post.rank}: {traceback.format_exc()}\n")
        self.post.send(self.role.clerk, Tag.ERROR, (self.role.session,), np.frombuffer(text.encode()[:4000], np.uint8))
        self.post.flush(5.0)

    def _wait_for_role(self) -> Parcel:
        deadline = time.monotonic() + self.options.watchdog
        while True:
            for parcel in self.post.poll(0.2, deadline=deadline, awaited=[self.post.alive[0]]):
                if parcel.tag == Tag.ROLE:
                    return parcel
                if parcel.tag == Tag.END:
                    raise RunFailed(parcel.payload.tobytes().decode())
            if self.post.called or self.post.alive[0] == self.post.rank:
                raise Recovery


def _stored_deal(folder: Path, worker: int) -> Deal:
    """What a worker had to do at a checkpoint."""
    stored = read_arrays(actor_file(folder, "worker", worker))
    content = thaw(from_json(stored.pop("document")), stored)
    return Deal(content["deal"])
