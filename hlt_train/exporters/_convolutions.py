"""What targets share that write windows and masks of constituents as 1-D convolutions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hlt_train.graph import Flatten, Graph, Pool, Window
from hlt_train.structure import Structure

__all__ = ["Span", "bits_of_positions", "masked_groups"]


class Span(NamedTuple):
    """What a convolution reads: kernel, stride and zeros at either end, in positions."""

    kernel: int = 1
    stride: int = 1
    before: int = 0
    after: int = 0

    def positions(self, length: int) -> int:
        """How many it yields of `length`."""
        return (length + self.before + self.after - self.kernel) // self.stride + 1


def masked_groups(graph: Graph) -> list[str]:
    """The collections that have a mask, in the order of the top function's arguments."""
    read = {node.group for node in graph.nodes if isinstance(node, Pool | Flatten | Window)}
    return [node.group for node in graph.inputs if node.length is not None and node.group in read]


def bits_of_positions(length: int, form: Structure) -> tuple[Span, np.ndarray]:
    """The convolution, weights int64 `[kernel, features]`, that makes of a mask of `length` constituents that of every feature of every position.

    A position exists where the constituent that it starts at does, so only the first weight is 1; the kernel is as long as leaves no position too many.
    """
    assert form.length is not None
    span = Span(max(1, length - form.length * form.stride + 1), form.stride)
    w = np.zeros((span.kernel, form.n), np.int64)
    w[0] = 1
    return span, w
