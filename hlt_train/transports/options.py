"""What each transport can be told: the `transport` section of a configuration, checked before anything else is done."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, TypeAdapter, ValidationError, field_validator

from hlt_train.configuration import Configuration
from hlt_train.errors import UsageError, nearest

__all__ = ["TRANSPORTS", "LockstepOptions", "MessageOptions", "MpiOptions", "Options", "SimulateOptions", "parse"]

Wire = Literal["float32", "bfloat16", "float16", "int8"]
Probability = Annotated[float, Field(ge=0, lt=1)]
_FAILURE = re.compile(r"(kill|stop|server)(?::(\d+))?@([0-9.eE+-]+?)(?:\+([0-9.eE-]+))?")


class LockstepOptions(Configuration):
    """Devices of this process (or of several, through jax.distributed) that meet at a barrier.

    Attributes:
        arrival: order in which the messages of one exchange point count.
        exchange: how a rule that needs only the mean gets it.
        wire: numbers of the messages of such an exchange.
        loss, reorder: of datagrams, for rules that send those.
    """

    name: Literal["lockstep"] = "lockstep"
    arrival: Literal["fixed", "rotate", "permute"] = "fixed"
    exchange: Literal["allreduce", "alltoall"] = "allreduce"
    wire: Wire = "float32"
    loss: Probability = 0.0
    reorder: Probability = 0.0


class MessageOptions(Configuration):
    """What transports of messages share.

    Attributes:
        workers: N.
        servers: shards of the parameter server.
        wire: numbers of the bodies that workers push to the server.
        overlap: go on while the answer of an exchange is under way.
        timeline: write `timeline.json`, which Perfetto and Chrome's tracing page open.
    """

    workers: PositiveInt = 2
    servers: PositiveInt = 1
    wire: Wire = "float32"
    overlap: bool = False
    timeline: bool = True


class SimulateOptions(MessageOptions):
    """A virtual clock; seconds and bytes/s of it. See `simulate.Timing`.

    Attributes:
        stragglers: none | lognormal:SIGMA | pareto:ALPHA | trace:FILE, a factor of the time of each batch.
        failures: on schedule: `kill:WORKER@TIME`, `stop:WORKER@TIME+SECONDS`, `server@TIME`.
    """

    name: Literal["simulate"] = "simulate"
    compute: PositiveFloat = 0.02
    stragglers: str = "none"
    latency: NonNegativeFloat = 1e-4
    bandwidth: PositiveFloat = 1e9
    service: NonNegativeFloat = 0.0
    cores: PositiveInt | None = None
    loss: Probability = 0.0
    reorder: Probability = 0.0
    detection: NonNegativeFloat = 0.2
    failures: tuple[str, ...] = ()

    @field_validator("failures")
    @classmethod
    def _readable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            parse_failure(text)
        return value


class MpiOptions(MessageOptions):
    """Processes: one per worker, one per shard, and the clerk that writes the run.

    Attributes:
        exchange: server (messages to the parameter server), or, for a rule that needs only the mean, allreduce | alltoall among the workers.
        devices: of each worker.
        nproc: XLA's threads per process; None: cores / processes, at least 1.
        with_ft: survive killed processes (MPI's fault tolerance, Open MPI's `--with-ft ulfm`).
        respawn: replace a killed worker.
        watchdog: seconds without any message after which the run is ended.
        report_every: seconds between two reports of a worker to the clerk.
        lock_free: how workers share the parameters of a rule whose server only adds: `node` (shared memory), `rma` (a window on `servers` ranks, across
            nodes), `no` (messages to the parameter server); auto: node where all ranks share one, else rma, and no with an option that is about messages.
        hogwild_unsafe: add without atomicity, and report which fraction of the updates was lost.
        datagrams: how rules without server that can do with losses send: messages, or udp.
        loss, reorder: of datagrams, on purpose: each is lost, or kept back and sent after the next, with this probability.
        lan: any address in the network whose interface udp is to use; the default is this machine alone.
    """

    name: Literal["mpi"] = "mpi"
    exchange: Literal["server", "allreduce", "alltoall"] = "server"
    devices: PositiveInt = 1
    nproc: PositiveInt | None = None
    with_ft: bool = False
    respawn: NonNegativeInt = 0
    watchdog: PositiveFloat = 300.0
    report_every: PositiveFloat = 1.0
    lock_free: Literal["auto", "no", "node", "rma"] = "auto"
    hogwild_unsafe: bool = False
    datagrams: Literal["messages", "udp"] = "messages"
    loss: Probability = 0.0
    reorder: Probability = 0.0
    lan: str = "127.0.0.1"


Options = LockstepOptions | SimulateOptions | MpiOptions
TRANSPORTS: dict[str, type[Configuration]] = {"lockstep": LockstepOptions, "simulate": SimulateOptions, "mpi": MpiOptions}
_ADAPTER: TypeAdapter[Options] = TypeAdapter(Annotated[Options, Field(discriminator="name")])


def parse(content: dict[str, Any]) -> Options:
    """The options of a transport; unknown names and values are refused with the nearest ones."""
    name = content.get("name", "lockstep")
    if name not in TRANSPORTS:
        raise UsageError(f"no transport is called '{name}'", near=nearest(str(name), TRANSPORTS), then=f"one of: {', '.join(TRANSPORTS)}")
    try:
        return _ADAPTER.validate_python({**content, "name": name})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if part not in TRANSPORTS)
        known = [field for field in TRANSPORTS[name].model_fields if field != "name"]
        if first["type"] == "extra_forbidden":
            elsewhere = [other for other, model in TRANSPORTS.items() if key in model.model_fields]
            then = f"--transport {' or '.join(elsewhere)}" if elsewhere else f"options: {', '.join(known)}"
            if key == "workers":
                then += "; the workers of lockstep are the --devices"
            raise UsageError(f"{name} has no option '{key}'", near=() if elsewhere else nearest(key, known) or tuple(known), then=then) from error
        raise UsageError(f"option '{key}' of {name}: {first['msg'].removeprefix('Value error, ')}, got {first['input']!r}") from error


def parse_failure(text: str) -> tuple[str, int, float, float]:
    """(kind, worker, time, seconds) of an entry of `failures`."""
    found = _FAILURE.fullmatch(text.strip())
    if found is None or (found[1] == "server") != (found[2] is None) or (found[1] == "stop") != (found[4] is not None):
        raise ValueError(f"a failure is kill:WORKER@TIME, stop:WORKER@TIME+SECONDS or server@TIME, got '{text}'")
    return found[1], int(found[2] or 0), float(found[3]), float(found[4] or 0)
