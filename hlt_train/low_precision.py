"""Training in low precision: the products of the forward and of the backward pass, and the parameters between the steps, in formats of their own.

After Courbariaux, Bengio, David (arXiv:1412.7024): the operands and the result of every product, and the gradients with respect to each, are brought to the
format of the pass; sums inside a product are wide. Parameters, and so their updates, are kept in the format of the storage. Everything else (activations,
losses, the optimiser's own state) is float32. Formats are `float32`, `fixed<W,I>`, `minifloat<E,M>` (with a bias if wanted) and `dynamic<W>`.

Where we deviate: products are those of the whole network, found in its trace (`hlt_train.precision.products`), so a group is an operand or a result of a
product rather than a layer's vector; biases are added in float32 from their stored values; and exponents of dynamic groups are set to what a batch needs in
each of the first 50 steps, where the paper trains once in float32 to find them.

Validation, checkpoints and exports use the stored parameters in a float32 network, or in the student's own formats: low precision is of training alone.

How it travels: the exponents of all groups are a companion of the network (`hlt_train.beside`), float32 `[products, 6, 3]`: integer bits of every group in
`[..., 0]` and two places that its counts come through. Its "gradient" is not a gradient but what the quantisers counted (`DynamicFormat.rates`), so that the
mean over workers and devices is the rate over all of them, and its optimiser (`exponents`) moves them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hlt_train.beside import Beside, Companion
from hlt_train.errors import UsageError, refuse_unknown
from hlt_train.precision.config import mode
from hlt_train.precision.dynamic import DynamicFormat, holding, moved
from hlt_train.precision.fixed import FixedFormat
from hlt_train.precision.formats import parse_format
from hlt_train.precision.grid import ROUNDINGS, Round, folded
from hlt_train.precision.minifloat import MiniFormat
from hlt_train.precision.products import count_products, with_products
from hlt_train.types import Batch

__all__ = ["SCALES", "LowPrecision", "exponents", "learning", "scales", "storage"]

SCALES = "low_precision"  # name of the companion

GROUPS = 6  # of a product: left, right, result; gradients with respect to the result, left, right
COUNTS = 3  # what a group counts: `DynamicFormat.rates`
SETTLING = 50  # steps in which dynamic exponents follow at once
Training = DynamicFormat | FixedFormat | MiniFormat | None


@dataclass(frozen=True)
class LowPrecision:
    """What a run is told of it; the keys of `low_precision` in its configuration.

    Attributes:
        forward, backward: formats of products in the two passes.
        storage: format of parameters and their updates.
        round: floor, half_up, half_even or stochastic, for all.
        overflow: rate above which a dynamic range is doubled.
        every: examples between two changes of dynamic ranges.
    """

    forward: str = "dynamic<10>"
    backward: str = "dynamic<10>"
    storage: str = "dynamic<12>"
    round: Round = "half_even"
    overflow: float = 1e-4
    every: int = 10_000

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LowPrecision:
        """From the section of a configuration; refuses what does not exist with the nearest that does."""
        refuse_unknown("low_precision", config, [f.name for f in fields(cls)])
        given = {f.name: f.default for f in fields(cls)} | dict(config)
        overflow, every = given["overflow"], given["every"]
        if not isinstance(overflow, float | int) or not isinstance(every, int) or not 0 <= overflow < 1 or every < 1:
            raise UsageError(f"overflow is a rate below 1 and every a number of examples, got {overflow!r} and {every!r}", where="low_precision")
        round = mode("low_precision.round", given["round"], ROUNDINGS)
        made = cls(str(given["forward"]), str(given["backward"]), str(given["storage"]), round, float(overflow), every)
        for role in ("forward", "backward", "storage"):
            made.format(role)
        return made

    def format(self, role: str) -> Training:
        """The format of a role, None for float32."""
        text = str(getattr(self, role)).strip()
        if text == "float32":
            return None
        if text.startswith("dynamic"):
            inside = text.removeprefix("dynamic").strip().removeprefix("<").removesuffix(">")
            if not inside.isdecimal() or not 2 <= int(inside) <= 24:
                raise UsageError(f"'{text}' is not a number format: dynamic<W> takes 2 to 24 bits", where=f"low_precision.{role}")
            return DynamicFormat(int(inside), self.round)
        found = parse_format(text, round=self.round, over="sat")
        if not isinstance(found, FixedFormat | MiniFormat) or (found.integer if isinstance(found, FixedFormat) else found.bias) is None:
            near = ("dynamic<10>", "fixed<20,5>", "minifloat<5,10>", "float32")
            raise UsageError(f"'{text}' is no format to train in", where=f"low_precision.{role}", near=near)
        return found


def learning(low: LowPrecision, loss: Callable[[Beside, Batch, Any], Any]) -> Callable[[Beside, Batch, Any], Any]:
    """The same function of (`Beside`, batch, key) with low-precision products; `Beside.others[SCALES]` holds the exponents."""
    forward, backward = low.format("forward"), low.format("backward")

    def in_low_precision(params: Beside, batch: Batch, key: Any) -> Any:
        def product(number: int, left: jax.Array, right: jax.Array, dot: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
            own = folded(folded(key, number), 0x10)
            return _product(forward, backward, dot)(left, right, params.others[SCALES][number], own)

        return with_products(lambda network, others: loss(Beside(network, others), batch, key), product)(params.network, params.others)

    return in_low_precision


def _product(forward: Training, backward: Training, dot: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """(left, right, scales `[6, 3]`, key) -> their product; every operand, result and gradient in its format."""

    def brought(to: Training, x: jax.Array, scales: jax.Array, group: int, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        own = folded(key, group)
        if isinstance(to, DynamicFormat):
            return to.nearest(x, scales[group, 0], own), to.rates(x, scales[group, 0])
        return x if to is None else to.nearest(x, own), jnp.zeros(COUNTS)

    @jax.custom_vjp
    def product(left: jax.Array, right: jax.Array, scales: jax.Array, key: jax.Array | None) -> jax.Array:
        return ahead(left, right, scales, key)[0]

    def ahead(left: jax.Array, right: jax.Array, scales: jax.Array, key: jax.Array | None) -> tuple[jax.Array, Any]:
        (left, of_left), (right, of_right) = brought(forward, left, scales, 0, key), brought(forward, right, scales, 1, key)
        result, of_result = brought(forward, dot(left, right), scales, 2, key)
        return result, (left, right, scales, key, jnp.stack([of_left, of_right, of_result]))

    def back(saved: Any, gradient: jax.Array) -> tuple[Any, ...]:
        left, right, scales, key, counts = saved
        gradient, of_gradient = brought(backward, gradient, scales, 3, key)
        found = jax.vjp(dot, left, right)[1](gradient)
        (to_left, of_left), (to_right, of_right) = (brought(backward, g, scales, 4 + k, key) for k, g in enumerate(found))
        return to_left, to_right, jnp.concatenate([counts, jnp.stack([of_gradient, of_left, of_right])]), None

    product.defvjp(ahead, back)
    return product


def _followed(low: LowPrecision, period: int, integer: jax.Array, counts: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Exponents `[...]` after this step and the counts `[..., 3]` since their last change: zero again where they may have changed."""
    due = (step + 1) % period == 0
    settled = jnp.where(due, moved(integer, counts / period, low.overflow), integer)
    settling = step < SETTLING
    return jnp.where(settling, jnp.ceil(counts[..., 2]), settled), jnp.where(due | settling, 0.0, counts)


class _Following(NamedTuple):
    """The step, and what groups counted since their last change."""

    step: jax.Array
    counts: jax.Array


def exponents(low: LowPrecision, *, batch: int) -> optax.GradientTransformation:
    """The optimiser of the exponents: they follow their groups. batch: examples per step."""
    period = max(1, round(low.every / batch))

    def init(scales: Any) -> _Following:
        return _Following(jnp.zeros((), jnp.int32), jnp.zeros_like(scales))

    def update(counted: Any, state: Any, scales: Any = None) -> tuple[Any, Any]:
        assert scales is not None
        integer, counts = _followed(low, period, scales[..., 0], state.counts + counted, state.step)
        return jnp.zeros_like(scales).at[..., 0].set(integer - scales[..., 0]), _Following(state.step + 1, counts)

    return optax.GradientTransformation(init, update)


class _Stored(NamedTuple):
    """Of the optimiser of the network: its own, the step, and the exponents of stored parameters with what they counted since their last change."""

    own: Any
    step: jax.Array
    exponents: jax.Array
    counts: jax.Array


def storage(low: LowPrecision, inner: optax.GradientTransformation, *, batch: int, seed: int) -> optax.GradientTransformation:
    """An optimiser of the network's parameters that leaves them in the format of the storage.

    Args:
        low: the formats.
        inner: what wants to change them.
        batch: examples per step.
        seed: of stochastic rounding.
    """
    to, period = low.format("storage"), max(1, round(low.every / batch))

    def init(params: Any) -> _Stored:
        leaves = list(map(jnp.asarray, jax.tree.leaves(params)))
        return _Stored(inner.init(params), jnp.zeros((), jnp.int32), jnp.stack([_fitting(leaf) for leaf in leaves]), jnp.zeros((len(leaves), COUNTS)))

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        assert params is not None
        wanted, own = inner.update(gradients, state.own, params)
        old, structure = jax.tree.flatten(params)
        new = [p + u for p, u in zip(old, jax.tree.leaves(wanted), strict=True)]
        key = jax.random.fold_in(jax.random.key(seed), state.step) if low.round == "stochastic" else None
        stored, counts = state.exponents, state.counts
        if isinstance(to, DynamicFormat):
            rates = jnp.stack([to.rates(p, e) for p, e in zip(new, stored, strict=True)])
            stored, counts = _followed(low, period, stored, counts + rates, state.step)
        kept = []
        for k, p in enumerate(new):
            mine = folded(key, k)
            kept.append(to.nearest(p, stored[k], mine) if isinstance(to, DynamicFormat) else p if to is None else to.nearest(p, mine))
        # The difference of two numbers of at most 24 bits apart is exact, and so is its sum with the old one: the parameters are on their grid.
        return jax.tree.unflatten(structure, [b - a for a, b in zip(old, kept, strict=True)]), _Stored(own, state.step + 1, stored, counts)

    return optax.GradientTransformation(init, update)


def _fitting(leaf: jax.Array) -> jax.Array:
    """Integer bits that hold all of a parameter; 0 where it begins as zeros."""
    return jnp.where(jnp.any(leaf != 0), holding(leaf), 0.0)


def scales(low: LowPrecision, loss: Callable[[Beside, Batch, Any], Any], params: Beside, example: Batch, *, batch: int) -> Companion:
    """The exponents as a companion.

    Args:
        low: the formats.
        loss: what is learnt, not yet in low precision.
        params: the network's, with every other companion.
        example: a batch, for its shapes.
        batch: examples per step.

    Raises:
        UsageError: the network has products that cannot be replaced.
    """
    products = count_products(lambda network, others, b: loss(Beside(network, others), b, jax.random.key(0)), params.network, params.others, example)
    return Companion(jnp.zeros((products, GROUPS, COUNTS)), lambda _chosen: exponents(low, batch=batch))
