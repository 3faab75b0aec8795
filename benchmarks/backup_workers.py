"""Synchronous SGD with backup workers: virtual time to a target loss against the number b of gradients that a round of 100 workers does not wait for.

Four straggler models: the batch times that were measured on a machine (`traces/batch_times.txt`, whose first lines say how; `--measure FILE` makes another),
lognormal, Pareto, and four machines of the hundred that are slow for good. Two ways with the learning rate: the same for every b, which is fair where the
curvature limits it; or proportional to the gradients that are averaged, N - b, which is how it is set where the noise limits it. Beside each gain stands what
order statistics alone promise, E[T(N)] / E[T(N-b)]: rounds as long as the (N-b)-th of N batch times, if every worker began every round.

Published (Chen, Pan, Monga, Bengio, Jozefowicz 2016): of 100 machines, 96 + 4 backups were best for Inception.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _fleet import Bench, Clock, Timing, arguments, jets, shown, spread

from hlt_train.report.table import table
from hlt_train.strategies.sync import sync
from hlt_train.transports.stragglers import Factor, factor

TRACE = Path(__file__).parent / "traces" / "batch_times.txt"
WORKERS, BATCH, RATE, TARGET, ROUNDS = 100, 8, 0.2, 1.15, 120
BACKUPS = (0, 1, 2, 4, 6, 8, 12, 20, 40)
SLOW, TIMES = 4, 2.5  # machines, how much slower
COMPUTE = 0.1  # s, mean of a batch; a message takes 1 ms there and 1 ms back


def main() -> None:
    options = arguments(__doc__, seeds=3)
    options.add_argument("--trace", type=Path, default=TRACE)
    options.add_argument("--measure", type=Path, metavar="FILE", help="measure batch times on this machine, write them, and do nothing else")
    given = options.parse_args()
    if given.measure:
        measure(given.measure)
        return
    clock, seeds = Clock(), 1 if given.quick else given.seeds
    models: dict[str, Callable[[int], Factor]] = {
        "measured trace": lambda seed: factor(f"trace:{given.trace}", seed),
        "lognormal:0.5": lambda seed: factor("lognormal:0.5", seed),
        "pareto:2": lambda seed: factor("pareto:2", seed),
        f"{SLOW} slow machines": slow,
    }
    backups = (0, SLOW) if given.quick else BACKUPS
    problem, target = jets(), 1.3 if given.quick else TARGET
    promised = {name: {b: order(model(0), 0) / order(model(0), b) for b in backups} for name, model in models.items()}
    for way in ("the same for every b", "proportional to N - b"):
        rates = {b: RATE if way.startswith("the") else RATE * (WORKERS - b) / WORKERS for b in backups}
        benches = {b: Bench(problem, functools.partial(sync, backups=b), workers=WORKERS, rate=rates[b], batch=BATCH) for b in backups}
        rows, lines = [], []
        for name, model in models.items():
            more, line = compared(name, benches, model, range(1, seeds + 1), target, promised[name])
            rows += more
            lines.append(line)
        header = ["stragglers", "b", "rounds", "time, mean batches", "time b=0 / this", "order statistics", "dropped"]
        print(table(rows, header, title=f"sync, {WORKERS} workers, batch {BATCH}, rate {RATE} {way}, to a validation loss of {target}"))
        print("\n".join([*lines, ""]))
    print("published: 96 + 4 backups best of 100 machines (Inception, Chen et al. 2016: another network, other machines).")
    clock.close(seeds, quick=given.quick)


def compared(
    name: str, benches: dict[int, Bench], model: Callable[[int], Factor], seeds: range, target: float, promised: dict[int, float]
) -> tuple[list[list[object]], str]:
    """The rows of a straggler model, and the line with the best b."""
    rows: list[list[object]] = []
    times: dict[int, list[float]] = {}
    for b, bench in benches.items():
        tracks = []
        for seed in seeds:
            timing = Timing(compute=COMPUTE, latency=1e-3, factor=model(seed))
            tracks.append(bench.run(seed, shares=WORKERS * ROUNDS, timing=timing, points=ROUNDS, target=target, rounds=True))
        times[b] = [track.until(target) / COMPUTE for track in tracks]
        rounds = [track.until(target, "shares") / WORKERS for track in tracks]
        late = [track.account.late.sum() / max(1, track.simulation.done) for track in tracks]
        cells = [shown(column, never="never") for column in (rounds, times[b], gains(times, b))]
        rows.append([name, b, *cells, f"{promised[b]:.2f}", f"{100 * np.mean(late):.1f} %"])
    best = min(times, key=lambda b: -spread(gains(times, b))[0])
    near = [b for b in times if not separate(gains(times, b), gains(times, best))]
    line = f"{name}: best b = {best} of {WORKERS}, gain {shown(gains(times, best))}; not told apart from it (two errors): b = {', '.join(map(str, near))}"
    return rows, line


def slow(seed: int) -> Factor:
    """Some machines are slow for good; the others differ little."""
    little = factor("lognormal:0.1", seed)
    return lambda worker, batch: little(worker, batch) * (TIMES if worker < SLOW else 1.0)


def gains(times: dict[int, list[float]], b: int) -> list[float]:
    """Time without backups over time with b, seed by seed."""
    return [t0 / t for t0, t in zip(times[0], times[b], strict=True)]


def separate(one: list[float], other: list[float]) -> bool:
    """Whether two means over the same seeds differ by more than two errors of their paired difference."""
    mean, error = spread(a - b for a, b in zip(one, other, strict=True))
    return one != other and not abs(mean) <= 2 * error


def order(sample: Factor, b: int, rounds: int = 400) -> float:
    """E[T(N-b)], the mean over rounds of the (N-b)-th smallest of N factors."""
    found = np.sort([[sample(k, t) for k in range(WORKERS)] for t in range(rounds)], axis=1)
    return float(found[:, WORKERS - 1 - b].mean())


def measure(path: Path, count: int = 3000) -> None:
    """Write the times of one batch of a fixed network, one after the other in one process with one thread."""
    import jax
    import jax.numpy as jnp

    from hlt_train.machine import machine

    weights = [jnp.full((256, 256), 1 / 256) for _ in range(4)]

    @jax.jit
    def gradient(w, x):
        return jax.grad(lambda w: jnp.sum(functools.reduce(lambda h, m: jnp.tanh(h @ m), w, x)))(w)

    x = jnp.ones((1024, 256))
    jax.block_until_ready(gradient(weights, x))
    load, times = os.getloadavg(), []
    for _ in range(count):
        began = time.perf_counter()
        jax.block_until_ready(gradient(weights, x))
        times.append(time.perf_counter() - began)
    here = machine()
    tails = ", ".join(f"{q:.5f}" for q in np.percentile(times, [90, 99, 100]))
    lines = [
        f"# Seconds of {count} batches in a row: gradient of a network 256-256-256-256-256, 1,024 rows, one process.",
        f"# {here['cpu']}, {here['cores']} cores shared with other work, load before and after {load[0]:.1f} and {os.getloadavg()[0]:.1f}.",
        f"# mean {np.mean(times):.5f}, median {np.median(times):.5f}, 90, 99, 100 % below {tails}.",
        "# Made by benchmarks/backup_workers.py --measure.",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, *(f"{t:.6f}" for t in times)]) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
