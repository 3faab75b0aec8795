"""Learned bits against HGQ2 (Keras 3 on JAX): accuracy at equal effective bit operations, and the wall time of training.

    pip install 'hlt-train[hgq2]'
    python benchmarks/against_hgq2.py            # about half an hour on two cores
    python benchmarks/against_hgq2.py --quick    # one seed, few epochs: not to be quoted

Both train an MLP 16-64-32-32-5 from labels on the same 100,000 toy jets (six high-level features, and log relative momentum and pseudorapidity of the five
hardest constituents, normalised by the package), with the same split, batch, number of epochs and Adam, and learn a width for every weight and activation
while the weight of the cost grows: one run each gives a front. A point is judged by accuracy on the validation split; at each budget the best point that costs
no more is taken, and its accuracy is that on the test split. HGQ2's networks are lowered to the package's graph (equal decisions are checked), so that one
counter and one evaluator serve both: `hlt_train.cost` and `hlt_train.graph.evaluate`. HGQ2's own count is printed beside it.

HGQ2's settings are those of its documentation: weights `kbi` with SAT_SYM, activations `kif` with WRAP, integer bits traced on the training split before a
network is used, a beta that stays constant and then grows by a constant factor per epoch, and JAX as the backend, which it recommends as the fastest. Learning
rate and last beta of both sides are the best of a scan on the validation split of the first seed (`--scan`).

Wall time: from the data to a front of integer networks with their accuracy on validation, the same without the making of the peer's front, and the sum over
epochs after the first one of a stage, which holds the compilation, scaled to all epochs. Processor time is that of all threads, and depends less on what else
the machine does.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ["KERAS_BACKEND"] = "jax"

from hlt_train import devices

devices.prepare(1)  # before jax has a backend

import numpy as np  # noqa: E402

from hlt_train.configuration import check  # noqa: E402
from hlt_train.cost import cost  # noqa: E402
from hlt_train.data import normalise  # noqa: E402
from hlt_train.data.card import Card, load_card  # noqa: E402
from hlt_train.data.dataset import open_dataset  # noqa: E402
from hlt_train.datasets.jets import write_jets  # noqa: E402
from hlt_train.distil import DistilConfig, distil  # noqa: E402
from hlt_train.files import read_document  # noqa: E402
from hlt_train.fit import FitConfig, fit  # noqa: E402
from hlt_train.graph import Affine, Fixed, Graph, Output, Quant, Requant, evaluate, input_node  # noqa: E402
from hlt_train.machine import machine  # noqa: E402
from hlt_train.progress import Progress  # noqa: E402
from hlt_train.report.table import plus_minus, table  # noqa: E402
from hlt_train.restore import load_run, lowered  # noqa: E402
from hlt_train.types import Features, Group  # noqa: E402

CLASSES = ("g", "q", "W", "Z", "t")
WIDTHS = (64, 32, 32)
BUDGETS = (1500, 2000, 3000, 5000, 8000)
KEEP = 24  # points of our front
BATCH = 512
JETS = 100_000
CARD = """
format: hlt-train/card
version: 1
name: sixteen
tree: Jets
example: object
identity: [run, luminosityBlock, event]
samples: {{jets: {{files: ["{path}"]}}}}
new_variables: {{part_logrel: log(part_pt / jet_pt)}}
inputs:
  hlf: [jet_mass, jet_mult, jet_sumzlogz, jet_width, jet_tau21, jet_tau32]
  part: {{length: 5, vars: {{part_logrel: {{}}, part_deta: {{centre: 0, scale: 4, clip: [-4, 4]}}}}}}
labels: {{classes: [g, q, W, Z, t], expression: label}}
splits: {{by: hash, fractions: {{train: 0.6, validation: 0.2, test: 0.2}}}}
"""


class Settings(NamedTuple):
    """Of one side: learning rate, and the last weight of the cost."""

    rate: float
    beta: float


class Tried(NamedTuple):
    """A point of a front: what it costs, its accuracy on validation, and which test jets it gets right, bool `[n]`; `own`: the peer's own count."""

    cost: int
    validation: float
    right: np.ndarray
    own: int = 0


class Trained(NamedTuple):
    """A front and the seconds that it took: whole, training alone (ours: whole), without compilation, and of processor time (all threads, whole)."""

    front: list[Tried]
    seconds: float
    training: float
    without: float
    processor: float


class Data(NamedTuple):
    """Raw features and labels of a split, and the same features as the 16 numbers that a network reads, normalised."""

    x: Features
    flat: np.ndarray
    label: np.ndarray


class Marks(Progress):
    """Notes when each epoch of each stage first reports."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.epochs: list[list[float]] = []
        self._last = ""

    def update(self, _done: int, _total: int, text: str) -> None:
        """A report of training."""
        epoch = text.partition(",")[0]
        if epoch != self._last:
            if epoch == "epoch 1":
                self.epochs.append([])
            if self.epochs:
                self.epochs[-1].append(time.monotonic())
            self._last = epoch


def split(card: Card, inputs: Any, name: str) -> Data:
    with open_dataset(card) as dataset:
        rows = dataset.rows(np.flatnonzero(dataset.counts[name]).tolist(), name)
    z = normalise.apply(inputs, rows.x)
    return Data(rows.x, np.concatenate([np.asarray(z.groups[g.name]).reshape(len(rows), -1) for g in inputs.groups], axis=1), rows.label)


def ours(card: Card, teacher: Path, folder: Path, settings: Settings, seed: int, epochs: int, test: Data) -> Trained:
    """`hlt-train distil` without its teacher: a fifth of the steps as float warm-up, all others but one to learn bits."""
    content = {
        "teacher": str(teacher),
        "card": card.model_dump(mode="json"),
        "lambda": 0.0,
        "model": {"name": "mlp", "widths": list(WIDTHS)},
        "batch": BATCH,
        "for": f"{epochs}epochs",
        "learning_rate": settings.rate,
        "seed": seed,
        "devices": 1,
        "warmup": 0.2,
        "widths": {"share": 0.8 - 0.5 / epochs, "beta": [0.02, settings.beta], "keep": KEEP},
    }
    marks, began, used = Marks(), time.monotonic(), time.process_time()
    distil(check(DistilConfig, content), folder, progress=marks)
    seconds, processor = time.monotonic() - began, time.process_time() - used
    stages = [np.diff(stage) for stage in marks.epochs[:2]]
    counted = np.concatenate([stage[1:] for stage in stages])
    document = read_document(folder / "front.json", "hlt-train/front", 1)
    front = []
    for point in document["points"]:
        graph = lowered(load_run(folder / "front" / str(point["point"])))
        front.append(Tried(cost(graph)["bit_operations"], point["accuracy"], right(graph, test.x, test.label)))
    return Trained(front, seconds, seconds, float(counted.mean()) * epochs, processor)


def right(graph: Graph, x: Features, label: np.ndarray) -> np.ndarray:
    f = graph.structure[graph.output.name].f
    assert f is not None
    return np.asarray(np.ldexp(evaluate(graph, x).astype(np.float64), -f.astype(np.int32)).argmax(axis=1) == label)


def peer(settings: Settings, seed: int, epochs: int, train: Data, validation: Data, test: Data) -> Trained:
    """HGQ2 with a snapshot at the end of every epoch; fronts are made afterwards, outside of the time."""
    import keras
    from hgq.config import LayerConfigScope, QuantizerConfigScope
    from hgq.layers import QDense
    from hgq.utils.sugar import BetaScheduler, FreeEBOPs, PieceWiseSchedule

    keras.utils.set_random_seed(seed)
    began, used = time.monotonic(), time.process_time()
    with (
        QuantizerConfigScope(place="all", default_q_type="kbi", overflow_mode="SAT_SYM"),
        QuantizerConfigScope(place="datalane", default_q_type="kif", overflow_mode="WRAP"),
        LayerConfigScope(enable_ebops=True, beta0=5e-7),
    ):
        hidden = [QDense(width, activation="relu") for width in WIDTHS]
        model = keras.Sequential([keras.layers.Input((16,)), *hidden, QDense(len(CLASSES))])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(settings.rate), loss=loss, metrics=["accuracy"], steps_per_execution=16)
    taken: list[tuple[list[np.ndarray], float, int]] = []
    ends: list[float] = []

    class Snapshots(keras.callbacks.Callback):
        def on_epoch_end(self, _epoch: int, logs: Any = None) -> None:
            taken.append((model.get_weights(), float(logs["val_accuracy"]), int(logs["ebops"])))
            ends.append(time.monotonic())

    ramp = BetaScheduler(PieceWiseSchedule([(0, 5e-7, "constant"), (epochs // 10, 5e-7, "log"), (epochs - 1, settings.beta, "constant")]))
    model.fit(
        train.flat,
        train.label,
        batch_size=BATCH,
        epochs=epochs,
        validation_data=(validation.flat, validation.label),
        callbacks=[FreeEBOPs(), ramp, Snapshots()],
        verbose=0,
    )
    training = time.monotonic() - began
    kept = on_front(taken)
    points = [peer_point(model, weights, train, validation) for weights in kept]
    seconds, processor = time.monotonic() - began, time.process_time() - used
    front = [judged(model, weights, point, train, test) for weights, point in zip(kept, points, strict=True)]
    return Trained(front, seconds, training, float(np.diff(ends).mean()) * epochs, processor)


def on_front(taken: list[tuple[list[np.ndarray], float, int]]) -> list[list[np.ndarray]]:
    """Weights of the snapshots that no other beats, by the peer's own count and accuracy."""
    found, best = [], -1.0
    for weights, accuracy, _ in sorted(taken, key=lambda t: (t[2], -t[1])):
        if accuracy > best:
            best = accuracy
            found.append(weights)
    return found


class Point(NamedTuple):
    """A snapshot of the peer as a graph: its first grid, its own count, and which validation jets it gets right."""

    graph: Graph
    grid: Callable[[np.ndarray], Features]
    own: int
    right: np.ndarray


def peer_point(model: Any, weights: list[np.ndarray], train: Data, validation: Data) -> Point:
    from hgq.utils.minmax_trace import trace_minmax

    model.set_weights(weights)
    own = trace_minmax(model, train.flat, batch_size=16384)
    graph, grid = peer_graph(model)
    return Point(graph, grid, own, right(graph, grid(validation.flat), validation.label))


def judged(model: Any, weights: list[np.ndarray], point: Point, train: Data, test: Data) -> Tried:
    """Of the network with these weights; that it decides as the peer does is checked on the test split."""
    from hgq.utils.minmax_trace import trace_minmax

    model.set_weights(weights)
    trace_minmax(model, train.flat, batch_size=16384)  # the last one was of another point
    worth = right(point.graph, point.grid(test.flat), test.label)
    predicted = model.predict(test.flat, batch_size=8192, verbose=0).argmax(axis=1) == test.label
    differing = int((predicted != worth).sum())
    assert differing <= 1e-3 * len(predicted), f"the lowered network differs from HGQ2's in {differing} of {len(predicted)} decisions"
    return Tried(cost(point.graph)["bit_operations"], float(point.right.mean()), worth, point.own)


def peer_graph(model: Any) -> tuple[Graph, Any]:
    """The graph of HGQ2's layers, and the function that brings normalised rows to their first grid (which HGQ2 rounds half up)."""
    numpy = lambda v: np.asarray(v, np.float64)  # noqa: E731
    nodes: list[Any] = []
    first: Any = None
    source = "in"
    for k, layer in enumerate(model.layers):
        signed, i, f = (np.round(numpy(v)).astype(np.int64)[0] for v in layer.iq.quantizer.kif)
        alive = i + f > 0
        f = np.where(alive, f, 0)
        if k == 0:
            first = layer.iq
            n = len(i)
            ones, wide = np.ones(n, np.float32), np.full(n, np.inf, np.float32)
            group = Group("event", tuple(f"x{j}" for j in range(n)), None, 0 * ones, ones, -wide, wide, 0 * ones)
            nodes.append(input_node("in", group, Fixed(True, np.where(alive, i, -1), f)))
        else:
            # After ReLU nothing is below 0: a sign bit is one more bit of range.
            nodes.append(Requant(f"requant{k}", (source,), Quant(Fixed(False, np.where(alive, i + signed, 0), f), "half_up", "wrap")))
            source = f"requant{k}"
        w, b = numpy(layer.qkernel), numpy(layer.qbias)
        fine = np.array([24] * w.shape[1], np.int64)
        shifted = w * np.ldexp(1.0, fine - f.max())[None, :] * np.ldexp(1.0, f.max() - f)[:, None]
        integers = np.rint(shifted).astype(np.int64)
        assert (integers == shifted).all()
        bias = np.ldexp(b, fine.astype(np.int32))
        assert (np.rint(bias) == bias).all()
        nodes.append(Affine(f"dense{k}", (source,), integers, bias.astype(np.int64), fine, relu=k < len(model.layers) - 1))
        source = f"dense{k}"
    nodes.append(Output("out", (source,), CLASSES, "none"))

    def grid(flat: np.ndarray) -> Features:
        return Features({"event": np.asarray(first(flat, training=False), np.float32)}, {})

    return Graph(tuple(nodes)), grid


def at_budget(front: list[Tried], budget: int) -> Tried | None:
    within = [point for point in front if point.cost <= budget]
    return max(within, key=lambda point: (point.validation, -point.cost)) if within else None


def compared(pairs: list[tuple[Trained, Trained]], budget: int) -> list[str]:
    """A row of the table: accuracies of both, their difference with its error over seeds and over the common test jets."""
    found = [(at_budget(a.front, budget), at_budget(b.front, budget)) for a, b in pairs]
    if any(a is None or b is None for a, b in found):
        return [f"{budget:,}", *("none" if any(pair[side] is None for pair in found) else "" for side in (0, 1)), "", ""]
    both = [(a, b) for a, b in found if a is not None and b is not None]
    differences = np.array([a.right.mean() - b.right.mean() for a, b in both])
    jets = math.sqrt(float(np.mean([np.var(a.right.astype(float) - b.right) / len(a.right) for a, b in both])))
    n = len(both)
    error = math.hypot(jets, float(differences.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0)
    mean = [float(np.mean([pair[side].right.mean() for pair in both])) for side in (0, 1)]
    own = int(np.mean([b.own for _, b in both]))
    return [f"{budget:,}", *(f"{100 * m:.2f}" for m in mean), plus_minus(100 * float(differences.mean()), 100 * error), f"{own:,}"]


def worth(trained: Trained) -> float:
    """What a scan maximises: mean over the budgets of the best accuracy on validation within each."""
    points = [at_budget(trained.front, budget) for budget in BUDGETS]
    return float(np.mean([0.2 if point is None else point.validation for point in points]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, few epochs")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scan", action="store_true", help="print the scan of learning rates and last betas, first seed")
    parser.add_argument("--only", choices=["ours", "peer"], help="with --scan: one side")
    parser.add_argument("--rates", type=float, nargs="+", default=(0.003, 0.01, 0.03), help="with --scan: learning rates to try")
    parser.add_argument("--betas", type=float, nargs="+", help="with --scan: last betas to try")
    parser.add_argument("--ours", type=float, nargs=2, default=(0.01, 10.0), metavar=("RATE", "BETA"))
    parser.add_argument("--peer", type=float, nargs=2, default=(0.01, 1e-4), metavar=("RATE", "BETA"))
    given = parser.parse_args()
    epochs, seeds, jets = (12, 1, 20_000) if given.quick else (given.epochs, given.seeds, JETS)
    with tempfile.TemporaryDirectory(prefix="hlt-train-bench-") as name:
        folder = Path(name)
        write_jets(folder / "jets.root", jets, 2026)
        (folder / "card.yaml").write_text(CARD.format(path=folder / "jets.root"))
        card = load_card(str(folder / "card.yaml"))
        # distil wants a teacher; with lambda 0 nobody asks it anything
        fit(check(FitConfig, {"card": card.model_dump(mode="json"), "for": "1steps", "devices": 1}), folder / "teacher", progress=Progress(quiet=True))
        inputs = load_run(folder / "teacher").inputs
        train, validation, test = (split(card, inputs, part) for part in ("train", "validation", "test"))

        def both(side: str, settings: Settings, seed: int) -> Trained:
            place = folder / f"{side}-{settings.rate}-{settings.beta}-{seed}"
            if side == "ours":
                return ours(card, folder / "teacher", place, settings, seed, epochs, test)
            return peer(settings, seed, epochs, train, validation, test)

        if given.scan:
            for side, betas in (("ours", given.betas or (10.0,)), ("peer", given.betas or (1e-4,))):
                if given.only not in (None, side):
                    continue
                for rate, beta in itertools.product(given.rates, betas):
                    found = both(side, Settings(rate, beta), 1)
                    print(side, rate, beta, f"{worth(found):.4f}", f"{found.seconds:.1f} s", f"{found.without:.1f} s", f"{found.processor:.1f} s", flush=True)
            return
        pairs = []
        for seed in range(1, seeds + 1):
            pairs.append((both("ours", Settings(*given.ours), seed), both("peer", Settings(*given.peer), seed)))
            for side, trained in zip(("ours", "HGQ2"), pairs[-1], strict=True):
                costs = [point.cost for point in trained.front]
                times = ", ".join(f"{seconds:.1f} s" for seconds in trained[1:])
                note = f"seed {seed} {side}: {len(costs)} points from {min(costs):,} to {max(costs):,}, {times}"
                print(note, file=sys.stderr, flush=True)
    print(table([compared(pairs, budget) for budget in BUDGETS], ["bit operations", "ours %", "HGQ2 %", "difference", "HGQ2's own count"]))
    rows = []
    kinds = {
        "wall time": "seconds",
        "wall time, HGQ2's front not counted": "training",
        "wall time without compilation": "without",
        "processor time": "processor",
    }
    for label, what in kinds.items():
        mine, theirs = (float(np.mean([getattr(trained, what) for trained in side])) for side in zip(*pairs, strict=True))
        rows.append([label, f"{mine:.1f}", f"{theirs:.1f}", f"{theirs / mine:.2f}"])
    print(table(rows, ["training, s", "ours", "HGQ2", "ratio"]))
    note = f"{epochs} epochs of {len(train.label):,} jets, {len(test.label):,} test jets; {machine()}"
    print(f"{len(pairs)} seed(s){', --quick: not to be quoted' if given.quick else ''}; {note}")


if __name__ == "__main__":
    main()
