"""Reading speed: rows/s of padded float32 features against bare `uproot.iterate` of the same branches in the same steps. To reach: a ratio of 0.9.

The peer stops at Awkward arrays; ours also selects rows of a split, pads, guards against damage and converts, and decompresses in min(4, cores) threads. The
second peer decompresses in as many threads. Both loops read 100,000 toy jets (6 features, 5 constituent branches) from a warm page cache, in alternating order.

    python benchmarks/reading.py [jets, default 100000] [repetitions, default 7]
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uproot

from hlt_train.data.card import Card
from hlt_train.data.dataset import Dataset, open_dataset
from hlt_train.datasets.jets import write_jets
from hlt_train.report.table import table

STEP = 16_384
FEATURES = ["jet_mass", "jet_mult", "jet_sumzlogz", "jet_width", "jet_tau21", "jet_tau32"]
CONSTITUENTS = ["part_pt", "part_eta", "part_phi", "part_deta", "part_dphi"]
CODECS = {"ZLIB(1)": uproot.ZLIB(1), "ZSTD(1)": uproot.ZSTD(1), "LZ4(1)": uproot.LZ4(1), "none": None}


def peer(path: Path, branches: list[str], executor: ThreadPoolExecutor | None) -> int:
    """The bare loop."""
    rows = 0
    for arrays in uproot.iterate({str(path): "Jets"}, branches, step_size=STEP, decompression_executor=executor):
        rows += len(arrays)
    return rows


def ours(dataset: Dataset) -> int:
    """The same branches as rows: padded, guarded, float32."""
    return sum(len(rows) for rows in dataset.iterate("train", columns="training"))


def card(path: Path, *, constituents: bool) -> Card:
    inputs: dict[str, object] = {"hlf": FEATURES}
    if constituents:
        inputs["part"] = {"length": 64, "vars": CONSTITUENTS}
    content = {"tree": "Jets", "example": "object", "samples": {"jets": {"files": str(path)}}, "inputs": inputs}
    content |= {"labels": {"classes": list("gqWZt"), "expression": "label"}, "splits": {"by": "hash", "fractions": {"train": 1.0}}}
    return Card.model_validate(content)


def recompress(source: Path, target: Path, codec: object) -> None:
    """Copy the tree with another codec, in baskets of 10,000 entries."""
    with uproot.recreate(target, compression=codec) as file:
        tree = None
        for arrays in uproot.iterate({str(source): "Jets"}, ["run", "luminosityBlock", "event", "label", *FEATURES, *CONSTITUENTS], step_size=10_000):
            columns = {name: arrays[name] for name in arrays.fields}
            tree = tree or file.mktree("Jets", {name: str(column.type.content) for name, column in columns.items()})
            tree.extend(columns)


def seconds(loops: dict[str, Callable[[], int]], rows: int, repetitions: int) -> dict[str, float]:
    """Median time of each loop; the order of the loops is reversed every time."""
    found: dict[str, list[float]] = {name: [] for name in loops}
    for k in range(repetitions):
        for name in list(loops)[:: 1 if k % 2 else -1]:
            start = time.perf_counter()
            assert loops[name]() == rows
            found[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in found.items()}


def main(jets: int, repetitions: int) -> None:
    threads = min(4, os.cpu_count() or 1)
    rows = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(threads) as executor:
        source = Path(folder) / "toy.root"
        write_jets(source, jets, 1)
        for name, codec in CODECS.items():
            path = Path(folder) / "jets.root"
            recompress(source, path, codec)
            for constituents in (False, True):
                branches = [*FEATURES, *(CONSTITUENTS if constituents else []), "label"]
                with open_dataset(card(path, constituents=constituents), cluster_entries=STEP) as dataset:
                    loops: dict[str, Callable[[], int]] = {
                        "ours": lambda d=dataset: ours(d),
                        "bare": lambda b=branches, p=path: peer(p, b, None),
                        "bare, threads": lambda b=branches, p=path: peer(p, b, executor),
                    }
                    times = seconds(loops, jets, repetitions)
                speed = {loop: f"{jets / t / 1e3:.0f} k/s" for loop, t in times.items()}
                what = "features and constituents" if constituents else "features"
                ratios = [f"{times[loop] / times['ours']:.2f}" for loop in ("bare", "bare, threads")]
                rows.append([name, what, *speed.values(), *ratios])
    header = ["codec", "branches", "hlt-train", "uproot.iterate", f"same, {threads} threads", "ratio", "ratio, threads"]
    print(table(rows, header, title=f"{jets:,} jets, steps of {STEP} entries, uproot {uproot.__version__}, library ak, median of {repetitions}"))


if __name__ == "__main__":
    main(int(float(sys.argv[1])) if len(sys.argv) > 1 else 100_000, int(sys.argv[2]) if len(sys.argv) > 2 else 7)
