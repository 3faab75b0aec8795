"""What the clerk reads from the states that actors have written or sent: parameters, hashes, and what a recovery loses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hlt_train import checkpoints
from hlt_train.transports.actors import Shard, Worker
from hlt_train.transports.dealing import Deal, Share
from hlt_train.transports.journal import Journal, file_of
from hlt_train.transports.mpi import Role, actor_file, load_actor, stored_actor
from hlt_train.transports.program import Program, digest
from hlt_train.transports.protocol import unpack

__all__ = ["clean", "cut_logs_of_the_missing", "joined", "last_states", "served_since", "stillness", "stored_vector"]


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


def joined(program: Program, living: Sequence[int], found: Mapping[int, np.ndarray]) -> np.ndarray:
    """The parameters that shards (peers: the living workers) have sent, by index."""
    if not program.strategy.peers:
        return np.concatenate([found[k].view(np.float32)[: program.cuts[k + 1] - program.cuts[k]] for k in range(program.shards)])
    like = program.leaves(program.worker(0))
    specs = tuple((leaf.shape, leaf.dtype) for leaf in like["leaves"])
    return program.params([program.worker_from({**like, "leaves": list(unpack(found[k], specs))}) for k in living], [])


def cut_logs_of_the_missing(run: Path, role: Role, workers: int) -> None:
    """Workers that have no process any more end at the checkpoint: what they did since is no part of the run."""
    for k in set(range(workers)) - set(role.workers):
        if not file_of(run, "worker", k).is_file():
            continue
        journal = Journal(run, "worker", k)
        if not role.folder:
            journal.cut(journal.header())
        elif actor_file(Path(role.folder), "worker", k).is_file():
            journal.cut(int(stored_actor(Path(role.folder), "worker", k)["more"]["journal"]))


def stillness(run: Path, seconds: float, at_work: Mapping[int, tuple[int, int]], silent: Sequence[int]) -> str:
    """What to say when nothing moves. at_work: worker -> (rank, batches done); silent: ranks from which nothing at all comes."""
    waited = [f"worker {k} (rank {rank}, batch {t})" for k, (rank, t) in at_work.items()]
    last = checkpoints.pointed(run, "LAST")
    kept = f"the last checkpoint is step {last}" if last is not None else "there was no checkpoint yet"
    silence = f"; nothing at all came from {', '.join(f'rank {rank}' for rank in silent)}" if silent else ""
    return f"nothing has moved for {seconds:g} s; still at work: {', '.join(waited) or 'nobody'}{silence}; {kept}"


def clean(run: Path) -> None:
    """Remove what the end of the run wrote, if it had one, and states that became no checkpoint."""
    for name in ("transport.json", "coverage.json", "timeline.json"):
        (run / name).unlink(missing_ok=True)
    for path in (run / "checkpoints").glob(".actors-*"):
        shutil.rmtree(path, ignore_errors=True)
