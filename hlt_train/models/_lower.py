"""From the parts of a model to nodes of the graph: the integers that a fixed-point part stands for, or its float32 arrays."""

from __future__ import annotations

import jax
import numpy as np

from hlt_train.errors import RunFailed, UsageError
from hlt_train.graph import (
    Affine,
    Concat,
    Fixed,
    Flatten,
    FloatAffine,
    FloatPool,
    Graph,
    Node,
    Output,
    Pool,
    Quant,
    Requant,
    Window,
    float_input_node,
    input_node,
)
from hlt_train.models._layers import Dense, GroupInput, fixed_of
from hlt_train.models._pooling import Pooling
from hlt_train.precision.formats import NumberFormat
from hlt_train.precision.minifloat import MiniFormat
from hlt_train.types import Group

__all__ = ["Lowering"]


LARGEST = 2.0**62  # integers below it, and twice them, are int64


def quant_of(to: NumberFormat) -> Quant:
    """The graph's form of a format with its modes; what is rounded at random in training is rounded to the nearest elsewhere."""
    round = "half_even" if to.round == "stochastic" else to.round
    if isinstance(to, MiniFormat):
        return Quant(Fixed(True, to.hi.bit_length() - to.f, to.f), round, "sat_sym", to.mantissa)
    return Quant(fixed_of(to), round, to.over)


class Lowering:
    """Collects nodes in the order of evaluation; every method returns the name of the last node it added."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def input(self, part: GroupInput, group: Group) -> str:
        """The input step of one group."""
        name = f"{part.name}_input"
        return self._add(float_input_node(name, group) if part.format is None else input_node(name, group, fixed_of(part.format)))

    def flatten(self, source: str, group: str) -> str:
        """Constituents to one row."""
        return self._add(Flatten(f"{group}_flat", (source,), group))

    def window(self, name: str, source: str, group: str, *, kernel: int, stride: int, before: int, after: int) -> str:
        """Neighbours one after the other."""
        return self._add(Window(name, (source,), kernel, stride, before, after, group))

    def concat(self, name: str, sources: list[str]) -> str:
        """Sources along the feature axis; nothing is added for a single source."""
        return sources[0] if len(sources) == 1 else self._add(Concat(name, tuple(sources)))

    def dense(self, layer: Dense, source: str) -> str:
        """A dense layer: the affine map with its activation, then the loss of bits."""
        assert layer.exponents is None, "dynamic formats are settled before a network is lowered"
        w, b = (np.asarray(jax.device_get(v)) for v in layer.parameters())
        for array in (w, b):
            if not np.isfinite(array).all():
                raise RunFailed(f"layer '{layer.name}' has parameters that are not finite", then="use an earlier checkpoint, or a smaller learning rate")
        if layer.formats is None:
            return self._add(FloatAffine(layer.name, (source,), w.T.astype(np.float32), b.astype(np.float32), layer.activation))
        formats = layer.formats
        if formats.bound >= LARGEST:
            raise UsageError(
                f"layer '{layer.name}' is for training only: its sums can reach 2^{np.log2(formats.bound):.0f}, and 63 bits are exact",
                where=f"precision.layers.{layer.name}",
                near=("minifloat<4,3,auto>", "minifloat<3,2,auto>"),
                then="fewer exponent bits for its weights, or for the activations that it reads",
            )
        shift = formats.source_f - np.array(formats.source.f, np.int64)
        f = np.array(np.broadcast_to(np.asarray(formats.f, np.int64), len(b)))
        integers = _integers(w, (f - formats.source_f)[:, None]).T << shift[:, None]
        bias = _integers(b, f)
        affine = self._add(Affine(layer.name, (source,), integers, bias, f, layer.activation == "relu"))
        return affine if formats.out is None else self._add(Requant(f"{layer.name}_out", (affine,), quant_of(formats.out)))

    def pool(self, part: Pooling, source: str, group: str) -> str:
        """Pooling, then the loss of bits (the mean does both at once)."""
        if part.format is None:
            return self._add(FloatPool(part.name, (source,), part.kind, group))
        quant = quant_of(part.format)
        if part.kind == "mean":
            return self._add(Pool(part.name, (source,), "mean", group, quant))
        pooled = self._add(Pool(part.name, (source,), part.kind, group))
        return self._add(Requant(f"{part.name}_out", (pooled,), quant))

    def output(self, source: str, names: tuple[str, ...], score: np.ndarray | None) -> Graph:
        """The finished graph."""
        self._add(Output("output", (source,), names, "none", score))
        return Graph(tuple(self.nodes))

    def _add(self, node: Node) -> str:
        self.nodes.append(node)
        return node.name


def _integers(values: np.ndarray, f: np.ndarray) -> np.ndarray:
    """Grid values to their integers at the exponents `f`, checked to be on the grid."""
    scaled = np.ldexp(values.astype(np.float64), f)
    integers: np.ndarray = np.rint(scaled).astype(np.int64)
    if not np.array_equal(integers, scaled):
        raise RunFailed("a parameter is not on its grid", then="the quantiser must return grid values; report this")
    return integers
