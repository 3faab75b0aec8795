"""The order of an epoch as a function of (seed, epoch), without state.

Random numbers are the raw 64-bit output of Philox with key (seed, purpose) and counter (0, 0, block, epoch), and a permutation is their stable argsort: the
raw stream of a NumPy bit generator never changes between versions, the methods of `Generator` may.
"""

from __future__ import annotations

import numpy as np

__all__ = ["Order"]

_CLUSTERS, _ROWS = 0, 1


class Order:
    """Deals clusters into blocks and shuffles rows inside blocks.

    Args:
        sizes: int64 `[n_clusters]`, rows of each cluster; clusters without rows are left out.
        seed: of the order, 0 .. 2^64 - 1.
        buffer: a block takes clusters until it has at least this many rows.
        shuffle: False keeps clusters and rows in file order.
    """

    def __init__(self, sizes: np.ndarray, *, seed: int, buffer: int, shuffle: bool) -> None:
        self.sizes = sizes
        self._seed = seed % 2**64
        self._buffer = buffer
        self._shuffle = shuffle

    def blocks(self, epoch: int) -> list[np.ndarray]:
        """The clusters of each block of an epoch; inside a block in file order, which spares opening files twice (its rows are permuted anyway)."""
        clusters = np.flatnonzero(self.sizes)
        if self._shuffle:
            clusters = clusters[self._permutation(len(clusters), _CLUSTERS, 0, epoch)]
        blocks: list[np.ndarray] = []
        begin, rows = 0, 0
        for k, cluster in enumerate(clusters):
            rows += int(self.sizes[cluster])
            if rows >= self._buffer:
                blocks.append(np.sort(clusters[begin : k + 1]))
                begin, rows = k + 1, 0
        return [*blocks, np.sort(clusters[begin:])] if begin < len(clusters) else blocks

    def within(self, epoch: int, block: int, rows: int) -> np.ndarray:
        """int64 `[rows]`: order of the rows of a block."""
        return self._permutation(rows, _ROWS, block, epoch) if self._shuffle else np.arange(rows)

    def _permutation(self, n: int, purpose: int, block: int, epoch: int) -> np.ndarray:
        bits = np.random.Philox(key=np.array([self._seed, purpose], np.uint64), counter=np.array([0, 0, block, epoch], np.uint64))
        numbers = bits.random_raw(n)
        order = np.argsort(numbers)  # four times as fast as a stable sort, and the same where no number comes twice
        sorted_ = numbers[order]
        return np.argsort(numbers, kind="stable") if (sorted_[1:] == sorted_[:-1]).any() else order
