"""The line search on functions of one variable: what it accepts satisfies the strong Wolfe conditions."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hlt_train.strategies import _line_search
from hlt_train.strategies._line_search import MOST, judge, start

C1, C2 = 1e-4, 0.9
JUDGE = jax.jit(judge, static_argnums=(3, 4))


def wall(t: float) -> float:
    return -np.log(1 - t / 2) - 3 * t if t < 2 else np.nan


FUNCTIONS: dict[str, tuple[Callable, Callable]] = {  # phi and its derivative
    "parabola": (lambda t: (t - 3) ** 2, lambda t: 2 * (t - 3)),
    "far": (lambda t: (t / 500 - 1) ** 2, lambda t: (t / 500 - 1) / 250),
    "flat far away": (lambda t: -t / (t * t + 2), lambda t: (t * t - 2) / (t * t + 2) ** 2),  # More and Thuente 1994, equation 5.1
    "steep": (lambda t: (t + 0.1) ** 5 - 2 * (t + 0.1) ** 4, lambda t: 5 * (t + 0.1) ** 4 - 8 * (t + 0.1) ** 3),  # after 5.2
    "waves": (lambda t: (t - 1) ** 2 + 0.05 * np.sin(20 * t), lambda t: 2 * (t - 1) + np.cos(20 * t)),
    "a wall": (wall, lambda t: 1 / (2 - t) - 3 if t < 2 else np.nan),
    "infinite": (lambda t: np.exp(min(50 * t, 1000)) - 60 * t, lambda t: 50 * np.exp(min(50 * t, 1000)) - 60),
}


def search(function: Callable, slope: Callable, first: float, c2: float = C2) -> tuple[float, int]:
    s = start(function(0.0), slope(0.0), first)
    for n in range(1, MOST + 2):
        t = float(s.t)
        with np.errstate(over="ignore"):
            accept, s = JUDGE(s, np.float32(function(t)), np.float32(slope(t)), C1, c2)
        if accept:
            return t, n
    raise AssertionError("no step was accepted")


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("first", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("c2", [0.9, 0.1])
def test_strong_wolfe(name: str, first: float, c2: float) -> None:
    function, slope = FUNCTIONS[name]
    t, evaluations = search(function, slope, first, c2)
    assert t > 0
    assert function(t) <= function(0.0) + C1 * t * slope(0.0) + 1e-6 * abs(function(0.0))
    assert abs(slope(t)) <= c2 * abs(slope(0.0)) * 1.001
    assert evaluations <= 15


def test_a_good_first_step_costs_one_evaluation() -> None:
    assert search(lambda t: (t - 1) ** 2, lambda t: 2 * (t - 1), 1.0) == (1.0, 1)


def test_a_direction_without_decrease_is_lost() -> None:
    """The slope says down, the values say up: a wrong gradient."""
    s = start(0.0, -1.0, 1.0)
    for _ in range(MOST):
        assert not s.lost
        accept, s = JUDGE(s, s.t, jnp.float32(1.0), C1, C2)
        assert not accept
    assert s.lost


def test_after_a_search_without_success_the_best_point_is_taken_again() -> None:
    """Decrease is found at once, a flat slope never: the best point is evaluated once more and accepted."""
    s = start(0.0, -1.0, 1.0)
    accept, s = JUDGE(s, jnp.float32(-0.5), jnp.float32(-1.0), C1, C2)
    best = 1.0
    while not accept and not s.last:
        accept, s = JUDGE(s, jnp.float32(np.inf), jnp.float32(np.nan), C1, C2)
    assert s.last
    assert float(s.t) == best
    assert JUDGE(s, jnp.float32(-0.5), jnp.float32(-1.0), C1, C2)[0]


def test_rounding_of_the_value_does_not_stop_the_search() -> None:
    """Near the minimum the value is constant but for its last bit; the slope still leads."""
    s = start(1.0, -1e-6, 1e-3)
    for _ in range(12):
        t = float(s.t)
        accept, s = JUDGE(s, jnp.float32(1.0) + _line_search.EPSILON * np.sign(np.sin(1e5 * t)), jnp.float32(1e-6 * (t - 1)), C1, 0.5)
        if accept:
            break
    assert accept
    assert 0.5 <= t <= 1.5
