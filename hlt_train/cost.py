"""What a network costs: parameters, multiply-accumulates, and bit operations (the sum over multiplications of weight bits times activation bits).

The bits of a weight are those from its highest to its lowest that is set: a factor of 2**k is a shift, and so is the exponent of a single input. The bits of
an activation are those of the narrowest integer that holds all that it can be. Both count a sign bit only where something is below 0.
"""

from __future__ import annotations

import numpy as np

from hlt_train.graph import Affine, FloatAffine, Graph
from hlt_train.proof import Proof, prove

__all__ = ["bits_of", "cost"]


def bits_of(lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
    """Bits of the narrowest integer that holds [lo, hi], int64; a sign bit only where lo < 0; 0 for the constant 0."""
    magnitude = np.maximum(hi, -lo - 1)  # -2**k needs no more bits than 2**k - 1
    return np.array([int(m).bit_length() for m in np.maximum(magnitude, 0).ravel()], np.int64).reshape(magnitude.shape) + (lo < 0)


def _bit_operations(node: Affine, source: Proof) -> int:
    activation = bits_of(source.lo, source.hi)
    odd = node.w // np.maximum(node.w & -node.w, 1)
    return int((bits_of(odd, odd) * activation[:, None]).sum())


def cost(graph: Graph) -> dict[str, int]:
    """parameters, macs, and bit_operations at the full length of every collection; a zero weight costs nothing in bits, a float weight 32 x 32."""
    proofs = prove(graph)
    total = {"parameters": 0, "macs": 0, "bit_operations": 0}
    for node in graph.nodes:
        if isinstance(node, Affine | FloatAffine):
            length = graph.structure[node.name].length or 1
            total["parameters"] += node.w.size + node.b.size
            total["macs"] += node.w.size * length
            bits = _bit_operations(node, proofs[node.sources[0]]) if isinstance(node, Affine) else 32 * 32 * node.w.size
            total["bit_operations"] += bits * length
    return total
