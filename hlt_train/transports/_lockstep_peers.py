"""Messages from worker to worker inside the compiled call: delivered at the exchange point at which they were sent, in the order of their senders.

All messages of an ask are sent before any of them is taken. A rule with `reliable=False` sends datagrams: the network loses each with probability `loss` and
holds it back until the next exchange point with probability `reorder`; it then comes after the messages of that point.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from hlt_train.strategies import In, Out, PyTree, Strategy, W
from hlt_train.transports._lockstep_exchange import Network, World
from hlt_train.transports._lockstep_traffic import Traffic, flag
from hlt_train.transports.keys import NETWORK_ACTOR, actor_key

__all__ = ["Datagrams", "among_peers", "fanned"]


class Datagrams(NamedTuple):
    """The messages of one worker's ask: body: leaves `[fan, ...]`; push, fetch, going: bool `[fan]`; to: int32 `[fan]`. going: it is under way."""

    body: PyTree
    push: Any
    fetch: Any
    to: Any
    going: Any


def fanned(out: Out, fan: int) -> Datagrams:
    """What a worker sends, with the axis of its messages."""
    body = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], out.body) if fan == 1 else out.body
    push, fetch = (jnp.broadcast_to(flag(value), (fan,)) for value in (out.push, out.fetch))
    return Datagrams(body, push, fetch, jnp.broadcast_to(jnp.asarray(out.to, jnp.int32), (fan,)), push | fetch)


def among_peers(rule: Strategy, network: Network, seed: int, w: W, traffic: Traffic, key: Any, point: Any, world: World) -> tuple[W, Traffic]:
    """All asks of one exchange point of a rule without a server. `point` numbers it, for the keys."""
    for number in range(rule.asks):
        w, out = rule.ask(w, key if rule.asks == 1 else jax.random.fold_in(key, number))
        sent = fanned(out, rule.fan)
        count = traffic.counters
        count = count._replace(sent=count.sent + sent.going.sum(dtype=jnp.int32))
        if rule.gates:
            count = count._replace(gated=count.gated + (~sent.push).sum(dtype=jnp.int32))
        held = None
        if not rule.reliable:
            draws = jax.random.fold_in(jax.random.fold_in(actor_key(seed, NETWORK_ACTOR, point), number), world.me)
            chance = jax.random.uniform(draws, (2, rule.fan))
            lost, late = chance[0] < network.loss, chance[1] < network.reorder
            count = count._replace(lost=count.lost + (sent.going & lost).sum(dtype=jnp.int32))
            if network.reorder:
                held = sent._replace(going=sent.going & ~lost & late)
                sent = sent._replace(going=sent.going & ~lost & ~late)
            else:
                sent = sent._replace(going=sent.going & ~lost)
        w, taken = _deliver(rule, w, sent, world)
        if held is not None:
            w, more = _deliver(rule, w, traffic.held[number], world)
            taken = taken + more
            traffic = traffic._replace(held=(*traffic.held[:number], held, *traffic.held[number + 1 :]))
        traffic = traffic._replace(counters=count._replace(applied=count.applied + taken))
    return w, traffic


def _deliver(rule: Strategy, w: W, sent: Datagrams, world: World) -> tuple[W, Any]:
    """Take what is addressed to this worker, in the order of the senders. Returns how many messages that were."""
    header = world.gather(sent._replace(body=()))

    def some() -> tuple[W, Any]:
        every = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), header._replace(body=world.gather(sent.body)))
        mine = every.going & (every.to == world.me)

        def one(w: W, message: Any) -> tuple[W, None]:
            body, push, fetch, source, here = message
            return lax.cond(here, lambda: rule.take(w, body, In((), push, fetch, source, jnp.int32(0))), lambda: w), None

        source = jnp.repeat(jnp.arange(world.n, dtype=jnp.int32), rule.fan)
        w_new, _ = lax.scan(one, w, (every.body, every.push, every.fetch, source, mine))
        return w_new, mine.sum(dtype=jnp.int32)

    found: tuple[W, Any] = lax.cond(header.going.any(), some, lambda: (w, jnp.zeros((), jnp.int32)))
    return found
