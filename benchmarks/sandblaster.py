"""Sandblaster L-BFGS against Downpour with Adagrad: worker-seconds and seconds of virtual time to a target loss, over the number of workers.

Both evaluate 31 rows at a time, which takes 20 ms (lognormal:0.5) and a message 1 ms each way. A round of Sandblaster is 384 portions: all rows once. Downpour
pushes and fetches after every batch; its rate is scanned at each N (half-decades, one seed) for the shortest time. Two copies of a portion at most.

Published (Dean et al. 2012): to 16 % accuracy Downpour with Adagrad takes the least time up to 2,000 cores; Sandblaster scales further, and would win with some
30,000. Worker-seconds are the figure's other axis.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import optax
from _fleet import Bench, Clock, Timing, Track, arguments, jets, scan, shown, spread

from hlt_train.report.table import table
from hlt_train.strategies.downpour import downpour
from hlt_train.strategies.sandblaster import sandblaster
from hlt_train.transports.stragglers import factor

WORKERS, ROWS, PORTIONS, TARGET, ROUNDS, EPOCHS = (4, 16, 64), 31, 384, 0.9, 60, 8
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def main() -> None:
    given = arguments(__doc__, seeds=3).parse_args()
    clock, problem = Clock(), jets()
    seeds = range(1, 2 if given.quick else given.seeds + 1)
    workers, target, rates = ((16,), 1.15, RATES[2:3]) if given.quick else (WORKERS, TARGET, RATES)

    @functools.cache
    def sprint(of: Bench, seed: int) -> Track:
        return of.run(seed, shares=PORTIONS * EPOCHS, timing=timing(seed), points=4 * EPOCHS * 4, target=target)

    rows, cost = [], {}
    for n in workers:
        best = scan(functools.partial(asynchronous, problem, n), rates, lambda of: sprint(of, 1).until(target))
        found = {"downpour, adagrad": [sprint(best.bench, seed) for seed in seeds]}
        batch = Bench(problem, sandblaster, workers=n, rate=0.0, batch=ROWS, portions=PORTIONS)
        found["sandblaster"] = [batch.run(seed, shares=PORTIONS * ROUNDS, timing=timing(seed), points=ROUNDS, target=target) for seed in seeds]
        for name, tracks in found.items():
            seconds = [track.until(target) for track in tracks]
            epochs = [track.until(target, "shares") / PORTIONS for track in tracks]
            computed = [track.account.batches.sum() / max(1, track.simulation.done) for track in tracks]
            cost[name, n] = [n * s for s in seconds]
            rate = f"{best.rate:g}{best.edge}" if name != "sandblaster" else ""
            columns = (epochs, seconds, cost[name, n])
            rows.append([n, name, rate, *(shown(column, never="never") for column in columns), f"{np.mean(computed):.2f}"])
    header = ["N", "rule", "rate", "epochs", "s", "worker-s", "computed / counted"]
    print(table(rows, header, title=f"to a validation loss of {target}; * the best rate is the last of its grid"))
    for n in workers:
        pairs = list(zip(cost["downpour, adagrad", n], cost["sandblaster", n], strict=True))
        pair = [b / a for a, b in pairs if math.isfinite(a)]
        without = f", and {len(pairs) - len(pair)} seed(s) that downpour never finished" if len(pair) < len(pairs) else ""
        print(f"N = {n}: worker-seconds of sandblaster / downpour = {shown(pair, never='never') if pair else 'none'}{without}")
    if len(workers) > 1:
        for name in ("downpour, adagrad", "sandblaster"):
            few, many = (spread(cost[name, n])[0] for n in (workers[0], workers[-1]))
            print(f"{name}: worker-seconds at N = {workers[-1]} / at N = {workers[0]} = {many / few:.2f}")
    print("published: Downpour with Adagrad is the cheaper one up to 2,000 cores; Sandblaster scales further (42 M parameters, speech)")
    clock.close(len(seeds), quick=given.quick)


def asynchronous(problem, n: int, rate: float) -> Bench:
    adagrad: Callable = functools.partial(optax.adagrad, initial_accumulator_value=0.0, eps=0.0)
    return Bench(problem, functools.partial(downpour, local=0.0), workers=n, rate=rate, batch=ROWS, optimiser=adagrad)


def timing(seed: int) -> Timing:
    return Timing(latency=1e-3, factor=factor("lognormal:0.5", seed))


if __name__ == "__main__":
    main()
