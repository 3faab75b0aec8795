"""The IR of a network: what students and teachers are lowered to, and all that an exporter ever sees.

A `Graph` is a list of nodes in the order of evaluation. Every node yields one value per event: `[n]` for scalars, `[length, n]` for constituents (those at
index >= count are never read). An integer node's value is `n * 2**-f` with an exponent f per feature; a float node's is float32.

The number contract is `docs/numbers.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = [
    "Add",
    "Affine",
    "Concat",
    "Fixed",
    "Flatten",
    "FloatAffine",
    "FloatInput",
    "FloatPool",
    "Graph",
    "Input",
    "Node",
    "Output",
    "Pool",
    "Quant",
    "Requant",
]

Ints = int | np.ndarray  # a scalar, or one per channel / per element
Round = Literal["floor", "half_up", "half_even"]
Overflow = Literal["wrap", "sat", "sat_sym"]


@dataclass(frozen=True, eq=False)
class Fixed:
    """A fixed-point format: value = n * 2**-f with n an integer of `signed + i + f` bits (i may be negative). `fixed<W,I>` is signed, i = I - 1, f = W - I."""

    signed: bool
    i: Ints
    f: Ints


@dataclass(frozen=True, eq=False)
class Quant:
    """A format, how bits are dropped below it, and what happens beyond it. There is no default mode."""

    to: Fixed
    round: Round
    over: Overflow


@dataclass(frozen=True, eq=False)
class Node:
    """name: unique in the graph; sources: names of the nodes it reads."""

    name: str
    sources: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether the node computes in integers."""
        return not type(self).__name__.startswith("Float")


@dataclass(frozen=True, eq=False)
class Input(Node):
    """float32 x -> integers: t = fl32(fl32(x - centre) * fl32(scale * 2**f)); NaN -> `nan`; clamp to [lo, hi]; round half to even (`docs/numbers.md`).

    lo, hi: int64 `[n_vars]`, the card's clip within the format, rounded inwards. length None: scalars.
    """

    group: str
    variables: tuple[str, ...]
    length: int | None
    centre: np.ndarray  # float32 [n_vars]
    scale: np.ndarray  # float32 [n_vars]
    lo: np.ndarray
    hi: np.ndarray
    nan: np.ndarray  # int64 [n_vars]
    quant: Quant


@dataclass(frozen=True, eq=False)
class Affine(Node):
    """acc = sum_i n_i w[i, o] + b[o], exact; then ReLU when `relu`. Value of output o: acc * 2**-f[o]. The alignment of per-element inputs is folded into w."""

    w: np.ndarray  # int64 [I, O]
    b: np.ndarray  # int64 [O]
    f: np.ndarray  # int64 [O], exponent of the accumulator
    relu: bool


@dataclass(frozen=True, eq=False)
class Requant(Node):
    """The only node that loses bits: shift to the new exponent with the rounding, then overflow."""

    quant: Quant


@dataclass(frozen=True, eq=False)
class Add(Node):
    """Sum of the sources, aligned to the largest f, exact."""


@dataclass(frozen=True, eq=False)
class Concat(Node):
    """Sources along the feature axis, exact."""


@dataclass(frozen=True, eq=False)
class Pool(Node):
    """Over the constituents of `group` with index < count; 0 for count 0. sum and max are exact; mean requires `quant` and is the exactly rounded rational."""

    kind: Literal["sum", "max", "mean"]
    group: str
    quant: Quant | None = None


@dataclass(frozen=True, eq=False)
class Flatten(Node):
    """Constituents `[length, n]` of `group` -> `[length * n]` (constituent-major: index c * n + j), integer or float as its source.

    Exactly 0 at constituents with index >= count, whatever the source holds there; the format of feature c * n + j is the source's of feature j.
    """

    group: str


@dataclass(frozen=True, eq=False)
class FloatInput(Node):
    """float32 x -> z = clip(fl32(fl32(x - centre) * scale), lo, hi), NaN -> `nan`."""

    group: str
    variables: tuple[str, ...]
    length: int | None
    centre: np.ndarray
    scale: np.ndarray
    lo: np.ndarray
    hi: np.ndarray
    nan: np.ndarray


@dataclass(frozen=True, eq=False)
class FloatAffine(Node):
    """x @ w + b in float32, then the activation (gelu: the exact form x Phi(x), by erf)."""

    w: np.ndarray  # float32 [I, O]
    b: np.ndarray  # float32 [O]
    activation: Literal["none", "relu", "tanh", "gelu", "silu"]


@dataclass(frozen=True, eq=False)
class FloatPool(Node):
    """As `Pool`, in float32."""

    kind: Literal["sum", "max", "mean"]
    group: str


@dataclass(frozen=True, eq=False)
class Output(Node):
    """The end of the contract: logits. `score`: int64 `[n_outputs]`, the discriminant as an integer combination of integer logits; None for float graphs."""

    names: tuple[str, ...]
    link: Literal["none", "softmax", "argmax"]
    score: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Graph:
    """nodes: in the order of evaluation, the last one an `Output`. `Concat` of float and integer nodes is refused."""

    nodes: tuple[Node, ...]
