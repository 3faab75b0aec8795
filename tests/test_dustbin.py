"""A specialist's loss, its first weights and its correction, against the problem over all classes."""

from __future__ import annotations

from collections import Counter

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp, softmax

from hlt_train.distillation_loss import LOGITS, MATCHED, Soft
from hlt_train.dustbin import collapse, correction, emphasis, merged, specialist_losses
from hlt_train.types import Batch, Features

RNG = np.random.default_rng(5)
MEMBERS = (1, 3)


class Table(eqx.Module):
    """A network whose logits are its parameters, row by row."""

    logits: jax.Array

    def __call__(self, x: Features, *, key: jax.Array | None = None) -> jax.Array:
        return self.logits


def losses(logits: np.ndarray, label: np.ndarray, share: float, soft: Soft | None, teacher: np.ndarray, matched: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    model = Table(jnp.asarray(logits, jnp.float32))
    extra = {LOGITS: jnp.asarray(teacher, jnp.float32), MATCHED: jnp.asarray(matched, jnp.float32)}
    batch = Batch(Features({}, {}), jnp.asarray(label, jnp.int32), jnp.ones(len(label)), extra)
    loss, figures = specialist_losses(model, teacher.shape[1], MEMBERS, share, soft)(eqx.filter(model, eqx.is_inexact_array), batch, None)
    return np.asarray(loss), np.asarray(figures["accuracy"])


def test_collapse_keeps_the_probabilities() -> None:
    logits = RNG.normal(0, 3, (40, 5))
    p, seen = softmax(logits, axis=1), softmax(np.asarray(collapse(logits.astype(np.float32), MEMBERS), np.float64), axis=1)
    np.testing.assert_allclose(seen, np.stack([p[:, 1], p[:, 3], p[:, [0, 2, 4]].sum(axis=1)], axis=1), rtol=2e-5)


def test_the_formula() -> None:
    share, logits, teacher = 0.2, RNG.normal(0, 2, (60, 3)), RNG.normal(0, 2, (60, 5))
    label, matched = RNG.integers(0, 5, 60), RNG.integers(0, 2, 60)
    place = np.array([2, 0, 2, 1, 2])[label]
    times = np.where(np.isin(label, MEMBERS), 2.5, 0.625)
    hard = -log_softmax(logits, axis=1)[np.arange(60), place]
    found, right = losses(logits, label, share, None, teacher, matched)
    np.testing.assert_allclose(found, times * hard, rtol=1e-5, atol=1e-6)  # logits of 8 in float32
    np.testing.assert_allclose(right, times * (logits.argmax(axis=1) == place), rtol=1e-6)
    wanted = np.stack([teacher[:, 1], teacher[:, 3], logsumexp(teacher[:, [0, 2, 4]], axis=1) - np.log(4)], axis=1)  # odds of the rest: 4 by nature, 1 trained
    p, q = (log_softmax(z / 3, axis=1) for z in (wanted, logits))
    part = 0.7 * matched
    found, _ = losses(logits, label, share, Soft(3.0, 0.7), teacher, matched)
    np.testing.assert_allclose(found, times * ((1 - part) * hard + part * 9 * (np.exp(p) * (p - q)).sum(axis=1)), rtol=1e-4, atol=1e-6)


def test_the_emphasis_balances_set_and_rest() -> None:
    label = RNG.choice(5, 20_000, p=[0.1, 0.05, 0.4, 0.1, 0.35])
    inside = np.isin(label, MEMBERS)
    share = inside.mean()
    counts = emphasis(5, MEMBERS, float(share))[label]
    assert counts[inside].sum() == pytest.approx(counts[~inside].sum(), rel=1e-4)
    assert counts.mean() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_the_correction_undoes_the_emphasis(share: float) -> None:
    """Rows without features: the best enriched logits, corrected, are the natural frequencies of members and dustbin."""
    rng = np.random.default_rng(0)
    label = np.where(rng.random(50_000) < share, rng.choice(MEMBERS, 50_000, p=[0.3, 0.7]), 0)
    natural = Counter(label.tolist())
    pi = (natural[1] + natural[3]) / 50_000
    counts = emphasis(5, MEMBERS, pi).astype(np.float64)
    mass = np.array([counts[1] * natural[1], counts[3] * natural[3], counts[0] * natural[0]])
    logits = np.log(mass / mass.sum())  # minimises the weighted cross-entropy
    logits[-1] += correction(pi)
    np.testing.assert_allclose(softmax(logits), np.array([natural[1], natural[3], natural[0]]) / 50_000, rtol=1e-5)


def test_first_weights_are_the_generalists() -> None:
    """Differences within the set are kept; corrected, the dustbin bounds the others' log-sum-exp from below and touches it at their means."""
    weight, bias, body = RNG.normal(0, 1, (5, 7)), RNG.normal(0, 1, 5), RNG.normal(0, 1, (7, 2))
    mean, rest = RNG.dirichlet(np.ones(5)), [0, 2, 4]
    found = merged({"w": weight.T, "b": bias, "body": body}, {"w": 1, "b": 0}, MEMBERS, mean, 0.2)
    assert found["body"] is body
    assert (found["w"].shape, found["b"].shape) == ((7, 3), (3,))
    hidden = RNG.normal(0, 1, (200, 7))
    whole, mine = hidden @ weight.T + bias, hidden @ found["w"] + found["b"]
    mine[:, -1] += correction(0.2)
    np.testing.assert_allclose(mine[:, :2], whole[:, MEMBERS], rtol=1e-12)
    bound = logsumexp(whole[:, rest], axis=1) - mine[:, -1]
    assert bound.min() >= 0
    a = mean[rest] / mean[rest].sum()
    touching = np.linalg.lstsq(weight[rest], np.log(a) - bias[rest], rcond=None)[0]
    assert logsumexp(touching @ weight[rest].T + bias[rest]) == pytest.approx(touching @ found["w"][:, -1] + found["b"][-1] + correction(0.2))


def test_one_class_left_is_exact() -> None:
    weight, bias = RNG.normal(0, 1, (3, 4)).astype(np.float32), RNG.normal(0, 1, 3).astype(np.float32)
    found = merged({"w": weight, "b": bias}, {"w": 0, "b": 0}, (0, 2), np.array([0.5, 0.2, 0.3]), 0.8)
    np.testing.assert_array_equal(found["w"], weight[[0, 2, 1]])
    np.testing.assert_allclose(found["b"] + [0, 0, correction(0.8)], bias[[0, 2, 1]], rtol=1e-6)
