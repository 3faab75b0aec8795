"""A serial driver of distributed SGD rules: N workers, a server cut into S shards, and arrivals in the order that a test gives. The type in plain Python.

    drive = Drive(rule, params, gradient, workers=3)
    drive.run([0, 1, 2, 0, 1, 2])      # whose batch and exchange comes next

Worker k computes on what it took at its last exchange, so the order alone makes the staleness. All shards serve the same order, hence share a clock. An answer
is taken at once (`wait`) or, like a peer's message, at the receiver's next exchange point, before it asks. `warm` is left to the test: run([0] * warm).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hlt_train.strategies import SERVER, In, Info, Sparse, Strategy
from hlt_train.strategies._served import served

INIT = 2**32 - 1


class Message(NamedTuple):
    source: int
    to: int
    body: Any
    push: bool
    fetch: bool
    seen: int  # the server's clock (its updates) as the sender knew it
    round: int  # the round whose answer its sender has


class Drive:
    """State of all actors: `w[k]`, `s[shard]`.

    `gradient(params, k, number, key)` gives (loss, grads) of worker k's batch `number`, or of portion `number`. `network` may lose or shuffle the messages of
    an ask. With `shards` above 1 `params` is a vector, and its length must differ from the other axes of the rule's leaves.
    """

    def __init__(
        self, rule: Strategy, params: Any, gradient: Callable[..., Any], workers: int = 1, shards: int = 1, *, seed: int = 0, jit: bool = True
    ) -> None:
        self.rule, self.network, wrap = rule, lambda messages: messages, jax.jit if jit else lambda f: f
        self._gradient, self._step, self._ask, self._take = wrap(gradient), wrap(rule.step), wrap(rule.ask), wrap(rule.take)
        self._serve, self._measure, self._seed = wrap(served(rule)), wrap(rule.measure), jax.random.key(seed)
        params = jax.tree.map(jnp.asarray, params)
        self.n = params.shape[0] if shards > 1 else None
        self.cuts = [(j * self.n // shards, (j + 1) * self.n // shards) for j in range(shards)] if self.n else [None]
        self.w = [rule.init_worker(params, Info(k, workers, self.key(k, INIT))) for k in range(workers)]
        self.s = [rule.init_server(self.cut(params, c), Info(j, shards, self.key(INIT, j))) for j, c in enumerate(self.cuts)]
        self.live = set(range(workers))
        self.batches, self.seen, self.round, self.waiting = [0] * workers, [0] * workers, [0] * workers, [0] * workers
        self._asked = [rule.asks] * workers
        self.inbox: list[list[Any]] = [[] for _ in range(workers)]
        self.queue: list[Message] = []
        self.clock = self.rounds = self.dropped = 0
        self.answers: list[Any] = []  # of the last round, one per message
        self.losses: list[float] = []
        self.staleness: list[int] = []  # of every served push
        self.sent: list[Message] = []

    def key(self, actor: int, at: int) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(self._seed, actor), at)

    def run(self, order: Iterable[int]) -> Drive:
        for k in order:
            self.batch(k)
            if self.batches[k] % self.rule.every == 0:
                self.exchange(k)
        return self

    def batch(self, k: int) -> None:
        """One batch of worker k."""
        assert k in self.live, f"worker {k} is dead"
        assert not self.waiting[k], f"worker {k} waits for an answer"
        number = self.batches[k] if self.rule.batch is None else int(self.rule.batch(self.w[k]))
        if number >= 0:
            loss, grads = self._gradient(self.rule.point(self.w[k]), k, number, self.key(k, 2 * self.batches[k]))
            self.w[k] = self._step(self.w[k], loss, grads)
            self.losses.append(float(loss))
        self.batches[k] += 1

    def exchange(self, k: int) -> None:
        """An exchange point of worker k: take what has come, then ask."""
        arrived, self.inbox[k] = self.inbox[k], []
        for entry in arrived:
            self._taken(k, *entry)
        self._asked[k] = 0
        self._go_on(k)

    def _go_on(self, k: int) -> None:
        while self._asked[k] < self.rule.asks and not self.waiting[k]:
            key = jax.random.fold_in(self.key(k, 2 * self.batches[k] - 1), self._asked[k])
            self._asked[k] += 1
            self.w[k], out = self._ask(self.w[k], key)
            fan = self.rule.fan
            outs = [out] if fan == 1 else [jax.tree.map(lambda leaf, i=i: leaf[i], out) for i in range(fan)]
            messages = [Message(k, int(o.to), o.body, bool(o.push), bool(o.fetch), self.seen[k], self.round[k]) for o in outs]
            self.sent += (going := [m for m in messages if m.push or m.fetch])
            for message in self.network(going):
                if message.to != SERVER:
                    head = In((), jnp.asarray(message.push), jnp.asarray(message.fetch), jnp.asarray(k), jnp.asarray(0))
                    self.inbox[message.to].append((message.body, head, None, None))
                    continue
                self.waiting[k] += message.fetch and self.rule.wait
                if self.rule.late == "drop" and message.round < self.rounds:
                    self.dropped += message.push
                    self._answer(message, self.answers[0])
                else:
                    self.queue.append(message)
                    self.flush(k)

    def flush(self, k: int | None = None) -> None:
        """Serve the queue if its quorum is there; `live` may have changed. k asks just now and goes on by itself."""
        quorum = self.rule.quorum if self.rule.quorum > 0 else len(self.live) + self.rule.quorum
        if not self.queue or len(self.queue) < quorum:
            return
        batch, self.queue = self.queue, []
        if self.rule.quorum == 0:
            batch.sort(key=lambda m: m.source)
        self.answers = self._served(batch)
        self.rounds += 1
        self.clock += any(m.push for m in batch)
        for message, answer in zip(batch, self.answers, strict=True):
            self._answer(message, answer)
        for message in batch:
            if message.source != k:
                self._go_on(message.source)

    def _served(self, batch: list[Message]) -> list[Any]:
        push, fetch, source = (np.array([getattr(m, f) for m in batch]) for f in ("push", "fetch", "source"))
        staleness = np.array([self.clock - m.seen for m in batch])
        self.staleness += staleness[push].tolist()
        body = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(m.body for m in batch))
        if self.rule.combine == "mean":
            body = jax.tree.map(lambda leaf: leaf[push].mean(axis=0, keepdims=True), body)
        parts = [In(self.cut(body, c), *map(jnp.asarray, (push, fetch, source, staleness))) for c in self.cuts]
        measured = jax.tree.map(lambda *leaves: sum(leaves), *(self._measure(s, m) for s, m in zip(self.s, parts, strict=True)))
        found = [self._serve(s, m, measured) for s, m in zip(self.s, parts, strict=True)]
        self.s = [s for s, _ in found]
        whole = self.join([answers for _, answers in found])
        return [jax.tree.map(lambda leaf, i=i: leaf[i], whole) for i in range(len(batch))]

    def _answer(self, message: Message, answer: Any) -> None:
        if not message.fetch:
            return
        head = In((), *(jnp.asarray(x) for x in (message.push, message.fetch, message.source, self.clock - message.seen)))
        entry = (answer, head, self.clock, self.rounds)
        if self.rule.wait:
            self.waiting[message.source] -= 1
            self._taken(message.source, *entry)
        else:
            self.inbox[message.source].append(entry)

    def _taken(self, k: int, body: Any, head: In, clock: int | None, rounds: int | None) -> None:
        self.w[k] = self._take(self.w[k], body, head)
        if clock is not None:
            self.seen[k], self.round[k] = max(self.seen[k], clock), max(self.round[k], rounds)

    def cut(self, tree: Any, cut: tuple[int, int] | None) -> Any:
        """A shard's part of a body: what is as long as the vector is cut, the rest goes whole."""

        def part(leaf: Any) -> Any:
            if isinstance(leaf, Sparse):
                return leaf.part(*cut)
            return leaf[..., cut[0] : cut[1]] if jnp.ndim(leaf) and leaf.shape[-1] == self.n else leaf

        return tree if cut is None else jax.tree.map(part, tree, is_leaf=lambda leaf: isinstance(leaf, Sparse))

    def join(self, parts: list[Any]) -> Any:
        """The inverse: parts as long as their shards are joined, the rest is shard 0's."""

        def one(*leaves: Any) -> Any:
            cut = all(jnp.ndim(leaf) and leaf.shape[-1] == stop - start for leaf, (start, stop) in zip(leaves, self.cuts, strict=True))
            return jnp.concatenate(leaves, axis=-1) if cut else leaves[0]

        return parts[0] if len(parts) == 1 else jax.tree.map(one, *parts)

    def params(self) -> Any:
        """What the rule says are the parameters, as float64 arrays."""
        w = jax.tree.map(lambda *leaves: jnp.stack(leaves), *self.w)
        found = self.join([self.rule.params(self.cut(w, c), s) for c, s in zip(self.cuts, self.s, strict=True)])
        return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), found)
