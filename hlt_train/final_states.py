"""What the clerk reads from the states that actors have written: parameters, hashes, and what a recovery loses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hlt_train.fleet import digest
from hlt_train.transports.actors import Shard, Worker
from hlt_train.transports.dealing import Deal, Share
from hlt_train.transports.journal import file_of
from hlt_train.transports.mpi import load_actor, stored_actor
from hlt_train.transports.program import Program

__all__ = ["last_states", "served_since", "stored_vector"]


def _workers(program: Program, living: Sequence[int], folder: Path) -> list[Worker]:
    workers = [Worker(program, k, Deal([])) for k in living]
    for worker in workers:
        load_actor(folder, "worker", worker.index, worker)
    return workers


def _shards(program: Program, folder: Path) -> list[Shard]:
    shards = [Shard(program, k) for k in range(0 if program.strategy.peers else program.shards)]
    for shard in shards:
        load_actor(folder, "shard", shard.index, shard)
    return shards


def stored_vector(program: Program, living: Sequence[int], folder: Path) -> np.ndarray:
    """The parameters of the states in a folder."""
    workers = _workers(program, living, folder) if program.strategy.peers else []
    return program.params([w.state for w in workers], [s.state for s in _shards(program, folder)])


def last_states(program: Program, living: Sequence[int], folder: Path) -> tuple[dict[str, str], list[str], list[Share]]:
    """Hashes of the states of workers and shards, and the shares that no push took along."""
    workers = _workers(program, living, folder)
    held = [share for worker in workers for share in worker.pending]
    return {str(w.index): digest(w.state) for w in workers}, [digest(s.state) for s in _shards(program, folder)], held


def served_since(run: Path, folder: str) -> int | None:
    """Messages that the log of shard 0 holds after the checkpoint with the states in `folder` ("": from the beginning); None where there is no server."""
    path = file_of(run, "shard", 0)
    if not path.is_file():
        return None
    begin = int(stored_actor(Path(folder), "shard", 0)["more"]["journal"]) if folder else 0
    lines = [json.loads(line) for line in path.read_bytes()[begin:].split(b"\n")[:-1]]
    return sum(len(line) for line in lines if isinstance(line, list))
