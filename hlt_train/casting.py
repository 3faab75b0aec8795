"""Who does what in a session of processes: the roles among the living, and what each worker has to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hlt_train import checkpoints
from hlt_train.errors import RunFailed, UsageError
from hlt_train.strategies import Strategy
from hlt_train.transports.dealing import Deal, Share, deals, inherit
from hlt_train.transports.mpi import Role, actor_file, stored_actor
from hlt_train.transports.options import MpiOptions
from hlt_train.transports.program import Program

__all__ = ["AHEAD", "cast", "check_exchange", "make_role", "processes", "shards_of", "to_do", "under_way"]

AHEAD = 2  # epochs, of its own batches, that a worker may begin while the clerk still validates an earlier one
CONTINUE = "hlt-train fit --resume RUN continues from the last checkpoint"


def processes(options: MpiOptions, *, peers: bool) -> int:
    """How many processes a run has: the clerk, the workers, and the shards where they have processes of their own."""
    return 1 + options.workers + (0 if peers or options.exchange != "server" else options.servers)


def shards_of(options: MpiOptions) -> int:
    """How many shards the server has: one per worker where they exchange with one another, one with as many copies for allreduce."""
    return {"server": options.servers, "alltoall": options.workers, "allreduce": 1}[options.exchange]


def check_exchange(name: str, strategy: Strategy, options: MpiOptions) -> None:
    """Refuse an exchange among the workers to a rule that has no barrier, and shards to one that has no server.

    Raises:
        UsageError: the options do not fit the strategy `name`.
    """
    if strategy.peers and (options.servers != 1 or options.exchange != "server"):
        raise UsageError(f"{name} has no server: its workers send to one another", then="leave --servers and --exchange out")
    if options.exchange == "server":
        return
    if options.servers != 1:
        raise UsageError(f"--exchange {options.exchange} has no servers: the workers exchange with one another", then="leave --servers out")
    if strategy.quorum != 0 or strategy.batch is not None:
        what = f"--exchange {options.exchange} is for rules in which all workers meet; {name} serves its messages as they come"
        raise UsageError(what, near=("sync", "average"), then="--exchange server")


def cast(old: Role | None, alive: Sequence[int], shards: int, workers: Sequence[int], *, beside: bool) -> tuple[int, list[int], dict[int, int]]:
    """(clerk, shards, workers) among the living. Everybody who knows the old role comes to the same result.

    At first: the first rank is the clerk, then the shards, then the workers; `beside`: the shards live in the workers' processes. Later a dead clerk or server
    is replaced by a process that had nothing to do, else by the worker with the highest number; where only one worker is left, the dead one's shards move in
    with another's.

    Raises:
        RunFailed: too few are left.
    """
    living = sorted(alive)
    if old is None:
        first = 1 if beside else 1 + shards
        ranks = living[first : first + len(workers)]
        if not ranks:
            raise RunFailed(f"{len(living)} processes are too few: a clerk{'' if beside else f', {shards} shards'} and a worker", then="mpirun with more")
        return living[0], [ranks[k % len(ranks)] for k in range(shards)] if beside else living[1 : 1 + shards], dict(zip(workers, ranks, strict=False))
    found = {k: rank for k, rank in old.workers.items() if rank in living}
    clerk, places = old.clerk, list(old.shards)
    spare = [rank for rank in living if rank != clerk and rank not in places and rank not in found.values()]

    def replacement() -> int | None:
        """A process for a role that has lost its own."""
        if spare:
            return spare.pop()
        if len(found) > 1:
            rank = found.pop(max(found))
            for k, place in enumerate(places):
                if place == rank and beside:
                    places[k] = -1  # it moves in with another worker, below
            return rank
        return None

    if clerk not in living:
        taken = replacement()
        hosts = sorted({place for place in places if place in living and place not in found.values()})
        if taken is None and len(hosts) > 1:
            taken = hosts[-1]
            places = [hosts[0] if place == taken else place for place in places]
        if taken is None:
            raise RunFailed(f"too few processes are left: {len(living)}", then=CONTINUE)
        clerk = taken
    for k, place in enumerate(places):
        if place in living:
            continue
        others = [p for p in places if p in living]
        taken = min(found.values(), default=None) if beside else replacement()
        taken = others[0] if taken is None and others else taken
        if taken is None:
            raise RunFailed(f"too few processes are left: {len(living)}", then=CONTINUE)
        places = [taken if p == place and not beside else p for p in places]  # who served several goes on to do so
        places[k] = taken
    if not found:
        raise RunFailed("no worker is left", then=CONTINUE)
    return clerk, places, found


def make_role(
    session: int,
    old: Role | None,
    alive: Sequence[int],
    program: Program,
    options: MpiOptions,
    path: Path,
    *,
    steps: int,
    limit: int,
    respawns: int,
    extended: bool,
) -> Role:
    """The roles of a session, with what each worker has to do where that is not in its checkpoint.

    Args:
        session: its number.
        old: the last role that anybody knows.
        alive: the ranks.
        program: the strategy.
        options: of the transport.
        path: the run directory.
        steps: of each worker, in the whole run.
        limit: t at which the workers wait at first; -1: nowhere.
        respawns: how many replacements may still be started.
        extended: the run has got longer since its checkpoint.
    """
    n, warm = program.workers, program.strategy.warm
    shards = 0 if program.strategy.peers else program.shards
    step = checkpoints.pointed(path, "LAST")
    folder = None if step is None else path / "checkpoints" / str(step) / "actors"
    document: dict[str, Any] = {} if step is None else checkpoints.document(path, step)
    orphans: Mapping[str, Any] = document.get("orphans", {})
    stored = {} if folder is None else {k: stored_actor(folder, "worker", k) for k in range(n) if actor_file(folder, "worker", k).is_file()}
    names = range(n) if folder is None else sorted({*stored, *map(int, orphans)})
    clerk, places, ranks = cast(old, alive, shards, names, beside=options.exchange != "server")
    joining: dict[int, list[int]] = {}
    given: dict[int, list[list[int]]] = {}
    inherits: dict[int, list[list[int]]] = {}

    def bequeath(deal: Deal, unfinished: Sequence[Share], heirs: Sequence[int]) -> None:
        for heir, sources in inherit(deal, unfinished, sorted(heirs)).items():
            if sources and program.strategy.batch is None:
                inherits[heir] = [*inherits.get(heir, []), *(list(s) for s in sources)]

    if folder is None:
        dealt = deals(n, steps, warm)
        given = {k: dealt[k].document() for k in ranks}
        for k in sorted(set(range(n)) - set(ranks)):
            bequeath(dealt[k], (), list(ranks))
        started = not warm or 0 not in ranks
    else:
        for k in ranks:
            if k not in stored:  # it died before the checkpoint: a replacement takes up what was kept for it, or nothing
                t, left = orphans.get(str(k), [0, []])
                joining[k], given[k] = [t, (session + 1) << 32], left
        for name, (_t, left) in orphans.items():
            if int(name) not in ranks:
                bequeath(Deal(left), (), list(ranks))
        for k in sorted(set(stored) - set(ranks)):
            bequeath(Deal(stored[k]["deal"]), [*stored[k]["pending"], *under_way(folder, k, shards)], list(ranks))
        if extended and steps > document["steps"]:
            for k in range(n):
                bequeath(Deal([(k, document["steps"], steps)]), (), [k] if k in ranks else list(ranks))
        started = not warm or 0 not in ranks or 0 in joining or int(stored[0]["t"]) >= min(warm, steps) * n
    replicated = options.exchange == "allreduce"
    where = "" if folder is None else str(folder)
    return Role(session, clerk, places, ranks, given, inherits, where, joining, started, replicated, limit, respawns, extended)


def under_way(folder: Path, worker: int, shards: int) -> list[Share]:
    """Shares of a worker's messages that no shard had served at a checkpoint."""
    if not shards:
        return []
    return [share for message in stored_actor(folder, "shard", 0)["waiting"] if message.source == worker for share in message.shares]


def to_do(role: Role) -> tuple[dict[int, Deal], list[Share]]:
    """Worker -> all that it has to do in a session, what it had computed but not got applied included; and the shares that it had not sent yet."""
    found: dict[int, Deal] = {}
    unpushed: list[Share] = []
    for k in role.workers:
        more = role.inherits.get(k, [])
        if k in role.joining or not role.folder:
            found[k] = Deal([*role.deals.get(k, []), *more])
            continue
        stored = stored_actor(Path(role.folder), "worker", k)
        flying = [*stored["pending"], *under_way(Path(role.folder), k, len(role.shards))]
        found[k] = Deal([*stored["deal"], *more, *((owner, step, step + 1) for step, owner in flying if owner >= 0)])
        unpushed += [(int(step), int(owner)) for step, owner in stored["pending"]]
    return found, unpushed
