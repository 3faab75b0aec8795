"""Which files a card means: globs resolved, overrides applied, files assigned to splits."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path

from hlt_train.data.card import SPLITS, Card
from hlt_train.errors import UsageError, nearest

__all__ = ["sample_files", "split_codes"]


def sample_files(card: Card, override: Mapping[str, Sequence[str]] | None) -> dict[str, list[str]]:
    """Sample name -> its files, sorted, each once. `override` replaces a sample's files.

    Raises:
        UsageError: an override for a sample that the card does not have; a sample without files; a glob without matches.
    """
    override = override or {}
    for name in override:
        if name not in card.samples:
            raise UsageError(
                f"the card has no sample '{name}'", where=f"--files {name}=...", near=nearest(name, card.samples), then=f"one of: {', '.join(card.samples)}"
            )
    found: dict[str, list[str]] = {}
    for name, sample in card.samples.items():
        patterns = list(override.get(name, sample.files))
        if not patterns:
            raise UsageError(f"sample '{name}' has no files", then=f"--files {name}=GLOB, or 'files:' of the sample in the card")
        found[name] = sorted(dict.fromkeys(path for pattern in patterns for path in _expand(pattern, f"sample '{name}'")))
    return found


def _expand(pattern: str, user: str) -> list[str]:
    if "://" in pattern:
        return [pattern]
    pattern = str(Path(pattern).expanduser())
    if not glob.has_magic(pattern) or Path(pattern).exists():
        return [str(Path(pattern).resolve())]  # a missing file is reported when it is opened
    matches = [str(Path(path).resolve()) for path in glob.glob(pattern, recursive=True)]  # noqa: PTH207  Path.glob takes no absolute pattern
    if not matches:
        folder = Path(pattern).parent
        there = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        where = f"{user}: {pattern}" if folder.is_dir() or glob.has_magic(str(folder)) else f"{user}: {pattern} (the folder does not exist)"
        raise UsageError("no file matches", where=where, near=nearest(Path(pattern).name, there))
    return matches


def split_codes(card: Card, split_files: Mapping[str, Sequence[str]] | None, files: Mapping[str, Sequence[str]]) -> dict[str, int] | None:
    """Path -> index into `SPLITS` where the splits are file lists, else None.

    Raises:
        UsageError: a file in two splits or in none.
    """
    if split_files:
        lists = {split: list(patterns) for split, patterns in split_files.items()}
        for split in lists:
            if split not in SPLITS:
                raise UsageError(f"unknown split '{split}'", near=nearest(split, SPLITS) or SPLITS)
    elif card.splits.by == "files":
        lists = {split: list(patterns) for split in SPLITS if (patterns := getattr(card.splits, split)) is not None}
    else:
        return None
    codes: dict[str, int] = {}
    for split, patterns in lists.items():
        for pattern in patterns:
            for path in _expand(pattern, f"split '{split}'"):
                if codes.setdefault(path, SPLITS.index(split)) != SPLITS.index(split):
                    raise UsageError(f"the file is in split '{SPLITS[codes[path]]}' and in split '{split}'", where=path)
    for name, paths in files.items():
        for path in paths:
            if path not in codes:
                raise UsageError(f"the file of sample '{name}' is in no split", where=path, then="add it to 'splits' of the card, or remove it from the sample")
    return codes
