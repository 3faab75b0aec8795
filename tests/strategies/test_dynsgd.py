"""Staleness-aware SGD: fresh gradients are SGD's, stale ones count 1 / (tau + 1), and n-softsync in float64."""

from __future__ import annotations

import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from hlt_train.errors import UsageError
from hlt_train.strategies.dynsgd import dynsgd
from hlt_train.strategies.sync import sync
from tests import quadratic
from tests.drive import Drive
from tests.quadratic import ALONE, START, close, exact, fall, setup, stacked


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_fresh_gradients_are_the_serial_optimisers(name: str) -> None:
    optimiser = getattr(optax, name)
    drive = Drive(dynsgd(setup(optimiser=optimiser)), START, quadratic.gradient).run([0] * 20)
    close(drive.params(), quadratic.serial(optimiser(fall), 20))
    assert drive.staleness == [0] * 20


@pytest.mark.parametrize("workers", [2, 5])
def test_round_robin_is_stale_by_n_minus_one(workers: int) -> None:
    drive = Drive(dynsgd(setup(workers)), START, quadratic.gradient, workers).run(list(range(workers)) * 5)
    assert drive.staleness[:workers] == list(range(workers))
    assert np.mean(drive.staleness[workers:]) == workers - 1


@given(some.lists(some.integers(0, 2), min_size=1, max_size=15))
@settings(max_examples=6)
def test_any_order_is_the_formula(order: list[int]) -> None:
    drive = Drive(dynsgd(setup(3)), START, quadratic.gradient, 3, jit=False).run(order)
    server, x, seen, t = START.astype(np.float64), [START.astype(np.float64)] * 3, [0] * 3, [0] * 3
    for clock, k in enumerate(order):
        server = server - fall(clock / 3) / (clock - seen[k] + 1) * exact(x[k], k, t[k])
        x[k], seen[k], t[k] = server, clock + 1, t[k] + 1
    close(drive.params(), server)


def test_softsync_is_the_mean_of_c_with_their_own_staleness() -> None:
    """N = 4, n = 2: an update per two gradients, whoever sends them."""
    drive = Drive(dynsgd(setup(4), softsync=2), START, quadratic.gradient, 4)
    server, x, seen, t = START.astype(np.float64), [START.astype(np.float64)] * 4, [0] * 4, [0] * 4
    stale = []
    for clock, pair in enumerate([(0, 1), (1, 0), (2, 0), (3, 1), (2, 3), (0, 3)]):
        drive.run(pair)
        g = sum(exact(x[k], k, t[k]) / (clock - seen[k] + 1) for k in pair)
        stale += [clock - seen[k] for k in pair]
        server = server - fall(clock / 2) / 2 * g
        for k in pair:
            x[k], seen[k], t[k] = server, clock + 1, t[k] + 1
        close(drive.params(), server)
    assert drive.staleness == stale
    assert max(stale) == 3


def test_a_worker_waits_for_its_quorum() -> None:
    drive = Drive(dynsgd(setup(4), softsync=2), START, quadratic.gradient, 4).run([2])
    assert drive.waiting == [0, 0, 1, 0]
    np.testing.assert_array_equal(drive.params(), START)


def test_one_softsync_is_synchronous_sgd() -> None:
    found = [Drive(rule, START, quadratic.gradient, 3).run([0, 1, 2] * 6) for rule in (dynsgd(setup(3), softsync=1), sync(setup(3)))]
    close(found[0].params(), found[1].params())


@pytest.mark.parametrize(("workers", "n", "quorum"), [(4, 0, 1), (4, 4, 1), (4, 1, 4), (5, 2, 2), (5, 3, 1)])
def test_quorum_is_floor_of_workers_by_n(workers: int, n: int, quorum: int) -> None:
    assert dynsgd(setup(workers), softsync=n).quorum == quorum


def test_a_short_group_is_a_mean_of_fewer_and_an_empty_one_nothing() -> None:
    """Filled up with messages that do not push, whatever they hold."""
    rule = dynsgd(setup(4, lambda _t: 0.5), softsync=2)
    s = rule.init_server(START, ALONE)
    body = np.stack([np.full(len(START), 2.0), np.full(len(START), np.nan)])
    np.testing.assert_array_equal(rule.serve(s, stacked(body, [True, False], 0, [1, 0]), ())[0].params, START - np.float32(0.5))
    np.testing.assert_array_equal(rule.serve(s, stacked(body, [False, False]), ())[0].params, START)


@pytest.mark.parametrize("n", [-1, 4])
def test_bad_options(n: int) -> None:
    with pytest.raises(UsageError, match="softsync="):
        dynsgd(setup(3), softsync=n)
