"""Hogwild by processes without a server: workers that race on shared parameters (`transports/lock_free.py`), and what can be said of such a run.

A worker reads the parameters (of a sparse gradient the entries that its batch touches, and no others), takes the gradient there, and adds its update. Nobody
waits for anybody. The clerk reads the parameters to validate while the others go on; for a checkpoint all stop between two batches, so that what it holds is
exactly the sum of the batches that it counts. Such a run has no order: an update may be half in the parameters when another worker reads them. So it cannot be
replayed. It logs, when an update is complete, its place in the order of completion, its batch, its loss and the norm of the update; `serial` does the same
batches in that order one after the other, and tells by how much the race came out elsewhere.

What a race allows of the rest: the certificate of coverage is that of any run. A resumed run goes on from the state of its checkpoint, but nothing makes it
the run that it would have been. A worker that is killed (with fault tolerance the others take over) may leave part of an update, and the batch which it was
adding is done once more.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hlt_train.books import Work
from hlt_train.clerk import Clerk
from hlt_train.crew import Ranks
from hlt_train.errors import RunFailed, UsageError
from hlt_train.files import read_arrays, write_arrays
from hlt_train.sparse_gradient import SparseGradient
from hlt_train.strategies import In, Info, Sparse, Strategy, W
from hlt_train.transports._mpi_worker import WorkerDesk
from hlt_train.transports.account import APPLIED, Coverage
from hlt_train.transports.actors import Worker
from hlt_train.transports.dealing import Share, deals
from hlt_train.transports.journal import file_of, read
from hlt_train.transports.keys import INIT, actor_key
from hlt_train.transports.lock_free import Memory, how_of, touched
from hlt_train.transports.mpi import Crew, stored_actor
from hlt_train.transports.options import MpiOptions
from hlt_train.transports.post import Post
from hlt_train.transports.program import Message, Program
from hlt_train.transports.protocol import Recovery
from hlt_train.transports.watched import Watched, leave_at_once

__all__ = ["RaceProgram", "RaceRanks", "Serial", "Turn", "in_turns", "owners_of", "racing", "serial"]

PARAMETERS = "window.npz"  # of a checkpoint: the shared parameters, and how many updates they hold
PATIENCE = 60.0  # seconds at most inside one call of MPI, which takes microseconds
LOOK = 5e-3  # seconds between two looks of a worker at its messages
NAP = 5e-5  # seconds between two of an owner, whose looks let the others' calls get on


def owners_of(options: MpiOptions) -> int:
    """Processes that a race needs besides the clerk and the workers."""
    return options.servers if options.lock_free == "rma" else 0


def racing(strategy: Strategy, options: MpiOptions) -> bool:
    """Whether the workers of a run race.

    Raises:
        UsageError: options that do not fit together, or not to the strategy.
    """
    alone = strategy.serve is None and not strategy.peers and strategy.batch is None
    fits = alone and (strategy.every, strategy.asks, strategy.fan, strategy.quorum) == (1, 1, 1, 1)
    by_messages = [
        name
        for name, used in {
            "overlap": options.overlap,
            "wire": options.wire != "float32",
            "exchange": options.exchange != "server",
            "respawn": options.respawn > 0,
        }.items()
        if used
    ]
    if options.lock_free in ("node", "rma"):
        if not fits:
            what = "lock_free is for a rule whose server only adds, and this one's does more, or nothing"
            raise UsageError(what, near=("hogwild",), then="leave transport.lock_free out")
        if by_messages:
            raise UsageError(f"without a server there is nothing to which '{by_messages[0]}' applies", then="--set transport.lock_free=no, or leave it out")
    found = fits and not by_messages and options.lock_free != "no"
    if options.hogwild_unsafe and (not found or options.lock_free == "rma"):
        raise UsageError("hogwild_unsafe adds to shared memory without MPI: it is for lock_free=node", then="--strategy hogwild --set transport.lock_free=node")
    return found


class RaceProgram(Program):
    """A program whose server is memory: to the clerk it is one of a rule without server, whose workers are answered by nobody."""

    def __init__(self, program: Program, memory: Memory) -> None:
        vars(self).update(vars(program))
        self.racer = program.strategy
        self.strategy = program.strategy._replace(peers=True)
        self.memory = memory
        self._turns: dict[int, Turn] = vars(program).setdefault("_turns", {})  # compiled once for all races of a process

    def turn(self, index: int) -> Turn:
        """What a worker does, again and again."""
        if index not in self._turns:
            self._turns[index] = Turn(self.racer, self, self.memory, index)
        self._turns[index].memory = self.memory
        return self._turns[index]


class Added(NamedTuple):
    """An update that was made. norm: Euclidean, of all entries. bytes: read and written."""

    loss: float
    norm: float
    bytes: int


class Turn:
    """One batch of a worker: read, gradient, add.

    Args:
        strategy: the rule.
        program: for its gradient and seed.
        memory: with `read`, `read_range`, `read_rows`, `add_range` and `add_rows`, as `Memory` has them.
        index: of the worker.
    """

    def __init__(self, strategy: Strategy, program: Program, memory: Any, index: int) -> None:
        self.strategy, self.memory, self.index, self.seed, self.workers = strategy, memory, index, program.seed, program.workers
        self.gradient = program.gradient
        self.sparse = self.gradient if isinstance(self.gradient, SparseGradient) else None
        self._rows = jax.jit(self.sparse.rows) if self.sparse is not None else None
        self._init = jax.jit(lambda seen, index: strategy.init_worker(seen, Info(index, self.workers, actor_key(self.seed, index, INIT))))
        self._step = jax.jit(self._step_)

    def _step_(self, w: W, seen: Any, batch: Any, index: Any, t: Any) -> tuple[W, Any, Any, Any]:
        for_loss, for_ask = jax.random.split(actor_key(self.seed, index, t))
        w = self.strategy.take(w, seen, In((), jnp.bool_(True), jnp.bool_(True), index, jnp.int32(0)))
        grads: Any
        if self.sparse is None:
            loss, grads = self.gradient(self.strategy.point(w), batch, for_loss)
        else:  # to the rule, the parameters are the entries that were read
            loss, slope = self.sparse.at(self.strategy.point(w), batch, for_loss)
            grads = Sparse(jnp.arange(slope.shape[0], dtype=jnp.int32), slope)
        w, out = self.strategy.ask(self.strategy.step(w, loss, grads), for_ask)
        body = out.body.value if isinstance(out.body, Sparse) else out.body
        return w, loss, body, jnp.asarray(out.push)

    def __call__(self, state: W | None, batch: Any, t: int) -> tuple[W, Added]:
        """Do it. state: of the rule; None: of a worker that begins. t: batches done before."""
        return self._dense(state, batch, t) if self.sparse is None else self._of_rows(self.sparse, state, batch, t)

    def rehearse(self, batch: Any) -> None:
        """Compile it; the memory stays as it is."""
        if self.sparse is None:
            seen = self.memory.read()
        else:
            assert self._rows is not None
            count = len(np.asarray(self._rows(batch))) * self.sparse.width + sum(end - begin for begin, end in self.sparse.others)
            seen = np.zeros(count, np.float32)
        state, _, _ = self._compute(None, seen, batch, 0)
        self._compute(state, seen, batch, 1)

    def _compute(self, state: W | None, seen: np.ndarray, batch: Any, t: int) -> tuple[W, float, np.ndarray]:
        index = np.int32(self.index)
        if state is None:
            state = self._init(seen, index)
        state, loss, body, push = self._step(state, seen, batch, index, np.uint32(t))
        update = np.asarray(body)
        return state, float(loss), update if bool(push) else np.zeros_like(update)

    def _dense(self, state: W | None, batch: Any, t: int) -> tuple[W, Added]:
        seen = self.memory.read()
        state, loss, update = self._compute(state, seen, batch, t)
        self.memory.add_range(0, update)
        return state, Added(loss, float(np.linalg.norm(update)), seen.nbytes + update.nbytes)

    def _of_rows(self, gradient: SparseGradient, state: W | None, batch: Any, t: int) -> tuple[W, Added]:
        assert self._rows is not None
        hits = np.asarray(self._rows(batch))
        met = touched(hits, gradient.buckets)
        table = self.memory.read_rows(gradient.offset, gradient.width, met.rows)
        others = [self.memory.read_range(begin, end) for begin, end in gradient.others]
        seen = np.concatenate([met.spread(table, len(hits)).reshape(-1), *others])
        state, loss, update = self._compute(state, seen, batch, t)
        cut = gradient.width * len(hits)
        sums = met.sums(update[:cut].reshape(-1, gradient.width))
        self.memory.add_rows(gradient.offset, met.rows, sums)
        square, place = float(np.vdot(sums, sums)), cut
        for begin, end in gradient.others:
            part = update[place : place + end - begin]
            self.memory.add_range(begin, part)
            square += float(np.vdot(part, part))
            place += end - begin
        return state, Added(loss, math.sqrt(square), 2 * (sums.nbytes + sum(4 * (end - begin) for begin, end in gradient.others)))


class Racer(Worker):
    """A worker that exchanges nothing: its batch is read, computed and added at once.

    Attributes:
        attempted: additions to single entries, counted where they may be lost.
        moved: bytes since they were last collected.
    """

    def __init__(self, worker: Worker, program: RaceProgram) -> None:
        vars(self).update(vars(worker))
        self._turn, self._memory = program.turn(worker.index), program.memory
        self._fresh = self.t == 0
        self.moved = 0

    def evaluate(self, batch: Any) -> float:
        """Do the batch of `share()`; `batch` is its data. Returns the loss."""
        share = self.deal.pop()
        assert share is not None
        self.state, added = self._turn(None if self._fresh else self.state, batch, self.t)
        self._fresh = False
        line = {"n": self._memory.next_number(), "t": self.t, "step": share[0], "owner": share[1], "loss": added.loss, "norm": added.norm}
        self.note(line)
        self.t += 1
        self.moved += added.bytes
        return added.loss

    def frozen(self) -> dict[str, Any]:
        """The state, for `freeze`."""
        return {**super().frozen(), "attempted": self._memory.attempted}


class RaceDesk(WorkerDesk):
    """The worker of a process, racing."""

    crew: RaceCrew

    def __init__(self, crew: Crew, index: int) -> None:
        super().__init__(crew, index)
        assert isinstance(crew.program, RaceProgram)
        self.racer = self.worker = Racer(self.worker, crew.program)

    def _rehearse(self, batch: Any) -> None:
        assert isinstance(self.program, RaceProgram)
        self.program.turn(self.worker.index).rehearse(batch)

    def _batch(self) -> None:
        share = self.worker.share()
        assert share is not None
        batch = self._data(share)
        begin = time.monotonic()
        loss = self.worker.evaluate(batch)
        end = time.monotonic()
        self._report["losses"].append(loss)
        self._report["compute"] += end - begin
        self._report["messages"] += 1
        self._report["applied"].append(list(share))
        self._crossed -= self.racer.moved
        self.racer.moved = 0
        self._span("compute", begin, end)
        if self.worker.t % self.crew.steps_per_epoch == 0:
            self._reported = 0.0  # the clerk waits for the end of an epoch


class RaceCrew(Crew):
    """A process of a race: it hosts a worker, or, as an owner, parameters."""

    desk_kind = RaceDesk
    _looked = 0.0

    @property
    def owner(self) -> bool:
        """Whether others wait for this process to let their calls get on."""
        assert isinstance(self.program, RaceProgram)
        return self.program.memory.how == "rma"

    def pump(self, timeout: float) -> None:
        """Take and do what has come. A worker between two batches need not look each time; an owner looks all the time."""
        now = time.monotonic()
        if self.worker is None:
            self._heard = now
            if self.owner:
                time.sleep(NAP)
                timeout = 0.0
        elif timeout == 0.0 and now - self._looked < LOOK:
            return
        self._looked = now
        super().pump(timeout)


class RaceClerk(Clerk):
    """The clerk of a race: it reads the parameters where they are.

    Attributes:
        attempted: additions of all workers, counted where they may be lost.
    """

    attempted: int

    @property
    def memory(self) -> Memory:
        """The parameters."""
        assert isinstance(self.program, RaceProgram)
        return self.program.memory

    def begin(self, before: Coverage | None = None, **more: Any) -> None:
        """Go to the last checkpoint of the run, if there is one."""
        super().begin(before, **more)
        if self.role.folder:
            stored = read_arrays(Path(self.role.folder) / PARAMETERS)
            self.memory.set(stored["parameters"], int(stored["updates"][0]))
        else:
            self.memory.set(self.program.vector)

    def _advance(self) -> None:
        books = self.books
        books.settle_to(books.reached(self.alive))
        if books.at_end_of_epoch() and self.record.tally.step < self.work.steps:
            self._end_epoch(self.memory.read())
        self._lengthen()
        books.show()

    def _stored_vector(self, _folder: Path) -> np.ndarray:
        return self.memory.read()

    def _save(self, folder: Path) -> None:
        write_arrays(folder / PARAMETERS, {"parameters": self.memory.read(), "updates": np.array([self.memory.number()])})
        self.attempted = sum(stored_actor(folder, "worker", k)["attempted"] for k in sorted(self.alive))
        super()._save(folder)

    def _death(self, k: int, rank: int) -> None:
        """What a worker had added before it died stands in its log, if not in its last report."""
        for line in updates(read(file_of(self.run.path, "worker", k))):
            if self.books.coverage.is_open(line.share):
                self.books.coverage.mark(line.share, APPLIED)
                self.books.account.applied[k] += 1
        super()._death(k, rank)

    def more(self) -> dict[str, Any]:
        """What `transport.json` says of the race."""
        found: dict[str, Any] = {"lock_free": self.memory.how, "updates": self.memory.number(), "unsafe": None}
        if self.memory.unsafe and self.attempted:
            arrived = self.memory.counted()
            found["unsafe"] = {"additions": self.attempted, "arrived": arrived, "lost_fraction": 1 - arrived / self.attempted}
        return {"race": found}


class RaceRanks(Ranks):
    """This process's part in a race."""

    clerk_kind = RaceClerk
    crew_kind = RaceCrew

    def __init__(self, mail: Any, work: Work, options: MpiOptions, path: Path, *more: Any, **others: Any) -> None:
        super().__init__(mail, work._replace(program=self._shared(mail.post, work, options, path)), options, path, *more, **others)

    @staticmethod
    def _shared(post: Post, work: Work, options: MpiOptions, path: Path) -> RaceProgram:
        """The parameters of all ranks, and what is done where a call does not come back."""
        how = how_of(post.comm, options.lock_free)
        patience = min(PATIENCE, options.watchdog)
        owners = (0,) if how == "node" else tuple(range(1 + options.workers, 1 + options.workers + options.servers))
        if owners[-1] >= post.size:
            raise UsageError(
                f"parameters in windows across nodes need {options.servers} processes that own them: {owners[-1] + 1} in all, there are {post.size}",
                then=f"mpirun -n {owners[-1] + 1} hlt-train fit ..., or --set transport.lock_free=no",
            )

        def give_up() -> None:
            text = f"a call that adds to shared parameters has not returned for {patience:g} s: a process was probably killed inside one and holds its lock"
            with (path / "log.txt").open("a") as stream:
                stream.write(f"rank {post.rank}: {text}\n")
            leave_at_once(post.rank, text, then=f"hlt-train fit --resume {path}")

        memory = Memory(post.comm, len(work.program.vector), how, owners, Watched(patience, give_up), unsafe=options.hogwild_unsafe)
        return RaceProgram(work.program, memory)

    def _lead(self, alive: Sequence[int]) -> dict[str, Any]:
        try:
            return super()._lead(alive)
        except Recovery as error:
            raise self._over() from error

    def _follow(self, clerk: int) -> None:
        try:
            super()._follow(clerk)
        except Recovery as error:
            raise self._over() from error

    def _over(self) -> RunFailed:
        return RunFailed("the clerk of a race has died, or a process that owns its parameters", then=f"hlt-train fit --resume {self.path}")


# What is left of a race.


class Update(NamedTuple):
    """A line of a worker's log: an update, when it was complete. n: its place in the order of completion."""

    n: int
    worker: int
    t: int
    share: Share
    loss: float
    norm: float


def updates(lines: Iterable[Any], worker: int = -1) -> list[Update]:
    """Those of a worker's log."""
    found = [line for line in lines if isinstance(line, dict) and "n" in line]
    return [Update(line["n"], worker, line["t"], (line["step"], line["owner"]), line["loss"], line["norm"]) for line in found]


class Serial:
    """Parameters of one process, with the face of `Memory`."""

    def __init__(self, vector: np.ndarray) -> None:
        self.vector = np.array(vector, np.float32)

    def read(self) -> np.ndarray:
        """All of it."""
        return self.vector.copy()

    def read_range(self, begin: int, end: int) -> np.ndarray:
        """A run of entries."""
        return self.vector[begin:end].copy()

    def read_rows(self, offset: int, width: int, rows: np.ndarray) -> np.ndarray:
        """Rows of a table."""
        found: np.ndarray = self._table(offset, width)[rows]
        return found

    def add_range(self, begin: int, values: np.ndarray) -> None:
        """Add to a run of entries."""
        self.vector[begin : begin + len(values)] += values

    def add_rows(self, offset: int, rows: np.ndarray, values: np.ndarray) -> None:
        """Add to rows of a table, each once."""
        self._table(offset, values.shape[1])[rows] += values

    def _table(self, offset: int, width: int) -> np.ndarray:
        usable = offset + (len(self.vector) - offset) // width * width
        return self.vector[offset:usable].reshape(-1, width)


def serial(program: Program, data: Callable[[Share], Any], logs: Mapping[int, Sequence[Any]], raced: np.ndarray) -> dict[str, Any]:
    """The batches of a race one after the other, in the order in which they were complete, and how far from it the race came out.

    Args:
        program: the strategy.
        data: share -> batch.
        logs: of the workers.
        raced: the parameters at the end of the race.
    """
    lines = sorted(line for k, log in logs.items() for line in updates(log, k))
    memory = Serial(program.vector)
    turns = {k: Turn(program.strategy, program, memory, k) for k in logs}
    states: dict[int, W | None] = dict.fromkeys(logs)
    losses, norms = np.zeros(len(lines)), np.zeros(len(lines))
    for i, line in enumerate(lines):
        states[line.worker], added = turns[line.worker](states[line.worker], data(line.share), line.t)
        losses[i], norms[i] = added.loss, added.norm
    return {
        "updates": len(lines),
        "parameters": _apart(raced, memory.vector, program.vector),
        "losses": _deviation(np.array([line.loss for line in lines]), losses),
        "norms": _deviation(np.array([line.norm for line in lines]), norms),
        "vector": memory.vector,
    }


def in_turns(program: Program, data: Callable[[Share], Any], steps: int, ran: np.ndarray) -> dict[str, Any]:
    """The batches of peers in turns, with every message arriving at once and none lost, and how far from that a run came out.

    Args:
        program: the strategy, one without server.
        data: share -> batch.
        steps: of each worker.
        ran: the parameters at the end of the run.
    """
    workers = [Worker(program, k, deal) for k, deal in enumerate(deals(program.workers, steps, program.strategy.warm))]
    inbox: dict[int, list[Message]] = {worker.index: [] for worker in workers}
    count = 0
    while any(worker.wants != "done" for worker in workers):
        for worker in workers:
            share = worker.share()
            if worker.wants != "batch" or share is None:
                continue
            worker.evaluate(data(share))
            count += 1
            if worker.number < 0:  # not at an exchange point
                continue
            worker.peers(inbox[worker.index])
            inbox[worker.index] = []
            for message in worker.ask():
                inbox[message.to].append(message)
    vector = program.params([worker.state for worker in workers], [])
    return {"updates": count, "parameters": _apart(ran, vector, program.vector), "vector": vector}


def _apart(ran: np.ndarray, again: np.ndarray, start: np.ndarray) -> dict[str, float]:
    """How far parameters are from others: distance, that in terms of how far those are from the start, and the largest of an entry."""
    apart = float(np.linalg.norm(ran.astype(np.float64) - again))
    way = float(np.linalg.norm(again.astype(np.float64) - start))
    return {"distance": apart, "relative": apart / way if way else 0.0, "largest": float(np.abs(ran - again).max(initial=0.0))}


def _deviation(raced: np.ndarray, again: np.ndarray) -> dict[str, float]:
    """Mean over the batches of a figure of both, and of the distance between them."""
    if not len(raced):
        return {"race": 0.0, "serial": 0.0, "mean_distance": 0.0}
    return {"race": float(raced.mean()), "serial": float(again.mean()), "mean_distance": float(np.abs(raced - again).mean())}
