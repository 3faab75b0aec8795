"""Several distributions over the same classes made one: means of teachers, and a generalist joined by its specialists.

A specialist m knows a set S_m of the classes and has one more output, the dustbin, for all others. A row's active specialists A are those whose set holds one
of the generalist's n most probable classes. The ensemble's distribution q minimises (Hinton, Vinyals, Dean, arXiv:1503.02531, section 5.4, equation 5)

    F(q) = KL(p_g, q) + sum over m in A of KL(p_m, q^m),    q^m = q on S_m, and the sum of q over the other classes in the dustbin

at temperature 1. The paper descends the gradient of F in logits z, q = softmax(z), row by row. F is convex in q, and we reach the same minimum without step
sizes: each specialist's dustbin is shared out among its classes in the proportions of q, and q becomes the mean of the 1 + |A| distributions that are now
complete. This is expectation maximisation: F never grows, the error shrinks by |A| / (1 + |A|) or better per step, the step in q is the gradient of F in z over
1 + |A|, and one active specialist is solved by the first step. Everything is in logarithms, float64, and a function of the row alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import log_softmax, logsumexp

from hlt_train.errors import RunFailed

__all__ = ["Expert", "Mean", "active", "combine", "gradient", "mean_of", "objective"]

Mean = Literal["geometric", "arithmetic"]
TOLERANCE = 1e-12  # of the last step in log q, relative where |log q| > 1
STEPS = 10_000


class Expert(NamedTuple):
    """What a specialist says of n rows.

    Attributes:
        members: indices of its classes, ascending.
        log_p: float64 `[n, len(members) + 1]`, logarithms of its probabilities, corrected for the enriched training; the dustbin is last.
    """

    members: tuple[int, ...]
    log_p: np.ndarray


def active(log_p: np.ndarray, sets: Sequence[Sequence[int]], top: int) -> np.ndarray:
    """Bool `[n, sets]`: which sets hold one of the `top` most probable classes of each row; of equally probable classes the first ones.

    Args:
        log_p: the generalist's, `[n, classes]`.
        sets: indices of classes.
        top: the paper's n.
    """
    chosen = np.argsort(-log_p, axis=1, kind="stable")[:, :top]
    return np.stack([np.isin(chosen, list(members)).any(axis=1) for members in sets], axis=1) if sets else np.zeros((len(log_p), 0), bool)


def combine(log_p: np.ndarray, experts: Sequence[Expert], on: np.ndarray) -> np.ndarray:
    """The ensemble's log q of every row, float64 `[n, classes]`.

    Args:
        log_p: logarithms of the generalist's probabilities, `[n, classes]`; a row without active specialist keeps them.
        experts: of all rows; those that are not active are not looked at.
        on: bool `[n, experts]`.

    Raises:
        RunFailed: a row has a value that is not finite, or no convergence.
    """
    found = np.array(log_p, np.float64)
    for pattern in np.unique(on, axis=0):
        if pattern.any():
            rows = np.flatnonzero((on == pattern).all(axis=1))
            found[rows] = _solve(found[rows], [Expert(e.members, e.log_p[rows]) for e, here in zip(experts, pattern, strict=True) if here])
    return found


def _solve(log_p: np.ndarray, experts: Sequence[Expert]) -> np.ndarray:
    """Rows with the same active specialists; a row leaves the iteration when it has converged."""
    if not all(np.isfinite(values).all() for values in (log_p, *(e.log_p for e in experts))):
        raise RunFailed("a generalist or a specialist gives a probability that is not finite", then="evaluate the generalist alone")
    found, left = log_p.copy(), np.arange(len(log_p))
    log_q = log_p
    for _ in range(STEPS):
        new = _completed(log_q, log_p[left], [Expert(e.members, e.log_p[left]) for e in experts])
        moving = (np.abs(new - log_q) > TOLERANCE * np.maximum(1, np.abs(new))).any(axis=1)
        found[left] = new
        left, log_q = left[moving], new[moving]
        if not len(left):
            return found
    raise RunFailed(f"the distribution of {len(left):,} rows did not converge in {STEPS:,} steps", then="report this")


def _completed(log_q: np.ndarray, log_p: np.ndarray, experts: Sequence[Expert]) -> np.ndarray:
    """One step: the mean of the generalist and of the specialists, whose dustbins are shared out as q says."""
    parts = [log_p]
    for expert in experts:
        rest = _rest(log_q.shape[1], expert.members)
        part = np.empty_like(log_q)
        part[:, list(expert.members)] = expert.log_p[:, :-1]
        part[:, rest] = log_q[:, rest] + (expert.log_p[:, -1:] - logsumexp(log_q[:, rest], axis=1, keepdims=True))
        parts.append(part)
    completed: np.ndarray = np.logaddexp.reduce(np.stack(parts)) - np.log(len(parts))
    return completed


def _rest(classes: int, members: Sequence[int]) -> np.ndarray:
    return np.setdiff1d(np.arange(classes), list(members))


def objective(log_q: np.ndarray, log_p: np.ndarray, experts: Sequence[Expert]) -> np.ndarray:
    """F, float64 `[n]`, of rows of which all `experts` are active."""
    total = np.sum(np.exp(log_p) * (log_p - log_q), axis=1)
    for expert in experts:
        dustbin = logsumexp(log_q[:, _rest(log_q.shape[1], expert.members)], axis=1, keepdims=True)
        own = np.concatenate([log_q[:, list(expert.members)], dustbin], axis=1)
        total += np.sum(np.exp(expert.log_p) * (expert.log_p - own), axis=1)
    found: np.ndarray = total
    return found


def gradient(log_q: np.ndarray, log_p: np.ndarray, experts: Sequence[Expert]) -> np.ndarray:
    """The derivative dF / dz, float64 `[n, classes]`, at z = log q."""
    found: np.ndarray = (1 + len(experts)) * (np.exp(log_q) - np.exp(_completed(log_q, log_p, experts)))
    return found


def mean_of(logits: np.ndarray, weights: np.ndarray, how: Mean) -> np.ndarray:
    """The logarithm of a weighted mean of distributions, float64 `[n, classes]`.

    The arithmetic mean minimises sum_k w_k KL(p_k, q), the geometric one sum_k w_k KL(q, p_k).

    Args:
        logits: `[teachers, n, classes]`; what has no weight is not looked at.
        weights: `[teachers, n]`, not negative; a row's weights are normalised to 1 and must not all be 0.
        how: the probabilities' mean, or their logarithms' mean, normalised.
    """
    known = weights[..., None] > 0
    log_p = log_softmax(np.where(known, logits, 0.0).astype(np.float64), axis=2)
    share = (weights / weights.sum(axis=0))[..., None]
    if how == "geometric":
        return np.asarray(log_softmax((share * log_p).sum(axis=0), axis=1))
    return np.asarray(logsumexp(log_p, axis=0, b=np.broadcast_to(share, log_p.shape)))
