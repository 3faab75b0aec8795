"""Atomic writes and versioned documents."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from hlt_train import files
from hlt_train.errors import RunFailed, UsageError


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_text(path, "old")

    def interrupted() -> None:
        with files.atomic(path) as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    files.write_text(tmp_path / "a", "old")
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(RunFailed, match="No space left on device"):
        files.write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_document_round_trip_and_refusals(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    files.write_document(path, "hlt-train/x", 2, {"a": [1, 2.5]})
    assert files.read_document(path, "hlt-train/x", 3)["a"] == [1, 2.5]
    with pytest.raises(UsageError, match="newer"):
        files.read_document(path, "hlt-train/x", 1)
    with pytest.raises(UsageError, match="expected a file of format"):
        files.read_document(path, "hlt-train/y", 2)
    path.write_text('{"format"')
    with pytest.raises(RunFailed, match="damaged"):
        files.read_document(path, "hlt-train/x", 2)
    with pytest.raises(UsageError, match="no such file"):
        files.read_document(tmp_path / "none.json", "hlt-train/x", 2)
    with pytest.raises(ValueError, match="Out of range"):
        files.write_document(path, "hlt-train/x", 1, {"a": float("nan")})


def test_arrays_round_trip_without_pickle(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    arrays = {"x/y": np.arange(5, dtype=np.float32), "n": np.int64(3) * np.ones((), np.int64)}
    files.write_arrays(path, arrays)
    back = files.read_arrays(path)
    assert {k: (v.dtype, v.tolist()) for k, v in back.items()} == {k: (v.dtype, v.tolist()) for k, v in arrays.items()}
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(RunFailed, match="damaged"):
        files.read_arrays(path)


def test_new_directory_never_overwrites(tmp_path: Path) -> None:
    files.new_directory(tmp_path / "run", option="--run")
    (tmp_path / "run" / "x").touch()
    with pytest.raises(UsageError, match="nothing is ever overwritten"):
        files.new_directory(tmp_path / "run", option="--run")
