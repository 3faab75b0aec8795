"""A function with its products replaced: the same function where they are replaced by themselves; counted, numbered, and refused in loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hlt_train import plugins
from hlt_train.errors import UsageError
from hlt_train.precision.products import count_products, with_products
from tests.students import inputs, normalised, raw


def itself(_number: int, left: jax.Array, right: jax.Array, dot: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    return dot(left, right)


@pytest.mark.parametrize(("name", "products"), [("mlp", 4), ("deepsets", None)])
def test_products_replaced_by_themselves_change_no_bit(name: str, products: int | None) -> None:
    """Values and gradients of real networks, compiled; dropout's random numbers among them."""
    rng = np.random.default_rng(1)
    described = inputs(rng, ("event", 3, None), ("jets", 4, 6))
    model = plugins.factory("models", name)(described, 2, jax.random.key(1), dropout=0.1)
    x = normalised(described, raw(rng, described, 64))

    def loss(network: Any) -> jax.Array:
        return jnp.sum(network(x, key=jax.random.key(5)) ** 2)

    want, found = (jax.jit(jax.value_and_grad(f, allow_int=True))(model) for f in (loss, with_products(loss, itself)))
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(found), strict=True) if jnp.issubdtype(a.dtype, jnp.floating))
    if products is not None:
        assert count_products(loss, model) == products


def test_they_are_numbered_in_order_and_are_what_is_computed() -> None:
    a, b, c = (jnp.asarray(np.random.default_rng(k).normal(size=(4, 4)), jnp.float32) for k in range(3))

    def chain(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
        return jax.jit(jnp.matmul)(a, b) @ c

    def scaled(number: int, left: jax.Array, right: jax.Array, dot: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
        return dot(left, right) * 10.0**number

    np.testing.assert_allclose(with_products(chain, scaled)(a, b, c), (a @ b) @ c * 10, rtol=1e-5)


def test_products_in_loops_are_refused_by_name() -> None:
    def loop(a: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda carry, _: (carry @ a, None), a, None, length=3)[0]

    with pytest.raises(UsageError, match="multiplies inside of 'scan'"):
        with_products(loop, itself)(jnp.eye(3))
