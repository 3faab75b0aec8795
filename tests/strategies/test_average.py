"""Periodic averaging: with a period of one and plain SGD it is synchronous SGD; between means the workers are alone."""

from __future__ import annotations

import numpy as np
import optax
import pytest

from hlt_train.errors import UsageError
from hlt_train.strategies.average import average
from hlt_train.strategies.sync import sync
from tests import quadratic
from tests.drive import Drive
from tests.quadratic import START, close, exact, fall, setup, stacked


@pytest.mark.parametrize("shards", [1, 2])
def test_period_one_is_synchronous_sgd(shards: int) -> None:
    found = [Drive(rule, START, quadratic.gradient, 3, shards).run([0, 1, 2] * 10) for rule in (average(setup(3), period=1), sync(setup(3)))]
    close(found[0].params(), found[1].params())


def test_a_longer_period_is_the_mean_of_workers_alone() -> None:
    drive = Drive(average(setup(3), period=4), START, quadratic.gradient, 3)
    x = [START.astype(np.float64)] * 3
    for t in range(10):
        drive.run([2, 0, 1])
        x = [x[k] - fall(t) * exact(x[k], k, t) for k in range(3)]
        if t in (3, 7):
            x = [sum(x) / 3] * 3
            close(drive.params(), x[0])
        for k in range(3):
            close(drive.w[k].params, x[k])
    assert drive.rounds == 2


def test_the_optimisers_state_stays_with_its_worker() -> None:
    drive = Drive(average(setup(2, optimiser=lambda rate: optax.sgd(rate, momentum=0.9)), period=1), START, quadratic.gradient, 2).run([0, 1])
    for k in range(2):
        close(drive.w[k].optimiser[0].trace, exact(START.astype(np.float64), k, 0))
        np.testing.assert_array_equal(drive.w[k].params, np.float32(drive.params()))


def test_without_a_push_the_mean_stays() -> None:
    rule = average(setup(2))
    after, _ = rule.serve(START, stacked(np.full((1, len(START)), np.nan), [False]), ())
    np.testing.assert_array_equal(after, START)


def test_bad_options() -> None:
    with pytest.raises(UsageError, match="period="):
        average(setup(), period=0)
