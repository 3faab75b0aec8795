"""A function with its products replaced: every matrix product or convolution that a trace of it contains is done by another function.

So the arithmetic of training is chosen where training is set up, for any network, and no network knows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from hlt_train.errors import UsageError

__all__ = ["Product", "count_products", "with_products"]

# (number, left operand, right operand, the product itself) -> result
Product = Callable[[int, jax.Array, jax.Array, Callable[[jax.Array, jax.Array], jax.Array]], jax.Array]
PRODUCTS = ("dot_general", "conv_general_dilated")
INLINED = ("jit", "pjit", "closed_call")  # calls that mean nothing but what is in them


def with_products(function: Callable[..., Any], product: Product) -> Callable[..., Any]:
    """The function with each of its products replaced; they are numbered from 0 in the order of evaluation, the same for every call of one shape.

    Raises:
        UsageError: a product stands inside of something that would not be the same any more (a loop, a rule for derivatives).
    """

    def call(*arguments: Any) -> Any:
        traced, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        results = _Walk(product).through(traced.jaxpr, traced.consts, jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return call


def count_products(function: Callable[..., Any], *arguments: Any) -> int:
    """How many products a function has; nothing is computed."""
    found = []

    def noted(number: int, left: jax.Array, right: jax.Array, dot: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
        found.append(number)
        return dot(left, right)

    jax.eval_shape(with_products(function, noted), *arguments)
    return len(found)


class _Walk:
    """Evaluates a trace once, equation by equation."""

    def __init__(self, product: Product) -> None:
        self.product, self.number = product, 0

    def through(self, jaxpr: Jaxpr, consts: list[Any], arguments: list[Any]) -> list[Any]:
        values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

        def read(variable: Any) -> Any:
            return variable.val if isinstance(variable, Literal) else values[variable]

        for equation in jaxpr.eqns:
            results = self._one(equation, [read(v) for v in equation.invars])
            values.update(zip(equation.outvars, results, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _one(self, equation: JaxprEqn, arguments: list[Any]) -> list[Any]:
        primitive: Any = equation.primitive
        name, inner = primitive.name, list(_inside(equation))
        if name in PRODUCTS and jnp.issubdtype(jnp.result_type(arguments[0]), jnp.floating):
            number, self.number = self.number, self.number + 1
            left, right = map(jnp.asarray, arguments)  # a constant of the trace is NumPy's
            return [self.product(number, left, right, lambda a, b: primitive.bind(a, b, **equation.params))]
        if any(_has_product(jaxpr) for jaxpr in inner):
            if name not in INLINED:
                what = f"the network multiplies inside of '{name}', where products cannot be replaced"
                raise UsageError(what, near=("mlp", "deepsets"), then="a network whose products stand outside of loops, and formats whose sums stay below 2^24")
            (closed,) = (value for value in equation.params.values() if isinstance(value, ClosedJaxpr))
            return self.through(closed.jaxpr, closed.consts, arguments)
        found = primitive.bind(*arguments, **primitive.get_bind_params(equation.params))
        return list(found) if primitive.multiple_results else [found]


def _inside(equation: JaxprEqn) -> Iterator[Jaxpr]:
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part


def _has_product(jaxpr: Jaxpr) -> bool:
    return any(e.primitive.name in PRODUCTS or any(map(_has_product, _inside(e))) for e in jaxpr.eqns)
