"""What every discovered strategy keeps when the lockstep transport runs it."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from hlt_train import checkpoints, plugins
from tests import convex

STRATEGIES = plugins.names("strategies")


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("workers", [1, 2])
def test_converges_on_a_convex_problem(name: str, workers: int) -> None:
    lockstep = convex.build(convex.strategy(name), workers, 25)
    carry, losses = convex.run(lockstep, convex.data(150, 16))
    assert losses[:, 0].mean() > 1
    assert losses[:, -5:].mean() < 1e-6
    np.testing.assert_allclose(convex.final(lockstep, carry)["w"], convex.TRUTH, atol=1e-3)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("workers", [1, 2])
def test_same_seed_same_bits_however_the_steps_are_cut(name: str, workers: int) -> None:
    batches = convex.data(30, 8)
    runs = []
    for steps in (30, 7, 30):
        lockstep = convex.build(convex.strategy(name), workers, steps)
        carry, losses = convex.run(lockstep, batches)
        runs.append((lockstep.host(carry), losses))
    assert convex.same(runs[0], runs[2])
    assert convex.same(runs[0], runs[1])


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("workers", [1, 2])
def test_checkpoint_round_trip(name: str, workers: int, tmp_path: Path) -> None:
    batches = convex.data(20, 8)
    lockstep = convex.build(convex.strategy(name), workers, 10)
    whole, _ = convex.run(lockstep, batches)
    half, _ = convex.run(lockstep, tuple(a[:10] for a in batches))
    weights = jax.tree.map(lambda leaf: leaf[0], jax.device_get(lockstep.params(half)))
    checkpoints.save(tmp_path, checkpoints.Snapshot(weights, lockstep.host(half), {"step": 10}))
    fresh = lockstep.init(convex.START)
    state = checkpoints.to_tree(checkpoints.load(tmp_path, 10, "state"), lockstep.host(fresh), where="")
    rest, _ = convex.run(lockstep, tuple(a[10:] for a in batches), lockstep.restore(fresh, state))
    assert convex.same(lockstep.host(rest), lockstep.host(whole))


@pytest.mark.parametrize("name", STRATEGIES)
def test_pure_and_documented(name: str) -> None:
    assert plugins.summary("strategies", name).endswith(".")
    rule = convex.strategy(name)
    assert rule.every >= 1
    assert rule.asks >= 1
    assert rule.quorum >= 0
