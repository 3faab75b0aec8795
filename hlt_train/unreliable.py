"""Peers that send datagrams instead of messages of MPI (Dogwild): what the clerk counts of them, and which runs may."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hlt_train.books import Work
from hlt_train.clerk import Clerk
from hlt_train.crew import Ranks
from hlt_train.errors import UsageError
from hlt_train.strategies import Strategy
from hlt_train.transports.datagrams import PAYLOAD, Counts, DatagramCrew, DatagramProgram, folder_counts
from hlt_train.transports.options import MpiOptions

__all__ = ["DatagramRanks", "by_datagrams"]


def by_datagrams(strategy: Strategy, options: MpiOptions) -> bool:
    """Whether the workers of a run send datagrams.

    Raises:
        UsageError: options that do not fit together, or not to the strategy.
    """
    if options.datagrams == "udp" and (strategy.reliable or not strategy.peers):
        raise UsageError("datagrams are lost and reordered: they are for a rule that can do with that", near=("dogwild",), then="leave transport.datagrams out")
    if options.datagrams != "udp" and (options.loss or options.reorder):
        raise UsageError("messages of MPI are not lost or reordered: loss and reorder are for datagrams", then="--set transport.datagrams=udp")
    return options.datagrams == "udp"


class DatagramClerk(Clerk):
    """The clerk of a run by datagrams."""

    counts: dict[int, Counts]

    def _save(self, folder: Path) -> None:
        self.counts = folder_counts(folder, sorted(self.alive))
        for k, count in self.counts.items():
            arrived = sum(other.received.get(k, 0) for other in self.counts.values())
            self.books.account.lost_datagrams[k] = count.sent + count.withheld - arrived
        super()._save(folder)

    def more(self) -> dict[str, Any]:
        """What `transport.json` says of the datagrams."""
        counts = list(self.counts.values())
        sent, received, withheld = sum(c.sent for c in counts), sum(sum(c.received.values()) for c in counts), sum(c.withheld for c in counts)
        return {"datagrams": {"by": "udp", "largest": PAYLOAD, "sent": sent, "received": received, "lost_on_purpose": withheld, "lost": sent - received}}


class DatagramRanks(Ranks):
    """This process's part in a run by datagrams."""

    clerk_kind = DatagramClerk
    crew_kind = DatagramCrew

    def __init__(self, mail: Any, work: Work, options: MpiOptions, *more: Any, **others: Any) -> None:
        super().__init__(mail, work._replace(program=DatagramProgram(work.program, options)), options, *more, **others)
