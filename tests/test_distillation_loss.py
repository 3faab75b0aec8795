from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hlt_train.distillation_loss import LOGITS, MATCHED, Head, Soft, head_of, student_losses
from hlt_train.trigger.discriminant import Discriminant, discriminant
from hlt_train.types import Batch, Features


class Table(eqx.Module):
    """A network whose logits are its parameters, row by row."""

    logits: jax.Array

    def __call__(self, x: Features, *, key: jax.Array | None = None) -> jax.Array:
        return self.logits


def batch(teacher: np.ndarray, label: np.ndarray, matched: np.ndarray | None = None) -> Batch:
    n = len(label)
    extra = {LOGITS: jnp.asarray(teacher, jnp.float32), MATCHED: jnp.ones(n) if matched is None else jnp.asarray(matched, jnp.float32)}
    return Batch(Features({}, {}), jnp.asarray(label, jnp.int32), jnp.ones(n), extra)


def softmax(v: np.ndarray) -> np.ndarray:
    e = np.exp(v - v.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


RNG = np.random.default_rng(0)
STUDENT, TEACHER, LABEL = RNG.normal(0, 2, (50, 3)), RNG.normal(0, 2, (50, 3)), RNG.integers(0, 3, 50)


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.0), (3.0, 0.7), (0.5, 1.0)])
def test_the_formula(temperature: float, share: float) -> None:
    model = Table(jnp.asarray(STUDENT, jnp.float32))
    found, figures = student_losses(model, 3, Soft(temperature, share), None)(eqx.filter(model, eqx.is_inexact_array), batch(TEACHER, LABEL), None)
    p, q = softmax(TEACHER / temperature), softmax(STUDENT / temperature)
    hard = -np.log(softmax(STUDENT)[np.arange(50), LABEL])
    want = share * temperature**2 * (p * np.log(p / q)).sum(axis=1) + (1 - share) * hard
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(figures["hard"], hard, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", [None, Head((0.0, 0.0, 1.0), (0.25, 0.75, 0.0))])
def test_matching_of_logits_is_the_limit_of_a_high_temperature(head: Head | None) -> None:
    """And no shift of all logits of a row changes it."""
    outputs = np.concatenate([STUDENT, RNG.normal(0, 2, (50, 1))], axis=1) if head else STUDENT
    model, rows = Table(jnp.asarray(outputs, jnp.float32)), batch(TEACHER, LABEL)
    found, figures = student_losses(model, 3, Soft(2.0, 1.0, "logits"), head)(model, rows, None)
    _, limit = student_losses(model, 3, Soft(300.0, 1.0), head)(model, rows, None)
    np.testing.assert_allclose(figures["soft"], limit["soft"], rtol=0.05, atol=0.02)
    shifted, _ = student_losses(model, 3, Soft(2.0, 1.0, "logits"), head)(model, batch(TEACHER + 5, LABEL), None)
    np.testing.assert_allclose(found, shifted, rtol=1e-4, atol=1e-5)
    apart = (STUDENT - TEACHER) - (STUDENT - TEACHER).mean(axis=1, keepdims=True)
    want = (apart**2).sum(axis=1) / 6
    if head is not None:
        d = TEACHER[:, 2] - np.log(0.25 * np.exp(TEACHER[:, 0]) + 0.75 * np.exp(TEACHER[:, 1]))
        want += np.array([0.25, 0.75, 1.0])[LABEL] * (outputs[:, 3] - d) ** 2 / 8
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def test_rows_without_a_teacher_learn_from_labels() -> None:
    model = Table(jnp.asarray(STUDENT, jnp.float32))
    matched = (np.arange(50) % 2).astype(np.float32)
    found, figures = student_losses(model, 3, Soft(2.0, 1.0), None)(eqx.filter(model, eqx.is_inexact_array), batch(TEACHER, LABEL, matched), None)
    np.testing.assert_allclose(found[::2], figures["hard"][::2], rtol=1e-6)
    np.testing.assert_allclose(found[1::2], figures["soft"][1::2], rtol=1e-6)


@pytest.mark.parametrize("soft", [None, Soft(1.0, 1.0)])
def test_the_discriminant_is_the_minimum(soft: Soft | None) -> None:
    """Where the class logits are the true log-probabilities, the loss of the extra output is least, in the mean over labels, at D with the card's fractions."""
    spec = Discriminant.of({"t": 1.0}, {"g": 1.0, "q": 3.0}, ("g", "q", "t"))
    head = head_of(("g", "q", "t"), spec.signal, spec.background)
    assert head == Head((0.0, 0.0, 1.0), (0.25, 0.75, 0.0))
    teacher = RNG.normal(0, 1, (1, 3))
    d = discriminant(teacher, ("g", "q", "t"), spec)
    probability = softmax(teacher)[0]
    rows = batch(np.repeat(teacher, 3, axis=0), np.arange(3))

    def mean(value: jax.Array) -> jax.Array:
        outputs = jnp.concatenate([jnp.repeat(jnp.asarray(teacher, jnp.float32), 3, axis=0), jnp.full((3, 1), value)], axis=1)
        model = Table(outputs)
        found, _ = student_losses(model, 3, soft, head)(model, rows, None)
        return jnp.sum(found * probability)

    at = jnp.float32(d[0])
    assert abs(float(jax.grad(mean)(at))) < 1e-5
    assert float(mean(at + 0.5)) > float(mean(at)) < float(mean(at - 0.5))


def test_classes_on_neither_side_do_not_count_in_the_head() -> None:
    head = head_of(("g", "W", "t"), {"t": 1.0}, {"g": 1.0})
    model = Table(jnp.zeros((2, 4)))
    gradient = jax.grad(lambda m: student_losses(m, 3, Soft(2.0, 0.5), head)(m, batch(TEACHER[:2], np.array([1, 2])), None)[0].sum())(model)
    assert gradient.logits[0, 3] == 0
    assert gradient.logits[1, 3] != 0
    assert bool(jnp.isfinite(gradient.logits).all())
