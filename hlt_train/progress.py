"""Progress on stderr: a bar on a terminal, a line per interval in a batch log, nothing when quiet. Results never go through here."""

from __future__ import annotations

import sys
import time
from typing import Protocol, runtime_checkable

__all__ = ["Progress"]

WIDTH = 24


@runtime_checkable
class Screen(Protocol):
    """A text stream."""

    def write(self, text: str, /) -> object: ...
    def flush(self) -> None: ...
    def isatty(self) -> bool: ...


class Progress:
    """Where verbs say how far they are.

    Args:
        quiet: write nothing.
        stream: default stderr.
        interval: seconds between two lines of the same task when the stream is not a terminal.
    """

    def __init__(self, *, quiet: bool = False, stream: Screen | None = None, interval: float = 20.0) -> None:
        self.quiet = quiet
        self._stream: Screen = sys.stderr if stream is None else stream
        self._interval = interval
        self._last = -float("inf")
        self._open = 0  # characters of the bar that stands on the terminal's last line

    def __call__(self, text: str) -> None:
        """One line that stays."""
        if not self.quiet:
            self._clear()
            self._stream.write(text + "\n")
            self._stream.flush()

    def update(self, done: int, total: int, text: str) -> None:
        """How far a task is: redraws the bar on a terminal; in a log one line per interval."""
        if self.quiet:
            return
        terminal = self._stream.isatty()
        now = time.monotonic()
        if now - self._last < (0.1 if terminal else self._interval):
            return
        self._last = now
        share = done / max(total, 1)
        if terminal:
            filled = round(WIDTH * share)
            line = f"[{'#' * filled}{'.' * (WIDTH - filled)}] {100 * share:3.0f} % {text}"
            self._stream.write("\r" + line.ljust(self._open))
            self._open = len(line)
        else:
            self._stream.write(f"{100 * share:3.0f} % {text}\n")
        self._stream.flush()

    def close(self) -> None:
        """Remove the bar."""
        if not self.quiet:
            self._clear()
            self._stream.flush()

    def _clear(self) -> None:
        if self._open:
            self._stream.write("\r" + " " * self._open + "\r")
            self._open = 0
