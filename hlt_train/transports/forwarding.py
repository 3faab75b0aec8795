"""`jax.jit` for functions that return some of their arguments as they are, as the steps of a worker do: those are handed on, not copied.

XLA copies what it only passes through, and moves constants like everything else. Here the trace tells which results are arguments and which are constants;
only the others are computed. The copies of a state that a worker saves so are most of what an exchange costs it when it does not wait for messages.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jax.extend.core import Literal

__all__ = ["forwarding"]


class _Plan(NamedTuple):
    """Of one form of the arguments.

    Attributes:
        compute: leaves of the arguments -> the results that are computed; None: there are none.
        sources: of each result: the position of an argument, a constant, or None where it is computed.
        structure: of the results.
    """

    compute: Callable[..., Sequence[Any]] | None
    sources: list[Any]
    structure: Any


class _Place(int):
    """The position of an argument, as opposed to a constant."""


def forwarding(function: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled version of a pure function. Its results may be the arguments themselves, NumPy arrays included: the caller never changes those."""
    plans: dict[Hashable, _Plan] = {}

    def call(*arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        form = structure, tuple((np.shape(leaf), getattr(leaf, "dtype", type(leaf))) for leaf in leaves)
        if (plan := plans.get(form)) is None:
            plan = plans[form] = _plan(function, structure, leaves)
        computed = iter(plan.compute(*leaves) if plan.compute is not None else ())
        results = [next(computed) if s is None else leaves[s] if isinstance(s, _Place) else s for s in plan.sources]
        return jax.tree.unflatten(plan.structure, results)

    return call


def _plan(function: Callable[..., Any], structure: Any, leaves: Sequence[Any]) -> _Plan:
    def called(*given: Any) -> Any:
        return function(*jax.tree.unflatten(structure, given))

    traced: Any
    traced, shapes = jax.make_jaxpr(called, return_shape=True)(*leaves)
    places = {variable: k for k, variable in enumerate(traced.jaxpr.invars)}
    sources: list[Any] = []
    for variable in traced.jaxpr.outvars:
        if isinstance(variable, Literal):
            sources.append(np.asarray(variable.val, cast(Any, variable.aval).dtype))
        elif (k := places.get(variable)) is not None and getattr(leaves[k], "dtype", None) == variable.aval.dtype:  # not a number that JAX would convert
            sources.append(_Place(k))
        else:
            sources.append(None)
    wanted = [k for k, source in enumerate(sources) if source is None]
    compute = jax.jit(lambda *given: [jax.tree.leaves(called(*given))[k] for k in wanted]) if wanted else None
    return _Plan(compute, sources, jax.tree.structure(shapes))
