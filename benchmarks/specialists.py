"""What specialists add to a generalist on toy jets, and what the same effort adds without them.

Arms, all compared with the generalist (float MLP 64-32-32) on the same test jets:
- trained on: the generalist for as many more epochs at the same learning rate, on all classes;
- specialists, lambda L: the sets that are found, 5 epochs each from the generalist's weights, soft targets of share L;
- mean of 3: the arithmetic mean of three generalists of different seeds, as many parameters as generalist and two specialists.

The error of a mean over seeds: the spread over seeds, and the paired fluctuation of the test jets, in quadrature.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax

from hlt_train.combination import mean_of
from hlt_train.configuration import check
from hlt_train.data.card import load_card
from hlt_train.data.dataset import open_dataset
from hlt_train.datasets.jets import write_jets
from hlt_train.files import read_document
from hlt_train.fit import FitConfig, fit
from hlt_train.paired_means import mean
from hlt_train.progress import Progress
from hlt_train.report.table import plus_minus, table
from hlt_train.scorers import scorer
from hlt_train.specialist_training import SpecialistsConfig
from hlt_train.specialists import specialists

QUIET = Progress(quiet=True)
SHARES = (0.0, 0.5, 1.0)
RATE, EPOCHS = 0.001, 5  # of what comes after the generalist


class Bench:
    """A toy file with its card, and runs in a scratch folder."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.folder, card = folder, load_card("toy_jets")
        write_jets(folder / "toy.root", rows, 2026)
        for sample in card.samples.values():
            sample.files = [str(folder / "toy.root")]
        self._card = card.model_dump(mode="json")
        with open_dataset(card) as dataset:
            self.rows = dataset.rows(range(len(dataset.clusters)), "test")
            self.train = dataset.size("train")

    def fit(self, name: str, **options: Any) -> Path:
        """A new run on all classes."""
        fit(check(FitConfig, {"card": self._card, "model": {"name": "mlp"}, **options}), self.folder / name, progress=QUIET)
        return self.folder / name

    def specialists(self, name: str, generalist: Path, share: float, seed: int) -> Path:
        """A new ensemble of the sets that are found."""
        content = {"generalist": str(generalist), "learning_rate": RATE, "for": f"{EPOCHS}epochs", "lambda": share, "seed": seed}
        specialists(check(SpecialistsConfig, content), self.folder / name, progress=QUIET)
        return self.folder / name

    def log_p(self, path: Path) -> np.ndarray:
        """Logarithms of the probabilities of the test jets, `[rows, classes]`."""
        return np.asarray(log_softmax(scorer(path).score(self.rows.x).logits, axis=1))

    def figures(self, log_p: np.ndarray) -> np.ndarray:
        """`[2, rows]`: right or wrong, cross-entropy."""
        label = self.rows.label
        return np.stack([(log_p.argmax(axis=1) == label).astype(float), -log_p[np.arange(len(label)), label]])


def one_seed(bench: Bench, seed: int, epochs: int, say: Any) -> dict[str, np.ndarray]:
    generalists = [bench.fit(f"generalist-{seed}-{k}", seed=seed + 1000 * k, **{"for": f"{epochs}epochs"}) for k in range(3)]
    logits = [bench.log_p(path) for path in generalists]
    found = {"generalist": logits[0]}
    more = bench.fit(f"more-{seed}", seed=seed, init_from=str(generalists[0]), learning_rate=RATE, **{"for": f"{EPOCHS}epochs"})
    found["trained on"] = bench.log_p(more)
    for share in SHARES:
        path = bench.specialists(f"specialists-{seed}-{share:g}", generalists[0], share, seed)
        found[f"specialists, lambda {share:g}"] = bench.log_p(path)
    found["mean of 3"] = mean_of(np.stack(logits), np.ones((3, len(logits[0]))), "arithmetic")
    sets = read_document(bench.folder / f"specialists-{seed}-{SHARES[0]:g}" / "sets.json", "hlt-train/specialist-sets", 1)["sets"]
    say(f"seed {seed}: sets {'; '.join(', '.join(each['classes']) for each in sets)}")
    return {name: bench.figures(each) for name, each in found.items()}


def error(differences: np.ndarray) -> float:
    """Of a mean over seeds of paired differences `[seeds, rows]`."""
    events = mean(differences.mean(axis=0), np.ones(differences.shape[1]), np.arange(differences.shape[1]))
    assert events is not None
    seeds = differences.mean(axis=1).std(ddof=1) / np.sqrt(len(differences)) if len(differences) > 1 else 0.0
    return float(np.hypot(events["error"], seeds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=100_000, help="of the toy file")
    parser.add_argument("--epochs", type=int, default=12, help="of a generalist")
    parser.add_argument("--quick", action="store_true", help="one seed of a small file: only to see that it runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.rows, arguments.epochs = 1, 4_000, 2
    began = time.monotonic()
    say = lambda text: print(f"[{time.monotonic() - began:5.0f} s] {text}", flush=True)  # noqa: E731
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch), arguments.rows)
        say(f"{bench.train:,} training, {len(bench.rows):,} test jets")
        seeds = [one_seed(bench, seed, arguments.epochs, say) for seed in range(1, arguments.seeds + 1)]
    rows = []
    for name in seeds[0]:
        values = np.stack([seed[name] for seed in seeds])  # [seeds, 2, rows]
        row = [name, *(plus_minus(float(values[:, k].mean()), error(values[:, k])) for k in range(2))]
        gains = np.stack([seed[name] - seed["generalist"] for seed in seeds])
        for k in range(2):
            value, spread = float(gains[:, k].mean()), error(gains[:, k])
            row += ["", ""] if name == "generalist" else [plus_minus(value, spread), f"{value / spread:.1f}"]
        rows.append(row)
    print(table(rows, ["arm", "accuracy", "cross-entropy", "accuracy - generalist", "in errors", "cross-entropy - generalist", "in errors"]))
    note = ", --quick: not to be quoted" if arguments.quick else ""
    print(f"generalist of {arguments.epochs} epochs, specialists of {EPOCHS} at rate {RATE:g}; {arguments.seeds} seed(s){note}")


if __name__ == "__main__":
    main()
