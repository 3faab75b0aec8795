"""A run by messages once more, from the logs of its actors alone: no clock, no network, the same bits.

Every actor does again what its log says it did, as soon as what it consumed exists: a worker goes on to its next message when its answer is there; a shard
serves the next line of its log when all messages of the line are there. The order in which actors get their turn does not matter, as no actor sees anything
but what it consumes.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from hlt_train.errors import RunFailed
from hlt_train.strategies import SERVER
from hlt_train.transports.actors import Reply, Served, Shard, Worker
from hlt_train.transports.dealing import Deal
from hlt_train.transports.program import Message, Program

__all__ = ["Replay"]


class Replay:
    """Replays the logs of a run.

    Args:
        program: the strategy.
        data: share -> batch.
        deals: what each worker had to do at the beginning, where its log does not say so.
        workers: log of each worker, by index.
        shards: log of each shard, in their order.
        portions: of the whole run, for rules whose server hands them out.
    """

    def __init__(
        self,
        program: Program,
        data: Callable[[tuple[int, int]], Any],
        deals: Sequence[Deal],
        workers: Mapping[int, Sequence[Any]],
        shards: Sequence[Sequence[Any]],
        portions: int,
    ) -> None:
        self.program, self.rule, self._data = program, program.strategy, data
        self.workers = {k: Worker(program, k, deals[k], portions_limit=portions) for k in workers}
        self.shards = [Shard(program, k) for k in range(len(shards))]
        self._lines = {k: deque(lines) for k, lines in workers.items()}
        self._needed = _consumed(workers, shards)
        self._served = [deque(lines) for lines in shards]
        self._sent: dict[tuple[int, int], Message] = {}
        self._uses: dict[tuple[int, int], int] = {}  # how many shards (or peers) have still to consume a message
        self._parts: dict[tuple[int, int], dict[int, Reply]] = {}
        self._welcomes: dict[int, list[deque[tuple[np.ndarray, int]]]] = defaultdict(lambda: [deque() for _ in shards])  # by worker, by shard
        self.losses: dict[int, list[float]] = {k: [] for k in workers}

    def run(self) -> None:
        """Replay everything that the logs hold.

        Raises:
            RunFailed: the logs do not fit together, or not to this program.
        """
        moved = True
        while moved:
            moved = False
            for worker in self.workers.values():
                while self._worker(worker):
                    moved = True
            moved |= self._all() if self.rule.order == "all" else sum(map(self._each, self.shards)) > 0
        left = [f"worker {k} at exchange point {self.workers[k].point}" for k, lines in self._lines.items() if lines]
        left += [f"shard {k} after {len(shard)} more serves" for k, shard in enumerate(self._served) if shard]
        if left:
            raise RunFailed(
                f"the logs do not fit together: {', '.join(left[:4])} wait for messages that nobody sends", then="replay a run whose logs are whole"
            )

    def params(self, living: Iterable[int] | None = None) -> np.ndarray:
        """float32 `[n]`: the parameters at the end. living: the workers that were not dead then; None: all."""
        chosen = self.workers if living is None else living
        return self.program.params([self.workers[k].state for k in sorted(chosen)], [s.state for s in self.shards])

    def _worker(self, worker: Worker) -> bool:
        """Let a worker do one thing; False when it can do nothing now."""
        lines = self._lines[worker.index]
        if not lines:
            return self._without_log(worker)
        line = lines[0]
        if isinstance(line, dict):
            return self._event(worker, line)
        _point, source, sequence = line
        match worker.wants:
            case "answer":
                if source != SERVER or worker.awaiting is None or sequence != worker.awaiting[0]:
                    return False
                replies = self._parts.get((worker.index, sequence), {})
                if len(replies) < len(self.shards):
                    return False
                lines.popleft()
                del self._parts[worker.index, sequence]
                worker.answer([replies[s] for s in range(len(self.shards))])
            case "batch":
                self._batch(worker)
            case "exchange":
                while lines and not isinstance(lines[0], dict) and lines[0][1] != SERVER and lines[0][0] == worker.point:
                    key = (lines[0][1], lines[0][2])
                    if key not in self._sent:
                        return False
                    lines.popleft()
                    worker.peers([self._use(key)])
                self._ask(worker)
            case "done":
                return False
        return True

    def _without_log(self, worker: Worker) -> bool:
        """Beyond its last line (it was killed) a worker consumed nothing more, but may have sent what somebody consumed."""
        return worker.sequence <= max(self._needed.get(worker.index, ()), default=-1) and self._towards(worker)

    def _event(self, worker: Worker, line: dict[str, Any]) -> bool:
        lines = self._lines[worker.index]
        if worker.t < line.get("t", 0) or ("ends" in line and worker.wants == "exchange"):
            return self._towards(worker)
        if "joins" in line:
            if "fresh" in line and worker.sequence <= self._last_before(worker.index, line["fresh"][1]):
                return self._towards(worker)  # what the predecessor had sent before it died
            waiting = self._welcomes[worker.index]
            if not all(waiting):
                return False
            welcomes = [queue.popleft() for queue in waiting]
            if "fresh" in line:
                worker.deal = Deal(line["deal"])
            worker.join([part for part, _ in welcomes], [clock for _, clock in welcomes], line.get("fresh"))
        elif "deal" in line:
            worker.deal = Deal(line["deal"])
        elif "takes over" in line:
            worker.take_over(line["takes over"])
        lines.popleft()
        return True

    def _last_before(self, worker: int, sequence: int) -> int:
        """The last message of a worker below `sequence` that anybody consumed."""
        return max((number for number in self._needed.get(worker, ()) if number < sequence), default=-1)

    def _towards(self, worker: Worker) -> bool:
        """Go on without consuming anything."""
        match worker.wants:
            case "batch":
                self._batch(worker)
            case "exchange":
                self._ask(worker)
            case _:
                return False
        return True

    def _batch(self, worker: Worker) -> None:
        share = worker.share()
        if share is None:
            worker.idle()
        else:
            self.losses[worker.index].append(worker.evaluate(self._data(share)))

    def _ask(self, worker: Worker) -> None:
        for message in worker.ask():
            key = (message.source, message.sequence)
            self._sent[key] = message
            self._uses[key] = len(self.shards) if message.to == SERVER else 1

    def _use(self, key: tuple[int, int]) -> Message:
        """A message, which is forgotten when everybody has consumed it."""
        message = self._sent[key]
        self._uses[key] -= 1
        if self._uses[key] == 0:
            del self._sent[key], self._uses[key]
        return message

    # Shards.

    def _each(self, shard: Shard) -> bool:
        """The next lines of a shard that stands on its own."""
        lines, moved = self._served[shard.index], False
        while lines and self._possible(lines[0]):
            line = lines.popleft()
            if isinstance(line, dict):
                self._mark(shard, line)
            else:
                messages = self._offer(shard, line)
                self._answers(shard.serve(messages, shard.measure(messages)))
            moved = True
        return moved

    def _all(self) -> bool:
        """The next lines of shards that serve in one order: that of shard 0."""
        moved = False
        while self.shards and self._served[0] and self._possible(self._served[0][0]):
            line = self._served[0][0]
            for lines in self._served:
                if not lines or lines.popleft() != line:
                    raise RunFailed("the logs of the shards are not of one order", then="replay a run whose logs are whole")
            if isinstance(line, dict):
                for shard in self.shards:
                    self._mark(shard, line)
            else:
                offered = [self._offer(shard, line) for shard in self.shards]
                total = [shard.measure(messages) for shard, messages in zip(self.shards, offered, strict=True)]
                whole = total[0]
                for more in total[1:]:
                    whole = jax.tree.map(lambda a, b: a + b, whole, more)
                for shard, messages in zip(self.shards, offered, strict=True):
                    self._answers(shard.serve(messages, whole))
            moved = True
        return moved

    def _possible(self, line: Any) -> bool:
        if isinstance(line, dict):
            return "late" not in line or tuple(line["late"]) in self._sent
        return all(tuple(pair) in self._sent for pair in line)

    def _offer(self, shard: Shard, line: list[list[int]]) -> list[Message]:
        messages = [self._use((source, sequence)) for source, sequence in line]
        shard.waiting += messages
        return messages

    def _mark(self, shard: Shard, line: dict[str, Any]) -> None:
        if "late" in line:
            source, sequence = line["late"]
            self._answers(shard.refuse(self._use((source, sequence))))
        elif "joins" in line:
            self._welcomes[line["joins"]][shard.index].append(shard.welcome(line["joins"]))

    def _answers(self, served: Served) -> None:
        for reply in served.replies:
            self._parts.setdefault((reply.to, reply.sequence), {})[reply.shard] = reply


def _consumed(workers: Mapping[int, Sequence[Any]], shards: Sequence[Sequence[Any]]) -> dict[int, list[int]]:
    """Worker -> those of its messages that anybody consumed, ascending."""
    found: dict[int, set[int]] = {}
    pairs = [(line[1], line[2]) for lines in workers.values() for line in lines if isinstance(line, list)]
    for line in (line for lines in shards for line in lines):
        pairs += line if isinstance(line, list) else [line["late"]] if "late" in line else []
    for source, sequence in pairs:
        found.setdefault(source, set()).add(sequence)
    return {source: sorted(sequences) for source, sequences in found.items()}
