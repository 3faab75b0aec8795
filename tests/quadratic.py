"""A quadratic loss with a minimum of its own for every batch: gradients that NumPy knows in closed form, for the oracles of strategies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hlt_train.strategies import In, Info, Setup

N = 7  # parameters
BATCHES = 64
START = np.linspace(-1, 1, N).astype(np.float32)
STIFF = np.linspace(0.5, 2, N).astype(np.float32)
MINIMA = np.random.default_rng(0).normal(size=(5, BATCHES, N)).astype(np.float32)  # by worker and batch

ALONE = Info(0, 1, jax.random.key(0))


def gradient(params: Any, worker: Any, batch: Any, _key: Any = None) -> Any:
    """Loss and gradient at a vector."""
    off = params - jnp.asarray(MINIMA)[worker, batch]
    return 0.5 * (STIFF * off**2).sum(), STIFF * off


def exact(params: np.ndarray, worker: int, batch: int) -> np.ndarray:
    """The gradient in float64."""
    return STIFF.astype(np.float64) * (params - MINIMA[worker, batch])


def fall(t: Any) -> Any:
    """A learning rate that shows when its clock is wrong."""
    return 0.1 / (1 + 0.2 * t)


def setup(workers: int = 1, rate: Callable[[Any], Any] = fall, optimiser: Any = optax.sgd) -> Setup:
    return Setup(workers, rate, optimiser)


def stacked(body: Any, push: Any, source: Any = 0, staleness: Any = 0) -> In:
    """Messages as a server gets them, all of which want an answer; `source` and `staleness` for all or for each."""
    push = jnp.asarray(push)
    source, staleness = (jnp.broadcast_to(jnp.asarray(x, jnp.int32), push.shape) for x in (source, staleness))
    return In(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), body), push, jnp.ones_like(push), source, staleness)


def serial(tx: optax.GradientTransformation, steps: int, worker: int = 0) -> np.ndarray:
    """One worker alone."""
    params, state = jnp.asarray(START), tx.init(START)
    step = jax.jit(lambda p, s, t: tx.update(gradient(p, worker, t)[1], s, p))
    for t in range(steps):
        updates, state = step(params, state, t)
        params = params + updates
    return np.asarray(params, np.float64)


def close(found: Any, expected: Any) -> None:
    """Equal to the rounding of float32 over some tens of steps."""
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)
