"""The index of a dataset: one pass over identity, selection, label and weight branches when it is opened.

It decides for every candidate whether it is a row and of which split (one byte each, in a file in the scratch directory, read back range by range, so that
memory stays bounded), and counts what the loss, the progress line and the provenance need.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hlt_train.data.assemble import identity, labels, weights
from hlt_train.data.card import SPLITS
from hlt_train.data.decode import Decoder
from hlt_train.data.expressions import Expression
from hlt_train.data.identity import NOT_SELECTED, UNUSED, Spool, hash_splits, identity_hashes
from hlt_train.data.table import Table
from hlt_train.errors import UsageError

__all__ = ["Index"]


class Index:
    """Row-split codes and counts.

    Attributes:
        counts: split -> int64 `[n_clusters]`, rows per cluster.
        selected: int64 `[n_samples]`, selected rows, also those in no split.
        class_rows, class_weight: `[n_classes, n_splits]`, rows and sums of training weights before balancing.
        negative: int64 `[n_splits]`, rows with a negative training weight.
        duplicates: sample -> (how many entries repeat an identity, descriptions of the first ones).
    """

    def __init__(self, decoder: Decoder, scratch: Path, file_codes: Mapping[str, int] | None) -> None:
        self._decoder = decoder
        self._recipe = decoder.recipe
        card = self._recipe.card
        self._path = scratch / "rows.codes"
        self._file_codes = file_codes
        n_clusters, n_classes = len(decoder.clusters), len(card.labels.classes)
        self.offsets = np.zeros(n_clusters + 1, np.int64)
        self.counts = {split: np.zeros(n_clusters, np.int64) for split in SPLITS}
        self.selected = np.zeros(len(card.samples), np.int64)
        self.class_rows = np.zeros((n_classes, len(SPLITS)), np.int64)
        self.class_weight = np.zeros((n_classes, len(SPLITS)), np.float64)
        self.negative = np.zeros(len(SPLITS), np.int64)
        self.duplicates: dict[str, tuple[int, list[str]]] = {}
        self._spools = [Spool(scratch / f"identity.{k}") for k in range(len(card.samples))]
        self._first_entry = np.concatenate([[0], np.cumsum([c.stop - c.start for c in decoder.clusters])]).astype(np.int64)
        with self._path.open("wb") as stream:
            for number, table in enumerate(decoder.tables(range(n_clusters), self._recipe.index_names)):
                codes = self._codes(number, table)
                self._count(number, table, codes)
                stream.write(codes.tobytes())
                self.offsets[number + 1] = self.offsets[number] + len(codes)
        self._find_duplicates()
        self._file = self._path.open("rb")

    def codes(self, number: int) -> np.ndarray:
        """uint8 `[candidates]` of one cluster: index into SPLITS, or UNUSED, or NOT_SELECTED. Thread-safe."""
        start, stop = int(self.offsets[number]), int(self.offsets[number + 1])
        return np.frombuffer(os.pread(self._file.fileno(), stop - start, start), np.uint8)

    def close(self) -> None:
        """Close the file of codes."""
        self._file.close()

    def _codes(self, number: int, table: Table) -> np.ndarray:
        """Selection and split of each candidate of a cluster; also spools the identities."""
        recipe = self._recipe
        keep = np.ones(table.entries, bool)
        for selection in (recipe.selection, recipe.sample_selections[table.cluster.sample]):
            if selection is not None:
                keep &= table.per_entry(selection, "selection").astype(bool)
        kept = np.flatnonzero(keep)
        found = identity(recipe, table)[kept]
        hashes = identity_hashes(list(recipe.card.samples)[table.cluster.sample], found)
        self._spools[table.cluster.sample].add(hashes, self._first_entry[number] + kept)
        of_entry = np.full(table.entries, NOT_SELECTED, np.uint8)
        of_entry[kept] = self._splits(table, hashes, kept)
        parents = table.parents()
        codes: np.ndarray = of_entry[parents]
        if recipe.object_selection is not None:
            chosen = table.per_row(recipe.object_selection, np.arange(table.candidates), parents, "object selection").astype(bool)
            codes[~chosen] = NOT_SELECTED
        return codes

    def _splits(self, table: Table, hashes: np.ndarray, kept: np.ndarray) -> np.ndarray:
        if self._file_codes is not None:
            return np.full(len(kept), self._file_codes[table.path], np.uint8)
        splits = self._recipe.card.splits
        if splits.by == "hash":
            return hash_splits(hashes, {str(name): fraction for name, fraction in (splits.fractions or {}).items()})
        codes = np.full(len(kept), UNUSED, np.uint8)
        for code, expression in enumerate(self._recipe.splits):
            if expression is None:
                continue
            chosen = table.per_entry(expression, f"split '{SPLITS[code]}':").astype(bool)[kept]
            both = np.flatnonzero(chosen & (codes != UNUSED))
            if len(both):
                other = SPLITS[int(codes[both[0]])]
                raise UsageError(
                    f"splits '{other}' and '{SPLITS[code]}' overlap: entry {table.cluster.start + int(kept[both[0]])} is in both",
                    where=table.where,
                    then=f"make 'splits.{other}' and 'splits.{SPLITS[code]}' exclude each other",
                )
            codes[chosen] = code
        return codes

    def _count(self, number: int, table: Table, codes: np.ndarray) -> None:
        picked = np.flatnonzero(codes != NOT_SELECTED)
        self.selected[table.cluster.sample] += len(picked)
        parents = table.parents()[picked]
        label = labels(self._recipe, table, picked, parents)
        raw = _raw_weights(self._recipe.weight, table, picked, parents)
        weight = weights(self._recipe, table, picked, parents)
        for code, split in enumerate(SPLITS):
            inside = codes[picked] == code
            self.counts[split][number] = np.count_nonzero(inside)
            self.negative[code] += np.count_nonzero(raw[inside] < 0)
            if self._recipe.labelled:
                self.class_rows[:, code] += np.bincount(label[inside], minlength=len(self.class_rows))
                self.class_weight[:, code] += np.bincount(label[inside], weight[inside], minlength=len(self.class_rows))
        if self._recipe.card.weights.negative == "error" and self._recipe.labelled and (raw < 0).any():
            entry = table.cluster.start + int(parents[np.argmax(raw < 0)])
            what = f"training weight '{self._recipe.weight.text}' is negative at entry {entry} ({int((raw < 0).sum())} rows of this cluster)"
            raise UsageError(what, where=table.where, then="the card says 'weights.negative: error'; keep, abs and drop are the other choices")

    def _find_duplicates(self) -> None:
        for name, spool in zip(self._recipe.card.samples, self._spools, strict=True):
            count, pairs = spool.duplicates()
            self.duplicates[name] = count, [self._describe(*pair) for pair in pairs]

    def _describe(self, first: int, second: int) -> str:
        places, identities = [], []
        for entry in (first, second):
            number = int(np.searchsorted(self._first_entry, entry, side="right")) - 1
            (table,) = self._decoder.tables([number], frozenset(n for e in self._recipe.identity for n in e.names))
            inside = entry - int(self._first_entry[number])
            identities.append(identity(self._recipe, table)[inside].tolist())
            places.append(f"{table.path} entry {table.cluster.start + inside}")
        names = ", ".join(f"{e.text} {v}" for e, v in zip(self._recipe.identity, identities[0], strict=True))
        kind = "" if identities[0] == identities[1] else " (the 64-bit hashes agree, the identities do not)"
        return f"{names}: {places[0]} and {places[1]}{kind}"


def _raw_weights(expression: Expression, table: Table, picked: np.ndarray, parents: np.ndarray) -> np.ndarray:
    found: Any = table.per_row(expression, picked, parents, "training weight")
    return np.asarray(found, np.float64)
