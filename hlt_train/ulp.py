"""How far an input may be off before bits change: the share of integer inputs and of decisions that flip when every input moves by one float32 step.

Bit-exactness starts at the float32 inputs; before them (libm, the framework's own arithmetic) only this share is known. See `docs/physics.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hlt_train.arithmetic import input_step
from hlt_train.graph import Graph, Input
from hlt_train.structure import scaled
from hlt_train.types import Features

__all__ = ["one_step"]

Decide = Callable[[Features], np.ndarray]


def one_step(graph: Graph, x: Features, decide: Decide) -> dict[str, Any]:
    """Mean over the two directions. decide: features -> bool `[n_points, n]`."""
    moved = [Features({k: np.nextafter(v, np.float32(end)) for k, v in x.groups.items()}, x.counts) for end in (np.inf, -np.inf)]
    before = decide(x)
    decisions = [float((decide(other) != before).mean()) if before.size else 0.0 for other in moved]
    flips = {"rows": before.shape[1], "decisions_flipped": float(np.mean(decisions))}
    if graph.exact:
        total = changed = 0
        for node in graph.inputs:
            assert isinstance(node, Input)
            reference, present = _integers(graph, node, x), _present(node, x)
            for other in moved:
                changed += int((_integers(graph, node, other) != reference)[present].sum())
                total += int(present.sum())
        flips["integer_inputs_flipped"] = changed / max(total, 1)
    return flips


def _integers(graph: Graph, node: Input, x: Features) -> np.ndarray:
    f = graph.structure[node.name].f
    assert f is not None
    return input_step(x.groups[node.group], node.centre, scaled(node.scale, f), node.lo, node.hi, node.nan)


def _present(node: Input, x: Features) -> np.ndarray:
    array = x.groups[node.group]
    if node.length is None:
        return np.ones(array.shape, bool)
    return np.broadcast_to((np.arange(node.length) < x.counts[node.group][:, None])[:, :, None], array.shape)
