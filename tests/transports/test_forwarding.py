"""Compiled functions that hand on what they only pass through."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hlt_train.transports.forwarding import forwarding


class State(NamedTuple):
    params: Any
    sums: Any
    step: Any


def ask(w: State, reset: Any) -> tuple[State, Any, Any]:
    return w._replace(sums=jnp.where(reset, jnp.zeros_like(w.sums), w.sums)), w.sums, jnp.int32(-1)


def test_results_are_those_of_jit() -> None:
    w = State(jnp.arange(4.0), jnp.ones(4), jnp.int32(3))
    for reset in (True, False):
        found, wanted = forwarding(ask)(w, np.bool_(reset)), jax.jit(ask)(w, np.bool_(reset))
        assert jax.tree.structure(found) == jax.tree.structure(wanted)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def test_what_passes_through_is_not_copied() -> None:
    w = State(jnp.arange(4.0), np.ones(4, np.float32), jnp.int32(3))
    state, body, to = forwarding(ask)(w, np.bool_(True))
    assert state.params is w.params
    assert state.step is w.step
    assert body is w.sums
    assert isinstance(to, np.ndarray)  # a constant never was on the device
    assert isinstance(state.sums, jax.Array)
    np.testing.assert_array_equal(state.sums, 0)


@pytest.mark.parametrize("given", [3, 2.5, np.float64(1.5), np.arange(3)])
def test_numbers_that_jax_converts_are_converted(given: Any) -> None:
    found = forwarding(lambda x: (x, x + 1))(given)
    wanted = jax.jit(lambda x: (x, x + 1))(given)
    assert [x.dtype for x in found] == [x.dtype for x in wanted]


def test_every_form_of_the_arguments_has_its_own_plan() -> None:
    first = forwarding(lambda x: x if len(x) == 3 else x * 2)
    three, four = jnp.arange(3.0), jnp.arange(4.0)
    assert first(three) is three
    np.testing.assert_array_equal(first(four), 2 * four)
    assert first(three) is three


def test_a_function_that_computes_nothing() -> None:
    x = jnp.arange(3.0)
    assert forwarding(lambda a, b: (b, a))(x, 1)[1] is x
