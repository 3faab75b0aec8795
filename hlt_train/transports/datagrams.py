"""Workers that send each other UDP datagrams: real sockets, no acknowledgement, no retransmission, no privilege.

Dogwild's authors sent raw Ethernet frames (Noel and Osindero 2014; BVLC/caffe, `parallel.cpp`), which needs the right to. A UDP datagram that no router has to
cut holds 1,472 bytes (an Ethernet frame's 1,500 less 20 of IP and 8 of UDP). What is lost is lost: on the way, in the receiver's full buffer, or on purpose.

Workers tell each other by MPI where they receive, and a random number that every datagram to them has to begin with: what a stranger sends is dropped. What a
worker consumes, and where, stands in its log as for messages of MPI, so that such a run can be replayed: that datagrams were lost does not matter.
"""

from __future__ import annotations

import secrets
import socket
import struct
from collections import defaultdict, deque
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hlt_train.errors import RunFailed, UsageError
from hlt_train.transports._mpi_worker import WorkerDesk
from hlt_train.transports.actors import Shard, Worker
from hlt_train.transports.mpi import Crew, stored_actor
from hlt_train.transports.options import MpiOptions
from hlt_train.transports.post import Parcel
from hlt_train.transports.program import Message, Program, Specs
from hlt_train.transports.protocol import Tag, from_json, to_json

__all__ = ["PAYLOAD", "Counts", "DatagramCrew", "DatagramProgram", "Datagrams", "folder_counts", "size_of"]

PAYLOAD = 1472  # bytes
HEAD = struct.Struct("<IHHII")  # the receiver's number, source, push, sequence, exchange point
BUFFER = 1 << 22  # bytes asked for of the kernel; it gives what it allows
REMEMBERED = 4096  # datagrams of a source that are known again when they come twice


class Counts(NamedTuple):
    """Datagrams of a worker.

    Attributes:
        sent: to whom it may be.
        withheld: of those it should have sent, the ones lost on purpose.
        received: worker -> datagrams of it that came.
    """

    sent: int
    withheld: int
    received: dict[int, int]


def size_of(specs: Specs) -> int:
    """Bytes of a datagram whose body consists of such arrays."""
    return HEAD.size + sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in specs)


class Datagrams:
    """The socket of a worker.

    Args:
        index: of the worker.
        specs: of a body.
        lan: any address in the network whose interface is used.
        loss: probability that a datagram is not sent.
        reorder: probability that it is kept back and sent after the next one to the same worker.
        seed: of both.
    """

    def __init__(self, index: int, specs: Specs, *, lan: str = "127.0.0.1", loss: float = 0.0, reorder: float = 0.0, seed: int = 0) -> None:
        self.index, self._specs, self._loss, self._reorder = index, specs, loss, reorder
        if (size := size_of(specs)) > PAYLOAD:
            room = (PAYLOAD - size_of(specs) + 4 * max(int(np.prod(shape)) for shape, _ in specs)) // 4
            raise UsageError(f"a datagram holds {PAYLOAD:,} bytes, and a message has {size:,}", then=f"--set strategy.chunk={room} or less")
        self._rng = np.random.default_rng([seed, index])
        self.token = secrets.randbits(32)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self._socket.setblocking(False)
        self._socket.bind((_local(lan), 0))
        self._peers: dict[int, tuple[tuple[str, int], int]] = {}
        self._kept: dict[int, bytes] = {}  # worker -> the datagram that goes after the next one
        self._seen: dict[int, deque[int]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self.sent = self.withheld = 0
        self.received: dict[int, int] = defaultdict(int)
        self.bytes = 0  # sent and received

    def address(self) -> dict[str, Any]:
        """Where this worker receives, JSON-able; see `meet`."""
        host, port = self._socket.getsockname()
        return {"worker": self.index, "machine": socket.gethostname(), "host": host, "port": port, "token": self.token}

    def meet(self, address: dict[str, Any]) -> None:
        """Another's address."""
        if address["host"].startswith("127.") and address["machine"] != socket.gethostname():
            what = f"worker {address['worker']} on {address['machine']} receives on that machine alone"
            raise UsageError(what, then="--set transport.lan=ADDRESS, any address in the network of all machines")
        self._peers[address["worker"]] = (address["host"], address["port"]), address["token"]

    def send(self, message: Message) -> None:
        """Send, lose or keep back. To a worker that has not said where it is nothing is sent; it has not begun."""
        if message.to not in self._peers:
            return
        if self._loss and self._rng.random() < self._loss:
            self.withheld += 1
            return
        token = self._peers[message.to][1]
        head = HEAD.pack(token, message.source, int(message.push), message.sequence & 0xFFFFFFFF, message.point & 0xFFFFFFFF)
        content = head + b"".join(np.ascontiguousarray(leaf).tobytes() for leaf in message.parts[0])
        if self._reorder and message.to not in self._kept and self._rng.random() < self._reorder:
            self._kept[message.to] = content
            return
        self._put(message.to, content)
        if (kept := self._kept.pop(message.to, None)) is not None:
            self._put(message.to, kept)

    def _put(self, to: int, content: bytes) -> None:
        try:
            self._socket.sendto(content, self._peers[to][0])
        except BlockingIOError:  # no room in the kernel: lost like any other
            pass
        except OSError as error:
            raise RunFailed(f"worker {self.index} cannot send datagrams to worker {to}: {error.strerror or error}", where=str(self._peers[to][0])) from error
        self.sent += 1
        self.bytes += len(content)

    def receive(self) -> list[Message]:
        """What has come, in the order in which it came."""
        found: list[Message] = []
        while True:
            try:
                content = self._socket.recv(PAYLOAD + 1)
            except BlockingIOError:
                return found
            if len(content) != size_of(self._specs):
                continue
            token, source, push, sequence, point = HEAD.unpack_from(content)
            if token != self.token or sequence in self._seen[source]:
                continue
            self._seen[source].append(sequence)
            self.received[source] += 1
            self.bytes += len(content)
            found.append(Message(source, sequence, point, self.index, bool(push), False, np.zeros(1, np.int64), (), [self._body(content)]))

    def _body(self, content: bytes) -> tuple[np.ndarray, ...]:
        parts, place = [], HEAD.size
        for shape, dtype in self._specs:
            count = int(np.prod(shape))
            parts.append(np.frombuffer(content, dtype, count, place).reshape(shape))
            place += count * dtype.itemsize
        return tuple(parts)

    def counts(self) -> Counts:
        """So far."""
        return Counts(self.sent, self.withheld, dict(self.received))

    def close(self) -> None:
        """Receive no more."""
        self._socket.close()


def _local(lan: str) -> str:
    """This machine's address in the network of another; no datagram is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((lan, 9))
        except OSError as error:
            raise UsageError(
                f"no interface leads to {lan}: {error.strerror or error}", then="--set transport.lan=ADDRESS of a machine in the network"
            ) from error
        found: str = probe.getsockname()[0]
        return found


class DatagramProgram(Program):
    """A program whose workers send datagrams.

    Attributes:
        network: of the options, `loss`, `reorder` and `lan` are used.
    """

    def __init__(self, program: Program, network: MpiOptions) -> None:
        vars(self).update(vars(program))
        self.network = network


class DatagramDesk(WorkerDesk):
    """The worker of a process, with a socket."""

    def __init__(self, crew: Crew, index: int) -> None:
        super().__init__(crew, index)
        program = crew.program
        assert isinstance(program, DatagramProgram)
        options = program.network
        self.datagrams = Datagrams(index, program.body_specs(0), lan=options.lan, loss=options.loss, reorder=options.reorder, seed=program.seed)
        for k in sorted(crew.live - {index}):  # before READY: whoever begins knows where all others receive, and what came earlier would be lost
            self.mail.send(self.role.workers[k], Tag.ADDRESS, payload=to_json(self.datagrams.address()))

    def on_address(self, parcel: Parcel) -> None:
        """Where another worker receives."""
        self.datagrams.meet(from_json(parcel.payload))

    def listen(self) -> None:
        """Take what has come. A worker that has nothing left to do does not look at it."""
        before = self.datagrams.bytes
        found = [message for message in self.datagrams.receive() if message.source in self.crew.live]
        self._inbox += [] if self.worker.wants == "done" else found
        self._crossed -= self.datagrams.bytes - before

    def _post_message(self, message: Message) -> None:
        self._report["messages"] += 1
        if message.to in self.crew.live:
            before = self.datagrams.bytes
            self.datagrams.send(message)
            self._crossed -= self.datagrams.bytes - before

    def _batch(self) -> None:
        super()._batch()
        self.listen()


class DatagramCrew(Crew):
    """A process whose worker sends datagrams."""

    desk_kind = DatagramDesk

    def pump(self, timeout: float) -> None:
        """Take and do what has come."""
        super().pump(timeout)
        if timeout > 0 and isinstance(self.worker, DatagramDesk):
            self.worker.listen()

    def save(self, number: int, kind: str, index: int, actor: Worker | Shard, more: dict[str, Any]) -> None:
        """Write the state of an actor, with the counts of its datagrams, and tell the clerk."""
        assert isinstance(self.worker, DatagramDesk)
        super().save(number, kind, index, actor, {**more, "datagrams": list(self.worker.datagrams.counts())})

    def run_session(self) -> tuple[int, str]:
        """Work until the clerk ends the session. Returns the exit code and a text."""
        try:
            return super().run_session()
        finally:
            if isinstance(self.worker, DatagramDesk):
                self.worker.datagrams.close()


def folder_counts(folder: Path, workers: list[int]) -> dict[int, Counts]:
    """The counts in a folder of states."""
    return {k: Counts(*stored_actor(folder, "worker", k)["more"]["datagrams"]) for k in workers}
