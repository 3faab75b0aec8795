"""The `serve` that a transport calls, for every rule: its own, or for `serve=None` the addition S + body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hlt_train.strategies import Answers, Array, In, S, Sparse, Strategy

__all__ = ["served"]


def served(strategy: Strategy) -> Callable[[S, In, Array], tuple[S, Answers]]:
    """The rule's `serve`, or plain addition where it has none.

    Addition takes the messages one by one in the order of their axis; each is answered with the state just after it, so q messages at once are, to the bit,
    q serves of one. The body has the structure of S; at each leaf of S it holds an array, or a `Sparse` with indices into that leaf (an axis of messages in
    front of either). A message that does not push adds nothing, whatever its body holds.
    """
    return strategy.serve or _add


def _add(s: S, messages: In, _measured: Array) -> tuple[S, Answers]:
    def one(state: S, message: tuple[Any, Any]) -> tuple[S, S]:
        push, body = message
        state = jax.tree.map(lambda leaf, b: jnp.where(push, _plus(leaf, b), leaf), state, body)
        return state, state

    return lax.scan(one, s, (messages.push, messages.body))


def _plus(leaf: Array, body: Array | Sparse) -> Array:
    return body.added_to(leaf) if isinstance(body, Sparse) else leaf + body
