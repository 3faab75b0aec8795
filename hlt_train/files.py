"""Every write of the program: atomic, versioned, never over something that exists unless the caller owns it.

A document is JSON whose first two keys are `format` (a name such as `hlt-train/run`) and `version` (an integer). Readers accept every older version.
Arrays are stored as npz or npy without pickle. A file is written beside its place, flushed to the disk, and moved: a full disk or a killed process leaves
the old file or none, never half of one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hlt_train.errors import RunFailed, UsageError

__all__ = [
    "append_line",
    "atomic",
    "atomic_path",
    "check_new",
    "new_directory",
    "read_arrays",
    "read_document",
    "sha256",
    "write_arrays",
    "write_bytes",
    "write_document",
    "write_text",
]


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """An empty temporary file beside `path`, for writers that want a name (ROOT files); it is moved to `path` when the block ends without an error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _unwritable(path, error) from error
    temporary = Path(name)
    try:
        os.close(handle)
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` and move it to `path` when the block ends without an error."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        yield stream


def _unwritable(path: Path, error: OSError) -> RunFailed:
    return RunFailed(
        f"cannot write: {error.strerror or error}", where=str(path), then="free or choose another disk, then run the command again (--resume for a run)"
    )


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic(path) as stream:
        stream.write(content)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text to `path` atomically."""
    write_bytes(path, content.encode())


def write_document(path: Path, format: str, version: int, content: Mapping[str, Any]) -> None:
    """Write a versioned JSON document. NaN and infinities are refused: JSON has none."""
    text = json.dumps({"format": format, "version": version, **content}, indent=1, allow_nan=False)
    write_text(path, text + "\n")


def read_document(path: Path, format: str, version: int) -> dict[str, Any]:
    """Read a versioned JSON document of at most `version`; the caller upgrades what is older by its `version` key."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UsageError(f"no such file: {path.name}", where=str(path)) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunFailed(f"damaged file: not JSON ({error})", where=str(path)) from error
    if not isinstance(content, dict) or content.get("format") != format:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise UsageError(f"expected a file of format '{format}', found {found!r}", where=str(path))
    if int(content.get("version", 0)) > version:
        raise UsageError(
            f"'{format}' version {content['version']} is newer than this program reads ({version})", where=str(path), then="pip install -U hlt-train"
        )
    return content


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as an uncompressed npz, atomically and without pickle."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **dict(arrays))
    write_bytes(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read what `write_arrays` wrote; a damaged file is an error that names it."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError as error:
        raise UsageError(f"no such file: {path.name}", where=str(path)) from error
    except Exception as error:  # zipfile, zlib and numpy raise a dozen types for damaged bytes
        raise RunFailed(f"damaged file: {error}", where=str(path)) from error


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Append one JSON object as one line with a single write, so that a killed process leaves whole lines (the reader drops a torn last one)."""
    line = json.dumps(content, allow_nan=False) + "\n"
    try:
        with path.open("ab", buffering=0) as stream:
            stream.write(line.encode())
    except OSError as error:
        raise _unwritable(path, error) from error


def check_new(path: Path, *, option: str) -> None:
    """Refuse a directory that exists and is not empty; `option` is what the user typed to name it."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError("it exists already, and nothing is ever overwritten", where=str(path), then=f"choose another {option}, or remove it yourself")


def new_directory(path: Path, *, option: str) -> Path:
    """Make the directory `path`, which must not exist or be empty (see `check_new`)."""
    check_new(path, option=option)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
