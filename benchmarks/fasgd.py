"""FASGD (both variants) against staleness-divided SGD (dynsgd) from 4 to 10,000 workers: loss after the same number of updates; and B-FASGD's gates.

Each rule's learning rate is scanned at every N over half-decades, from the middle of a grid outwards while the loss falls (the paper: 16 candidates), with one
seed; the table has all seeds. `kept` is the paper's way: the rate that was best at 16 workers, for all N. --largest does 10,000 workers and nothing else.
An update is one gradient of 16 rows; workers are equal but for lognormal:0.3 batch times.

Gates: a worker fetches (pushes) with probability 1 / (1 + c / vbar), c as a multiple of the vbar at the end of a run without gates.

Published (Odena 2016): FASGD is better at every N from 4 to 10,000, and the gap grows with N; fetching a tenth as often does little harm; pushing less often
diverges quickly.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from _fleet import Bench, Clock, Problem, Scan, Timing, Track, arguments, jets, scan, shown

from hlt_train.report.table import table
from hlt_train.strategies.dynsgd import dynsgd
from hlt_train.strategies.fasgd import fasgd
from hlt_train.transports.stragglers import factor

WORKERS, BATCH, UPDATES = (4, 16, 64, 256, 1000), 16, 3000
LARGEST, LARGEST_UPDATES = 10_000, 20_000
LARGEST_RATES = {"dynsgd": (0.1, 0.03, 0.01), "fasgd std": (0.01, 0.003, 0.001), "fasgd abs": (0.003, 0.001)}
KEPT = 16  # workers, whose rate is kept for all
POINTS, LAST = 30, 3  # a loss is the mean of the last 3 of 30 points: of the last tenth of the updates


class Contender(NamedTuple):
    """rule: its factory; rates: the grid."""

    rule: functools.partial
    rates: tuple[float, ...]


RULES = {
    "dynsgd": Contender(functools.partial(dynsgd), (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)),
    "fasgd std": Contender(functools.partial(fasgd, variant="std"), (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)),
    "fasgd abs": Contender(functools.partial(fasgd, variant="abs"), (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)),
}


def main() -> None:
    options = arguments(__doc__, seeds=3)
    options.add_argument("--largest", action="store_true", help="10,000 workers alone")
    given = options.parse_args()
    clock, problem = Clock(), jets()
    seeds = range(1, 2 if given.quick else given.seeds + 1)
    if given.largest:
        largest(problem, seeds[:2])
        clock.close(len(seeds[:2]), quick=given.quick)
        return
    sizes, updates = ((4, 16), 320) if given.quick else (WORKERS, UPDATES)
    found = contest(problem, sizes, updates, seeds)
    gates(problem, found["fasgd std", KEPT].rate, updates, seeds, (1, 5) if given.quick else (1, 2, 5, 10))
    clock.close(len(seeds), quick=given.quick)


def bench(problem: Problem, name: str, workers: int, rate: float, **more: float) -> Bench:
    return Bench(problem, functools.partial(RULES[name].rule, **more), workers=workers, rate=rate, batch=BATCH)


@functools.cache
def run(of: Bench, seed: int, updates: int) -> Track:
    return of.run(seed, shares=updates, timing=Timing(factor=factor("lognormal:0.3", seed)), points=POINTS)


def final(track: Track) -> float:
    return float(track.losses[-LAST:].mean()) if math.isfinite(track.loss) else math.inf


def contest(problem: Problem, sizes: tuple[int, ...], updates: int, seeds: range) -> dict[tuple[str, int], Scan]:
    """Each rule at each N with its best rate, and with the rate that was best at KEPT workers."""
    scans: dict[tuple[str, int], Scan] = {}
    losses: dict[tuple[str, int, float], list[float]] = {}

    def values(name: str, n: int, of: Bench, rate: float) -> list[float]:
        if (name, n, rate) not in losses:
            losses[name, n, rate] = [final(run(of, seed, updates)) for seed in seeds]
        return losses[name, n, rate]

    for name, contender in RULES.items():
        for n in sizes:
            scans[name, n] = scan(functools.partial(bench, problem, name, n), contender.rates, lambda of: final(run(of, 1, updates)))
    rows = []
    for n in sizes:
        cells, tuned, kept = [str(n)], {}, {}
        for name in RULES:
            best, rate = scans[name, n], scans[name, KEPT].rate
            tuned[name] = values(name, n, best.bench, best.rate)
            kept[name] = values(name, n, best.bench if rate == best.rate else bench(problem, name, n, rate), rate)
            cells += [f"{best.rate:g}{best.edge}", shown(tuned[name])]
        cells += [shown(kept[name]) for name in RULES]
        rows.append([*cells, *(difference(by["fasgd std"], by["dynsgd"]) for by in (tuned, kept))])
    header = ["N", *(part for name in RULES for part in ("rate", name)), *(f"{name}, kept" for name in RULES), "std - dynsgd", "kept"]
    print(table(rows, header, title=f"validation loss after {updates:,} updates, batch {BATCH}; * the best rate is the last of its grid"))
    print("published: FASGD below SASGD at every N, the more the larger N (MNIST, 200 ReLU, 100,000 updates)")
    return scans


def difference(one: list[float], other: list[float]) -> str:
    if not all(map(math.isfinite, [*one, *other])):
        return ""
    return shown(a - b for a, b in zip(one, other, strict=True))


def largest(problem: Problem, seeds: range) -> None:
    """One N far above the others.

    The rate is lowered from about the best of 1,000 workers while the loss falls: the first N gradients are all of the starting point, and the sum of their
    1 / (staleness + 1) grows like log N.
    """
    rows = []
    for name, rates in LARGEST_RATES.items():
        losses: dict[float, float] = {}
        for rate in rates:
            losses[rate] = final(run(bench(problem, name, LARGEST, rate), seeds[0], LARGEST_UPDATES))
            if losses[rate] > min(losses.values()):
                break
        best = min(losses, key=losses.__getitem__)
        found = [losses[best], *(final(run(bench(problem, name, LARGEST, best), seed, LARGEST_UPDATES)) for seed in seeds[1:])]
        rows.append([name, f"{best:g}", shown(found), ", ".join(f"{rate:g}" for rate in losses)])
    print(table(rows, ["rule", "rate", "loss", "rates tried"], title=f"{LARGEST:,} workers, {LARGEST_UPDATES:,} updates"))


def gates(problem: Problem, rate: float, updates: int, seeds: range, sparser: tuple[int, ...]) -> None:
    """B-FASGD: loss against traffic."""
    plain = [run(bench(problem, "fasgd std", KEPT, rate), seed, updates) for seed in seeds[:1]]
    vbar = float(np.mean([np.mean(np.asarray(track.simulation.shards[0].state.v)) for track in plain]))
    rows = []
    for gate in ("c_fetch", "c_push"):
        for k in sparser:
            if k == 1 and gate == "c_push":
                continue
            tracks = [run(bench(problem, "fasgd std", KEPT, rate, **{gate: (k - 1) * vbar}), seed, updates) for seed in seeds]
            pushes, fetches, total = (np.mean(column) for column in zip(*map(traffic, tracks), strict=True))
            lost = [final(track) for track in tracks]
            rows.append([gate if k > 1 else "none", f"{(k - 1) * vbar:.3g}", f"{pushes:.2f}", f"{fetches:.2f}", f"{total:.2f}", shown(lost)])
    header = ["gate", "c", "pushes", "fetches", "bytes", "loss"]
    print(table(rows, header, title=f"\nB-FASGD, {KEPT} workers, rate {rate:g}, vbar {vbar:.3g}: pushes, fetches, bytes as fractions of those without gates"))
    for longer in (1, 4) if len(sparser) > 2 else ():  # not with --quick
        losses = []
        for k in (1, sparser[-1]):
            of = bench(problem, "fasgd std", KEPT, rate, c_fetch=(k - 1) * vbar)
            losses.append([final(run(of, seed, longer * updates)) for seed in seeds[:2]])
        less = difference(losses[1], losses[0])
        print(f"{longer * updates:,} updates, {len(seeds[:2])} seeds: c_fetch {(sparser[-1] - 1) * vbar:.3g} costs {less} ({shown(losses[0])} without)")
    print("published: fetches / 10 (bytes / 5) with little harm after 100,000 updates; fewer pushes diverge quickly")


def traffic(track: Track) -> tuple[float, float, float]:
    """Pushes and fetches per batch, and bytes over those of a push and a fetch per batch."""
    account, program = track.account, track.simulation.program
    batches, size = account.batches.sum(), program.vector.nbytes
    pushes = batches - account.gated.sum()
    fetches = (account.bytes.sum() - pushes * size) / (size + 4)  # an answer has vbar beside the parameters
    return float(pushes / batches), float(fetches / batches), float(account.bytes.sum() / (batches * (2 * size + 4)))


if __name__ == "__main__":
    main()
