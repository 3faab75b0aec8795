"""The post office of the MPI transport: whole messages between ranks, never blocking, fair, and aware of the dead.

One message is one contiguous buffer: a fixed-size header of 64-bit words, then the payload. One receive is posted per source and served in rotating order,
one message per source and round, so a rank that floods cannot starve another; between rounds in which nothing came `poll` sleeps, where a blocking MPI call
would spin and take a core.

Ranks are logical: they keep their numbers when others die, when `recover` rebuilds the communicator, and when a replacement takes a dead rank's place.

Faults (Open MPI 5 started with `--with-ft ulfm`): the messages of a killed rank whose sends had completed at the sender are delivered, then it is reported
dead. A message longer than the transport's eager limit (4 KiB on one host) completes only once its receiver has taken it, so the last of those may be lost.
Without fault tolerance the launcher ends every rank when one dies.

This is the only file beside the launcher that knows mpi4py, and it imports it late: everything else works without it.
"""

from __future__ import annotations

import atexit
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hlt_train.errors import RunFailed, UsageError
from hlt_train.transports.launch import replacement_command
from hlt_train.transports.watched import Watched, leave_at_once

__all__ = ["LONGEST_NAP", "Parcel", "Post", "mpi", "padded"]

FAULT_TOLERANT = "OMPI_MCA_mpi_ft_enable"  # Open MPI tells its processes so
TAG = 1  # the one MPI tag in use: ours travel in the envelope, where they may be any integer
DATA, LAST, READY, BYE = range(4)  # kinds of messages: the caller's; "recover: nothing more from me before it"; "I have everybody's last"; "I leave"
ENVELOPE = 4  # words before the header: kind, tag, words of header in use, spare
LONGEST_NAP = 1e-3  # seconds
SHORTEST_NAP = 20e-6
ALIGNMENT = 64  # bytes: of arrays that XLA does not copy
ERRORS_OF_THE_DEAD = 3  # errors in a row after which a source is dead: a receive posted again takes what had arrived before the death was known

place: int | None = None  # logical rank of this process's Post
clean = False  # this process has closed its Post in agreement with the others: `MPI_Finalize` runs at exit and cannot hang


class Parcel(NamedTuple):
    """One message as its receiver sees it. The arrays are the receiver's own.

    Attributes:
        source: logical rank of the sender.
        tag: the sender's tag.
        header: int64 [words that were sent].
        payload: uint8 [bytes]; its memory begins at a multiple of 64 bytes, so that XLA may use it as it is.
    """

    source: int
    tag: int
    header: NDArray[np.int64]
    payload: NDArray[np.uint8]


def padded(size: int) -> int:
    """Bytes up to the next multiple of `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _room(size: int) -> NDArray[np.uint8]:
    """Bytes that begin at a multiple of `ALIGNMENT`."""
    found = np.empty(size + ALIGNMENT, np.uint8)
    place = -found.ctypes.data % ALIGNMENT
    return found[place : place + size]


def _lay(pieces: Iterable[NDArray[np.uint8]], out: NDArray[np.uint8]) -> None:
    """Copy pieces into `out`, each from a multiple of `ALIGNMENT` on; what is between them is 0."""
    place = 0
    for piece in pieces:
        out[place : place + piece.size] = piece
        place += piece.size
        gap = min(-place % ALIGNMENT, out.size - place)
        out[place : place + gap] = 0
        place += gap


class _Outgoing(NamedTuple):
    request: Any
    buffer: Any
    to: int
    data: bool


def mpi() -> Any:
    """The module mpi4py.MPI, initialised; a UsageError that says how to install it where it is missing."""
    install = "pip install 'hlt-train[mpi]'"
    try:
        import mpi4py
    except ImportError as error:
        raise UsageError("training with several processes needs mpi4py, which is not installed", then=install) from error
    mpi4py.rc.finalize = False  # MPI_Finalize waits for every rank, so it runs only where `Post.close` has the others' word
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UsageError(f"mpi4py finds no MPI library: {str(error).splitlines()[0]}", then=install) from error
    return MPI


class Post:
    """Whole messages between ranks. Not for several threads at a time. Every rank gives the same `capacity` and `words`.

    Args:
        capacity: bytes of the largest payload.
        words: int64 words of the longest header.

    Attributes:
        rank: this process's logical rank.
        size: number of logical ranks, dead ones included.
        epoch: number of recoveries so far.
        replacement: this process was started by `recover` in a dead rank's place.
        longest_nap: seconds between two looks after a long time in which nothing came: what a message may lie there, against what looking costs.
        comm: the communicator in use, for windows and collectives of the caller; another one after `recover`.
        bytes_sent, bytes_received, messages_sent, messages_received, dropped: per logical rank, int64 [size]; envelopes are not counted as bytes.
    """

    def __init__(self, capacity: int, *, words: int = 12) -> None:
        if capacity < 0 or words < 0:
            raise ValueError(f"capacity and words are at least 0, got {capacity} and {words}")
        self._mpi = MPI = mpi()
        self.capacity, self.words, self.longest_nap = capacity, words, LONGEST_NAP
        self._offset = 8 * (ENVELOPE + words)
        self.fault_tolerant = os.environ.get(FAULT_TOLERANT, "").lower() in {"1", "true", "yes"} and hasattr(MPI.Comm, "Revoke")
        self._gone = {MPI.ERR_PROC_FAILED, MPI.ERR_REVOKED} if self.fault_tolerant else set()
        self._inbox: deque[Parcel] = deque()
        self._out: deque[_Outgoing] = deque()
        self._dead: set[int] = set()
        self._left: set[int] = set()
        self._last: set[int] = set()
        self._ready: set[int] = set()
        self._deaths = False  # someone has died since the start, replaced or not, here or as a parting rank saw it
        self._closed = False
        self.epoch = 0
        parent = MPI.Comm.Get_parent()
        self.replacement = parent != MPI.COMM_NULL
        if self.replacement:
            comm = parent.Merge(True)
            news = np.empty(2 + comm.size, np.int64)
            comm.Bcast(news, root=0)
            self.epoch, self.size, *members = news.tolist()
        else:
            comm = MPI.COMM_WORLD  # no collective call here: ranks may start at different times, and one may be dead already
            members, self.size = list(range(comm.size)), comm.size
        self.bytes_sent, self.bytes_received, self.messages_sent, self.messages_received, self.dropped = np.zeros((5, self.size), np.int64)
        self._join(comm, members)

    def _join(self, comm: Any, members: Sequence[int]) -> None:
        """Take a communicator whose rank i is the logical rank members[i], and post one receive per peer."""
        self.comm = comm
        comm.Set_errhandler(self._mpi.ERRORS_RETURN)
        self._rank_of = {logical: i for i, logical in enumerate(members)}
        global place  # noqa: PLW0603 - one process, one MPI
        self.rank = place = members[comm.rank]
        self._dead = set(range(self.size)) - set(members)
        self._deaths = self._deaths or bool(self._dead) or self.epoch > 0
        self._called, self._revoked = False, False
        self._last.clear()
        self._ready.clear()
        self._errors = dict.fromkeys(members, 0)
        # Peers in the order of the rotation, which starts behind ourselves so that not every rank looks at the same one first.
        self._turn = deque(sorted((m for m in members if m != self.rank), key=lambda m: (m - self.rank) % self.size))
        self._buffers = {m: np.empty(self._offset + self.capacity, np.uint8) for m in self._turn}
        self._status = self._mpi.Status()
        self._receives: dict[int, Any] = {}
        for m in self._turn:
            self._receive(m)

    def _receive(self, source: int) -> None:
        self._receives[source] = self.comm.Irecv([self._buffers[source], self._mpi.BYTE], self._rank_of[source], TAG)

    @property
    def dead(self) -> frozenset[int]:
        """Ranks that died and were not replaced. A rank is listed only once `poll` has returned all that came from it."""
        return frozenset(self._dead.difference(p.source for p in self._inbox)) if self._dead else frozenset()

    @property
    def left(self) -> frozenset[int]:
        """Ranks that have called `close`, listed once `poll` has returned all that came from them. What is sent to them is dropped."""
        return frozenset(self._left.difference(p.source for p in self._inbox))

    @property
    def alive(self) -> tuple[int, ...]:
        """Ranks that are neither dead nor gone, this one included, in order."""
        return tuple(r for r in range(self.size) if r not in self._dead and r not in self._left)

    @property
    def called(self) -> bool:
        """A peer is in `recover`, or the communicator was revoked: call `recover` soon, the peer waits."""
        return self._called or self._revoked

    def pending(self, to: int | None = None) -> int:
        """Sends that have not completed (to one rank)."""
        self._reap()
        return sum(1 for o in self._out if o.data and to in (None, o.to))

    def send(self, to: int, tag: int, header: Sequence[int], payload: Any = None) -> None:
        """Send a header and the bytes of an array, or of several in a list; all are copied, once, so the caller may change them at once. Never blocks.

        Each array of a list begins at a multiple of `ALIGNMENT`, and the payload is as long as one. A message to a dead rank, or to one that has left, is
        dropped and counted in `dropped`. A message to oneself arrives at the next `poll`.
        """
        if not 0 <= to < self.size:
            raise ValueError(f"there is no rank {to} among {self.size}")
        if len(header) > self.words:
            raise ValueError(f"a header of {len(header)} words to rank {to} is longer than the {self.words} that were agreed on")
        several = isinstance(payload, list)
        pieces = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (payload if several else [] if payload is None else [payload])]
        size = sum(padded(piece.size) for piece in pieces) if several else sum(piece.size for piece in pieces)
        if size > self.capacity:
            raise ValueError(f"a payload of {size} bytes to rank {to} is larger than the capacity, {self.capacity}")
        if to == self.rank:
            body = _room(size)
            _lay(pieces, body)
            self._inbox.append(Parcel(to, tag, np.array(header, np.int64), body))
            self._count(self.bytes_sent, self.messages_sent, to, size + 8 * len(header))
            self._count(self.bytes_received, self.messages_received, to, size + 8 * len(header))
            return
        if to in self._dead or to in self._left:
            self.dropped[to] += 1
            return
        if self._dispatch(to, DATA, tag, header, pieces, size):
            self._count(self.bytes_sent, self.messages_sent, to, size + 8 * len(header))
        self._reap()

    @staticmethod
    def _count(amount: Any, number: Any, peer: int, size: int) -> None:
        amount[peer] += size
        number[peer] += 1

    def _dispatch(self, to: int, kind: int, tag: int = 0, header: Sequence[int] = (), pieces: Sequence[NDArray[np.uint8]] = (), size: int = 0) -> bool:
        """Start one send; False if it was dropped. The death of the receiver is no error: it is learnt from the receive that is posted for it."""
        buffer = np.empty(self._offset + size, np.uint8)
        envelope = buffer[: self._offset].view(np.int64)
        envelope[:ENVELOPE] = kind, tag, len(header), 0
        envelope[ENVELOPE : ENVELOPE + len(header)] = header
        envelope[ENVELOPE + len(header) :] = 0
        _lay(pieces, buffer[self._offset :])
        try:
            request = self.comm.Isend([buffer, self._mpi.BYTE], self._rank_of[to], TAG)
        except self._mpi.Exception as error:
            self._failed(error, to)
            if kind == DATA:
                self.dropped[to] += 1
            return False
        self._out.append(_Outgoing(request, buffer, to, kind == DATA))
        return True

    def _failed(self, error: Any, peer: int) -> None:
        """Note an error that fault tolerance explains; raise any other."""
        kind = error.Get_error_class()
        if kind not in self._gone:
            raise RunFailed(f"MPI: {error}", where=f"between rank {self.rank} and rank {peer}") from error
        if kind == self._mpi.ERR_REVOKED:
            self._revoked = True

    def _reap(self) -> None:
        """Let go of the buffers of completed sends."""
        for _ in range(len(self._out)):
            out = self._out.popleft()
            try:
                done = out.request.Test()
            except self._mpi.Exception as error:
                self._failed(error, out.to)
                done = True
                if out.data:
                    self.dropped[out.to] += 1
            if not done:
                self._out.append(out)

    def _round(self) -> bool:
        """One look at every source, at most one message from each; True if anything came."""
        came = False
        for source in tuple(self._turn):
            try:
                done = self._receives[source].Test(self._status)
            except self._mpi.Exception as error:
                self._failed(error, source)
                self._lost(source)
                came = True  # look again at once: something may have arrived before the death
                continue
            if done:
                came = True
                self._errors[source] = 0
                self._accept(source, self._status.Get_count(self._mpi.BYTE))
                if source in self._receives:
                    self._post_again(source)
        self._turn.rotate(-1)
        return came

    def _post_again(self, source: int) -> None:
        try:
            self._receive(source)
        except self._mpi.Exception as error:
            self._failed(error, source)
            self._lost(source, for_good=True)

    def _lost(self, source: int, *, for_good: bool = False) -> None:
        """A receive failed. The source is dead after some failures in a row, at once where MPI refuses to receive from it, never by a revocation."""
        self._errors[source] += 1
        if not self._revoked and not for_good and self._errors[source] < ERRORS_OF_THE_DEAD:
            self._post_again(source)
            return
        self._turn.remove(source)
        self._receives.pop(source, None)
        if not self._revoked and source not in self._left:
            self._dead.add(source)
            self._deaths = True

    def _accept(self, source: int, count: int) -> None:
        buffer = self._buffers[source]
        envelope = buffer[: self._offset].view(np.int64)
        kind, tag, words = (int(w) for w in envelope[:3])
        if kind == DATA:
            payload = _room(count - self._offset)
            payload[:] = buffer[self._offset : count]
            parcel = Parcel(source, tag, envelope[ENVELOPE : ENVELOPE + words].copy(), payload)
            self._count(self.bytes_received, self.messages_received, source, parcel.payload.size + 8 * words)
            self._inbox.append(parcel)
        elif kind == LAST:
            self._called = True
            self._last.add(source)
        elif kind == READY:
            self._ready.add(source)
        else:
            self._left.add(source)
            self._deaths = self._deaths or tag != 0

    def progress(self) -> None:
        """Let messages move, without taking any: for a thread beside one that computes, never at the same time as another call."""
        self._progress()

    def _progress(self) -> bool:
        """Do what can be done without waiting."""
        came = self._round()
        if self._out:
            self._reap()
        return came

    def poll(self, timeout: float, *, deadline: float | None = None, awaited: Iterable[int] = (), most: int = 256) -> list[Parcel]:
        """Everything that has arrived, in the order of arrival per source and in turns between sources; may be empty.

        Args:
            timeout: seconds to wait for a first message; 0 only looks. Returns early when a rank is newly dead or has left, or when `called` becomes true.
            deadline: value of `time.monotonic()` after which an empty result is an error.
            awaited: the ranks that the error names; default all alive.
            most: stop collecting here (a flood could go on for ever); the rest comes with the next call.

        Raises:
            RunFailed: the deadline has passed and nothing has come.
        """
        start = time.monotonic()
        before = (len(self._dead), len(self._left), self.called)
        while True:
            came = self._progress()
            while came and len(self._inbox) < most:
                came = self._progress()
            now = time.monotonic()
            if self._inbox or now - start >= timeout or before != (len(self._dead), len(self._left), self.called):
                break
            if deadline is not None and now >= deadline:
                break
            self._nap(now - start, timeout)
        parcels = [self._inbox.popleft() for _ in range(min(most, len(self._inbox)))]
        if not parcels and deadline is not None and now >= deadline:
            raise self._late("nothing has come", awaited or self._others(), now - start)
        return parcels

    def _nap(self, waited: float, timeout: float) -> None:
        """Sleep an eighth of what was waited so far: a quick answer is met quickly, a long wait costs no core."""
        time.sleep(max(0.0, min(self.longest_nap, max(SHORTEST_NAP, waited / 8), timeout - waited)))

    def _others(self) -> tuple[int, ...]:
        return tuple(r for r in self.alive if r != self.rank)

    def _late(self, what: str, ranks: Iterable[int], waited: float) -> RunFailed:
        named = ", ".join(f"{r} (dead)" if r in self._dead else f"{r} (left)" if r in self._left else str(r) for r in sorted(set(ranks)))
        return RunFailed(
            f"rank {self.rank} waits for rank {named}: {what} for {waited:.1f} s",
            where=f"transport mpi, {self.size} ranks",
            then="look at the last lines of the awaited rank's log; a longer patience is an option of the run",
        )

    def flush(self, timeout: float, *, deadline: float | None = None) -> bool:
        """Wait until every send has completed; True if so. What arrives meanwhile is kept for `poll`.

        Raises:
            RunFailed: the deadline has passed first.
        """
        start = time.monotonic()
        while True:
            self._progress()
            now = time.monotonic()
            if not self._out:
                return True
            if deadline is not None and now >= deadline:
                raise self._late("a message is not taken", (o.to for o in self._out), now - start)
            if now - start >= timeout:
                return False
            self._nap(now - start, timeout)

    def _until(self, done: Callable[[], bool], awaited: Callable[[], Iterable[int]], what: str, patience: float) -> None:
        """Make progress until `done()`, at most `patience` seconds."""
        start = time.monotonic()
        while not done():
            if not self._progress():
                waited = time.monotonic() - start
                if waited >= patience:
                    raise self._late(what, awaited(), waited)
                self._nap(waited, patience)

    def recover(self, respawn: Sequence[str] | None = None, *, patience: float = 60.0) -> tuple[int, ...]:
        """Rebuild the communicator among the living; with `respawn` start a replacement for every dead rank. All living ranks call it (see `called`).

        No message between living ranks is lost: each first takes what the others had sent. Replacements have the dead ranks' numbers, start with empty hands
        and construct a Post of the same capacity.

        Args:
            respawn: what Python runs in a replacement: a script, or `-m` and a module, and its arguments. Every rank gives the same. None: carry on without.
            patience: seconds that a living rank may take to join, and that MPI may take to rebuild; after these the process ends with code 1.

        Returns:
            The ranks that were replaced.

        Raises:
            RunFailed: a living rank does not join in time, or one has already left.
            UsageError: the processes were not started with fault tolerance.
        """
        if not self.fault_tolerant:
            raise UsageError("dead ranks cannot be replaced: the processes were not started with fault tolerance", then="mpiexec --with-ft ulfm, Open MPI 5")
        if self._left:
            raise self._late("it left before the recovery", self._left, 0.0)
        # First everybody says that nothing more comes from it, then that it has everybody's last: only then may a revocation end what is under way.
        for kind, told in ((LAST, self._last), (READY, self._ready)):
            if self._revoked:
                break
            for peer in self._others():
                self._dispatch(peer, kind)
            self._until(partial(self._all_in, told), partial(self._not_in, told), "it does not join the recovery", patience)
        # These calls have no time limit of their own: MPI may hang in one where a process dies while a replacement is started.
        text = f"the recovery hangs: MPI has rebuilt nothing for {patience:g} s"
        watched = Watched(patience, partial(leave_at_once, self.rank, text))
        with watched():
            comm, members, missing_ranks = self._rebuilt(respawn)
        watched.close()
        self._join(comm, members)
        return missing_ranks

    def _rebuilt(self, respawn: Sequence[str] | None) -> tuple[Any, tuple[int, ...], tuple[int, ...]]:
        """Another communicator, the logical ranks in it, and those of them that are replacements."""
        old = {i: logical for logical, i in self._rank_of.items()}
        group = self.comm.Get_group()
        if not self.comm.Is_revoked():
            self.comm.Revoke()
        comm = self.comm.Shrink()
        survivors = tuple(old[i] for i in comm.Get_group().Translate_ranks(None, group))
        self._discard()
        missing_ranks = tuple(sorted(set(range(self.size)) - set(survivors)))
        self.epoch += 1
        if respawn is None or not missing_ranks:
            return comm, survivors, ()
        command, *arguments = replacement_command(respawn)
        between = comm.Spawn(command, arguments, len(missing_ranks), root=0)
        comm = between.Merge(False)
        members = survivors + missing_ranks
        comm.Bcast(np.array([self.epoch, self.size, *members], np.int64), root=0)
        return comm, members, missing_ranks

    def _not_in(self, told: set[int]) -> list[int]:
        return [r for r in self._others() if r not in told]

    def _all_in(self, told: set[int]) -> bool:
        return self._revoked or not (self._not_in(told) or self._out)

    def _discard(self) -> None:
        """Forget what was under way on a revoked communicator: MPI has ended all of it."""
        self._reap()
        for out in self._out:
            self.dropped[out.to] += int(out.data)
        self._out.clear()
        self._receives.clear()

    def close(self, patience: float = 600.0) -> bool:
        """Leave: every pending send completes, then the ranks agree to part. False if a living rank did not agree in time: it will see this one dead.

        `MPI_Finalize` runs at exit, and only where every rank has agreed and none has died: it waits for all and, with a rank missing, may wait for ever.
        """
        global clean  # noqa: PLW0603 - one process, one MPI
        if self._closed:
            return clean
        self._closed = True
        for peer in self._turn:  # also to those that have left: they wait for this
            self._dispatch(peer, BYE, tag=int(self._deaths))
        try:
            self._until(lambda: not (self._others() or self._out), self._others, "it does not leave", patience)
        except RunFailed:
            return False
        clean = True
        for request in self._receives.values():
            request.Cancel()
            request.Free()
        if not self._deaths:
            atexit.register(self._mpi.Finalize)
        return True
