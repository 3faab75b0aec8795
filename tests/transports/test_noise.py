"""The noise model against the closed form of SGD on a quadratic."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

from hlt_train.errors import UsageError
from hlt_train.strategies import Setup
from hlt_train.strategies.hogwild import hogwild
from hlt_train.strategies.sync import sync
from hlt_train.transports import noise
from hlt_train.transports.account import Coverage
from hlt_train.transports.program import Program
from hlt_train.transports.simulate import Simulation, Timing

H = noise.spectrum(6, 2.0, 5.0)
SIGMA = np.linspace(0.5, 2.0, 6).astype(np.float32)
START, RATE, ROWS = np.linspace(1, 2, 6).astype(np.float32), 0.2, 4


def chains(steps: int, count: int) -> np.ndarray:
    """`[count, steps, 6]`: independent runs of serial SGD."""
    gradient = noise.quadratic(H, SIGMA, ROWS)

    def one(key: jax.Array) -> jax.Array:
        def step(v: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
            v = v - RATE * gradient(v, noise.BATCH, k)[1]
            return v, v

        return jax.lax.scan(step, START, jax.random.split(key, steps))[1]

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), count)))


def test_spectrum() -> None:
    assert H[0] == 2
    np.testing.assert_allclose([H[-1], H[1] / H[0]], [0.4, H[2] / H[1]], rtol=1e-6)


def test_gradient_is_that_of_the_loss_without_noise() -> None:
    gradient = noise.quadratic(H, 0.0, 1)
    loss, grads = gradient(START, noise.BATCH, jax.random.key(0))
    np.testing.assert_allclose(grads, jax.grad(lambda v: gradient(v, noise.BATCH, jax.random.key(0))[0])(START), rtol=1e-6)
    np.testing.assert_allclose(loss, (H * START**2).sum() / 2, rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 5, 40])
def test_mean_and_variance_of_many_chains(steps: int) -> None:
    """Within 5 standard errors of 4000 chains: sqrt(variance / n) of a mean, sqrt(2 / n) of a variance."""
    count = 4000
    v = chains(steps, count)[:, -1]
    expected = noise.variance(H, SIGMA, ROWS, RATE, steps)
    assert (np.abs(v.mean(axis=0) - noise.mean(START, H, RATE, steps)) < 5 * np.sqrt(expected / count)).all()
    assert (np.abs(v.var(axis=0) / expected - 1) < 5 * np.sqrt(2 / count)).all()


def simulated(rule: object, workers: int, steps: int, latency: float = 0.0) -> np.ndarray:
    """float32 `[steps]`: the sum of h v^2 / 2 where gradients were taken, as the rule's workers saw it."""
    made = Program(rule, noise.quadratic(H, SIGMA, ROWS), START, noise.BATCH, workers=workers, seed=3)
    run = Simulation(made, lambda _share: noise.BATCH, steps=steps, coverage=Coverage(steps, workers), timing=Timing(latency=latency))
    run.advance(steps * workers)
    run.drain()
    return np.asarray(run.losses).reshape(steps, workers).mean(axis=1)


def setup(workers: int) -> Setup:
    return Setup(workers, optax.constant_schedule(RATE), optax.sgd)


def test_synchronous_workers_have_the_noise_of_one_large_batch() -> None:
    """The stationary loss, sum h variance / 2: its integrated autocorrelation is at most 1 / (rate h_min), which sets the error of a mean over time."""
    workers, steps, warm = 3, 600, 100
    losses = simulated(sync(setup(workers)), workers, steps)[warm:]
    parts = H * noise.variance(H, SIGMA, ROWS * workers, RATE)
    error = np.sqrt(np.sum(2 * (parts / 2) ** 2 * 2 / (RATE * H)) / len(losses))
    assert abs(losses.mean() - parts.sum() / 2) < 4 * error
    assert error < 0.1 * parts.sum()


def test_one_asynchronous_worker_is_serial_sgd() -> None:
    losses = simulated(hogwild(setup(1)), 1, 1300)[100:]
    parts = H * noise.variance(H, SIGMA, ROWS, RATE)
    error = np.sqrt(np.sum(2 * (parts / 2) ** 2 * 2 / (RATE * H)) / len(losses))
    assert abs(losses.mean() - parts.sum() / 2) < 4 * error


def test_refusals() -> None:
    for call, what in (
        (lambda: noise.spectrum(0), "no spectrum of 0 curvatures"),
        (lambda: noise.spectrum(3, condition=0.5), "with condition 0.5"),
        (lambda: noise.quadratic(np.array([1.0, -1.0]), 1.0, 1), "a vector of positive numbers"),
        (lambda: noise.quadratic(H, -1.0, 1), "gradient noise"),
        (lambda: noise.quadratic(H, 1.0, 0), "batches of 0 rows"),
    ):
        with pytest.raises(UsageError, match=what):
            call()
    with pytest.raises(UsageError, match="does not converge for a curvature of 2") as refused:
        noise.variance(H, SIGMA, ROWS, 1.5)
    assert refused.value.then == "a rate below 1"
