"""EASGD and EAMSGD against algorithms 1 and 2 in float64, the synchronous form against its linear recurrence."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from hlt_train.errors import UsageError
from hlt_train.strategies.easgd import easgd
from tests import quadratic
from tests.drive import Drive
from tests.quadratic import ALONE, MINIMA, START, STIFF, close, exact, fall, setup, stacked


def algorithm(order: list[int], workers: int, period: int, alpha: float, momentum: float) -> tuple[np.ndarray, list[np.ndarray]]:
    """Centre and workers: algorithm 2 (algorithm 1 without momentum), exchanges on batches period - 1, 2 period - 1, ..."""
    centre = START.astype(np.float64)
    own, v, t = [centre.copy() for _ in range(workers)], [centre * 0 for _ in range(workers)], [0] * workers
    for k in order:
        x = own[k]
        if (t[k] + 1) % period == 0:
            d = alpha * (x - centre)
            own[k], centre = own[k] - d, centre + d
        v[k] = momentum * v[k] - fall(t[k]) * exact(x + momentum * v[k], k, t[k])
        own[k] = own[k] + v[k]
        t[k] += 1
    return centre, own


@given(some.lists(some.integers(0, 2), min_size=1, max_size=15), some.integers(1, 3), some.sampled_from([0.0, 0.3]), some.sampled_from([0.0, 0.9]))
@settings(max_examples=8)
def test_any_order_is_the_papers_algorithm(order: list[int], period: int, alpha: float, momentum: float) -> None:
    rule = easgd(setup(3), period=period, alpha=alpha, momentum=momentum)
    drive = Drive(rule, START, quadratic.gradient, 3, jit=False).run(order)
    centre, own = algorithm(order, 3, period, alpha, momentum)
    close(drive.params(), centre)
    for k in range(3):
        close(drive.w[k].params, own[k])


def test_alpha_zero_are_independent_optimisers() -> None:
    drive = Drive(easgd(setup(2, optimiser=optax.adam), period=2, alpha=0.0), START, quadratic.gradient, 2).run([0, 1] * 10)
    for k in range(2):
        close(drive.w[k].params, quadratic.serial(optax.adam(fall), 10, k))
    np.testing.assert_array_equal(drive.params(), START)


@given(some.integers(0, 99), some.floats(0, 1), some.lists(some.booleans(), min_size=1, max_size=4))
@settings(max_examples=15)
def test_an_exchange_conserves_the_sum(seed: int, share: float, push: list[bool]) -> None:
    """x_i + centre at one exchange, and at a barrier the sum over all of them."""
    n = len(push)
    rule = easgd(setup(n), alpha=share / n, synchronous=True)
    x = np.random.default_rng(seed).normal(size=(n, 5)).astype(np.float32)
    c = np.random.default_rng(seed + 1).normal(size=5).astype(np.float32)
    centre, pulls = rule.serve(jnp.asarray(c), stacked(x, push), ())
    w = rule.init_worker(jnp.zeros(5), ALONE)
    after = np.stack([np.asarray(rule.take(w._replace(params=jnp.asarray(x[k])), pulls[k], stacked((), [True])).params) for k in range(n)])
    np.testing.assert_allclose(after.sum(axis=0) + centre, x.sum(axis=0) + c, atol=2e-6)
    np.testing.assert_array_equal(np.asarray(pulls)[~np.asarray(push)], 0)


@pytest.mark.parametrize("workers", [1, 3])
def test_synchronous_is_the_linear_recurrence(workers: int) -> None:
    """z = (x_1, ..., x_N, c) per element; z <- M z + eta h b with equations 5 and 6."""
    eta, beta, steps = 0.1, 0.6, 12
    alpha = beta / workers
    drive = Drive(easgd(setup(workers, lambda _t: eta), period=1, beta=beta, synchronous=True), START, quadratic.gradient, workers)
    z = np.repeat(START[None].astype(np.float64), workers + 1, axis=0)
    for t in range(steps):
        drive.run(range(workers))
        for e, h in enumerate(STIFF.astype(np.float64)):
            matrix = np.diag([1 - eta * h - alpha] * workers + [1 - beta])
            matrix[:-1, -1] = alpha
            matrix[-1, :-1] = beta / workers
            z[:, e] = matrix @ z[:, e] + np.append(eta * h * MINIMA[:workers, t, e], 0)
    close(drive.params(), z[-1])
    for k in range(workers):
        close(drive.w[k].params, z[k])


def test_beta_is_n_alpha() -> None:
    """By option, and in the centre: (1 - beta) c + beta mean(x)."""
    x, c = np.random.default_rng(2).normal(size=(3, 5)), np.ones(5, np.float32)
    by_beta, by_alpha = (easgd(setup(3), synchronous=True, **how) for how in ({"beta": 0.6}, {"beta": 0.1, "alpha": 0.2}))
    found = [rule.serve(jnp.asarray(c), stacked(x, [True] * 3), ())[0] for rule in (by_beta, by_alpha)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
    np.testing.assert_allclose(found[0], 0.4 * c + 0.6 * x.mean(axis=0), rtol=1e-5)


def test_eamsgd_without_momentum_is_easgd() -> None:
    order = [0, 1, 1, 0, 0, 1, 1, 1, 0, 0]
    found = [Drive(easgd(setup(2), period=2, momentum=delta), START, quadratic.gradient, 2).run(order) for delta in (0.0, 1e-30)]
    np.testing.assert_array_equal(found[0].params(), found[1].params())
    np.testing.assert_array_equal(found[0].w[1].params, found[1].w[1].params)
    assert found[0].w[0].velocity == ()


def test_asynchronous_or_barrier() -> None:
    assert (easgd(setup(2)).quorum, easgd(setup(2), synchronous=True).quorum) == (1, 0)
    assert easgd(setup(2), period=7).every == 7


@pytest.mark.parametrize("options", [{"period": 0}, {"beta": -0.1}, {"alpha": -0.1}, {"momentum": 1.5}, {"momentum": -0.1}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(options))}="):
        easgd(setup(), **options)


def test_an_exchange_that_overshoots_is_refused() -> None:
    easgd(setup(3), alpha=0.5, synchronous=True)
    with pytest.raises(UsageError, match=r"alpha=0\.6.*overshoots"):
        easgd(setup(3), alpha=0.6, synchronous=True)
    with pytest.raises(UsageError, match="overshoots"):
        easgd(setup(3), alpha=1.1)
