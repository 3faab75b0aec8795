"""Several processes as one run, through `jax.distributed`: who they are, what they agree on, and what happens when one is lost.

The devices of all processes are the workers of one lockstep run. Every process runs the same program and decodes the same data in the same order, but feeds
only its own devices; process 0 alone writes the run, whose directory all of them see. They must take the same decisions: what one of them knows alone (a
signal, the time) goes through `Agreed` or `agreed`.

A lost process ends such a run: the next exchange fails in the others, which leave with exit code 1; the run keeps its last complete checkpoint. Where process 0
itself is lost, jax may end the others first, by SIGABRT and with a message of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from hlt_train.errors import UsageError

__all__ = ["Agreed", "Asked", "Nodes", "agreed", "first", "guard", "join", "many", "parse", "together"]

VARIABLE = "HLT_TRAIN_NODES"
RANKS = (  # (processes, this one) as launchers tell them
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)
PATIENCE = 300  # seconds to wait for the others at the start
DAY = 86_400  # seconds to wait for them at the end: process 0 may have figures to work out


class Nodes(NamedTuple):
    """Where the processes of a run meet. coordinator: HOST:PORT of process 0, which listens there; processes: how many; process: this one, from 0."""

    coordinator: str
    processes: int
    process: int


def parse(text: str | None) -> Nodes | None:
    """`HOST:PORT,COUNT,INDEX`, or `HOST:PORT` under mpirun or srun, which tell the rest. None: the variable HLT_TRAIN_NODES, or a run of one process."""
    text = os.environ.get(VARIABLE, "") if text is None else text
    if not text:
        return None
    parts = text.split(",")
    host, _, port = parts[0].rpartition(":")
    if not host or not port.isdecimal() or len(parts) not in {1, 3} or not all(part.strip().isdecimal() for part in parts[1:]):
        raise UsageError(
            f"--nodes {text}: not HOST:PORT,COUNT,INDEX", then="--nodes node17:29400,4,0 in the first of four processes; HOST:PORT under mpirun or srun"
        )
    if len(parts) == 3:
        count, index = int(parts[1]), int(parts[2])
    else:
        found = [(int(os.environ[size]), int(os.environ[rank])) for size, rank in RANKS if size in os.environ and rank in os.environ]
        if not found:
            names = ", ".join(size for size, _ in RANKS)
            raise UsageError(f"--nodes {text}: no launcher says how many processes there are ({names})", then=f"--nodes {text},COUNT,INDEX")
        count, index = found[0]
    if not 0 <= index < count:
        raise UsageError(f"--nodes {text}: process {index} of {count} does not exist", then=f"an index from 0 to {count - 1}")
    return Nodes(parts[0], count, index)


def join(nodes: Nodes) -> None:
    """Meet the other processes; before jax has a backend. Without effect once done, or for one process."""
    if nodes.processes == 1 or jax.distributed.is_initialized():
        return
    jax.distributed.initialize(nodes.coordinator, nodes.processes, nodes.process, initialization_timeout=PATIENCE, shutdown_timeout_seconds=DAY)


def many() -> bool:
    """Whether the run has several processes."""
    return jax.distributed.is_initialized() and int(jax.process_count()) > 1


def first() -> bool:
    """Whether this process writes the run."""
    if jax.distributed.is_initialized():
        return int(jax.process_index()) == 0
    nodes = parse(None)
    return nodes is None or nodes.process == 0


def together(name: str) -> None:
    """Wait until all processes are here."""
    if many():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def agreed(decision: bool) -> bool:
    """Process 0's decision, in all of them. They wait for one another."""
    if not many():
        return decision
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.int32(decision)))


@runtime_checkable
class Asked(Protocol):
    """Something that may be asked to stop: `signals.StopRequest`, or `Agreed`."""

    @property
    def received(self) -> str | None:
        """What asked; None so far."""


class Agreed:
    """A request to stop that all processes see at the same dispatch: the flags travel behind each dispatch and are read when its losses are.

    Args:
        stop: this process's own request.
        mesh: the devices of all processes.
    """

    def __init__(self, stop: Asked, mesh: Mesh) -> None:
        self._stop, self._mesh = stop, mesh
        self._heard: str | None = None

    @property
    def received(self) -> str | None:
        """The name of the signal; of another process's, where only that one got one."""
        return self._heard if many() else self._stop.received

    def ask(self) -> Any:
        """Tell the others, without waiting."""
        if not many():
            return None
        from hlt_train.devices import mine, place, spread

        here = mine(self._mesh)
        return spread(place(np.full(here.stop - here.start, self._stop.received is not None), self._mesh), self._mesh)

    def learn(self, asked: Any) -> None:
        """What they said."""
        if asked is not None and bool(np.asarray(asked).any()):
            self._heard = self._stop.received or "a signal to another process"


@contextmanager
def guard(where: str) -> Iterator[None]:
    """Around a run of several processes: when another one is lost, say so and leave at once (an ordinary exit would wait for it, and abort)."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not many():
            raise
        reason = str(error).splitlines()[0][:200]
        sys.stderr.write(
            f"process {jax.process_index()} of {jax.process_count()}: the exchange with the others failed ({reason}).\n"
            f"A process is lost, so the run ends. {where} keeps its last complete checkpoint:\n"
            f"  --resume {where} goes on from there, with --inexact on fewer processes\n"
        )
        sys.stderr.flush()
        os._exit(1)
