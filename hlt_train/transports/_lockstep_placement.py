"""Where the server of a lockstep run is: whole on every device, or cut over them so that device k is shard k.

Cut, an exchange of n messages of size m moves 2 m per device instead of n m, and each device folds 1 / n of every message. The rule then sees the parameters
as one float32 vector, and where `serve` is element-wise the bits are those of a whole server that sees this vector; `_lockstep_layout.elementwise` tries that
before the run starts. (Given the network's tree, leaf by leaf, XLA may compile other roundings of the same rule.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from hlt_train.devices import AXIS
from hlt_train.errors import UsageError
from hlt_train.strategies import Info, Params, PyTree, S, Strategy
from hlt_train.transports._lockstep_exchange import Network, World
from hlt_train.transports._lockstep_layout import elementwise, layouts, message_shapes, part, whole
from hlt_train.transports._lockstep_traffic import row
from hlt_train.transports.keys import INIT, actor_key

__all__ = ["LARGE", "Cut", "Whole", "placed"]

LARGE = 1 << 18  # bytes of the parameters from which on a cut server pays


class Whole:
    """The server's state is the same on every device, computed there from all messages. n: the workers.

    Attributes:
        cuts: the server is cut over the devices.
    """

    cuts = False

    def __init__(self, n: int) -> None:
        self.n = n

    def enter(self, params: PyTree) -> PyTree:
        """Parameters or gradients of the network as the rule sees them."""
        return params

    def leave(self, params: PyTree) -> Params:
        """The inverse."""
        return params

    def server(self, params: PyTree, start: Callable[[PyTree, Any], S]) -> S:
        """The first states of the server, one per device on axis 0; start: (parameters or a slice, index) -> state."""
        return jax.tree.map(lambda leaf: jnp.broadcast_to(jnp.asarray(leaf)[None], (self.n, *jnp.shape(leaf))), start(params, 0))

    def joined(self, s: S) -> S:
        """Inside the call: a device's server state -> the whole one."""
        return s

    def collect(self, body: PyTree, world: World) -> PyTree:
        """Inside the call: the bodies (or this shard's parts of them) of all n workers, stacked."""
        return world.gather(body)

    def hand_back(self, answers: PyTree, rows: Any, world: World) -> PyTree:
        """Inside the call: this worker's answer; rows: int32 `[n]`, which answer each worker gets."""
        return row(rows[world.me], answers)

    def store(self, worker: PyTree, server: PyTree, pending: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        """Host arrays with one slice per device -> as a checkpoint has them, the same for all placements; the server without the axis of devices."""
        return worker, jax.tree.map(lambda leaf: leaf[0], server), pending

    def recall(self, worker: PyTree, server: PyTree, pending: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        """The inverse, the server with the axis of devices."""
        return worker, jax.tree.map(lambda leaf: np.broadcast_to(np.asarray(leaf)[None], (self.n, *np.shape(leaf))), server), pending


class Cut(Whole):
    """Device k holds shard k: entries k c to (k + 1) c of the parameter vector, c = ceil(size / n); the last shard is filled up with zeros.

    Args:
        strategy: the rule.
        params: the network's parameters, all float32.
        n: workers, which are the shards.
    """

    cuts = True

    def __init__(self, strategy: Strategy, params: Params, n: int) -> None:
        vector, self._unravel = ravel_pytree(params)
        self.size, self.n = int(vector.shape[0]), n
        self.body, self.answer, self.state = layouts(strategy, self.size, n)
        self._tree_worker = jax.eval_shape(lambda p: strategy.init_worker(p, Info(0, n, actor_key(0, 0, INIT))), params)
        _, self._tree_answer, self._tree_server = message_shapes(strategy, params, n)
        self._vector_worker = jax.eval_shape(lambda p: strategy.init_worker(p, Info(0, n, actor_key(0, 0, INIT))), vector)
        _, self._vector_answer, self._vector_server = message_shapes(strategy, vector, n)

    def enter(self, params: PyTree) -> PyTree:
        return ravel_pytree(params)[0]

    def leave(self, params: PyTree) -> Params:
        tree: Params = self._unravel(params)
        return tree

    def server(self, params: PyTree, start: Callable[[PyTree, Any], S]) -> S:
        parts = part(params, self.n)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(start(parts[k], k) for k in range(self.n)))

    def joined(self, s: S) -> S:
        leaves, structure = jax.tree.flatten(s)
        return jax.tree.unflatten(structure, [self._join(lax.all_gather(leaf, AXIS)) if cut else leaf for leaf, cut in zip(leaves, self.state, strict=True)])

    def collect(self, body: PyTree, world: World) -> PyTree:
        leaves, structure = jax.tree.flatten(body)
        found = []
        for leaf, cut in zip(leaves, self.body, strict=True):
            if not cut:
                found.append(world.gather(leaf))
            elif world.n == self.n:
                found.append(lax.all_to_all(part(leaf, self.n), AXIS, 0, 0, tiled=True))
            else:
                found.append(row(lax.axis_index(AXIS), part(leaf, self.n))[None])
        return jax.tree.unflatten(structure, found)

    def hand_back(self, answers: PyTree, rows: Any, world: World) -> PyTree:
        leaves, structure = jax.tree.flatten(answers)
        found = []
        for leaf, cut in zip(leaves, self.answer, strict=True):
            if not cut:
                found.append(leaf[rows[world.me]])
            elif world.n == self.n:
                found.append(self._join(lax.all_to_all(leaf[rows], AXIS, 0, 0, tiled=True)))
            else:
                found.append(self._join(lax.all_gather(leaf[rows[0]], AXIS)))
        return jax.tree.unflatten(structure, found)

    def store(self, worker: PyTree, server: PyTree, pending: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        leaves, structure = jax.tree.flatten(server)
        joined = [np.asarray(self._join(leaf)) if cut else np.asarray(leaf[0]) for leaf, cut in zip(leaves, self.state, strict=True)]
        server = jax.tree.map(_split, jax.tree.unflatten(structure, joined), self._tree_server)
        pending = tuple(each._replace(answer=jax.tree.map(_split, each.answer, self._tree_answer)) for each in pending)
        return jax.tree.map(_split, worker, self._tree_worker), server, pending

    def recall(self, worker: PyTree, server: PyTree, pending: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        vector = jax.tree.map(lambda like, sub: _fused(sub, like, 0), self._vector_server, server)
        leaves, structure = jax.tree.flatten(vector)
        server = [np.asarray(part(leaf, self.n)) if cut else np.stack([leaf] * self.n) for leaf, cut in zip(leaves, self.state, strict=True)]
        pending = tuple(each._replace(answer=jax.tree.map(_fused_each, self._vector_answer, each.answer)) for each in pending)
        return jax.tree.map(_fused_each, self._vector_worker, worker), jax.tree.unflatten(structure, server), pending

    def _join(self, parts: Any) -> Any:
        return whole(parts, self.size)


def _split(vector: np.ndarray, like: PyTree) -> PyTree:
    """`[..., size]` -> the leaves of `like` (shapes without the leading axes), in the order in which they were joined to the vector."""
    leaves, structure = jax.tree.flatten(like)
    if len(leaves) == 1 and vector.shape[vector.ndim - leaves[0].ndim :] == leaves[0].shape:
        return jax.tree.unflatten(structure, [vector])
    ends = np.cumsum([leaf.size for leaf in leaves])
    parts = np.split(vector, ends[:-1], axis=-1)
    return jax.tree.unflatten(structure, [each.reshape((*vector.shape[:-1], *leaf.shape)) for each, leaf in zip(parts, leaves, strict=True)])


def _fused_each(like: Any, tree: PyTree) -> np.ndarray:
    return _fused(tree, like, 1)


def _fused(tree: PyTree, like: Any, lead: int) -> np.ndarray:
    """The inverse of `_split`, with `lead` leading axes; like: the leaf that is wanted (its shape without them)."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape((*leaf.shape[:lead], -1)) for leaf in leaves], axis=-1).reshape((*leaves[0].shape[:lead], *like.shape))


def placed(strategy: Strategy, params: Params, n: int, network: Network, shards: str) -> Whole:
    """Where the server goes. "auto" cuts it where it is element-wise and messages are large; the mean of bodies only where it goes by "alltoall"."""
    leaves = jax.tree.leaves(params)
    same = all(leaf.dtype == jnp.float32 for leaf in leaves)
    if shards == "always":
        if n > 1 and not (same and elementwise(strategy, n)):
            raise UsageError("shards=always: the server of this strategy does not give the same bits in parts", then="shards=auto")
        return Cut(strategy, params, n) if n > 1 else Whole(n)
    reduces = strategy.combine == "mean" and strategy.quorum == 0
    useful = network.exchange == "alltoall" and network.wire == "float32" if reduces else sum(leaf.nbytes for leaf in leaves) >= LARGE
    if shards == "auto" and n > 1 and same and useful and not strategy.peers and elementwise(strategy, n):
        return Cut(strategy, params, n)
    return Whole(n)
