"""EASGD and EAMSGD against Downpour at communication periods from 1 to 64 of 4 and 8 workers: loss at equal epochs, and virtual time to a target loss.

A batch takes 20 ms (lognormal:0.3), a message 5 ms there and 5 ms back (exponential above half of it), so that a period of 1 costs half a batch per batch.
Learning rates are scanned for each cell over half-decades with one seed, from the middle of a grid outwards while the loss falls. The published way of
Downpour is meant: gradients are summed over the period, pushed and the parameters fetched (n_push = n_fetch = period).

EASGD: beta 0.9, alpha = beta / p. EAMSGD: momentum 0.9 (--momentum), because the authors' 0.99 averages over 100 batches and a worker has 190 to 380 here.

Published (Zhang, Choromanska, LeCun 2015, abstract): faster than DOWNPOUR at large periods. The authors' code: beta 0.9, momentum 0.99 at a
tenth of EASGD's learning rate, period 100.
"""

from __future__ import annotations

import functools
import math

from _fleet import Bench, Clock, Timing, Track, arguments, jets, scan, shown

from hlt_train.report.table import table
from hlt_train.strategies.downpour import downpour
from hlt_train.strategies.easgd import easgd
from hlt_train.transports.stragglers import factor

WORKERS, BATCH, EPOCHS = {4: (1, 4, 16, 64), 8: (1, 16, 64)}, 16, 2  # p: periods
POINTS, LAST, TARGET = 40, 4, 0.9
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
RULES = {
    "downpour": lambda period, _momentum: functools.partial(downpour, n_push=period, n_fetch=period),
    "easgd": lambda period, _momentum: functools.partial(easgd, period=period),
    "eamsgd": lambda period, momentum: functools.partial(easgd, period=period, momentum=momentum),
}


def main() -> None:
    options = arguments(__doc__, seeds=3)
    options.add_argument("--momentum", type=float, default=0.9, help="of EAMSGD (default: 0.9)")
    given = options.parse_args()
    clock, problem = Clock(), jets()
    seeds = range(1, 2 if given.quick else given.seeds + 1)
    workers, epochs, target = ({4: (1, 16)}, 1, 1.0) if given.quick else (WORKERS, EPOCHS, TARGET)
    batches = epochs * len(problem.x) // BATCH

    @functools.cache
    def run(of: Bench, seed: int) -> Track:
        return of.run(seed, shares=batches, timing=Timing(latency=5e-3, factor=factor("lognormal:0.3", seed)), points=POINTS)

    def make(name: str, n: int, period: int, rate: float) -> Bench:
        return Bench(problem, RULES[name](period, given.momentum), workers=n, rate=rate, batch=BATCH)

    for n, periods in workers.items():
        rows = []
        for period in periods:
            losses, times, rates = {}, {}, {}
            for name in RULES:
                best = scan(functools.partial(make, name, n, period), RATES, lambda of: final(run(of, 1)))
                tracks = [run(best.bench, seed) for seed in seeds]
                losses[name], times[name], rates[name] = [final(t) for t in tracks], [t.until(target) for t in tracks], f"{best.rate:g}{best.edge}"
            for name in RULES:
                ratio = [a / b for a, b in zip(times[name], times["downpour"], strict=True)] if all(map(math.isfinite, times["downpour"])) else []
                less = [a - b for a, b in zip(losses[name], losses["downpour"], strict=True)]
                relative = (
                    [shown(less) if all(map(math.isfinite, losses["downpour"])) else "", shown(ratio) if ratio else ""] if name != "downpour" else ["", ""]
                )
                rows.append([period, name, rates[name], shown(losses[name]), relative[0], shown(times[name], never="never"), relative[1]])
        header = ["period", "rule", "rate", "loss", "loss - downpour", f"s to {target}", "time / downpour"]
        print(table(rows, header, title=f"p = {n} workers, {epochs} epochs ({batches:,} batches of {BATCH}); * the best rate is the last of its grid"))
        print()
    print("published: EASGD and EAMSGD faster than DOWNPOUR at large periods (abstract; CIFAR and ImageNet, p = 4, 8, 16)")
    clock.close(len(seeds), quick=given.quick)


def final(track: Track) -> float:
    """The mean of the last tenth."""
    return float(track.losses[-LAST:].mean()) if math.isfinite(track.loss) else math.inf


if __name__ == "__main__":
    main()
