"""THE type: a distributed SGD variant is a few pure functions.

Every rule (one file each in this folder) is a `Strategy`; every transport (`hlt_train.transports`) runs any of them. The functions are pure, jit-able and
shape-static: no I/O, no wall clock, no transport. All state travels in the pytrees W (a worker's) and S (a server's), so a checkpoint is those pytrees, a
simulation is those functions under a virtual clock, and a replay is those functions fed from a log.

One exchange, seen from a worker: `point` says where the gradient is taken, `step` folds it in, `ask` says what to send, `take` folds in what came back.
Seen from a server: `serve` folds in `quorum` messages and answers each.

Parameters are whatever pytree the transport hands to `init_worker`: the network's own tree (lockstep), one float32 vector (processes, simulation), or a
contiguous slice of it (a server shard). Rules therefore treat them leaf by leaf, or ravel them. A leaf of a body or of an answer whose last axis follows the
length of that vector is cut over the shards and joined again; every other leaf goes whole to each shard, and comes back from shard 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax

__all__ = ["SERVER", "In", "Info", "Out", "Setup", "Sparse", "Strategy"]

PyTree = Any
Params = PyTree
Grads = PyTree
Body = PyTree
W = PyTree  # a worker's state
S = PyTree  # a server's (or a server shard's) state
Answers = PyTree
Int = Any  # int, or a scalar integer array
Bool = Any
Scalar = Any
Key = Any
Array = Any

SERVER = -1


class Setup(NamedTuple):
    """What a rule is told of the run it is made for: the argument of every factory.

    Attributes:
        workers: N.
        rate: learning rate over steps; a step is one batch of every worker.
        optimiser: schedule -> the optax optimiser that the user chose.
        portions: equal portions into which an epoch of the training data is cut, one per batch of a worker.
    """

    workers: int
    rate: optax.Schedule
    optimiser: Callable[[optax.Schedule], optax.GradientTransformation]
    portions: int = 1

    def tx(self, updates_per_step: float = 1.0) -> optax.GradientTransformation:
        """The user's optimiser for an actor that updates so many times per step: its schedule then ends with the run, whatever the rule counts."""
        return self.optimiser(lambda count: self.rate(count / updates_per_step))


class Info(NamedTuple):
    """Who an actor is: its index among `workers` (or shards) and its own random key."""

    index: Int
    workers: int
    key: Key


class Out(NamedTuple):
    """What a worker sends at an exchange point. With `push` and `fetch` both False nothing is sent.

    With `fan` above 1 every leaf, `push`, `fetch` and `to` included, has a leading axis of `fan` messages.

    Attributes:
        body: pytree of fixed structure.
        push: the body counts.
        fetch: an answer is wanted.
        to: SERVER or a worker's index.
    """

    body: Body
    push: Bool
    fetch: Bool
    to: Int = SERVER


class In(NamedTuple):
    """Messages as their receiver sees them: every leaf stacked on axis 0 in the order in which they count; `take` gets one, without that axis.

    `staleness` is the server's clock minus the clock that the sender had seen, and 0 for a peer's message. The clock counts updates: serves with a push among
    their messages. With `combine="mean"` the body has a leading axis of length 1. `take` gets the body beside it, and () here.
    """

    body: Body
    push: Bool
    fetch: Bool
    source: Int
    staleness: Int


class Sparse(NamedTuple):
    """A vector that is zero but for some entries: `value[j]` at `index[j]`. An index may come twice (the values add); one beyond the vector is padding."""

    index: Array  # int32 [m]
    value: Array  # float32 [m]

    def added_to(self, vector: Array) -> Array:
        """The sum with a dense vector."""
        return vector.at[self.index].add(self.value, mode="drop")

    def dense(self, n: int) -> Array:
        """As a vector of n entries."""
        return self.added_to(jnp.zeros(n, self.value.dtype))

    def part(self, start: Int, stop: Int) -> Sparse:
        """The entries that fall in vector[start:stop], numbered from start: what a server shard gets. The others become padding."""
        inside = (self.index >= start) & (self.index < stop)
        return Sparse(jnp.where(inside, self.index - start, stop - start), self.value)


def nothing(_state: S, _messages: In) -> Array:
    """The measure of rules that need none."""
    return ()


class Strategy(NamedTuple):
    """A distributed SGD rule: pure, jit-able, shape-static functions. No I/O, no wall clock, no transport.

    Attributes:
        init_worker: (params, info) -> W.
        point: W -> params, where the next gradient is taken.
        step: (W, loss, grads) -> W, after every batch.
        ask: (W, key) -> (W, Out), at an exchange point.
        take: (W, body, In) -> W, an answer or a peer's message; W may have moved on.
        init_server: (params, info) -> S.
        serve: (S, In, measured) -> (S, answers stacked like In). None: S + body, which may run lock-free.
        params: (W stacked over the workers, S) -> the parameters to validate, checkpoint as BEST and export. The server's where there is one.
        measure: (S, In) -> small array, summed over the shards and handed to `serve`.
        batch: W -> the portion to evaluate, -1 none. None: the worker's own stream. A portion's number counts through the rounds: number % portions names
            the data, number // portions the round; a number counts once, however often it was handed out.
        quorum: messages per `serve`. 0: every live worker, in the order of the workers (a barrier). -b: every live worker but b.
        combine: "each", or "mean" where `serve` needs only the mean of the bodies; a transport may then reduce on the way (In.body has leading axis 1).
        late: a message from before the present round is served like any other ("serve"), or counted and answered with the closed round's answer ("drop").
        order: "each": shards serve independently, as messages reach them; "all": all of them serve in the order of shard 0, which coordinates.
        every, asks, fan: batches between exchanges; asks each; messages per ask.
        wait: True: a worker waits for its answer. False: it goes on, and takes the answer at a later exchange point (overlap).
        peers: messages go to workers only; there is no server, and `serve` is never called.
        reliable: False: messages are datagrams, which may be lost or come out of order.
        gates: an ask that does not push gives up what it would have pushed (rather than keeping it for the next).
        warm: first steps that one worker does alone, with all the data of those steps.
        sparse: `step` may be given a `Sparse` for the gradient, and what is asked then touches its entries only.
    """

    init_worker: Callable[[Params, Info], W]
    point: Callable[[W], Params]
    step: Callable[[W, Scalar, Grads], W]
    ask: Callable[[W, Key], tuple[W, Out]]
    take: Callable[[W, Body, In], W]
    init_server: Callable[[Params, Info], S]
    serve: Callable[[S, In, Array], tuple[S, Answers]] | None
    params: Callable[[W, S], Params]
    measure: Callable[[S, In], Array] = nothing
    batch: Callable[[W], Int] | None = None
    quorum: int = 1
    combine: Literal["each", "mean"] = "each"
    late: Literal["serve", "drop"] = "serve"
    order: Literal["each", "all"] = "each"
    every: int = 1
    asks: int = 1
    fan: int = 1
    wait: bool = True
    peers: bool = False
    reliable: bool = True
    gates: bool = False
    warm: int = 0
    sparse: bool = False

    def messages(self, live: int) -> int:
        """How many messages a serve folds in while so many workers live."""
        return max(1, min(self.quorum if self.quorum > 0 else live + self.quorum, live))
