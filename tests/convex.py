"""A convex problem for distributed SGD rules: least squares of a linear map, trained through the lockstep transport."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hlt_train import devices, plugins
from hlt_train.strategies import Setup, Strategy
from hlt_train.transports.lockstep import Carry, Lockstep

TRUTH = np.array([1.0, -2.0, 3.0, 0.5], np.float32)
START = {"w": np.zeros(4, np.float32), "b": np.zeros((), np.float32)}


def setup(tx: optax.GradientTransformation, workers: int = 1, rate: float = 0.1, portions: int = 1) -> Setup:
    """A run with a fixed optimiser."""
    return Setup(workers, optax.constant_schedule(rate), lambda _schedule: tx, portions)


def strategy(name: str, learning_rate: float = 0.1, workers: int = 1, portions: int = 1, **options: Any) -> Strategy:
    made: Strategy = plugins.factory("strategies", name)(setup(optax.sgd(learning_rate), workers, learning_rate, portions), **options)
    return made


def data(steps: int, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`[steps, rows, 4]` and `[steps, rows]`."""
    x = np.random.default_rng(seed).normal(size=(steps, rows, 4)).astype(np.float32)
    return x, x @ TRUTH + 1


def loss(params: Any, x: Any, y: Any) -> Any:
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


def gradient(params: Any, batch: Any, _key: Any) -> Any:
    return jax.value_and_grad(loss)(params, *batch)


def deal(batches: tuple[np.ndarray, np.ndarray], workers: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of every step shared by the workers: `[workers, steps, rows / workers, ...]`."""
    x, y = ((a.reshape(a.shape[0], workers, -1, *a.shape[2:])).swapaxes(0, 1) for a in batches)
    return np.ascontiguousarray(x), np.ascontiguousarray(y)


def select(_resident: Any, portion: Any) -> Any:
    """Step i of a device's data; portions are counted through the rounds."""
    return lambda i: jax.tree.map(lambda leaf: leaf[i % leaf.shape[0]], portion)


def build(rule: Strategy, workers: int, steps: int, seed: int = 7, **options: Any) -> Lockstep:
    return Lockstep(rule, devices.mesh(workers), gradient, select, seed=seed, steps=steps, **options)


def run(
    lockstep: Lockstep, batches: tuple[np.ndarray, np.ndarray], carry: Carry | None = None, *, chunk: int | None = None, steps: int | None = None
) -> tuple[Carry, np.ndarray]:
    """All steps in dispatches of `chunk`. Returns the state and the losses `[workers, steps]`.

    Where the server hands out portions, every worker has all of them, in the order (step, worker), and there are `steps` steps.
    """
    n = devices.workers(lockstep.mesh)
    x, y = deal(batches, n)
    carry = lockstep.init(START) if carry is None else carry
    chunk = chunk or lockstep.steps
    if lockstep.strategy.batch is not None:
        every = tuple(np.stack([a.swapaxes(0, 1).reshape(-1, *a.shape[2:])] * n) for a in (x, y))
    steps = steps or x.shape[1]
    losses = []
    for start in range(0, steps, chunk):
        count = min(chunk, steps - start)
        part = every if lockstep.strategy.batch is not None else tuple(_padded(a[:, start : start + count], lockstep.steps) for a in (x, y))
        carry, found = lockstep.dispatch(carry, (), devices.place(part, lockstep.mesh), count)
        losses.append(np.asarray(found)[:, :count])
    return carry, np.concatenate(losses, axis=1)


def _padded(part: np.ndarray, steps: int) -> np.ndarray:
    whole = np.zeros((part.shape[0], steps, *part.shape[2:]), part.dtype)
    whole[:, : part.shape[1]] = part
    return whole


def final(lockstep: Lockstep, carry: Carry) -> dict[str, np.ndarray]:
    """The parameters of the first device; all devices must agree."""
    params = jax.device_get(lockstep.params(carry))
    for leaf in jax.tree.leaves(params):
        assert (leaf == leaf[:1]).all(), "devices disagree about the parameters"
    return jax.tree.map(lambda leaf: leaf[0], params)


def same(a: Any, b: Any) -> bool:
    """Equal to the bit."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
