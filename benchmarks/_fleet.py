"""What the benchmarks of distributed rules share: a small problem, runs of the simulator, scans of the learning rate, means with errors.

The problem: 20,000 toy jets of five classes, six features of each, a network 6-32-5 of 389 parameters with cross-entropy. The loss that a table shows is that
of the validation split, which nobody trains on. A seed sets the initial parameters, the order of the rows, the straggling and the latencies; the jets are the
same for all. Time is the simulator's virtual time, so that no figure depends on what else this machine does.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hlt_train import devices

devices.prepare(1)  # before jax has a backend

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from hlt_train.data.card import load_card  # noqa: E402
from hlt_train.data.dataset import open_dataset  # noqa: E402
from hlt_train.data.normalise import fit_normalisation  # noqa: E402
from hlt_train.data.stream import Stream  # noqa: E402
from hlt_train.datasets.jets import write_jets  # noqa: E402
from hlt_train.machine import machine  # noqa: E402
from hlt_train.report.table import plus_minus  # noqa: E402
from hlt_train.strategies import Setup, Strategy  # noqa: E402
from hlt_train.transports.account import Account, Coverage  # noqa: E402
from hlt_train.transports.program import Program  # noqa: E402
from hlt_train.transports.simulate import Simulation, Timing  # noqa: E402

jax.config.update("jax_cpu_enable_async_dispatch", False)  # tiny functions: handing them to a thread costs more than they do

Rule = Callable[[Setup], Strategy]
SHAPES = ((6, 32), (32,), (32, 5), (5,))
CUTS = np.cumsum([0, *(math.prod(shape) for shape in SHAPES)])
JETS = 20_000
DIVERGED = 2.0  # a loss of log 5 = 1.61 is that of a network that says nothing


class Problem(NamedTuple):
    """x, label: training rows; loss: parameters -> mean loss of the validation split."""

    x: np.ndarray
    label: np.ndarray
    loss: Callable[[np.ndarray], float]

    def gradient(self, v: Any, rows: Any, _key: Any) -> tuple[Any, Any]:
        """(loss, gradient) of the rows of a batch."""
        return jax.value_and_grad(mean_loss)(v, *rows)

    def start(self, seed: int) -> np.ndarray:
        """Initial parameters."""
        rng = np.random.default_rng([seed, 1])
        return np.concatenate([(rng.normal(size=s) * math.sqrt(2 / s[0]) if len(s) == 2 else np.zeros(s)).ravel() for s in SHAPES]).astype(np.float32)

    def dealt(self, seed: int, workers: int, batch: int) -> Callable[[tuple[int, int]], Any]:
        """Share -> rows: one epoch after the other, each in an order of its own, dealt out without gaps. A portion (number, -1) is always the same rows."""
        orders: dict[int, np.ndarray] = {}

        def order(epoch: int) -> np.ndarray:
            if epoch not in orders:
                orders[epoch] = np.random.default_rng([seed, 2, epoch]).permutation(len(self.x))
            return orders[epoch]

        def data(share: tuple[int, int]) -> Any:
            step, owner = share
            epochs, rows = np.divmod((step * workers + owner) * batch + np.arange(batch), len(self.x))
            places = np.array([order(int(e))[r] for e, r in zip(epochs, rows, strict=True)]) if epochs[0] != epochs[-1] else order(int(epochs[0]))[rows]
            return self.x[places], self.label[places]

        return data


def mean_loss(v: Any, x: Any, label: Any) -> Any:
    w1, b1, w2, b2 = (v[CUTS[k] : CUTS[k + 1]].reshape(shape) for k, shape in enumerate(SHAPES))
    return optax.softmax_cross_entropy_with_integer_labels(jax.nn.relu(x @ w1 + b1) @ w2 + b2, label).mean()


def jets() -> Problem:
    """The problem of this folder's distributed benchmarks."""
    with tempfile.TemporaryDirectory(prefix="hlt-train-bench-") as folder:
        file = Path(folder) / "toy_jets.root"
        write_jets(file, JETS, 1)
        card = load_card("toy_jets")
        card.samples["jets"].files = [str(file)]
        with open_dataset(card) as dataset:
            inputs = fit_normalisation(dataset)
            train, validation = (Stream(dataset, split, inputs, batch=64, workers=1, seed=1).resident() for split in ("train", "validation"))
    held = jnp.asarray(validation.x.groups["hlf"]), jnp.asarray(validation.label)
    jitted = jax.jit(lambda v: mean_loss(v, *held))
    return Problem(np.asarray(train.x.groups["hlf"]), np.asarray(train.label), lambda v: float(jitted(v)))


class Track(NamedTuple):
    """A run. times, shares, losses: of its points, the first at the start; account: of its messages; vector: the last parameters; simulation: all else."""

    times: np.ndarray
    shares: np.ndarray
    losses: np.ndarray
    account: Account
    simulation: Simulation

    @property
    def loss(self) -> float:
        """At the end; inf where the run diverged."""
        return float(self.losses[-1]) if self.losses[-1] < DIVERGED else math.inf

    def until(self, target: float, along: str = "times") -> float:
        """Where the loss first reaches the target, between points on a straight line; inf: never."""
        reached = np.flatnonzero(self.losses <= target)
        if not len(reached) or reached[0] == 0:
            return math.inf
        k, where = int(reached[0]), getattr(self, along)
        part = (self.losses[k - 1] - target) / (self.losses[k - 1] - self.losses[k])
        return float(where[k - 1] + part * (where[k] - where[k - 1]))


class Bench:
    """A rule compiled for a problem; seeds share what was compiled.

    Args:
        rule: a factory with its options bound.
        workers: N.
        rate: constant.
        optimiser: of the rule.
        shards: of the server.
        portions: of an epoch, for rules whose server hands them out.
    """

    def __init__(
        self,
        problem: Problem,
        rule: Rule,
        *,
        workers: int,
        rate: float,
        batch: int,
        optimiser: Callable[..., optax.GradientTransformation] = optax.sgd,
        shards: int = 1,
        portions: int = 1,
        wire: str = "float32",
    ) -> None:
        self.problem, self.workers, self.batch, self.portions = problem, workers, batch, portions
        strategy = rule(Setup(workers, optax.constant_schedule(rate), optimiser, portions))
        first = problem.dealt(0, workers, batch)((0, 0))
        self.program = Program(strategy, problem.gradient, problem.start(0), first, workers=workers, shards=shards, seed=0, wire=wire)

    def run(self, seed: int, *, shares: int, timing: Timing, points: int = 20, target: float | None = None, rounds: bool = False) -> Track:
        """Train with so many shares over all workers, or until the loss is below the target (or beyond hope).

        rounds: a point is an update of the server, at its time, and not a number of shares: for rules whose workers meet (their next update may be a moment
        away when a number of shares is done).
        """
        program, n = self.program, self.workers
        program.vector, program.seed = self.problem.start(seed), seed
        steps = -(-shares // n)
        # A rule that hands portions out counts its epoch in them; for the others the length of an epoch does not matter here.
        coverage = Coverage(max(1, self.portions // n) if program.strategy.batch else steps, n)
        dealt = self.problem.dealt(seed, n, self.batch)
        data = dealt if program.strategy.batch is None else lambda share: dealt((0, share[0] % self.portions))
        simulation = Simulation(program, data, steps=steps, coverage=coverage, timing=timing)
        found: list[tuple[float, int, float]] = [(0.0, 0, self.problem.loss(program.vector))]
        if rounds:
            self._listen(simulation, found)
        for k in range(1, points + 1):
            more = simulation.advance(steps * n * k // points)
            if k == points:
                simulation.drain()
            if not rounds:
                found.append((simulation.now, simulation.done, self.problem.loss(simulation.params())))
            loss = min(point[2] for point in found) if rounds else found[-1][2]
            if not more or not loss < 10 * DIVERGED or (target is not None and loss <= target):
                break
        times, done, losses = (np.array(column, np.float64) for column in zip(*found, strict=True))
        return Track(times, done, np.where(np.isfinite(losses), losses, math.inf), simulation.account, simulation)

    def _listen(self, simulation: Simulation, found: list[tuple[float, int, float]]) -> None:
        """Add a point at every update of the (only) shard."""
        shard, serve = simulation.shards[0], simulation.shards[0].serve

        def heard(messages: Any, measured: Any) -> Any:
            served = serve(messages, measured)
            found.append((simulation.now, shard.clock * self.workers, self.problem.loss(simulation.params())))
            return served

        shard.serve = heard  # type: ignore[method-assign]


class Scan(NamedTuple):
    """rate: the best of those tried; bench: compiled with it; losses: by rate; edge: whether the best is the first or last of the rates."""

    rate: float
    bench: Bench
    losses: dict[float, float]

    @property
    def edge(self) -> str:
        """A mark where a better rate may lie beyond those tried."""
        return "*" if self.rate in (min(self.losses), max(self.losses)) else ""


def scan(make: Callable[[float], Bench], rates: Sequence[float], figure: Callable[[Bench], float]) -> Scan:
    """Try learning rates, the middle one first and then outwards while it gets better. `figure`: the smaller the better."""
    benches: dict[float, Bench] = {}
    losses: dict[float, float] = {}

    def value(k: int) -> float:
        rate = rates[k]
        if rate not in losses:
            benches[rate] = make(rate)
            losses[rate] = figure(benches[rate])
        return losses[rate]

    best = len(rates) // 2
    value(best)
    for way in (1, -1):
        while 0 <= best + way < len(rates) and value(best + way) <= value(best):
            best += way
    if not math.isfinite(losses[rates[best]]):  # all of those diverged, equally: only smaller rates can help
        best = min(range(len(rates)), key=value)
    return Scan(rates[best], benches[rates[best]], losses)


def spread(values: Iterable[float]) -> tuple[float, float]:
    """Mean and its standard error; (inf, nan) where one is infinite."""
    found = list(values)
    if not all(math.isfinite(v) for v in found):
        return math.inf, math.nan
    return statistics.fmean(found), statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else math.nan


def shown(values: Iterable[float], *, never: str = "diverged") -> str:
    """Mean +- standard error; where some values are infinite, how many."""
    found = list(values)
    lost = sum(not math.isfinite(v) for v in found)
    if lost:
        return never if lost == len(found) else f"{never} {lost} of {len(found)}"
    mean, error = spread(found)
    return plus_minus(mean, error) if math.isfinite(error) else f"{mean:.4g}"


def arguments(description: str | None, *, seeds: int) -> argparse.ArgumentParser:
    """--seeds and --quick."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=seeds, help=f"runs of each cell (default: {seeds})")
    options.add_argument("--quick", action="store_true", help="a few cells, one seed, short runs: whether the script works")
    return options


class Clock:
    """Prints the last line: seeds, machine, seconds."""

    def __init__(self) -> None:
        self._began, self._cpu = time.monotonic(), time.process_time()

    def close(self, seeds: int, *, quick: bool) -> None:
        here = machine()
        took = f"{time.process_time() - self._cpu:.0f} s of CPU, {time.monotonic() - self._began:.0f} s by the clock"
        runs = f"{seeds} seed(s){', --quick: not to be quoted' if quick else ''}, mean +- standard error over them"
        print(f"{runs}; {here['cpu']}, {here['cores']} cores; {took}")
