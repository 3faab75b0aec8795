"""Speed of `fit` in training rows/s from the second epoch, against the bare `lax.scan` loop (`bare_scan.py`), and streamed against min(reader, scan).

Same network, batch, steps per call and data; repeats alternate between the peers, medians are compared. Prints one line per figure and the ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from hlt_train import devices

devices.prepare(1)  # before jax has a backend

import jax  # noqa: E402
from bare_scan import train as bare  # noqa: E402

from hlt_train import optimisers  # noqa: E402
from hlt_train.configuration import check  # noqa: E402
from hlt_train.data.card import load_card  # noqa: E402
from hlt_train.data.dataset import open_dataset  # noqa: E402
from hlt_train.data.normalise import fit_normalisation  # noqa: E402
from hlt_train.data.stream import Stream  # noqa: E402
from hlt_train.datasets.jets import write_jets  # noqa: E402
from hlt_train.fit import FitConfig, fit  # noqa: E402
from hlt_train.progress import Progress  # noqa: E402
from hlt_train.report.table import table  # noqa: E402
from hlt_train.restore import ModelSpec, build_model  # noqa: E402
from hlt_train.run import Run  # noqa: E402


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("-n", type=int, default=100_000, help="toy jets in the file; 60 %% of them train")
    options.add_argument("--batch", type=int, default=512)
    options.add_argument("--scan", type=int, default=32)
    options.add_argument("--epochs", type=int, default=6)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--model", default="mlp")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="hlt-train-bench-") as folder:
        measure(Path(folder), given)


def measure(folder: Path, given: argparse.Namespace) -> None:
    write_jets(folder / "toy_jets.root", given.n, 1)
    card = load_card("toy_jets")
    card.samples["jets"].files = [str(folder / "toy_jets.root")]
    spec = ModelSpec.of({"name": given.model}, card.labels.classes)
    speeds: dict[str, list[float]] = {name: [] for name in ("scan, gather per step", "scan, gather per call", "fit resident", "fit streaming", "reader")}
    with open_dataset(card) as dataset:
        inputs = fit_normalisation(dataset)
        stream = Stream(dataset, "train", inputs, batch=given.batch, workers=1, seed=1)
        data = jax.tree.map(jax.numpy.asarray, stream.resident())
        schedule = optimisers.schedule("cosine_decay_schedule", 0.003, given.epochs * stream.steps_per_epoch, {})
        model = build_model(spec, inputs, 1)
        for repeat in range(given.repeats):
            for gather in ("step", "call"):
                rates = bare(model, data, batch=given.batch, scan=given.scan, epochs=given.epochs, schedule=schedule, gather=gather)
                speeds[f"scan, gather per {gather}"].append(statistics.median(rates[1:]))
            for resident, name in (("always", "fit resident"), ("never", "fit streaming")):
                speeds[name].append(fitted(folder / f"{name}{repeat}", card, given, resident))
            began = time.perf_counter()
            for _ in stream.epoch(repeat):
                pass
            speeds["reader"].append(stream.rows / (time.perf_counter() - began))
    median = {name: statistics.median(values) for name, values in speeds.items()}
    scan = max(median["scan, gather per step"], median["scan, gather per call"])
    bound = min(median["reader"], scan)
    spread = {name: f"{min(values):,.0f} .. {max(values):,.0f}" for name, values in speeds.items()}
    print(table([[name, f"{median[name]:,.0f}", spread[name]] for name in speeds], ["training rows/s, median of repeats", "median", "range"]))
    print(f"ratio  fit resident / the faster scan loop  = {median['fit resident'] / scan:.3f}  (reach: >= 0.95)")
    holds = "reader" if bound < scan else "scan"
    print(f"ratio  fit streaming / min(reader, scan)    = {median['fit streaming'] / bound:.3f}  (reach: >= 0.9 on disjoint cores; bound: {holds})")
    print(f"cores: {devices.cores()}, rows in training: {stream.rows:,}, batch {given.batch}, steps per call {given.scan}, model {given.model}")


def fitted(path: Path, card, given: argparse.Namespace, resident: str) -> float:
    """Median rows/s of the epochs from the second on, as `fit` writes them in its metrics."""
    content = {"card": card.model_dump(mode="json"), "batch": given.batch, "scan": given.scan, "for": f"{given.epochs}epochs", "resident": resident}
    fit(check(FitConfig, {**content, "model": {"name": given.model}}), path, progress=Progress(quiet=True))
    with Run.open(path) as run:
        return statistics.median(line["rows_per_s"] for line in run.metrics() if line["event"] == "epoch" and line["epoch"] > 1)


if __name__ == "__main__":
    main()
