"""The protocol of mpi_learn (2016 to 2019) written once more, as the "before" of the benchmarks of processes: mpi_learn itself runs on no current stack.

Written from a description of what it does, not from its code. One master, N workers. A worker takes the gradient of a batch as the difference of its weights
before and after a step of plain SGD with the learning rate 1, tells the master that it has an update and how old its weights are, waits for a yes or no,
sends the update with one blocking message per tensor, and receives the weights with one blocking message per tensor; then it begins the next batch
(`sync_every` 1). The master receives from whoever comes first, updates tensor by tensor in NumPy (sgd or rmsprop), and validates by itself after as many
updates as an epoch has batches, while every worker waits. Data are dealt once, by file, and read in the order of the file; a last, partial batch is left out.
A process that dies is no case that anybody thinks of. Kinder than the original in one point: numbers of the handshake are small buffers, not pickles.

    python benchmarks/earlier_protocol.py       a small problem with two workers: rows/s, and what a worker waits per batch

`master` and `worker` are what ranks call (`exchange.py`, `topology.py`).
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

BEGIN, TIME, PERMISSION, UPDATE, WEIGHTS, EXIT = range(10, 16)  # tags
OPTIMISERS = ("sgd", "rmsprop")
DECAY, EPSILON = 0.9, 1e-8  # of rmsprop

Tensors = list[np.ndarray]


class Problem(NamedTuple):
    """What is learnt.

    Attributes:
        weights: at the beginning.
        gradient: (weights, batch) -> (loss, gradient of each tensor); not called by the master.
        batches: worker -> the batches of an epoch, in the order of its files.
        validate: weights -> figures; called by the master alone.
        epochs: passes of each worker over its own batches.
        updates: of all workers in an epoch.
        optimiser: of the master.
        rate: learning rate.
        staleness: most updates that a worker's weights may lag behind; None: any.
    """

    weights: Tensors
    gradient: Callable[[Tensors, Any], tuple[float, Tensors]]
    batches: Callable[[int], Sequence[Any]]
    validate: Callable[[Tensors], dict[str, float]]
    epochs: int
    updates: int
    optimiser: str = "rmsprop"
    rate: float = 1e-3
    staleness: int | None = None


class Led(NamedTuple):
    """What the master saw.

    Attributes:
        epochs: (seconds since the first weights went out, figures of the validation) at the end of each.
        serving: seconds from an update's last tensor to the first tensor of its answer, each.
        seconds: until the last worker had gone.
    """

    epochs: list[tuple[float, dict[str, float]]]
    serving: list[float]
    seconds: float


class Worked(NamedTuple):
    """What a worker did: (begin, end) of each gradient."""

    gradients: list[tuple[float, float]]
    losses: list[float]


class Optimiser:
    """The master's, tensor by tensor."""

    def __init__(self, name: str, rate: float, weights: Tensors) -> None:
        if name not in OPTIMISERS:
            raise ValueError(f"an optimiser is one of {', '.join(OPTIMISERS)}, got {name}")
        self.name, self.rate = name, rate
        self.square = [np.zeros_like(w) for w in weights]

    def __call__(self, weights: Tensors, update: Tensors) -> Tensors:
        """The next weights."""
        found = []
        for k, (w, g) in enumerate(zip(weights, update, strict=True)):
            if self.name == "rmsprop":
                self.square[k] = DECAY * self.square[k] + (1 - DECAY) * np.square(g)
                g = g / np.sqrt(self.square[k] + EPSILON)
            found.append((w - self.rate * g).astype(w.dtype))
        return found


def send(comm: Any, tensors: Tensors, to: int, tag: int) -> None:
    for tensor in tensors:
        comm.Send(tensor, to, tag)


def receive(comm: Any, like: Tensors, source: int, tag: int) -> Tensors:
    found = [np.empty_like(tensor) for tensor in like]
    for tensor in found:
        comm.Recv(tensor, source, tag)
    return found


def master(comm: Any, problem: Problem) -> Led:
    """Rank 0 of `comm`: serve until every worker has gone."""
    from mpi4py import MPI

    weights = [w.copy() for w in problem.weights]
    optimiser = Optimiser(problem.optimiser, problem.rate, weights)
    for k in range(1, comm.size):
        send(comm, weights, k, WEIGHTS)
    began, done, working = time.monotonic(), 0, comm.size - 1
    epochs, serving = [], []
    number, status = np.zeros(1, np.int64), MPI.Status()
    while working:
        comm.Recv(number, MPI.ANY_SOURCE, MPI.ANY_TAG, status)
        source, tag = status.Get_source(), status.Get_tag()
        if tag == EXIT:
            working -= 1
            continue
        comm.Recv(number, source, TIME)
        fresh = problem.staleness is None or done - int(number[0]) <= problem.staleness
        comm.Send(np.array([fresh], np.int64), source, PERMISSION)
        if fresh:
            update = receive(comm, weights, source, UPDATE)
            came = time.monotonic()
            weights = optimiser(weights, update)
            done += 1
            serving.append(time.monotonic() - came)
        send(comm, weights, source, WEIGHTS)
        comm.Send(np.array([done], np.int64), source, TIME)
        if fresh and done % problem.updates == 0:
            at = time.monotonic() - began
            epochs.append((at, problem.validate(weights)))
    return Led(epochs, serving, time.monotonic() - began)


def worker(comm: Any, problem: Problem) -> Worked:
    """Another rank of `comm`."""
    weights = receive(comm, problem.weights, 0, WEIGHTS)
    batches = problem.batches(comm.rank - 1)
    clock, fresh = np.zeros(1, np.int64), np.zeros(1, np.int64)
    gradients, losses = [], []
    for _ in range(problem.epochs):
        for batch in batches:
            began = time.monotonic()
            loss, grads = problem.gradient(weights, batch)
            gradients.append((began, time.monotonic()))
            losses.append(loss)
            after = [w - g for w, g in zip(weights, grads, strict=True)]
            update = [w - a for w, a in zip(weights, after, strict=True)]
            comm.Send(clock, 0, BEGIN)
            comm.Send(clock, 0, TIME)
            comm.Recv(fresh, 0, PERMISSION)
            if fresh[0]:
                send(comm, update, 0, UPDATE)
            weights = receive(comm, weights, 0, WEIGHTS)
            comm.Recv(clock, 0, TIME)
    comm.Send(clock, 0, EXIT)
    return Worked(gradients, losses)


def gaps(gradients: Sequence[tuple[float, float]], skip: int = 5) -> np.ndarray:
    """Seconds from the end of each gradient to the beginning of the next: the exposed exchange. The first few are left out."""
    spans = np.asarray(gradients, float).reshape(-1, 2)[skip:]
    return spans[1:, 0] - spans[:-1, 1]


def example(target: Path) -> None:
    """A rank of the small problem."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD.Dup()
    rng = np.random.default_rng(1)
    x, truth = rng.normal(size=(4000, 20)).astype(np.float32), rng.normal(size=20).astype(np.float32)

    def gradient(weights: Tensors, batch: slice) -> tuple[float, Tensors]:
        error = x[batch] @ weights[0] - x[batch] @ truth
        return float(np.mean(error**2)), [2 * x[batch].T @ error / len(error)]

    def batches(k: int) -> list[slice]:
        return [slice(i, i + 100) for i in range(2000 * k, 2000 * (k + 1), 100)]

    def validate(weights: Tensors) -> dict[str, float]:
        return {"loss": float(np.mean((x @ weights[0] - x @ truth) ** 2))}

    problem = Problem([np.zeros(20, np.float32)], gradient, batches, validate, 10, 40, "sgd", 0.05)
    if comm.rank == 0:
        led = master(comm, problem)
        (target / "master.json").write_text(json.dumps(led))
    else:
        (target / f"worker{comm.rank}.json").write_text(json.dumps(worker(comm, problem).gradients))


def main() -> None:
    from hlt_train.transports.launch import launch

    with tempfile.TemporaryDirectory(prefix="hlt-train-bench-") as folder:
        ended = launch([__file__, folder], 3)
        if ended.code:
            raise SystemExit(ended.text)
        epochs, _, seconds = json.loads((Path(folder) / "master.json").read_text())
        waits = np.concatenate([gaps(json.loads((Path(folder) / f"worker{k}.json").read_text())) for k in (1, 2)])
    print(f"a regression of 20 weights, two workers: {10 * 4000 / seconds:,.0f} rows/s, validation loss {epochs[-1][1]['loss']:.2g}")
    print(f"a worker waits {1e3 * np.median(waits):.3f} ms per batch (median; 90 %: {1e3 * np.quantile(waits, 0.9):.3f} ms)")


if __name__ == "__main__":
    example(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
