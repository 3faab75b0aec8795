"""A specialist's view of a problem: the classes of its set, and one dustbin for all others.

Hinton, Vinyals, Dean, arXiv:1503.02531, section 5.2. Trained on half special and half other rows, a specialist believes in the wrong prior; its dustbin's logit
is corrected afterwards by the logarithm of the proportion by which special rows were favoured. We weigh the rows instead of drawing them: a row of the set
counts 1 / (2 pi), any other 1 / (2 (1 - pi)), where pi is the set's share of the training weights. The loss has the expectation of the paper's, every row is
seen in every epoch, and a resumed run needs nothing new; a step costs the same whatever pi, where drawing would be cheaper for very small sets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hlt_train.distillation_loss import LOGITS, MATCHED, Soft
from hlt_train.sparse_gradient import LossOfLogits
from hlt_train.types import Batch
from hlt_train.validation import Losses

__all__ = ["DUSTBIN", "collapse", "correction", "emphasis", "merged", "specialist_losses"]

DUSTBIN = "dustbin"


def emphasis(classes: int, members: Sequence[int], share: float) -> np.ndarray:
    """float32 `[classes]`: what a row of each class counts, so that the set and the rest count the same. share: of the set, by weight; between 0 and 1."""
    inside = np.isin(np.arange(classes), list(members))
    return np.where(inside, 0.5 / share, 0.5 / (1 - share)).astype(np.float32)


def correction(share: float) -> float:
    """What is added to the dustbin's logit: log of (weight of a special row / weight of another row), in training."""
    return math.log((1 - share) / share)


def collapse(logits: Any, members: Sequence[int]) -> Any:
    """Logits `[..., classes]` -> `[..., len(members) + 1]`, the same distribution as a specialist sees it: the set's, and the log-sum-exp of the others."""
    rest = [c for c in range(logits.shape[-1]) if c not in set(members)]
    dustbin = jax.nn.logsumexp(jnp.asarray(logits)[..., np.array(rest)], axis=-1, keepdims=True)
    return jnp.concatenate([jnp.asarray(logits)[..., np.array(members)], dustbin], axis=-1)


def merged(arrays: Mapping[str, np.ndarray], axes: Mapping[str, int], members: Sequence[int], mean: np.ndarray, share: float) -> dict[str, np.ndarray]:
    """A specialist's first weights from a generalist's: all but the output layer as it is, of that the set's rows, and one row for the dustbin.

    The others' log-sum-exp is not linear. The dustbin's row is its linear lower bound that touches it where the others' probabilities are as their means a are:
    `sum_j a_j z_j + H(a)`, with H the entropy (Jensen); exact where one class is left. The bias also takes back the correction, so that the corrected
    specialist begins as the generalist.

    Args:
        arrays: the generalist's parameters by name.
        axes: name -> axis of the outputs, of the arrays that have one; one-dimensional ones are biases.
        members: the set.
        mean: float64 `[classes]`, mean probabilities of the generalist.
        share: of the set.
    """
    rest = [c for c in range(len(mean)) if c not in set(members)]
    a = mean[rest] / mean[rest].sum()
    constant = -float(np.sum(a * np.log(np.maximum(a, np.finfo(np.float64).tiny)))) - correction(share)
    found = dict(arrays)
    for name, axis in axes.items():
        whole = np.moveaxis(arrays[name], axis, 0)
        dustbin = np.tensordot(a, whole[rest].astype(np.float64), axes=1)
        rows = np.concatenate([whole[list(members)], (dustbin + constant * (whole.ndim == 1))[None]])
        found[name] = np.moveaxis(rows, 0, axis).astype(arrays[name].dtype)
    return found


def specialist_losses(model: eqx.Module, classes: int, members: Sequence[int], share: float, soft: Soft | None) -> Losses:
    """The loss per row of a specialist, and its accuracy, both with the emphasis: cross-entropy over the set and the dustbin.

    With `soft`, a part of it is T^2 KL against what the generalist's logits say of the set and the dustbin, at the prior of the enriched training. The paper's
    specialists learn from labels alone; it suggests the generalist's soft targets against overfitting, for specialists that keep all classes (section 6.1).

    Args:
        model: gives `len(members) + 1` logits.
        classes: of the batches' labels, and of the generalist.
        members: the set.
        share: of the set.
        soft: temperature and share of the soft targets; None: labels alone.
    """
    static = eqx.filter(model, eqx.is_inexact_array, inverse=True)
    place = np.full(classes, len(members), np.int32)
    place[list(members)] = np.arange(len(members))
    counts = emphasis(classes, members, share)
    enriched = np.append(np.zeros(len(members)), -correction(share)).astype(np.float32)

    def rows(logits: jax.Array, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        label, times = jnp.asarray(place)[batch.label], jnp.asarray(counts)[batch.label]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        if soft is not None:
            part = soft.share * batch.extra[MATCHED]
            wanted = collapse(batch.extra[LOGITS], members) + jnp.asarray(enriched)
            p, q = (jax.nn.log_softmax(z * (1 / soft.temperature)) for z in (wanted, logits))
            loss = (1 - part) * loss + part * soft.temperature**2 * jnp.sum(jnp.exp(p) * (p - q), axis=-1)
        return times * loss, {"accuracy": times * (jnp.argmax(logits, axis=-1) == label)}

    return LossOfLogits(lambda params: eqx.combine(params, static), rows)
