"""Columns out to ROOT files, chunk by chunk and atomically: the only file of this room that writes with uproot."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import uproot

from hlt_train.errors import UsageError
from hlt_train.files import atomic_path

__all__ = ["Extend", "check_new_file", "new_tree"]

Extend = Callable[[Mapping[str, np.ndarray]], None]


def check_new_file(path: Path) -> None:
    """Refuse a path that exists."""
    if path.exists():
        raise UsageError("it exists already, and nothing is ever overwritten", where=str(path), then="choose another --out, or remove it yourself")


@contextlib.contextmanager
def new_tree(path: Path, tree: str, *, title: str, strings: Mapping[str, str]) -> Iterator[Extend]:
    """A new ROOT file with one TTree of flat branches; the block gets a function that appends rows, one basket per branch and call.

    Args:
        path: the file, which must not exist; it appears when the block ends without an error, and not at all otherwise.
        tree: name of the TTree.
        title: of the TTree.
        strings: name -> text, stored beside the tree.

    Raises:
        UsageError: `path` exists.
        RunFailed: the disk is full or not writable.
    """
    check_new_file(path)
    with atomic_path(path) as temporary, uproot.recreate(temporary, compression=uproot.ZSTD(1)) as file:
        for name, text in strings.items():
            file[name] = text
        target: Any = None

        def extend(columns: Mapping[str, np.ndarray]) -> None:
            nonlocal target
            if target is None:
                target = file.mktree(tree, {name: values.dtype for name, values in columns.items()}, title=title)
            target.extend(dict(columns))

        yield extend
