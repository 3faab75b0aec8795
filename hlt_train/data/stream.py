"""Batches in a seeded order, in bounded memory, from any position.

The order of an epoch is a function of (seed, epoch) alone: clusters are permuted and grouped into *blocks* of at least `buffer` rows, and rows are permuted
inside their block (`order.py`). Position s of an epoch therefore lies in a known block at a known offset: seeking decodes the clusters of that block and no
others. A dataset that is kept in memory is dealt in the same order (`order`, `resident`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from hlt_train.data.dataset import Dataset
from hlt_train.data.normalise import apply
from hlt_train.data.order import Order
from hlt_train.errors import UsageError
from hlt_train.types import Batch, Features, Inputs, Rows

__all__ = ["BUFFER", "Position", "Stream"]

BUFFER = 131_072  # rows that are shuffled together; two such blocks are in memory, the live one and the next


class Position(NamedTuple):
    """A place in a stream: `step` batches of `epoch` are done."""

    epoch: int
    step: int


class _Block(NamedTuple):
    """A decoded block: normalised rows in file order, and the delivery order as indices into them."""

    batch: Batch
    rows: np.ndarray  # int64 [n], row numbers, file order
    permutation: np.ndarray  # int64 [n], delivery order


class Stream:
    """The batches of one split.

    Args:
        dataset: an opened dataset.
        split: "train", "validation" or "test".
        inputs: the normalisation.
        batch: rows per step over all workers.
        workers: equal contiguous shares of a batch; must divide `batch`.
        seed: of the order.
        buffer: rows that are shuffled together, at least (a block ends with its cluster).
        shuffle: False deals rows by row number.
        extra: name -> array aligned by row number, for instance cached teacher logits.
        prefetch: decode the next block in a thread meanwhile.

    Attributes:
        rows: rows of the split.
        steps_per_epoch: batches, the last one possibly partial.
        decoded: numbers of the clusters decoded so far, in order.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        inputs: Inputs,
        *,
        batch: int,
        workers: int = 1,
        seed: int = 0,
        buffer: int = BUFFER,
        shuffle: bool = True,
        extra: Mapping[str, np.ndarray] | None = None,
        prefetch: bool = True,
    ) -> None:
        self.rows = dataset.size(split)
        if self.rows == 0:
            raise UsageError(f"split '{split}' has no row", then="check 'splits' and the selections in the card")
        if batch < 1 or workers < 1 or batch % workers:
            raise UsageError(f"a batch of {batch} rows cannot be shared by {workers} workers", then=f"choose a multiple of {workers}")
        self.extra = dict(extra or {})
        for name, array in self.extra.items():
            if len(array) != self.rows:
                raise ValueError(f"extra '{name}' has {len(array)} rows, the split has {self.rows}")
        self.steps_per_epoch = -(-self.rows // batch)
        self.decoded: list[int] = []
        self._dataset = dataset
        self._split = split
        self._inputs = inputs
        self._batch = batch
        self._workers = workers
        self._prefetch = prefetch
        self._order = Order(dataset.counts[split], seed=seed, buffer=buffer, shuffle=shuffle)
        self._offsets = dataset.offsets(split)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, np.ndarray]]:
        """The batches of an epoch from step `start` on.

        Yields:
            A batch with leaves `[workers, batch / workers, ...]`, and int64 row numbers `[workers, batch / workers]`. The last batch of an epoch is filled up
            with rows of zeros, weight 0 and row number -1.
        """
        blocks = self._order.blocks(epoch)
        ends = np.cumsum([int(self._order.sizes[block].sum()) for block in blocks])
        place = start * self._batch
        first = int(np.searchsorted(ends, place, side="right"))
        waiting = _Parts(self._batch)
        skip = place - (int(ends[first - 1]) if first else 0)
        for number, block in self._blocks(epoch, blocks, first):
            order = block.permutation[skip:]
            skip = 0
            while len(order):
                take = min(waiting.room, len(order))
                waiting.add(_take(block, order[:take]))
                order = order[take:]
                if waiting.room == 0 or (number == len(blocks) - 1 and not len(order)):
                    yield self._share(*waiting.flush())

    def _blocks(self, epoch: int, blocks: list[np.ndarray], first: int) -> Iterator[tuple[int, _Block]]:
        """Blocks from `first` on, each decoded while the one before is used."""
        with contextlib.ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="hlt-train-block")) if self._prefetch else None
            ahead: Future[_Block] | None = None
            for number in range(first, len(blocks)):
                block = ahead.result() if ahead else self._decode(epoch, number, blocks[number])
                ahead = pool.submit(self._decode, epoch, number + 1, blocks[number + 1]) if pool and number + 1 < len(blocks) else None
                yield number, block

    def _decode(self, epoch: int, number: int, clusters: np.ndarray) -> _Block:
        """Decode a block straight into arrays of its size."""
        total = int(self._order.sizes[clusters].sum())
        store: Batch | None = None
        rows = np.empty(total, np.int64)
        begin = 0
        for cluster, part in self._dataset.decode(clusters.tolist(), self._split, columns="training"):
            self.decoded.append(cluster)
            batch = self._normalised(part)
            if store is None:
                store = _map(lambda leaf: np.empty((total, *leaf.shape[1:]), leaf.dtype), batch)
            stop = begin + len(part)
            _fill(store, batch, slice(begin, stop))
            rows[begin:stop] = np.arange(self._offsets[cluster], self._offsets[cluster + 1])
            begin = stop
        assert store is not None  # clusters without rows are in no block
        for name, array in self.extra.items():
            store.extra[name] = array[rows]
        return _Block(store, rows, self._order.within(epoch, number, total))

    def _normalised(self, part: Rows) -> Batch:
        return Batch(apply(self._inputs, part.x), part.label, part.weight.astype(np.float32), {})

    def _share(self, batch: Batch, rows: np.ndarray) -> tuple[Batch, np.ndarray]:
        """Fill up a partial batch and cut it into contiguous shares."""
        missing = self._batch - len(rows)

        def share(leaf: np.ndarray) -> np.ndarray:
            if missing:
                leaf = np.concatenate([leaf, np.zeros((missing, *leaf.shape[1:]), leaf.dtype)])
            return leaf.reshape(self._workers, -1, *leaf.shape[1:])

        rows = np.concatenate([rows, np.full(missing, -1, np.int64)])
        return _map(share, batch), rows.reshape(self._workers, -1)

    def order(self, epoch: int) -> np.ndarray:
        """int64 `[rows]`: row numbers in the order of delivery."""
        parts = []
        for number, clusters in enumerate(self._order.blocks(epoch)):
            rows = np.concatenate([np.arange(self._offsets[c], self._offsets[c + 1]) for c in clusters])
            parts.append(rows[self._order.within(epoch, number, len(rows))])
        return np.concatenate(parts)

    def resident(self) -> Batch:
        """All rows of the split, normalised, leaves `[rows, ...]`, by row number."""
        store: Batch | None = None
        begin = 0
        numbers = np.flatnonzero(self._order.sizes).tolist()
        for cluster, part in self._dataset.decode(numbers, self._split, columns="training"):
            self.decoded.append(cluster)
            batch = self._normalised(part)
            if store is None:
                store = _map(lambda leaf: np.empty((self.rows, *leaf.shape[1:]), leaf.dtype), batch)
            _fill(store, batch, slice(begin, begin + len(part)))
            begin += len(part)
        assert store is not None
        return store._replace(extra=dict(self.extra))

    @property
    def row_bytes(self) -> int:
        """Bytes of one decoded row, for the choice between resident and streaming."""
        features = sum(4 * int(np.prod(g.shape)) + (4 if g.length is not None else 0) for g in self._inputs.groups)
        return features + 8 + sum(int(a[:1].nbytes) for a in self.extra.values())


class _Parts:
    """Rows that wait until they make a batch."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._parts: list[tuple[Batch, np.ndarray]] = []
        self.room = batch

    def add(self, part: tuple[Batch, np.ndarray]) -> None:
        self._parts.append(part)
        self.room -= len(part[1])

    def flush(self) -> tuple[Batch, np.ndarray]:
        parts, self._parts, self.room = self._parts, [], self._batch
        if len(parts) == 1:
            return parts[0]
        batches = [batch for batch, _ in parts]
        return _map(lambda *leaves: np.concatenate(leaves), *batches), np.concatenate([rows for _, rows in parts])


def _take(block: _Block, index: np.ndarray) -> tuple[Batch, np.ndarray]:
    return _map(lambda leaf: leaf.take(index, axis=0), block.batch), block.rows[index]


def _map(function: Callable[..., np.ndarray], *batches: Batch) -> Batch:
    """Apply a function to corresponding leaves of batches."""
    first = batches[0]

    def each(pick: Callable[[Batch], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {name: function(*(pick(batch)[name] for batch in batches)) for name in pick(first)}

    return Batch(
        Features(each(lambda b: b.x.groups), each(lambda b: b.x.counts)),
        function(*(b.label for b in batches)),
        function(*(b.weight for b in batches)),
        each(lambda b: b.extra),
    )


def _fill(store: Batch, batch: Batch, place: slice) -> None:
    """Copy the leaves of a part into their place."""
    for name, leaf in batch.x.groups.items():
        store.x.groups[name][place] = leaf
    for name, leaf in batch.x.counts.items():
        store.x.counts[name][place] = leaf
    store.label[place] = batch.label
    store.weight[place] = batch.weight
