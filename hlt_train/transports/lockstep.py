"""Lockstep: the workers are the devices of one process and meet at a barrier inside one compiled call.

One call runs n <= `steps` batches. n is an argument of the compiled program, not a constant of it: there is one compilation, and the bits of a run do not
depend on how its steps were cut into calls. The server's state is computed on every device from the same messages, so it is equal everywhere.

Random keys are `fold_in(fold_in(key(seed), actor), step)`: actor k is worker k, and nothing is drawn in sequence, so a resumed run draws the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from hlt_train.devices import AXIS, parallel, place, replicate, workers
from hlt_train.errors import UsageError
from hlt_train.strategies import SERVER, Grads, In, Info, Out, Params, S, Strategy, W
from hlt_train.transports.keys import INIT, SERVER_ACTOR, actor_key

__all__ = ["INIT", "SERVER_ACTOR", "Carry", "Lockstep", "actor_key"]

PyTree = Any


class Carry(NamedTuple):
    """State of a run between calls; every leaf has a leading axis of one slice per device.

    worker: device k holds worker k's state. server: the same on every device. step: int32, batches done by each worker.
    """

    worker: W
    server: S
    step: Any


class Lockstep:
    """Runs a barrier strategy over the replicas of a mesh.

    Args:
        strategy: must have quorum 0; what lockstep cannot run is refused by name.
        mesh: see `devices.mesh`.
        gradient: (params, batch, key) -> (loss, grads) of one worker's batch.
        select: (resident, portion) -> (i -> batch): on a device, what step i of a call trains on. What it does before it knows i is done once per call.
        seed: of all actors' keys.
        steps: most batches per call.
    """

    def __init__(
        self,
        strategy: Strategy,
        mesh: Mesh,
        gradient: Callable[[Params, Any, Any], tuple[Any, Grads]],
        select: Callable[[PyTree, PyTree], Callable[[Any], PyTree]],
        *,
        seed: int,
        steps: int,
    ) -> None:
        _refuse(strategy)
        self.strategy, self.mesh, self.seed, self.steps = strategy, mesh, seed, steps
        self._gradient, self._select = gradient, select
        self._call = parallel(self._run, mesh, donate=(0,), shared=(3,), arguments=4)
        self._params = parallel(lambda carry: strategy.params(carry.worker, carry.server), mesh, arguments=1)

    def init(self, params: Params) -> Carry:
        """The state before the first batch, on the devices."""
        n = workers(self.mesh)
        each = [self.strategy.init_worker(params, Info(k, n, actor_key(self.seed, k, INIT))) for k in range(n)]
        server = self.strategy.init_server(params, Info(0, n, actor_key(self.seed, SERVER_ACTOR, INIT)))
        worker = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        return Carry(place(worker, self.mesh), replicate(server, self.mesh), place(np.zeros(n, np.int32), self.mesh))

    def dispatch(self, carry: Carry, resident: PyTree, portion: PyTree, n: int) -> tuple[Carry, jax.Array]:
        """Run the first `n` batches of `portion`; `carry` is consumed. Returns at once with the new state and the losses, float32 `[workers, steps]`."""
        result: tuple[Carry, jax.Array] = self._call(carry, resident, portion, np.int32(n))
        return result

    def params(self, carry: Carry) -> Params:
        """The parameters to validate and to export, one copy per device (leading axis)."""
        return self._params(carry)

    def compiled(self, carry: Carry, resident: PyTree, portion: PyTree) -> Any:
        """The compiled call, for its memory analysis."""
        return self._call.lower(carry, resident, portion, np.int32(1)).compile()  # type: ignore[attr-defined]

    def host(self, carry: Carry) -> PyTree:
        """The state as host arrays, the server's once: what a checkpoint holds."""
        first = jax.tree.map(lambda leaf: leaf[0], (carry.server, carry.step))
        return jax.device_get(jax.tree.map(_key_data, (carry.worker, *first)))

    def restore(self, fresh: Carry, state: PyTree) -> Carry:
        """The inverse of `host`; `fresh` is any state of the same run, for its types."""
        worker, server, step = jax.tree.map(_from_key_data, state, (fresh.worker, fresh.server, fresh.step))
        return Carry(place(worker, self.mesh), replicate(server, self.mesh), replicate(step, self.mesh))

    def _run(self, carry: Carry, resident: PyTree, portion: PyTree, n: Any) -> tuple[Carry, jax.Array]:
        batch = self._select(resident, portion)
        me = lax.axis_index(AXIS)

        def body(i: Any, state: tuple[Carry, jax.Array]) -> tuple[Carry, jax.Array]:
            (w, s, t), losses = state
            for_loss, for_ask = jax.random.split(actor_key(self.seed, me, t))
            loss, grads = self._gradient(self.strategy.point(w), batch(i), for_loss)
            w = self.strategy.step(w, loss, grads)
            if self.strategy.every == 1:
                w, s = self._exchange(w, s, for_ask, me)
            else:  # every device has the same t: all of them take the same branch, as collectives demand
                w, s = lax.cond((t + 1) % self.strategy.every == 0, lambda a: self._exchange(a[0], a[1], for_ask, me), lambda a: a, (w, s))
            return Carry(w, s, t + 1), losses.at[i].set(loss)

        done: tuple[Carry, jax.Array] = lax.fori_loop(0, n, body, (carry, jnp.zeros(self.steps, jnp.float32)))
        return done

    def _exchange(self, w: W, s: S, key: Any, me: Any) -> tuple[W, S]:
        """All asks of one exchange point."""
        rule = self.strategy
        for number in range(rule.asks):
            w, out = rule.ask(w, key if rule.asks == 1 else jax.random.fold_in(key, number))
            if not (isinstance(out.to, int) and out.to == SERVER):
                raise UsageError("lockstep cannot carry messages between workers: this strategy addresses its messages to other workers")
            messages = _mean(out) if rule.combine == "mean" else _gather(out)
            served = _serve(rule, s, messages)
            s, answers = _where((messages.push | messages.fetch).any(), served, (s, served[1]), always=out.push is True or out.fetch is True)
            answer, message = _row(0 if rule.combine == "mean" else me, (answers, messages._replace(body=())))
            w = _where(out.fetch, rule.take(w, answer, message), w, always=out.fetch is True)
        return w, s


def _refuse(rule: Strategy) -> None:
    """Refuse by name what a barrier over local devices cannot run."""
    reasons = {
        f"quorum={rule.quorum} (serves fewer messages than there are workers; lockstep runs barriers, quorum=0)": rule.quorum != 0,
        "batch (portions handed out by the server)": rule.batch is not None,
        "wait=False (overlap of exchange and computation)": not rule.wait,
        f"fan={rule.fan} (several datagrams per ask)": rule.fan != 1,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise UsageError(f"the lockstep transport cannot run this strategy: {'; '.join(found)}")


def _where(condition: Any, new: PyTree, old: PyTree, *, always: bool) -> PyTree:
    """`new` where the condition holds; without a select, and whatever the structure of `old`, where it always does."""
    return new if always else jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _from_key_data(leaf: Any, like: Any) -> Any:
    return jax.random.wrap_key_data(leaf) if _is_key(like) else leaf


def _row(index: Any, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, index, keepdims=False), tree)


def _flag(value: Any) -> jax.Array:
    return jnp.asarray(value, jnp.bool_)


def _gather(out: Out) -> In:
    """Every worker's message, in the order of the workers."""
    bodies, push, fetch = lax.all_gather((out.body, _flag(out.push), _flag(out.fetch)), AXIS)
    n = push.shape[0]
    return In(bodies, push, fetch, jnp.arange(n), jnp.zeros(n, jnp.int32))


def _mean(out: Out) -> In:
    """The mean of the bodies that are pushed, as one message."""
    push, fetch = _flag(out.push), _flag(out.fetch)
    if lax.axis_size(AXIS) == 1:
        body = out.body
    elif out.push is True:
        body = lax.pmean(out.body, AXIS)
    else:
        count = jnp.maximum(lax.psum(push.astype(jnp.int32), AXIS), 1)
        body = jax.tree.map(lambda leaf: lax.psum(jnp.where(push, leaf, 0), AXIS) / count, out.body)
    any_push, any_fetch = lax.pmax((push.astype(jnp.int32), fetch.astype(jnp.int32)), AXIS)
    return In(jax.tree.map(lambda leaf: leaf[None], body), any_push[None] > 0, any_fetch[None] > 0, jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32))


def _serve(rule: Strategy, s: S, messages: In) -> tuple[S, PyTree]:
    """The strategy's `serve`; without one the server adds the bodies that are pushed and answers with its state."""
    if rule.serve is not None:
        return rule.serve(s, messages, rule.measure(s, messages))
    n = messages.push.shape[0]
    total = jax.tree.map(lambda b: jnp.where(messages.push.reshape((n,) + (1,) * (b.ndim - 1)), b, 0).sum(axis=0), messages.body)
    s = jax.tree.map(jnp.add, s, total)
    return s, jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (n, *leaf.shape)), s)
