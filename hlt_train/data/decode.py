"""Files to tables, one cluster ahead: while a cluster is worked on, the branches of the next are read and decompressed in threads."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from hlt_train.data.read import Cluster, Pending, Tree, Trees
from hlt_train.data.recipe import Recipe
from hlt_train.data.table import Table
from hlt_train.errors import RunFailed

__all__ = ["Decoder", "SourceFile", "cut"]

CLUSTER_ENTRIES = 16_384  # entries read at once, where the baskets allow it
_LARGEST = 8  # a basket range of up to this many times the target is not split: splitting decompresses it again for each part


class SourceFile(NamedTuple):
    """An input file as it was found when the dataset was opened."""

    sample: int
    path: str
    tree: str
    uuid: str
    entries: int


def cut(tree: Tree, names: Sequence[str], target: int) -> list[tuple[int, int]]:
    """Ranges of about `target` entries that start at basket boundaries where these are not too far apart."""
    ranges: list[tuple[int, int]] = []
    begin = 0
    offsets = tree.offsets(names)
    for k, stop in enumerate(offsets[1:], start=1):
        following = offsets[k + 1] if k + 1 < len(offsets) else None
        if following is not None and following - begin <= target:
            continue
        parts = 1 if stop - begin <= _LARGEST * target else -(-(stop - begin) // target)
        edges = [begin + (stop - begin) * i // parts for i in range(parts + 1)]
        ranges += itertools.pairwise(edges)
        begin = stop
    return ranges


class Decoder:
    """Reads clusters of known files.

    Attributes:
        files: all files, in sample order.
        clusters: all clusters, in (sample, file, entry) order; `Cluster.file` indexes `files`.
    """

    def __init__(self, recipe: Recipe, trees: Trees, files: Sequence[SourceFile], clusters: Sequence[Cluster], threads: int | None) -> None:
        self.recipe = recipe
        self.trees = trees
        self.files = tuple(files)
        self.clusters = tuple(clusters)
        self.pool = ThreadPoolExecutor(threads or min(4, os.cpu_count() or 1), thread_name_prefix="hlt-train-read")

    def tables(self, numbers: Sequence[int], names: frozenset[str]) -> Iterator[Table]:
        """Decode these clusters in this order, with the branches behind `names`."""
        ahead: Pending | None = None
        for k, number in enumerate(numbers):
            pending = ahead or self._submit(number, names)
            ahead = self._submit(numbers[k + 1], names) if k + 1 < len(numbers) else None
            yield Table(self.recipe, pending.tree.path, pending.tree.name, self.clusters[number], pending.result())

    def _submit(self, number: int, names: frozenset[str]) -> Pending:
        cluster = self.clusters[number]
        file = self.files[cluster.file]
        tree = self.trees.get(file.path, self.recipe.card.tree)
        if (tree.uuid, tree.entries) != (file.uuid, file.entries):
            raise RunFailed("the file has changed since the dataset was opened", where=file.path, then="start again with files that nobody writes")
        return tree.submit(sorted(self.recipe.branches(names, tree)), cluster.start, cluster.stop, self.pool)

    def close(self) -> None:
        """Close files and threads."""
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.trees.close()
