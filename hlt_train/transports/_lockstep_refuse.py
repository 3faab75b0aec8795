"""What a lockstep run refuses, by name: what the rule cannot do here, and options for which the rule has no use."""

from __future__ import annotations

from hlt_train.errors import UsageError, nearest
from hlt_train.precision import wire as wires
from hlt_train.strategies import Strategy
from hlt_train.transports._lockstep_exchange import Network

__all__ = ["refuse"]

CHOICES = {"arrival": ("fixed", "rotate", "permute"), "exchange": ("allreduce", "alltoall"), "shards": ("auto", "always", "never")}


def refuse(rule: Strategy, network: Network, workers: int, shards: str) -> None:
    """Raise `UsageError` unless the rule can run on `workers` workers over this network."""
    for name, given in (("arrival", network.arrival), ("exchange", network.exchange), ("shards", shards)):
        if given not in CHOICES[name]:
            raise UsageError(f"{name} has no value '{given}'", near=nearest(given, CHOICES[name]), then=f"one of: {', '.join(CHOICES[name])}")
    wires.check(network.wire)
    for name in ("loss", "reorder"):
        if not 0 <= getattr(network, name) < 1:
            raise UsageError(f"{name}={getattr(network, name)} is no probability below 1", then=f"{name} from 0 to 1")
    _refuse_rule(rule, workers)
    _refuse_network(rule, network, shards)


def _refuse_rule(rule: Strategy, workers: int) -> None:
    reasons = {
        f"quorum={rule.quorum} leaves no message of {workers} workers to wait for": workers + rule.quorum < 1,
        "quorum below 0 with late='serve': a round that has closed would have to be opened again": rule.quorum < 0 and rule.late == "serve",
        f"fan={rule.fan} to a server: several messages of one ask are for peers": rule.fan != 1 and not rule.peers,
        f"warm={rule.warm} without a server to start the other workers from": rule.warm > 0 and rule.peers,
        "warm and batch together: one of them decides who evaluates what": rule.warm > 0 and rule.batch is not None,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise UsageError(f"the lockstep transport cannot run this strategy: {'; '.join(found)}")


def _refuse_network(rule: Strategy, network: Network, shards: str) -> None:
    mean = rule.combine == "mean" and rule.quorum == 0 and not rule.peers
    reasons = {
        f"arrival={network.arrival}: its messages have no order of arrival": network.arrival != "fixed" and (rule.quorum == 0 or rule.peers),
        f"loss={network.loss:g}: its messages are reliable": network.loss > 0 and rule.reliable,
        f"reorder={network.reorder:g}: its messages are reliable": network.reorder > 0 and rule.reliable,
        f"reorder={network.reorder:g}: only messages to peers are held back": network.reorder > 0 and not rule.peers,
        f"exchange={network.exchange}: it needs more than the mean of its messages": network.exchange != "allreduce" and not mean,
        f"wire={network.wire} without exchange=alltoall": network.wire != "float32" and network.exchange != "alltoall",
        f"shards={shards}: it has no server": shards == "always" and rule.peers,
        f"shards={shards} with wire={network.wire}: parameters are not sent in a narrow format": shards == "always" and network.wire != "float32",
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise UsageError(f"this strategy has no use for {'; '.join(found)}")
