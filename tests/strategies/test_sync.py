"""Synchronous SGD against serial SGD and against the ordered mean of the same gradients."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

from hlt_train.strategies.sync import sync
from tests import convex

OPTIMISERS = {"sgd": optax.sgd(0.1), "adam": optax.adam(0.05), "momentum": optax.sgd(0.05, momentum=0.9)}


def serial(tx: optax.GradientTransformation, batches: tuple[np.ndarray, np.ndarray], workers: int) -> dict[str, np.ndarray]:
    """One process: per step the gradients of the workers' parts, one after the other, and their mean in the order of the workers."""
    x, y = convex.deal(batches, workers)

    @jax.jit
    def step(params, state, xs, ys):
        grads = [jax.grad(convex.loss)(params, xs[k], ys[k]) for k in range(workers)]
        total = grads[0]
        for more in grads[1:]:
            total = jax.tree.map(lambda a, b: a + b, total, more)
        updates, state = tx.update(jax.tree.map(lambda a: a / workers, total), state, params)
        return optax.apply_updates(params, updates), state

    params, state = jax.tree.map(jax.numpy.asarray, convex.START), tx.init(convex.START)
    for i in range(x.shape[1]):
        params, state = step(params, state, x[:, i], y[:, i])
    return jax.device_get(params)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_one_worker_is_serial_sgd(name: str) -> None:
    batches = convex.data(40, 16)
    lockstep = convex.build(sync(convex.setup(OPTIMISERS[name])), 1, 40)
    carry, _ = convex.run(lockstep, batches)
    expected = serial(OPTIMISERS[name], batches, 1)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-5, atol=1e-6), convex.final(lockstep, carry), expected))


@pytest.mark.parametrize("name", OPTIMISERS)
def test_two_workers_take_the_step_of_the_mean(name: str) -> None:
    """One step from the same point: to the bit against the ordered mean, to rounding against one worker with all rows."""
    batches = convex.data(1, 32)
    two = convex.build(sync(convex.setup(OPTIMISERS[name])), 2, 1)
    carry, losses = convex.run(two, batches)
    assert convex.same(convex.final(two, carry), serial(OPTIMISERS[name], batches, 2))
    one = convex.build(sync(convex.setup(OPTIMISERS[name])), 1, 1)
    alone, alone_losses = convex.run(one, batches)
    np.testing.assert_allclose(losses.mean(), alone_losses[0, 0], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(convex.final(two, carry)), jax.tree.leaves(convex.final(one, alone)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_many_steps_to_rounding() -> None:
    batches = convex.data(60, 32)
    found = {}
    for workers in (1, 2):
        lockstep = convex.build(sync(convex.setup(optax.sgd(0.05))), workers, 20)
        found[workers] = convex.final(lockstep, convex.run(lockstep, batches)[0])
    np.testing.assert_allclose(found[1]["w"], found[2]["w"], rtol=1e-4)


def test_server_is_the_same_on_every_device() -> None:
    lockstep = convex.build(sync(convex.setup(optax.adam(0.05))), 2, 10)
    carry, _ = convex.run(lockstep, convex.data(10, 8))
    for leaf in jax.tree.leaves(jax.device_get(carry.server)):
        assert (leaf == leaf[:1]).all()
    assert np.asarray(carry.step).tolist() == [10, 10]
