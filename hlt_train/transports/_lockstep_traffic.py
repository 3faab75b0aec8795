"""What lockstep remembers of the messages: clocks, answers under way, datagrams held back, and what became of every message."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hlt_train.strategies import In, PyTree

__all__ = ["BINS", "Counters", "Pending", "Traffic", "choose", "counters", "flag", "row", "traffic"]

BINS = 64


class Counters(NamedTuple):
    """What became of the messages of one worker, since the run began; int32 scalars.

    Attributes:
        applied: pushes that the server folded in; with peers, messages that this worker folded in.
        late: pushes that came after their round had closed, and were dropped.
        gated: asks that did not push, of rules that then give up what they would have pushed.
        sent: messages to peers, or to the server as datagrams.
        lost: those of them that the network lost.
        staleness: int32 `[64]`, served pushes by their staleness; the last bin holds 63 and more.
        coded: bodies that crossed in a narrower number format.
        error: float32, the sum of their relative errors |decoded - sent| / |sent| (Euclidean).
    """

    applied: Any
    late: Any
    gated: Any
    sent: Any
    lost: Any
    staleness: Any
    coded: Any
    error: Any


class Pending(NamedTuple):
    """An answer that will be taken at the next exchange point. due: there is one; clock: the server's when it answered."""

    answer: PyTree
    message: In
    due: Any
    clock: Any


class Traffic(NamedTuple):
    """Beside the states of the actors; every leaf is one worker's, except `clock`, which is the same everywhere.

    Attributes:
        clock: int32, the server's updates: serves with a push among their messages.
        seen: int32, the server's clock when it gave the answer that this worker took last.
        loss: float32, the last loss of a worker that evaluates portions handed out; () otherwise.
        pending: one `Pending` per ask where answers are taken late; () otherwise.
        held: datagrams that the network held back at the last exchange point, per ask; () otherwise.
        counters: what became of this worker's messages.
    """

    clock: Any
    seen: Any
    loss: Any
    pending: PyTree
    held: PyTree
    counters: Counters


def counters() -> Counters:
    """All zero."""
    zero = np.zeros((), np.int32)
    return Counters(zero, zero, zero, zero, zero, np.zeros(BINS, np.int32), zero, np.zeros((), np.float32))


def traffic(*, loss: bool, pending: PyTree, held: PyTree) -> Traffic:
    """Before the first message."""
    zero = np.zeros((), np.int32)
    return Traffic(zero, zero, np.zeros((), np.float32) if loss else (), pending, held, counters())


def flag(value: Any) -> jax.Array:
    """A bool scalar or array of a flag that may be a Python constant."""
    return jnp.asarray(value, jnp.bool_)


def choose(condition: Any, new: PyTree, old: PyTree, *, always: bool = False) -> PyTree:
    """`new` where the condition holds; without a select, and whatever the structure of `old`, where it always does."""
    return new if always else jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def row(index: Any, tree: PyTree) -> PyTree:
    """Entry `index` of axis 0 of every leaf."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(jnp.asarray(leaf), index, keepdims=False), tree)
