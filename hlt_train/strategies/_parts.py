"""What the rules share: the check of an option, and a few sums of pytrees."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from hlt_train.errors import UsageError
from hlt_train.strategies import Answers, Bool, In, PyTree

__all__ = ["add", "answer_all", "scaled", "select", "subtract", "within", "zeros"]


def within(rule: str, option: str, value: Any, low: Any, high: Any = None) -> None:
    """Refuse an option's value outside [low, high]; nan lies outside. Without `high` any finite value from `low` on will do."""
    if not (low <= value <= high if high is not None else low <= value < float("inf")):
        allowed = f"{option} from {low} to {high}" if high is not None else f"{option} of at least {low}"
        raise UsageError(f"{rule}: {option}={value} is out of range", then=allowed)


def zeros(tree: PyTree) -> PyTree:
    """Zeros of the same shapes."""
    return jax.tree.map(jnp.zeros_like, tree)


def add(a: PyTree, b: PyTree) -> PyTree:
    """The sum, leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)


def subtract(a: PyTree, b: PyTree) -> PyTree:
    """The difference, leaf by leaf."""
    return jax.tree.map(jnp.subtract, a, b)


def scaled(factor: Any, tree: PyTree) -> PyTree:
    """A scalar times every leaf."""
    return jax.tree.map(lambda leaf: factor * leaf, tree)


def select(condition: Bool, new: PyTree, old: PyTree) -> PyTree:
    """`new` where the (scalar, perhaps traced) condition holds, else `old`."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def answer_all(state: PyTree, messages: In) -> Answers:
    """The same answer to every message."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (jnp.shape(messages.source)[0], *jnp.shape(leaf))), state)
