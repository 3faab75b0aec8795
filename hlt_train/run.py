"""A run directory: all there is to know about a run, written by one process at a time.

- `config.yaml`: the merged configuration; `--config RUN/config.yaml` reruns it
- `model.json`: architecture, options and outputs: with a checkpoint's weights, the network
- `normalisation.json`: the inputs, resolved
- `provenance.json`: versions, commit, command lines, devices, NPROC, CPU flags, UUIDs and entry counts of the ROOT files
- `metrics.jsonl`: one line per interval and per epoch
- `working_points.json`: thresholds with rates and efficiencies, once they have been derived
- `checkpoints/<step>/`, `LAST`, `BEST`: see `hlt_train.checkpoints`
- `log.txt`, `constraints.txt`
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from hlt_train import __version__
from hlt_train.errors import RunFailed, UsageError
from hlt_train.files import append_line, new_directory, read_document, write_document, write_text

__all__ = ["Follower", "Run", "check_is_run", "commit", "constraints", "read_config"]

METRICS = {"format": "hlt-train/metrics", "version": 1}
CONFIG = {"format": "hlt-train/config", "version": 1}


class Run:
    """A run directory held by this process. Use as a context manager: the lock is released at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._lock = (self.path / ".lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            self._lock.close()
            raise UsageError(f"the run is being written by {holder}", where=str(self.path), then="wait for it, or stop it with SIGTERM") from error
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._lock.flush()

    @classmethod
    def create(cls, path: Path) -> Run:
        """Make a new run; the directory must not exist or be empty."""
        return cls(new_directory(path, option="--run"))

    @classmethod
    def open(cls, path: Path) -> Run:
        """Take an existing run for writing."""
        check_is_run(path, then="hlt-train fit --run DIR starts a new run")
        return cls(path)

    def __enter__(self) -> Run:  # noqa: PYI034 - the run-time check of annotations knows no Self here
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._lock.close()

    def discard(self) -> None:
        """Remove a run that failed before it began, so that the same command can be given again."""
        shutil.rmtree(self.path)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write `config.yaml`."""
        write_text(self.path / "config.yaml", yaml.safe_dump({**CONFIG, **config}, sort_keys=False, allow_unicode=True, width=150))

    def write_provenance(self, content: Mapping[str, Any]) -> None:
        """Write `provenance.json`: `content` and what this process knows of itself. An existing one is kept and gets one more entry under `sessions`."""
        path = self.path / "provenance.json"
        session = {"started": _now(), "argv": list(sys.argv), "host": socket.gethostname(), "commit": commit(), "hlt_train": __version__}
        old = self.provenance() if path.is_file() else {}
        kept = {k: v for k, v in old.items() if k not in ("format", "version", "sessions")}
        write_document(path, "hlt-train/provenance", 1, {**kept, **content, "sessions": [*old.get("sessions", []), session]})

    def provenance(self) -> dict[str, Any]:
        """Read `provenance.json`."""
        return read_document(self.path / "provenance.json", "hlt-train/provenance", 1)

    def log(self, text: str) -> None:
        """One dated line in `log.txt`."""
        with (self.path / "log.txt").open("a") as stream:
            stream.write(f"{_now()} {text}\n")

    def metric(self, content: Mapping[str, Any]) -> None:
        """One line in `metrics.jsonl`."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            append_line(path, METRICS)
        append_line(path, content)

    def metrics_size(self) -> int:
        """Bytes of `metrics.jsonl`: a checkpoint remembers where it was taken."""
        path = self.path / "metrics.jsonl"
        return path.stat().st_size if path.exists() else 0

    def cut_metrics(self, size: int) -> None:
        """Drop what was written after a checkpoint."""
        path = self.path / "metrics.jsonl"
        if self.metrics_size() < size:
            raise RunFailed("metrics.jsonl is shorter than it was at the last checkpoint", where=str(path))
        if path.exists():
            os.truncate(path, size)
            if size == 0:
                path.unlink()

    def metrics(self) -> list[dict[str, Any]]:
        """The whole lines of `metrics.jsonl` after its header; a torn last line is dropped."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines[1:]]


class Follower(Run):
    """A run that another process of it writes: this one reads it, and what it would write is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        return

    def discard(self) -> None:
        """Nothing: the writer does."""

    def write_config(self, _config: Mapping[str, Any]) -> None:
        """Nothing."""

    def write_provenance(self, _content: Mapping[str, Any]) -> None:
        """Nothing."""

    def log(self, _text: str) -> None:
        """Nothing."""

    def metric(self, _content: Mapping[str, Any]) -> None:
        """Nothing."""

    def cut_metrics(self, _size: int) -> None:
        """Nothing."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def check_is_run(path: Path, *, then: str) -> None:
    """Refuse a folder that is no run; `then` says what to do instead."""
    if not (path / "config.yaml").is_file():
        raise UsageError("not a run directory: it has no config.yaml", where=str(path), then=then)


def read_config(path: Path) -> dict[str, Any]:
    """The configuration in `path`, a run directory or a YAML file, without its format and version."""
    file = path / "config.yaml" if path.is_dir() else path
    try:
        content = yaml.safe_load(file.read_text())
    except FileNotFoundError as error:
        raise UsageError(f"no such file: {file.name}", where=str(file)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"not YAML: {error}", where=str(file)) from error
    if not isinstance(content, dict):
        raise UsageError("expected a mapping of option names to values", where=str(file))
    if content.get("format", CONFIG["format"]) != CONFIG["format"]:
        raise UsageError(f"expected a configuration, found a file of format '{content['format']}'", where=str(file))
    if int(content.get("version", 1)) > 1:
        raise UsageError(f"this configuration has version {content['version']}, newer than this program reads (1)", where=str(file))
    return {k: v for k, v in content.items() if k not in CONFIG}


@functools.cache
def commit() -> str | None:
    """Git commit of the program's source when first asked for, with `+` when the tree has changes; None for an installed wheel."""
    source = Path(__file__).resolve().parents[1]
    if not (source / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "-C", str(source), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=20)
        changed = subprocess.run(["git", "-C", str(source), "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


@functools.cache
def constraints() -> str:
    """Every installed distribution at its version: `pip install -c constraints.txt hlt-train` gives the same environment."""
    own = "hlt-train"
    found = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in metadata.distributions() if d.metadata["Name"]}
    lines = [f"{name}=={version}" for name, version in sorted(found.items()) if name != own]
    return f"# {own}=={__version__} (commit {commit() or 'of the wheel'}), Python {sys.version.split()[0]}\n" + "\n".join(lines) + "\n"
