"""What every discovered strategy keeps when the lockstep transport runs it."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hlt_train import checkpoints, devices, plugins
from hlt_train.transports.lockstep import Lockstep
from tests import convex
from tests.drive import Drive

STRATEGIES = plugins.names("strategies")
ROWS = 16  # of a step
PORTIONS = 2  # per worker, of rules whose server hands them out

# Options with which a rule converges on the convex problem within 150 steps, where it does not with its defaults; and such that make it exchange at all.
OPTIONS: dict[str, dict[str, Any]] = {"agn": {"window": 2}, "fasgd": {"eps": 0.5}, "gossip": {"p": 0.3}}


@functools.cache
def built(name: str, workers: int) -> Lockstep:
    """One compilation for all tests of a rule."""
    return convex.build(convex.strategy(name, workers=workers, portions=PORTIONS * workers, **OPTIONS.get(name, {})), workers, 25)


def run(name: str, workers: int, steps: int, carry: Any = None, first: int = 0, chunk: int | None = None) -> tuple[Any, np.ndarray]:
    """Steps `first` to `steps` of a rule."""
    rows = ROWS if workers < 5 else 8 * workers
    handed_out = built(name, workers).strategy.batch is not None
    batches = convex.data(PORTIONS if handed_out else 150, rows)
    part = batches if handed_out else tuple(a[first:steps] for a in batches)
    return convex.run(built(name, workers), part, carry, chunk=chunk, steps=steps - first)


def check_converges(name: str, workers: int) -> None:
    carry, losses = run(name, workers, 150)
    assert losses[:, :2].max() > 1
    assert losses[:, -5:].mean() < 1e-6
    np.testing.assert_allclose(convex.final(built(name, workers), carry)["w"], convex.TRUTH, atol=1e-3)


def check_cuts(name: str, workers: int) -> None:
    runs = []
    for chunk in (25, 7, 25):
        carry, losses = run(name, workers, 30, chunk=chunk)
        runs.append((built(name, workers).host(carry), losses))
    assert convex.same(runs[0], runs[2])
    assert convex.same(runs[0], runs[1])


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("workers", [1, 2])
def test_converges_on_a_convex_problem(name: str, workers: int) -> None:
    check_converges(name, workers)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("workers", [1, 2])
def test_same_seed_same_bits_however_the_steps_are_cut(name: str, workers: int) -> None:
    check_cuts(name, workers)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("workers", [1, 2])
def test_checkpoint_round_trip(name: str, workers: int, tmp_path: Path) -> None:
    lockstep = built(name, workers)
    whole, _ = run(name, workers, 20)
    half, _ = run(name, workers, 10)
    weights = jax.tree.map(lambda leaf: leaf[0], jax.device_get(lockstep.params(half)))
    checkpoints.save(tmp_path, checkpoints.Snapshot(weights, lockstep.host(half), {"step": 10}))
    fresh = lockstep.init(convex.START)
    state = checkpoints.to_tree(checkpoints.load(tmp_path, 10, "state"), lockstep.host(fresh), where="")
    rest, _ = run(name, workers, 20, lockstep.restore(fresh, state), first=10)
    assert convex.same(lockstep.host(rest), lockstep.host(whole))
    assert all(np.array_equal(a, b) for a, b in zip(lockstep.counters(rest).values(), lockstep.counters(whole).values(), strict=True))


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_worker_is_the_serial_rule(name: str) -> None:
    """The type in plain Python: one worker and its server, in turn."""
    lockstep = built(name, 1)
    x, y = map(jnp.asarray, convex.data(PORTIONS if lockstep.strategy.batch is not None else 150, ROWS))
    drive = Drive(lockstep.strategy, convex.START, lambda p, _k, i, key: convex.gradient(p, (x[i % len(x)], y[i % len(x)]), key)).run([0] * 12)
    carry, _ = run(name, 1, 12)
    for a, b in zip(jax.tree.leaves(convex.final(lockstep, carry)), jax.tree.leaves(drive.params()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_five_workers() -> None:
    """All rules in one process of five virtual devices."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}
    subprocess.run(
        [sys.executable, "-m", "tests.contracts.test_strategies", *STRATEGIES], check=True, env=environment, timeout=500, cwd=Path(__file__).parents[2]
    )


@pytest.mark.parametrize("name", STRATEGIES)
def test_pure_and_documented(name: str) -> None:
    assert plugins.summary("strategies", name).endswith(".")
    rule = convex.strategy(name)
    assert rule.every >= 1
    assert rule.asks >= 1
    assert rule.fan >= 1


if __name__ == "__main__":
    devices.prepare(5)
    for name in sys.argv[1:]:
        check_converges(name, 5)
        check_cuts(name, 5)
        print(name)
