"""Which leaves of a rule's messages follow the length of its parameters, and whether its server may be cut into slices of them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hlt_train.strategies import In, Info, PyTree, S, Strategy, nothing
from hlt_train.strategies._served import served
from hlt_train.transports._lockstep_exchange import group_size
from hlt_train.transports.keys import INIT, actor_key

__all__ = ["elementwise", "layouts", "message_shapes", "part", "whole"]


def part(leaf: Any, n: int) -> Any:
    """`[..., size]` -> `[n, ..., ceil(size / n)]`, filled up with zeros."""
    size = leaf.shape[-1]
    padded = jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, -size % n)])
    return jnp.moveaxis(padded.reshape(*leaf.shape[:-1], n, -1), -2, 0)


def whole(parts: Any, size: int) -> Any:
    """The inverse of `_part`."""
    moved = jnp.moveaxis(parts, 0, -2)
    return moved.reshape(*moved.shape[:-2], -1)[..., :size]


def message_shapes(strategy: Strategy, params: PyTree, n: int) -> tuple[PyTree, PyTree, S]:
    """Shapes of a worker's body, of the answer to it (without the axis of messages; () where there is no server) and of the server's state."""

    def all_of(params: PyTree) -> tuple[PyTree, PyTree, S]:
        info = Info(0, n, actor_key(0, 0, INIT))
        w = strategy.step(strategy.init_worker(params, info), jnp.float32(0), params)
        body, s = strategy.ask(w, info.key)[1].body, strategy.init_server(params, info)
        if strategy.peers:
            return body, (), s
        _, size = group_size(strategy, n)
        rows = 1 if strategy.combine == "mean" else size
        one = In(jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (rows, *jnp.shape(leaf))), body), *_headers(rows))
        answers = served(strategy)(s, one, strategy.measure(s, one))[1]
        return body, jax.tree.map(lambda leaf: leaf[0], answers), s

    shapes: tuple[PyTree, PyTree, S] = jax.eval_shape(all_of, params)
    return shapes


def _headers(rows: int) -> tuple[Any, Any, Any, Any]:
    true = jnp.ones(rows, bool)
    return true, true, jnp.arange(rows, dtype=jnp.int32), jnp.arange(rows, dtype=jnp.int32) % 3


def layouts(strategy: Strategy, size: int, n: int) -> tuple[list[bool], list[bool], list[bool]]:
    """Which leaves of a body, of an answer and of the server's state follow the length of the parameters along their last axis. Refuses other dependences."""
    here, longer = (message_shapes(strategy, jax.ShapeDtypeStruct((length,), jnp.float32), n) for length in (size, size + 1))
    found = []
    for a, b in zip(here, longer, strict=True):
        flags = []
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            follows = x.shape != y.shape
            if follows and y.shape != (*x.shape[:-1], x.shape[-1] + 1):
                raise ValueError(f"a leaf of shape {x.shape} follows the parameters in another way than along its last axis")
            flags.append(follows)
        found.append(flags)
    return found[0], found[1], found[2]


def _bits(leaf: Any) -> bytes:
    return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf).tobytes()


def elementwise(strategy: Strategy, n: int) -> bool:
    """Whether two rounds of `serve` give the same bits in n slices of the parameters as in the whole, tried on random input."""
    if strategy.peers or strategy.measure is not nothing or n == 1:
        return False
    size = 67 * n - 3
    try:
        body_cut, answer_cut, state_cut = layouts(strategy, size, n)
    except ValueError:
        return False
    draw = np.random.default_rng(0)
    vector = jnp.asarray(draw.normal(size=size), jnp.float32)
    body, _, _ = message_shapes(strategy, vector, n)
    rows = 1 if strategy.combine == "mean" else group_size(strategy, n)[1]
    leaves, structure = jax.tree.flatten(body)

    def random(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.ones((rows, *leaf.shape), leaf.dtype)
        return jnp.asarray(draw.normal(size=(rows, *leaf.shape)), leaf.dtype)

    rounds = [[random(leaf) for leaf in leaves] for _ in range(2)]

    @jax.jit
    def run(params: Any, rounds: Any) -> Any:
        s = strategy.init_server(params, Info(0, n, actor_key(0, 0, INIT)))
        answers = []
        for given in rounds:
            messages = In(jax.tree.unflatten(structure, given), *_headers(rows))
            s, answer = served(strategy)(s, messages, strategy.measure(s, messages))
            answers.append(jax.tree.leaves(answer))
        return jax.tree.leaves(s), answers

    entire = run(vector, rounds)
    parts = [
        run(part(vector, n)[k], [[part(leaf, n)[k] if cut else leaf for leaf, cut in zip(given, body_cut, strict=True)] for given in rounds]) for k in range(n)
    ]

    def agree(entire: list[Any], parts: list[list[Any]], cuts: list[bool]) -> bool:
        for j, cut in enumerate(cuts):
            column = [leaves[j] for leaves in parts]
            if cut:
                column = [whole(jnp.stack(column), size)]
            if any(_bits(leaf) != _bits(entire[j]) for leaf in column):
                return False
        return True

    answers = (agree(entire[1][r], [p[1][r] for p in parts], answer_cut) for r in range(len(rounds)))
    return agree(entire[0], [p[0] for p in parts], state_cut) and all(answers)
