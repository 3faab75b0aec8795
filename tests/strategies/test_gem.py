"""Gradient energy matching: a lone worker's steps have the size of its momentum, and the formula in float64 for several."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from hlt_train.errors import UsageError
from hlt_train.strategies.gem import gem
from tests import quadratic
from tests.drive import Drive
from tests.quadratic import ALONE, START, close, exact, fall, setup, stacked


def formula(order: list[int], workers: int, kappa: float, mu: float, clip: float) -> tuple[np.ndarray, list[np.ndarray]]:
    """The server's parameters and the commits in order."""
    server = START.astype(np.float64)
    s, m, t = [server] * workers, [server * 0] * workers, [0] * workers
    commits = []
    for k in order:
        d = -fall(t[k]) * exact(s[k], k, t[k])
        m[k] = mu * m[k] + d
        pi = np.clip((kappa * abs(m[k]) - abs(server - s[k])) / (abs(d) + 1e-16), 0, clip)
        commits.append(pi * d)
        server = server + pi * d
        s[k], t[k] = server, t[k] + 1
    return server, commits


def test_a_lone_workers_steps_have_the_size_of_the_momentum() -> None:
    """|step| = |m|, the momentum of SGD on the same gradients; where the clip binds, 5 |d|."""
    drive = Drive(gem(setup()), START, quadratic.gradient)
    m, before, free = np.zeros(len(START)), START.astype(np.float64), 0
    for t in range(20):
        d = -fall(t) * exact(before, 0, t)
        m = 0.9 * m + d
        after = drive.run([0]).params()
        np.testing.assert_allclose(abs(after - before), np.minimum(abs(m), 5 * abs(d)), rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(np.sign(after - before), np.sign(d))
        free += (abs(m) < 5 * abs(d)).sum()
        before = after
    assert free > 70


@given(some.lists(some.integers(0, 2), min_size=1, max_size=12), some.sampled_from([1.0, 2.0]), some.sampled_from([0.0, 0.9]), some.sampled_from([1.5, 5.0]))
@settings(max_examples=6)
def test_any_order_is_the_formula(order: list[int], kappa: float, mu: float, clip: float) -> None:
    drive = Drive(gem(setup(3), kappa=kappa, mu=mu, clip=clip), START, quadratic.gradient, 3, jit=False).run(order)
    server, commits = formula(order, 3, kappa, mu, clip)
    np.testing.assert_allclose(drive.params(), server, rtol=1e-4, atol=1e-4)
    for message, commit in zip([m for m in drive.sent if m.push], commits, strict=True):
        np.testing.assert_allclose(message.body, commit, rtol=1e-3, atol=1e-4)
    assert [(m.push, m.fetch) for m in drive.sent] == [(False, True), (True, False)] * len(order)


@given(some.integers(0, 999), some.floats(1e-6, 1e3), some.floats(0, 3))
@settings(max_examples=12)
def test_pi_is_from_zero_to_the_clip(seed: int, size: float, kappa: float) -> None:
    rng = np.random.default_rng(seed)
    m, d, s, theta = (jnp.asarray(rng.normal(size=5) * scale, jnp.float32) for scale in (size, 1, 1, 1))
    d = d.at[0].set(0)
    rule = gem(setup(), kappa=kappa)
    w = rule.init_worker(s, ALONE)._replace(momentum=m, delta=d)
    step = np.asarray(rule.take(w, theta, stacked((), [True])).delta)
    assert step[0] == 0
    assert ((step[1:] / d[1:] >= 0) & (step[1:] / d[1:] <= 5.001)).all()
    full = np.minimum(kappa * abs(m) / abs(d), 5) * abs(d)
    assert (abs(step)[1:] <= full[1:] * 1.001 + 1e-12).all()


def test_a_late_starter_sees_what_the_others_did() -> None:
    """Its first theta - s is their movement, not the size of the parameters."""
    drive = Drive(gem(setup(2)), START + 100, quadratic.gradient, 2).run([0])
    moved = drive.params() - (START + 100)
    assert np.abs(moved).max() > 1
    drive.run([1])
    _, second = [m.body for m in drive.sent if m.push]
    d = -fall(0) * exact(START.astype(np.float64) + 100, 1, 0)
    np.testing.assert_allclose(second, np.clip((abs(d) - abs(moved)) / abs(d), 0, 5) * d, rtol=1e-3, atol=1e-3)


def test_state_has_one_structure() -> None:
    rule = gem(setup())
    w = rule.init_worker(jnp.asarray(START), ALONE)
    fetching, out = rule.ask(w, ALONE.key)
    committing = rule.take(fetching, out.body, stacked((), [True]))
    done, _ = rule.ask(committing, ALONE.key)
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) for state in (w, fetching, committing, done)]
    assert shapes[1:] == shapes[:-1]
    close(done.params, committing.params + committing.delta)


@pytest.mark.parametrize("options", [{"kappa": -1.0}, {"mu": 1.1}, {"epsilon": -1e-3}, {"clip": float("nan")}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(options))}="):
        gem(setup(), **options)
