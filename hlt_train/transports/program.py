"""A strategy compiled for one vector of parameters: what the actors of every message transport call, and nothing else computes.

Simulation, processes and replay run the same compiled functions on the same host arrays, so they give the same bits. A worker's parameters are one float32
vector; shard k of the server owns the contiguous slice `cuts[k]:cuts[k + 1]` of it.

Bodies and answers cross as *parts*: one tuple of NumPy arrays per shard (or one for a peer). Which of their leaves are cut over the shards is found by
asking JAX for the shapes at two lengths of the vector: a leaf whose last axis follows the length is cut along it, any other goes whole to every shard, and
comes back from shard 0. A `Sparse` body keeps all its entries; each shard sees indices into its own slice.

Random keys are those of lockstep: `split(fold_in(fold_in(key(seed), worker), batch))`, one for the loss and one for the exchange.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hlt_train.errors import RunFailed, UsageError
from hlt_train.precision.wire import check, decode, encode, error
from hlt_train.strategies import SERVER, In, Info, S, Sparse, Strategy, W, nothing
from hlt_train.strategies._served import served
from hlt_train.transports.forwarding import forwarding
from hlt_train.transports.keys import INIT, SERVER_ACTOR, actor_key

__all__ = ["Layout", "Message", "Parts", "Program", "Specs", "digest", "overlapped"]

PyTree = Any
Parts = list[tuple[np.ndarray, ...]]  # of a body or an answer, by shard
Specs = tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]  # shape and type of each array of a part
Gradient = Callable[[Any, Any, Any], tuple[Any, Any]]


class Message(NamedTuple):
    """What a worker sends: to the server (one part per shard) or to a peer (one part).

    Attributes:
        source: the worker.
        sequence: counts the messages of its source.
        point: the exchange point of its source at which it was sent.
        to: SERVER or a worker.
        push, fetch: as in `Out`.
        clock: int64 `[shards]`, what the sender had seen of each shard's clock.
        shares: what the body stands for: (step, owner) of the portions of data folded in since the sender's last push; for portions that the server
            hands out (their number, -1).
        parts: the body.
    """

    source: int
    sequence: int
    point: int
    to: int
    push: bool
    fetch: bool
    clock: np.ndarray
    shares: tuple[tuple[int, int], ...]
    parts: Parts


class Layout:
    """How a pytree of arrays crosses: its leaves in order; those that follow the length of the parameters are cut over the shards along their last axis."""

    def __init__(self, at: Callable[[int], PyTree], n: int, cuts: Sequence[int]) -> None:
        here, longer = at(n), at(n + 1)
        leaves, self.structure = jax.tree.flatten(here, is_leaf=_is_sparse)
        others = jax.tree.leaves(longer, is_leaf=_is_sparse)
        self.cuts = list(cuts)
        self.sparse = [_is_sparse(leaf) for leaf in leaves]
        self.cut = [not s and a.shape != b.shape for s, a, b in zip(self.sparse, leaves, others, strict=True)]

    def split(self, tree: PyTree, shard: int) -> PyTree:
        """The part of one shard (traced)."""
        begin, end = self.cuts[shard], self.cuts[shard + 1]
        leaves = jax.tree.leaves(tree, is_leaf=_is_sparse)
        parts = []
        for leaf, cut, sparse in zip(leaves, self.cut, self.sparse, strict=True):
            if sparse:
                parts.append(leaf.part(begin, end))
            else:
                parts.append(leaf[..., begin:end] if cut else leaf)
        return jax.tree.unflatten(self.structure, parts)

    def join(self, trees: Sequence[PyTree]) -> PyTree:
        """The inverse of `split` (traced)."""
        columns = [jax.tree.leaves(tree, is_leaf=_is_sparse) for tree in trees]
        joined = [jnp.concatenate([c[k] for c in columns], axis=-1) if cut and len(columns) > 1 else columns[0][k] for k, cut in enumerate(self.cut)]
        return jax.tree.unflatten(self.structure, joined)


def _is_sparse(leaf: Any) -> bool:
    return isinstance(leaf, Sparse)


class Program:
    """The compiled functions of a strategy.

    Args:
        strategy: the rule.
        gradient: (vector, batch, key) -> (loss, gradient as a vector or a `Sparse`).
        vector: float32 `[n]`, the initial parameters.
        batch: any batch, for the shape of a sparse gradient.
        workers: N.
        shards: S, of the server; 1 for rules without one.
        seed: of all actors' keys.
        wire: how the cut leaves of a pushed body travel to the server; answers and peers' messages travel as they are.
    """

    def __init__(
        self, strategy: Strategy, gradient: Gradient, vector: np.ndarray, batch: Any, *, workers: int, shards: int = 1, seed: int, wire: str = "float32"
    ) -> None:
        self.strategy, self.vector, self.workers, self.shards, self.seed = strategy, np.asarray(vector, np.float32), workers, shards, seed
        self.wire = check(wire)
        self.cuts = [len(self.vector) * k // shards for k in range(shards + 1)]
        self.wire_errors: list[float] = []  # relative, of each message since they were last collected
        self.gradient = gradient
        self._grads = jax.eval_shape(lambda v, b: gradient(v, b, jax.random.key(0))[1], self.vector, batch)
        self._body = Layout(self._body_at, len(self.vector), self.cuts)
        body = self._body_at(len(self.vector))
        self._body_tree = jax.tree.structure(body)
        self._small = [
            self.wire != "float32" and cut and leaf.ndim == 1 and leaf.dtype == jnp.float32
            for cut, leaf in zip(self._body.cut, self._leaves(body), strict=True)
        ]
        self._travels = jax.tree.structure(jax.eval_shape(self._encode, body))
        self._answer = None if strategy.peers else Layout(self._answer_at, len(self.vector), self.cuts)
        self.measures = strategy.measure is not nothing
        self._init = jax.jit(lambda v, index: strategy.init_worker(v, self._info(index)))
        self._compute = jax.jit(self._compute_)
        self._portion = jax.jit(lambda w: -1 if strategy.batch is None else strategy.batch(w))
        self._ask = forwarding(self._ask_)
        self._take = forwarding(self._take_)
        self._peer = forwarding(self._peer_)
        self._serve = jax.jit(self._serve_)
        self._measure = jax.jit(self._measure_)
        self._params = jax.jit(self._params_)
        self._slice = jax.jit(self._held)

    # Shapes: what crosses, without computing anything.

    def _shaped_worker(self, n: int) -> W:
        """A worker's state after a batch, for a vector of n entries (shapes only)."""
        grads = self._grads if _is_sparse(self._grads) else jax.ShapeDtypeStruct((n,), jnp.float32)

        def state(v: Any, g: Any) -> W:
            return self.strategy.step(self.strategy.init_worker(v, self._info(0)), jnp.float32(0), g)

        return jax.eval_shape(state, jax.ShapeDtypeStruct((n,), jnp.float32), grads)

    def _body_at(self, n: int) -> PyTree:
        body: PyTree = jax.eval_shape(lambda w: self.strategy.ask(w, jax.random.key(0))[1].body, self._shaped_worker(n))
        return body

    def _answer_at(self, n: int) -> PyTree:
        """The answer to one message (without the axis of the messages)."""
        body = self._body_at(n)

        def answer(v: Any, b: PyTree) -> PyTree:
            s = self.strategy.init_server(v, self._info(0))
            one = In(jax.tree.map(lambda a: jnp.asarray(a)[None], b), *(jnp.zeros(1, kind) for kind in (bool, bool, jnp.int32, jnp.int32)))
            return jax.tree.map(lambda a: a[0], served(self.strategy)(s, one, self.strategy.measure(s, one))[1])

        shapes: PyTree = jax.eval_shape(answer, jax.ShapeDtypeStruct((n,), jnp.float32), body)
        return shapes

    def _info(self, index: Any) -> Info:
        return Info(index, self.workers, actor_key(self.seed, index, INIT))

    def body_specs(self, shard: int) -> Specs:
        """What a message's part for a shard (a peer) consists of as it travels."""
        body = self._body_at(len(self.vector))
        if self.strategy.fan > 1:
            body = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), body)
        if self.strategy.peers:
            return _specs(body)
        return _specs(jax.eval_shape(lambda b: self._encode(self._body.split(b, shard)), body))

    def answer_specs(self, shard: int) -> Specs:
        """What a shard's part of an answer consists of."""
        answer = self._answer
        assert answer is not None
        return _specs(jax.eval_shape(lambda a: answer.split(a, shard), self._answer_at(len(self.vector))))

    # A worker's.

    def worker(self, index: int, vector: np.ndarray | None = None) -> W:
        """The first state of worker `index`, at the initial parameters or at those of `vector`."""
        return self._init(self.vector if vector is None else vector, np.uint32(index))

    def compute(self, w: W, batch: Any, index: int, t: int) -> tuple[W, float]:
        """The gradient of one batch, folded in; `t` counts the batches of this worker. Returns the loss beside the state."""
        w, loss = self.begin(w, batch, index, t)
        return w, float(loss)

    def begin(self, w: W, batch: Any, index: int, t: int) -> tuple[W, Any]:
        """`compute` without waiting for the device: the loss is a float when that is done."""
        found: tuple[W, Any] = self._compute(w, batch, np.uint32(index), np.uint32(t))
        return found

    def _compute_(self, w: W, batch: Any, index: Any, t: Any) -> tuple[W, Any]:
        for_loss, _ = jax.random.split(actor_key(self.seed, index, t))
        loss, grads = self.gradient(self.strategy.point(w), batch, for_loss)
        return self.strategy.step(w, loss, grads), loss

    def portion(self, w: W) -> int:
        """The portion that the server handed out, -1 none."""
        return int(self._portion(w))

    def ask(self, w: W, index: int, t: int, number: int) -> tuple[W, list[tuple[bool, bool, int, Parts]]]:
        """What the worker sends after its t-th batch: (push, fetch, to, parts) of each message. `number` counts the asks of this exchange."""
        w, asked = self.begin_ask(w, index, t, number)
        return w, self.asked(asked)

    def begin_ask(self, w: W, index: int, t: int, number: int) -> tuple[W, Any]:
        """`ask` without waiting for the device; `asked` tells what it came to."""
        w, *asked = self._ask(w, np.uint32(index), np.uint32(t), number)
        return w, asked

    def asked(self, found: Any) -> list[tuple[bool, bool, int, Parts]]:
        """What an ask that was begun came to, as `ask` says it."""
        flags, bodies, lost = found
        push, fetch, to = (np.asarray(flag) for flag in flags)
        bodies = [[np.asarray(leaf) for leaf in jax.tree.leaves(body)] for body in bodies]
        if self.wire != "float32" and push.any():
            self.wire_errors.append(float(lost))
        if self.strategy.fan == 1:
            return [(bool(push), bool(fetch), int(to), [tuple(body) for body in bodies])]
        return [(bool(push[k]), bool(fetch[k]), int(to[k]), [_row(body, k) for body in bodies]) for k in range(self.strategy.fan)]

    def _ask_(self, w: W, index: Any, t: Any, number: Any) -> tuple[W, Any, list[PyTree], Any]:
        _, key = jax.random.split(actor_key(self.seed, index, t))
        w, out = self.strategy.ask(w, key if self.strategy.asks == 1 else jax.random.fold_in(key, number))
        lead = () if self.strategy.fan == 1 else (self.strategy.fan,)
        push, fetch = (jnp.broadcast_to(jnp.asarray(flag, bool), lead) for flag in (out.push, out.fetch))
        to = jnp.broadcast_to(jnp.asarray(out.to, jnp.int32), lead)
        if self.strategy.peers:
            return w, (push, fetch, to), [out.body], jnp.float32(0)
        return w, (push, fetch, to), [self._encode(self._body.split(out.body, k)) for k in range(self.shards)], self._error(out.body)

    def take(self, w: W, parts: Parts, push: bool, staleness: int, index: int) -> W:
        """The server's answer, one part per shard."""
        return self._take(w, parts, _alone(push, True, index, staleness))

    def _take_(self, w: W, parts: Any, message: In) -> W:
        assert self._answer is not None
        trees = [jax.tree.unflatten(self._answer.structure, part) for part in parts]
        return self.strategy.take(w, self._answer.join(trees), message)

    def peer(self, w: W, part: tuple[np.ndarray, ...], push: bool, source: int) -> W:
        """A peer's message."""
        return self._peer(w, part, _alone(push, False, source, 0))

    def _peer_(self, w: W, part: Any, message: In) -> W:
        return self.strategy.take(w, jax.tree.unflatten(self._body_tree, part), message)

    def rehearse(self, index: int, batch: Any) -> None:
        """Compile what worker `index` calls, by calling it; nothing comes of it. Twice: a state may have another form after its first exchange."""
        state = self.worker(index)
        for _ in range(2):
            state, _ = self.compute(state, batch, index, 0)
            self.portion(state)
            state, _ = self.ask(state, index, 0, 0)
            if self.strategy.peers:
                state = self.peer(state, _zeros(self.body_specs(0)), False, index)
            else:
                state = self.take(state, [_zeros(self.answer_specs(k)) for k in range(self.shards)], False, 0, index)
        self.wire_errors.clear()

    # A shard's.

    def server(self, shard: int) -> S:
        """The first state of a shard."""
        if self.strategy.peers:
            return ()
        info = Info(shard, self.workers, actor_key(self.seed, SERVER_ACTOR, INIT))
        return self.strategy.init_server(jnp.asarray(self.vector[self.cuts[shard] : self.cuts[shard + 1]]), info)

    def measure(self, s: S, messages: Sequence[Message], shard: int, clock: int) -> np.ndarray:
        """What the shard adds to the total that `serve` gets."""
        return np.asarray(self._measure(s, *self._stacked(messages, shard, clock)))

    def _measure_(self, s: S, leaves: Any, push: Any, fetch: Any, source: Any, staleness: Any) -> Any:
        return self.strategy.measure(s, self._in(leaves, push, fetch, source, staleness))

    def serve(self, s: S, messages: Sequence[Message], shard: int, clock: int, measured: Any) -> tuple[S, list[tuple[np.ndarray, ...]]]:
        """Fold messages in, in their order. Returns this shard's part of the answer to each."""
        s, answers = self._serve(s, *self._stacked(messages, shard, clock), measured)
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(answers)]
        return s, [_row(leaves, k) for k in range(len(messages))]

    def _serve_(self, s: S, leaves: Any, push: Any, fetch: Any, source: Any, staleness: Any, measured: Any) -> tuple[S, PyTree]:
        return served(self.strategy)(s, self._in(leaves, push, fetch, source, staleness), measured)

    def rehearse_shard(self, shard: int, count: int) -> None:
        """Compile what a shard calls to serve `count` messages, by calling it; nothing comes of it."""
        parts: Parts = [()] * self.shards
        parts[shard] = _zeros(self.body_specs(shard))
        messages = [Message(k, 0, 0, SERVER, False, False, np.zeros(self.shards, np.int64), (), parts) for k in range(count)]
        state = self.server(shard)
        for _ in range(2):
            state, _ = self.serve(state, messages, shard, 0, self.measure(state, messages, shard, 0) if self.measures else ())
        self.slice(state)

    def _stacked(self, messages: Sequence[Message], shard: int, clock: int) -> tuple[Any, ...]:
        leaves = [np.stack(column) if len(column) > 1 else column[0][None] for column in zip(*(m.parts[shard] for m in messages), strict=True)]
        push, fetch = (np.array([getattr(m, name) for m in messages]) for name in ("push", "fetch"))
        return leaves, push, fetch, np.array([m.source for m in messages], np.int32), np.array([clock - m.clock[shard] for m in messages], np.int32)

    def _in(self, leaves: Any, push: Any, fetch: Any, source: Any, staleness: Any) -> In:
        return In(jax.vmap(self._decode)(leaves), push, fetch, source, staleness)

    def _encode(self, body: PyTree) -> list[PyTree]:
        """A shard's part of a body as it travels (traced)."""
        return [encode(leaf, self.wire) if small else leaf for leaf, small in zip(self._leaves(body), self._small, strict=True)]

    def _decode(self, travelled: Any) -> PyTree:
        """A part as it travelled -> the body (traced)."""
        items = jax.tree.unflatten(self._travels, travelled)
        return jax.tree.unflatten(self._body.structure, [decode(item) if small else item for item, small in zip(items, self._small, strict=True)])

    def _error(self, body: PyTree) -> Any:
        """What the wire costs a body: the largest relative error of its leaves (traced)."""
        found = [error(leaf, self.wire) for leaf, small in zip(self._leaves(body), self._small, strict=True) if small]
        return jnp.max(jnp.stack(found)) if found else jnp.float32(0)

    @staticmethod
    def _leaves(body: PyTree) -> list[Any]:
        return jax.tree.leaves(body, is_leaf=_is_sparse)

    def slice(self, s: S) -> np.ndarray:
        """The parameters that a shard holds."""
        return np.asarray(self._slice(s))

    # Everyone's.

    @staticmethod
    def leaves(state: PyTree) -> dict[str, Any]:
        """A state as host arrays and the name of its structure."""
        leaves, structure = jax.tree.flatten(state)
        return {"structure": str(structure), "leaves": [np.asarray(jax.random.key_data(x) if _is_key(x) else x) for x in leaves]}

    def worker_from(self, content: dict[str, Any]) -> W:
        """The inverse of `leaves` for a worker's state, which may have one structure before and another after the exchange."""
        first = jax.eval_shape(lambda v: self.strategy.init_worker(v, self._info(0)), self.vector)
        return _from_leaves(content, (first, self._shaped_worker(len(self.vector))))

    def server_from(self, content: dict[str, Any], shard: int) -> S:
        """The inverse of `leaves` for a shard's state."""
        return _from_leaves(content, (jax.eval_shape(lambda: self.server(shard)),))

    def params(self, workers: Sequence[W], servers: Sequence[S]) -> np.ndarray:
        """float32 `[n]`: the parameters to validate and to export. Rules with a server get no worker, rules without one get all of them."""
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(list(workers))) if self.strategy.peers else ()
        return np.asarray(self._params(stacked, list(servers)))

    def _params_(self, workers: W, servers: list[S]) -> Any:
        if self.strategy.peers:
            return self.strategy.params(workers, ())
        return jnp.concatenate([self._held(s) for s in servers])

    def _held(self, s: S) -> Any:
        """The parameters of a shard (traced). A rule may look at a worker for their form: it gets a new one of that length."""
        shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(s)]
        for n in sorted({end - begin for begin, end in pairwise(self.cuts)}):
            vector = jax.ShapeDtypeStruct((n,), jnp.float32)
            if [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(jax.eval_shape(lambda v: self.strategy.init_server(v, self._info(0)), vector))] == shapes:
                worker = self.strategy.init_worker(jnp.zeros(n), self._info(0))
                return self.strategy.params(jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], worker), s)
        raise AssertionError("a server's state has changed its form")


def _specs(tree: PyTree) -> Specs:
    return tuple((tuple(leaf.shape), np.dtype(leaf.dtype)) for leaf in jax.tree.leaves(tree))


def _zeros(specs: Specs) -> tuple[np.ndarray, ...]:
    return tuple(np.zeros(shape, dtype) for shape, dtype in specs)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _from_leaves(content: dict[str, Any], shapes: tuple[PyTree, ...]) -> PyTree:
    for shape in shapes:
        wanted, structure = jax.tree.flatten(shape)
        if str(structure) == content["structure"]:
            stored = content["leaves"]
            keys = [jnp.issubdtype(like.dtype, jax.dtypes.prng_key) for like in wanted]
            leaves = [jax.random.wrap_key_data(x) if key else jnp.asarray(x) for x, key in zip(stored, keys, strict=True)]
            return jax.tree.unflatten(structure, leaves)
    raise RunFailed("the stored state of an actor is not one of this strategy", then="resume with the strategy and options of the run")


def _row(leaves: Sequence[np.ndarray], k: int) -> tuple[np.ndarray, ...]:
    """Entry k of axis 0 of every leaf; scalars as arrays without axes."""
    return tuple(np.asarray(leaf[k]) for leaf in leaves)


def _alone(push: bool, fetch: bool, source: int, staleness: int) -> In:
    return In((), np.bool_(push), np.bool_(fetch), np.int32(source), np.int32(staleness))


def overlapped(strategy: Strategy, *, overlap: bool) -> Strategy:
    """The strategy with the overlap that the user asked for; a rule that cannot do with late answers refuses it."""
    if not overlap:
        return strategy
    reasons = {
        "it is a barrier: a worker has nothing to go on with before the round has closed": strategy.quorum <= 0,
        f"its exchange has {strategy.asks} parts, and the second needs the answer to the first": strategy.asks > 1,
        "the server tells its workers what to work on": strategy.batch is not None,
        "its workers wait for nobody anyway": strategy.peers,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise UsageError(f"this strategy cannot overlap its exchanges: {found[0]}", then="leave --overlap out")
    return strategy._replace(wait=False)


def digest(state: Any) -> str:
    """Hexadecimal SHA-256 of the leaves of a state: two states are the same to the bit where it is the same."""
    found = hashlib.sha256()
    for leaf in Program.leaves(state)["leaves"]:
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()
