"""What a student learns: L = lambda T^2 KL(soft_T(teacher) || soft_T(student)) + (1 - lambda) cross-entropy with the labels, per row.

soft_T(l) = softmax(l / T). T^2 keeps the gradients of both terms comparable when T changes (Hinton, Vinyals, Dean, arXiv:1503.02531). A row without a
teacher's logits learns from its label alone.

In the limit of a high temperature the soft term is that of matching logits (section 2.1 there; Ba and Caruana, arXiv:1312.6184): with C classes and each row's
logits centred, T^2 KL -> 1/(2 C) sum_c (s_c - t_c)^2, which `matching: logits` takes in its place, with that scale. It needs no temperature. Ba and Caruana
take the sum without 1/C and do not centre; what all logits of a row have in common changes no probability and no discriminant.

A student with more classes than one signal and one background has one more output, its discriminant d, that approximates
D = log(sum_s f_s p_s / sum_b f_b p_b) (`docs/physics.md`). It is the logit of "signal" against "background" in a mixture where class c counts f_c:

    hard: f_label BCE(d, label is signal)           soft: f_label T^2 KL(Bernoulli(sigmoid(D_teacher / T)) || Bernoulli(sigmoid(d / T)))

mixed by the same lambda; with `matching: logits` the soft term is its limit, f_label (d - D_teacher)^2 / 8. Rows of classes on neither side do not count in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hlt_train.types import Batch
from hlt_train.validation import Losses

__all__ = ["LOGITS", "MATCHED", "Head", "Matching", "Soft", "head_of", "student_losses"]

Matching = Literal["soft", "logits"]

LOGITS, MATCHED = "teacher_logits", "teacher_matched"  # names in Batch.extra: float32 [n, classes]; float32 [n], 1 where the teacher saw the row


class Soft(NamedTuple):
    """How the teacher's answers enter: the temperature T, the share lambda of the soft term, and what that compares."""

    temperature: float
    share: float
    matching: Matching = "soft"


class Head(NamedTuple):
    """The discriminant output: fraction of each class on its side, float32 `[classes]`, 0 on the other side."""

    signal: tuple[float, ...]
    background: tuple[float, ...]


def head_of(classes: Sequence[str], signal: Mapping[str, float], background: Mapping[str, float]) -> Head:
    """From a discriminant's fractions by class name."""
    return Head(tuple(float(signal.get(c, 0.0)) for c in classes), tuple(float(background.get(c, 0.0)) for c in classes))


def student_losses(model: eqx.Module, classes: int, soft: Soft | None, head: Head | None) -> Losses:
    """The loss per row, and figures: accuracy, `hard` (cross-entropy) and, with a teacher, `soft` (the term of its answers) and `agreement` of the best class.

    Args:
        model: gives `classes` logits, and with `head` the discriminant after them.
        classes: number of classes.
        soft: None: labels alone.
        head: None: the network has no discriminant output.
    """
    static = eqx.filter(model, eqx.is_inexact_array, inverse=True)

    def losses(params: Any, batch: Batch, key: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        network: Any = eqx.combine(params, static)
        outputs = network(batch.x, key=key)
        logits = outputs[:, :classes]
        hard = optax.softmax_cross_entropy_with_integer_labels(logits, batch.label)
        guess = jnp.argmax(logits, axis=-1)
        figures = {"accuracy": (guess == batch.label).astype(jnp.float32), "hard": hard}
        share = jnp.zeros_like(hard) if soft is None else soft.share * batch.extra[MATCHED]
        loss = hard
        if soft is not None:
            teacher = batch.extra[LOGITS]
            divergence = _divergence(teacher, logits, soft)
            loss = (1 - share) * hard + share * divergence
            figures |= {"soft": divergence, "agreement": (guess == jnp.argmax(teacher, axis=-1)).astype(jnp.float32)}
        if head is not None:
            binary, wanted = _head(outputs[:, classes], batch, soft, head, share)
            loss = loss + wanted
            figures["discriminant"] = binary
        return loss, figures

    return losses


def _divergence(teacher: jax.Array, student: jax.Array, soft: Soft) -> jax.Array:
    """T^2 KL(soft_T(teacher) || soft_T(student)), or its limit for a large T, per row of logits `[n, c]`."""
    if soft.matching == "logits":
        apart = student - teacher
        return 0.5 * jnp.mean((apart - jnp.mean(apart, axis=-1, keepdims=True)) ** 2, axis=-1)
    p, q = (jax.nn.log_softmax(logits * (1 / soft.temperature)) for logits in (teacher, student))
    return soft.temperature**2 * jnp.sum(jnp.exp(p) * (p - q), axis=-1)


def _head(d: jax.Array, batch: Batch, soft: Soft | None, head: Head, share: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Per row (hard loss of the discriminant, its part of the whole loss)."""
    signal, background = jnp.asarray(np.array(head.signal, np.float32)), jnp.asarray(np.array(head.background, np.float32))
    counts = (signal + background)[batch.label]
    hard = counts * optax.sigmoid_binary_cross_entropy(d, (signal > 0)[batch.label].astype(jnp.float32))
    if soft is None:
        return hard, hard
    # log 0 = -inf takes a class out of the sum
    teacher = batch.extra[LOGITS]
    wanted = jax.nn.logsumexp(teacher + jnp.log(signal), axis=-1) - jax.nn.logsumexp(teacher + jnp.log(background), axis=-1)
    # of "signal" against "background": the softmax of (v, 0) is (sigmoid(v), sigmoid(-v))
    both = [jnp.stack([v, jnp.zeros_like(v)], axis=-1) for v in (wanted, d)]
    divergence = counts * _divergence(both[0], both[1], soft)
    return hard, (1 - share) * hard + share * divergence
