"""Students alone and distilled, in fixed point: toy events at 50 Hz of 8 kHz, toy jets at 50 % and 30 % efficiency for tops.

    python benchmarks/distillation.py events        # about 20 minutes on two cores
    python benchmarks/distillation.py jets          # about 10 minutes

Every student is the package's `mlp` with its default formats (8-bit weights and activations), trained with the package's losses as `hlt-train distil` does:
a float warm-up, formats chosen from its ranges, then training on the grid. Both arms take the same steps, each at its own learning rate, chosen by the
validation loss of the first seed. All student figures come from the golden integer evaluator. Errors of differences and ratios: the spread over seeds and
the paired bootstrap over the common test events, in quadrature.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hlt_train.calibration import calibrate
from hlt_train.data import normalise
from hlt_train.data.card import load_card
from hlt_train.data.dataset import open_dataset
from hlt_train.data.stream import Stream
from hlt_train.datasets import events, jets
from hlt_train.distillation_loss import LOGITS, MATCHED, Head, Soft, head_of, student_losses
from hlt_train.graph import evaluate, score
from hlt_train.models.mlp import mlp
from hlt_train.precision.config import Precision
from hlt_train.report.table import plus_minus, table
from hlt_train.scorers import discriminant_of
from hlt_train.trigger.bootstrap import Population, nominal, rank, replicate
from hlt_train.trigger.discriminant import discriminant
from hlt_train.types import Batch, Features, Inputs

SOFT = Soft(temperature=2.0, share=1.0)  # unless --temperature says otherwise
RATES = (3e-3, 1e-2)  # learning rates of the scan
BATCH = 1024


class Kind(NamedTuple):
    """One problem: how it is generated, the sizes tried, and what is measured."""

    card: str
    rows: int
    samples: tuple[int, ...]  # training rows tried
    students: tuple[tuple[int, ...], ...]
    teacher: tuple[int, ...]
    larger: tuple[int, ...]
    steps: int  # of a student
    epochs: int  # of a teacher


KINDS = {
    "events": Kind("toy_events", 1_000_000, (600_000, 100_000), ((40, 16), (16,), (8,)), (192, 128, 64), (416, 272, 128), 4_000, 8),
    "jets": Kind("toy_jets", 200_000, (20_000, 120_000), ((16, 16), (8, 8), (4,)), (256, 128, 64), (512, 272, 128), 2_000, 10),
}


class Data(NamedTuple):
    """Training and validation rows normalised; test rows raw, with what the figures need."""

    card: Any
    inputs: Inputs
    head: Head | None
    train: Batch
    validation: Batch
    raw: Features
    population: Population


def load(kind: Kind, folder: Path) -> Data:
    """Generate the toy file, split it as its card says, decode it."""
    card, path = load_card(kind.card), folder / "toy.root"
    (events.write_events if kind.card == "toy_events" else jets.write_jets)(path, kind.rows, 2026)
    with open_dataset(card, {name: [str(path)] for name in card.samples}) as dataset:
        inputs = normalise.fit_normalisation(dataset)
        train, validation = (Stream(dataset, split, inputs, batch=BATCH).resident() for split in ("train", "validation"))
        parts = list(dataset.iterate("test"))
    join = lambda pick: {n: np.concatenate([pick(p)[n] for p in parts]) for n in pick(parts[0])}  # noqa: E731
    raw = Features(join(lambda p: p.x.groups), join(lambda p: p.x.counts))
    label = np.concatenate([p.label for p in parts])
    sides = discriminant_of(card)
    classes = tuple(card.labels.classes)
    signal, background = (np.isin(label, [classes.index(c) for c in side]).astype(float) for side in (sides.signal, sides.background))
    background *= (8000.0 if kind.card == "toy_events" else 1.0) / background.sum()  # Hz, or mistag
    one = len(sides.signal) == len(sides.background) == 1
    head = None if one else head_of(classes, sides.signal, sides.background)
    return Data(card, inputs, head, train, validation, raw, Population(signal, background, np.zeros(len(label), np.int32), np.arange(len(label))))


def take(batch: Batch, index: Any) -> Batch:
    return jax.tree.map(lambda leaf: leaf[index], batch)


@eqx.filter_jit
def run_steps(static: Any, params: Any, data: Batch, losses: Any, rate: Any, steps: int, seed: Any, dropout: bool) -> Any:
    """Adam with a cosine to zero over `steps` batches drawn from a new permutation in each epoch; everything on the device."""
    del static  # networks with other formats are other programs
    n = len(data.label)
    per_epoch = n // BATCH
    tx = optax.adam(lambda t: rate * 0.5 * (1 + jnp.cos(jnp.pi * t / steps)))

    def body(t: Any, state: Any) -> Any:
        params, memory, order = state
        key = jax.random.fold_in(jax.random.key(seed), t)
        order = jax.lax.cond(t % per_epoch == 0, lambda: jax.random.permutation(key, n), lambda: order)
        batch = take(data, jax.lax.dynamic_slice_in_dim(order, (t % per_epoch) * BATCH, BATCH))
        grads = jax.grad(lambda p: jnp.mean(losses(p, batch, key if dropout else None)[0]))(params)
        updates, memory = tx.update(grads, memory, params)
        return optax.apply_updates(params, updates), memory, order

    return jax.lax.fori_loop(0, steps, body, (params, tx.init(params), jnp.arange(n)))[0]


LOSSES: dict[Any, Any] = {}


def loss_of(network: Any, classes: int, soft: Soft | None, head: Head | None, formats: str) -> Any:
    """One function per kind of student, so that equal ones are compiled once."""
    shapes = tuple(leaf.shape for leaf in jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array)))
    return LOSSES.setdefault((shapes, classes, soft, head, formats), student_losses(network, classes, soft, head))


def trained(network: Any, data: Batch, losses: Any, rate: float, steps: int, seed: int, *, dropout: bool = False) -> Any:
    params, static = eqx.partition(network, eqx.is_inexact_array)
    return eqx.combine(run_steps(static, params, data, losses, jnp.float32(rate), steps, jnp.uint32(seed), dropout), static)


def validation_loss(network: Any, data: Batch, classes: int) -> float:
    """Cross-entropy with the labels."""
    logits = forward(network, data.x, len(data.label))[:, :classes]
    return float(optax.softmax_cross_entropy_with_integer_labels(logits, data.label).mean())


@eqx.filter_jit
def logits_of(network: Any, x: Features) -> Any:
    return network(x)


def forward(network: Any, x: Features, n: int) -> np.ndarray:
    def part(start: int) -> Features:
        return jax.tree.map(lambda leaf: leaf[start : start + 50_000], x)

    return np.concatenate([np.asarray(logits_of(network, part(start))) for start in range(0, n, 50_000)])


def teacher(data: Data, widths: tuple[int, ...], epochs: int, seed: int) -> Any:
    """A float network with dropout 0.1; the label's loss."""
    classes = len(data.card.labels.classes)
    network = mlp(data.inputs, classes, jax.random.key(seed), widths=widths, dropout=0.1)
    return trained(network, data.train, student_losses(network, classes, None, None), 2e-3, epochs * (len(data.train.label) // BATCH), seed, dropout=True)


def float_score(network: Any, data: Data) -> np.ndarray:
    n = len(data.population.event)
    return discriminant(forward(network, normalise.apply(data.inputs, data.raw), n), tuple(data.card.labels.classes), discriminant_of(data.card))


def student(data: Data, rows: Batch, widths: tuple[int, ...], soft: Soft | None, rate: float, steps: int, seed: int) -> Any:
    """As `distil`: half of the steps in float, then formats, then the other half on the grid."""
    classes = len(data.card.labels.classes)
    outputs = classes + (data.head is not None)

    def build(precision: Precision | None) -> Any:
        return mlp(data.inputs, outputs, jax.random.key(1000 + seed), widths=widths, precision=precision)

    plain = build(None)
    plain = trained(plain, rows, loss_of(plain, classes, soft, data.head, "float"), rate, steps // 2, seed)
    precision = calibrate(build, plain, Precision(), take(rows, np.arange(8192)).x)
    params, static = eqx.partition(build(precision), eqx.is_inexact_array)
    carried = jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(eqx.filter(plain, eqx.is_inexact_array)))
    fixed = eqx.combine(carried, static)
    return trained(fixed, rows, loss_of(fixed, classes, soft, data.head, str(precision)), rate, steps // 2, seed + 1)


def golden_score(network: Any, data: Data) -> np.ndarray:
    """The integer score of the golden evaluator."""
    classes = tuple(data.card.labels.classes)
    sides = discriminant_of(data.card)
    coefficients = [int(c in sides.signal) - int(c in sides.background) for c in classes] if data.head is None else [0] * len(classes) + [1]
    names = classes if data.head is None else (*classes, "discriminant")
    graph = network.lower(data.inputs, names, np.array(coefficients, np.int64))
    return score(graph, evaluate(graph, data.raw))


def parameters(network: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array)))


def figures(kind: str, scores: list[np.ndarray], population: Population, replicas: int) -> tuple[np.ndarray, np.ndarray]:
    """`[networks, figures]` and replicas `[networks, figures, b]`: efficiency at 50 Hz; or rejection at 50 % and 30 % efficiency."""
    rankings = [rank(s) for s in scores]
    rates, efficiencies = ([50.0], []) if kind == "events" else ([], [0.5, 0.3])
    value, spread = nominal(rankings, population, rates, efficiencies), replicate(rankings, population, rates, efficiencies, replicas=replicas, seed=1)
    if kind == "events":
        return value.efficiency[..., 0], spread.efficiency
    return 1 / value.rate[..., 0], 1 / spread.rate


def error(per_seed: np.ndarray, replicas: np.ndarray) -> float:
    """Of a mean over seeds `[seeds]`; replicas `[seeds, b]` share their test events."""
    return float(np.hypot(per_seed.std(ddof=1) / np.sqrt(len(per_seed)), replicas.mean(axis=0).std(ddof=1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS, nargs="?", default="events")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--replicas", type=int, default=60)
    parser.add_argument("--steps", type=int, help="of a student, in place of the default")
    parser.add_argument("--largest-only", action="store_true", help="only the largest student and sample")
    parser.add_argument("--skip-larger", action="store_true", help="do not train the four times larger teachers")
    parser.add_argument("--teachers-only", action="store_true", help="no students")
    parser.add_argument("--temperature", type=float, default=SOFT.temperature)
    parser.add_argument("--rows", type=int, help="of the toy file, in place of the default")
    arguments = parser.parse_args()
    kind = KINDS[arguments.kind]
    kind = kind._replace(rows=arguments.rows or kind.rows)
    steps = arguments.steps or kind.steps
    soft_targets = SOFT._replace(temperature=arguments.temperature)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        data = load(kind, Path(folder))
    note = lambda text: print(f"[{time.monotonic() - began:5.0f} s] {text}", flush=True)  # noqa: E731
    note(f"{arguments.kind}: {len(data.train.label):,} training, {len(data.population.event):,} test rows")

    main_teacher = teacher(data, kind.teacher, kind.epochs, 1)
    teacher_score = float_score(main_teacher, data)
    names = ["efficiency at 50 Hz"] if arguments.kind == "events" else ["rejection at 50 %", "rejection at 30 %"]
    note(f"teacher: {parameters(main_teacher):,} parameters")
    if not arguments.skip_larger:
        pairs = [(teacher_score, float_score(teacher(data, kind.larger, kind.epochs, 1), data))]
        pairs += [tuple(float_score(teacher(data, w, kind.epochs, s), data) for w in (kind.teacher, kind.larger)) for s in (2, 3)]
        value, spread = figures(arguments.kind, [s for pair in pairs for s in pair], data.population, arguments.replicas)
        for j, name in enumerate(names):
            ratio, replicas = value[0::2, j] / value[1::2, j], spread[0::2, j] / spread[1::2, j]
            large = teacher(data, kind.larger, 0, 1)
            note(f"{name}: teacher / one of {parameters(large):,} parameters, 3 seeds: {plus_minus(float(ratio.mean()), error(ratio, replicas))}")

    if arguments.teachers_only:
        return
    result: list[list[object]] = []
    logits = forward(main_teacher, data.train.x, len(data.train.label))
    for amount in kind.samples[:1] if arguments.largest_only else kind.samples:
        pick = np.random.default_rng(0).permutation(len(data.train.label))[:amount]
        rows = take(data.train, pick)
        rows = rows._replace(extra={LOGITS: logits[pick], MATCHED: np.ones(len(pick), np.float32)})
        rows = jax.tree.map(jnp.asarray, rows)
        for widths in kind.students[:1] if arguments.largest_only else kind.students:
            scores: list[np.ndarray] = [teacher_score]
            chosen = []
            for soft in (None, soft_targets):
                first = [student(data, rows, widths, soft, rate, steps, 0) for rate in RATES]
                losses = [validation_loss(network, data.validation, len(data.card.labels.classes)) for network in first]
                best = int(np.argmin(losses))
                chosen.append(RATES[best])
                scores.append(golden_score(first[best], data))
                scores += [golden_score(student(data, rows, widths, soft, RATES[best], steps, 10 * s), data) for s in range(1, arguments.seeds)]
            value, spread = figures(arguments.kind, scores, data.population, arguments.replicas)
            alone, distilled = slice(1, 1 + arguments.seeds), slice(1 + arguments.seeds, None)
            for j, name in enumerate(names):
                a, d, t = value[alone, j], value[distilled, j], value[0, j]
                sa, sd, st = spread[alone, j], spread[distilled, j], spread[0, j]
                gain, gain_error = float((d - a).mean()), error(d - a, sd - sa)
                ratio, ratio_error = float((d / t).mean()), error(d / t, sd / st)
                size = parameters(first[0])
                row = [name, f"{amount:,}", f"{size:,}", plus_minus(float(t), float(st.std(ddof=1))), plus_minus(float(a.mean()), error(a, sa))]
                row += [plus_minus(float(d.mean()), error(d, sd)), plus_minus(gain, gain_error), f"{gain / gain_error:.1f}"]
                row += [plus_minus(ratio, ratio_error), f"{ratio - 1.645 * ratio_error:.4f}", f"{chosen[0]:g}, {chosen[1]:g}"]
                result.append(row)
                note(f"{size:,} parameters, {amount:,} rows, {name}: gain {row[6]} ({row[7]} standard errors), distilled / teacher {row[8]}")
    header = [
        "figure",
        "training rows",
        "parameters",
        "teacher",
        "alone",
        "distilled",
        "distilled - alone",
        "in errors",
        "distilled / teacher",
        "95 % lower",
        "rates",
    ]
    title = f"{arguments.kind}: {arguments.seeds} seeds, {steps:,} steps of {BATCH} rows, T {soft_targets.temperature:g}, lambda {soft_targets.share:g}"
    print(table(result, header, title=title))


if __name__ == "__main__":
    main()
