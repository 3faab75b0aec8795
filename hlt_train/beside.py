"""What travels beside the parameters of a network while it is trained: trained with them, counted by them, and never part of the network.

A strategy moves one pytree of parameters by one gradient. Here that pytree is `Beside`: the network's own parameters and, by name, *companions*: a regressor
that is trained with the network, a number that follows what batches show. What is validated, saved as weights, scored and exported is the network alone; the
companions are in the strategy's state, and so in a checkpoint's, and a resumed run has them to the bit.

A companion that is trained has a gradient like any parameter. One that is counted has none: `reported` gives a loss of zero whose gradient with respect to
the companion is what a batch has to say. The mean over workers and devices, which any barrier rule takes, is then the mean over the whole batch, and the
companion's own optimiser makes of it what it wants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hlt_train.strategies import Info, Strategy

__all__ = ["Beside", "Companion", "accompanied", "counted", "optimiser", "reported", "trained"]


class Beside(NamedTuple):
    """network: its parameters. others: name -> pytree of float32 arrays."""

    network: Any
    others: dict[str, Any]


class Companion(NamedTuple):
    """start: its value before the first step. optimiser: of it, from the one that the user chose for the network."""

    start: Any
    optimiser: Callable[[optax.GradientTransformation], optax.GradientTransformation]


def trained(start: Any) -> Companion:
    """A companion that is trained as the network is."""
    return Companion(start, lambda chosen: chosen)


def counted(start: Any, moved: Callable[[Any, Any], Any] | None = None) -> Companion:
    """A companion that becomes `moved(value, reported)` at every step; by default their sum. It starts as float32."""

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        assert params is not None
        if moved is None:
            return gradients, state
        return jax.tree.map(lambda new, old: new - old, moved(params, gradients), params), state

    rule = optax.GradientTransformation(lambda _params: optax.EmptyState(), update)
    return Companion(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), start), lambda _chosen: rule)


def reported(place: Any, values: Any) -> jax.Array:
    """0, with `values` for its gradient with respect to `place`, a pytree of the same structure; `values` themselves get no gradient."""
    zeros = jax.tree.map(lambda p, v: jnp.sum(jax.lax.stop_gradient(v) * (p - jax.lax.stop_gradient(p))), place, values)
    total: jax.Array = sum(jax.tree.leaves(zeros), jnp.zeros(()))
    return total


def optimiser(network: optax.GradientTransformation, companions: Mapping[str, optax.GradientTransformation]) -> optax.GradientTransformation:
    """An optimiser of `Beside`: one for the network, one for each companion, none of which sees the others."""
    rules = dict(companions)

    def init(params: Any) -> Any:
        return network.init(params.network), {name: rule.init(params.others[name]) for name, rule in rules.items()}

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        assert params is not None
        own, rest = state
        updates, own = network.update(gradients.network, own, params.network)
        found = {name: rule.update(gradients.others[name], rest[name], params.others[name]) for name, rule in rules.items()}
        return Beside(updates, {name: pair[0] for name, pair in found.items()}), (own, {name: pair[1] for name, pair in found.items()})

    return optax.GradientTransformation(init, update)


def accompanied(rule: Strategy, companions: Mapping[str, Companion]) -> Strategy:
    """The rule with `Beside` where it has parameters; it takes the network's parameters, and gives them to whoever validates or saves.

    Args:
        rule: made with `optimiser`.
        companions: by name.
    """

    def whole(network: Any) -> Beside:
        return Beside(network, {name: companion.start for name, companion in companions.items()})

    def init_worker(network: Any, info: Info) -> Any:
        return rule.init_worker(whole(network), info)

    def init_server(network: Any, info: Info) -> Any:
        return rule.init_server(whole(network), info)

    return rule._replace(init_worker=init_worker, init_server=init_server, params=lambda w, s: rule.params(w, s).network)
