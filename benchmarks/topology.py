"""The topology classifier of mpi_learn by processes: one process, the earlier protocol, and `--transport mpi`, on the same rows in the same processes.

Toy topologies (`hlt-train toy --kind topology`), the LSTM of 3,024 parameters, 100 rows per worker and batch, rmsprop. Columns:

    alone       one process without a server, `fit` as it is (the baseline that mpi_learn lacked)
    earlier     mpi_learn's protocol (`earlier_protocol.py`): a message per tensor, a master that updates in NumPy and validates while all wait
    downpour    hlt-train --transport mpi --strategy downpour, one server; also with --overlap
    easgd       hlt-train --transport mpi --strategy easgd, every 10 batches

For each number of workers N the columns alternate in the same processes, so that other load on the machine meets all of them. Times count from the first
gradient, compiled before. Then the simulator (`--transport simulate`) predicts the same with the times of a batch, of a message and of the server measured at
N = 1: beside the real runs on as many cores as here, and for more workers with a core each. Compare what stands in one table only: every ratio is against
`alone` of the same repeats. Where other processes want the cores too, several processes get more of them than one does, so that the ratios flatter the columns
with many; the CPU time of all processes per batch does not depend on that (but a process that spins while it waits spins longer).

    python benchmarks/topology.py [-n 20000] [--particles 32] [--epochs 6] [--repeats 3] [--loss 0.6] [--workers 1,2,4] [--quick]
    python benchmarks/topology.py --times 3.8,0.5,0.5      the simulator alone, whose clock does not depend on other load
    python benchmarks/topology.py --chaos      a worker or the master is killed, a worker is stopped for 20 s: the earlier protocol and hlt-train
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import earlier_protocol
import numpy as np
from earlier_protocol import Problem, gaps

from hlt_train.report.table import plus_minus, table

BATCH, FILES, RATE = 100, 8, 0.003
RULES: dict[str, tuple[str, dict[str, Any], bool]] = {  # column -> (strategy, its options, overlap)
    "downpour": ("downpour", {}, False),
    "downpour, overlap": ("downpour", {}, True),
    "easgd": ("easgd", {"period": 10}, False),
}
COLUMNS = ("alone", "earlier", *RULES)
REHEARSED = 2  # calls before the first batch
FIRST = 2  # rank of the first worker: before it are the clerk, which is also the master and the one that trains alone, and the server
BEYOND = (8, 16, 32, 64)
STOPPED = 20.0  # seconds
CHAOS = ("nothing", "worker killed", "master killed", "worker stopped")
PATIENCE = 30.0  # seconds, besides thrice the undisturbed run and the time that a worker is stopped: then a run hangs


class Ran(NamedTuple):
    """What a run gave.

    Attributes:
        seconds: from the first gradient to the end of the last.
        rows: trained on in that time.
        curve: (seconds, validation loss) at ends of epochs.
        accuracy: of the last validation.
        compute: seconds of gradients, each, of all workers.
        exposed: seconds between gradients, each, of all workers.
        cpu: seconds of all processes per batch.
        waiting: seconds that workers waited for an answer, in all; None: not known apart from `exposed`.
        served: seconds of the server's update, each.
    """

    seconds: float
    rows: int
    curve: list[tuple[float, float]]
    accuracy: float
    compute: list[float]
    exposed: list[float]
    cpu: float
    waiting: float | None = None
    served: list[float] = []  # noqa: RUF012 - never changed

    def until(self, loss: float) -> float | None:
        """Seconds until the validation loss is reached, linear between the ends of epochs; None: it is not."""
        before = (0.0, float(np.log(3)))
        for at, found in self.curve:
            if found <= loss:
                return before[0] + (at - before[0]) * (before[1] - loss) / max(before[1] - found, 1e-9)
            if found < before[1]:
                before = (at, found)
        return None


class Bench:
    """The problem in one process, and every column on it."""

    def __init__(self, folder: Path, given: argparse.Namespace, workers: int) -> None:
        from hlt_train import devices

        devices.prepare(1)
        import jax

        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        from hlt_train.configuration import check
        from hlt_train.data.card import load_card
        from hlt_train.data.stream import Stream
        from hlt_train.fit import FitConfig, prepare
        from hlt_train.progress import Progress
        from hlt_train.validation import Validator

        self.folder, self.given, self.workers = folder, given, workers
        card = load_card("toy_topology")
        card.samples["events"].files = [str(folder / "topology.root")]
        card.inputs["particles"].length = given.particles
        content = {"card": card.model_dump(mode="json"), "model": {"name": "topology"}, "batch": BATCH, "for": f"{given.epochs}epochs", "learning_rate": RATE}
        content |= {"optimizer": {"name": "rmsprop", "eps": 1e-8}, "schedule": {"name": "constant_schedule"}}
        self.mesh = devices.mesh(1)
        self.ready = prepare(check(FitConfig, content), self.mesh, Progress(quiet=True))
        self.task, self.quiet = self.ready.task, Progress(quiet=True)
        self.validator = Validator(self.task.losses, self.task.validation, self.mesh, resident=True)
        self.stream = Stream(self.ready.dataset, "train", self.ready.inputs, batch=BATCH * workers, workers=workers, seed=1)
        self.rows = self.stream.rows
        self._runs = 0

    def validate(self, params: Any) -> dict[str, float]:
        """Figures of the validation split."""
        from hlt_train.devices import replicate

        return self.validator(replicate(params, self.mesh))

    # One process.

    def alone(self, epochs: int, run: Path) -> Ran:
        """`fit` of one process: devices in lockstep, of which there is one."""
        from hlt_train.run import Run
        from hlt_train.training import Trainer

        ready = self.ready
        plan = ready.plan._replace(steps=epochs * self.task.train.steps_per_epoch)
        with Run.create(run) as opened:
            opened.write_config(ready.config.stored())
            trainer = Trainer(self.task, plan, ready.strategy, self.mesh, opened, self.quiet, ready.schedule)
            trainer.validate = _recorded(trainer.validate, spent := [], time.process_time)
            trainer.train()
        lines = _epochs(run)
        seconds = [line["seconds"] for line in lines]
        if len(seconds) > 1:
            seconds[0] = statistics.median(seconds[1:])  # it holds the compilation
        validating = [line["validation_seconds"] for line in lines]
        validating[0] = min(validating)
        ends = np.cumsum(seconds) + np.cumsum([0.0, *validating[:-1]])
        curve = [(float(at), line["validation"]["loss"]) for at, line in zip(ends, lines, strict=True)]
        batches = epochs * self.task.train.steps_per_epoch
        cpu = (spent[-1][0] - spent[0][0]) / max(batches - self.task.train.steps_per_epoch, 1)  # after the first epoch
        return Ran(float(ends[-1]), epochs * self.rows, curve, lines[-1]["validation"]["accuracy"], [sum(seconds) / batches], [0.0], cpu)

    # The earlier protocol.

    def earlier(self, epochs: int, comm: Any, strike: Callable[[int], None] = lambda _count: None) -> Any:
        """This rank's part. `strike` is called with the number of the gradient, and at the master with that of the validation."""
        import jax

        from hlt_train.task import gradient_of

        if not hasattr(self, "_earlier"):
            leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, self.task.params))
            compiled = jax.jit(gradient_of(self.task))
            self._earlier = leaves, structure, compiled, self.stream.resident()
        leaves, structure, compiled, whole = self._earlier
        key, count = jax.random.key(0), [0]

        def gradient(weights: list[np.ndarray], batch: Any) -> tuple[float, list[np.ndarray]]:
            count[0] += 1
            strike(count[0])
            loss, grads = compiled(jax.tree.unflatten(structure, weights), batch, key)
            return float(loss), [np.asarray(leaf) for leaf in jax.tree.leaves(grads)]

        def rows(k: int) -> np.ndarray:
            return np.concatenate([part for i, part in enumerate(np.array_split(np.arange(self.rows), FILES)) if i % self.workers == k])

        def batches(k: int) -> list[Any]:
            mine = rows(k)
            return [jax.tree.map(lambda leaf, r=mine[i : i + BATCH]: leaf[r], whole) for i in range(0, len(mine) - BATCH + 1, BATCH)]

        def validate(weights: list[np.ndarray]) -> dict[str, float]:
            count[0] += 1
            strike(count[0])
            return self.validate(jax.tree.unflatten(structure, weights))

        updates = sum(len(rows(k)) // BATCH for k in range(self.workers))
        problem = Problem(leaves, gradient, batches, validate, epochs, updates, "rmsprop", RATE)
        return earlier_protocol.master(comm, problem) if comm.rank == 0 else earlier_protocol.worker(comm, problem)

    # By processes.

    def program(self, column: str, shares: Any, workers: int) -> Any:
        """The rule of a column, compiled for the network; and the function that makes the network's parameters of a vector."""
        from hlt_train import plugins
        from hlt_train.fleet import make_program
        from hlt_train.optimisers import optimiser
        from hlt_train.strategies import Setup
        from hlt_train.transports.program import overlapped

        rule, more, overlap = RULES[column]
        setup = Setup(workers, self.ready.schedule, lambda rate: optimiser("rmsprop", rate, {"eps": 1e-8}), portions=self.stream.steps_per_epoch * workers)
        strategy = overlapped(plugins.factory("strategies", rule)(setup, **more), overlap=overlap)
        return make_program(self.task, strategy, shares((0, 0)), workers=workers, servers=1, seed=1, wire="float32")

    def work(self, column: str) -> Any:
        """What ranks train, with the times of gradients and of the server kept."""
        import jax

        from hlt_train.clerk import Work
        from hlt_train.shares import Shares

        if not hasattr(self, "_shares"):
            self._shares = Shares(self.stream, self.workers, BATCH * self.workers, resident=True)
        shares, stream = self._shares, self.stream
        program, unravel = self.program(column, shares, self.workers)
        program.spans, program.served, program.validated = [], [], []
        _record_batches(program)
        program.serve = _recorded(program.serve, program.served)

        def rows(begin: int, end: int) -> int:
            upto = [s // stream.steps_per_epoch * stream.rows + min(s % stream.steps_per_epoch * BATCH * self.workers, stream.rows) for s in (begin, end)]
            return upto[1] - upto[0]

        def validate(vector: np.ndarray) -> dict[str, float]:
            at = time.monotonic()
            figures = self.validate(jax.device_get(unravel(vector)))
            program.validated.append((at, figures["loss"], figures["accuracy"]))
            return figures

        return Work(
            program=program,
            data=shares,
            steps=0,
            steps_per_epoch=stream.steps_per_epoch,
            rows=rows,
            batch=BATCH * self.workers,
            weights=lambda v: jax.device_get(unravel(v)),
            validate=validate,
            rate=lambda _step: RATE,
            finish=lambda coverage, _step: {"epochs": [{"classes": coverage.counts(e), **coverage.extras(e)} for e in sorted(coverage.epochs)]},
            plan=None,
        )

    def processes(self, work: Any, column: str, epochs: int, run: Path, mail: Any, **more: Any) -> Any:
        """This rank's part of a run by processes. Returns its figures on the clerk."""
        from hlt_train.crew import Ranks
        from hlt_train.run import Run
        from hlt_train.transports.options import MpiOptions

        def opened() -> Run:
            if (run / "config.yaml").is_file():
                return Run.open(run)
            found = Run.create(run)
            found.write_config(self.ready.config.stored())
            return found

        steps = epochs * self.stream.steps_per_epoch
        plan = self.ready.plan._replace(steps=steps, checkpoint_every=more.pop("checkpoint_every", None))
        options = MpiOptions(name="mpi", workers=self.workers, overlap=RULES[column][2], timeline=False, **more)
        for kept in (work.program.spans, work.program.served, work.program.validated):
            kept.clear()
        self._runs += 1
        ranks = Ranks(mail, work._replace(steps=steps, plan=plan), options, run, opened, self.quiet, first=1000 * self._runs)
        found = ranks.train()
        if ranks.run is not None:
            ranks.run.__exit__(None, None, None)
        return found


def _epochs(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("event") == "epoch"]


class _Loss:
    """A loss that notes when it is there."""

    def __init__(self, loss: Any, began: float, spans: list[tuple[float, float]]) -> None:
        self.loss, self.began, self.spans = loss, began, spans

    def __float__(self) -> float:
        found = float(self.loss)
        self.spans.append((self.began, time.monotonic()))
        return found


def _record_batches(program: Any) -> None:
    """Keep the times of a program's batches, those of the rehearsal left out."""
    begin, rehearse = program.begin, program.rehearse

    def begun(*arguments: Any) -> Any:
        began = time.monotonic()
        state, loss = begin(*arguments)
        return state, _Loss(loss, began, program.spans)

    def rehearsed(*arguments: Any) -> None:
        rehearse(*arguments)
        program.spans.clear()

    program.begin, program.rehearse = begun, rehearsed


def _recorded(function: Callable[..., Any], spans: list[tuple[float, float]], clock: Callable[[], float] = time.monotonic) -> Callable[..., Any]:
    def measured(*arguments: Any) -> Any:
        began = clock()
        found = function(*arguments)
        spans.append((began, clock()))
        return found

    return measured


def asleep(comm: Any) -> None:
    """Wait for all ranks without taking a core."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(5e-3)


def rank(folder: Path, given: argparse.Namespace) -> None:
    """What every process of the launch with N workers does: all columns in turn, so often; once before, with one epoch, to compile."""
    from hlt_train.crew import open_post
    from hlt_train.transports.protocol import Mail

    bench = Bench(folder, given, given.of)
    works = {column: bench.work(column) for column in RULES}
    post = open_post(works["downpour"])
    mail = Mail(post)
    part = 0 if post.rank == 0 or post.rank >= FIRST else 1
    comm = post.comm.Split(part, post.rank)
    kept: list[tuple[str, Any, float]] = []
    for repeat in range(-1, given.repeats):
        for column in COLUMNS:
            run, epochs = folder / f"{given.of}-{repeat}-{column.replace(', ', '-')}", 1 if repeat < 0 else given.epochs
            found: Any = None
            asleep(post.comm)
            spent = time.process_time()
            if column == "alone":
                found = bench.alone(epochs, run) if post.rank == 0 else None
            elif column == "earlier":
                found = bench.earlier(epochs, comm) if part == 0 else None
            else:
                bench.processes(works[column], column, epochs, run, mail)
                program = works[column].program
                found = {"spans": list(program.spans), "served": list(program.served), "validated": list(program.validated)}
            if repeat >= 0:
                kept.append((column, found, time.process_time() - spent))
    (folder / f"{given.of}-rank{post.rank}.json").write_text(json.dumps(kept))
    asleep(post.comm)
    comm.Free()
    post.close(30.0)
    bench.ready.dataset.close()


def collect(folder: Path, workers: int) -> dict[str, list[Ran]]:
    """What the ranks wrote, by column."""
    by_rank = [json.loads((folder / f"{workers}-rank{k}.json").read_text()) for k in range(FIRST + workers)]
    found: dict[str, list[Ran]] = {column: [] for column in COLUMNS}
    for place, (column, clerk, _) in enumerate(by_rank[0]):
        of_workers = [by_rank[FIRST + k][place][1] for k in range(workers)]
        if column == "alone":
            found[column].append(Ran(*clerk))
            continue
        spans = [w[0] if column == "earlier" else w["spans"] for w in of_workers]
        begin, end = min(s[0][0] for s in spans), max(s[-1][1] for s in spans)
        compute = [e - b for s in spans for b, e in s]
        exposed = [float(g) for s in spans for g in gaps(s)]
        cpu = sum(kept[place][2] for kept in by_rank) / len(compute)
        if column == "earlier":
            epochs, serving, _ = clerk
            rows = len(compute) * BATCH
            curve = [(at, figures["loss"]) for at, figures in epochs]
            found[column].append(Ran(end - begin, rows, curve, epochs[-1][1]["accuracy"], compute, exposed, cpu, None, serving))
            continue
        run = folder / f"{workers}-{place // len(COLUMNS)}-{column.replace(', ', '-')}"
        seconds = json.loads((run / "transport.json").read_text())["seconds"]
        served = [e - b for b, e in by_rank[1][place][1]["served"]]
        curve = [(at - begin, loss) for at, loss, _ in clerk["validated"]]
        rows = found["alone"][0].rows
        found[column].append(Ran(end - begin, rows, curve, clerk["validated"][-1][2], compute, exposed, cpu, sum(seconds["waiting"]), served))
    return found


# The simulator.


class Times(NamedTuple):
    """Seconds of a batch with all that its worker does besides, of the server's part, of a message: what the simulator is told."""

    compute: float
    service: float
    latency: float


def measured_times(runs: list[Ran]) -> Times:
    """Means, of the middle one of runs with one worker that waits for its answers."""
    compute, exposed, service = (statistics.median(float(np.mean(getattr(r, name))) for r in runs) for name in ("compute", "exposed", "served"))
    waiting = statistics.median((r.waiting or 0.0) / len(r.compute) for r in runs)
    waiting = min(waiting, exposed)
    return Times(compute + exposed - waiting, min(service, waiting), max(0.0, waiting - service) / 2)


def simulate(bench: Bench, column: str, times: Times, cores: int | None) -> Ran:
    """A run of all epochs under the virtual clock."""
    import jax

    from hlt_train.shares import Shares
    from hlt_train.transports.account import Coverage
    from hlt_train.transports.simulate import Simulation, Timing

    workers, stream = bench.workers, bench.stream
    shares = Shares(stream, workers, BATCH * workers, resident=True)
    program, unravel = bench.program(column, shares, workers)
    timing = Timing(compute=times.compute, latency=times.latency, service=times.service, cores=cores)
    steps = bench.given.epochs * stream.steps_per_epoch
    simulation = Simulation(program, shares, steps=steps, coverage=Coverage(stream.steps_per_epoch, workers), timing=timing)
    curve, accuracy = [], 0.0
    for epoch in range(1, bench.given.epochs + 1):
        simulation.advance(epoch * stream.steps_per_epoch * workers)
        if epoch == bench.given.epochs:
            simulation.drain()
        figures = bench.validate(jax.device_get(unravel(simulation.params())))
        curve.append((simulation.now, figures["loss"]))
        accuracy = figures["accuracy"]
    return Ran(simulation.now, bench.given.epochs * stream.rows, curve, accuracy, [times.compute], [0.0], 0.0, float(simulation.account.waiting.sum()))


# Tables.


def main(given: argparse.Namespace) -> None:
    from hlt_train.datasets.topology import write_topology
    from hlt_train.transports.launch import launch

    load, began = os.getloadavg()[0], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hlt-train-bench-") as name:
        folder = Path(name)
        write_topology(folder / "topology.root", given.n, 1, particles=given.particles)
        if given.chaos:
            chaos(folder, given)
            return
        if given.times:
            predict(folder, given, {})
            return
        real: dict[int, dict[str, list[Ran]]] = {}
        for workers in given.workers:
            ended = launch([__file__, *sys.argv[1:], "--rank", name, "--of", str(workers)], FIRST + workers)
            if ended.code:
                raise SystemExit(ended.text)
            real[workers] = collect(folder, workers)
            show(real[workers], given, workers)
        predict(folder, given, real)
    cores = len(os.sched_getaffinity(0))
    print(f"\n{cores} core(s), load {load:.1f} before and {os.getloadavg()[0]:.1f} after, {time.monotonic() - began:.0f} s.")
    print("N workers, a server and a clerk (earlier: N workers and a master) are N + 2 processes: where these are more than the cores, they take the cores")
    print(f"from one another. No speed-up is above {cores} then, the exchange of one worker runs at the expense of another's gradient, and overlap hides")
    print(
        "only what some core has time for: these runs show what the protocols cost, not how they scale; that is for the simulator, with a core for each worker."
    )


def middle(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} .. {max(values):.2f})"


def show(found: dict[str, list[Ran]], given: argparse.Namespace, workers: int) -> None:
    """The table of one number of workers."""
    alone = found["alone"]
    rows = []
    for column, runs in found.items():
        speed = [r.rows / r.seconds for r in runs]
        ratio = [s / (a.rows / a.seconds) for s, a in zip(speed, alone, strict=True)]
        to_loss = [a.until(given.loss) / t for r, a in zip(runs, alone, strict=True) if (t := r.until(given.loss)) and a.until(given.loss)]
        exposed = statistics.median(float(np.mean(r.exposed)) for r in runs)
        share = statistics.median(sum(r.exposed) / (sum(r.exposed) + sum(r.compute)) for r in runs)
        waits = [1e3 * r.waiting / len(r.compute) for r in runs if r.waiting is not None]
        rows.append(
            [
                column,
                f"{statistics.median(speed):,.0f}",
                middle(ratio),
                middle(to_loss) if len(to_loss) == len(runs) else f"reached by {len(to_loss)} of {len(runs)}",
                f"{1e3 * statistics.median(float(np.mean(r.compute)) for r in runs):.2f}",
                f"{1e3 * exposed:.2f}",
                f"{100 * share:.0f} %",
                f"{statistics.median(waits):.2f}" if waits else "",
                f"{1e3 * statistics.median(r.cpu for r in runs):.2f}",
                plus_minus(float(np.mean([r.accuracy for r in runs])), round(float(np.std([r.accuracy for r in runs], ddof=1)), 9) if len(runs) > 1 else 0.0),
            ]
        )
    header = [
        "column",
        "rows/s",
        f"to alone, {given.epochs} epochs",
        f"to alone, loss {given.loss:g}",
        "gradient, ms",
        "exposed, ms",
        "of time",
        "waiting, ms",
        "CPU, ms",
        "accuracy",
    ]
    print(
        table(rows, header, title=f"\nN = {workers}: {given.n:,} rows in the file, {given.particles} particles, medians (range) of {given.repeats} repeats"),
        flush=True,
    )


def predict(folder: Path, given: argparse.Namespace, real: dict[int, dict[str, list[Ran]]]) -> None:
    """The simulator beside the real runs, and beyond them; with `--times` by itself."""
    cores = len(os.sched_getaffinity(0))
    if given.times:
        times, told = Times(*(t / 1e3 for t in given.times)), "given"
        bench = Bench(folder, given, 1)
        alone = [simulate(bench, "downpour", Times(times.compute, 0.0, 0.0), None)]  # with one worker, no service and no latency it is the serial optimiser
        bench.ready.dataset.close()
    else:
        times, told = measured_times(real[min(real)]["downpour"]), f"measured at N = {min(real)}"
        alone = [ran for runs in real.values() for ran in runs["alone"]]
    one = statistics.median(ran.rows / ran.seconds for ran in alone)
    base = statistics.median(ran.until(given.loss) or np.nan for ran in alone)
    rows = []
    for workers in [*given.workers, *(BEYOND if not given.quick else ())]:
        bench = Bench(folder, given, workers)
        beyond = workers in BEYOND
        for column in RULES:
            if beyond and column == "downpour":
                continue  # with overlap is what one would run
            ran = simulate(bench, column, times, None if beyond else cores)
            speed, until = ran.rows / ran.seconds, ran.until(given.loss)
            line = [workers, column, "each one" if beyond else cores, f"{speed / one:.2f}"]
            if real:
                found = [r.rows / r.seconds for r in real[workers][column]] if workers in real else []
                line += [middle([f / one for f in found]), f"{speed / statistics.median(found):.2f}"] if found else ["", ""]
            rows.append([*line, f"{base / until:.2f}" if until else "not reached", f"{ran.accuracy:.4f}"])
        bench.ready.dataset.close()
    header = [
        "N",
        "column",
        "cores",
        "predicted to alone",
        *(("measured", "predicted / measured") if real else ()),
        f"to alone, loss {given.loss:g}",
        "accuracy",
    ]
    what = f"batch {1e3 * times.compute:.2f} ms, server {1e3 * times.service:.2f} ms, message {1e3 * times.latency:.2f} ms ({told})"
    print(table(rows, header, title=f"\nsimulator: {what}"), flush=True)


# Chaos.


def chaos(folder: Path, given: argparse.Namespace) -> None:
    """What becomes of both when a process is killed or stopped."""
    rows, undisturbed = [], {"earlier": 600.0, "downpour": 600.0}
    for what in CHAOS:
        for column, before in undisturbed.items():
            seconds, result = disturbed(folder, what, column, 3 * before + STOPPED + PATIENCE)
            undisturbed[column] = seconds if what == "nothing" else before
            rows.append([what, column, f"{seconds:.0f}", *result])
    header = ["what happens", "column", "s", "ends", "applied once", "validation loss"]
    what = (
        f"2 workers, {given.epochs} epochs; killed, or stopped for {STOPPED:g} s, after a third of the batches (the earlier master: at its second validation)"
    )
    print(table(rows, header, title=f"\n{what}; load {os.getloadavg()[0]:.1f}"))


def disturbed(folder: Path, what: str, column: str, patience: float) -> tuple[float, list[str]]:
    """Seconds of a run, and how it ended. It has a process of its own, which may be ended."""
    name = f"{column}-{what.replace(' ', '-')}"
    command = [sys.executable, __file__, *sys.argv[1:], "--launch", name, "--rank", str(folder)]
    began = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    hung = False
    try:
        code = process.wait(patience)
    except subprocess.TimeoutExpired:
        hung, code = True, -1
        for _ in range(3):  # the third ends the ranks at once
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        process.wait()
    seconds = time.monotonic() - began
    result = folder / f"{name}.json"
    ends = "hangs" if hung else "aborts, nothing is saved" if code else "completes"
    if not result.is_file():
        return seconds, [ends, "", ""]
    applied, loss = json.loads(result.read_text())
    return seconds, [ends, applied, f"{loss:.4f}"]


def launch_disturbed(name: str) -> None:
    """Start the ranks of a run to which something happens."""
    from hlt_train.transports.launch import launch

    ours = name.startswith("downpour")
    ended = launch([__file__, *sys.argv[1:], "--of", "2"], (FIRST if ours else 1) + 2, fault_tolerant=ours)
    raise SystemExit(ended.code)


def strike(what: str) -> None:
    """Happen to this process."""
    if what == "worker stopped":
        subprocess.Popen(["sh", "-c", f"sleep {STOPPED}; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def disturbed_rank(folder: Path, given: argparse.Namespace, name: str) -> None:
    """A rank of a run to which something happens."""
    column, _, what = name.partition("-")
    what = what.replace("-", " ")
    bench = Bench(folder, given, 2)
    at = max(2, given.epochs * bench.rows // BATCH // 2 // 3)  # batches of a worker
    if column == "earlier":
        from hlt_train.transports.post import mpi

        comm = mpi().COMM_WORLD.Dup()

        def happen(count: int) -> None:
            if (what.startswith("worker") and comm.rank == 2 and count == at) or (what == "master killed" and comm.rank == 0 and count == 2):
                strike(what)

        found = bench.earlier(given.epochs, comm, happen)
        if comm.rank == 0:
            rows = len(found.serving) * BATCH
            (folder / f"{name}.json").write_text(json.dumps([f"{rows:,} of {given.epochs * bench.rows:,} rows", found.epochs[-1][1]["loss"]]))
        return
    from hlt_train.crew import open_post
    from hlt_train.transports.protocol import Mail

    work = bench.work("downpour")
    post = open_post(work)
    function, target = ("serve", 1) if what == "master killed" else ("begin", FIRST + 1)
    if what != "nothing" and post.rank == target:
        limit, counted, inner = REHEARSED + (2 * at if function == "serve" else at), [0], getattr(work.program, function)

        def struck(*arguments: Any) -> Any:
            counted[0] += 1
            if counted[0] == limit:
                strike(what)
            return inner(*arguments)

        setattr(work.program, function, struck)
    run = folder / f"{name}-run"
    figures = bench.processes(work, "downpour", given.epochs, run, Mail(post), with_ft=True, checkpoint_every=max(2, bench.stream.steps_per_epoch // 2))
    if figures is not None:
        epochs = json.loads((run / "coverage.json").read_text())["epochs"]
        applied, total = sum(e["classes"]["applied"] for e in epochs), sum(sum(e["classes"].values()) for e in epochs)
        (folder / f"{name}.json").write_text(json.dumps([f"{applied:,} of {total:,} batches", _epochs(run)[-1]["validation"]["loss"]]))
    post.close(30.0)


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("-n", type=int, default=20_000, help="rows in the file; 70 %% of them train")
    options.add_argument("--particles", type=int, default=32)
    options.add_argument("--epochs", type=int, default=6)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--loss", type=float, default=0.6, help="validation loss of which the times are compared")
    options.add_argument("--workers", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2, 4])
    options.add_argument(
        "--times", type=lambda text: [float(t) for t in text.split(",")], help="the simulator alone: ms of a batch, of the server, of a message"
    )
    options.add_argument("--chaos", action="store_true")
    options.add_argument("--quick", action="store_true", help="a small run that shows that it works")
    for hidden in ("--rank", "--launch", "--of"):
        options.add_argument(hidden, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.quick:
        given.n, given.particles, given.epochs, given.repeats, given.loss, given.workers = 3000, 8, 2, 1, 1.0, [1, 2]
    given.of = int(given.of or 0)
    return given


if __name__ == "__main__":
    given = parse()
    with contextlib.suppress(BrokenPipeError):
        if given.launch and not given.of:
            launch_disturbed(given.launch)
        elif given.launch:
            disturbed_rank(Path(given.rank), given, given.launch)
        elif given.rank:
            rank(Path(given.rank), given)
        else:
            main(given)
