"""Matrix products between QuantizeLinear and DequantizeLinear, for hardware that multiplies 8-bit integers.

Tensors hold the numbers themselves (n * 2**-f), so every scale is the power of two that hardware turns into a shift; zero points are 0. A Requant that rounds
half to even and saturates is one QuantizeLinear. Bits are the same as without: a runtime that fuses the pattern sums the same integers in int32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hlt_train.arithmetic import limits
from hlt_train.errors import UsageError
from hlt_train.exporters._onnx_nodes import Emitter, powers
from hlt_train.graph import Affine, FloatAffine, FloatInput, Graph, Input, Node, Pool, Requant
from hlt_train.proof import Proof

__all__ = ["QdqEmitter", "qdq_facts"]

_SIGNED, _UNSIGNED = (-128, 127), (0, 255)


def _refuse(node: Node, what: str) -> UsageError:
    return UsageError(
        f"{type(node).__name__} '{node.name}' {what}",
        where=f"node '{node.name}'",
        near=("onnx.quantised=none", "cpp"),
        then="leave out --set onnx.quantised=qdq, or distil with 8-bit formats of one exponent per layer",
    )


def _storage(lo: int, hi: int) -> type[np.int8 | np.uint8] | None:
    """The 8-bit type that holds [lo, hi]."""
    if lo >= _UNSIGNED[0] and hi <= _UNSIGNED[1]:
        return np.uint8
    return np.int8 if lo >= _SIGNED[0] and hi <= _SIGNED[1] else None


class QdqEmitter(Emitter):
    """As `Emitter`, with `values` that hold n * 2**-f."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.operands: dict[str, str] = {}  # node -> its DequantizeLinear
        self.nodes = {node.name: node for node in self.graph.nodes}

    def _f(self, name: str) -> np.ndarray:
        f = self.graph.structure[name].f
        if f is None:
            raise _refuse(self.nodes[name], "is float: it has no integers to quantise to")
        return f

    def _as_values(self, x: str, f: np.ndarray) -> str:
        return x

    def _as_integers(self, x: str, f: np.ndarray) -> str:
        return self.to.op("Mul", x, self.to.constant(powers(f), "grid")) if f.any() else x

    def _scaled(self, n: str, f: np.ndarray) -> str:
        return self.to.op("Mul", n, self.to.constant(powers(-f), "step")) if f.any() else n

    def _least(self) -> float:
        return -np.inf

    def _scale(self, node: Node, f: np.ndarray) -> np.ndarray:
        """2**-f as float32, a scalar where all are equal; refused where float32 does not hold it."""
        if np.abs(f).max() > 126:
            raise _refuse(node, "has a scale outside of 2**-126 to 2**126")
        found = powers(-f)
        return found[:1].reshape(()) if (f == f[0]).all() else found

    def _quantised(self, node: Node, x: str) -> str:
        """Numbers on the grid of `node`, or to be rounded half to even onto it, through 8 bits."""
        to, f, proof = self.to, self._f(node.name), self.proofs[node.name]
        storage = _storage(int(proof.lo.min()), int(proof.hi.max()))
        assert storage is not None
        scale, zero = to.constant(self._scale(node, f), "quantum"), to.constant(np.array(0), "zero_point", storage)
        found = self.operands[node.name] = to.op("DequantizeLinear", to.op("QuantizeLinear", x, scale, zero), scale, zero)
        return found

    def _holds(self, node: Node) -> bool:
        """Whether one 8-bit tensor with one scale holds the node's integers."""
        proof, f = self.proofs[node.name], self._f(node.name)
        return bool((f == f[0]).all()) and _storage(int(proof.lo.min()), int(proof.hi.max())) is not None

    def _operand(self, reader: Affine, x: str) -> str:
        """The 8-bit form of what `reader` multiplies."""
        source = self.nodes[reader.sources[0]]
        if source.name not in self.operands:
            f, proof = self._f(source.name), self.proofs[source.name]
            if not self._holds(source):
                lo, hi = int(proof.lo.min()), int(proof.hi.max())
                if _storage(lo, hi) is None:
                    raise _refuse(source, f"feeds Affine '{reader.name}' with integers from {lo} to {hi}, and QDQ holds 8 bits")
                raise _refuse(source, f"feeds Affine '{reader.name}' with exponents from {int(f.min())} to {int(f.max())}, and QDQ has one scale per tensor")
            return self._quantised(source, x)
        return self.operands[source.name]

    def _input(self, node: Input | FloatInput) -> str:
        integers = super()._input(node)
        return self._scaled(integers, self._f(node.name))

    def _affine(self, node: Affine | FloatAffine, x: str) -> str:
        to, f, source = self.to, self._f(node.name), self._f(node.sources[0])
        assert isinstance(node, Affine)
        lo, hi = int(node.w.min(initial=0)), int(node.w.max(initial=0))
        if lo < _SIGNED[0] or hi > _SIGNED[1]:
            raise _refuse(node, f"has weights from {lo} to {hi}, and QDQ holds 8 bits")
        if np.abs(node.b).max(initial=0) > np.iinfo(np.int32).max:
            raise _refuse(node, "has a bias of more than 32 bits")
        operand = self._operand(node, x)
        weight_scale, bias_scale = self._scale(node, f - source[0]), self._scale(node, f)
        along = {"axis": 1} if weight_scale.ndim else {}
        # The zero point may be left out, but ONNX Runtime then adds a scalar one, which its kernel refuses beside a scale per output.
        zero = to.constant(np.zeros(weight_scale.shape), "weight_zero_point", np.int8)
        weight = to.op("DequantizeLinear", to.constant(node.w, "weight", np.int8), to.constant(weight_scale, "weight_scale"), zero, **along)
        along = {"axis": 0} if bias_scale.ndim else {}
        bias = to.op("DequantizeLinear", to.constant(node.b, "bias", np.int32), to.constant(bias_scale, "bias_scale"), **along)
        if self.graph.structure[node.name].length is None:
            y = to.op("Gemm", operand, weight, bias)
        else:
            y = to.op("Add", to.op("MatMul", operand, weight), bias)
        return to.op("Relu", y) if node.relu else y

    def _requant(self, node: Requant, n: str) -> str:
        f, target, quant = self._f(node.sources[0]), self._f(node.name), node.quant
        rounds = bool((f > target).any())
        if quant.over != "wrap" and quant.mantissa is None and (quant.round == "half_even" or not rounds) and self._holds(node):
            return self._quantised(node, self._clamped(node, n))
        integers = self._as_integers(n, target)
        return self._scaled(self._rounded(node, integers), target)

    def _clamped(self, node: Requant, n: str) -> str:
        """Within the format before the rounding: its limits lie on the grid, so the order does not matter."""
        before, target, f = self.proofs[node.sources[0]], self._f(node.name), self._f(node.sources[0])
        least, most = limits(node.quant, len(target))
        lo, hi = (end.astype(np.float64) * 2.0**-f for end in (before.lo, before.hi))
        step = 2.0**-target
        if (lo < least * step).any():
            n = self.to.op("Max", n, self.to.constant(least * step, "lo"))
        if (hi > most * step).any():
            n = self.to.op("Min", n, self.to.constant(most * step, "hi"))
        return n

    def _add(self, node: Any, sources: list[str]) -> str:
        total = sources[0]
        for value in sources[1:]:
            total = self.to.op("Add", total, value)
        return total

    def _mean(self, node: Pool, total: str, many: str) -> str:
        integers = super()._mean(node, self._as_integers(total, self._f(node.sources[0])), many)
        return self._scaled(integers, self._f(node.name))


def qdq_facts(graph: Graph, proofs: dict[str, Proof]) -> dict[str, Any]:
    """What the certificate says of the 8-bit products: which of them a CPU without VNNI adds up exactly only with session.x64quantprecision=1."""
    layers = [node for node in graph.nodes if isinstance(node, Affine)]
    return {
        "qdq": {
            "products": [node.name for node in layers],
            "need_vnni_or_x64quantprecision": [node.name for node in layers if not _pairs_fit(node, proofs[node.sources[0]])],
        }
    }


def _pairs_fit(node: Affine, source: Proof) -> bool:
    """Whether no two neighbouring products can leave int16, in which `vpmaddubsw` adds them. Signed activations are multiplied as n + 128."""
    most = source.hi if source.lo.min() >= 0 else np.full(len(source.hi), 255)
    products = np.abs(node.w) * most[:, None]
    products = np.pad(products, ((0, len(products) % 2), (0, 0)))
    return bool((products[0::2] + products[1::2]).max(initial=0) <= 32767)
