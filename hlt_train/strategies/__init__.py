"""THE type: a distributed SGD variant is a few pure functions.

Every rule (one file each in this folder) is a `Strategy`; every transport (`hlt_train.transports`) runs any of them. The functions are pure, jit-able and
shape-static: no I/O, no wall clock, no transport. All state travels in the pytrees W (a worker's) and S (a server's), so a checkpoint is those pytrees, a
simulation is those functions under a virtual clock, and a replay is those functions fed from a log.

One exchange, seen from a worker: `point` says where the gradient is taken, `step` folds it in, `ask` says what to send, `take` folds in what came back.
Seen from a server: `serve` folds in `quorum` messages and answers each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

__all__ = ["SERVER", "In", "Info", "Out", "Strategy"]

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


class Info(NamedTuple):
    """Who an actor is: its index among `workers` (or shards) and its own random key."""

    index: Int
    workers: int
    key: Key


class Out(NamedTuple):
    """What a worker sends at an exchange point. With `push` and `fetch` both False nothing is sent (or a header only).

    Attributes:
        body: pytree of fixed structure; may be (rows, values, count) of fixed capacity, so that sparse rules touch only those rows.
        push: the body counts.
        fetch: an answer is wanted.
        to: SERVER or a worker's index.
    """

    body: Body
    push: Bool
    fetch: Bool
    to: Int = SERVER


class In(NamedTuple):
    """Messages as their receiver sees them: every leaf stacked on axis 0 in the order in which they count.

    `staleness` is the receiver's clock minus the clock that the sender had seen. With `combine="mean"` the body has a leading axis of length 1.
    """

    body: Body
    push: Bool
    fetch: Bool
    source: Int
    staleness: Int


def _nothing(_state: S, _messages: In) -> Array:
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
        measure: (S, In) -> small array, summed over the shards and handed to `serve`.
        params: (W, S) -> the parameters to validate, checkpoint as BEST and export. The server's where there is one.
        batch: W -> portion to evaluate, -1 none. None: the worker's own stream.
        quorum: messages per `serve`; 0 = every live worker (a barrier).
        combine: "each", or "mean" where `serve` needs only the mean of the bodies; a transport may then reduce on the way (In.body has leading axis 1).
        late: "serve", or "drop": counted, answered with the closed round's answer.
        order: "each": shards are independent; "all": one sequenced order.
        every, asks, fan: batches between exchanges; asks each; datagrams per ask.
        wait: False: the answer is taken at a later exchange point (overlap).
    """

    init_worker: Callable[[Params, Info], W]
    point: Callable[[W], Params]
    step: Callable[[W, Scalar, Grads], W]
    ask: Callable[[W, Key], tuple[W, Out]]
    take: Callable[[W, Body, In], W]
    init_server: Callable[[Params, Info], S]
    serve: Callable[[S, In, Array], tuple[S, Answers]] | None
    params: Callable[[W, S], Params]
    measure: Callable[[S, In], Array] = _nothing
    batch: Callable[[W], Int] | None = None
    quorum: int = 1
    combine: Literal["each", "mean"] = "each"
    late: Literal["serve", "drop"] = "serve"
    order: Literal["each", "all"] = "each"
    every: int = 1
    asks: int = 1
    fan: int = 1
    wait: bool = True
