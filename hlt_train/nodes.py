"""The nodes of the IR and the number formats that they carry: plain data, checked where a node can be checked alone.

An integer node's value is `n * 2**-f` with an integer n per element and an exponent f per feature; a float node's value is float32. Exponents and widths are
`Ints`: one for all features, or one per feature. A per-element format of padded constituents is a per-feature format after `Flatten`.

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
    "Input",
    "Ints",
    "Node",
    "Output",
    "Overflow",
    "Pool",
    "PoolKind",
    "Quant",
    "Requant",
    "Round",
    "Window",
]

Ints = int | np.ndarray  # a scalar, or int64 [n], one per feature
Round = Literal["floor", "half_up", "half_even"]
Overflow = Literal["wrap", "sat", "sat_sym"]
PoolKind = Literal["sum", "max", "mean"]


@dataclass(frozen=True, eq=False)
class Fixed:
    """A fixed-point format: value = n * 2**-f with n an integer of `signed + i + f` bits (i may be negative). `fixed<W,I>` is signed, i = I - 1, f = W - I.

    A width of zero (or less) is the constant 0.
    """

    signed: bool
    i: Ints
    f: Ints

    @property
    def width(self) -> np.ndarray:
        """Bits, int64, scalar or `[n]`; 0 for the constant 0."""
        return np.asarray(np.maximum(np.asarray(self.i, np.int64) + np.asarray(self.f, np.int64) + int(self.signed), 0))


@dataclass(frozen=True, eq=False)
class Quant:
    """A format, how bits are dropped below it, and what happens beyond it. There is no default mode.

    mantissa: None for fixed point. With M, of the integers of `to` only those of at most M + 1 significant bits are values, as in a minifloat of M mantissa
    bits: n is rounded to a multiple of 2**(msb(n) - M) where that is above 1, and saturates at the largest such integer of either sign (`sat_sym`).
    """

    to: Fixed
    round: Round
    over: Overflow
    mantissa: int | None = None


@dataclass(frozen=True, eq=False)
class Node:
    """name: unique in the graph; sources: names of the nodes it reads, all earlier in the graph."""

    name: str
    sources: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Input(Node):
    """float32 x -> integers: t = fl32(fl32(x - centre) * fl32(scale * 2**f)); NaN -> `nan`; clamp to [lo, hi]; round half to even (`docs/numbers.md`).

    lo, hi: int64 `[n_vars]`, the card's clip within the format, rounded inwards. length None: scalars. `quant` is half_even + sat, others are refused.
    `hlt_train.graph.input_node` derives all of it from a `Group` and a format.
    """

    group: str
    variables: tuple[str, ...]
    length: int | None
    centre: np.ndarray  # float32 [n_vars]
    scale: np.ndarray  # float32 [n_vars]
    lo: np.ndarray  # int64 [n_vars]
    hi: np.ndarray  # int64 [n_vars]
    nan: np.ndarray  # int64 [n_vars]
    quant: Quant


@dataclass(frozen=True, eq=False)
class Affine(Node):
    """acc = sum_i n_i w[i, o] + b[o], exact; then ReLU when `relu`. Value of output o: acc * 2**-f[o].

    The real weight is w[i, o] * 2**(f_source[i] - f[o]): the alignment of per-feature inputs is folded into w.
    """

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
class Flatten(Node):
    """Padded constituents `[length, n]` of `group` -> `[length * n]`, constituent by constituent; those at index >= count become 0."""

    group: str


@dataclass(frozen=True, eq=False)
class Window(Node):
    """Constituents `[length, n]` of `group` -> for output position j the neighbours j * stride - before + k, k < kernel, one after the other.

    Shape: `[(length + before + after - kernel) // stride + 1, kernel * n]`. A neighbour outside of the collection or at index >= count is 0. Position j exists
    where j * stride < count: what follows counts `Structure.present` of them. A convolution is a Window and an Affine or FloatAffine; float32 passes unchanged.
    """

    kernel: int
    stride: int
    before: int
    after: int
    group: str


@dataclass(frozen=True, eq=False)
class Pool(Node):
    """Over the constituents of `group` with index < count; 0 for count 0. sum and max are exact; mean requires `quant` and is the exactly rounded rational."""

    kind: PoolKind
    group: str
    quant: Quant | None = None


@dataclass(frozen=True, eq=False)
class FloatInput(Node):
    """float32 x -> z = clip(fl32(fl32(x - centre) * scale), lo, hi), NaN -> `nan`; lo and hi may be infinite."""

    group: str
    variables: tuple[str, ...]
    length: int | None
    centre: np.ndarray  # float32 [n_vars], as the four below
    scale: np.ndarray
    lo: np.ndarray
    hi: np.ndarray
    nan: np.ndarray


@dataclass(frozen=True, eq=False)
class FloatAffine(Node):
    """x @ w + b in float32, then the activation. gelu is the tanh form, silu is x * sigmoid(x)."""

    w: np.ndarray  # float32 [I, O]
    b: np.ndarray  # float32 [O]
    activation: Literal["none", "relu", "tanh", "gelu", "silu"]


@dataclass(frozen=True, eq=False)
class FloatPool(Node):
    """As `Pool`, in float32."""

    kind: PoolKind
    group: str


@dataclass(frozen=True, eq=False)
class Output(Node):
    """The end of the contract: logits. `link` names what turns them into probabilities outside of it.

    score: int64 `[n_outputs]`, the discriminant as an integer combination of the logits (aligned to their largest f); None for float graphs.
    """

    names: tuple[str, ...]
    link: Literal["none", "softmax", "argmax"]
    score: np.ndarray | None = None
