"""Narrow numbers on the wire: bytes, relative error of a message, and loss after equal epochs, against float32 with the same seeds.

- sync: `fit` in lockstep on four virtual devices, the mean formed by alltoall: both hops of a gradient travel in the wire's format.
- downpour: eight simulated workers; pushes travel in the wire's format, the parameters that come back in float32.

int8 has one scale per 1,024 numbers, a power of two, and no error feedback. Bytes of sync are those of the format, of downpour those that were counted.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from _fleet import JETS, Bench, Clock, Problem, Timing, arguments, jets, shown

from hlt_train import devices
from hlt_train.configuration import check
from hlt_train.data.card import load_card
from hlt_train.datasets.jets import write_jets
from hlt_train.fit import FitConfig, fit
from hlt_train.precision.wire import WIRES, encode
from hlt_train.progress import Progress
from hlt_train.report.table import table
from hlt_train.strategies.downpour import downpour
from hlt_train.transports.stragglers import factor

DEVICES, WORKERS, BATCH, EPOCHS = 4, 8, 16, 3


class Figures(NamedTuple):
    """bytes: of a worker's messages per step; error: mean over the messages, |decoded - sent| / |sent|; loss: of validation, at the end."""

    bytes: float
    error: float
    loss: float


def main() -> None:
    given = arguments(__doc__, seeds=3).parse_args()
    devices.prepare(DEVICES)
    clock, problem = Clock(), jets()
    seeds = range(1, 2 if given.quick else given.seeds + 1)
    wires, epochs = (WIRES[::3], 1) if given.quick else (WIRES, EPOCHS)
    with tempfile.TemporaryDirectory(prefix="hlt-train-bench-") as folder:
        write_jets(Path(folder) / "toy_jets.root", JETS, 1)
        print(compared(f"sync, {DEVICES} devices, alltoall", {w: [in_lockstep(Path(folder), w, s, epochs) for s in seeds] for w in wires}))
    print()
    print(compared(f"downpour, {WORKERS} workers", {w: in_simulation(problem, w, seeds, epochs) for w in wires}))
    clock.close(len(seeds), quick=given.quick)


def compared(title: str, found: dict[str, list[Figures]]) -> str:
    """A line per wire."""
    plain, rows = found["float32"], []
    for wire, figures in found.items():
        rows.append([wire, f"{figures[0].bytes:,.0f}", f"{plain[0].bytes / figures[0].bytes:.2f}", f"{np.mean([f.error for f in figures]):.2g}"])
        rows[-1].append(shown(f.loss for f in figures))
        rows[-1].append("" if wire == "float32" else shown(f.loss - p.loss for f, p in zip(figures, plain, strict=True)))
    return table(rows, ["wire", "bytes", "float32 / this", "relative error", "loss", "loss - float32"], title=title)


def in_lockstep(folder: Path, wire: str, seed: int, epochs: int) -> Figures:
    card = load_card("toy_jets")
    card.samples["jets"].files = [str(folder / "toy_jets.root")]
    content = {
        "card": card.model_dump(mode="json"),
        "batch": BATCH * DEVICES,
        "for": f"{epochs}epochs",
        "devices": DEVICES,
        "seed": seed,
        "model": {"name": "mlp", "widths": [32]},
        "optimizer": {"name": "sgd"},
        "learning_rate": 0.3,
        "transport": {"name": "lockstep", "exchange": "alltoall", "wire": wire},
    }
    run = folder / f"{wire}{seed}"
    result = fit(check(FitConfig, content), run, progress=Progress(quiet=True))
    last = [line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if line.get("event") == "epoch"][-1]
    error = last.get("messages", {}).get("mean_relative_error") or 0.0
    body = sum(leaf.nbytes for leaf in jax.tree.leaves(encode(jax.numpy.zeros(result["parameters"]), wire)))
    return Figures(2 * (DEVICES - 1) / DEVICES * body, error, last["validation"]["loss"])


def in_simulation(problem: Problem, wire: str, seeds: range, epochs: int) -> list[Figures]:
    bench = Bench(problem, downpour, workers=WORKERS, rate=0.1, batch=BATCH, wire=wire)
    found = []
    for seed in seeds:
        track = bench.run(seed, shares=epochs * len(problem.x) // BATCH, timing=Timing(factor=factor("lognormal:0.3", seed)))
        errors, account = bench.program.wire_errors, track.account
        found.append(Figures(account.bytes.sum() / account.batches.sum(), float(np.mean(errors)) if errors else 0.0, track.loss))
        errors.clear()
    return found


if __name__ == "__main__":
    main()
