"""The logs of actors: what each consumed, in its order. One file per actor in `actors/` of a run, JSON lines after a header with format and version.

A line is written, unbuffered, before what depends on it is sent: what a killed process wrote is in the kernel's hands and is not lost with it.

Lines of a worker: `{"deal": sources}`, what it has to do at first, `[point, source, sequence]` (source -1: the server's answer to the worker's own message),
`{"t": batches, "takes over": [[owner, next, stop, stride], ...]}`, `{"joins": clocks}` (it begins at the server's parameters), `{"t": batches, "ends": true}`.
Lines of a shard: `[[source, sequence], ...]`, one per serve, `{"late": [source, sequence]}`, `{"joins": worker}`. Any other object is a remark, such as
`{"restored": step}` or `{"t": batches, "length": steps}`, the new length of a run that was made longer or shorter.

When a run goes back to a checkpoint its logs are cut to what they were then: what they hold is one history, from the first batch to the last.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from hlt_train.errors import RunFailed, UsageError
from hlt_train.files import append_line

__all__ = ["Journal", "Journals", "file_of", "read"]

FORMAT, VERSION = "hlt-train/journal", 1
MOST_OPEN = 200  # files at once: a process may have 1024 by default, and a simulation may have 10,000 actors


def file_of(run: Path, kind: str, index: int) -> Path:
    """The log of an actor (kind: worker or shard)."""
    return run / "actors" / f"{kind}-{index:05}.jsonl"


class Journal:
    """The log of one actor. Call it with a line. The file is opened when it is needed."""

    def __init__(self, run: Path, kind: str, index: int) -> None:
        self.path = file_of(run, kind, index)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists() or _header(self.path) == 0:
            self.path.unlink(missing_ok=True)  # killed within the header
            append_line(self.path, {"format": FORMAT, "version": VERSION, "actor": f"{kind} {index}"})
        self._size = self.path.stat().st_size
        self._stream: BinaryIO | None = None

    def __call__(self, line: Any) -> None:
        """Write a line."""
        content = (json.dumps(line, separators=(",", ":")) + "\n").encode()
        try:
            if self._stream is None:
                self._stream = self.path.open("ab", buffering=0)
            written = self._stream.write(content)
        except OSError as error:
            raise _unwritable(self.path, error.strerror or str(error)) from error
        if written != len(content):
            raise _unwritable(self.path, "the disk is full")
        self._size += written

    def size(self) -> int:
        """Bytes so far: a checkpoint remembers where it was taken."""
        return self._size

    def header(self) -> int:
        """Bytes of a log without a line."""
        return _header(self.path)

    def cut(self, size: int) -> None:
        """Drop what was written after a checkpoint."""
        if self._size < size:
            raise RunFailed("the log of an actor is shorter than it was at the last checkpoint", where=str(self.path), then="resume a copy of the run, if any")
        os.truncate(self.path, size)
        self._size = size

    def close(self) -> None:
        """Close the file; a further line opens it again."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _header(path: Path) -> int:
    with path.open("rb") as stream:
        line = stream.readline()
    return len(line) if line.endswith(b"\n") else 0


def _unwritable(path: Path, why: str) -> RunFailed:
    return RunFailed(f"cannot write: {why}", where=str(path), then="free or choose another disk, then run the command again (--resume for a run)")


class Journals:
    """The logs of actors of one process, of which the latest `MOST_OPEN` are open. run: None keeps no logs."""

    def __init__(self, run: Path | None) -> None:
        self.run = run
        self._all: dict[tuple[str, int], Journal] = {}
        self._open: OrderedDict[tuple[str, int], Journal] = OrderedDict()

    def note(self, kind: str, index: int) -> Callable[[Any], None]:
        """What an actor calls with a line of its log."""
        if self.run is None:
            return lambda _line: None
        key = kind, index
        journal = self._all[key] = Journal(self.run, kind, index)

        def write(line: Any) -> None:
            journal(line)
            self._open[key] = journal
            self._open.move_to_end(key)
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)[1].close()

        return write

    def sizes(self) -> dict[str, int]:
        """File name -> bytes."""
        return {journal.path.name: journal.size() for journal in self._all.values()}

    def headers(self) -> dict[str, int]:
        """The sizes of logs without a line."""
        return {journal.path.name: journal.header() for journal in self._all.values()}

    def cut(self, sizes: Mapping[str, int]) -> None:
        """Back to what the logs were at a checkpoint."""
        for journal in self._all.values():
            if journal.path.name in sizes:
                journal.cut(sizes[journal.path.name])

    def close(self) -> None:
        """Close the files."""
        for journal in self._open.values():
            journal.close()
        self._open.clear()


def read(path: Path) -> list[Any]:
    """The lines of a log after its header; a torn last line (a killed process) is dropped.

    Raises:
        UsageError: there is no such log, it is of another format or of a newer version.
        RunFailed: a line is damaged; the error names it.
    """
    if not path.is_file():
        raise UsageError(f"no such log: {path.name}", where=str(path), then="only runs by messages (--transport simulate or mpi) have logs")
    found = []
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            found.append(json.loads(text))
        except ValueError as error:
            raise _damaged(path, number, str(error)) from error
    head, lines = (found[0], found[1:]) if found else (None, [])
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise UsageError(f"expected a file of format '{FORMAT}'", where=str(path))
    if int(head["version"]) > VERSION:
        raise UsageError(f"this log has version {head['version']}, newer than this program reads ({VERSION})", where=str(path), then="pip install -U hlt-train")
    well = _of_worker if path.name.startswith("worker") else _of_shard
    for number, line in enumerate(lines, 2):
        if not (isinstance(line, dict) or (isinstance(line, list) and well(line))):
            raise _damaged(path, number, f"a log has no line such as {json.dumps(line)[:60]}")
    return lines


def _damaged(path: Path, number: int, why: str) -> RunFailed:
    return RunFailed(f"damaged log: {why}", where=f"{path}, line {number}", then="only a whole log can be replayed")


def _of_worker(line: list[Any]) -> bool:
    return len(line) == 3 and all(isinstance(x, int) for x in line)


def _of_shard(line: list[Any]) -> bool:
    return bool(line) and all(isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, int) for x in pair) for pair in line)
