"""The clerk of a run by processes: it says who is who, and writes, validates, saves and counts; no gradient passes through it.

Validation runs beside the training: the shards send their slices of the parameters, and everybody goes on. A barrier's shards do so by themselves at the ends
of epochs, so that what is validated is exactly the state of that step; the others when the clerk asks, once as many shares as an epoch has are done.

A checkpoint is a pause. Workers stop where they await nothing (those of a barrier all after the same batch), everything that was sent is consumed, every actor
writes its state, and the clerk puts a folder with all of it in its place in one move. A pause that cannot be completed is called off, and tried again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hlt_train import checkpoints
from hlt_train.errors import HltTrainError, RunFailed
from hlt_train.progress import Progress
from hlt_train.record import BREATH, Record
from hlt_train.run import Run
from hlt_train.signals import StopRequest
from hlt_train.strategies import Params
from hlt_train.timeline import Timeline
from hlt_train.transports.account import APPLIED, GATED, HELD, LATE, Account, Coverage
from hlt_train.transports.actors import Shard, Worker
from hlt_train.transports.dealing import Deal, Share, inherit
from hlt_train.transports.mpi import FATES, Recovery, Role, load_actor
from hlt_train.transports.options import MpiOptions
from hlt_train.transports.post import Parcel, Post
from hlt_train.transports.program import Program
from hlt_train.transports.protocol import Tag, from_json, to_json, unpack
from hlt_train.transports.simulate import Span

__all__ = ["Clerk", "Work", "cast"]

MARGIN = 3  # batches ahead of the fastest worker at which a barrier pauses


class Work(NamedTuple):
    """What is trained, as processes need it.

    Attributes:
        program: the strategy.
        data: share -> batch.
        steps, steps_per_epoch: of each worker.
        rows: (first step, last step) -> rows of the training data between them.
        batch: rows of a step, over all workers.
        weights: vector -> the network's parameters.
        validate: vector -> figures, `loss` among them.
        rate: step -> learning rate, for the metrics.
        finish: (coverage, step) -> the certificate.
        plan: see `task.Plan`.
    """

    program: Program
    data: Callable[[Share], Any]
    steps: int
    steps_per_epoch: int
    rows: Callable[[int, int], int]
    batch: int
    weights: Callable[[np.ndarray], Params]
    validate: Callable[[np.ndarray], dict[str, float]]
    rate: Callable[[int], float]
    finish: Callable[[Coverage, int], dict[str, Any]]
    plan: Any


def cast(old: Role | None, alive: tuple[int, ...], shards: int, workers: int, beside: bool) -> tuple[int, list[int], dict[int, int]]:
    """(clerk, shards, workers) among the living. Everybody who knows the old role comes to the same result.

    At first: rank 0 is the clerk, then the shards, then the workers; `beside`: the shards live in the workers' processes. Later a dead clerk or server is
    replaced by the worker with the highest number; where only one is left, by a shard's process, whose shards move in with another's.

    Raises:
        RunFailed: too few are left.
    """
    if old is None:
        first = 1 if beside else 1 + shards
        ranks = list(alive[first : first + workers])
        return alive[0], ranks[:shards] if beside else list(alive[1 : 1 + shards]), dict(enumerate(ranks))
    living = set(alive)
    ranks = {k: rank for k, rank in old.workers.items() if rank in living}
    clerk, places = old.clerk, list(old.shards)

    def give_up() -> int:
        """A process for a role that has lost its own."""
        if len(ranks) > 1:
            rank = ranks.pop(max(ranks))
            for k, place in enumerate(places):
                if place == rank:
                    places[k] = -1
            return rank
        hosts = sorted({place for place in places if place in living and place not in ranks.values()})
        if len(hosts) > 1:
            for k, place in enumerate(places):
                if place == hosts[-1]:
                    places[k] = hosts[0]
            return hosts[-1]
        raise RunFailed(f"too few processes are left: {len(alive)}", then="hlt-train fit --resume RUN continues from the last checkpoint")

    if clerk not in living:
        clerk = give_up()
    for k, place in enumerate(places):
        if place not in living:
            others = [p for p in places if p in living]
            places[k] = min(ranks.values()) if beside and ranks else give_up() if len(ranks) > 1 or not others else others[0]
    if not ranks:
        raise RunFailed("no worker is left", then="hlt-train fit --resume RUN continues from the last checkpoint")
    return clerk, places, ranks


class Clerk:
    """The clerk's part of one session.

    Args:
        post: the post office.
        run: the run, held by this process.
        work: what is trained.
        options: of the transport.
        role: of the session.
        timeline: collects what workers did.
        progress: where to say how far it is.
        respawns: how many replacements may still be started.
    """

    def __init__(self, post: Post, run: Run, work: Work, options: MpiOptions, role: Role, timeline: Timeline, progress: Progress, respawns: int) -> None:
        self.post, self.run, self.work, self.options, self.role, self.timeline = post, run, work, options, role, timeline
        self.program, self.rule, self.n = work.program, work.program.strategy, work.program.workers
        self.respawns = respawns
        self.coverage = Coverage(work.steps_per_epoch, self.n)
        self.account = Account(self.n)
        self.record = Record(work.plan, work.steps_per_epoch, run, progress, self._weights, self._state)
        self.t = dict.fromkeys(role.workers, 0)
        self.dead: dict[int, Deal] = {}  # workers that died in this session -> what they had to do when it began
        self.finished: set[int] = set()
        self._bases: dict[int, Deal] = {}
        self._losses: dict[int, list[float]] = {k: [] for k in range(self.n)}  # of each worker, from its first batch of this session
        self._settled: dict[int, int] = dict.fromkeys(range(self.n), 0)
        self._starts: dict[int, int] = dict.fromkeys(range(self.n), 0)
        self._vectors: dict[int, dict[int, Any]] = {}  # number of a request, or -epoch -> index -> slice
        self._asked: int | None = None
        self._number = 0
        self._pausing: int | None = None
        self._pause_began = 0.0
        self._saved_by: set[tuple[int, int]] = set()
        self._passed = False
        self._folder: Path | None = None  # of the states that are being saved
        self._current: tuple[int, np.ndarray] | None = None  # (step, parameters) to write
        self._ended_epoch = 0
        self._began = self._epoch_began = time.monotonic()
        self._epoch_start = 0
        self._last_save = time.monotonic()
        self._heard = time.monotonic()
        self._bytes: dict[int, int] = {}
        self._origin = time.time()
        self._forgetting: set[int] = set()
        self._respawn_wanted = False
        self._stop_sent = False
        self._wire: list[float] = []

    # Beginning.

    def begin(self, *, extended: bool = False) -> None:
        """Go to the last checkpoint of the run, if there is one."""
        document = self.record.restore(extended=extended)
        if document is None:
            for k in self.role.workers:
                self._bases[k] = Deal([*self.role.deals[k], *self.role.inherits.get(k, [])])
            return
        arrays = checkpoints.load(self.run.path, int(document["step"]), "state")
        tables = {int(name.removeprefix("coverage")): table for name, table in arrays.items() if name.startswith("coverage")}
        self.coverage.restore(tables, document["coverage"])
        self.account.restore({name.removeprefix("account-"): value for name, value in arrays.items() if name.startswith("account-")})
        folder = Path(self.role.folder)
        for k in self.role.workers:
            if k in self.role.joining:
                self.t[k] = self._starts[k] = self.role.joining[k][0]
                self._bases[k] = Deal(self.role.deals[k])
            else:
                worker = Worker(self.program, k, Deal([]))
                load_actor(folder, "worker", k, worker)
                self.t[k] = self._starts[k] = worker.t
                self._bases[k] = worker.deal
            self._bases[k].extend(self.role.inherits.get(k, []))
        self._ended_epoch = int(document["ended_epoch"])
        self._epoch_start = self.record.tally.step

    # The loop.

    def lead(self) -> dict[str, Any]:
        """Lead the session to the end of the run. Returns its figures.

        Raises:
            Recovery: everybody is to recover.
            RunFailed, Interrupted: after everybody has been told.
        """
        with StopRequest() as stop:
            try:
                while not self._all_finished():
                    self._turn(stop)
                return self._end(stop)
            except HltTrainError as error:
                self._tell_all(Tag.END, error.exit_code, payload=np.frombuffer(error.what.encode(), np.uint8))
                raise

    def _all_finished(self) -> bool:
        return set(self.role.workers) - set(self.dead) <= self.finished and not self._forgetting

    def _turn(self, stop: StopRequest) -> None:
        """Take what has come, and do what follows from it."""
        self._check()
        parcels = self.post.poll(0.02)
        for parcel in parcels:
            self._heard = time.monotonic()
            if parcel.header[0] == self.role.session:
                getattr(self, f"_on_{Tag(parcel.tag).name.lower()}")(parcel, *(int(word) for word in parcel.header[1:]))
        self._check()
        if time.monotonic() - self._heard > self.options.watchdog:
            self._hung()
        self._advance()
        self._pause_if_due(stop)

    def _check(self) -> None:
        dead = self.post.dead
        if self.post.called or any(rank in dead for rank in self.role.shards):
            self.run.log(f"recovery: ranks {sorted(dead)} are dead")
            raise Recovery
        for k, rank in self.role.workers.items():
            if rank in dead and k not in self.dead:
                self._death(k, rank)

    def _hung(self) -> None:
        waited = [f"worker {k} (rank {rank})" for k, rank in self.role.workers.items() if k not in self.finished and k not in self.dead]
        last = checkpoints.pointed(self.run.path, "LAST")
        kept = f"the last checkpoint is step {last}" if last is not None else "there was no checkpoint yet"
        what = f"nothing was heard of any process for {self.options.watchdog:g} s; still at work: {', '.join(waited)}; {kept}"
        self.run.log(f"watchdog: {what}")
        raise RunFailed(what, where=str(self.run.path), then=f"hlt-train fit --resume {self.run.path}")

    def _send(self, to: int, tag: Tag, *header: int, payload: Any = None) -> None:
        self.post.send(to, tag, (self.role.session, *header), payload)

    def _tell_all(self, tag: Tag, *header: int, payload: Any = None) -> None:
        for rank in sorted({*self.role.workers.values(), *self.role.shards} - {self.post.rank}):
            self._send(rank, tag, *header, payload=payload)

    # What workers and shards report.

    def _on_report(self, parcel: Parcel, worker: int) -> None:
        content = from_json(parcel.payload)
        self.t[worker] = max(self.t[worker], content["t"])
        losses = content["losses"]
        if not np.isfinite(losses).all():
            self.record.diverged(max(1, content["t"]))
        self._losses[worker] += losses
        self.account.batches[worker] += len(losses)
        self.account.compute[worker] += content["compute"]
        self.account.waiting[worker] += content["waiting"]
        self.account.messages[worker] += content["messages"]
        self.account.bytes[worker] += content["bytes"] - self._bytes.get(worker, 0)
        self._bytes[worker] = content["bytes"]
        self._wire += content["wire"]
        for step, owner, why in content["lost"]:
            self.coverage.mark((step, owner), GATED if why == "gated" else LATE)
            (self.account.gated if why == "gated" else self.account.late)[worker] += 1
        for step, owner in content["applied"]:
            self.account.applied[worker] += 1
            self.coverage.mark((step, owner), APPLIED)
        if self.options.timeline:
            for kind, begin, end in content["spans"]:
                self.timeline(Span(f"worker {worker}", kind, begin - self._origin, end - self._origin))

    def _on_fates(self, parcel: Parcel) -> None:
        numbers = parcel.payload.view(np.int64).tolist()
        place = 0
        while place < len(numbers):
            source, _sequence, code, staleness, count = numbers[place : place + 5]
            place += 5
            fate = FATES[code]
            if fate == "applied":
                self.account.applied[source] += 1
                self.account.stale(source, staleness)
            elif fate == "late":
                self.account.late[source] += 1
            for step, owner in zip(numbers[place : place + 2 * count : 2], numbers[place + 1 : place + 2 * count : 2], strict=True):
                if fate != "fetched":
                    self.coverage.mark((step, owner), APPLIED if fate == "applied" else LATE)
            place += 2 * count

    def _on_finished(self, _parcel: Parcel, worker: int, t: int) -> None:
        self.t[worker] = t
        self.finished.add(worker)

    def _on_error(self, parcel: Parcel) -> None:
        text = parcel.payload.tobytes().decode()
        index = next((f"worker {k}" for k, rank in self.role.workers.items() if rank == parcel.source), "server")
        raise RunFailed(f"rank {parcel.source} ({index}): {text}", where=str(self.run.path), then="its traceback is in log.txt of the run")

    def _on_vector(self, parcel: Parcel, number: int, index: int, _clock: int) -> None:
        self._vectors.setdefault(number, {})[index] = parcel.payload

    def _vector(self, number: int) -> np.ndarray | None:
        """The parameters that a request or the end of an epoch gave; None while parts are missing."""
        found = self._vectors.get(number, {})
        if self.rule.peers:
            alive = [k for k in self.role.workers if k not in self.dead]
            if not set(alive) <= set(found):
                return None
            like = self.program.leaves(self.program.worker(0))
            specs = tuple((leaf.shape, leaf.dtype) for leaf in like["leaves"])
            states = [self.program.worker_from({**like, "leaves": list(unpack(found[k], specs))}) for k in alive]
            return self.program.params(states, [])
        if len(found) < self.program.shards:
            return None
        return np.concatenate([found[k].view(np.float32)[: self.program.cuts[k + 1] - self.program.cuts[k]] for k in range(self.program.shards)])

    # Steps and epochs.

    def _done(self) -> int:
        """Shares that are closed, over all epochs."""
        return sum(int((table != 0).sum()) for table in self.coverage.epochs.values())

    def _advance(self) -> None:
        """Write metrics, and validate at the ends of epochs."""
        barrier = self._barrier()
        spe, plan, tally = self.work.steps_per_epoch, self.work.plan, self.record.tally
        alive = [k for k in self.role.workers if k not in self.dead]
        reached = min(self.t[k] for k in alive) if barrier else self._done() // self.n
        reached = min(reached, self.work.steps)
        end = (self._ended_epoch + 1) * spe
        while (step := min((tally.step // plan.log_every + 1) * plan.log_every, end)) <= reached and step > tally.step:
            self._settle(step, exact=barrier)
        if barrier:
            if tally.step >= end and (vector := self._vector(-(self._ended_epoch + 1))) is not None:
                self._end_epoch(vector)
        elif reached >= end and end < self.work.steps:
            self._ask_for_parameters()
        speed = (tally.step - self._epoch_start) * self.work.batch / max(time.monotonic() - self._epoch_began, 1e-9)
        self.record.show(self._ended_epoch, speed)

    def _barrier(self) -> bool:
        """Whether all workers do the same steps together, so that a step means the same for all."""
        return self.rule.quorum <= 0 and not self.dead and self.rule.batch is None and not self.rule.peers

    def _ask_for_parameters(self) -> None:
        if self._asked is None:
            self._number += 1
            self._asked = self._number
            for rank in {*self.role.shards, *(r for k, r in self.role.workers.items() if self.rule.peers and k not in self.dead)}:
                self._send(rank, Tag.PARAMS, self._asked)
        elif (vector := self._vector(self._asked)) is not None:
            self._asked = None
            self._end_epoch(vector)

    def _settle(self, step: int, *, exact: bool) -> None:
        """Account for the losses up to a step: exactly those of a barrier, in the order of the workers, or all that have been reported."""
        tally, plan = self.record.tally, self.work.plan
        found: list[float] = []
        for k in range(self.n):
            upto = min(len(self._losses[k]), max(0, step - self._starts[k])) if exact else len(self._losses[k])
            found += self._losses[k][self._settled[k] : upto]
            self._settled[k] = max(self._settled[k], upto)
        tally.epoch_loss += float(np.sum(found)) / self.n
        tally.interval_loss += float(np.sum(found))
        tally.interval_rows += len(found)
        tally.step = step
        if step % plan.log_every == 0 and tally.interval_rows:
            line = {"event": "steps", "step": step, "loss": tally.interval_loss / tally.interval_rows, "learning_rate": self.work.rate(step)}
            self.run.metric(line)
            tally.interval_loss, tally.interval_rows = 0.0, 0

    def _end_epoch(self, vector: np.ndarray) -> None:
        """Validate, and decide on stopping early."""
        tally, spe, epoch = self.record.tally, self.work.steps_per_epoch, self._ended_epoch
        began = time.monotonic()
        self._current = (tally.step, vector)
        rows = self.work.rows(min(epoch * spe, self._epoch_start), tally.step)
        seconds = max(began - self._epoch_began, 1e-9)
        self.record.end_of_epoch(
            epoch,
            self.work.validate(vector),
            rows=rows,
            loss=tally.epoch_loss * self.work.batch / max(rows, 1),
            whole=tally.step == (epoch + 1) * spe,
            rate=self.work.rate(tally.step),
            speed=(self.work.rows(self._epoch_start, tally.step), seconds),
            began=began,
            saving=False,
            **self.short(),
        )
        self._ended_epoch += 1
        self._epoch_start, self._epoch_began = tally.step, time.monotonic()
        self._heard = time.monotonic()
        if tally.stopped_early and not self._stop_sent:
            self._stop_sent = True
            self._tell_all(Tag.STOP)

    def short(self) -> dict[str, Any]:
        """The figures of the messages that a line of metrics holds."""
        content = self.account.document()
        return {
            "staleness": content["staleness"]["mean"],
            "late": int(self.account.late.sum()),
            "gated": int(self.account.gated.sum()),
            "bytes": int(self.account.bytes.sum()),
            "fairness": content["fairness"],
        }

    # Pauses and checkpoints.

    def _pause_if_due(self, stop: StopRequest) -> None:
        plan, tally = self.work.plan, self.record.tally
        if self._pausing is not None:
            if self._watch_pause():
                self.record.leave_if(stop)
            return
        if self._forgetting or (self.finished and not self._respawn_wanted):
            return
        every = plan.checkpoint_every
        steps = tally.step - (checkpoints.pointed(self.run.path, "LAST") or 0)
        due = steps >= every if every is not None else (time.monotonic() - self._last_save > BREATH and self._ended_epoch > 0 and steps > 0)
        if due or stop.received or self._respawn_wanted:
            self._pause()

    def _pause(self) -> None:
        self._number += 1
        self._pausing, self._pause_began, self._passed = self._number, time.monotonic(), False
        self._saved_by = set()
        at = max(self.t.values()) + MARGIN if self.rule.quorum <= 0 and not self.rule.peers else -1
        self._tell_all(Tag.PAUSE, self._number, at)

    def _watch_pause(self) -> bool:
        """Whether everybody's state has just been saved. A pause is called off when somebody has passed the point, or when it takes too long."""
        alive = {(0, k) for k in self.role.workers if k not in self.dead}
        wanted = alive | {(1, k) for k in range(len(self.role.shards))}
        if wanted <= self._saved_by:
            self._commit()
            return True
        if self._passed or time.monotonic() - self._pause_began > self.options.watchdog / 4:
            if not self._passed:
                self.run.log(f"a checkpoint is postponed: no state of {sorted(wanted - self._saved_by)}")
            self._go()
            self._last_save = time.monotonic()
        return False

    def _go(self) -> None:
        number, self._pausing = self._pausing, None
        assert number is not None
        self._tell_all(Tag.GO, number)

    def _on_saved(self, _parcel: Parcel, number: int, kind: int, index: int) -> None:
        if number == self._pausing:
            self._saved_by.add((kind, index))

    def _on_passed(self, _parcel: Parcel, number: int, _worker: int) -> None:
        if number == self._pausing:
            self._passed = True

    def _commit(self) -> None:
        """The states of all actors are written: make them a checkpoint."""
        assert self._pausing is not None
        self._folder = self.run.path / "checkpoints" / f".actors-{self.role.session}-{self._pausing}"
        if self._barrier():
            reached = min(*(self.t[k] for k in self.role.workers), (self._ended_epoch + 1) * self.work.steps_per_epoch)
            if reached > self.record.tally.step:
                self._settle(reached, exact=True)
        if self._current is None or self._current[0] != self.record.tally.step:
            self._current = (self.record.tally.step, self._stored_vector(self._folder))
        self.record.save()
        self._last_save = time.monotonic()
        self._folder = None
        if self._respawn_wanted:
            self._tell_all(Tag.RECOVER, 1)
            self.run.log("recovery: the dead are replaced")
            raise Recovery
        self._go()

    def _stored_vector(self, folder: Path) -> np.ndarray:
        """The parameters of the states in a folder."""
        if self.rule.peers:
            workers = [Worker(self.program, k, Deal([])) for k in self.role.workers if k not in self.dead]
            for worker in workers:
                load_actor(folder, "worker", worker.index, worker)
            return self.program.params([w.state for w in workers], [])
        shards = [Shard(self.program, k) for k in range(self.program.shards)]
        for shard in shards:
            load_actor(folder, "shard", shard.index, shard)
        return self.program.params([], [s.state for s in shards])

    def _weights(self) -> Params:
        assert self._current is not None
        return self.work.weights(self._current[1])

    def _state(self) -> tuple[dict[str, np.ndarray], dict[str, Any], Path | None]:
        arrays = {f"coverage{epoch}": table.copy() for epoch, table in self.coverage.epochs.items()}
        arrays |= {f"account-{name}": value.copy() for name, value in self.account.arrays().items()}
        lost = {str(k): [self.t[k], deal.document()] for k, deal in self.dead.items()} if self._respawn_wanted else {}
        more = {"coverage": self.coverage.document(), "ended_epoch": self._ended_epoch, "session": self.role.session, "orphans": lost}
        return arrays, more, self._folder

    # Deaths.

    def _death(self, k: int, rank: int) -> None:
        """A worker has died: the shards forget it, and then its shares are dealt to the others."""
        self.run.log(f"worker {k} (rank {rank}) died after batch {self.t[k]} or later")
        self.record.progress(f"worker {k} (rank {rank}) died")
        self.timeline(Span(f"worker {k}", "failure", time.time() - self._origin, time.time() - self._origin + 1e-3))
        self.dead[k] = self._bases[k]
        self.finished.discard(k)
        if all(other in self.dead for other in self.role.workers):
            raise RunFailed("no worker is left", where=str(self.run.path), then=f"hlt-train fit --resume {self.run.path}")
        self._tell_all(Tag.DEATH, k)
        if self.rule.peers:
            self._take_over(k)
        else:
            self._forgetting.add(k)

    def _on_forgotten(self, _parcel: Parcel, worker: int) -> None:
        """The fates of everything that shard 0 had of a dead worker are known."""
        self._forgetting.discard(worker)
        if self.respawns > 0:
            self._respawn_wanted = True
            self.dead[worker] = self._remaining(worker)
            return
        self._take_over(worker)

    def _remaining(self, k: int) -> Deal:
        """What a dead worker had to do, from the first of its shares of which nothing became."""
        deal = Deal(self._bases[k].document())
        while (share := deal.peek()) is not None and not self.coverage.is_open(share):
            deal.pop()
        return deal

    def _take_over(self, k: int) -> None:
        if self.rule.batch is not None:
            return  # the server hands out what is missing once more
        heirs = [other for other in self.role.workers if other not in self.dead]
        deal = self._remaining(k)
        again = 0
        counted = Deal(deal.document())
        while (share := counted.pop()) is not None:
            self.coverage.note_redealt(share)
            again += 1
        for heir, sources in inherit(deal, (), heirs).items():
            if sources:
                self.finished.discard(heir)
                self._bases[heir].extend(sources)
                self._send(self.role.workers[heir], Tag.TAKEOVER, payload=to_json([list(s) for s in sources]))
        self.run.log(f"{again} shares of worker {k} were dealt to workers {heirs}")

    # The end.

    def _end(self, stop: StopRequest) -> dict[str, Any]:
        """Everybody has finished: save the last state and write what is known only now."""
        if self._pausing is not None:
            self._go()
        tally, spe = self.record.tally, self.work.steps_per_epoch
        self._pause()
        while self._pausing is not None and not self._everyone_saved():
            self._check()
            for parcel in self.post.poll(0.02):
                if parcel.header[0] == self.role.session:
                    getattr(self, f"_on_{Tag(parcel.tag).name.lower()}")(parcel, *(int(word) for word in parcel.header[1:]))
            if time.monotonic() - self._pause_began > self.options.watchdog:
                self._hung()
        folder = self.run.path / "checkpoints" / f".actors-{self.role.session}-{self._pausing}"
        digests = self._digests(folder)
        final = self.work.steps if not tally.stopped_early else max(tally.step, min(self.work.steps, self._done() // self.n))
        vector = self._stored_vector(folder)
        exact = self._barrier()
        while tally.step < final or self._ended_epoch * spe < final:
            step = min((self._ended_epoch + 1) * spe, final) if exact else final
            self._ended_epoch = self._ended_epoch if exact else -(-final // spe) - 1  # epochs that nobody had the time to validate have no line
            while tally.step < step:
                self._settle(min((tally.step // self.work.plan.log_every + 1) * self.work.plan.log_every, step), exact=exact)
            found = self._vector(-(self._ended_epoch + 1)) if exact and step < final else None
            self._end_epoch(vector if found is None else found)
        self._current = (tally.step, vector)
        self._folder = folder
        self.record.save()
        self._folder = None
        self._tell_all(Tag.END, 0)
        return {"digests": digests, "wire_errors": self._wire}

    def _everyone_saved(self) -> bool:
        alive = {(0, k) for k in self.role.workers if k not in self.dead}
        return alive | {(1, k) for k in range(len(self.role.shards))} <= self._saved_by

    def _digests(self, folder: Path) -> dict[str, Any]:
        """Hashes of the final states, and what no push took along."""
        from hlt_train.fleet import digest

        workers: dict[str, str] = {}
        for k in self.role.workers:
            if k in self.dead:
                continue
            worker = Worker(self.program, k, Deal([]))
            load_actor(folder, "worker", k, worker)
            workers[str(k)] = digest(worker.state)
            for share in worker.pending:
                self.coverage.mark(share, HELD)
        shards = []
        for k in range(len(self.role.shards)):
            shard = Shard(self.program, k)
            load_actor(folder, "shard", k, shard)
            shards.append(digest(shard.state))
        vector = self._stored_vector(folder)
        return {"params": hashlib.sha256(np.ascontiguousarray(vector).tobytes()).hexdigest(), "workers": workers, "shards": shards}
