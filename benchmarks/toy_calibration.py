"""How hard the toy files are: the figures that their cards promise, per seed of the file and mean over the networks' seeds, with errors.

To reach: the row that the toy jets are tuned to (six features, network 64-32-32, 40,000 training and 40,000 test jets; Pythia 8 jets with a simple detector
give g .92, q .89, W .91, Z .91, t .97 with such features), AUC .965 for the b-tags and at least .985 for a network on the toy events.

    python benchmarks/toy_calibration.py [number of file seeds, default 3]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
NETWORKS = 3  # networks per file


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean over files and networks `[files, networks]`, and its standard error from the spread between files."""
    per_file = values.mean(axis=1)
    return float(per_file.mean()), float(per_file.std(ddof=1) / np.sqrt(len(per_file))) if len(per_file) > 1 else float("nan")


def main(files: int) -> None:
    from reference_network import JET_AUC, btag_auc, event_figures, jet_figures

    from hlt_train.datasets.events import write_events
    from hlt_train.datasets.jets import write_jets
    from hlt_train.report.table import table

    found: dict[str, list[np.ndarray]] = {}
    for seed in range(1, files + 1):
        with tempfile.TemporaryDirectory() as folder:
            jets, events = Path(folder) / "jets.root", Path(folder) / "events.root"
            write_jets(jets, 80_000, seed)
            write_events(events, 200_000, seed)
            figures = {f"jets: AUC of {name}": auc for name, auc in jet_figures(jets, NETWORKS).items()}
            figures["events: AUC of the sum of four b-tags"] = np.array([btag_auc(events)])
            networks = event_figures(events, NETWORKS)
            figures |= {f"events: network, {name}": networks[name] for name in ("auc", "efficiency at 50 Hz")}
        for name, values in figures.items():
            found.setdefault(name, []).append(values)
            print(f"file seed {seed}  {name}: {' '.join(f'{v:.4f}' for v in values)}", flush=True)
    expected = {f"jets: AUC of {name}": f"{auc} +- .010" for name, auc in JET_AUC.items()}
    expected |= {"events: AUC of the sum of four b-tags": ".965 +- .005", "events: network, auc": ">= .985", "events: network, efficiency at 50 Hz": ""}
    rows = []
    for name, values in found.items():
        mean, error = mean_and_error(np.stack(values))
        rows.append([name, f"{mean:.4f}", f"{error:.4f}", expected[name]])
    print(table(rows, ["figure", "mean", "error", "to reach"], title=f"{files} files, {NETWORKS} networks each"))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
