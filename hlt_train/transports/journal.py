"""The logs of actors: what each consumed, in its order. One file per actor in `actors/` of a run, JSON lines after a header with format and version.

A line is written, unbuffered, before what depends on it is sent: what a killed process wrote is in the kernel's hands and is not lost with it.

Lines of a worker: `[point, source, sequence]` (source -1: the server's answer to the worker's own message), `{"t": batches, "takes over": [[owner, next, stop,
stride], ...]}`, `{"joins": clocks}` (it begins at the server's parameters), `{"t": batches, "ends": true}`. Lines of a shard: `[[source, sequence], ...]`, one
per serve, `{"late": [source, sequence]}`, `{"joins": worker}`. Any other object is a remark, such as `{"restored": step}`.

When a run goes back to a checkpoint its logs are cut to what they were then: what they hold is one history, from the first batch to the last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hlt_train.errors import RunFailed, UsageError
from hlt_train.files import append_line

__all__ = ["Journal", "Journals", "file_of", "read"]

FORMAT, VERSION = "hlt-train/journal", 1


def file_of(run: Path, kind: str, index: int) -> Path:
    """The log of an actor (kind: worker or shard)."""
    return run / "actors" / f"{kind}-{index:05}.jsonl"


class Journal:
    """The log of one actor, open for appending. Call it with a line."""

    def __init__(self, run: Path, kind: str, index: int) -> None:
        self.path = file_of(run, kind, index)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            append_line(self.path, {"format": FORMAT, "version": VERSION, "actor": f"{kind} {index}"})
        self._stream = self.path.open("ab", buffering=0)

    def __call__(self, line: Any) -> None:
        """Write a line."""
        self._stream.write((json.dumps(line, separators=(",", ":")) + "\n").encode())

    def size(self) -> int:
        """Bytes so far: a checkpoint remembers where it was taken."""
        return self._stream.seek(0, 2)

    def cut(self, size: int) -> None:
        """Drop what was written after a checkpoint."""
        if self.size() < size:
            raise RunFailed("the log of an actor is shorter than it was at the last checkpoint", where=str(self.path))
        self._stream.truncate(size)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class Journals:
    """The logs of actors of one process. run: None keeps no logs."""

    def __init__(self, run: Path | None) -> None:
        self.run = run
        self._open: dict[tuple[str, int], Journal] = {}

    def note(self, kind: str, index: int) -> Callable[[Any], None]:
        """What an actor calls with a line of its log."""
        if self.run is None:
            return lambda _line: None
        journal = self._open[kind, index] = Journal(self.run, kind, index)
        return journal

    def sizes(self) -> dict[str, int]:
        """File name -> bytes."""
        return {journal.path.name: journal.size() for journal in self._open.values()}

    def headers(self) -> dict[str, int]:
        """The sizes of logs without a line."""
        return {journal.path.name: journal.path.read_bytes().index(b"\n") + 1 for journal in self._open.values()}

    def cut(self, sizes: Mapping[str, int]) -> None:
        """Back to what the logs were at a checkpoint."""
        for journal in self._open.values():
            if journal.path.name in sizes:
                journal.cut(sizes[journal.path.name])

    def close(self) -> None:
        """Close the files."""
        for journal in self._open.values():
            journal.close()


def read(path: Path) -> list[Any]:
    """The lines of a log after its header; a torn last line (a killed process) is dropped."""
    if not path.is_file():
        raise UsageError(f"no such log: {path.name}", where=str(path), then="only runs by messages (--transport simulate or mpi) have logs")
    try:
        head, *lines = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    except ValueError as error:
        raise RunFailed(f"damaged log: {error}", where=str(path)) from error
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise UsageError(f"expected a file of format '{FORMAT}'", where=str(path))
    if int(head["version"]) > VERSION:
        raise UsageError(f"this log has version {head['version']}, newer than this program reads ({VERSION})", where=str(path))
    return lines
