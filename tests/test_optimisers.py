"""Optimisers and schedules by name."""

from __future__ import annotations

import jax.numpy as jnp
import optax
import pytest

from hlt_train.errors import UsageError
from hlt_train.optimisers import optimiser, optimiser_names, schedule, schedule_names


@pytest.mark.parametrize("name", optimiser_names())
def test_every_optimiser_takes_a_step(name: str) -> None:
    tx = optimiser(name, schedule("constant_schedule", 0.1, 10, {}), {})
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    updates, _ = tx.update(params, tx.init(params), params)
    moved = optax.apply_updates(params, updates)
    assert bool(jnp.isfinite(moved["w"]).all())


@pytest.mark.parametrize("name", schedule_names())
def test_every_schedule_peaks_at_the_learning_rate_and_ends_with_the_run(name: str) -> None:
    rates = [float(schedule(name, 0.01, 200, {})(step)) for step in range(201)]
    assert max(rates) == pytest.approx(0.01, rel=1e-3)
    assert rates[-1] == pytest.approx(min(rates[20:]), abs=1e-6)


def test_short_names_and_options() -> None:
    found = schedule("warmup_cosine_decay", 0.1, 100, {"warmup_steps": 10, "end_value": 0.01})
    assert float(found(10)) == pytest.approx(0.1)
    assert float(found(100)) == pytest.approx(0.01)
    tx = optimiser("sgd", schedule("constant", 1.0, 1, {}), {"momentum": 0.5})
    state = tx.init(jnp.ones(()))
    first, state = tx.update(jnp.ones(()), state)
    second, _ = tx.update(jnp.ones(()), state)
    assert (float(first), float(second)) == (-1, -1.5)


@pytest.mark.parametrize(
    ("make", "near"),
    [
        (lambda: optimiser("adm", optax.constant_schedule(1), {}), "adam"),
        (lambda: optimiser("adam", optax.constant_schedule(1), {"bb1": 1}), "b1"),
        (lambda: schedule("cosine_schedule", 1.0, 1, {}), "cosine_decay_schedule"),
        (lambda: schedule("linear", 1.0, 1, {"endvalue": 1}), "end_value"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(make, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert near in caught.value.near
