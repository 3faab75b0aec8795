"""Exposed exchange: from the moment a worker's gradient is ready to the moment it begins the next, by processes, with and without overlap, and a blocking peer.

A synthetic gradient of 20 ms (it sleeps, as a process does that waits for a device: the core is free meanwhile) with 1 MB of parameters, downpour, one worker,
one server, and the clerk. The peer is the protocol of mpi_learn (`earlier_protocol.py`) with the same gradient and as many bytes in four tensors. The modes
alternate in the same processes. To reach with overlap and a core per process: 1 ms, 5 % of the batch. Where there are fewer cores than processes, what the
server does at the same time takes the core from the worker, and the figures say so.

    python benchmarks/exchange.py [--megabytes 1] [--milliseconds 20] [--where] [--quick]

`--where` also prints what the worker's functions take of the exposed exchange; those contain one another as they are indented.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import earlier_protocol
import numpy as np
from earlier_protocol import Problem, gaps

from hlt_train.report.table import table

MODES = {"overlap": "hlt-train, overlap", "waiting": "hlt-train, waiting", "peer": "per tensor, blocking"}
TENSORS = 4  # of the peer
WARM = 12  # exchanges that are not counted
# Functions of the worker's process whose time `--where` prints: (indentation, module, class or "", name).
WATCHED = (
    (0, "mpi", "Crew", "pump"),
    (1, "post", "Post", "poll"),
    (1, "_mpi_worker", "WorkerDesk", "on_answer"),
    (0, "actors", "Worker", "answer"),
    (1, "journal", "Journal", "__call__"),
    (0, "actors", "Worker", "begin_ask"),
    (0, "actors", "Worker", "begin_batch"),
    (0, "actors", "Worker", "messages"),
    (0, "_mpi_worker", "WorkerDesk", "_post_message"),
    (1, "post", "Post", "send"),
)


class Loss:
    """Of a gradient that is under way."""

    def __init__(self, found: Future[float]) -> None:
        self.found = found

    def __float__(self) -> float:
        return self.found.result()


def work(n: int, seconds: float, steps: int, *, overlap: bool) -> Any:
    """What ranks train: nothing that matters."""
    import jax
    import optax

    from hlt_train import plugins
    from hlt_train.clerk import Work
    from hlt_train.record import Plan
    from hlt_train.strategies import Setup
    from hlt_train.transports.program import Program, overlapped

    class Sleeping(Program):
        """The gradient takes so long, most of it asleep. Like a device it begins when what it is made of is there, and nobody need wait for it."""

        spans: ClassVar[list[tuple[float, float]]] = []
        device: ClassVar[ThreadPoolExecutor] = ThreadPoolExecutor(1)

        def begin(self, w: Any, *arguments: Any) -> Any:
            state, loss = super().begin(w, *arguments)
            return state, Loss(self.device.submit(self._asleep, w, (state, loss)))

        def _asleep(self, before: Any, after: Any) -> float:
            jax.block_until_ready(before)
            began = time.monotonic()
            jax.block_until_ready(after)
            time.sleep(max(0.0, seconds - (time.monotonic() - began)))
            self.spans.append((began, time.monotonic()))
            return float(after[1])

    strategy = overlapped(plugins.factory("strategies", "downpour")(Setup(1, optax.constant_schedule(1e-3), optax.sgd)), overlap=overlap)
    vector = np.ones(n, np.float32)
    program = Sleeping(strategy, lambda v, batch, _key: (v[0], v * batch), vector, np.float32(1), workers=1, seed=1)
    return Work(
        program=program,
        data=lambda _share: np.float32(1),
        steps=steps,
        steps_per_epoch=steps // 2,
        rows=lambda a, b: b - a,
        batch=1,
        weights=lambda v: {"v": v},
        validate=lambda v: {"loss": float(v[0])},
        rate=lambda _step: 1e-3,
        finish=lambda _coverage, _step: {},
        plan=Plan(steps=steps, seed=1),
    )


def peer(comm: Any, n: int, seconds: float, steps: int) -> list[tuple[float, float]] | None:
    """The earlier protocol between two ranks."""

    def gradient(weights: list[np.ndarray], _batch: Any) -> tuple[float, list[np.ndarray]]:
        began = time.monotonic()
        found = [w * np.float32(1) for w in weights]
        time.sleep(max(0.0, seconds - (time.monotonic() - began)))
        return 0.0, found

    weights = [np.ones(n // TENSORS, np.float32) for _ in range(TENSORS)]
    problem = Problem(weights, gradient, lambda _k: range(steps), lambda w: {"loss": float(w[0][0])}, 1, steps // 2, "sgd", 1e-3)
    if comm.rank == 0:
        earlier_protocol.master(comm, problem)
        return None
    return earlier_protocol.worker(comm, problem).gradients


def asleep(comm: Any) -> None:
    """Wait for all ranks without taking a core."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(5e-3)


def watch(times: dict[str, list[tuple[float, float]]]) -> None:
    """Measure the functions that are watched, from now on."""
    import importlib

    for _, module, kind, name in WATCHED:
        owner: Any = importlib.import_module(f"hlt_train.transports.{module}")
        owner = getattr(owner, kind) if kind else owner
        setattr(owner, name, timed(getattr(owner, name), times[name]))


def timed(function: Callable[..., Any], times: list[tuple[float, float]]) -> Callable[..., Any]:
    @functools.wraps(function)
    def measured(*arguments: Any, **options: Any) -> Any:
        began = time.monotonic()
        try:
            return function(*arguments, **options)
        finally:
            times.append((began, time.monotonic()))

    return measured


def within(gradients: list[tuple[float, float]], calls: list[tuple[float, float]]) -> float:
    """Median over the exposed exchanges of the milliseconds that calls of a function took in them."""
    spans, found = np.asarray(gradients)[WARM:], np.asarray(calls).reshape(-1, 2)
    place = np.searchsorted(spans[:, 0], found[:, 0]) - 1  # the gradient before the call
    inside = (place >= 0) & (place < len(spans) - 1)
    place, found = place[inside], found[inside]
    inside = found[:, 0] >= spans[place, 1]  # not beside the gradient
    return 1e3 * float(np.median(np.bincount(place[inside], (found[:, 1] - found[:, 0])[inside], minlength=len(spans) - 1)))


def rank(target: Path, given: argparse.Namespace) -> None:
    """What every process does: all modes, one after the other, so often."""
    from hlt_train import devices

    devices.prepare(1)
    from hlt_train.crew import Ranks, open_post
    from hlt_train.progress import Progress
    from hlt_train.run import Run
    from hlt_train.transports.options import MpiOptions
    from hlt_train.transports.protocol import Mail

    n, seconds = int(given.megabytes * 2**18), given.milliseconds / 1e3
    works = {mode: work(n, seconds, given.steps, overlap=mode == "overlap") for mode in ("overlap", "waiting")}
    post = open_post(works["overlap"])
    mail = Mail(post)
    two = post.comm.Split(0 if post.rank in (0, 2) else 1, post.rank)
    times: dict[str, list[tuple[float, float]]] = defaultdict(list)
    if given.where:
        watch(times)
    found: dict[str, list[Any]] = {mode: [] for mode in MODES}
    where: dict[str, Any] = {}

    def opened(path: Path) -> Run:
        path.mkdir()
        run = Run(path)
        run.write_config({"verb": "benchmark"})
        return run

    for repeat in range(given.repeats):
        for mode in MODES:
            if mode == "peer":
                if post.rank in (0, 2):
                    found[mode].append(peer(two, n, seconds, given.steps))
            else:
                for calls in times.values():
                    calls.clear()
                path = target / f"{mode}{repeat}"
                options = MpiOptions(name="mpi", workers=1, overlap=mode == "overlap")
                first = 1000 * (2 * repeat + (mode == "waiting"))
                ranks = Ranks(mail, works[mode], options, path, functools.partial(opened, path), Progress(quiet=True), first=first)
                works[mode].program.spans.clear()
                if ranks.train() is not None:
                    ranks.run.__exit__(None, None, None)
                found[mode].append(list(works[mode].program.spans))
                where.setdefault(mode, []).append({name: within(found[mode][-1], t) for name, t in times.items()} if post.rank == 2 else {})
            asleep(post.comm)
    if post.rank == 2:
        (target / "worker.json").write_text(json.dumps({"spans": found, "where": where}))
    two.Free()
    post.close(30.0)


def main(given: argparse.Namespace) -> None:
    from hlt_train.transports.launch import launch

    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="hlt-train-bench-") as folder:
        ended = launch([__file__, *sys.argv[1:], "--rank", folder], 3)
        if ended.code:
            raise SystemExit(ended.text)
        worker = json.loads((Path(folder) / "worker.json").read_text())
        found = worker["spans"]
    rows = []
    for mode, name in MODES.items():
        exposed = [1e3 * gaps(gradients, WARM) for gradients in found[mode]]
        medians, most = [float(np.median(e)) for e in exposed], [float(np.quantile(e, 0.9)) for e in exposed]
        middle = statistics.median(medians)
        share = 100 * middle / (middle + given.milliseconds)
        rows.append([name, f"{middle:.2f}", f"{min(medians):.2f} .. {max(medians):.2f}", f"{statistics.median(most):.2f}", f"{share:.1f} %"])
    what = f"exposed exchange, {given.megabytes:g} MB, gradient of {given.milliseconds:g} ms (asleep), {given.repeats} repeats of {given.steps} batches"
    print(table(rows, ["mode", "median, ms", "range of repeats", "90 %, ms", "of gradient + exchange"], title=what))
    cores = len(os.sched_getaffinity(0))
    print(f"worker, server and clerk on {cores} core(s); load before: {load:.1f}  (reach with a core per process and overlap: <= 1 ms, <= 5 %)")
    if given.where:
        for mode in ("overlap", "waiting"):
            measured = worker["where"][mode]
            lines = [[f"{'. ' * deep}{name}", f"{statistics.median(m[name] for m in measured):.3f}"] for deep, _, _, name in WATCHED]
            print(table(lines, ["function", "ms per exchange, median"], title=f"\nin the exposed exchange, {MODES[mode]}"))


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--megabytes", type=float, default=1.0)
    options.add_argument("--milliseconds", type=float, default=20.0)
    options.add_argument("--steps", type=int, default=200, help="batches of a repeat")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--where", action="store_true", help="print where the worker's time goes")
    options.add_argument("--quick", action="store_true", help="a small run that shows that it works")
    options.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.quick:
        given.megabytes, given.milliseconds, given.steps, given.repeats = 0.1, 4.0, 40, 1
    return given


if __name__ == "__main__":
    given = parse()
    rank(given.rank, given) if given.rank else main(given)
