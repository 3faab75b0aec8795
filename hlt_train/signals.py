"""Stopping on request: SIGINT, SIGTERM and SIGUSR1 are noted, and the training loop saves at the next edge. A second SIGINT stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["StopRequest"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Context manager; `received` is the signal's name once one has come, also while an inner request was active. Only in the main thread."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:  # noqa: PYI034 - the run-time check of annotations knows no Self here
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._note) for s in SIGNALS}
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        for s, handler in self._before.items():
            signal.signal(s, handler)
            outer = getattr(handler, "__self__", None)
            if isinstance(outer, StopRequest) and self.received == s.name:
                outer.received = self.received

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)
