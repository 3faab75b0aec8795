"""What a ROOT file holds: trees, branches, codecs, ranges, non-finite values, constants."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from hlt_train.data.ragged import ragged
from hlt_train.data.read import Tree, file_facts, open_file, open_tree
from hlt_train.errors import UsageError

__all__ = ["ENTRIES", "survey"]

ENTRIES = 10_000  # entries whose values are looked at


def survey(path: str, tree: str | None = None, *, entries: int = ENTRIES) -> dict[str, Any]:
    """Look into a file.

    Args:
        path: the file.
        tree: the tree whose branches are listed; by default `Events` or the only one. Where the choice is open, no branches are listed.
        entries: values of the first so many entries are read for ranges, non-finite values and constants.

    Returns:
        JSON-able: uuid, compression (the file's setting), codecs (what its baskets use), origin, trees, and per branch its type, depth, codec, range,
        multiplicity, number of NaN and infinite values, and whether it is constant.
    """
    file = open_file(path)
    try:
        found: dict[str, Any] = {"file": path, "bytes": Path(path).stat().st_size if "://" not in path else None, **file_facts(file)}
    finally:
        file.close()
    try:
        opened = open_tree(path, tree)
    except UsageError:
        if tree is not None or not found["trees"]:
            raise
        return found | {"tree": None, "branches": [], "codecs": {}, "inspected_entries": 0}
    try:
        stop = min(entries, opened.entries)
        branches = _branches(opened, stop)
        codecs: dict[str, int] = {}
        for branch in branches:
            codecs[branch["codec"]] = codecs.get(branch["codec"], 0) + 1
        if opened.kind == "RNTuple":
            codecs = opened.page_codecs()
    finally:
        opened.close()
    return found | {"tree": opened.name, "inspected_entries": stop, "codecs": codecs, "branches": branches}


def _branches(tree: Tree, stop: int) -> list[dict[str, Any]]:
    found = []
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for start in range(0, len(tree.names), 64):
            described = [tree.branch(name) for name in tree.names[start : start + 64]]
            columns = tree.submit([b.name for b in described if b.dtype is not None], 0, stop, pool).result()
            for branch in described:
                kind = branch.dtype.name if branch.dtype is not None else None
                codec = tree.codec(branch.name) if tree.kind == "TTree" else ""
                facts: dict[str, Any] = {"name": branch.name, "type": branch.text, "depth": branch.depth, "dtype": kind, "codec": codec}
                found.append(facts | (_values(columns[branch.name]) if branch.name in columns else {}))
    return found


def _values(column: Any) -> dict[str, Any]:
    """Range, multiplicity, non-finite values and constancy of a column."""
    taken = ragged(column)
    values = taken.content
    facts: dict[str, Any] = {}
    if taken.depth:
        numbers = np.diff(taken.offsets[0])
        if len(numbers):
            facts["multiplicity"] = {
                "min": int(numbers.min()),
                "mean": float(numbers.mean()),
                "max": int(numbers.max()),
                "p90": float(np.quantile(numbers, 0.9)),
            }
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        facts["nan"] = int(np.isnan(values).sum())
        facts["inf"] = int(len(values) - finite.sum()) - facts["nan"]
        values = values[finite]
    if len(values):
        low, high = values.min(), values.max()
        facts |= {"min": low.item(), "max": high.item(), "constant": bool(low == high) and len(values) > 1 and not facts.get("nan") and not facts.get("inf")}
    return facts
