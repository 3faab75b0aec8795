"""A worker of a run by processes with several devices: each does a part of the rows of a batch."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from hlt_train.shares import spread_rows
from tests import processes


def _trained(data: Any, steps: int = 4) -> tuple[list[np.ndarray], list[float], Any]:
    program = processes.made(processes.Job(rule="easgd", run="", options={"period": 2, "momentum": 0.5}))
    state, losses = program.worker(0), []
    for t in range(steps):
        state, loss = program.compute(state, data((t, 0)), 0, t)
        losses.append(loss)
    state, _messages = program.ask(state, 0, steps - 1, 0)
    return program.leaves(state)["leaves"], losses, state


def test_rows_on_two_devices_are_rows_on_one_to_rounding() -> None:
    def data(share: tuple[int, int]) -> Any:
        return processes.rows(share, 20, 2)

    spread = spread_rows(data, 2)
    assert len(spread((0, 0))[0].sharding.device_set) == 2
    one, losses_of_one, _ = _trained(data)
    two, losses_of_two, state = _trained(spread)
    assert any(len(leaf.sharding.device_set) == 2 for leaf in jax.tree.leaves(state))  # it was done on both
    np.testing.assert_allclose(losses_of_two, losses_of_one, rtol=1e-5)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    again, _, _ = _trained(spread)
    assert all(np.array_equal(a, b) for a, b in zip(two, again, strict=True))
