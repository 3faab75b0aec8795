"""The float32 arithmetic of the IR: teachers. No promise of bits, only of a stated deviation (`docs/numbers.md`)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from hlt_train.nodes import FloatInput

__all__ = ["activate", "normalise"]

Float32 = npt.NDArray[np.float32]
GELU = np.float32(math.sqrt(2 / math.pi))


def normalise(x: Float32, node: FloatInput) -> Float32:
    """clip((x - centre) * scale, lo, hi), one float32 operation at a time; NaN -> nan."""
    with np.errstate(over="ignore"):  # a finite x may reach inf here, which the clip is for
        z = np.clip((x - node.centre) * node.scale, node.lo, node.hi)
    return np.where(np.isnan(x), node.nan, z)


def activate(y: Float32, activation: str) -> Float32:
    """An activation of `FloatAffine`; gelu in its tanh form."""
    with np.errstate(over="ignore"):  # exp(-y) of a very negative y is inf, and y / inf the right 0
        match activation:
            case "relu":
                return np.maximum(y, np.float32(0))
            case "tanh":
                return np.tanh(y)
            case "silu":
                return np.divide(y, np.float32(1) + np.exp(-y), dtype=np.float32)
            case "gelu":
                inner: Float32 = np.tanh(GELU * (y + np.float32(0.044715) * (y * y * y)))
                gelu: Float32 = np.float32(0.5) * y * (np.float32(1) + inner)
                return gelu
            case _:
                return y
