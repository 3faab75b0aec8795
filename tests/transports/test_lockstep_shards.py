"""A server cut over the devices, and the exchanges of bodies of which only the mean is needed: the same bits as without."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hlt_train.errors import UsageError
from hlt_train.strategies.downpour import downpour
from hlt_train.strategies.easgd import easgd
from hlt_train.strategies.fasgd import fasgd
from hlt_train.strategies.sync import sync
from hlt_train.transports._lockstep_layout import elementwise, part, whole
from hlt_train.transports._lockstep_placement import Cut
from hlt_train.transports.lockstep import Lockstep, Network
from tests import convex
from tests.transports.test_lockstep_server import sometimes, stale

ADAM, CLIPPED = optax.adam(0.05), optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.05))
RULES = {
    "downpour": downpour(convex.setup(ADAM, 2)),
    "easgd": easgd(convex.setup(optax.sgd(0.05), 2), period=2),
    "waits not": stale(wait=False),
    "now and then": stale(ask=sometimes(2, 3)),
    "alone first": stale(warm=2),
    "late": stale(quorum=-1, late="drop"),
}


@pytest.mark.parametrize("size", [1, 2, 5, 64])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_parts_make_the_whole(size: int, n: int) -> None:
    leaf = np.arange(2 * size, dtype=np.float32).reshape(2, size)
    parts = part(jnp.asarray(leaf), n)
    assert parts.shape == (n, 2, -(-size // n))
    np.testing.assert_array_equal(whole(parts, size), leaf)


VECTOR = np.zeros(5, np.float32)


def vectored(rule: Any, **options: Any) -> Lockstep:
    """The convex problem whose parameters are one vector: whole or cut, the rule is compiled for that."""

    def gradient(params: Any, batch: Any, key: Any) -> Any:
        loss, grads = convex.gradient({"w": params[:4], "b": params[4]}, batch, key)
        return loss, jnp.append(grads["w"], grads["b"])

    return Lockstep(rule, convex.devices.mesh(2), gradient, convex.select, seed=7, steps=8, **options)


@pytest.mark.parametrize("name", RULES)
def test_a_cut_server_gives_the_same_bits(name: str) -> None:
    """States, clocks, counters and losses; and a checkpoint of one continues in the other."""
    batches, ends = convex.data(8, 16), {}
    for shards in ("never", "always"):
        lockstep = vectored(RULES[name], shards=shards)
        half, first = convex.run(lockstep, tuple(a[:5] for a in batches), lockstep.init(VECTOR))
        assert isinstance(lockstep.placement, Cut) == (shards == "always")
        stored = lockstep.host(half)
        end, losses = convex.run(lockstep, tuple(a[5:] for a in batches), half)
        ends[shards] = (lockstep, stored, lockstep.host(end), first, losses, convex.final(lockstep, end))
    assert convex.same(ends["never"][1:], ends["always"][1:])
    lockstep, stored = ends["always"][0], ends["never"][1]
    again, _ = convex.run(lockstep, tuple(a[5:] for a in batches), lockstep.restore(lockstep.init(VECTOR), stored))
    assert convex.same(lockstep.host(again), ends["never"][2])


@pytest.mark.parametrize("name", ["easgd", "waits not", "alone first"])
def test_a_checkpoint_has_the_tree_of_the_network(name: str) -> None:
    """Whatever the placement: cut and whole agree about the shapes, and to rounding about the numbers."""
    batches, ends = convex.data(6, 16), []
    for shards in ("never", "always"):
        lockstep = convex.build(RULES[name], 2, 6, shards=shards)
        carry, _ = convex.run(lockstep, batches)
        ends.append(lockstep.host(carry))
        assert convex.same(lockstep.host(lockstep.restore(lockstep.init(convex.START), ends[-1])), ends[-1])
    for a, b in zip(*(jax.tree.leaves(end) for end in ends), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(ends[0]) == jax.tree.structure(ends[1])


def test_which_servers_may_be_cut() -> None:
    """A clipped norm, a mean over v that is sent along, and a rule without a server may not."""
    assert elementwise(RULES["downpour"], 3)
    assert elementwise(sync(convex.setup(ADAM)), 2)
    assert not elementwise(downpour(convex.setup(CLIPPED, 2)), 2)
    assert not elementwise(fasgd(convex.setup(ADAM, 2), c_push=0.1), 2)
    assert not elementwise(RULES["downpour"]._replace(peers=True), 2)
    lockstep = convex.build(downpour(convex.setup(CLIPPED, 2)), 2, 1, shards="always")
    with pytest.raises(UsageError, match="same bits"):
        lockstep.init(convex.START)


def test_auto_cuts_large_parameters_only() -> None:
    large = {"w": np.zeros((300, 300), np.float32), "b": np.zeros(7, np.float32)}
    assert not isinstance(started(RULES["downpour"], convex.START).placement, Cut)
    assert isinstance(started(RULES["downpour"], large).placement, Cut)
    assert not isinstance(started(RULES["downpour"], {**large, "n": np.zeros(3, np.float16)}).placement, Cut)
    assert not isinstance(started(sync(convex.setup(ADAM)), large).placement, Cut)


def started(rule: Any, params: Any) -> Any:
    lockstep = convex.build(rule, 2, 1)
    lockstep.init(params)
    return lockstep


@pytest.mark.parametrize("tx", [ADAM, CLIPPED])
def test_alltoall_is_allreduce_to_the_bit(tx: optax.GradientTransformation) -> None:
    batches, ends = convex.data(12, 16), []
    for exchange in ("allreduce", "alltoall"):
        lockstep = vectored(sync(convex.setup(tx)), network=Network(exchange=exchange))
        carry, losses = convex.run(lockstep, batches, lockstep.init(VECTOR))
        assert isinstance(lockstep.placement, Cut) == (exchange == "alltoall" and tx is ADAM)
        ends.append((lockstep.host(carry), losses))
    assert convex.same(*ends)


@pytest.mark.parametrize(("wire", "least", "most"), [("bfloat16", 1e-4, 4e-3), ("float16", 1e-5, 1e-3), ("int8", 1e-4, 2e-2)])
def test_narrow_numbers(wire: str, least: float, most: float) -> None:
    """It still converges; the relative error per message is that of the format."""
    lockstep = convex.build(sync(convex.setup(optax.sgd(0.1))), 2, 25, network=Network(exchange="alltoall", wire=wire))
    batches = convex.data(150, 16)
    carry, _ = convex.run(lockstep, tuple(a[:20] for a in batches))  # later gradients are smaller than what float16 can tell from 0
    counted = lockstep.counters(carry)
    assert counted["coded"].tolist() == [40, 40]  # a body and a part of the mean, per step
    assert (least < counted["error"] / counted["coded"]).all()
    assert (counted["error"] / counted["coded"] < most).all()
    end, losses = convex.run(lockstep, tuple(a[20:] for a in batches), carry)
    assert losses[:, -5:].mean() < 1e-6
    assert convex.same(lockstep.host(convex.run(lockstep, batches, chunk=7)[0]), lockstep.host(end))


def test_nothing_is_coded_on_one_device_or_in_full() -> None:
    for workers, wire in ((1, "int8"), (2, "float32")):
        lockstep = convex.build(sync(convex.setup(CLIPPED)), workers, 3, network=Network(exchange="alltoall", wire=wire))
        carry, _ = convex.run(lockstep, convex.data(3, 16))
        assert not lockstep.counters(carry)["coded"].any()
        jax.block_until_ready(carry)
