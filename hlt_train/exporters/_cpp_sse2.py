"""The SSE2 path of the C++ header: every x86-64 processor has it, so it is chosen by the architecture and needs no test at run time.

The input step works on four variables at a time. Affine nodes with the proof `madd_i16` multiply pairs of int16 (`pmaddwd`); a Requant behind one that shifts
all its features alike works on eight at a time. Everything else is the plain path's text.
"""

from __future__ import annotations

import numpy as np

from hlt_train.arithmetic import limits
from hlt_train.exporters._cpp_plain import Plain
from hlt_train.exporters._cpp_plan import Value
from hlt_train.exporters._cpp_text import array, float_literal, int_literal
from hlt_train.nodes import Affine, Input, Quant

__all__ = ["Sse2"]

_LANES = 8  # outputs and inputs are padded to it with zeros
_BLOCK = 32  # outputs that are accumulated at once, 8 registers


class Sse2(Plain):
    """Writes the SSE2 path of one graph."""

    name = "sse2"
    guard = "defined(__x86_64__) || defined(_M_X64)"

    def _input(self, value: Value, node: Input) -> list[str]:
        if value.type != "std::int16_t":
            return super()._input(value, node)
        names = []
        for name, values in (("centre", node.centre), ("scale", self.plan.scale(node)), ("lo", node.lo), ("hi", node.hi), ("nan", node.nan)):
            padded = np.zeros(self.padded(value), np.int64 if name == "nan" else np.float32)
            padded[: value.n] = values
            names.append(f"{value.word}_{name}_")
            literals = [int_literal(v) for v in padded.tolist()] if name == "nan" else [float_literal(v) for v in padded.tolist()]
            self.constants.append(array("std::int32_t" if name == "nan" else "float", names[-1], padded.shape, literals))
        return [f"quantise_all<{value.n}>({self._x(node)}, {', '.join(names)}, {value.word});"]

    def _affine(self, value: Value, node: Affine) -> list[str]:
        if not self._madd(value):
            return super()._affine(value, node)
        source = self._sources(value)[0]
        outputs = self.padded(value)
        weights = np.zeros((self.padded(source), outputs), np.int64)
        weights[: source.n, : value.n] = node.w
        bias = np.zeros(outputs, np.int64)
        bias[: value.n] = node.b
        blocks = [weights[:, k : k + _BLOCK] for k in range(0, outputs, _BLOCK)]
        # [inputs, width] -> [pairs of inputs, width, 2]
        laid = np.concatenate([block.reshape(len(block) // 2, 2, -1).transpose(0, 2, 1).ravel() for block in blocks])
        self.constants.append(array("std::int16_t", f"{value.word}_w_", (len(laid),), [int_literal(w) for w in laid.tolist()]))
        self.constants.append(array("std::int32_t", f"{value.word}_b_", (outputs,), [int_literal(b) for b in bias.tolist()]))
        return [f"affine_madd<{'true' if node.relu else 'false'}>({source.word}, {value.word}_w_, {value.word}_b_, {value.word});"]

    def _requantise(self, value: Value, quant: Quant, source: Value) -> str:
        if not self._packs(value, quant, source):
            return super()._requantise(value, quant, source)
        names = []
        for side, limit in zip(("lo", "hi"), limits(quant, value.n), strict=True):
            padded = np.zeros(self.padded(value), np.int64)
            padded[: value.n] = np.clip(limit, -(2**15), 2**15 - 1)
            names.append(f"{value.word}_{side}_")
            self.constants.append(array("std::int16_t", names[-1], padded.shape, [int_literal(v) for v in padded.tolist()]))
        shift = int(source.f[0] - value.f[0])
        return f"requantise_sat<Round::{quant.round}, {shift}>({source.word}, {names[0]}, {names[1]}, {value.word});"

    def _packs(self, value: Value, quant: Quant, source: Value) -> bool:
        """Whether int32 in whole registers become int16 by one shift to the right; what wraps must be proved not to."""
        shift = source.f - value.f
        if not (isinstance(source.node, Affine) and self._madd(source) and value.type == "std::int16_t" and np.ptp(shift) == 0 and 0 < shift[0] <= 30):
            return False
        bound = max(abs(int(source.lo.min())), abs(int(source.hi.max()))) + 2 ** (int(shift[0]) - 1)
        return bound < 2**31 and (quant.over != "wrap" or self._inside(value, quant, source))

    def _madd(self, value: Value) -> bool:
        return value.madd and self._sources(value)[0].type == "std::int16_t"

    def _in_place(self, source: Value) -> bool:
        return source.type != "std::int16_t" or source.n % _LANES == 0  # whole aligned registers are read

    def padded(self, value: Value) -> int:
        if value.type == "std::int32_t" and isinstance(value.node, Affine) and self._madd(value):
            return -(-value.n // _LANES) * _LANES
        return super().padded(value)
