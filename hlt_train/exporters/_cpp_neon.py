"""The NEON path of the C++ header: every 64-bit ARM processor has it, so it is chosen by the architecture and needs no test at run time.

It is the path of the wide registers with 128 bits, and multiplies int16 only: `smlal` adds four products of one input and four outputs to four sums.
"""

from __future__ import annotations

import numpy as np

from hlt_train.exporters._cpp_plan import Value
from hlt_train.exporters._cpp_wide import KERNELS, Wide
from hlt_train.nodes import Affine

__all__ = ["Neon"]


class Neon(Wide):
    """Writes the NEON path of one graph."""

    name = "neon"
    guard = KERNELS["madd128"].guard
    kernels = ("madd128",)

    def _kind(self, value: Value) -> str:
        """Bytes would have to be widened: they are never multiplied as such."""
        pairs = isinstance(value.node, Affine) and value.proof is not None and value.proof.madd_i16
        return "pairs" if pairs and self._sources(value)[0].type == "std::int16_t" else ""

    @staticmethod
    def _laid(weights: np.ndarray) -> np.ndarray:
        """[groups, pair, units, unit] -> [unit, group, register, input of the pair, four outputs]."""
        groups, pair, units, unit = weights.shape
        return np.asarray(weights.reshape(groups, pair, units, unit // 4, 4).transpose(2, 0, 3, 1, 4).ravel())
