"""What a network with learned bits costs: a price with a gradient for the bits while they are learned, and the figure of the lowered graph that is reported.

- bit_operations: the sum over all multiplications of weight bits times activation bits (`hlt_train.cost`)
- luts: alkaid's estimate as `hlt_train.lut_surrogate` predicts it. A weight counts by its signed digits; a fraction bit is worth a third of a digit, which is
  their mean density (Reitwiesner, Advances in Computers 1, 1960).
- cpu: ns of a call as `hlt_train.latency_table` predicts it. Kernels take whole units whatever their bits, so the price counts the units that are alive. All
  bits of a unit together are worth the unit, so one bit gets the slope of the line from the unit with its present bits to none; a begun tile, or vector, counts
  as a whole one, and its gradient is that of the part of it which is used.

Prices are those of the prediction where all units are alive and values fill their formats; the graph proves narrower ranges and has no dead units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hlt_train import latency_table, lut_surrogate
from hlt_train.cost import cost
from hlt_train.graph import Graph
from hlt_train.models._widths import Learned, LearnedDense
from hlt_train.nodes import Affine, Concat, Flatten, Input, Node, Pool, Requant, Window

__all__ = ["Cost", "bit_operations", "cpu", "luts"]


class Cost(NamedTuple):
    """unit: of the front; price: differentiable, of learned bits, in that unit; of: what the front reports of a lowered graph."""

    unit: str
    price: Callable[[Learned], jax.Array]
    of: Callable[[Graph], float]


def bit_operations() -> Cost:
    """Bit operations of a call."""
    return Cost("bit_operations", Learned.bit_operations, lambda graph: float(cost(graph)["bit_operations"]))


def luts(graph: Graph, table: Mapping[str, Any]) -> Cost:
    """LUTs of an FPGA; graph: the network with the bits that it begins with, dead units included; table: of `lut_surrogate.fit`."""
    constants = table["luts"]["constants"]

    def price(learned: Learned) -> jax.Array:
        parts, total = learned.parts(), jnp.zeros(())
        width = _widths(graph, parts)
        for node in graph.nodes:
            times = float(graph.structure[node.name].length or 1)
            if isinstance(node, Affine):
                source = width[node.sources[0]]
                total += constants["digit_bits"] * times * jnp.sum(parts[node.name].weight_digits @ jnp.where(source > 0, source + 1, 0))
            elif isinstance(node, Requant):
                total += constants["requant_bits"] * times * jnp.sum(width[node.name])
            elif isinstance(node, Flatten | Pool | Window):
                before = graph.structure[node.sources[0]].length or 1
                total += constants["mask_bits"] * before * jnp.sum(width[node.sources[0]])
        return total

    return Cost("luts", price, lambda lowered: lut_surrogate.predict(table, lowered)["luts"])


def cpu(graph: Graph, table: Mapping[str, Any], path: str, counts: Mapping[str, float]) -> Cost:
    """Nanoseconds of a call of the C++ header.

    Args:
        graph: the network with the bits that it begins with, dead units included.
        table: of `latency_table.calibrate`.
        path: code path of the header.
        counts: group -> mean constituents of an event.
    """
    constants = table["paths"][path]["ns"]
    inputs, outputs = latency_table.TILE[path]
    lanes = latency_table.LANES[path]

    def price(learned: Learned) -> jax.Array:
        parts = learned.parts()
        width = _widths(graph, parts)
        alive = _alive(graph, parts, width)
        total = jnp.asarray(constants["call"], jnp.float32)
        for node in graph.nodes:
            structure = graph.structure[node.name if isinstance(node, Input) else node.sources[0]]
            times = latency_table.repeats(structure, counts)
            if isinstance(node, Input):
                total += constants["input"] * times * -(-structure.n // lanes)
            elif isinstance(node, Affine):
                tiles = _begun(jnp.sum(alive[node.sources[0]]), inputs) * _begun(jnp.sum(alive[node.name]), outputs)
                total += times * (constants["layer"] + constants["tile"] * tiles)
            elif isinstance(node, Window | Flatten):
                kernel = node.kernel if isinstance(node, Window) else 1
                total += constants.get("gather", 0.0) * times * _begun(kernel * jnp.sum(alive[node.sources[0]]), lanes)
            elif isinstance(node, Requant | Pool):
                kind = "requant" if isinstance(node, Requant) else "pool"
                total += constants[kind] * times * _begun(jnp.sum(alive[node.sources[0]]), lanes)
        return total

    return Cost("ns", price, lambda lowered: latency_table.predict(table, lowered, path, counts))


def _widths(graph: Graph, parts: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Node -> bits of what it yields, `[features]`; of nodes that lose none, those of what they read."""

    def own(node: Node, _found: dict[str, jax.Array]) -> jax.Array | None:
        bits = parts[node.group].bits if isinstance(node, Input) else None
        if isinstance(node, Requant):
            part = parts[node.sources[0]]
            bits = part.out if isinstance(part, LearnedDense) else part.bits
        elif isinstance(node, Pool) and node.quant is not None:
            bits = parts[node.name].bits
        elif isinstance(node, Affine):
            return jnp.zeros(graph.structure[node.name].n)  # sums: nothing but a Requant or the output reads them
        return None if bits is None else jnp.broadcast_to(bits.width, graph.structure[node.name].n)

    return _along(graph, own)


def _alive(graph: Graph, parts: Mapping[str, Any], width: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Node -> 1 for features that are alive, `[features]`: with bits, and of a layer with some weight that is not 0. Variables of inputs always are."""

    def own(node: Node, found: dict[str, jax.Array]) -> jax.Array | None:
        n = graph.structure[node.name].n
        if isinstance(node, Input):
            return jnp.ones(n)
        if isinstance(node, Affine):
            layer: LearnedDense = parts[node.name]
            if layer.out is None:
                return jnp.ones(n)
            return _unit(jnp.broadcast_to(layer.out.width, n)) * jax.lax.stop_gradient(jnp.any(layer.weight != 0, axis=1))
        bits = width[node.name]
        lossy = (isinstance(node, Requant) and not isinstance(parts[node.sources[0]], LearnedDense)) or (isinstance(node, Pool) and node.quant is not None)
        return found[node.sources[0]] * _unit(bits) if lossy else None

    return _along(graph, own)


def _along(graph: Graph, own: Callable[[Node, dict[str, jax.Array]], jax.Array | None]) -> dict[str, jax.Array]:
    """Node -> `own` of it, or what its sources have, laid out as the node does."""
    found: dict[str, jax.Array] = {}
    for node in graph.nodes:
        value = own(node, found)
        if value is None:
            sources = [found[name] for name in node.sources]
            value = jnp.concatenate(sources) if isinstance(node, Concat) else sources[0]
            value = jnp.tile(value, graph.structure[node.name].n // len(value))
        found[node.name] = value
    return found


def _unit(width: jax.Array) -> jax.Array:
    """1 where there are bits, with the slope of the line to 0 at none."""
    now = jax.lax.stop_gradient(width)
    return jnp.where(now > 0, 1 + (width - now) / jnp.maximum(now, 1), 0)


def _begun(count: jax.Array, size: int) -> jax.Array:
    """Pieces of `size` that hold `count`, the last one as a whole; its gradient is 1 / size."""
    pieces = count / size
    return pieces + jax.lax.stop_gradient(jnp.ceil(pieces) - pieces)
