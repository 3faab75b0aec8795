"""Calls into MPI that may never come back because another process died: nobody can call them back, so a thread watches and ends the process with a word."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from hlt_train.transports.launch import leave_record

__all__ = ["Watched", "leave_at_once"]

LOOK = 0.5  # seconds between two looks of the watching thread


def leave_at_once(rank: int, text: str, *, then: str = "") -> NoReturn:
    """End this process while its main thread hangs in MPI: the text goes to stderr and to the launcher's record, the exit code is 1."""
    print(f"rank {rank}: {text}" + (f"\n    try: {then}" if then else ""), file=sys.stderr, flush=True)  # noqa: T201 - the main thread never returns
    leave_record(rank, 1, text)
    os._exit(1)


class Watched:
    """Calls that may hang because another process died in one.

    Args:
        patience: seconds that a call may take.
        give_up: called, from a thread, when one takes longer; it is to end the process.
    """

    def __init__(self, patience: float, give_up: Callable[[], None]) -> None:
        self.patience, self._give_up = patience, give_up
        self._since: float | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Around a call."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def _watch(self) -> None:
        while not self._closed.wait(min(LOOK, self.patience / 4)):
            since = self._since
            if since is not None and time.monotonic() - since > self.patience:
                self._give_up()
                return

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()
