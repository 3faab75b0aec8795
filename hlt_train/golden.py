"""Golden vectors on disk: raw features with the integers, scores and decisions that an artefact must reproduce. `golden.bin` beside `golden.json`.

`golden.bin`, little-endian, nothing between the parts (every type has its natural size; read it with one fread per part):

    char[8]                  "HLTGOLD1"
    int64                    n, vectors
    int64                    p, working points
    per input group, in the order of golden.json "groups":
      scalars                float32 [n][n_vars]
      constituents           int32   [n]                     count, as handed to the network: it may exceed the length
                             float32 [sum of min(count, length)][n_vars]   the constituents that exist, vector after vector
    int64   [n][outputs]     logits; float32 for a float graph
    int64   [n]              score, only where golden.json "score" is true
    uint8   [p][n]           decision at each working point: score >= threshold; 0 without a threshold
    uint8   [n]              category, an index into golden.json "categories"

Constituents at index >= count are not stored: whoever pads fills them with NaN in vectors of even index and with 3e38 in those of odd index, which no network
may notice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hlt_train.errors import RunFailed
from hlt_train.files import read_document, write_bytes, write_document
from hlt_train.graph import Graph
from hlt_train.types import Features

__all__ = ["CATEGORIES", "FORMAT", "GARBAGE", "MAGIC", "VERSION", "Golden", "pad", "read_golden", "write_golden"]

MAGIC = b"HLTGOLD1"
FORMAT = "hlt-train/golden"
VERSION = 1
GARBAGE = (np.float32(np.nan), np.float32(3e38))  # by parity of the vector's index
CATEGORIES = ("random", "data", "nearest", "input_tie", "requant_tie", "limit", "saturation", "special", "collection", "threshold")


class Golden(NamedTuple):
    """Vectors and what they must give.

    Attributes:
        x: raw float32 features with garbage beyond every count.
        outputs: int64 `[n, n_outputs]`; float32 of a float graph.
        score: int64 `[n]`, or None.
        decisions: bool `[n_points, n]`, in the order of the working points.
        category: uint8 `[n]`, index into `CATEGORIES`.
    """

    x: Features
    outputs: np.ndarray
    score: np.ndarray | None
    decisions: np.ndarray
    category: np.ndarray

    def __len__(self) -> int:  # vectors, not fields
        return len(self.category)


def pad(constituents: np.ndarray, counts: np.ndarray, length: int) -> np.ndarray:
    """Constituents one after the other `[total, n_vars]` -> float32 `[n, length, n_vars]` with the garbage of `GARBAGE` beyond the counts."""
    n = len(counts)
    padded = np.empty((n, length, constituents.shape[1]), np.float32)
    padded[0::2], padded[1::2] = GARBAGE
    padded[np.arange(length) < counts[:, None]] = constituents
    return padded


def write_golden(directory: Path, graph: Graph, golden: Golden, points: Sequence[str], facts: dict[str, Any]) -> None:
    """Write golden.bin and golden.json; `points` names the working points, `facts` are added to the JSON."""
    n, groups = len(golden), []
    parts = [MAGIC, np.array([n, len(points)], "<i8").tobytes()]
    for node in graph.inputs:
        x = golden.x.groups[node.group]
        groups.append({"name": node.group, "variables": list(node.variables), "length": node.length})
        if node.length is not None:
            counts = golden.x.counts[node.group]
            parts.append(counts.astype("<i4").tobytes())
            x = x[np.arange(node.length) < counts[:, None]]
        parts.append(x.astype("<f4").tobytes())
    parts.append(golden.outputs.astype("<i8" if graph.exact else "<f4").tobytes())
    if golden.score is not None:
        parts.append(golden.score.astype("<i8").tobytes())
    parts += [golden.decisions.astype(np.uint8).tobytes(), golden.category.astype(np.uint8).tobytes()]
    content = b"".join(parts)
    write_bytes(directory / "golden.bin", content)
    counted = {name: int((golden.category == k).sum()) for k, name in enumerate(CATEGORIES)}
    head = {
        "vectors": n,
        "exact": graph.exact,
        "score": golden.score is not None,
        "outputs": list(graph.output.names),
        "groups": groups,
        "working_points": list(points),
        "categories": list(CATEGORIES),
        "counted": counted,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    write_document(directory / "golden.json", FORMAT, VERSION, {**head, **facts})


def read_golden(directory: Path) -> Golden:
    """What `write_golden` wrote; bytes that differ from golden.json are refused."""
    head = read_document(directory / "golden.json", FORMAT, VERSION)
    content = (directory / "golden.bin").read_bytes()
    if hashlib.sha256(content).hexdigest() != head["sha256"]:
        raise RunFailed("damaged file: its bytes are not those that golden.json names", where=str(directory / "golden.bin"))
    n, points = head["vectors"], len(head["working_points"])
    place = len(MAGIC) + 16

    def take(dtype: str, *shape: int) -> np.ndarray:
        nonlocal place
        found = np.frombuffer(content, dtype, int(np.prod(shape, dtype=np.int64)), place).reshape(shape)
        place += found.nbytes
        return found.astype(found.dtype.newbyteorder("="))

    groups, counts = {}, {}
    for group in head["groups"]:
        name, length, n_vars = group["name"], group["length"], len(group["variables"])
        if length is None:
            groups[name] = take("<f4", n, n_vars)
        else:
            counts[name] = take("<i4", n)
            groups[name] = pad(take("<f4", int(np.clip(counts[name], 0, length).sum()), n_vars), counts[name], length)
    outputs = take("<i8" if head["exact"] else "<f4", n, len(head["outputs"]))
    score = take("<i8", n) if head["score"] else None
    decisions = take("u1", points, n).astype(bool)
    return Golden(Features(groups, counts), outputs, score, decisions, take("u1", n))
