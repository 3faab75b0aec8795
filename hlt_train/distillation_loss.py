"""What a student learns: L = lambda T^2 KL(soft_T(teacher) || soft_T(student)) + (1 - lambda) cross-entropy with the labels, per row.

soft_T(l) = softmax(l / T). T^2 keeps the gradients of both terms comparable when T changes (Hinton, Vinyals, Dean, arXiv:1503.02531). A row without a
teacher's logits learns from its label alone.

A student with more classes than one signal and one background has one more output, its discriminant d, that approximates
D = log(sum_s f_s p_s / sum_b f_b p_b) (`docs/physics.md`). It is the logit of "signal" against "background" in a mixture where class c counts f_c:

    hard: f_label BCE(d, label is signal)           soft: f_label T^2 KL(Bernoulli(sigmoid(D_teacher / T)) || Bernoulli(sigmoid(d / T)))

mixed by the same lambda. Rows of classes on neither side do not count in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hlt_train.types import Batch
from hlt_train.validation import Losses

__all__ = ["LOGITS", "MATCHED", "Head", "Soft", "head_of", "student_losses"]

LOGITS, MATCHED = "teacher_logits", "teacher_matched"  # names in Batch.extra: float32 [n, classes]; float32 [n], 1 where the teacher saw the row


class Soft(NamedTuple):
    """How the teacher's answers enter: the temperature T and the share lambda of the soft term."""

    temperature: float
    share: float


class Head(NamedTuple):
    """The discriminant output: fraction of each class on its side, float32 `[classes]`, 0 on the other side."""

    signal: tuple[float, ...]
    background: tuple[float, ...]


def head_of(classes: Sequence[str], signal: Mapping[str, float], background: Mapping[str, float]) -> Head:
    """From a discriminant's fractions by class name."""
    return Head(tuple(float(signal.get(c, 0.0)) for c in classes), tuple(float(background.get(c, 0.0)) for c in classes))


def student_losses(model: eqx.Module, classes: int, soft: Soft | None, head: Head | None) -> Losses:
    """The loss per row, and figures: accuracy, `hard` (cross-entropy) and, with a teacher, `soft` (T^2 KL) and `agreement` of the most probable class.

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
            divergence = _divergence(teacher, logits, soft.temperature)
            loss = (1 - share) * hard + share * divergence
            figures |= {"soft": divergence, "agreement": (guess == jnp.argmax(teacher, axis=-1)).astype(jnp.float32)}
        if head is not None:
            binary, wanted = _head(outputs[:, classes], batch, soft, head, share)
            loss = loss + wanted
            figures["discriminant"] = binary
        return loss, figures

    return losses


def _divergence(teacher: jax.Array, student: jax.Array, temperature: float) -> jax.Array:
    """T^2 KL(soft_T(teacher) || soft_T(student)), per row."""
    p, q = (jax.nn.log_softmax(logits * (1 / temperature)) for logits in (teacher, student))
    return temperature**2 * jnp.sum(jnp.exp(p) * (p - q), axis=-1)


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
    both = [jnp.stack([jax.nn.log_sigmoid(v), jax.nn.log_sigmoid(-v)], axis=-1) for v in (wanted * (1 / soft.temperature), d * (1 / soft.temperature))]
    divergence = counts * soft.temperature**2 * jnp.sum(jnp.exp(both[0]) * (both[0] - both[1]), axis=-1)
    return hard, (1 - share) * hard + share * divergence
