"""An exchange with the server inside the compiled call: the messages of one ask, folded in a fixed order, and their answers.

Every device sees the header (push, fetch, the sender's clock) of every message and so computes the same order, clocks and staleness. Where the bodies and the
server are is the placement's affair: whole on every device, or cut so that device k is shard k (`_lockstep_placement`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from hlt_train.devices import AXIS
from hlt_train.errors import UsageError
from hlt_train.strategies import SERVER, In, Out, PyTree, S, Strategy, W
from hlt_train.strategies._served import served
from hlt_train.transports._lockstep_reduce import mean, ordered_mean
from hlt_train.transports._lockstep_traffic import BINS, Counters, Pending, Traffic, choose, flag, row
from hlt_train.transports.keys import NETWORK_ACTOR, SERVER_ACTOR, actor_key

__all__ = ["Network", "World", "everyone", "exchange", "group_size", "one_alone"]


class Network(NamedTuple):
    """How messages travel.

    Attributes:
        arrival: order in which the server gets the messages of an exchange point: by worker ("fixed"), starting one worker later each time ("rotate"), or
            drawn from the seed ("permute"). A barrier (quorum 0) always takes them by worker.
        loss: probability that a datagram is lost.
        reorder: probability that a datagram to a peer is held back until the next exchange point.
        exchange: how the mean of the bodies is formed where a rule needs no more: "allreduce", or "alltoall" (reduce-scatter, ordered sum, gather).
        wire: number format of the bodies in "alltoall".
    """

    arrival: str = "fixed"
    loss: float = 0.0
    reorder: float = 0.0
    exchange: str = "allreduce"
    wire: str = "float32"


class World(NamedTuple):
    """Who takes part: n workers of whom this device is number `me`; gather: stacks a tree over them."""

    n: int
    me: Any
    gather: Callable[[PyTree], PyTree]
    counts: Any  # this device's counters count


def everyone() -> World:
    """All workers, one per device."""
    return World(lax.axis_size(AXIS), lax.axis_index(AXIS), lambda tree: lax.all_gather(tree, AXIS), True)


def one_alone() -> World:
    """Worker 0, whose state and messages are the same on all devices; those of device 0 count."""
    return World(1, 0, lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], tree), lax.axis_index(AXIS) == 0)


class Header(NamedTuple):
    """Of the n messages of an ask, by worker: push, fetch: bool `[n]`; seen: int32 `[n]`, the clock that the sender had seen."""

    push: Any
    fetch: Any
    seen: Any


class Folded(NamedTuple):
    """What the server made of the n messages of an ask. answers: stacked; rows: int32 `[n]`, the answer to each worker.

    clocks, staleness: int32 `[n]`, when each was answered; served: bool `[n]`, False for those that came too late.
    """

    answers: PyTree
    rows: Any
    clocks: Any
    staleness: Any
    served: Any


def group_size(rule: Strategy, n: int) -> tuple[int, int]:
    """(messages that are served, messages per `serve`) of the n messages of an ask. A lone worker waits for nobody."""
    taken = max(n + min(rule.quorum, 0), 1)
    return taken, rule.quorum if rule.quorum > 0 else taken


def exchange(
    rule: Strategy, network: Network, placement: Any, seed: int, w: W, s: S, traffic: Traffic, key: Any, point: Any, world: World
) -> tuple[W, S, Traffic]:
    """All asks of one exchange point with the server. `point` numbers it, for the keys."""
    for number in range(rule.asks):
        if not rule.wait:
            held: Pending = traffic.pending[number]
            w = choose(held.due, rule.take(w, held.answer, held.message), w)
            traffic = traffic._replace(seen=jnp.where(held.due, held.clock, traffic.seen))
        w, out = rule.ask(w, key if rule.asks == 1 else jax.random.fold_in(key, number))
        if not (isinstance(out.to, int) and out.to == SERVER):
            raise UsageError("this strategy addresses messages to other workers and does not say so: peers=True")
        w, s, traffic = _ask(
            rule, network, placement, seed, w, s, traffic, out, jax.random.fold_in(actor_key(seed, NETWORK_ACTOR, point), number), point, number, world
        )
    return w, s, traffic


def _ask(
    rule: Strategy, network: Network, placement: Any, seed: int, w: W, s: S, traffic: Traffic, out: Out, draws: Any, point: Any, number: int, world: World
) -> tuple[W, S, Traffic]:
    """One ask: its messages, the server, and what this worker gets back."""
    push, fetch = flag(out.push), flag(out.fetch)
    certain, answered = out.push is True or out.fetch is True, out.fetch is True
    counted = traffic.counters
    if rule.gates:
        counted = counted._replace(gated=counted.gated + (world.counts & ~push))
    if network.loss and not rule.reliable:
        lost = jax.random.uniform(jax.random.fold_in(draws, world.me), (2,)) < network.loss  # the message, its answer
        counted = counted._replace(sent=counted.sent + (world.counts & (push | fetch)), lost=counted.lost + (world.counts & (push | fetch) & lost[0]))
        push, fetch, certain, answered = push & ~lost[0], fetch & ~lost[0] & ~lost[1], False, False
    everybody = out.push is True and certain
    if everybody and answered and rule.wait and rule.quorum == 0:  # all messages are alike: nothing to ask the others
        head = Header(*(jnp.ones(world.n, bool),) * 2, jnp.full(world.n, traffic.seen))
    else:
        head = Header(*world.gather((push, fetch, traffic.seen)))

    def work() -> tuple[S, Any, PyTree, Any]:
        error = jnp.zeros(2)
        if rule.combine == "mean" and rule.quorum == 0 and not placement.cuts:
            body, error = mean(out.body, head.push, world.me, certain=everybody, exchange=network.exchange, wire=network.wire)
            new, clock, folded = _serve_mean(rule, s, traffic.clock, body, head)
        else:
            order = _order(network, seed, point, number, world.n)
            new, clock, folded = _fold(rule, s, traffic.clock, placement.collect(out.body, world), head, order, certain=everybody)
        answer = placement.hand_back(folded.answers, folded.rows, world)
        mine = row(world.me, (folded.clocks, folded.staleness, folded.served))
        return new, clock, answer, (*mine, error)

    if certain:
        new, clock, answer, mine = work()
    else:
        like = jax.eval_shape(work)[2:]
        idle = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        new, clock, answer, mine = lax.cond((head.push | head.fetch).any(), work, lambda: (s, traffic.clock, *idle))
    at, staleness, in_time, error = mine
    counted = _count(counted, push & world.counts, in_time, staleness, error)
    message = In((), push, fetch, jnp.asarray(world.me, jnp.int32), staleness)
    if rule.wait:
        w = choose(fetch, rule.take(w, answer, message), w, always=answered)
        traffic = traffic._replace(seen=jnp.where(fetch, at, traffic.seen))
    else:
        pending = list(traffic.pending)
        pending[number] = Pending(answer, message, fetch, at)
        traffic = traffic._replace(pending=tuple(pending))
    return w, new, traffic._replace(clock=clock, counters=counted)


def _count(counted: Counters, push: Any, in_time: Any, staleness: Any, error: Any) -> Counters:
    bins = (jnp.arange(BINS) == jnp.clip(staleness, 0, BINS - 1)) & push & in_time
    return counted._replace(
        applied=counted.applied + (push & in_time),
        late=counted.late + (push & ~in_time),
        staleness=counted.staleness + bins,
        coded=counted.coded + error[0].astype(jnp.int32),
        error=counted.error + error[1],
    )


def _order(network: Network, seed: int, point: Any, number: int, n: int) -> Any:
    """int32 `[n]`: the workers as their messages arrive; None: by worker."""
    if network.arrival == "fixed" or n == 1:
        return None
    if network.arrival == "rotate":
        return (jnp.arange(n) + point) % n
    return jax.random.permutation(jax.random.fold_in(actor_key(seed, SERVER_ACTOR, point), number), n)


def _serve_mean(rule: Strategy, s: S, clock: Any, body: PyTree, head: Header) -> tuple[S, Any, Folded]:
    """A barrier that needs only the mean of the bodies that are pushed: one message for all."""
    n, zero = head.push.shape[0], jnp.zeros_like(head.seen)
    staleness = clock - head.seen
    messages = In(jax.tree.map(lambda leaf: leaf[None], body), head.push.any()[None], head.fetch.any()[None], zero[:1], staleness.max()[None])
    s, answers = _served(rule, s, messages)
    clock = clock + head.push.any().astype(jnp.int32)
    return s, clock, Folded(answers, zero, jnp.full(n, clock), staleness, jnp.ones(n, bool))


def _fold(rule: Strategy, s: S, clock: Any, bodies: PyTree, head: Header, order: Any, *, certain: bool) -> tuple[S, Any, Folded]:
    """Serve the n messages in groups. What was not sent comes last in the order; the last group is filled up with messages that neither push nor fetch."""
    n = head.push.shape[0]
    taken, size = group_size(rule, n)
    groups = -(-taken // size)
    order = jnp.arange(n) if order is None else order
    if not certain and (size > 1 or taken < n) and rule.quorum != 0:
        order = order[jnp.argsort(~(head.push | head.fetch)[order], stable=True)]
    index = jnp.concatenate([order[:taken], jnp.full(groups * size - taken, n, order.dtype)])
    real = index < n

    def cut(leaf: Any) -> Any:
        return leaf.at[index].get(mode="clip").reshape(groups, size, *leaf.shape[1:])

    full = real.reshape(groups, size)
    stacked = (jax.tree.map(cut, bodies), cut(head.push) & full, cut(head.fetch) & full, cut(head.seen), index.reshape(groups, size))

    def serve(state: tuple[S, Any], group: Any) -> tuple[tuple[S, Any], Any]:
        s, clock = state
        body, push, fetch, then, source = group
        staleness = clock - then

        def now() -> tuple[S, PyTree]:
            messages = In(body, push, fetch, source.astype(jnp.int32), staleness)
            if rule.combine == "mean":
                messages = _reduced(messages, certain=certain and taken == groups * size)
            return _served(rule, s, messages)

        if certain:
            s, answers = now()
        else:
            like = jax.eval_shape(now)[1]
            s, answers = lax.cond((push | fetch).any(), now, lambda: (s, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)))
        clock = clock + push.any().astype(jnp.int32)
        return (s, clock), (answers, clock, staleness)

    if groups == 1:
        (s, clock), found = serve((s, clock), jax.tree.map(lambda leaf: leaf[0], stacked))
        answers, clocks, staleness = jax.tree.map(lambda leaf: leaf[None], found)
    else:
        (s, clock), (answers, clocks, staleness) = lax.scan(serve, (s, clock), stacked)
    place = jnp.full(n, -1).at[index].set(jnp.arange(groups * size), mode="drop")
    in_time = place >= 0
    place = jnp.maximum(place, 0)
    rows = place // size if rule.combine == "mean" else place
    answers = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), answers)
    return s, clock, Folded(answers, rows, clocks[place // size], staleness.reshape(-1)[place], in_time)


def _served(rule: Strategy, s: S, messages: In) -> tuple[S, PyTree]:
    """The rule's `serve`, compiled by itself: its bits do not depend on what surrounds it."""
    s, messages = lax.optimization_barrier((s, messages))
    found: tuple[S, PyTree] = lax.optimization_barrier(served(rule)(s, messages, rule.measure(s, messages)))
    return found


def _reduced(messages: In, *, certain: bool) -> In:
    """The messages of a group as one, with the mean of the bodies that are pushed."""
    return In(
        jax.tree.map(lambda leaf: ordered_mean(leaf, messages.push, certain=certain)[None], messages.body),
        messages.push.any()[None],
        messages.fetch.any()[None],
        messages.source[:1],
        messages.staleness.max()[None],
    )
