"""A card opened: files found, trees and branches checked, rows counted and split; rows on demand, in bounded memory."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import awkward as ak
import numpy as np

from hlt_train.data import identity as identities
from hlt_train.data.assemble import assemble, concatenate
from hlt_train.data.card import SPLITS, Card
from hlt_train.data.decode import CLUSTER_ENTRIES, Decoder, SourceFile, cut
from hlt_train.data.discover import sample_files, split_codes
from hlt_train.data.index import Index
from hlt_train.data.read import Cluster, Tree, Trees
from hlt_train.data.recipe import Recipe
from hlt_train.data.table import Table
from hlt_train.errors import UsageError, nearest
from hlt_train.types import Rows

__all__ = ["Dataset", "evenly", "open_dataset"]


class Dataset:
    """An opened card (`open_dataset` makes it). A context manager; `close` removes its temporary files.

    The *row number* of a row is its position in its split, in (sample, file, entry, object) order.

    Attributes:
        card: the card.
        clusters: the ranges of entries that are read at once, in (sample, file, entry) order.
        counts: split -> int64 `[n_clusters]`, rows per cluster.
        class_scale: float64 `[n_classes]`, factor of the training weight of each class (1 unless the card balances).
        mean_weight: mean training weight over the training split, after balancing.
        warnings: what a user should know but need not act upon.
    """

    def __init__(self, recipe: Recipe, decoder: Decoder, index: Index, scratch: tempfile.TemporaryDirectory[str] | None) -> None:
        self.card: Card = recipe.card
        self.clusters: tuple[Cluster, ...] = decoder.clusters
        self.counts: dict[str, np.ndarray] = index.counts
        self.warnings: list[str] = []
        self._recipe = recipe
        self._decoder = decoder
        self._index = index
        self._scratch = scratch
        self._nonfinite: dict[tuple[str, int], dict[str, int]] = {}
        self._lock = threading.Lock()
        sums = index.class_weight[:, 0]
        self.class_scale: np.ndarray = np.ones(len(sums))
        if self.card.weights.balance and recipe.labelled and (sums > 0).all():
            self.class_scale = sums.sum() / (len(sums) * sums)
        rows = self.size("train")
        self.mean_weight: float = float(sums @ self.class_scale) / rows if rows else 0.0

    def __enter__(self) -> Dataset:  # noqa: PYI034  the run-time checks of the tests do not know Self here
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close files and threads, remove temporary files. Can be called twice."""
        self._decoder.close()
        self._index.close()
        if self._scratch is not None:
            self._scratch.cleanup()

    def size(self, split: str) -> int:
        """Rows of a split."""
        return int(self._counts(split).sum())

    def offsets(self, split: str) -> np.ndarray:
        """int64 `[n_clusters + 1]`: row number of the first row of each cluster."""
        return np.concatenate([[0], np.cumsum(self._counts(split))]).astype(np.int64)

    def rows(self, clusters: Sequence[int], split: str, *, columns: Literal["all", "training"] = "all") -> Rows:
        """The rows of one split in these clusters, cluster by cluster, in file order.

        With `columns="training"` only features, labels and training weights are read; the other fields of the result are empty.
        """
        parts = [part for _, part in self.decode(clusters, split, columns=columns)]
        if not parts:
            raise ValueError("no cluster was asked for")
        return concatenate(parts)

    def decode(self, clusters: Sequence[int], split: str, *, columns: Literal["all", "training"] = "all") -> Iterator[tuple[int, Rows]]:
        """As `rows`, one cluster at a time with its number."""
        self._counts(split)
        code = SPLITS.index(split)
        everything = columns == "all"
        numbers = [int(number) for number in clusters]
        names = self._recipe.all_names if everything else self._recipe.training_names
        for number, table in zip(numbers, self._decoder.tables(numbers, names), strict=True):
            picked = np.flatnonzero(self._index.codes(number) == code)
            bad: dict[str, int] = {}
            try:
                yield number, assemble(self._recipe, table, picked, everything=everything, scale=self.class_scale, bad=bad)
            finally:
                if bad:
                    with self._lock:
                        self._nonfinite[split, number] = bad

    def iterate(self, split: str, *, step: int = 65536, columns: Literal["all", "training"] = "all") -> Iterator[Rows]:
        """The whole split in row-number order, in parts of at most `step` rows (parts end with their cluster)."""
        numbers = np.flatnonzero(self._counts(split)).tolist()
        for _, rows in self.decode(numbers, split, columns=columns):
            for start in range(0, len(rows), step):
                yield rows if len(rows) <= step else rows.take(slice(start, start + step))

    def spread(self, split: str, clusters: int) -> Rows:
        """Features, labels and training weights of the rows in up to so many clusters, spread evenly over those that a split has rows in."""
        numbers = np.flatnonzero(self._counts(split))
        return self.rows(numbers[evenly(len(numbers), clusters)].tolist(), split, columns="training")

    def branch_values(self, split: str, names: Iterable[str], most: int, samples: Collection[str] | None = None) -> dict[str, Any]:
        """Branches as they lie in the files, behind these names, of at most `most` entries of a split, from up to 16 clusters spread over it.

        A branch that has not the same type everywhere is left out. `samples`: of these alone.
        """
        numbers = np.flatnonzero(self._counts(split))
        if samples is not None:
            wanted = {number for number, name in enumerate(self.card.samples) if name in samples}
            numbers = np.array([number for number in numbers.tolist() if self.clusters[number].sample in wanted], np.int64)
        numbers = numbers[np.linspace(0, len(numbers) - 1, min(len(numbers), 16)).astype(np.int64)] if len(numbers) else numbers
        found: dict[str, list[Any]] = {}
        for number, table in zip(numbers.tolist(), self._decoder.tables(numbers.tolist(), frozenset(names)), strict=True):
            picked = np.flatnonzero(self._index.codes(number) == SPLITS.index(split))
            entries = np.unique(table.parents()[picked])[: -(-most // len(numbers))]
            for name, column in table.branches().items():
                found.setdefault(name, []).append(column[entries])
        alike = {name: parts for name, parts in found.items() if len(parts) == len(numbers) and len({str(ak.type(part[:0])) for part in parts}) == 1}
        return {name: (np.concatenate(parts) if isinstance(parts[0], np.ndarray) else ak.concatenate(parts))[:most] for name, parts in alike.items()}

    def identity_keys(self, rows: Rows) -> np.ndarray:
        """Keys of rows for joins across cards (`identity.keys`): equal keys mean the same object of the same event of the same sample."""
        return identities.keys(tuple(self.card.samples), rows.sample, rows.identity, rows.object)

    @property
    def nonfinite(self) -> dict[str, int]:
        """NaN and infinite values per variable, in the rows decoded so far (each cluster once per split)."""
        total: dict[str, int] = {}
        with self._lock:
            for bad in self._nonfinite.values():
                for name, count in bad.items():
                    total[name] = total.get(name, 0) + count
        return total

    @property
    def report(self) -> dict[str, Any]:
        """All of it as JSON: files with UUIDs and entries, rows per sample and split, classes, weights, duplicates, non-finite values, warnings."""
        index, files = self._index, self._decoder.files
        of_sample = np.array([c.sample for c in self.clusters], np.int64)
        samples = {}
        for number, name in enumerate(self.card.samples):
            mine = of_sample == number
            rows = {split: int(self.counts[split][mine].sum()) for split in SPLITS}
            count, examples = index.duplicates[name]
            samples[name] = {
                "files": [{"path": f.path, "tree": f.tree, "uuid": f.uuid, "entries": f.entries} for f in files if f.sample == number],
                "entries": sum(f.entries for f in files if f.sample == number),
                "selected": int(index.selected[number]),
                "rows": rows,
                "unused": int(index.selected[number]) - sum(rows.values()),
                "duplicates": count,
                "duplicate_examples": examples,
            }
        trained = self.size("train")
        return {
            "card": self.card.name,
            "samples": samples,
            "rows": {split: self.size(split) for split in SPLITS},
            "classes": {
                name: {
                    "rows": dict(zip(SPLITS, index.class_rows[k].tolist(), strict=True)),
                    "weight": dict(zip(SPLITS, (index.class_weight[k] * self.class_scale[k]).tolist(), strict=True)),
                    "scale": float(self.class_scale[k]),
                }
                for k, name in enumerate(self.card.labels.classes)
            },
            "negative_weight_fraction": float(index.negative[0] / trained) if trained else 0.0,
            "mean_weight": self.mean_weight,
            "nonfinite": self.nonfinite,
            "clusters": len(self.clusters),
            "warnings": list(self.warnings),
        }

    def _counts(self, split: str) -> np.ndarray:
        if split not in self.counts:
            raise UsageError(f"unknown split '{split}'", near=nearest(split, SPLITS) or SPLITS)
        return self.counts[split]


def open_dataset(
    card: Card,
    files: Mapping[str, Sequence[str]] | None = None,
    *,
    split_files: Mapping[str, Sequence[str]] | None = None,
    scratch: Path | None = None,
    threads: int | None = None,
    labelled: bool = True,
    training: bool = True,
    cluster_entries: int = CLUSTER_ENTRIES,
) -> Dataset:
    """Open the files of a card, check them, and index their rows.

    Args:
        card: the card.
        files: sample name -> paths or globs, in place of the card's.
        split_files: split -> paths or globs, in place of the card's `splits`.
        scratch: an existing directory for the index (1 byte per candidate); a temporary one by default.
        threads: for decompression; min(4, cores) by default.
        labelled: False for files without labels (predictions): neither labels nor training weights are read.
        training: also demand what training needs: rows of every class in the training split, with a positive sum of weights.
        cluster_entries: entries read at once, about.

    Raises:
        UsageError: what the card asks for is not there; zero entries; a class without rows.
        RunFailed: a damaged file.
    """
    recipe = Recipe(card, labelled=labelled)
    paths = sample_files(card, files)
    codes = split_codes(card, split_files, paths)
    with contextlib.ExitStack() as undo:  # nothing is left behind when something is refused
        trees = Trees()
        undo.callback(trees.close)
        sources, clusters = _survey(recipe, trees, paths, cluster_entries)
        temporary = tempfile.TemporaryDirectory(prefix="hlt-train-", dir=scratch)
        undo.callback(temporary.cleanup)
        decoder = Decoder(recipe, trees, sources, clusters, threads)
        undo.callback(decoder.close)
        index = Index(decoder, Path(temporary.name), codes)
        undo.callback(index.close)
        dataset = Dataset(recipe, decoder, index, temporary)
        _check(dataset, index, training=training and labelled)
        undo.pop_all()
    return dataset


def _survey(recipe: Recipe, trees: Trees, paths: Mapping[str, Sequence[str]], target: int) -> tuple[list[SourceFile], list[Cluster]]:
    """Open every file once: its tree, entries and branches; then its clusters."""
    sources: list[SourceFile] = []
    clusters: list[Cluster] = []
    for sample, (name, files) in enumerate(paths.items()):
        for path in files:
            tree = trees.get(path, recipe.card.tree)
            recipe.bind(tree, name)
            _try(recipe, tree, sample)
            ranges = cut(tree, sorted(recipe.branches(recipe.training_names, tree)), target) if tree.entries else []
            clusters += [Cluster(sample, len(sources), start, stop) for start, stop in ranges]
            sources.append(SourceFile(sample, path, tree.name, tree.uuid, tree.entries))
        if not sum(source.entries for source in sources if source.sample == sample):
            raise UsageError(f"sample '{name}' has zero entries", where=f"{', '.join(files)}, tree '{sources[-1].tree}'", then="choose other files")
    return sources, clusters


def _try(recipe: Recipe, tree: Tree, sample: int) -> None:
    """Evaluate everything on the first entries without taking a row: a list used as a value, or the other way round, is refused before hours of reading."""
    some = Cluster(sample, 0, 0, min(tree.entries, 4))
    with ThreadPoolExecutor(1) as pool:
        columns = tree.submit(sorted(recipe.branches(recipe.all_names, tree)), some.start, some.stop, pool).result()
    table = Table(recipe, tree.path, tree.name, some, columns)
    assemble(recipe, table, np.zeros(0, np.int64), everything=True, scale=np.ones(len(recipe.card.labels.classes)), bad={})


def _check(dataset: Dataset, index: Index, *, training: bool) -> None:
    for number, name in enumerate(dataset.card.samples):
        if not index.selected[number]:
            raise UsageError(f"sample '{name}' has no row: the selection refuses every entry", then="relax 'selection' or 'object_selection' in the card")
        count, examples = index.duplicates[name]
        if count:
            dataset.warnings.append(f"sample '{name}': {count} entries repeat the identity of another one, for instance {'; '.join(examples)}")
    if not training:
        return
    for k, name in enumerate(dataset.card.labels.classes):
        rows, weight = int(index.class_rows[k].sum()), float(index.class_weight[k, 0])
        if not rows:
            raise UsageError(f"class '{name}' has no row in any split", then="check labels and selections in the card")
        if not index.class_rows[k, 0]:
            raise UsageError(f"class '{name}' has no row in the training split ({rows} in the others)", then="check 'splits' in the card")
        if not weight > 0:
            then = "a positive sum is needed: 'weights.negative: abs' or 'drop'"
            raise UsageError(f"the training weights of class '{name}' sum to {weight:g}", then=then)
    if index.negative[0]:
        fraction = index.negative[0] / dataset.size("train")
        dataset.warnings.append(f"{100 * fraction:.2g} % of the training rows have a negative weight ('weights.negative: {dataset.card.weights.negative}')")


def evenly(n: int, most: int) -> np.ndarray:
    """int64: at most `most` of the numbers below n, from the first to the last, evenly apart."""
    return np.unique(np.linspace(0, n - 1, most).round().astype(np.int64))
