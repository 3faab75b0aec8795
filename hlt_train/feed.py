"""What the steps of one dispatch train on: batches streamed from the files, or rows gathered on the device from data that stay there.

Both deal the same rows to the same worker at the same step. A *portion* is what one call into the device gets: for a stream the batches themselves
`[workers, steps, rows, ...]`, for resident data the row numbers `[workers, steps, rows]`; its last steps are padding when fewer than `steps` are due. Of the
workers, a process places those on its own devices.

Where the server of a strategy hands out portions of the data, a worker finds any of them among resident data (`Numbered`).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hlt_train.data.stream import Stream
from hlt_train.devices import mine, place, replicate, workers
from hlt_train.errors import UsageError
from hlt_train.types import Batch

__all__ = ["Numbered", "Portion", "Resident", "Streamed", "ahead", "edges", "make_feed", "portion_steps"]

PyTree = Any
T = TypeVar("T")
MOST_BYTES = 64 << 20  # of one portion: caps the steps of a dispatch for wide rows
NARROW = 64  # bytes of a row of a leaf


class Portion(NamedTuple):
    """The data of a dispatch, on the devices, and its number of steps."""

    data: PyTree
    steps: int


def portion_steps(scan: int, batch: int, bytes_per_row: int, steps_per_epoch: int) -> int:
    """Most steps of a dispatch: `scan`, fewer where the rows are so wide that a portion would be large, then evened out over the epoch."""
    most = min(scan, max(1, MOST_BYTES // (batch * bytes_per_row)))
    calls = -(-steps_per_epoch // most)
    return -(-steps_per_epoch // calls)


def edges(step: int, stop: int, most: int, every: int | None) -> list[int]:
    """Sizes of the dispatches from `step` to `stop`: at most `most` steps each, cut at the multiples of `every`."""
    sizes = []
    while step < stop:
        size = min(most, stop - step)
        if every is not None:
            size = min(size, every - step % every)
        sizes.append(size)
        step += size
    return sizes


def ahead(items: Iterator[T], depth: int = 2) -> Generator[T, None, None]:
    """The same items, made by a thread that is at most `depth` ahead; its exceptions are raised here."""
    waiting: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: tuple[T | None, BaseException | None]) -> bool:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((None, StopIteration()))
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer
            put((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()


class Streamed:
    """Portions decoded while the device works on the one before."""

    def __init__(self, stream: Stream, mesh: Mesh, steps: int, batch: int) -> None:
        self.stream, self.mesh, self.steps, self.batch = stream, mesh, steps, batch
        self.resident: PyTree = ()
        self.decoded_first: list[int] = []  # clusters decoded when the first batch was ready

    @staticmethod
    def select(_resident: PyTree, portion: PyTree) -> Callable[[Any], Batch]:
        """Step i of a portion whose leaves are `[steps, rows, ...]`."""
        return lambda i: jax.tree.map(lambda leaf: leaf[i], portion)

    def portions(self, epoch: int, step: int, sizes: Sequence[int]) -> Generator[Portion, None, None]:
        """The portions of an epoch from `step` on, of the given sizes."""
        return ahead(self._portions(epoch, step, sizes))

    def _portions(self, epoch: int, step: int, sizes: Sequence[int]) -> Iterator[Portion]:
        batches, here = self.stream.epoch(epoch, step), mine(self.mesh)
        for size in sizes:
            taken = []
            for _ in range(size):
                taken.append(jax.tree.map(lambda leaf: leaf[here], next(batches)[0]))
                if not self.decoded_first:
                    self.decoded_first = list(self.stream.decoded)
            yield Portion(place(jax.tree.map(self._stack, *taken), self.mesh), size)

    def _stack(self, *leaves: np.ndarray) -> np.ndarray:
        first = leaves[0]
        stacked = np.zeros((first.shape[0], self.steps, *first.shape[1:]), first.dtype)
        for i, leaf in enumerate(leaves):
            stacked[:, i] = leaf
        return stacked


class Resident:
    """Portions of row numbers; the rows themselves stay on the devices, once on each."""

    def __init__(self, stream: Stream, mesh: Mesh, steps: int, batch: int) -> None:
        self.stream, self.mesh, self.steps, self.batch = stream, mesh, steps, batch
        self.resident: PyTree = replicate(stream.resident(), mesh)
        self.decoded_first: list[int] = list(stream.decoded)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="hlt-train-order")
        self._next: tuple[int, Future[np.ndarray]] | None = None

    @staticmethod
    def select(resident: PyTree, portion: PyTree) -> Callable[[Any], Batch]:
        """Step i of a portion of row numbers `[steps, rows]`; padding gets weight 0.

        Narrow leaves are gathered once per call, wide ones step by step: measured on a CPU, the other way round costs 16 % of the time of a network with
        6 inputs and 8 % of one with 166.
        """
        rows = jnp.maximum(portion, 0)

        def take(leaf: Any, numbers: Any) -> Any:
            return leaf.at[numbers].get(mode="promise_in_bounds")

        leaves, structure = jax.tree.flatten(resident)
        narrow = [leaf.nbytes <= NARROW * leaf.shape[0] for leaf in leaves]
        whole = [take(leaf, rows) if small else None for leaf, small in zip(leaves, narrow, strict=True)]

        def batch(i: Any) -> Batch:
            cut = [done[i] if done is not None else take(leaf, rows[i]) for done, leaf in zip(whole, leaves, strict=True)]
            found: Batch = jax.tree.unflatten(structure, cut)
            return found._replace(weight=jnp.where(portion[i] < 0, 0, found.weight))

        return batch

    def portions(self, epoch: int, step: int, sizes: Sequence[int]) -> Generator[Portion, None, None]:
        """The portions of an epoch from `step` on, of the given sizes. The order of the next epoch is drawn meanwhile."""
        ready = self._next[1] if self._next is not None and self._next[0] == epoch else None
        order = self.stream.order(epoch) if ready is None else ready.result()
        self._next = (epoch + 1, self._pool.submit(self.stream.order, epoch + 1))
        by_worker = self._dealt(order).swapaxes(0, 1)[mine(self.mesh)]
        for size in sizes:
            rows = np.full((by_worker.shape[0], self.steps, by_worker.shape[2]), -1, np.int32)
            rows[:, :size] = by_worker[:, step : step + size]
            step += size
            yield Portion(place(rows, self.mesh), size)

    def _dealt(self, order: np.ndarray) -> np.ndarray:
        """int32 `[steps, workers, rows]`: the row numbers of an epoch as they are dealt; -1 is padding."""
        steps = self.stream.steps_per_epoch
        dealt = np.full(steps * self.batch, -1, np.int32)
        dealt[: len(order)] = order
        return dealt.reshape(steps, workers(self.mesh), -1)


class Numbered(Resident):
    """Portions by number: number p names share p % workers of step p // workers of epoch 0, in every round; each device can reach all of them."""

    def __init__(self, stream: Stream, mesh: Mesh, steps: int, batch: int) -> None:
        super().__init__(stream, mesh, steps, batch)
        table = self._dealt(stream.order(0))
        self.resident = (self.resident, replicate(table.reshape(-1, table.shape[2]), mesh))

    @staticmethod
    def select(resident: PyTree, _portion: PyTree) -> Callable[[Any], Batch]:
        """The portion of a number; numbers count through the rounds."""
        data, table = resident

        def batch(number: Any) -> Batch:
            rows = table[number % table.shape[0]]
            found: Batch = jax.tree.map(lambda leaf: leaf.at[jnp.maximum(rows, 0)].get(mode="promise_in_bounds"), data)
            return found._replace(weight=jnp.where(rows < 0, 0, found.weight))

        return batch

    def portions(self, _epoch: int, _step: int, sizes: Sequence[int]) -> Generator[Portion, None, None]:
        """Dispatches of the given sizes; what they train on is the server's affair."""
        for size in sizes:
            yield Portion((), size)


def make_feed(stream: Stream, mesh: Mesh, steps: int, batch: int, *, resident: str, fits: bool, numbered: bool) -> Streamed | Resident:
    """What a strategy trains on.

    Args:
        stream: the shuffled training data.
        mesh: the devices.
        steps: most steps of a dispatch.
        batch: rows of a step over all workers.
        resident: what the user asked for: auto | always | never.
        fits: the data should stay on the devices.
        numbered: the server hands out portions, so they must.
    """
    if not numbered:
        return (Resident if fits else Streamed)(stream, mesh, steps, batch)
    if resident == "never":
        raise UsageError("the server of this strategy hands out portions of the data, which must stay on the devices: not with --resident never")
    return Numbered(stream, mesh, steps, batch)
