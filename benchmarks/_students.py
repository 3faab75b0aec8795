"""What benchmarks of students share: toy data in memory, teachers, students of several seeds trained in one compiled call, golden scores, figures with errors.

The losses, companions, formats and the golden evaluator are the package's; the loop is a bare one, so that all seeds of a kind of student cost one compilation.
For that they share their formats: the integer bits of a part are the largest that `calibrate` chooses for any of the seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hlt_train import beside
from hlt_train.beside import Beside, Companion
from hlt_train.calibration import calibrate, dense_layers
from hlt_train.combination import Expert, active, combine
from hlt_train.confusable import Predictions, confusable_sets
from hlt_train.data import normalise
from hlt_train.data.card import load_card
from hlt_train.data.dataset import open_dataset
from hlt_train.data.stream import Stream
from hlt_train.datasets import events, jets
from hlt_train.distillation_loss import MATCHED, Head, Soft, head_of, student_losses
from hlt_train.dustbin import correction, specialist_losses
from hlt_train.graph import evaluate, score
from hlt_train.hints import HINT, Hint, hidden_layers, layer_of
from hlt_train.precision.config import Precision
from hlt_train.precision.formats import parse_format
from hlt_train.rate_objective import BACKGROUND, ROWS, SIGNAL, RateObjective, discriminant_in
from hlt_train.scorers import discriminant_of
from hlt_train.trigger.bootstrap import Population, nominal, rank, replicate
from hlt_train.trigger.discriminant import discriminant
from hlt_train.types import Batch, Features, Inputs

Build = Callable[[Any, int, Precision | None], Any]  # key, outputs, precision
BATCH = 1024
HZ, INPUT_HZ, MISTAG = 50.0, 8000.0, 0.01


class Data(NamedTuple):
    """Training rows normalised, with the rate weights of an objective; test rows raw, with what the figures need."""

    kind: str
    card: Any
    inputs: Inputs
    head: Head | None
    sides: Head
    train: Batch
    raw: Features
    population: Population

    @property
    def classes(self) -> int:
        """How many."""
        return len(self.card.labels.classes)


def load(kind: str, rows: int, folder: Path) -> Data:
    """Generate the toy file (`events`; `jets`, of which networks read the constituents alone), split it as its card says, decode it."""
    card, path = load_card(f"toy_{kind}"), folder / "toy.root"
    if kind == "jets":
        del card.inputs["hlf"]
    (events.write_events if kind == "events" else jets.write_jets)(path, rows, 2026)
    with open_dataset(card, {name: [str(path)] for name in card.samples}) as dataset:
        inputs = normalise.fit_normalisation(dataset)
        train = Stream(dataset, "train", inputs, batch=BATCH).resident()
        parts = list(dataset.iterate("test"))
    join = lambda pick: {n: np.concatenate([pick(p)[n] for p in parts]) for n in pick(parts[0])}  # noqa: E731
    raw = Features(join(lambda p: p.x.groups), join(lambda p: p.x.counts))
    sides = discriminant_of(card)
    classes = tuple(card.labels.classes)
    where = [[classes.index(c) for c in side] for side in (sides.signal, sides.background)]
    signal, background = (np.isin(np.concatenate([p.label for p in parts]), side).astype(float) for side in where)
    background *= (INPUT_HZ if kind == "events" else 1.0) / background.sum()  # Hz, or mistag
    ones = [np.isin(train.label, side).astype(np.float64) for side in where]
    n, allowed = len(train.label), HZ / INPUT_HZ if kind == "events" else MISTAG
    extra = {SIGNAL: ones[0] * (n / ones[0].sum()), BACKGROUND: ones[1] * (n / ones[1].sum() / allowed), ROWS: np.ones(n), MATCHED: np.ones(n)}
    train = train._replace(extra={name: column.astype(np.float32) for name, column in extra.items()})
    both = head_of(classes, sides.signal, sides.background)
    head = None if len(sides.signal) == len(sides.background) == 1 else both
    return Data(kind, card, inputs, head, both, train, raw, Population(signal, background, np.zeros(len(signal), np.int32), np.arange(len(signal))))


def take(batch: Any, index: Any) -> Any:
    """Some rows."""
    return jax.tree.map(lambda leaf: leaf[index], batch)


class Arm(NamedTuple):
    """One way to learn.

    Attributes:
        soft: how the teacher's answers enter; None: labels alone.
        hint: weight and first of `Hint`, as shares of the steps of the float stage; None: no hint.
        rate: weight of the rate-aware objective.
        specialists: the answers are those of the teacher with its specialists.
        grid: trained on the grid in the second half of the steps; False: in float to the end, and only then rounded to it.
    """

    soft: Soft | None
    hint: tuple[float, float] | None = None
    rate: float = 0.0
    specialists: bool = False
    grid: bool = True


def loss_of(arm: Arm, static: Any, data: Data, hint: Hint | None, width: float) -> tuple[Callable[..., Any], dict[str, Companion]]:
    """(`Beside`, batch, key) -> loss of a step, and the companions that are counted; the regressor is added by whoever has its key."""
    losses = student_losses(static, data.classes, arm.soft, data.head)
    objective = RateObjective("", weight=arm.rate, width=width) if arm.rate else None
    signal, background = (np.array(side, np.float32) for side in data.sides)

    def loss(params: Beside, batch: Batch, _key: Any) -> Any:
        rows, _ = losses(params.network, batch, None)
        network: Any = eqx.combine(params.network, static)
        value = jnp.zeros(())
        if hint is not None:
            rows = hint.joined(rows, hint.rows(network, params.others, batch.x, batch.extra[HINT]), params.others)
            value = hint.counts(params.others)
        if objective is not None:
            value = value + objective.loss(
                discriminant_in(network(batch.x), data.classes, signal, background, head=data.head is not None), batch, params.others
            )
        return value + jnp.mean(rows)

    return loss, {} if objective is None else objective.companions()


def train_all(
    loss: Callable[..., Any], counted: Mapping[str, Companion], hint: Hint | None, params: Any, rows: Batch, rate: float, steps: int, seeds: np.ndarray
) -> Any:
    """Adam with a cosine to zero, batches from a new permutation in each epoch; `params` and `seeds` stacked, one network after the other in one call."""
    per_epoch = len(rows.label) // BATCH
    adam = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def one(params: Any, seed: Any, rows: Batch) -> Any:
        companions = dict(counted) | ({} if hint is None else hint.companions(jax.random.key(seed + 77)))
        tx = beside.optimiser(adam, {name: companion.optimiser(adam) for name, companion in companions.items()})
        start = Beside(params, {name: companion.start for name, companion in companions.items()})

        def body(t: Any, state: Any) -> Any:
            params, memory, order = state
            key = jax.random.fold_in(jax.random.key(seed), t)
            order = jax.lax.cond(t % per_epoch == 0, lambda: jax.random.permutation(key, len(rows.label)), lambda: order)
            batch = take(rows, jax.lax.dynamic_slice_in_dim(order, (t % per_epoch) * BATCH, BATCH))
            updates, memory = tx.update(jax.grad(lambda p: loss(p, batch, key))(params), memory, params)
            return optax.apply_updates(params, updates), memory, order

        return jax.lax.fori_loop(0, steps, body, (start, tx.init(start), jnp.arange(len(rows.label))))[0].network

    # the rows are an argument: what a compiled function closes over becomes a part of it
    return jax.jit(lambda p, s, r: jax.lax.map(lambda pair: one(*pair, r), (p, s)))(params, jnp.asarray(seeds, jnp.uint32), rows)


def stacked(networks: list[Any]) -> tuple[Any, Any]:
    """(parameters with a leading axis, what the networks have in common)."""
    pairs = [eqx.partition(network, eqx.is_inexact_array) for network in networks]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params for params, _ in pairs)), pairs[0][1]


def unstacked(params: Any, static: Any, count: int) -> list[Any]:
    """The networks again."""
    return [eqx.combine(take(params, k), static) for k in range(count)]


def students(data: Data, rows: Batch, build: Build, arm: Arm, taught: Any, rate: float, steps: int, seeds: int, width: float) -> list[Any]:
    """As `distil`: half of the steps in float, with the hint, then formats, then the other half on the grid. taught: the teacher, for the hint."""
    outputs = data.classes + (data.head is not None)
    keys = [jax.random.key(1000 + seed) for seed in range(seeds)]
    first = steps // 2 if arm.grid else steps
    params, static = stacked([build(key, outputs, None) for key in keys])
    hint = None
    if arm.hint is not None:
        ours, theirs = hidden_layers(build(keys[0], outputs, None), data.inputs, "student"), hidden_layers(taught, data.inputs, "teacher")
        layer, units = layer_of(None, ours, "student"), theirs[layer_of(None, theirs, "teacher")]
        hint = Hint(layer, ours[layer], units, arm.hint[0], round(arm.hint[1] * first))
    loss, counted = loss_of(arm, static, data, hint, width)
    params = train_all(loss, counted, hint, params, rows, rate, first, 10 * np.arange(seeds))
    precision = common_formats(lambda p: build(keys[0], outputs, p), unstacked(params, static, seeds), take(rows, np.arange(4096)).x)
    shapes, static = eqx.partition(build(keys[0], outputs, precision), eqx.is_inexact_array)
    params = jax.tree.unflatten(jax.tree.structure(shapes), jax.tree.leaves(params))
    if arm.grid:
        loss, counted = loss_of(arm, static, data, None, width)
        params = train_all(loss, counted, None, params, rows, rate, steps - first, 10 * np.arange(seeds) + 1)
    return unstacked(params, static, seeds)


def common_formats(build: Callable[[Precision | None], Any], networks: list[Any], x: Features) -> Precision:
    """Formats for all networks: of every part, the most integer bits that one of them asks for; a bias no finer than the sums it is added to."""
    found = [calibrate(build, network, Precision(), x) for network in networks]
    chosen = found[0]

    def widest(name: str, role: str) -> Any:
        formats = [parse_format(p.layers[name][role], round=p.round, over=p.over) for p in found]
        return max(formats, key=lambda to: to.integer)  # type: ignore[union-attr,arg-type,return-value]

    for role in ("weights", "activations", "bias"):
        if role == "bias":
            coarse = chosen
            for name in chosen.layers:
                if "bias" in chosen.layers[name]:
                    coarse = coarse.with_format(name, "bias", parse_format("fixed<2,2>", round="half_even", over="sat"))
            sums = {layer.name: int(np.min(layer.formats.f)) for layer in dense_layers(build(coarse)) if layer.formats is not None}
        for name, roles in found[0].layers.items():
            if role in roles:
                to = widest(name, role)
                chosen = chosen.with_format(name, role, replace(to, integer=max(to.integer, to.width - sums[name])) if role == "bias" else to)
    return chosen


@eqx.filter_jit
def _logits(network: Any, x: Features) -> Any:
    return network(x)


@eqx.filter_jit
def _hidden(network: Any, x: Features, layer: str) -> Any:
    return network.trace(x)[layer]


def in_parts(function: Callable[[Features], Any], x: Features, n: int, size: int = 16_384) -> np.ndarray:
    """A function of rows, of all of them."""
    return np.concatenate([np.asarray(function(take(x, slice(start, start + size)))) for start in range(0, n, size)])


class Teacher(NamedTuple):
    """network; its logits and hidden layer on the training rows; its score on the test rows."""

    network: Any
    logits: np.ndarray
    hidden: np.ndarray
    score: np.ndarray


def teacher_of(data: Data, build: Callable[[Any, int], Any], epochs: int, seed: int) -> Teacher:
    """A float network with the loss of labels."""
    n = len(data.train.label)
    network = build(jax.random.key(seed), data.classes)
    params, static = eqx.partition(network, eqx.is_inexact_array)
    losses = student_losses(network, data.classes, None, None)
    network = eqx.combine(_one(lambda p, batch, key: jnp.mean(losses(p.network, batch, key)[0]), params, data, epochs, seed, 2e-3), static)
    layers = hidden_layers(network, data.inputs, "teacher")
    logits = in_parts(lambda x: _logits(network, x), data.train.x, n)
    return Teacher(network, logits, in_parts(lambda x: _hidden(network, x, layer_of(None, layers, "teacher")), data.train.x, n), float_score(network, data))


def _one(loss: Callable[..., Any], params: Any, data: Data, epochs: int, seed: int, rate: float) -> Any:
    rows = jax.tree.map(jnp.asarray, data.train)
    return take(train_all(loss, {}, None, take(params, None), rows, rate, epochs * (len(data.train.label) // BATCH), np.array([seed])), 0)


def float_score(network: Any, data: Data) -> np.ndarray:
    """The discriminant of a float network on the test rows."""
    logits = in_parts(lambda x: _logits(network, x), normalise.apply(data.inputs, data.raw), len(data.population.event))
    return discriminant(logits[:, : data.classes], tuple(data.card.labels.classes), discriminant_of(data.card))


def with_specialists(data: Data, taught: Teacher, build: Callable[[Any, int], Any], epochs: int) -> tuple[np.ndarray, list[list[str]]]:
    """Log-probabilities of the teacher joined by specialists of the two most confused pairs of classes, on the training rows; the pairs."""
    classes, names = data.classes, data.card.labels.classes
    general = np.asarray(jax.nn.log_softmax(taught.logits, axis=1), np.float64)
    seen = Predictions(classes)
    seen.add(np.exp(general), data.train.label, np.ones(len(general)))
    experts, sets = [], confusable_sets(seen.covariance, 2, 2)
    for k, members in enumerate(sets):
        share = seen.share(members)
        network = build(jax.random.key(50 + k), len(members) + 1)
        params, static = eqx.partition(network, eqx.is_inexact_array)
        losses = specialist_losses(network, classes, members, share, None)
        network = eqx.combine(_one(lambda p, batch, key, losses=losses: jnp.mean(losses(p.network, batch, key)[0]), params, data, epochs, 50 + k, 2e-3), static)
        own = in_parts(lambda x, network=network: _logits(network, x), data.train.x, len(general)).astype(np.float64)
        own[:, -1] += correction(share)
        experts.append(Expert(members, np.asarray(jax.nn.log_softmax(own, axis=1), np.float64)))
    found = combine(general, experts, active(general, sets, 1))
    return found.astype(np.float32), [[names[c] for c in members] for members in sets]


def golden_score(network: Any, data: Data) -> np.ndarray:
    """The integer score of the golden evaluator on the test rows."""
    classes = tuple(data.card.labels.classes)
    sides = discriminant_of(data.card)
    coefficients = [int(c in sides.signal) - int(c in sides.background) for c in classes] if data.head is None else [0] * len(classes) + [1]
    graph = network.lower(data.inputs, classes if data.head is None else (*classes, "discriminant"), np.array(coefficients, np.int64))
    return in_parts(lambda x: score(graph, evaluate(graph, x)), data.raw, len(data.population.event))


def parameters(network: Any) -> int:
    """Trainable numbers."""
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array)))


def figures(kind: str, scores: list[np.ndarray], population: Population, replicas: int) -> tuple[np.ndarray, np.ndarray]:
    """`[networks, figures]` and replicas `[networks, figures, b]`: efficiency at 50 Hz; or rejection at 50 % and 30 % efficiency."""
    rankings = [rank(s) for s in scores]
    rates, efficiencies = ([HZ], []) if kind == "events" else ([], [0.5, 0.3])
    value, spread = nominal(rankings, population, rates, efficiencies), replicate(rankings, population, rates, efficiencies, replicas=replicas, seed=1)
    if kind == "events":
        return value.efficiency[..., 0], spread.efficiency
    return 1 / value.rate[..., 0], 1 / spread.rate


def error(per_seed: np.ndarray, replicas: np.ndarray) -> float:
    """Of a mean over seeds `[seeds]`; replicas `[seeds, b]` share their test events."""
    return float(np.hypot(per_seed.std(ddof=1) / np.sqrt(len(per_seed)), replicas.mean(axis=0).std(ddof=1)))


def recovered(arm: np.ndarray, alone: np.ndarray, taught: float, spread: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[float, float]:
    """The fraction of the gap (teacher - alone) that an arm recovers, a ratio of means over seeds, and its error: jackknife over seeds, and replicas.

    Args:
        arm: its figures, `[seeds]`.
        alone: the same of the student alone.
        taught: the teacher's figure.
        spread: replicas of the three, `[seeds, b]`, `[seeds, b]` and `[b]`.
    """
    n = len(arm)
    left = np.array([np.delete(arm - alone, k).mean() / (taught - np.delete(alone, k).mean()) for k in range(n)])
    over_seeds = np.sqrt((n - 1) / n * ((left - left.mean()) ** 2).sum())
    over_events = ((spread[0] - spread[1]).mean(axis=0) / (spread[2] - spread[1].mean(axis=0))).std(ddof=1)
    return float((arm - alone).mean() / (taught - alone.mean())), float(np.hypot(over_seeds, over_events))
