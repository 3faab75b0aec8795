"""Writing toy ROOT files: chunk by chunk, atomically, with their origin inside.

The rows of a file come in chunks of fixed size, each a function of (seed, chunk number) alone. So memory does not grow with the file, and the first n rows of
a longer file with the same seed are the file of n rows. (Content means values and order; the file's UUID and dates differ each time, and another processor's
mathematical library may round a value differently.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import uproot
from numpy.typing import NDArray

from hlt_train import __version__
from hlt_train.errors import UsageError
from hlt_train.files import atomic_path

__all__ = ["Columns", "Jagged", "check_request", "collection", "generator", "interleaved_labels", "luminosity_block", "rounded", "write_chunks"]

Columns = dict[str, Any]  # branch -> array `[rows]`, or collection -> awkward array of records `[rows, var]`
Jagged = Mapping[str, NDArray[Any]]  # field -> flat array over the items of all rows


def generator(seed: int, *stream: int) -> np.random.Generator:
    """The random numbers of one stream: Philox keyed by `seed` and the stream's place, for instance (kind, chunk, class)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy=seed, spawn_key=stream)))


def interleaved_labels(rows: int, classes: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Class of each of `rows` rows: every run of `classes` rows holds each class once, in random order, so that a file of any length is balanced."""
    groups = np.tile(np.arange(classes), (-(-rows // classes), 1))
    return rng.permuted(groups, axis=1).ravel()[:rows]


def luminosity_block(seed: int, rows: int) -> NDArray[np.uint32]:
    """One block per seed, as one per job in a production: (run, luminosityBlock, event) then tells files of different seeds apart."""
    return np.full(rows, 1 + seed % (2**32 - 1), np.uint32)


def collection(counts: NDArray[np.int64], fields: Jagged) -> ak.Array:
    """Flat fields to records `[rows, var]`; written as `<name>_<field>` with the counter `n<name>`."""
    return ak.zip({name: ak.unflatten(values, counts) for name, values in fields.items()})


def rounded(values: NDArray[np.float64], bits: int = 12) -> NDArray[np.float32]:
    """Values as float32 with `bits` bits of mantissa, rounded to nearest, as analysis formats store them: half the size on disk."""
    drop = 23 - bits
    raw = values.astype(np.float32).view(np.uint32)
    return ((raw + np.uint32(1 << (drop - 1))) & np.uint32(~((1 << drop) - 1) & 0xFFFFFFFF)).view(np.float32)


def check_request(path: Path, n: int, seed: int) -> None:
    """Refuse what cannot be written, before any work."""
    if n < 1:
        raise UsageError(f"cannot write {n} rows", where=str(path), then="-n takes a number of rows from 1, for instance -n 200k")
    if seed < 0:
        raise UsageError(f"the seed is {seed}, but seeds start at 0", where=str(path), then="for instance --seed 1")
    if path.exists():
        raise UsageError("it exists already, and nothing is ever overwritten", where=str(path), then="choose another OUT.root, or remove it yourself")


def write_chunks(
    path: Path,
    tree: str,
    facts: Mapping[str, Any],
    chunk: Callable[[int], Columns],
    *,
    n: int,
    size: int,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write the first `n` rows of chunks 0, 1, ... (of `size` rows each) to `tree` of the new ROOT file `path`.

    Args:
        path: the file, which must not exist.
        tree: name of the TTree.
        facts: what made the file; stored as the JSON string `provenance`, in the tree's title, and its `origin` as a string of its own.
        chunk: chunk number -> its columns.
        n: rows to write.
        size: rows of a chunk; one basket per branch and chunk.
        progress: called with the rows written so far.

    Raises:
        RunFailed: the disk is full or not writable; no file is left.
    """
    facts = {"origin": "toy", **facts, "hlt_train": __version__}
    with atomic_path(path) as temporary, uproot.recreate(temporary, compression=uproot.ZSTD(1)) as file:
        file["origin"] = "toy"
        file["provenance"] = json.dumps(facts)
        title = " ".join(f"{key}={value}" for key, value in facts.items())
        written = 0
        target = None
        while written < n:
            columns = {name: values[: n - written] for name, values in chunk(written // size).items()}
            if target is None:
                target = file.mktree(tree, {name: _branch_type(values) for name, values in columns.items()}, title=title)
            target.extend(columns)
            written += min(size, n - written)
            if progress is not None:
                progress(written)


def _branch_type(values: Any) -> Any:
    """What `mktree` wants: a dtype, or the datashape of a jagged collection."""
    return values.dtype if isinstance(values, np.ndarray) else str(ak.type(values).content)
