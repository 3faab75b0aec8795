"""The reference networks of the toy files: plain JAX and optax on the inputs that the embedded cards name, nothing of our own training."""

from __future__ import annotations

from pathlib import Path

import awkward as ak
import jax
import jax.numpy as jnp
import numpy as np
import optax
import uproot
from scipy.stats import rankdata

from hlt_train.data.card import Card, Group, load_card
from hlt_train.data.expressions import parse

JET_AUC = {"g": 0.933, "q": 0.900, "W": 0.924, "Z": 0.917, "t": 0.969}  # six features, 40,000 training jets
HIDDEN = (64, 32, 32)


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: the probability that a positive scores higher (ties count half)."""
    n = int(positive.sum())
    return float((rankdata(score)[positive].sum() - n * (n + 1) / 2) / (n * (len(positive) - n)))


def forward(layers: list[tuple[jax.Array, jax.Array]], x: jax.Array) -> jax.Array:
    for weights, bias in layers[:-1]:
        x = jax.nn.relu(x @ weights + bias)
    return x @ layers[-1][0] + layers[-1][1]


def train(x: np.ndarray, label: np.ndarray, x_test: np.ndarray, *, classes: int, seeds: int, epochs: int, batch: int) -> np.ndarray:
    """Logits `[seeds, n_test, classes]` of MLPs trained side by side with AdamW on a cosine schedule, each from its own start and in its own order."""
    widths = (x.shape[1], *HIDDEN, classes)
    steps = len(x) // batch
    optimiser = optax.adamw(optax.cosine_decay_schedule(3e-3, steps * epochs))
    inputs, labels = jnp.asarray(x, jnp.float32), jnp.asarray(label, jnp.int32)

    def loss(layers, rows):
        return optax.softmax_cross_entropy_with_integer_labels(forward(layers, inputs[rows]), labels[rows]).mean()

    def step(carry, rows):
        layers, state = carry
        updates, state = optimiser.update(jax.grad(loss)(layers, rows), state, layers)
        return (optax.apply_updates(layers, updates), state), None

    def epoch(carry, key):
        order = jax.random.permutation(key, len(labels))[: steps * batch].reshape(steps, batch)
        return jax.lax.scan(step, carry, order)[0], None

    def one(key, test):
        *keys, order = jax.random.split(key, len(widths))
        layers = [(jax.random.normal(k, (a, b)) * (2 / a) ** 0.5, jnp.zeros(b)) for k, a, b in zip(keys, widths[:-1], widths[1:], strict=True)]
        layers, _ = jax.lax.scan(epoch, (layers, optimiser.init(layers)), jax.random.split(order, epochs))[0]
        return forward(layers, test)

    keys = jnp.stack([jax.random.key(seed) for seed in range(seeds)])
    return np.asarray(jax.jit(jax.vmap(one, in_axes=(0, None)))(keys, jnp.asarray(x_test, jnp.float32)))


def inputs(card: Card, path: Path, groups: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The card's normalised inputs `[n, k]` (constituents flattened, absent ones 0) and the branch `label` `[n]`, straight from the file."""
    wanted = [(name, card.inputs[group]) for group in groups for name in card.inputs[group].vars]
    columns = read(card, path, ["label", *(name for name, _ in wanted)])
    return np.concatenate([_variable(columns[name], group, name) for name, group in wanted], axis=1), ak.to_numpy(columns["label"])


def read(card: Card, path: Path, names: list[str]) -> dict[str, ak.Array]:
    """Branches and new variables of the card, by name."""
    found: dict[str, ak.Array] = {}
    with uproot.open(path) as file:
        tree = file[card.tree]

        def column(name: str) -> ak.Array:
            if name not in found:
                if name in card.new_variables:
                    expression = parse(card.new_variables[name])
                    found[name] = expression.evaluate({part: column(part) for part in expression.names})
                else:
                    found[name] = tree[name].array()
            return found[name]

        return {name: column(name) for name in names}


def _variable(values: ak.Array, group: Group, name: str) -> np.ndarray:
    rule = group.vars[name]
    flat = ak.to_numpy(ak.flatten(values, axis=None)).astype(np.float64)
    low, centre, high = np.percentile(flat, [16, 50, 84])
    centre = centre if rule.centre == "auto" else rule.centre
    scale = 1 / max(high - centre, centre - low) if rule.scale == "auto" else rule.scale
    if group.length is not None:
        values = ak.fill_none(ak.pad_none(values, group.length, clip=True), centre)
    scaled = (ak.to_numpy(values).astype(np.float64) - centre) * scale
    return (scaled if rule.clip is None else np.clip(scaled, *rule.clip)).reshape(len(values), -1)


def jet_figures(path: Path, seeds: int) -> dict[str, np.ndarray]:
    """AUC `[seeds]` of each class against the rest: 40,000 training jets, the others tested, six features."""
    x, label = inputs(load_card("toy_jets"), path, ("hlf",))
    logits = train(x[:40_000], label[:40_000], x[40_000:], classes=5, seeds=seeds, epochs=20, batch=256)
    score = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
    return {name: np.array([auc(s[:, k], label[40_000:] == k) for s in score]) for k, name in enumerate(JET_AUC)}


def event_figures(path: Path, seeds: int) -> dict[str, np.ndarray]:
    """AUC `[seeds]` of a network on the card's 44 inputs (70 % of the events to train, the others tested), and its signal efficiency at 50 Hz of 8 kHz."""
    x, label = inputs(load_card("toy_events"), path, ("jets", "event"))
    split = int(0.7 * len(x))
    logits = train(x[:split], label[:split], x[split:], classes=2, seeds=seeds, epochs=10, batch=512)
    signal = label[split:] == 1
    score = logits[:, :, 1] - logits[:, :, 0]
    threshold = [np.sort(s[~signal])[::-1][int((~signal).sum() * 50 / 8000)] for s in score]
    efficiency = [np.mean(s[signal] > t) for s, t in zip(score, threshold, strict=True)]
    return {"inputs": np.array(x.shape[1]), "auc": np.array([auc(s, signal) for s in score]), "efficiency at 50 Hz": np.array(efficiency)}


def btag_auc(path: Path) -> float:
    """AUC of the card's `btag_sum`: the sum of the four highest b-tags."""
    columns = read(load_card("toy_events"), path, ["label", "btag_sum"])
    return auc(np.asarray(columns["btag_sum"]), np.asarray(columns["label"]) == 1)
