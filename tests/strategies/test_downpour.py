"""Downpour against serial optimisers and against the paper's loop in float64."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from hlt_train.errors import UsageError
from hlt_train.strategies.downpour import downpour
from tests import quadratic
from tests.drive import Drive
from tests.quadratic import ALONE, START, close, exact, fall, setup, stacked


def loop(order: list[int], workers: int, n_push: int, n_fetch: int, local: float, rate: Any = fall) -> tuple[np.ndarray, list[np.ndarray]]:
    """The server's and the workers' parameters, plain SGD on the server."""
    server, updates = START.astype(np.float64), 0
    x = [server.copy() for _ in range(workers)]
    acc, t = [np.zeros(len(START)) for _ in range(workers)], [0] * workers
    for k in order:
        g = exact(x[k], k, t[k])
        acc[k] = acc[k] + g
        x[k] = x[k] - local * rate(t[k]) * g
        t[k] += 1
        if t[k] % n_push == 0:
            server = server - rate(updates * n_push / workers) * acc[k]
            updates += 1
            acc[k] = acc[k] * 0
        if t[k] % n_fetch == 0:
            x[k] = server.copy()
    return server, x


@pytest.mark.parametrize("name", ["sgd", "adam", "adagrad"])
def test_one_worker_is_the_serial_optimiser(name: str) -> None:
    optimiser = getattr(optax, name)
    drive = Drive(downpour(setup(optimiser=optimiser)), START, quadratic.gradient).run([0] * 30)
    close(drive.params(), quadratic.serial(optimiser(fall), 30))
    assert drive.staleness == [0] * 30


@pytest.mark.parametrize("shards", [1, 3])
def test_adagrad_on_the_shards_is_the_papers(shards: int) -> None:
    """eta_{i,K} = gamma / sqrt(sum_j dw_{i,j}^2), accumulated per shard from zero."""

    def adagrad(rate):
        return optax.adagrad(rate, initial_accumulator_value=0, eps=0)

    rule = downpour(setup(2, lambda _t: 0.5, adagrad), local=0.1)
    drive = Drive(rule, START, quadratic.gradient, 2, shards)
    server, squares = START.astype(np.float64), np.zeros(len(START))
    x, t = [server, server], [0, 0]
    for k in [0, 1, 1, 0, 1, 0, 0, 0, 1]:
        drive.run([k])
        g = exact(x[k], k, t[k])
        squares = squares + g**2
        server = server - 0.5 * g / np.sqrt(squares)
        x[k], t[k] = server, t[k] + 1
        close(drive.params(), server)


@given(some.lists(some.integers(0, 2), min_size=1, max_size=12), some.integers(1, 3), some.integers(1, 3), some.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=8)
def test_any_order_is_the_papers_loop(order: list[int], n_push: int, n_fetch: int, local: float) -> None:
    rule = downpour(setup(3), n_push=n_push, n_fetch=n_fetch, local=local)
    drive = Drive(rule, START, quadratic.gradient, 3, jit=False).run(order)
    server, x = loop(order, 3, n_push, n_fetch, local)
    close(drive.params(), server)
    for k in range(3):
        close(drive.w[k].params, x[k])


def test_a_push_holds_n_push_gradients() -> None:
    drive = Drive(downpour(setup(), n_push=4, n_fetch=1, local=0.0), START, quadratic.gradient).run([0] * 8)
    pushed = [m.body for m in drive.sent if m.push]
    assert len(pushed) == 2
    close(pushed[0], sum(exact(START, 0, t) for t in range(4)))
    assert [m.fetch for m in drive.sent] == [True] * 8


def test_what_the_end_of_the_run_cuts_off_is_pushed() -> None:
    drive = Drive(downpour(setup(), n_push=3, n_fetch=3, local=0.0), START, quadratic.gradient).run([0] * 2)
    assert drive.sent == []
    drive.exchange(0)
    close(drive.sent[0].body, exact(START, 0, 0) + exact(START, 0, 1))


def test_without_a_push_the_server_does_not_move() -> None:
    rule = downpour(setup(optimiser=optax.adam))
    s = rule.init_server(jnp.asarray(START), ALONE)
    after, answers = rule.serve(s, stacked(np.full((1, len(START)), np.nan), [False]), ())
    np.testing.assert_array_equal(after.params, s.params)
    np.testing.assert_array_equal(after.optimiser[0].mu, s.optimiser[0].mu)
    assert int(after.optimiser[0].count) == 0
    np.testing.assert_array_equal(answers, START[None])


def test_shards_serve_independently() -> None:
    """Two shards that see the same pushes in different orders: each is the server of its own order."""
    rule = downpour(setup(2, optimiser=optax.adam))
    bodies = np.random.default_rng(1).normal(size=(2, len(START))).astype(np.float32)

    def served(cut: slice, order: list[int]) -> np.ndarray:
        s = rule.init_server(jnp.asarray(START[cut]), ALONE)
        for k in order:
            s, _ = rule.serve(s, stacked(bodies[k : k + 1, cut], [True]), ())
        return np.asarray(s.params)

    whole = slice(None)
    np.testing.assert_array_equal(served(slice(0, 3), [0, 1]), served(whole, [0, 1])[:3])
    np.testing.assert_array_equal(served(slice(3, None), [1, 0]), served(whole, [1, 0])[3:])


def test_warm_start_and_the_exchange_interval() -> None:
    assert downpour(setup(), warm_start=5).warm == 5
    assert downpour(setup(), n_push=4, n_fetch=6).every == 2


@pytest.mark.parametrize("options", [{"n_push": 0}, {"n_fetch": 0}, {"local": -1.0}, {"local": float("nan")}, {"warm_start": -1}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(options))}="):
        downpour(setup(), **options)
