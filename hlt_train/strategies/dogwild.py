"""Dogwild (Noel and Osindero 2014, "Dogwild! Distributed Hogwild for CPU & GPU"; the exchange is that of the first author's code in Caffe, parallel.cpp).

No server and no reliable network. The parameters, as one vector, are cut into chunks that fit a datagram. Node i is the master of a contiguous 1/N of them and
a worker for the rest, and trains all the while.

- A master streams the absolute values of its chunks to the others, again and again, peer after peer and chunk after chunk.
- A worker that receives such values p of a chunk sees what it has moved by itself since the last ones: d = x - last. If a frame is free it sends d to the
  master and sets last = x = p + d; if none is, last = p, x = p + d, and d is kept for the next time.
- A master that receives d adds it: x[chunk] += d.

A lost frame of values costs nothing but time; a lost frame of differences loses exactly that d.

Here a frame is sent when a node asks, `fan` at a time; so what a worker receives leaves a note that a difference is due, and until it has gone x - last keeps
it. Of the frames up to one half are for differences that are due and the rest for the stream (all are for differences where a node is master of nothing).

The local step is SGD with momentum, v = mu v - rate g, x += v, which is off for the first `quiet` steps: the author found training less stable than on one
device, and that "disabling momentum at least at the beginning of training seems to help". The differences of all nodes add up at the master, as in Hogwild.

Deviation: in Caffe the solver writes x while it is read, without a lock; here an exchange falls between two batches.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hlt_train.errors import UsageError
from hlt_train.strategies import Array, Body, Grads, In, Info, Key, Out, Params, S, Scalar, Setup, Strategy, W
from hlt_train.strategies._flat import like, ravel

__all__ = ["dogwild"]


class Worker(NamedTuple):
    """A node, with a vector of n parameters in C chunks.

    Attributes:
        params: x. velocity: v.
        last: float32 [n], the master's values as this node last heard them, with what it has sent since.
        due: bool [C], a difference is to be sent. turn: int32, the chunk whose difference goes first.
        streamed: int32, values sent so far, modulo a full round of all own chunks to all peers.
        steps: int32. index: int32, who this is.
    """

    params: Params
    velocity: Params
    last: Array
    due: Array
    turn: Array
    streamed: Array
    steps: Array
    index: Array


def dogwild(setup: Setup, *, chunk: int = 360, fan: int = 8, momentum: float = 0.9, quiet: int = 1000) -> Strategy:
    """Nodes that train alone and keep one another near by unacknowledged datagrams of a few hundred parameters.

    The optimiser of the run is not used: the local step is SGD, with its rate.

    Args:
        setup: the run.
        chunk: parameters per datagram; 360 fit a UDP datagram of 1,472 bytes (the author's raw Ethernet frames took 374).
        fan: datagrams that a node sends after each batch.
        momentum: mu.
        quiet: first steps of a node without momentum.
    """
    if chunk < 1:
        raise UsageError(f"dogwild: chunks of {chunk} parameters", then="chunk of at least 1")
    if fan < 2:
        raise UsageError(f"dogwild: fan={fan} leaves no frame for the stream or none for the differences", then="fan of at least 2")
    if not 0 <= momentum < 1:
        raise UsageError(f"dogwild: momentum={momentum}", then="momentum from 0 to below 1")
    if quiet < 0:
        raise UsageError(f"dogwild: quiet={quiet} steps", then="quiet of at least 0")
    nodes = setup.workers

    def chunks(n: int) -> int:
        return -(-n // chunk)

    def master(c: Array, n: int) -> Array:
        return c * nodes // chunks(n)

    def own(index: Array, n: int) -> tuple[Array, Array]:
        """First own chunk, and how many there are: those c with c nodes // chunks == index."""
        first, end = (-(-i * chunks(n) // nodes) for i in (index, index + 1))
        return first, end - first

    def places(c: Array) -> Array:
        """Where the parameters of chunk c lie; in the last chunk also beyond the end."""
        return c * chunk + jnp.arange(chunk)

    def read(x: Array, c: Array) -> Array:
        return x.at[places(c)].get(mode="fill", fill_value=0)

    def init_worker(params: Params, info: Info) -> Worker:
        x = ravel(params)
        none = jnp.zeros((), jnp.int32)
        due = jnp.zeros(chunks(x.size), jnp.bool_)
        w = Worker(params, jax.tree.map(jnp.zeros_like, params), x, due, none, none, none, jnp.asarray(info.index, jnp.int32))
        apart: Worker = jax.tree.map(jnp.copy, w)  # no two leaves share a buffer: a transport may donate them
        return apart

    def step(w: Worker, _loss: Scalar, grads: Grads) -> Worker:
        rate, mu = setup.rate(w.steps), jnp.where(w.steps < quiet, 0.0, momentum)
        velocity = jax.tree.map(lambda v, g: mu * v - rate * g, w.velocity, grads)
        return w._replace(params=jax.tree.map(jnp.add, w.params, velocity), velocity=velocity, steps=w.steps + 1)

    def ask(w: Worker, _key: Key) -> tuple[Worker, Out]:
        x = ravel(w.params)
        first, owned = own(w.index, x.size)
        peers = max(nodes - 1, 1)
        frame = jnp.arange(fan)

        waiting = jnp.where(w.due, (jnp.arange(w.due.size) - w.turn) % w.due.size, w.due.size)  # differences from `turn` on, then all the rest
        replies = jnp.minimum(w.due.sum(), jnp.where(owned > 0, fan // 2, fan))
        ordered = jnp.argsort(waiting)
        reply = frame < replies
        differences = ordered[jnp.minimum(frame, w.due.size - 1)].astype(jnp.int32)

        cycle = jnp.maximum(owned, 1) * peers
        number = (w.streamed + frame - replies) % cycle
        values = first + number // peers

        c = jnp.where(reply, differences, values)
        here, heard = (jax.vmap(lambda c, v=v: read(v, c))(c) for v in (x, w.last))
        body = (c, jnp.where(reply[:, None], here - heard, here), reply)
        to = jnp.where(reply, master(c, x.size), (w.index + 1 + number % peers) % nodes)
        push = (reply | (owned > 0)) & (nodes > 1)

        sent = jnp.where(reply, c, w.due.size)  # beyond the end: nothing is written there
        last = w.last.at[jnp.where(reply[:, None], jax.vmap(places)(c), x.size)].set(here, mode="drop")
        turn = jnp.where(replies > 0, (differences[jnp.maximum(replies - 1, 0)] + 1) % w.due.size, w.turn)
        streamed = (w.streamed + fan - replies) % cycle
        w = w._replace(last=last, due=w.due.at[sent].set(False, mode="drop"), turn=turn, streamed=streamed)
        return w, Out(body, push, fetch=jnp.zeros(fan, jnp.bool_), to=to)

    def take(w: Worker, body: Body, _message: In) -> Worker:
        c, received, is_difference = body
        x = ravel(w.params)
        where = places(c)
        here, heard = read(x, c), read(w.last, c)
        moved = jnp.where(is_difference, here, here - heard)  # a master adds d to x; a worker moves what is its own onto the new values
        params = like(w.params, x.at[where].set(received + moved, mode="drop"))
        last = w.last.at[where].set(jnp.where(is_difference, heard, received), mode="drop")
        return w._replace(params=params, last=last, due=w.due.at[c].set(w.due[c] | ~is_difference))

    def parameters(w: W, _s: S) -> Params:
        """Each chunk from its master."""
        x = jax.vmap(ravel)(w.params)
        n = x.shape[1]
        whole = x[master(jnp.arange(n) // chunk, n), jnp.arange(n)]
        return like(jax.tree.map(lambda leaf: leaf[0], w.params), whole)

    return Strategy(
        init_worker=init_worker,
        point=lambda w: w.params,
        step=step,
        ask=ask,
        take=take,
        init_server=lambda _params, _info: (),
        serve=None,
        params=parameters,
        fan=fan,
        peers=True,
        reliable=False,
    )
