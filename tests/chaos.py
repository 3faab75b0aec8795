"""Commands that start processes, under chaos: signals to their ranks when the run has come so far, and what is left of them afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests import ranks as launcher

RANK = b"OMPI_COMM_WORLD_RANK="


class Outcome(NamedTuple):
    """How a command ended. left: its processes that still run (none, or something is wrong); they have been killed."""

    code: int
    out: str
    err: str
    left: list[int]


class Strike(NamedTuple):
    """A signal to a rank. when: true once the time has come. again: (seconds, signal) of a second one, such as SIGCONT."""

    rank: int
    number: signal.Signals
    when: Callable[[], bool]
    again: tuple[float, signal.Signals] | None = None


def running(mark: str) -> list[int]:
    """Process ids whose command line holds `mark`, this process excepted."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark.encode() in (entry / "cmdline").read_bytes() and (entry / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                    found.append(int(entry.name))
    return found


def rank_of(pid: int) -> int | None:
    """The rank that a process began as."""
    with contextlib.suppress(OSError):
        for item in (Path("/proc") / str(pid) / "environ").read_bytes().split(b"\0"):
            if item.startswith(RANK):
                return int(item.removeprefix(RANK))
    return None


def kill_all(mark: str) -> list[int]:
    """Kill all processes whose command line holds `mark`; returns them."""
    found = running(mark)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return found


def chaos(command: Sequence[str], mark: str, strikes: Sequence[Strike], *, patience: float = 240.0, alone: Callable[[int], None] | None = None) -> Outcome:
    """Run a command whose ranks have `mark` in their command lines, and strike them in turn.

    Args:
        command: what is run.
        mark: for instance the name of the run directory.
        strikes: one after the other. Rank -1: the command itself; -2: all of its processes.
        patience: seconds after which everything is killed.
        alone: called with the process id of the command before the first strike.
    """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    end = time.monotonic() + patience
    try:
        if alone is not None:
            alone(process.pid)
        for strike in strikes:
            while not strike.when() and process.poll() is None and time.monotonic() < end:
                time.sleep(0.01)
            _strike(process, mark, strike)
        out, err = process.communicate(timeout=max(1.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        kill_all(mark)
        out, err = process.communicate()
        err += f"\nstill running after {patience:g} s"
    gone = time.monotonic() + 3.0
    while running(mark) and time.monotonic() < gone:
        time.sleep(0.05)
    return Outcome(process.returncode, out, err, kill_all(mark))


def _strike(process: subprocess.Popen[str], mark: str, strike: Strike) -> None:
    if process.poll() is not None:
        return
    if strike.rank == -2:
        process.kill()
        kill_all(mark)
        return
    targets = [process.pid] if strike.rank == -1 else [pid for pid in running(mark) if rank_of(pid) == strike.rank]
    for number, pause in ((strike.number, strike.again[0] if strike.again else 0.0), *([(strike.again[1], 0.0)] if strike.again else [])):
        for pid in targets:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        time.sleep(pause)


def jobs_command(file: Path, ranks: int, *, fault_tolerant: bool = False) -> list[str]:
    """The command that runs the jobs of a file (`ranks.py`)."""
    return [sys.executable, launcher.__file__, str(file), str(ranks), *(["ft"] if fault_tolerant else [])]


def served(run: Path, source: int | None = None) -> int:
    """Messages (of a worker) that shard 0 has served."""
    path = run / "actors" / "shard-00000.jsonl"
    text = path.read_text() if path.is_file() else ""
    return sum(1 for line in text.splitlines() if line.startswith("[[") and (source is None or f"[{source}," in line))


def after(run: Path, count: int, source: int | None = None) -> Callable[[], bool]:
    """Once shard 0 has served so many messages."""
    return lambda: served(run, source) >= count
