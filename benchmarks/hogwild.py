"""Hogwild by processes: does it help to race without a lock, where gradients are sparse, and where they are not?

The same rule, data and rate with 1, 2, ... workers of equal batches: racing on shared memory (`lock_free=node`), against the parameter server by messages
(`lock_free=no`), which adds one update after the other and sends all parameters with every answer. Toy calorimeter cells with `sparse_linear`, whose updates
touch a few hundred rows of a table, then toy jets with a dense MLP, whose every update touches every parameter; there also NumPy's `+=` (`hogwild_unsafe`)
with the fraction of additions that it loses. Time is the clerk's, to a validation loss that all runs of a problem reach; a first run of each kind, which
compiles, is not counted. Ratios are to the race with one worker, in the same table. Where there are more workers than cores (or other work on the machine) the
workers share them, and the table says so.

Besides: what one update of rows costs, by the way in which it is written.

    python benchmarks/hogwild.py [--workers 1 2 3 4] [--repeats 3] [--epochs 4] [--events 20000] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hlt_train.machine import machine
from hlt_train.report.table import table

BATCH = 32  # rows of a worker's batch
KINDS = {"cells": ("race", "server"), "jets": ("race", "unsafe", "server")}
NAMES = {"race": "race, Accumulate", "unsafe": "race, += of NumPy", "server": "locking server"}
TITLES = {"cells": "toy cells, sparse_linear", "jets": "toy jets, dense MLP"}


def configured(problem: str, folder: Path, workers: int, epochs: int) -> Any:
    """What is trained."""
    from hlt_train.configuration import check
    from hlt_train.data.card import load_card
    from hlt_train.fit import FitConfig

    card = load_card(f"toy_{problem}")
    for sample in card.samples.values():
        sample.files = [str(folder / f"{problem}.root")]
    model = {"name": "sparse_linear", "buckets": 2**16} if problem == "cells" else {"name": "mlp", "widths": [64, 32, 32]}
    content = {
        "card": card.model_dump(mode="json"),
        "model": model,
        "strategy": {"name": "hogwild"},
        "transport": {"name": "mpi", "workers": workers},
        "schedule": {"name": "constant_schedule"},
        "learning_rate": 0.3 if problem == "cells" else 0.05,
        "batch": BATCH * workers,
        "for": f"{epochs}epochs",
        "resident": "always",
    }
    return check(FitConfig, content)


def rank(folder: Path, problem: str, given: argparse.Namespace) -> None:
    """What every process of a launch does: all kinds of run, one after the other, again and again."""
    from hlt_train import devices

    devices.prepare(1)
    from hlt_train.crew import Ranks, open_post
    from hlt_train.fit import prepare
    from hlt_train.processes import _work
    from hlt_train.progress import Progress
    from hlt_train.race import RaceRanks
    from hlt_train.run import Run
    from hlt_train.transports.options import MpiOptions
    from hlt_train.transports.protocol import Mail

    workers = given.workers[0]
    mesh = devices.mesh(1)
    ready = prepare(configured(problem, folder, workers, given.epochs), mesh, Progress(quiet=True))
    base = {"workers": workers, "timeline": False, "report_every": 0.1}
    options = {
        "race": MpiOptions(**base, lock_free="node"),
        "unsafe": MpiOptions(**base, lock_free="node", hogwild_unsafe=True),
        "server": MpiOptions(**base, lock_free="no"),
    }
    work = _work(ready, options["server"], mesh)
    post = open_post(work)
    mail = Mail(post)

    def opened(path: Path) -> Run:
        path.mkdir(parents=True)
        run = Run(path)
        run.write_config({"verb": "benchmark"})
        return run

    number = 0
    for repeat in range(given.repeats + 1):
        for kind in KINDS[problem]:
            path = folder / "runs" / f"{problem}-{workers}-{kind}-{repeat}"
            make = Ranks if kind == "server" else RaceRanks
            ranks = make(mail, work, options[kind], path, partial(opened, path), Progress(quiet=True), first=1000 * number)
            number += 1
            if ranks.train() is not None and ranks.run is not None:
                ranks.run.__exit__(None, None, None)
    post.close(60.0)
    with ready.dataset:
        pass


def curve(path: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """(seconds at the ends of epochs, validation loss there, rows/s) of a run."""
    lines = [json.loads(text) for text in (path / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line.get("event") == "epoch"]
    seconds = np.cumsum([line["seconds"] for line in epochs])
    return seconds, np.array([line["validation"]["loss"] for line in epochs]), sum(line["rows"] for line in epochs) / float(seconds[-1])


def until(times: np.ndarray, losses: np.ndarray, target: float) -> float:
    """Seconds until a loss is reached, on a straight line between the ends of epochs."""
    k = int(np.flatnonzero(losses <= target)[0])
    if k == 0:
        return float(times[0])
    part = (losses[k - 1] - target) / (losses[k - 1] - losses[k])
    return float(times[k - 1] + part * (times[k] - times[k - 1]))


def middle(values: list[float]) -> tuple[float, float]:
    """Median, and its error: half the range over the square root of the number."""
    return statistics.median(values), (max(values) - min(values)) / 2 / len(values) ** 0.5


def ratio(a: tuple[float, float], b: tuple[float, float]) -> str:
    """The quotient with its error."""
    value = a[0] / b[0]
    return f"{value:.2f} +- {value * ((a[1] / a[0]) ** 2 + (b[1] / b[0]) ** 2) ** 0.5:.2f}"


def report(folder: Path, problem: str, given: argparse.Namespace, cores: int) -> None:
    """The table of a problem."""
    runs: dict[tuple[int, str], list[Any]] = {}
    lost: dict[int, list[float]] = {}
    for n in given.workers:
        for kind in KINDS[problem]:
            paths = [folder / "runs" / f"{problem}-{n}-{kind}-{repeat}" for repeat in range(1, given.repeats + 1)]
            runs[n, kind] = [curve(path) for path in paths]
            if kind == "unsafe":
                lost[n] = [json.loads((path / "transport.json").read_text())["race"]["unsafe"]["lost_fraction"] for path in paths]
    target = max(float(losses.min()) for found in runs.values() for _, losses, _ in found)
    times = {key: middle([until(seconds, losses, target) for seconds, losses, _ in found]) for key, found in runs.items()}
    speeds = {key: middle([speed for _, _, speed in found]) for key, found in runs.items()}
    first = given.workers[0], "race"
    rows = []
    for (n, kind), found in runs.items():
        name = f"{NAMES[kind]}{' (more workers than cores)' if n > cores else ''}"
        final = middle([float(losses[-1]) for _, losses, _ in found])
        gone = f"{100 * statistics.median(lost[n]):.3g} %" if kind == "unsafe" else "0" if kind == "race" else ""
        faster, speed = ratio(times[first], times[n, kind]), speeds[n, kind]
        row = [str(n), name, f"{speed[0]:,.0f} +- {speed[1]:,.0f}", ratio(speed, speeds[first]), f"{times[n, kind][0]:.2f}", faster, f"{final[0]:.4f}", gone]
        rows.append(row)
    head = ["workers", TITLES[problem], "rows/s", "ratio", f"s to loss {target:.4f}", "speed-up", "last loss", "lost"]
    print(table(rows, head), "\n", flush=True)


def writing(given: argparse.Namespace) -> None:
    """Two processes write rows into one window, in several ways."""
    from hlt_train.transports.lock_free import Memory, touched
    from hlt_train.transports.post import Post, mpi

    MPI, post = mpi(), Post(1000)
    buckets, width = 2**16, 2
    memory = Memory(post.comm, buckets * width, "node", (0,))
    window, rng = memory._window, np.random.default_rng(post.rank)  # noqa: SLF001 - other ways to write than its own
    met = touched(rng.integers(0, buckets, 900).astype(np.int32), buckets)
    values = np.ones((len(met.rows), width), np.float32)
    entries = (met.rows[:, None] * width + np.arange(width, dtype=np.int32)).reshape(-1)
    whole = np.zeros(buckets * width, np.float32)
    unsafe = memory._here  # noqa: SLF001

    def typed(kind: Any) -> None:
        kind.Commit()
        window.Accumulate([values, MPI.FLOAT], 0, target=[0, 1, kind], op=MPI.SUM)
        window.Flush(0)
        kind.Free()

    def calls() -> None:
        for k, row in enumerate(met.rows.tolist()):
            window.Accumulate([values[k], MPI.FLOAT], 0, target=[row * width, width, MPI.FLOAT], op=MPI.SUM)
        window.Flush(0)

    def dense() -> None:
        whole[entries] = values.reshape(-1)
        window.Accumulate([whole, MPI.FLOAT], 0, target=[0, len(whole), MPI.FLOAT], op=MPI.SUM)
        window.Flush(0)
        whole[entries] = 0

    def plain() -> None:
        unsafe[entries] += values.reshape(-1)

    ways = {
        "one datatype of rows (what races use)": lambda: memory.add_rows(0, met.rows, values),
        "one datatype of single numbers": lambda: typed(MPI.FLOAT.Create_indexed_block(1, entries)),
        "one call per row": calls,
        "the whole table, zeros elsewhere": dense,
        "+= of NumPy (loses updates)": plain,
    }
    rows, base = [], 0.0
    for name, way in ways.items():
        found = []
        for _ in range(3 * given.repeats + 6):
            post.comm.Barrier()
            began = time.perf_counter()
            way()
            found.append(1e6 * (time.perf_counter() - began))
        value = middle(found[3:])
        base = base or value[0]
        rows.append([name, f"{value[0]:.0f} +- {value[1]:.0f}", f"{value[0] / base:.2f}"])
    tight = Memory(post.comm, 2**16, "node", (0,), unsafe=True)
    gradient = np.ones(2**16, np.float32)
    post.comm.Barrier()
    for _ in range(4000):
        tight.add_range(0, gradient)
    post.comm.Barrier()
    if post.rank == 0:
        print(table(rows, [f"{len(met.rows)} rows of {width}, of {buckets:,}, 2 processes", "us", "ratio"]), flush=True)
        gone = 1 - tight.counted() / (2 * tight.attempted)
        print(f"+= of NumPy by 2 processes that do nothing else, 4,000 times to 65,536 numbers: {100 * gone:.2g} % of the additions are lost\n", flush=True)
    post.close(30.0)


def main(given: argparse.Namespace) -> None:
    from hlt_train.datasets.cells import write_cells
    from hlt_train.datasets.jets import write_jets
    from hlt_train.transports.launch import launch

    cores = len(os.sched_getaffinity(0))
    print(f"{machine()['cpu']}, {cores} cores, load {os.getloadavg()[0]:.1f} at the start; medians of {given.repeats}\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="hlt-train-bench-") as name:
        folder = Path(name)
        write_cells(folder / "cells.root", given.events, 1)
        write_jets(folder / "jets.root", given.events, 1)
        common = ["--repeats", str(given.repeats), "--epochs", str(given.epochs), "--rank", name]
        ended = launch([__file__, *common, "--problem", "writing"], 2)
        for problem in given.problems:
            for n in given.workers:
                ended = launch([__file__, *common, "--workers", str(n), "--problem", problem], n + 2) if not ended.code else ended
            if ended.code:
                sys.exit(f"the ranks failed: {ended.text}")
            report(folder, problem, given, cores)
    print(f"load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--problems", nargs="+", default=list(KINDS))
    parser.add_argument("--quick", action="store_true", help="a small run, to see that it works")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--problem", default="", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.workers, chosen.repeats, chosen.epochs, chosen.events = [1, 2], 1, 2, 2000
    if chosen.rank is None:
        main(chosen)
    elif chosen.problem == "writing":
        writing(chosen)
    else:
        rank(chosen.rank, chosen.problem, chosen)
