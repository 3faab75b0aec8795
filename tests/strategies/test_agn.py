"""Accumulated gradient normalisation: a window of one is Downpour, a longer one commits the mean of its steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from hlt_train.errors import UsageError
from hlt_train.strategies.agn import agn
from hlt_train.strategies.downpour import downpour
from tests import quadratic
from tests.drive import Drive
from tests.quadratic import START, close, exact, fall, setup


def test_window_one_is_downpour() -> None:
    order = [0, 1, 1, 2, 0, 0, 2, 1, 0, 2, 2]
    rate = {"rate": lambda _t: 0.1}  # the clocks differ: a worker's there, the server's / N here
    found = [Drive(rule, START, quadratic.gradient, 3).run(order) for rule in (agn(setup(3, **rate), window=1), downpour(setup(3, **rate)))]
    close(found[0].params(), found[1].params())
    for k in range(3):
        close(found[0].w[k].params, found[1].w[k].params)


@given(some.lists(some.integers(0, 2), min_size=1, max_size=15), some.integers(1, 4))
@settings(max_examples=6)
def test_any_order_is_the_papers_loop(order: list[int], window: int) -> None:
    drive = Drive(agn(setup(3), window=window), START, quadratic.gradient, 3, jit=False).run(order)
    server = START.astype(np.float64)
    x, total, t = [server] * 3, [server * 0] * 3, [0] * 3
    for k in order:
        update = -fall(t[k]) * exact(x[k], k, t[k])
        x[k], total[k], t[k] = x[k] + update, total[k] + update, t[k] + 1
        if t[k] % window == 0:
            server = server + total[k] / window
            x[k], total[k] = server, server * 0
    close(drive.params(), server)
    for k in range(3):
        close(drive.w[k].params, x[k])


def test_a_window_that_is_cut_short_is_the_mean_of_what_it_has() -> None:
    drive = Drive(agn(setup(), window=4), START, quadratic.gradient).run([0] * 6)
    before, x, total = drive.params(), drive.params(), 0.0
    for t in (4, 5):
        update = -fall(t) * exact(x, 0, t)
        x, total = x + update, total + update
    drive.exchange(0)
    close(drive.params(), before + total / 2)
    assert int(drive.w[0].count) == 0


def test_bad_options() -> None:
    with pytest.raises(UsageError, match="window="):
        agn(setup(), window=0)
