"""Checkpoints of a run: `checkpoints/<step>/` with weights, the whole state, and a document; `LAST` and `BEST` are moved atomically to point at one.

A checkpoint is written beside its place and renamed when it is complete; then `LAST` moves, then `BEST`. A process killed at any point leaves `LAST` at a
complete checkpoint, and its document says which one is best. Arrays are stored under their path in the pytree, without pickle.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from hlt_train.errors import RunFailed, UsageError
from hlt_train.files import read_arrays, read_document, sha256, write_arrays, write_document

__all__ = ["Snapshot", "document", "drop_after", "load", "point", "pointed", "prune", "save", "steps", "to_arrays", "to_tree"]

PyTree = Any
FORMAT = "hlt-train/checkpoint"
POINTER = "hlt-train/pointer"


class Snapshot(NamedTuple):
    """A state taken from the devices, to be written now or later. weights, state: pytrees of host arrays; document: JSON-able, with `step`.

    actors: a folder that other processes have written, on the same file system; it becomes the checkpoint's folder `actors`.
    """

    weights: PyTree
    state: PyTree
    document: dict[str, Any]
    actors: Path | None = None


def to_arrays(tree: PyTree) -> dict[str, np.ndarray]:
    """The leaves of a pytree by their paths."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/") or "value": np.asarray(leaf) for path, leaf in leaves}


def to_tree(arrays: Mapping[str, np.ndarray], like: PyTree, *, where: str) -> PyTree:
    """The inverse of `to_arrays`: a pytree shaped like `like`, whose leaves need only `shape` and `dtype`. Other names or shapes are refused."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") or "value" for path, _ in leaves]
    if set(names) != set(arrays):
        odd = sorted(set(names) ^ set(arrays))
        raise RunFailed(f"the stored arrays are not those of this model or strategy; differing: {', '.join(odd[:4])}", where=where)
    found = []
    for name, (_, leaf) in zip(names, leaves, strict=True):
        array = arrays[name]
        if array.dtype.kind == "V":  # numpy stores bfloat16 and other new types as raw bytes
            array = array.view(leaf.dtype)
        if array.shape != tuple(np.shape(leaf)):
            raise RunFailed(f"array '{name}' has shape {array.shape}, expected {tuple(np.shape(leaf))}", where=where)
        found.append(array)
    return jax.tree_util.tree_unflatten(structure, found)


def _folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / str(step)


def save(run: Path, snapshot: Snapshot) -> Path:
    """Write a checkpoint; it is in its place when it is complete."""
    step = int(snapshot.document["step"])
    place = _folder(run, step)
    writing = place.with_name(f".{step}.writing")
    shutil.rmtree(writing, ignore_errors=True)
    digests = {}
    for name, tree in (("weights", snapshot.weights), ("state", snapshot.state)):
        path = writing / f"{name}.npz"
        write_arrays(path, to_arrays(tree))
        digests[path.name] = sha256(path)
    if snapshot.actors is not None:
        snapshot.actors.rename(writing / "actors")
    write_document(writing / "state.json", FORMAT, 1, {**snapshot.document, "sha256": digests})
    old = place.with_name(f".{step}.old")
    if place.exists():  # written by a process that died before it moved LAST, or once more at the same step
        shutil.rmtree(old, ignore_errors=True)
        place.rename(old)
    writing.rename(place)
    shutil.rmtree(old, ignore_errors=True)
    return place


def document(run: Path, step: int) -> dict[str, Any]:
    """The document of a checkpoint."""
    return read_document(_folder(run, step) / "state.json", FORMAT, 1)


def load(run: Path, step: int, name: str) -> dict[str, np.ndarray]:
    """The arrays `weights` or `state` of a checkpoint, after their SHA-256 has been compared."""
    path = _folder(run, step) / f"{name}.npz"
    expected = document(run, step)["sha256"][path.name]
    if not path.is_file():
        raise RunFailed("the checkpoint has lost a file", where=str(path))
    if sha256(path) != expected:
        raise RunFailed("damaged checkpoint: its SHA-256 is not the recorded one", where=str(path), then="resume a copy of the run, or train again")
    return read_arrays(path)


def point(run: Path, name: str, step: int) -> None:
    """Move the pointer `name` (LAST or BEST) to a checkpoint."""
    write_document(run / name, POINTER, 1, {"step": step, "path": f"checkpoints/{step}"})


def pointed(run: Path, name: str) -> int | None:
    """The step that `name` points at; None before the first checkpoint."""
    if not (run / name).is_file():
        return None
    step = int(read_document(run / name, POINTER, 1)["step"])
    if not _folder(run, step).is_dir():
        raise UsageError(f"{name} points at a checkpoint that is not there", where=str(_folder(run, step)))
    return step


def steps(run: Path) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    folder = run / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.is_dir() else []


def prune(run: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints and those that LAST and BEST point at."""
    kept = {pointed(run, "LAST"), pointed(run, "BEST"), *steps(run)[-keep:]}
    for step in steps(run):
        if step not in kept:
            shutil.rmtree(_folder(run, step))


def drop_after(run: Path, step: int) -> None:
    """Remove checkpoints later than `step` and unfinished ones: what a killed process left beyond its LAST."""
    for path in (run / "checkpoints").iterdir():
        if not path.name.isdecimal() or int(path.name) > step:
            shutil.rmtree(path)
