"""What a path holds, from its first bytes: uproot's own messages for an empty, a text or a truncated file do not say what happened."""

from __future__ import annotations

import struct
from pathlib import Path

from hlt_train.errors import RunFailed, UsageError, nearest

__all__ = ["probe"]

_LFS = b"version https://git-lfs"
_SMALL_FILE = struct.Struct(">4sii i")  # magic, version, begin, end; the end takes 8 bytes from version 1,000,000 on
_LARGE_FILE = struct.Struct(">4sii q")


def probe(path: Path) -> None:
    """Check that `path` is a complete ROOT file as far as its header tells.

    Raises:
        UsageError: missing, a directory, empty, not a ROOT file.
        RunFailed: truncated (shorter than its header says).
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(512)
        size = path.stat().st_size
    except FileNotFoundError as error:
        there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        where = str(path) if there or path.parent.is_dir() else f"{path} (the folder does not exist)"
        raise UsageError(f"no such file: {path.name}", where=where, near=nearest(path.name, there), then="correct the card's files, or use --files") from error
    except IsADirectoryError as error:
        raise UsageError("a directory, not a ROOT file", where=str(path), then=f"use a glob: '{path}/*.root'") from error
    except OSError as error:
        raise UsageError(f"cannot read the file: {error.strerror or error}", where=str(path)) from error
    if size == 0:
        raise UsageError("the file is empty (0 bytes)", where=str(path), then="copy or write it again")
    if head.startswith(_LFS):
        raise UsageError("not a ROOT file (git-LFS pointer)", where=str(path), then="git lfs pull")
    if not head.startswith(b"root"):
        raise UsageError(f"not a ROOT file ({_describe(head)})", where=str(path))
    if size < _LARGE_FILE.size:
        raise RunFailed(f"the file is truncated: {size} bytes are less than a ROOT header", where=str(path), then="copy it again")
    version = _SMALL_FILE.unpack_from(head)[1]
    end = (_SMALL_FILE if version < 1_000_000 else _LARGE_FILE).unpack_from(head)[3]
    if size < end:
        raise RunFailed(f"the file is truncated: {size} bytes of {end}", where=str(path), then="copy it again")


def _describe(head: bytes) -> str:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return f"first bytes {head[:4].hex(' ')}"
        text = head[: error.start].decode()
    first = text.splitlines()[0][:40] if text.strip() else ""
    return f"text that starts '{first}'" if text.isprintable() or "\n" in text else f"first bytes {head[:4].hex(' ')}"
