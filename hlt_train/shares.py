"""Random access to the shares of a stream: the data of (step, owner), for workers that send messages.

The same rows go to the same share as in lockstep. With resident data a share is gathered from the decoded rows; otherwise the stream is read in order and the
latest steps are kept, so that workers which are nearly at the same step share one reading; a step that has left the window is decoded once more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from hlt_train import devices
from hlt_train.data.stream import Stream
from hlt_train.types import Batch

__all__ = ["Shares", "spread_rows"]

WINDOW = 64  # steps kept when the data are streamed


def spread_rows(data: Callable[[tuple[int, int]], Any], count: int) -> Callable[[tuple[int, int]], Any]:
    """The same data, with the rows of a batch on `count` devices of this process: what is computed with it is computed there, a part on each."""
    mesh = devices.mesh(count)

    def placed(share: tuple[int, int]) -> Any:
        return devices.place(data(share), mesh)

    return placed


class Shares:
    """The data of a share. Call it with (step, owner), or with (portion, -1) for a portion that a server handed out: those lie in epoch 0.

    Args:
        stream: made with `workers` workers.
        workers: N.
        batch: rows of a step, over all workers.
        resident: keep the decoded rows in memory.
    """

    def __init__(self, stream: Stream, workers: int, batch: int, *, resident: bool) -> None:
        self.stream, self.workers, self.batch = stream, workers, batch
        self._rows: Batch | None = stream.resident() if resident else None
        self._orders: OrderedDict[int, np.ndarray] = OrderedDict()
        self._window: OrderedDict[tuple[int, int], Batch] = OrderedDict()
        self._reading: tuple[int, int, Iterator[tuple[Batch, np.ndarray]]] | None = None  # (epoch, next step, stream)

    def __call__(self, share: tuple[int, int]) -> Batch:
        """The batch of a share; the rows that fill up the last step of an epoch have weight 0."""
        epoch, step, owner = self._place(share)
        if self._rows is None:
            whole = self._step(epoch, step)
            found: Batch = jax.tree.map(lambda leaf: leaf[owner], whole)
            return found
        rows = self._numbers(epoch, step, owner)
        taken: Batch = jax.tree.map(lambda leaf: leaf.take(np.maximum(rows, 0), axis=0), self._rows)
        return taken._replace(weight=np.where(rows < 0, np.float32(0), taken.weight))

    def rows(self, share: tuple[int, int]) -> np.ndarray:
        """int64: row numbers of a share, without filling."""
        numbers = self._numbers(*self._place(share))
        return numbers[numbers >= 0]

    def _place(self, share: tuple[int, int]) -> tuple[int, int, int]:
        step, owner = share
        if owner >= 0:
            return *divmod(step, self.stream.steps_per_epoch), owner
        step, owner = divmod(step, self.workers)
        return 0, step % self.stream.steps_per_epoch, owner

    def _numbers(self, epoch: int, step: int, owner: int) -> np.ndarray:
        if epoch not in self._orders:
            dealt = np.full(self.stream.steps_per_epoch * self.batch, -1, np.int64)
            order = self.stream.order(epoch)
            dealt[: len(order)] = order
            self._orders[epoch] = dealt.reshape(self.stream.steps_per_epoch, self.workers, -1)
            if len(self._orders) > 3:
                self._orders.popitem(last=False)
        found: np.ndarray = self._orders[epoch][step, owner]
        return found

    def _step(self, epoch: int, step: int) -> Any:
        """All shares of a step of streamed data."""
        if (epoch, step) not in self._window:
            at = self._reading
            if at is None or at[0] != epoch or not at[1] <= step < at[1] + WINDOW:
                at = (epoch, step, self.stream.epoch(epoch, step))
            _, place, batches = at
            while place <= step:
                self._window[epoch, place] = next(batches)[0]
                place += 1
                if len(self._window) > WINDOW:
                    self._window.popitem(last=False)
            self._reading = (epoch, place, batches)
        return self._window[epoch, step]
