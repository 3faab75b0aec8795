"""FASGD against its equations in float64, and the gates of B-FASGD."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from hlt_train.errors import UsageError
from hlt_train.strategies.dynsgd import dynsgd
from hlt_train.strategies.fasgd import fasgd
from tests import quadratic
from tests.drive import Drive
from tests.quadratic import ALONE, START, close, exact, fall, setup, stacked

ORDER = [0, 1, 2, 2, 0, 1, 1, 0, 2, 0, 0, 1]


def equations(order: list[int], workers: int, variant: str, gamma: float, beta: float, eps: float) -> tuple[np.ndarray, float]:
    """The server's parameters and vbar."""
    zero = np.zeros(len(START))
    server, n, b, v = START.astype(np.float64), zero, zero, zero + (variant == "std")
    x, seen, t = [server] * workers, [0] * workers, [0] * workers
    for clock, k in enumerate(order):
        g = exact(x[k], k, t[k])
        n, b = gamma * n + (1 - gamma) * g**2, gamma * b + (1 - gamma) * g
        if variant == "std":
            v = beta * v + (1 - beta) * np.sqrt(n - b**2 + eps)
            below = v
        else:
            v = gamma * v + (1 - gamma) * abs(g)
            below = v + eps
        server = server - fall(clock / workers) / (below * (clock - seen[k] + 1)) * g
        x[k], seen[k], t[k] = server, clock + 1, t[k] + 1
    return server, v.mean()


@given(
    some.lists(some.integers(0, 2), min_size=1, max_size=10), some.sampled_from(["std", "abs"]), some.sampled_from([0.0, 0.7]), some.sampled_from([0.2, 0.9])
)
@settings(max_examples=6)
def test_any_order_is_the_equations(order: list[int], variant: Any, gamma: float, beta: float) -> None:
    rule = fasgd(setup(3), variant=variant, gamma=gamma, beta=beta, eps=0.01)
    drive = Drive(rule, START, quadratic.gradient, 3, jit=False).run(order)
    server, vbar = equations(order, 3, variant, gamma, beta, 0.01)
    np.testing.assert_allclose(drive.params(), server, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(drive.w[order[-1]].vbar, vbar, rtol=1e-4)


def test_v_frozen_at_one_is_dynsgd() -> None:
    found = [Drive(rule, START, quadratic.gradient, 3).run(ORDER) for rule in (fasgd(setup(3), beta=1.0), dynsgd(setup(3)))]
    close(found[0].params(), found[1].params())


def test_open_gates_always_send() -> None:
    rule = fasgd(setup(2))
    assert not rule.gates
    drive = Drive(rule, START, quadratic.gradient, 2).run([0, 1] * 10)
    assert [(m.push, m.fetch) for m in drive.sent] == [(True, True)] * 20


def test_closed_gates_send_the_first_gradient_and_no_more() -> None:
    rule = fasgd(setup(2), c_push=1e30, c_fetch=1e30)
    assert rule.gates
    drive = Drive(rule, START, quadratic.gradient, 2).run([0, 1] * 10)
    assert [(m.source, m.push, m.fetch) for m in drive.sent] == [(0, True, False), (1, True, False)]
    for k in range(2):
        np.testing.assert_array_equal(drive.w[k].params, START)


@pytest.mark.parametrize("vbar", [0.05, 1.0])
def test_send_rates_are_the_gates(vbar: float) -> None:
    """Binomial, 4 standard deviations; pushes and fetches are independent."""
    count, eps, c_push, c_fetch = 4000, 0.01, 0.5, 2.0
    rule = fasgd(setup(), eps=eps, c_push=c_push, c_fetch=c_fetch)
    w = rule.init_worker(jnp.asarray(START), ALONE)._replace(vbar=jnp.float32(vbar), pushed=jnp.asarray(True))
    push, fetch = jax.vmap(lambda key: rule.ask(w, key)[1][1:3])(jax.random.split(jax.random.key(3), count))
    p, f = (1 / (1 + c / (vbar + eps)) for c in (c_push, c_fetch))
    for sent, expected in ((push, p), (fetch, f), (push & fetch, p * f)):
        assert abs(float(sent.mean()) - expected) < 4 * np.sqrt(expected * (1 - expected) / count)


def test_a_push_that_is_not_made_applies_the_last_gradient_again() -> None:
    """Workers 0 and 1 push g0 and g1; then worker 0 only fetches, and later worker 1 does."""
    rule = fasgd(setup(2, lambda _t: 0.1), beta=1.0, c_push=1.0)
    g = np.random.default_rng(4).normal(size=(2, len(START)))
    s, x = rule.init_server(jnp.asarray(START), ALONE), START.astype(np.float64)
    nan = np.full((1, len(START)), np.nan)
    for body, push, source, staleness, gradient, tau in [
        (g[:1], True, 0, 0, g[0], 0),
        (g[1:], True, 1, 1, g[1], 1),
        (nan, False, 0, 1, g[0], 2),  # taken at clock 0; two gradients have been pushed since
        (g[:1], True, 0, 0, g[0], 0),
        (nan, False, 1, 0, g[1], 3),
    ]:
        s, (answer, _) = rule.serve(s, stacked(body, [push], source, staleness), ())
        x = x - 0.1 / (tau + 1) * gradient
        close(s.params, x)
        np.testing.assert_array_equal(answer[0], s.params)
    assert (int(s.pushes), int(s.updates)) == (3, 5)


def test_without_gates_and_a_push_the_server_does_not_move() -> None:
    rule = fasgd(setup())
    s = rule.init_server(jnp.asarray(START), ALONE)
    after, _ = rule.serve(s, stacked(np.full((1, len(START)), np.nan), [False]), ())
    for a, b in zip(jax.tree.leaves(s), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)


def test_gated_workers_still_learn() -> None:
    """Most fetches and some pushes dropped: the parameters end nearer to the mean minimum."""
    drive = Drive(fasgd(setup(2, lambda _t: 0.02), c_push=0.1, c_fetch=1.0), START, quadratic.gradient, 2).run([0, 1] * 30)
    sent, pushed, fetched = len(drive.sent), sum(m.push for m in drive.sent), sum(m.fetch for m in drive.sent)
    assert pushed < 60
    assert fetched < pushed <= sent
    target = quadratic.MINIMA[:2, :30].mean(axis=(0, 1))
    assert np.abs(drive.params() - target).sum() < 0.7 * np.abs(START - target).sum()


@pytest.mark.parametrize("options", [{"gamma": 1.1}, {"beta": -0.1}, {"eps": -1.0}, {"c_push": -1.0}, {"c_fetch": float("inf")}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(options))}="):
        fasgd(setup(), **options)
