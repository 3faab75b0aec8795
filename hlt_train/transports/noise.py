"""The noise model: stochastic gradients of a quadratic, in place of a network, for simulations of thousands of workers.

    loss(v) = sum_i h_i v_i^2 / 2,   g_i = h_i v_i + sigma_i z_i / sqrt(b),   z standard normal, new for each batch of each worker

h is a spectrum of curvatures, sigma the standard deviation of one example's gradient, b the rows of a worker's batch. This is SGD near a minimum, seen through
a second-order expansion whose noise does not depend on the place (Mandt, Hoffman, Blei 2017, "Stochastic Gradient Descent as Approximate Bayesian Inference",
section 2.2). A batch costs some microseconds, needs no data, and leaves everything else of a simulation as it is: clocks, messages, staleness, failures.

What it predicts: for which rates, delays and numbers of workers a rule is stable; how fast each curvature converges, and to which variance; what staleness,
dropped gradients and bandwidth cost in updates. What it does not: anything in which the curvature or the noise changes along the way (the beginning of a
training, warm-up, generalisation, batch sizes beyond the critical one of a real loss), correlations between the coordinates' noises, sparsity.

Plain serial SGD of rate eta has a closed form, `mean` and `variance`, to which a rule can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hlt_train.errors import UsageError

__all__ = ["BATCH", "mean", "quadratic", "spectrum", "variance"]

BATCH: tuple[()] = ()  # a share of data that needs none


def spectrum(dimension: int, largest: float = 1.0, condition: float = 100.0) -> np.ndarray:
    """float32 `[dimension]`: curvatures from `largest` down to `largest / condition`, evenly spaced in their logarithm."""
    if dimension < 1 or not largest > 0 or not condition >= 1:
        what = f"no spectrum of {dimension} curvatures up to {largest:g} with condition {condition:g}"
        raise UsageError(what, then="dimension of at least 1, largest above 0, condition of at least 1")
    return np.geomspace(largest, largest / condition, dimension).astype(np.float32)


def quadratic(curvature: np.ndarray, sigma: np.ndarray | float, batch: int) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    """The gradient of a `Program`, whose batch is then `BATCH`, whatever the share.

    Args:
        curvature: float `[n]`, above 0: the second derivatives h.
        sigma: float `[n]` or one number, not negative: standard deviation of the gradient of one example, in units of the gradient.
        batch: rows of a worker's batch.

    Returns:
        (vector `[n]`, batch, key) -> (loss, gradient `[n]`). The loss is that of the quadratic, without noise.
    """
    h = np.asarray(curvature, np.float32)
    if h.ndim != 1 or not len(h) or not (np.isfinite(h) & (h > 0)).all():
        raise UsageError("curvatures are a vector of positive numbers", then="noise.spectrum makes one")
    scale = np.broadcast_to(np.asarray(sigma, np.float32), h.shape)
    if batch < 1 or not (np.isfinite(scale) & (scale >= 0)).all():
        raise UsageError(f"gradient noise of batches of {batch} rows", then="sigma of 0 or more for each curvature, batch of at least 1")
    scale = scale / np.sqrt(np.float32(batch))

    def gradient(vector: Any, _batch: Any, key: Any) -> tuple[Any, Any]:
        return 0.5 * jnp.sum(h * vector**2), h * vector + scale * jax.random.normal(key, h.shape)

    return gradient


def mean(start: np.ndarray, curvature: np.ndarray, rate: float, steps: int) -> np.ndarray:
    """float64 `[n]`: the expectation of v after `steps` steps of serial SGD, (1 - rate h)^steps start."""
    factor: np.ndarray = (1 - rate * np.asarray(curvature, np.float64)) ** steps
    return factor * np.asarray(start, np.float64)


def variance(curvature: np.ndarray, sigma: np.ndarray | float, batch: int, rate: float, steps: int | None = None) -> np.ndarray:
    """float64 `[n]`: the variance of v after `steps` steps of serial SGD from a point; None: stationary, rate sigma^2 / (batch h (2 - rate h)).

    `batch` is the rows of an update: for N synchronous workers with b rows each, N b.
    """
    h = np.asarray(curvature, np.float64)
    if not (np.abs(1 - rate * h) < 1).all():
        raise UsageError(f"SGD with rate {rate:g} does not converge for a curvature of {h.max():g}", then=f"a rate below {2 / h.max():g}")
    stationary: np.ndarray = rate * np.asarray(sigma, np.float64) ** 2 / (batch * h * (2 - rate * h))
    return stationary if steps is None else stationary * (1 - (1 - rate * h) ** (2 * steps))
