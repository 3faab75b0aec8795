"""Lockstep: the workers are the devices of the mesh and meet at every exchange point, inside one compiled call.

One call runs n <= `steps` batches. n is an argument of the compiled program, not a constant of it: there is one compilation, and the bits of a run do not
depend on how its steps were cut into calls. Any rule runs here:

- a barrier (quorum 0) is one `serve` of all messages; where it needs only their mean, a reduction;
- otherwise the messages of an exchange point are served in groups of `quorum`, in the order `arrival`; of a quorum -b the last b are late;
- messages to peers are taken at the exchange point at which they were sent, in the order of their senders;
- with `wait=False` an answer is taken at the next exchange point, before the worker asks again;
- a worker evaluates the portion that its state names where the rule has `batch`; without one (-1) it neither computes nor steps, and its loss repeats;
- the first `warm` steps are worker 0's alone: device i computes the i-th gradient of a step at the newest parameters, in turn. The others then start from
  the parameters of the rule.

Random keys are those of `keys.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from hlt_train.devices import AXIS, gathered, mine, parallel, place, replicate, spread, workers
from hlt_train.strategies import Grads, In, Info, Params, S, Strategy, W
from hlt_train.transports._lockstep_exchange import Network, World, everyone, exchange, one_alone
from hlt_train.transports._lockstep_layout import message_shapes
from hlt_train.transports._lockstep_peers import Datagrams, among_peers
from hlt_train.transports._lockstep_placement import Whole, placed
from hlt_train.transports._lockstep_refuse import refuse
from hlt_train.transports._lockstep_traffic import Pending, Traffic, choose, traffic
from hlt_train.transports.keys import INIT, SERVER_ACTOR, actor_key

__all__ = ["INIT", "SERVER_ACTOR", "Carry", "Lockstep", "Network", "actor_key"]

PyTree = Any


class Carry(NamedTuple):
    """State of a run between calls; every leaf has a leading axis of one slice per device of this process.

    worker: device k holds worker k's state. server: the same on every device, or shard k on device k. step: int32, batches dispatched to each worker.
    traffic: clocks, messages under way and counters.
    """

    worker: W
    server: S
    step: Any
    traffic: Traffic


class Lockstep:
    """Runs a strategy over the replicas of a mesh.

    Args:
        strategy: any rule; options that it has no use for are refused by name.
        mesh: see `devices.mesh`.
        gradient: (params, batch, key) -> (loss, grads) of one worker's batch.
        select: (resident, portion) -> (i -> batch): on a device, what step i of a call trains on; for a rule with `batch`, the portion of number i. What it
            does before it knows i is done once per call.
        seed: of all actors' keys.
        steps: most batches per call.
        network: how messages travel.
        shards: cut the server over the devices, so that device k is shard k: "auto" where that is worth it and gives the same bits, "always", "never".
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
        network: Network | None = None,
        shards: str = "auto",
    ) -> None:
        self.network = network or Network()
        refuse(strategy, self.network, workers(mesh), shards)
        self.strategy, self.mesh, self.seed, self.steps = strategy, mesh, seed, steps
        self._gradient, self._select, self._shards = gradient, select, shards
        self._placement: Whole | None = None
        self._call = parallel(self._run, mesh, donate=(0,), shared=(3,), arguments=4)
        self._params = parallel(self._parameters, mesh, arguments=1)

    @property
    def placement(self) -> Whole:
        """Where the server is; known after `init`."""
        assert self._placement is not None, "init comes first"
        return self._placement

    def init(self, params: Params) -> Carry:
        """The state before the first batch, on the devices."""
        n, rule = workers(self.mesh), self.strategy
        self._placement = placed(rule, params, n, self.network, self._shards)
        params = self.placement.enter(params)
        here = mine(self.mesh)
        each = [rule.init_worker(params, self._info(0 if rule.warm else k)) for k in range(here.start, here.stop)]
        worker = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        server = self.placement.server(params, lambda p, k: rule.init_server(p, Info(k, n, actor_key(self.seed, SERVER_ACTOR, INIT))))
        server = jax.tree.map(lambda leaf: leaf[here], server)
        return Carry(place(worker, self.mesh), place(server, self.mesh), *replicate((np.zeros((), np.int32), self._traffic(params)), self.mesh))

    def dispatch(self, carry: Carry, resident: PyTree, portion: PyTree, n: int) -> tuple[Carry, jax.Array]:
        """Run the first `n` batches of `portion`; `carry` is consumed. Returns at once with the new state and the losses, float32 `[workers, steps]`."""
        carry, losses = self._call(carry, resident, portion, np.int32(n))
        return carry, spread(losses, self.mesh)

    def params(self, carry: Carry) -> Params:
        """The parameters to validate and to export, one copy per device of this process (leading axis)."""
        return self._params(carry)

    def counters(self, carry: Carry) -> dict[str, np.ndarray]:
        """What became of each worker's messages: name -> `[workers]`, `staleness` `[workers, 64]`; see `Counters`."""
        return {name: np.asarray(leaf) for name, leaf in gathered(carry.traffic.counters, self.mesh)._asdict().items()}

    def report(self, carry: Carry) -> dict[str, Any]:
        """What became of the messages so far, over all workers, for the metrics; nothing for a barrier whose numbers are not narrowed."""
        rule = self.strategy
        if rule.quorum == 0 and not rule.peers and self.network.wire == "float32":
            return {}
        found = self.counters(carry)
        bins = found["staleness"].sum(axis=0, dtype=np.int64)
        totals = {name: int(found[name].sum(dtype=np.int64)) for name in ("applied", "late", "gated", "sent", "lost", "coded")}
        mean = float(bins @ np.arange(len(bins)) / max(int(bins.sum()), 1))
        error = float(found["error"].sum(dtype=np.float64) / max(totals["coded"], 1))
        return {"messages": {**totals, "mean_staleness": mean, "mean_relative_error": error}}

    def compiled(self, carry: Carry, resident: PyTree, portion: PyTree) -> Any:
        """The compiled call, for its memory analysis."""
        return self._call.lower(carry, resident, portion, np.int32(1)).compile()  # type: ignore[attr-defined]

    def host(self, carry: Carry) -> PyTree:
        """The state as host arrays, the server's and the step once: what a checkpoint holds."""
        state = jax.tree.map(_key_data, carry)
        worker, old = gathered((state.worker, state.traffic), self.mesh)
        server = gathered(state.server, self.mesh) if self.placement.cuts else jax.device_get(state.server)
        worker, server, pending = self.placement.store(worker, server, old.pending)
        return worker, server, jax.device_get(state.step)[0], old._replace(pending=pending)

    def restore(self, fresh: Carry, state: PyTree) -> Carry:
        """The inverse of `host`; `fresh` is any state of the same run, for its types."""
        worker, server, step, old = state
        worker, server, pending = self.placement.recall(worker, server, old.pending)
        here = mine(self.mesh)
        parts = jax.tree.map(lambda leaf: leaf[here], (worker, server, old._replace(pending=pending)))
        worker, server, old = jax.tree.map(_from_key_data, parts, (fresh.worker, fresh.server, fresh.traffic))
        return Carry(place(worker, self.mesh), place(server, self.mesh), replicate(step, self.mesh), place(old, self.mesh))

    def _info(self, k: Any) -> Info:
        return Info(k, workers(self.mesh), actor_key(self.seed, k, INIT))

    def _traffic(self, params: PyTree) -> Traffic:
        """Before the first message; params: as the rule sees them."""
        rule = self.strategy
        if rule.wait and not (rule.peers and self.network.reorder):
            return traffic(loss=rule.batch is not None, pending=(), held=())
        body, answer, _ = message_shapes(rule, params, workers(self.mesh))
        body, answer = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), (body, answer))
        if rule.peers and self.network.reorder:
            none = np.zeros(rule.fan, bool)
            body = jax.tree.map(lambda leaf: leaf[None], body) if rule.fan == 1 else body
            return traffic(loss=rule.batch is not None, pending=(), held=(Datagrams(body, none, none, np.zeros(rule.fan, np.int32), none),) * rule.asks)
        no, zero = np.zeros((), bool), np.zeros((), np.int32)
        pending = () if rule.peers else (Pending(answer, In((), no, no, zero, zero), no, zero),) * rule.asks
        return traffic(loss=rule.batch is not None, pending=pending, held=())

    def _parameters(self, carry: Carry) -> Params:
        every = lax.all_gather(carry.worker, AXIS)
        return self.placement.leave(self.strategy.params(every, self.placement.joined(carry.server)))

    def _run(self, carry: Carry, resident: PyTree, portion: PyTree, n: Any) -> tuple[Carry, jax.Array]:
        batch, rule = self._select(resident, portion), self.strategy

        def body(i: Any, state: tuple[Carry, jax.Array]) -> tuple[Carry, jax.Array]:
            before, losses = state
            if rule.warm:
                done, loss = lax.cond(before.step < rule.warm, lambda c: self._warm(c, batch, i), lambda c: self._step(c, batch, i), before)
            else:
                done, loss = self._step(before, batch, i)
            return done._replace(step=before.step + 1), losses.at[i].set(loss)

        found: tuple[Carry, jax.Array] = lax.fori_loop(0, n, body, (carry, jnp.zeros(self.steps, jnp.float32)))
        return found

    def _step(self, carry: Carry, batch: Callable[[Any], PyTree], i: Any) -> tuple[Carry, Any]:
        """One batch of every worker, and the exchange if it is due."""
        rule, t, me = self.strategy, carry.step, lax.axis_index(AXIS)
        for_loss, for_ask = jax.random.split(actor_key(self.seed, me, t))
        w, old, loss = carry.worker, carry.traffic, None
        if rule.batch is None:
            loss, grads = self._grads(w, batch(i), for_loss)
            w = rule.step(w, loss, grads)
        else:
            number = jnp.asarray(rule.batch(w), jnp.int32)

            def evaluate() -> tuple[W, Any]:
                loss, grads = self._grads(w, batch(number), for_loss)
                return rule.step(w, loss, grads), loss

            w, loss = lax.cond(number >= 0, evaluate, lambda: (w, old.loss))
            old = old._replace(loss=loss)
        if rule.every == 1:
            w, s, old = self._exchange(w, carry.server, old, for_ask, t, everyone())
        else:  # every device has the same t: all of them take the same branch, as collectives demand
            due = (t + 1) % rule.every == 0
            w, s, old = lax.cond(due, lambda a: self._exchange(a[0], a[1], a[2], for_ask, t, everyone()), lambda a: a, (w, carry.server, old))
        return Carry(w, s, t, old), loss

    def _warm(self, carry: Carry, batch: Callable[[Any], PyTree], i: Any) -> tuple[Carry, Any]:
        """A step of worker 0 alone: one batch after the other, each on the device that has its data. All devices hold the same worker meanwhile."""
        rule, t, me = self.strategy, carry.step, lax.axis_index(AXIS)
        n = lax.axis_size(AXIS)

        def one(j: Any, state: tuple[W, S, Traffic, Any]) -> tuple[W, S, Traffic, Any]:
            w, s, old, mine = state
            for_loss, for_ask = jax.random.split(jax.random.fold_in(actor_key(self.seed, 0, t), j))

            def gradient() -> Any:
                return self._grads(w, batch(i), for_loss)

            none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(gradient))
            loss, grads = lax.psum(lax.cond(me == j, gradient, lambda: none), AXIS)
            w = rule.step(w, loss, grads)
            due, point = (t * n + j + 1) % rule.every == 0, t * n + j
            if rule.every == 1:
                w, s, old = self._exchange(w, s, old, for_ask, point, one_alone())
            else:
                w, s, old = lax.cond(due, lambda a: self._exchange(a[0], a[1], a[2], for_ask, point, one_alone()), lambda a: a, (w, s, old))
            return w, s, old, jnp.where(me == j, loss, mine)

        w, s, old, loss = lax.fori_loop(0, n, one, (carry.worker, carry.server, carry.traffic, jnp.float32(0)))

        def handed_over() -> tuple[W, Traffic]:
            every = lax.all_gather(w, AXIS)
            params = rule.params(every, self.placement.joined(s))
            fresh = self._traffic(params)._replace(clock=old.clock, seen=old.clock, counters=old.counters)
            chosen: tuple[W, Traffic] = choose(me == 0, (w, old), (rule.init_worker(params, self._info(me)), fresh))
            return chosen

        w, old = lax.cond(t + 1 == rule.warm, handed_over, lambda: (w, old))
        return Carry(w, s, t, old), loss

    def _grads(self, w: W, batch: PyTree, key: Any) -> tuple[Any, Grads]:
        loss, grads = self._gradient(self.placement.leave(self.strategy.point(w)), batch, key)
        return loss, self.placement.enter(grads)

    def _exchange(self, w: W, s: S, old: Traffic, key: Any, point: Any, world: World) -> tuple[W, S, Traffic]:
        if self.strategy.peers:
            w, old = among_peers(self.strategy, self.network, self.seed, w, old, key, point, world)
            return w, s, old
        return exchange(self.strategy, self.network, self.placement, self.seed, w, s, old, key, point, world)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _from_key_data(leaf: Any, like: Any) -> Any:
    return jax.random.wrap_key_data(leaf) if _is_key(like) else leaf
