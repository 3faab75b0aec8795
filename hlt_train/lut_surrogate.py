"""LUTs and delay of a network in an FPGA, predicted without tracing it: constants fitted to alkaid's own estimates of small networks of the same inputs.

alkaid turns a product with a constant into additions, one for each signed digit of the weight but the first, and each as wide as the number it adds. What is
counted is that, and what else handles numbers one by one: rounding and saturation, and the masks of constituents that may not exist. The fit, never below 0, is
of relative errors; networks that took no part in it tell how far to trust it. alkaid has no random numbers, so the same networks give the same constants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import nnls

from hlt_train.cost import bits_of
from hlt_train.exporters._alkaid_trace import costs, refuse, trace
from hlt_train.graph import Graph
from hlt_train.nodes import Affine, Flatten, Pool, Requant, Window
from hlt_train.proof import prove

__all__ = ["FORMAT", "estimate_logic", "fit", "predict"]

FORMAT = ("hlt-train/lut-surrogate", 1)
AREA = ("digit_bits", "requant_bits", "mask_bits")
DELAY = ("layer", "levels", "requant", "pool")


def estimate_logic(graph: Graph, clock_ns: float) -> dict[str, float]:
    """What alkaid itself says: `luts` and `cycles`. Takes a second for an MLP and minutes for large collections."""
    found = costs(trace(graph), clock_ns)
    return {"luts": float(found["luts"]), "cycles": float(found["cycles"]), "delay_ns": float(found["delay_ns"])}


def fit(graphs: Sequence[Graph], clock_ns: float, held_out: int) -> dict[str, Any]:
    """Trace `graphs` and fit both models; the last `held_out` take no part. Returns constants and relative errors (median, worst)."""
    traced = [estimate_logic(graph, clock_ns) for graph in graphs]
    content: dict[str, Any] = {"clock_ns": clock_ns, "networks": len(graphs) - held_out}
    for name, terms, target in (("luts", AREA, "luts"), ("delay_ns", DELAY, "delay_ns")):
        rows = np.array([[_counts(graph)[term] for term in terms] for graph in graphs])
        found = np.array([one[target] for one in traced])
        used = len(graphs) - held_out
        constants, _ = nnls(rows[:used] / found[:used, None], np.ones(used))
        errors = np.abs(rows @ constants / found - 1)
        told = {part: {"median": float(np.median(e)), "worst": float(e.max())} for part, e in (("fit", errors[:used]), ("held_out", errors[used:]))}
        content[name] = {"constants": dict(zip(terms, constants.tolist(), strict=True)), **told}
    return content


def predict(table: Mapping[str, Any], graph: Graph) -> dict[str, float]:
    """`luts` and `cycles`, by a table of `fit`.

    Raises:
        UsageError: alkaid cannot hold the network; the message names the node.
    """
    refuse(graph)
    counted = _counts(graph)
    luts, delay = (sum(constant * counted[term] for term, constant in table[name]["constants"].items()) for name in ("luts", "delay_ns"))
    return {"luts": float(luts), "cycles": float(np.ceil(delay / table["clock_ns"]))}


def _counts(graph: Graph) -> dict[str, float]:
    """How much there is of what the two models count."""
    proofs = prove(graph)
    found = dict.fromkeys((*AREA, *DELAY), 0.0)
    for node in graph.nodes:
        times = graph.structure[node.name].length or 1
        if isinstance(node, Affine):
            source = proofs[node.sources[0]]
            digits = _digits(node.w)
            found["digit_bits"] += times * float((digits * (bits_of(source.lo, source.hi)[:, None] + 1)).sum())
            found["layer"] += 1
            found["levels"] += float(np.log2(max(2, int(digits.sum(axis=0).max(initial=0)))))
        elif isinstance(node, Requant):
            found["requant_bits"] += times * float(np.broadcast_to(node.quant.to.width, graph.structure[node.name].n).sum())
            found["requant"] += 1
        elif isinstance(node, Flatten | Pool | Window):
            before = graph.structure[node.sources[0]]
            source = proofs[node.sources[0]]
            found["mask_bits"] += (before.length or 1) * float(bits_of(source.lo, source.hi).sum())
            found["pool"] += float(np.log2(before.length or 1)) if isinstance(node, Pool) else 0.0
    return found


def _digits(w: np.ndarray) -> np.ndarray:
    """Digits other than 0 of each weight in its canonical signed form: the bits in which n and 3 n differ."""
    n = np.abs(w)
    found: np.ndarray = np.bitwise_count(n ^ (3 * n)).astype(np.int64)
    return found
