"""Parameters that several processes read and add to without a lock: windows of MPI, on one node or across nodes.

Hogwild (Niu, Recht, Re, Wright 2011) assumes that adding one number is atomic and that adding a vector is not. That is what `Accumulate` with `MPI.SUM`
promises of every element of a basic type (MPI 4.1, 12.7.1), whatever the window lies in:

- "node": one segment of shared memory (`Win.Allocate_shared`). Processes read it as plain memory, and add with `Accumulate`.
- "rma": a window on the owners, ranks that do nothing else, each with a contiguous part. Processes `Get` and `Accumulate`.

With `unsafe` processes of a node add with NumPy's `+=`, which loses updates. A second array of counters, which each of them raises by one in the same way,
tells which fraction was lost.

A sparse update writes the rows that it touches and nothing else: one `Accumulate` with a datatype of blocks of equal length (`Create_indexed_block`), which
was faster than one call per row by a factor of 7, and than a datatype of single numbers by 1.5 (`benchmarks/hogwild.py`). Rows come sorted, each once: MPI does
not allow a target to be written twice by one call.

Open MPI holds a lock of the owner while it adds. A process that is killed there leaves it locked, and every other hangs in its next `Accumulate`; nobody can
call it back. So a thread watches and ends the process (`hlt_train.transports.watched`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from hlt_train.errors import UsageError
from hlt_train.transports.post import mpi
from hlt_train.transports.watched import Watched

__all__ = ["How", "Memory", "Rows", "how_of", "touched"]

How = Literal["node", "rma"]
NUMBER = 4  # bytes of a parameter


class Rows(NamedTuple):
    """The rows of a table that a batch touches, each once and sorted, and how its hits fall on them.

    Attributes:
        rows: int32 `[u]`.
        order: positions of the hits that are not padding, by row.
        first: where in `order` each row begins.
    """

    rows: np.ndarray
    order: np.ndarray
    first: np.ndarray

    def sums(self, values: np.ndarray) -> np.ndarray:
        """`[hits, width]` -> `[u, width]`: the sum over the hits of each row."""
        if not len(self.rows):
            return np.zeros((0, values.shape[1]), values.dtype)
        found: np.ndarray = np.add.reduceat(values[self.order], self.first, axis=0)
        return found

    def spread(self, values: np.ndarray, hits: int) -> np.ndarray:
        """`[u, width]` -> `[hits, width]`: the row of each hit, zero at padding."""
        out = np.zeros((hits, values.shape[1]), values.dtype)
        out[self.order] = np.repeat(values, np.diff(np.append(self.first, len(self.order))), axis=0)
        return out


def touched(rows: np.ndarray, buckets: int) -> Rows:
    """The rows of hits; `buckets` stands for padding."""
    order = np.argsort(rows, kind="stable")
    by = rows[order]
    real = int(np.searchsorted(by, buckets))
    order, by = order[:real], by[:real]
    first = np.flatnonzero(np.diff(by, prepend=-1))
    return Rows(by[first], order, first)


def how_of(comm: Any, wanted: str) -> How:
    """Node or rma: what was wanted, and with "auto" node where all ranks share one. To be called by all ranks.

    Raises:
        UsageError: a node was wanted and there are several.
    """
    MPI = mpi()
    here = comm.Split_type(MPI.COMM_TYPE_SHARED)
    shared = here.size == comm.size
    here.Free()
    if wanted == "node" and not shared:
        raise UsageError("the ranks are on several nodes, which share no memory", then="--set transport.lock_free=rma")
    return "node" if wanted == "node" or (wanted == "auto" and shared) else "rma"


class Memory:
    """A vector of float32 that processes share, and a counter. All ranks of the communicator make it together.

    It is never given back: `Win.Free` waits for every rank, and one may have died. The segments have no name any more once they are made (Open MPI removes
    it), and those of a process that was killed before lie in the launch's folder, which the next launch sweeps.

    Args:
        comm: the communicator.
        n: entries.
        how: node, or rma.
        owners: ranks of the communicator that hold the parts of the vector; "node": the first of them holds it all.
        watched: around every call that another's death may make hang.
        unsafe: add with NumPy, and count what is lost; "node" only.
    """

    def __init__(self, comm: Any, n: int, how: How, owners: tuple[int, ...], watched: Watched | None = None, *, unsafe: bool = False) -> None:
        self._mpi = MPI = mpi()
        self._comm, self.n, self.how, self._watched, self.unsafe = comm, n, how, watched, unsafe
        self.owners = owners[:1] if how == "node" else owners
        self.cuts = [n * k // len(self.owners) for k in range(len(self.owners) + 1)]
        self._counts: np.ndarray | None = None
        self.attempted = 0  # additions to an entry by this process, counted where they may be lost
        self._windows: list[Any] = []
        if how == "node":
            self._window, self._here = self._shared(n, np.dtype(np.float32))
            self._counter, _ = self._shared(1, np.dtype(np.int64))
            if unsafe:
                _, self._counts = self._shared(n, np.dtype(np.int32))
        else:
            self._window = self._keep(MPI.Win.Allocate(NUMBER * self._size_here(), NUMBER, comm=comm))
            self._counter = self._keep(MPI.Win.Allocate(8 if comm.rank == self.owners[0] else 0, 8, comm=comm))
            if comm.rank in self.owners:
                self._zero(self._window)
            if comm.rank == self.owners[0]:
                self._zero(self._counter)
            comm.Barrier()
        for window in self._windows:
            window.Lock_all(MPI.MODE_NOCHECK)

    def _size_here(self) -> int:
        if self._comm.rank not in self.owners:
            return 0
        k = self.owners.index(self._comm.rank)
        return self.cuts[k + 1] - self.cuts[k]

    def _keep(self, window: Any) -> Any:
        self._windows.append(window)
        return window

    @staticmethod
    def _zero(window: Any) -> None:
        np.frombuffer(window.tomemory(), np.uint8)[:] = 0

    def _shared(self, entries: int, dtype: np.dtype[Any]) -> tuple[Any, np.ndarray]:
        """A window of zeros in shared memory, and it as an array."""
        owner = self.owners[0]
        size = dtype.itemsize * entries if self._comm.rank == owner else 0
        window = self._keep(self._mpi.Win.Allocate_shared(size, dtype.itemsize, comm=self._comm))
        memory, _ = window.Shared_query(owner)
        array = np.frombuffer(memory, dtype, entries)
        if self._comm.rank == owner:
            array[:] = 0
        self._comm.Barrier()
        return window, array

    def _guard(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._watched is None else self._watched()

    # Reading.

    def read(self) -> np.ndarray:
        """All of it: float32 `[n]`, each entry as it is at some moment during the call."""
        if self.how == "node":
            return self._here.copy()
        out = np.empty(self.n, np.float32)
        for k, owner in enumerate(self.owners):
            self._get(owner, out[self.cuts[k] : self.cuts[k + 1]], 0)
        return out

    def read_range(self, begin: int, end: int) -> np.ndarray:
        """A run of entries."""
        if self.how == "node":
            return self._here[begin:end].copy()
        out = np.empty(end - begin, np.float32)
        for k, owner, low, high in self._parts(begin, end):
            self._get(owner, out[low - begin : high - begin], low - self.cuts[k])
        return out

    def read_rows(self, offset: int, width: int, rows: np.ndarray) -> np.ndarray:
        """Rows of a table of rows of `width` entries that begins at `offset`: float32 `[u, width]`. rows: sorted, each once."""
        if self.how == "node":
            usable = offset + (self.n - offset) // width * width
            found: np.ndarray = self._here[offset:usable].reshape(-1, width)[rows]
            return found
        out = np.empty((len(rows), width), np.float32)
        begin = 0
        for owner, place, count, straddles in self._by_owner(offset, width, rows):
            part = out[begin : begin + count]
            if straddles:
                first = offset + int(rows[begin]) * width
                part[:] = self.read_range(first, first + width)
            elif count:
                kind = self._blocks(width, place)
                with self._guard():
                    self._window.Get([part, self._mpi.FLOAT], owner, target=[0, 1, kind])
                    self._window.Flush(owner)
                kind.Free()
            begin += count
        return out

    def _get(self, owner: int, into: np.ndarray, place: int) -> None:
        if len(into):
            with self._guard():
                self._window.Get([into, self._mpi.FLOAT], owner, target=[place, len(into), self._mpi.FLOAT])
                self._window.Flush(owner)

    def _parts(self, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """(part, owner, begin, end) of the pieces of a run that lie with one owner."""
        for k, owner in enumerate(self.owners):
            low, high = max(begin, self.cuts[k]), min(end, self.cuts[k + 1])
            if low < high:
                yield k, owner, low, high

    def _by_owner(self, offset: int, width: int, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, int, bool]]:
        """(owner, where its rows begin in its part, how many rows, whether it is one row that lies with several owners), in the order of the rows."""
        begins = offset + rows.astype(np.int64) * width
        done = 0
        for k, owner in enumerate(self.owners):
            whole = int(np.searchsorted(begins, self.cuts[k + 1] - width, side="right"))
            if whole > done:
                yield owner, (begins[done:whole] - self.cuts[k]).astype(np.int32), whole - done, False
                done = whole
            if done < len(begins) and begins[done] < self.cuts[k + 1]:
                yield owner, np.zeros(0, np.int32), 1, True
                done += 1

    def _blocks(self, width: int, places: np.ndarray) -> Any:
        kind = self._mpi.FLOAT.Create_indexed_block(width, places)
        kind.Commit()
        return kind

    # Adding.

    def add_range(self, begin: int, values: np.ndarray) -> None:
        """Add to a run of entries."""
        if self.unsafe:
            end = begin + len(values)
            self._here[begin:end] += values
            self._count(slice(begin, end), len(values))
            return
        for k, owner, low, high in self._parts(begin, begin + len(values)):
            with self._guard():
                part = np.ascontiguousarray(values[low - begin : high - begin])
                self._window.Accumulate([part, self._mpi.FLOAT], owner, target=[low - self.cuts[k], len(part), self._mpi.FLOAT], op=self._mpi.SUM)
                self._window.Flush(owner)

    def add_rows(self, offset: int, rows: np.ndarray, values: np.ndarray) -> None:
        """Add to rows of a table that begins at `offset`. rows: sorted, each once; values: float32 `[u, width]`."""
        width = values.shape[1]
        if self.unsafe:
            entries = (offset + rows[:, None].astype(np.int64) * width + np.arange(width)).reshape(-1)
            self._here[entries] += values.reshape(-1)
            self._count(entries, len(entries))
            return
        begin = 0
        for owner, places, count, straddles in self._by_owner(offset, width, rows):
            part = np.ascontiguousarray(values[begin : begin + count])
            if straddles:
                self.add_range(offset + int(rows[begin]) * width, part.reshape(-1))
            else:
                kind = self._blocks(width, places)
                with self._guard():
                    self._window.Accumulate([part, self._mpi.FLOAT], owner, target=[0, 1, kind], op=self._mpi.SUM)
                    self._window.Flush(owner)
                kind.Free()
            begin += count

    def _count(self, entries: Any, number: int) -> None:
        assert self._counts is not None
        self._counts[entries] += 1
        self.attempted += number

    def counted(self) -> int:
        """Of the additions that all processes attempted with `unsafe`, those whose counter arrived."""
        return 0 if self._counts is None else int(self._counts.sum(dtype=np.int64))

    # The counter, and the beginning.

    def next_number(self) -> int:
        """0, 1, 2, ...: each number goes to one process, in the order in which they ask."""
        one, before = np.ones(1, np.int64), np.zeros(1, np.int64)
        with self._guard():
            self._counter.Fetch_and_op([one, self._mpi.INT64_T], [before, self._mpi.INT64_T], self.owners[0], 0, self._mpi.SUM)
            self._counter.Flush(self.owners[0])
        return int(before[0])

    def number(self) -> int:
        """How many numbers have been taken."""
        nothing, now = np.zeros(1, np.int64), np.zeros(1, np.int64)
        self._counter.Fetch_and_op([nothing, self._mpi.INT64_T], [now, self._mpi.INT64_T], self.owners[0], 0, self._mpi.NO_OP)
        self._counter.Flush(self.owners[0])
        return int(now[0])

    def set(self, vector: np.ndarray, number: int = 0) -> None:
        """Put a vector in, and the counter at a number: before anybody else uses them."""
        if self.how == "node":
            self._here[:] = vector
        else:
            whole = np.ascontiguousarray(vector, np.float32)
            for k, owner in enumerate(self.owners):
                part = whole[self.cuts[k] : self.cuts[k + 1]]
                self._window.Put([part, self._mpi.FLOAT], owner, target=[0, len(part), self._mpi.FLOAT])
                self._window.Flush(owner)
        at = np.array([number], np.int64)
        self._counter.Put([at, self._mpi.INT64_T], self.owners[0], target=[0, 1, self._mpi.INT64_T])
        self._counter.Flush(self.owners[0])
