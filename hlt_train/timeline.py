"""A timeline of what actors did, in the trace-event format that Perfetto (ui.perfetto.dev) and chrome://tracing open.

One row per actor; a span per batch, wait, serve or failure. Spans are kept in memory and written at the end: the first `MOST` of them. The file says how many
more there were.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hlt_train.files import write_text
from hlt_train.transports.simulate import Span

__all__ = ["Timeline"]

MOST = 200_000
_ORDER = {"clerk": 0, "server": 1, "shard": 2, "worker": 3}


class Timeline:
    """Collects spans; call it with one."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.dropped = 0

    def __call__(self, span: Span) -> None:
        """Keep a span."""
        if len(self.spans) < MOST:
            self.spans.append(span)
        else:
            self.dropped += 1

    def write(self, path: Path, clock: str) -> None:
        """Write `path`; `clock` says what the times are (virtual or wall)."""
        actors = sorted({span.actor for span in self.spans}, key=lambda name: (_ORDER.get(name.split()[0], 9), len(name), name))
        number = {actor: k + 1 for k, actor in enumerate(actors)}
        events: list[dict[str, Any]] = [{"name": "process_name", "ph": "M", "pid": 1, "args": {"name": f"hlt-train ({clock} time)"}}]
        for actor, k in number.items():
            events.append({"name": "thread_name", "ph": "M", "pid": 1, "tid": k, "args": {"name": actor}})
            events.append({"name": "thread_sort_index", "ph": "M", "pid": 1, "tid": k, "args": {"sort_index": k}})
        for span in self.spans:
            micro = {"ts": round(span.begin * 1e6, 3), "dur": round((span.end - span.begin) * 1e6, 3)}
            events.append({"name": span.kind, "cat": span.kind, "ph": "X", "pid": 1, "tid": number[span.actor], **micro})
        other = {"format": "hlt-train/timeline", "version": 1, "clock": clock, "dropped_spans": self.dropped}
        write_text(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": other}, separators=(",", ":")))
